"""AMU-Tuning's logit bias: a linear head on auxiliary features, weighted by uncertainty.

Tang et al., "AMU-Tuning: Effective Logit Bias for CLIP-based Few-shot Learning" (2024), section 3:
logits = s + alpha kappa z, with zero-shot logits s, z the head's logits standardised over the
classes of each image, and kappa = kurtosis(s)^-rho of the zero-shot probabilities, so that unsure
images listen to the head. The head has no bias and starts at the classes' mean features; its loss
is lambda CE(logits) + (1 - lambda) CE(z).
"""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ....data.image_sets import ImageSet
from ....models.image import ImageTower
from ..encode import Encoder
from .few_shot import FewShot, Shots

ALPHAS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
RHO = 0.4
# The published code divides the kurtosis by this before the power; alpha's scale includes it.
KURTOSIS_SCALE = 250.0


class LogitBias(FewShot):
    """Zero-shot logits plus those of a head on auxiliary features.

    alpha is chosen among 0.1, 0.2, 0.5, 1, 2, 5 and 10; the head is trained with alpha 1, by AdamW
    on all shots at once, for a fixed number of steps (the published code augments images, and keeps
    the epoch that is best on the test split). Measures are those of `FewShot`.

    Args:
        auxiliary_tower: an image tower with weights (`pretrained`), whose vectors are the auxiliary
            features, as the paper takes MoCo's; None: the model's own before the projection.
        merged: lambda, the weight of the loss of the sum.
        steps: of the head's training.
        learning_rate: of AdamW, which decays along a cosine.
        few_shot: arguments of `FewShot`.
    """

    def __init__(
        self,
        auxiliary_tower: ImageTower | None = None,
        merged: float = 0.5,
        steps: int = 200,
        learning_rate: float = 1e-3,
        **few_shot,
    ):
        super().__init__(**few_shot)
        if not 0 <= merged <= 1 or steps < 0:
            raise ValueError(f"merged is {merged} (0 to 1) and steps {steps} (at least 0)")
        self.tower = auxiliary_tower
        self.merged = merged
        self.steps = steps
        self.learning_rate = learning_rate
        self._is_loaded = False

    def prepare(self) -> np.ndarray:
        if self.tower is not None and not self._is_loaded:
            self.tower.load_pretrained()
            self._is_loaded = True
        return super().prepare()

    def auxiliary(self, encoder: Encoder, images: ImageSet, chosen: np.ndarray) -> Tensor:
        if self.tower is None:
            return F.normalize(encoder.image_features(images, chosen, ".pooled"), dim=1)
        model = ImageModel(self.tower.to(encoder.device))
        return replace(encoder, model=model, wanted={}).image_features(images, chosen)

    def settings(self) -> list[tuple[float, ...]]:
        return [(alpha,) for alpha in ALPHAS]

    def fit(self, shots: Shots, num_classes: int) -> Tensor:
        """Returns the head's weights [k, classes]."""
        aux, targets = shots.auxiliary, shots.targets
        counts = targets.bincount(minlength=num_classes)
        means = aux.new_zeros(num_classes, aux.shape[1]).index_add_(0, targets, aux)
        weight = nn.Parameter((means / counts[:, None]).T.contiguous())
        optimizer = torch.optim.AdamW([weight], lr=self.learning_rate, weight_decay=0.01, eps=1e-4)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, self.steps))
        factor = certainty(shots.logits)
        for _ in range(self.steps):
            with torch.enable_grad():
                scores = standardized(aux @ weight)
                merged = F.cross_entropy(shots.logits + factor * scores, targets)
                loss = self.merged * merged
                loss = loss + (1 - self.merged) * F.cross_entropy(scores, targets)
            (weight.grad,) = torch.autograd.grad(loss, [weight])
            optimizer.step()
            schedule.step()
        return weight.detach()

    def bias(self, fitted: Tensor, queries: Shots, setting: tuple[float, ...]) -> Tensor:
        scores = standardized(queries.auxiliary @ fitted)
        return setting[0] * certainty(queries.logits) * scores


class ImageModel(nn.Module):
    """An image tower alone, as a model that can be evaluated."""

    def __init__(self, tower: ImageTower):
        super().__init__()
        self.tower = tower.eval()
        self.image_size = tower.image_size

    def encode_image(self, image: Tensor) -> Tensor:
        """Returns vectors of length one."""
        return F.normalize(self.tower(image).float(), dim=1)


def certainty(logits: Tensor) -> Tensor:
    """Returns kappa [n, 1]: small where one class stands out of the probabilities."""
    standard = standardized(logits.softmax(1))
    return (standard.pow(4).mean(1, keepdim=True) / KURTOSIS_SCALE).pow(-RHO)


def standardized(logits: Tensor) -> Tensor:
    """Returns logits with mean 0 and standard deviation 1 over the classes of each row."""
    deviation = logits.std(1, keepdim=True)
    return (logits - logits.mean(1, keepdim=True)) / deviation.clamp_min(1e-12)
