"""Sharpness by layer: how much the loss rises when a layer's weights are shaken.

The average-case adaptive sharpness of Andriushchenko et al., "A Modern Look at the Relationship
between Sharpness and Generalization" (2023), section 2,

    E L(w + d) - L(w),  d = rho * |w| * e,  e standard normal,

of one layer at a time. Abdollahpoorrostam, "In Search of the Successful Interpolation: On the Role
of Sharpness in CLIP Generalization" (2024), finds that sharpness by layer, not that of the whole
network, goes along with what interpolation of weights gains under shift: measure it with
`counterpoint evaluate A --toward B`.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..details import Curve, Detail
from ..encode import Encoder
from ..outcomes import Outcomes
from ..task import order_by_hash
from ..zero_shot.classification import ZeroShot


class LayerSharpness(ZeroShot):
    """Sharpness of the zero-shot loss, by layer of the image tower.

    Measures: `log_loss.nats`, the mean of -log P(right class) as it is; `sharpness.nats`, how much
    it rises on average when all layers are shaken; `layerN_sharpness.nats`, when layer N is,
    counted from 0 at the input; `by_layer`, these as a curve. Class prompts stay as they are. The
    images are encoded 2 * draws times for each layer. Each draw is taken with both signs, so that
    the slope of the loss cancels and its curvature is left.

    Args:
        rho: size of the noise as a share of each weight.
        draws: of the noise.
        max_images: at most so many are used, the same ones for every model.
        scale: what similarities are multiplied with; None: the model's own.
        seed: of the draws.
        zeroshot: arguments of `ZeroShot`.
    """

    def __init__(
        self,
        rho: float = 0.1,
        draws: int = 3,
        max_images: int = 1000,
        scale: float | None = None,
        seed: int = 0,
        **zeroshot,
    ):
        super().__init__(**zeroshot)
        if not rho > 0 or draws < 1 or max_images < 1:
            raise ValueError(
                f"rho is {rho}, draws {draws}, max_images {max_images}; each has to be above 0"
            )
        self.rho = rho
        self.draws = draws
        self.max_images = max_images
        self.scale = scale
        self.seed = seed

    def prepare(self) -> np.ndarray:
        chosen = super().prepare()
        self._chosen = np.sort(chosen[order_by_hash(self.keys(chosen))[: self.max_images]])
        return self._chosen

    def measure(
        self, encoder: Encoder, chosen: np.ndarray
    ) -> Mapping[str, float | Outcomes | Detail]:
        tower = getattr(encoder.model, "image", None)
        layers = _layers(tower)
        classifier, keys = self.classifier(encoder), self.keys(chosen)
        targets = torch.tensor([self._targets[i] for i in chosen.tolist()])

        def losses() -> np.ndarray:
            # New features each time: the weights are others.
            own = replace(encoder, wanted={self.data: chosen})
            logits = own.logits(own.images(self.data, chosen), classifier, self.scale)
            rows = logits.cpu().double().log_softmax(1)
            return -rows.gather(1, targets[:, None])[:, 0].numpy()

        before = losses()
        shaken = {"sharpness": [p for layer in layers for p in layer]}
        shaken |= {f"layer{n}_sharpness": layer for n, layer in enumerate(layers)}
        rises = {}
        for name, parameters in shaken.items():
            found = [
                self._losses_with(parameters, draw, sign, losses) - before
                for draw in range(self.draws)
                for sign in (1, -1)
            ]
            rises[f"{name}.nats"] = np.mean(found, axis=0)
        means = {name: float(each.mean()) for name, each in rises.items()}
        by_layer = list(means.values())[1:]
        return {
            "log_loss.nats": Outcomes(float(before.mean()), before, keys),
            **{name: Outcomes(means[name], each, keys) for name, each in rises.items()},
            "by_layer": Curve(
                list(range(len(by_layer))), by_layer, "layer", "rise of the loss in nats"
            ),
        }

    def _losses_with(
        self, parameters: "Sequence[tuple[str, nn.Parameter]]", draw: int, sign: int, losses: Any
    ) -> np.ndarray:
        moved = {
            parameter: sign * self.rho * parameter.abs() * noise(name, draw, self.seed, parameter)
            for name, parameter in parameters
        }
        with moved_by(moved):
            return losses()


def noise(name: str, draw: int, seed: int, like: Tensor) -> Tensor:
    """Returns standard normal numbers for a weight, a function of its name, the draw and a seed."""
    digest = hashlib.sha256(f"{seed}/{draw}/{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return torch.randn(like.shape, generator=generator).to(like.device, like.dtype)


@contextmanager
def moved_by(moved: Mapping[nn.Parameter, Tensor]) -> Iterator[None]:
    """Adds to weights, and afterwards puts back the same bits."""
    before = {parameter: parameter.detach().clone() for parameter in moved}
    try:
        with torch.no_grad():
            for parameter, change in moved.items():
                parameter += change
        yield
    finally:
        with torch.no_grad():
            for parameter, value in before.items():
                parameter.copy_(value)


def _layers(tower: Any) -> list[list[tuple[str, nn.Parameter]]]:
    """Returns names and weights of each layer of an image tower.

    Raises:
        ValueError: it has none, or this process does not hold all of them.
    """
    layers: Sequence[nn.Module] = tower.layers() if hasattr(tower, "layers") else ()
    found = [
        [(f"{n}.{name}", parameter) for name, parameter in layer.named_parameters()]
        for n, layer in enumerate(layers)
    ]
    if not found:
        raise ValueError(
            f"sharpness by layer needs an image tower with layers, and {type(tower).__name__} has "
            "none; it needs a method `layers`"
        )
    for _, parameter in (each for layer in found for each in layer):
        if hasattr(parameter, "full_tensor") or hasattr(parameter, "ds_id"):
            raise ValueError(
                "sharpness by layer cannot be measured while weights are spread over processes; "
                "evaluate a checkpoint with counterpoint evaluate"
            )
    return found
