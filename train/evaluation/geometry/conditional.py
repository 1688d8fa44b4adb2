"""What images hold that their captions do not say: the Schur complement of the covariance.

Ospanov et al., "Scendi Score: Prompt-Aware Diversity Evaluation via Schur Complement of CLIP
Embeddings" (2025), section 4, with the cosine kernel: C_uu = mean of u u^T over images u, and so
with captions v. C_uv pinv(C_vv) C_vu is the part of C_uu that captions explain linearly, and what
is left is the Schur complement. The score of a part with eigenvalues l is
exp(-sum l log(l / sum l)): a number of modes, less the smaller the part is.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from ..encode import Encoder
from ..outcomes import Outcomes
from ..retrieval import Retrieval


class ConditionalDiversity(Retrieval):
    """Scendi scores of images given their captions.

    Measures: `text_share`, how much of the images' covariance captions explain; `scendi.modes` of
    the rest, and `text_scendi.modes` of what is explained. It takes many more pairs than
    dimensions: with fewer, captions explain everything. An image counts with its first caption.
    Embeddings are normalised under every objective.

    Args:
        retrieval: arguments of `Retrieval`; `k` plays no part.
    """

    def __init__(self, **retrieval):
        super().__init__(**retrieval)

    def measure(self, encoder: Encoder, chosen: np.ndarray) -> Mapping[str, float | Outcomes]:
        captions = [self._captions[i][0] for i in chosen.tolist()]
        position = {text: i for i, text in enumerate(dict.fromkeys(captions))}
        image = encoder.image_features(self.data, chosen).cpu().double()
        text = encoder.text_features(list(position)).cpu().double()
        rest, explained = split_covariance(
            image, text[torch.tensor([position[caption] for caption in captions])]
        )
        return {
            "text_share": float(explained.trace() / (explained + rest).trace().clamp_min(1e-300)),
            "scendi.modes": num_modes(rest),
            "text_scendi.modes": num_modes(explained),
        }


def split_covariance(image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the covariance of images less what texts explain, and that part, [d, d] each.

    Args:
        image: [n, d], float64.
        text: that of each image, [n, d].
    """
    num = len(image)
    if not (image.isfinite().all() and text.isfinite().all()):  # of a model that diverged
        nothing = image.new_full((image.shape[1], image.shape[1]), torch.nan)
        return nothing, nothing
    crossed = image.T @ text / num
    explained = crossed @ torch.linalg.pinv(text.T @ text / num, hermitian=True) @ crossed.T
    return image.T @ image / num - explained, explained


def num_modes(covariance: Tensor) -> float:
    """Returns exp(-sum l log(l / sum l)) of the eigenvalues l."""
    if not covariance.isfinite().all():
        return float("nan")
    values = torch.linalg.eigvalsh(covariance).clamp_min(0)  # rounding may leave some below 0
    total = values.sum()
    if total <= 0:
        return 1.0
    return float((torch.special.entr(values / total).sum() * total).exp())
