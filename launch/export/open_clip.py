"""`--to open_clip`: a folder for `open_clip.create_model_and_transforms("local-dir:...")`.

CLIP_benchmark, and whatever else takes a name of open_clip, takes it, too.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from PIL import Image
from torch import Tensor

from ...data.files import write_json
from ...data.text.tokenize import ClipTokenizer
from ...models.interop.open_clip import CONFIG, to_open_clip
from .source import Source, end_of_text
from .target import Reloaded, Target
from .tokenizer_files import make_hf_tokenizer

PROGRAM = """\
import open_clip
import torch
from PIL import Image

model, _, preprocess = open_clip.create_model_and_transforms("local-dir:{path}")
tokenizer = open_clip.get_tokenizer("local-dir:{path}")
model.eval()
image = preprocess(Image.new("RGB", (300, 200), "red"))[None]  # or Image.open("photo.jpg")
texts = tokenizer(["a red flag", "a blue flag"])
with torch.inference_mode():
    images = model.encode_image(image, normalize=True)
    vectors = model.encode_text(texts, normalize=True)
    print((model.logit_scale.exp() * images @ vectors.T).softmax(dim=1))
"""


class OpenClip(Target):
    name = "open_clip"
    packages: Mapping[str, str] = {"open_clip": "open_clip_torch"}
    needs = ("open_clip_torch",)
    library = "open_clip"

    def write(self, source: Source, path: Path) -> list[str]:
        model, tensors = translate(source)
        if not isinstance(source.run.tokenizer, ClipTokenizer):
            make_hf_tokenizer(source).save_pretrained(path)
            # open_clip takes the tokenizer of the folder, whatever the name.
            model["text_cfg"]["hf_tokenizer_name"] = source.name
        config = {"model_cfg": model, "preprocess_cfg": preparation(source)}
        write_json(path / CONFIG, config)
        whole = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
        safetensors.torch.save_file(whole, path / "open_clip_model.safetensors", {"format": "pt"})
        return []

    def reload(self, source: Source, path: Path) -> Reloaded:
        return ReloadedOpenClip(source, f"local-dir:{path}")

    def program(self, source: Source, path: str) -> str:
        return PROGRAM.replace("{path}", path)


class ReloadedOpenClip(Reloaded):
    """A model that open_clip loads, by its name and source."""

    def __init__(self, source: Source, name: str, pretrained: str | None = None):
        import open_clip

        self.source = source
        made: Any = open_clip.create_model_and_transforms(name, pretrained=pretrained)
        self.model, _, self.prepare = made
        self.model.eval()
        self.tokenizer = open_clip.get_tokenizer(name)

    def grey_levels(self, images: Sequence[Image.Image]) -> Tensor:
        return self.source.denormalised(self._prepared(images))

    def encode_images(self, images: Sequence[Image.Image]) -> Tensor:
        return self.model.encode_image(self._prepared(images), normalize=True)

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        return self.model.encode_text(self.tokenizer(list(texts)), normalize=True)

    def _prepared(self, images: Sequence[Image.Image]) -> Tensor:
        return torch.stack([self.prepare(image) for image in images])


def translate(source: Source) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Returns open_clip's configuration and tensors of the run's model.

    Raises:
        ValueError: open_clip has no such model.
    """
    source.check_cosine("open_clip")
    is_clip = isinstance(source.run.tokenizer, ClipTokenizer)
    try:
        return to_open_clip(source.model, None if is_clip else end_of_text(source))
    except ValueError as error:
        raise ValueError(f"{error}; --to transformers, onnx and safetensors may hold it") from error


def preparation(source: Source) -> dict[str, Any]:
    """Returns `preprocess_cfg`.

    Raises:
        ValueError: open_clip does not prepare images like this.
    """
    transform, (mean, std) = source.eval_transform, source.statistics
    if transform.crop != 1:
        raise ValueError(
            f"{source.folder} cuts the middle {transform.crop:g} of an image (eval_transform "
            "crop), and open_clip has no such preparation; export --to transformers or onnx"
        )
    return {
        "size": [source.model.image_size] * 2,
        "mode": "RGB",
        "mean": mean,
        "std": std,
        "interpolation": transform.interpolation,
        "resize_mode": transform.resize,
        "fill_color": transform.fill,
    }
