"""open_clip's architectures at their full size, and the structure of all of them."""

import open_clip
import pytest
import torch

from counterpoint.models.interop.base import made
from counterpoint.models.interop.open_clip import convert
from counterpoint.models.interop.open_clip_text import ENCODERS, ROBERTA
from counterpoint.models.two_tower import TwoTower

pytestmark = pytest.mark.soak
NAMES = (
    *("ViT-B-32", "ViT-B-32-quickgelu", "ViT-B-16-SigLIP", "ViT-B-16-SigLIP2", "EVA02-B-16"),
    *("RN50", "convnext_base", "roberta-ViT-B-32", "xlm-roberta-base-ViT-B-32"),
)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_features_at_full_size(name, tmp_path):
    config = open_clip.get_model_config(name)
    encoder = config["text_cfg"].get("hf_model_name")
    settings = config
    if encoder:
        # Its configuration cannot be downloaded here: one of the same content lies in a folder.
        from transformers import AutoConfig

        values = ROBERTA | ENCODERS[encoder]
        AutoConfig.for_model(**values).save_pretrained(tmp_path)
        text = config["text_cfg"] | {"hf_model_name": str(tmp_path), "hf_model_pretrained": False}
        settings = config | {"text_cfg": text}
    arguments = {n: value for n, value in settings.items() if n != "custom_text"}
    torch.manual_seed(0)
    kind = open_clip.CustomTextCLIP if encoder or "custom_text" in config else open_clip.CLIP
    theirs = kind(**arguments).eval()
    ours = convert(config, theirs.state_dict()).build()
    size = ours.image_size
    pixels = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
    close = {"rtol": 0.0, "atol": 1e-5}
    image = theirs.encode_image(ours.image.stem(pixels), normalize=True)
    torch.testing.assert_close(ours.encode_image(pixels), image, **close)
    vocab_size = theirs.text.vocab_size if hasattr(theirs, "text") else theirs.vocab_size
    ids = torch.randint(2, vocab_size - 1, (2, ours.context_length))
    lengths = torch.tensor([5, ours.context_length])
    pad = getattr(ours.text, "pad_id", 0)
    for row, length in zip(ids, lengths, strict=True):
        row[length - 1], row[length:] = vocab_size - 1, pad
    text = theirs.encode_text(ids, normalize=True)
    torch.testing.assert_close(ours.encode_text(ids, lengths), text, **close)


def test_every_architecture_of_two_towers_has_a_place_for_every_tensor():
    refused = []
    for name in open_clip.list_models():
        config = open_clip.get_model_config(name)
        if "hf_model_name" in config["text_cfg"]:
            continue  # asks for a configuration that would be downloaded
        if "multimodal_cfg" in config:
            refused.append(name)
            continue
        kind = open_clip.CustomTextCLIP if config.get("custom_text") else open_clip.CLIP
        arguments = {n: value for n, value in config.items() if n != "custom_text"}
        with torch.device("meta"):
            foreign = convert(config, kind(**arguments).state_dict())
            bias = 0.0 if "logit_bias" in foreign.weights else None
            ours = TwoTower(**made(foreign.config), logit_bias_init=bias).state_dict()
        shapes = {n: value.shape for n, value in ours.items()}
        assert {n: value.shape for n, value in foreign.weights.items()} == shapes, name
    assert all(name.startswith("coca") for name in refused)
