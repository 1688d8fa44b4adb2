"""Models of open_clip, with random weights: ours give the same features, and theirs of ours."""

import json

import open_clip
import pytest
import torch
from foreign_inputs import captions, images, shaken
from safetensors.torch import save_file

from counterpoint.models.image import TimmTower
from counterpoint.models.interop.open_clip import to_open_clip
from counterpoint.models.interop.read import read_foreign
from counterpoint.models.text import ClipTextTower
from counterpoint.models.two_tower import TwoTower

VISION = {"image_size": 32, "layers": 2, "width": 16, "head_width": 8, "patch_size": 16}
TEXT = {"context_length": 12, "vocab_size": 50, "width": 16, "heads": 2, "layers": 2}
CLIP = {"embed_dim": 8, "vision_cfg": VISION, "text_cfg": TEXT}
CLIPA = {"no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True}
NATIVE = {
    "clip": CLIP,
    "quickgelu": CLIP | {"quick_gelu": True},
    "mean pooling": CLIP | {"vision_cfg": VISION | CLIPA},
    "layer scale": CLIP | {"vision_cfg": VISION | {"ls_init_value": 0.1}},
    "wide MLPs": CLIP | {"vision_cfg": VISION | {"mlp_ratio": 4.3637}},
    "end of text": CLIP | {"text_cfg": TEXT | {"pool_type": "eos", "eos_id": 49}},
    "bias": CLIP | {"init_logit_bias": -10.0, "custom_text": True},
}


def made(config, folder):
    """A model of open_clip with random weights, in a folder of its layout."""
    content = {"model_cfg": config, "preprocess_cfg": {"mean": [0.1, 0.2, 0.3], "std": [0.4] * 3}}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    torch.manual_seed(0)
    model = shaken(open_clip.create_model(f"local-dir:{folder}", load_weights=False))
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return model


@torch.no_grad()
def check(ours, theirs, mean, std):
    """Features, before normalisation, of the same images and captions."""
    pixels, (ids, lengths) = images(ours.image_size), captions()
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (mean, std))
    image = theirs.encode_image((pixels / 255 - mean) / std)
    assert image.std() > 1e-3 and (image[0] - image[1]).abs().max() > 1e-3
    close = {"rtol": 0.0, "atol": 1e-5}
    torch.testing.assert_close(ours.encode_image(pixels, ".raw"), image, **close)
    text = theirs.encode_text(ids)
    torch.testing.assert_close(ours.encode_text(ids, lengths, ".raw"), text, **close)
    torch.testing.assert_close(ours.logit_scale.view(()), theirs.logit_scale)
    if theirs.logit_bias is not None:
        torch.testing.assert_close(ours.logit_bias.view(()), theirs.logit_bias)


@pytest.mark.parametrize("name", NATIVE)
def test_a_folder_and_the_way_back(name, tmp_path):
    theirs = made(NATIVE[name], tmp_path)
    foreign = read_foreign(str(tmp_path))
    ours = foreign.build()
    check(ours, theirs, [0.1, 0.2, 0.3], [0.4] * 3)
    assert foreign.pixels.mean == (0.1, 0.2, 0.3) and foreign.context_length == 12
    config, tensors = to_open_clip(ours, 49 if name == "end of text" else None)
    back = open_clip.CustomTextCLIP if config.get("custom_text") else open_clip.CLIP
    config.pop("custom_text", None)
    back(**config).load_state_dict(tensors)
    state = theirs.state_dict()
    if name == "bias":  # we write it as a plain CLIP
        state = {n.removeprefix("text."): value for n, value in state.items()}
    assert tensors.keys() == state.keys()
    assert [n for n in state if not torch.equal(state[n], tensors[n])] == []


VITS = {
    "plain": {},
    "mean": {"global_pool": "avg"},
    "class token without position": {"no_embed_class": True},
    "layer scale": {"init_values": 0.1},
    "tanh": {"act_layer": "gelu_tanh"},
}


@pytest.mark.parametrize("name", VITS)
def test_a_vit_of_ours_in_open_clip(name):
    sizes = {"patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
    image = TimmTower("vit_tiny_patch16_224", 32, model_args=sizes | VITS[name])
    text = ClipTextTower(16, 2, 2, context_length=12, vocab_size=50)
    ours = shaken(TwoTower(image, text, 8))
    config, tensors = to_open_clip(ours)
    theirs = open_clip.CLIP(**config).eval()
    theirs.load_state_dict(tensors)
    check(ours, theirs, open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
