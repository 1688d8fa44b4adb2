"""`--to transformers`: a folder for `AutoModel` and `AutoProcessor`.

Towers that its `CLIPModel` or `SiglipModel` has become one; others its two-tower model
`VisionTextDualEncoderModel`, which holds any network of timm beside CLIP's text transformer.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from ...models.image import TimmTower
from ...models.interop.transformers import to_transformers
from ...models.text.clip import ClipTextTower
from .source import Source, end_of_text
from .target import Reloaded, Target, quiet
from .tokenizer_files import make_hf_tokenizer

PROGRAM = """\
import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor

model = AutoModel.from_pretrained("{path}").eval()
processor = AutoProcessor.from_pretrained("{path}")
image = Image.new("RGB", (300, 200), "red")  # or Image.open("photo.jpg")
texts = ["a red flag", "a blue flag"]
inputs = processor(
    text=texts, images=[image], padding={padding}, truncation=True, return_tensors="pt"
)
with torch.inference_mode():
    outputs = model(**inputs)
print(outputs.logits_per_image.softmax(dim=1))
"""


class Transformers(Target):
    name = "transformers"
    packages: Mapping[str, str] = {"transformers": "transformers"}
    needs = ("transformers", "timm", "pillow")
    library = "transformers"

    def write(self, source: Source, path: Path) -> list[str]:
        source.check_cosine("transformers")
        with quiet():
            made = make_model(source)
            processor = make_processor(source, made.config.model_type)
            made.save_pretrained(path)
            processor.save_pretrained(path)
        return left_out(source, made)

    def reload(self, source: Source, path: Path) -> Reloaded:
        return _Reloaded(source, path)

    def program(self, source: Source, path: str) -> str:
        return PROGRAM.replace("{path}", path).replace("{padding}", padding(source))


class _Reloaded(Reloaded):
    def __init__(self, source: Source, path: Path):
        from transformers import AutoModel, AutoProcessor

        with quiet():
            self.model: Any = AutoModel.from_pretrained(path).eval()
            self.processor: Any = AutoProcessor.from_pretrained(path)
        self.source = source
        self.padding = True if source.model.text.ignores_padding else "max_length"

    def grey_levels(self, images: Sequence[Image.Image]) -> Tensor:
        inputs = self.processor(images=list(images), return_tensors="pt")
        return self.source.denormalised(inputs["pixel_values"])

    def encode_images(self, images: Sequence[Image.Image]) -> Tensor:
        inputs = self.processor(images=list(images), return_tensors="pt")
        return F.normalize(pooled(self.model.get_image_features(**inputs)), dim=-1)

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        inputs = self.processor(
            text=list(texts), padding=self.padding, truncation=True, return_tensors="pt"
        )
        return F.normalize(pooled(self.model.get_text_features(**inputs)), dim=-1)


def make_model(source: Source) -> Any:
    """Returns the model in transformers' classes, with its weights.

    Raises:
        ValueError: transformers has no such model.
    """
    from transformers import AutoConfig, AutoModel

    try:
        config, state = to_transformers(source.model)
    except ValueError as error:
        if (
            type(source.model.image) is not TimmTower
            or type(source.model.text) is not ClipTextTower
        ):
            raise ValueError(f"{error}; --to onnx and safetensors may hold it") from error
        return make_dual_encoder(source)
    config["text_config"]["eos_token_id"] = end_of_text(source)
    with torch.random.fork_rng(devices=[]):
        made: Any = AutoModel.from_config(AutoConfig.for_model(**config))
    made.load_state_dict(state)
    return made.eval()


def make_dual_encoder(source: Source) -> Any:
    """Returns a `VisionTextDualEncoderModel` of any network of timm and CLIP's text transformer.

    Raises:
        ValueError: see `matrix`.
    """
    from transformers import (
        TimmWrapperConfig,
        VisionTextDualEncoderConfig,
        VisionTextDualEncoderModel,
    )

    model = source.model
    image, text = model.image, model.text
    assert isinstance(image, TimmTower) and isinstance(text, ClipTextTower)
    architecture, arguments = timm_arguments(image)
    vision = TimmWrapperConfig(architecture=architecture, model_args=arguments).to_dict()
    vision |= {"hidden_size": image.width, "num_classes": 0, "label_names": []}
    config: Any = VisionTextDualEncoderConfig(
        vision_config=vision,
        text_config=text.trunk.config.to_dict() | {"eos_token_id": end_of_text(source)},
        projection_dim=source.embed_dim,
    )
    if model.logit_bias is not None:
        config.logit_bias = float(model.logit_bias)  # no class reads it
    with torch.random.fork_rng(devices=[]):
        made = VisionTextDualEncoderModel(config)
    towers = {"vision_model.timm_model": image.trunk, "text_model": text.trunk}
    state = {
        f"{prefix}.{name}": value
        for prefix, module in towers.items()
        for name, value in module.state_dict().items()
    }
    state["visual_projection.weight"] = matrix(model.image_projection, source.embed_dim)
    state["text_projection.weight"] = matrix(model.text_projection, source.embed_dim)
    made.load_state_dict(state | {"logit_scale": model.logit_scale.reshape(())})
    return made.eval()


def matrix(projection: nn.Module, embed_dim: int) -> Tensor:
    """Returns a projection as a matrix.

    Raises:
        ValueError: it has a bias or several layers, which transformers' model has not.
    """
    if isinstance(projection, nn.Identity):
        return torch.eye(embed_dim)
    if not isinstance(projection, nn.Linear) or projection.bias is not None:
        raise ValueError(
            "transformers' two-tower model projects by one matrix, and a projection of this run "
            "has a bias or two layers, which would be lost; export --to onnx or safetensors"
        )
    return projection.weight


def left_out(source: Source, made: Any) -> list[str]:
    """Returns sentences about what transformers' model does not hold."""
    notes, bias = [], source.model.logit_bias
    if bias is not None and "logit_bias" not in made.state_dict():
        notes.append(
            f"transformers' model has no bias of the logits; add {float(bias):.4f} to its logits "
            "before the sigmoid (`logit_bias` in config.json)"
        )
    if "image.mask_token" in source.model.state_dict():
        notes.append("the mask token, which only training uses, is left out")
    return notes


