"""The student's logits over classes follow the teacher's; the classes' vectors are stored once.

L = T^2 / (B C) sum_i KL(softmax_c(S U_i.w_c / T) || softmax_c(s u_i.w_c / T)) with the teacher's
class vectors w on both sides: of the teacher its image features U and scale S, of the student its
image features u and scale s. No labels, captions or text tower are needed. Li et al., "PromptKD:
Unsupervised Prompt Distillation for Vision-Language Models" (2024), section 3.3, and the authors'
code (T = 1, weight 1000).
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from ..base import SampleTerm
from ..components.features import Tensors, full_precision, need
from ..distributed.exchange import Local
from ..kernels.pairing import Pairing
from ..kernels.reductions import row_sums


class ClassLogits(SampleTerm):
    """Kullback-Leibler divergence between softmaxes over classes, in memory of a tile.

    Args:
        classes: file of class vectors, as `counterpoint prompts` writes it.
        teacher: prefix of the teacher's features: `teacher.large` for `teacher.large.image`, or a
            sidecar's name.
        feature: of the student, as wide as the class vectors.
        teacher_scale: S; None: the teacher's own, `teacher.large.logit_scale`.
        temperature: T.
        tile_bytes: memory of one block of logits; None: 32 MiB, on a GPU 256 MiB.

    Raises:
        ValueError: the temperature is not above 0.
    """

    name = "class_logits"

    def __init__(
        self,
        classes: str,
        teacher: str,
        feature: str = "image",
        teacher_scale: float | None = None,
        temperature: float = 1.0,
        tile_bytes: int | None = None,
    ):
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature={temperature} must be above 0")
        self.classes, self.teacher, self.feature = classes, teacher, feature
        self.teacher_scale, self.temperature = teacher_scale, temperature
        self.pairing = Pairing(Local(), tile_bytes=tile_bytes)
        self.needs = (feature, f"{teacher}.image", "logit_scale")
        if teacher_scale is None:
            self.needs += (f"{teacher}.logit_scale",)
        # A plain attribute: checkpoints do not hold what a file does, and a run file is read
        # without it.
        self._vectors: Tensor | None = None

    def per_sample(self, features: Tensors, batch: Tensors) -> Float[Tensor, "b"]:
        given = {**batch, **features}
        student, teacher = full_precision(
            need(given, self.feature, self), need(given, f"{self.teacher}.image", self).detach()
        )
        vectors = self._class_vectors(student)
        for name, rows in ((self.feature, student), (f"{self.teacher}.image", teacher)):
            if rows.shape[1] != vectors.shape[1]:
                raise ValueError(
                    f"'{name}' has {rows.shape[1]} numbers a sample, and the class vectors of "
                    f"'{self.classes}' {vectors.shape[1]}: store those of this teacher "
                    "(counterpoint prompts), and give the student its embed_dim"
                )
        (scale,) = full_precision(need(features, "logit_scale", self))
        scale, teacher_scale = scale / self.temperature, self._scale(features, scale)
        means = self._means(teacher, vectors, teacher_scale)
        # Cross-entropy and entropy: both are a log-sum-exp less the mean logit of the teacher.
        cross = row_sums(student, vectors, scale, self.pairing) - scale * (student * means).sum(1)
        with torch.no_grad():
            sums = row_sums(teacher, vectors, teacher_scale, self.pairing)
            entropy = sums - teacher_scale * (teacher * means).sum(1)
        return (cross - entropy) * (self.temperature**2 / len(vectors))

    def _scale(self, features: Tensors, like: Tensor) -> Float[Tensor, "1"]:
        if self.teacher_scale is not None:
            return torch.full_like(like, self.teacher_scale / self.temperature).detach()
        (scale,) = full_precision(need(features, f"{self.teacher}.logit_scale", self))
        return scale.detach() / self.temperature

    @torch.no_grad()
    def _means(
        self, rows: Float[Tensor, "b d"], vectors: Float[Tensor, "c d"], scale: Float[Tensor, "1"]
    ) -> Float[Tensor, "b d"]:
        """The mean class vector under each row's softmax."""
        size = self.pairing.bytes_on(rows.device) // (len(vectors) * rows.element_size())
        with torch.autocast(rows.device.type, enabled=False):
            parts = [
                (scale * part @ vectors.T).softmax(1) @ vectors for part in rows.split(max(1, size))
            ]
        return torch.cat(parts)

    def _class_vectors(self, like: Tensor) -> Float[Tensor, "c d"]:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        if self._vectors is None:
            try:
                self._vectors = F.normalize(load_file(self.classes)["classes"].float(), dim=1)
            except (OSError, SafetensorError, KeyError) as error:
                raise ValueError(
                    f"the class vectors '{self.classes}' cannot be read ({error}): write them with "
                    "counterpoint prompts --teacher NAME --classes FILE --out "
                    f"{self.classes} (docs/distillation.md)"
                ) from error
        if self._vectors.device != like.device or self._vectors.dtype != like.dtype:
            self._vectors = self._vectors.to(like)
        return self._vectors
