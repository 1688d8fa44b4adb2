"""`--to safetensors`: tensors under Counterpoint's own names, which `--init_from` reads."""

import copy
from collections.abc import Sequence
from pathlib import Path

import safetensors.torch
import torch
from PIL import Image
from torch import Tensor

from ...models.two_tower import TwoTower
from ...models.weights import load_weights, read_weights
from .parity import pixels
from .source import Source
from .target import Reloaded, Target

PROGRAM = """\
from counterpoint.models.weights import read_weights

weights = read_weights("{path}")  # or counterpoint fit ... --init_from {path}
print(sum(tensor.numel() for tensor in weights.values()))
"""


class Safetensors(Target):
    name = "safetensors"
    suffix = ".safetensors"
    library = "counterpoint"

    def write(self, source: Source, path: Path) -> list[str]:
        # Tensors that share memory (towers with common layers) cannot be told apart in such a file.
        state = source.model.state_dict()
        whole = {name: value.contiguous().clone() for name, value in state.items()}
        metadata = {"format": "pt", "step": str(source.step)}
        safetensors.torch.save_file(whole, path, metadata)
        return []

    def reload(self, source: Source, path: Path) -> Reloaded:
        model = copy.deepcopy(source.model)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(float("nan"))  # what the file lacks shows
        load_weights(model, read_weights(path), str(path))
        return _Reloaded(source, model)

    def program(self, source: Source, path: str) -> str:
        return PROGRAM.replace("{path}", path)


class _Reloaded(Reloaded):
    def __init__(self, source: Source, model: TwoTower):
        self.source, self.model = source, model

    def grey_levels(self, images: Sequence[Image.Image]) -> Tensor:
        return pixels(self.source, list(images)).float()

    def encode_images(self, images: Sequence[Image.Image]) -> Tensor:
        return self.model.encode_image(pixels(self.source, list(images)))

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        tokenizer = self.source.run.tokenizer
        return self.model.encode_text(*tokenizer(texts, self.model.context_length))