def padding(source: Source) -> str:
    """Returns how texts are padded: to the longest, or always to the whole length."""
    return "True" if source.model.text.ignores_padding else '"max_length"'


def timm_arguments(image: TimmTower) -> tuple[str, dict[str, Any]]:
    """Returns the name and the arguments that timm makes the image tower's network with."""
    import timm

    name, arguments = image.name, image.model_args
    sized = {"img_size": image.image_size, **arguments}
    try:
        with torch.device("meta"):
            timm.create_model(name, num_classes=0, **sized)
    except TypeError:  # convolutional networks take images of any size
        return name, dict(arguments)
    return name, sized


def make_processor(source: Source, kind: str) -> Any:
    """Returns the processor of images and texts, as transformers has it for this kind of model.

    Raises:
        ValueError: the run prepares images in a way that transformers' processor does not know.
    """
    from transformers import (
        CLIPImageProcessor,
        CLIPProcessor,
        SiglipProcessor,
        VisionTextDualEncoderProcessor,
    )

    transform, size = source.eval_transform, source.model.image_size
    square = {"height": size, "width": size}
    if transform.resize == "longest":
        raise ValueError(
            f"{source.folder} pads images to squares (eval_transform resize: longest), and "
            "transformers' processor of CLIP cannot; export --to onnx or open_clip"
        )
    if transform.resize == "squash":
        sizes: dict[str, Any] = {"size": square, "do_center_crop": False}
    else:
        sizes = {"size": {"shortest_edge": round(size / transform.crop)}, "crop_size": square}
    mean, std = source.statistics
    images: Any = CLIPImageProcessor(
        resample=Image.Resampling.BICUBIC,
        image_mean=mean,
        image_std=std,
        **sizes,
    )
    kinds = {"clip": CLIPProcessor, "siglip": SiglipProcessor}
    return kinds.get(kind, VisionTextDualEncoderProcessor)(images, make_hf_tokenizer(source))


def pooled(features: Any) -> Tensor:
    """Returns the tensor; transformers 5 gives it in a record."""
    return features if isinstance(features, Tensor) else features.pooler_output
