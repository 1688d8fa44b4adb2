"""`--to sentence-transformers`: a folder for `SentenceTransformer`, of images and of texts.

It is the folder of transformers with the description of what runs in which order beside it: the
model, then normalisation to length one.
"""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from .source import Source
from .target import Reloaded, Target, quiet
from .transformers import Transformers

PROGRAM = """\
from PIL import Image
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("{path}")
images = model.encode([Image.new("RGB", (300, 200), "red")])  # or Image.open("photo.jpg")
texts = model.encode(["a red flag", "a blue flag"])
print(model.similarity(images, texts))
"""


class SentenceTransformers(Target):
    name = "sentence-transformers"
    packages: Mapping[str, str] = {"sentence_transformers": "sentence-transformers"}
    needs = ("sentence-transformers", "timm", "pillow")
    library = "sentence-transformers"

    def write(self, source: Source, path: Path) -> list[str]:
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.modules import Normalize, Transformer

        with tempfile.TemporaryDirectory(dir=path.parent) as folder, quiet():
            notes = Transformers().write(source, Path(folder))
            towers = Transformer(
                folder, model_kwargs={"dtype": torch.float32}, processing_kwargs=padded(source)
            )
            SentenceTransformer(modules=[towers, Normalize()], device="cpu").save(
                str(path), create_model_card=False
            )
        return notes

    def reload(self, source: Source, path: Path) -> Reloaded:
        return _Reloaded(source, path)

    def program(self, source: Source, path: str) -> str:
        return PROGRAM.replace("{path}", path)


def padded(source: Source) -> Any:
    """Returns what the processor is called with: towers that see padding want it as in training."""
    whole = {"text": {"padding": "max_length", "max_length": source.model.context_length}}
    return {} if source.model.text.ignores_padding else whole


class _Reloaded(Reloaded):
    def __init__(self, source: Source, path: Path):
        from sentence_transformers import SentenceTransformer

        with quiet():
            self.model: Any = SentenceTransformer(str(path), device="cpu")
        self.source = source

    def grey_levels(self, images: Sequence[Image.Image]) -> Tensor:
        return self.source.denormalised(self.model.preprocess(list(images))["pixel_values"])

    def encode_images(self, images: Sequence[Image.Image]) -> Tensor:
        return self._encode(images)

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        return self._encode(texts)

    def _encode(self, items: Sequence[Any]) -> Tensor:
        # Its own batches, its own sorting by length.
        vectors = self.model.encode(list(items), convert_to_tensor=True, show_progress_bar=False)
        return vectors.clone()
