"""Heads: small trained modules between features and a loss, held by the term that uses them.

In: features of this rank's rows. Out: their projection. Batch statistics are those of the global
batch, so that a head computes the same whatever the number of ranks is.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from ..distributed.collectives import total
from .features import full_precision


class BatchNorm(nn.Module):
    """Batch normalisation over the rows of all ranks: values and gradients as in one process.

    Ranks exchange sums and numbers of rows, of which each may have any. torch's SyncBatchNorm works
    on CUDA only. Ioffe and Szegedy (2015).

    Args:
        width: length of a row.
        momentum: of the running statistics, which are used in evaluation only.
        eps: added to the variance.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, width: int, momentum: float = 0.1, eps: float = 1e-5):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))
        self.momentum = momentum
        self.eps = eps

    def forward(self, rows: Float[Tensor, "b width"]) -> Float[Tensor, "b width"]:
        """Normalises with the batch's statistics in training, with the running ones otherwise."""
        (values,) = full_precision(rows)
        with torch.autocast(values.device.type, enabled=False):
            mean, var = self.running_mean, self.running_var
            if self.training:
                mean, var, count = global_moments(values)
                # A pass without gradient, for the log or of an averaged head, is not a step.
                if torch.is_grad_enabled():
                    self._follow(mean.detach(), var.detach() * count / (count - 1).clamp(min=1))
            values = (values - mean) * (var + self.eps).rsqrt() * self.weight + self.bias
        return values.to(rows.dtype)

    def _follow(self, mean: Tensor, var: Tensor) -> None:
        for running, now in ((self.running_mean, mean), (self.running_var, var)):
            running.lerp_(now.to(running.dtype), self.momentum)


def global_moments(rows: Float[Tensor, "b d"]) -> tuple[Tensor, Tensor, Tensor]:
    """Returns mean [d], variance [d] (biased) and number [] of the rows of all ranks."""
    sums = total(torch.cat([rows.sum(0), rows.new_full((1,), float(len(rows)))]))
    count = sums[-1].detach().clamp(min=1)
    mean = sums[:-1] / count
    # From the mean, not from a sum of squares: a large common mean would swallow the variance.
    var = total((rows - mean).square().sum(0)) / count
    return mean, var, count


class MLP(nn.Sequential):
    """Linear layers with ReLU between them: projections, predictors, changes of width.

    Args:
        widths: of the input, the hidden layers and the output; two of them make a linear layer.
        norm: makes what normalises a hidden layer of a given width, before the ReLU: `BatchNorm`
            here (all ranks' rows), `torch.nn.LayerNorm`, or `torch.nn.BatchNorm1d` (each rank's own
            rows, so that results depend on the number of ranks). None: nothing does.
    """

    def __init__(self, widths: Sequence[int], norm: Callable[[int], nn.Module] | None = BatchNorm):
        if len(widths) < 2 or min(widths) < 1:
            raise ValueError(
                f"widths={list(widths)} of a head: name those of its input and its output, and of "
                "hidden layers between them, such as [512, 4096, 256]"
            )
        layers: list[nn.Module] = []
        for width, following in pairwise(widths[:-1]):
            # A norm takes a bias away again, or has one of its own.
            layers.append(nn.Linear(width, following, bias=norm is None))
            layers += [norm(following)] if norm is not None else []
            layers.append(nn.ReLU())
        super().__init__(*layers, nn.Linear(widths[-2], widths[-1]))

    def forward(self, input: Float[Tensor, "b width"]) -> Float[Tensor, "b out"]:
        """Returns the output; features in full precision fit weights of 16 bits as well."""
        return super().forward(input.to(self[0].weight.dtype))  # type: ignore[arg-type]


class UnitMLP(MLP):
    """An `MLP` whose rows have length one, as embeddings do: from one embedding's width to another.

    Two widths make the projection that distillation puts on a student's embedding where the
    teacher's is of another width (Yang et al., "CLIP-KD", 2024).
    """

    def forward(self, input: Float[Tensor, "b width"]) -> Float[Tensor, "b out"]:
        """Returns rows in full precision."""
        (rows,) = full_precision(super().forward(input))
        return F.normalize(rows, dim=-1)


def fitting(
    head: nn.Module, student: Float[Tensor, "b d"], teacher: Float[Tensor, "b t"]
) -> Float[Tensor, "b t"]:
    """Returns the student's rows through the head, in full precision, as wide as the teacher's.

    Raises:
        ValueError: the head gives another width.
    """
    (rows,) = full_precision(head(student))
    if rows.shape[1] != teacher.shape[1]:
        raise ValueError(
            f"the student has {rows.shape[1]} numbers a sample and the teacher {teacher.shape[1]}: "
            "give the term heads that map the one to the other, such as "
            f"counterpoint.losses.components.heads.UnitMLP with widths [{student.shape[1]}, "
            f"{teacher.shape[1]}]"
        )
    return rows
