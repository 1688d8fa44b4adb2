"""Models of open_clip, with random weights: ours give the same features, and theirs of ours."""

import json

import open_clip
import pytest
import torch
import transformers
from foreign_inputs import captions, images, shaken
from safetensors.torch import save_file

from counterpoint.data.text.tokenize import cleaned
from counterpoint.models.image import TimmTower
from counterpoint.models.interop.base import Pixels
from counterpoint.models.interop.open_clip import (
    convert,
    pixels_of,
    published_preprocess,
    to_open_clip,
)
from counterpoint.models.interop.read import read_foreign
from counterpoint.models.shared import SharedImageTower, SharedTextTower
from counterpoint.models.text.clip import ClipTextTower
from counterpoint.models.two_tower import TwoTower

VISION = {"image_size": 32, "layers": 2, "width": 16, "head_width": 8, "patch_size": 16}
TEXT = {"context_length": 12, "vocab_size": 50, "width": 16, "heads": 2, "layers": 2}
CLIP = {"embed_dim": 8, "vision_cfg": VISION, "text_cfg": TEXT}
CLIPA = {"no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True}
NATIVE = {
    "clip": CLIP,
    "quickgelu": CLIP | {"quick_gelu": True},
    "mean pooling": CLIP | {"vision_cfg": VISION | CLIPA},
    "small epsilon": CLIP | {"vision_cfg": VISION | {"norm_kwargs": {"eps": 1e-6}}},
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
    model = shaken(
        open_clip.create_model(f"local-dir:{folder}", load_weights=False, pretrained_text=False)
    )
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return model


@torch.no_grad()
def check(ours, theirs, mean, std):
    """Features, before normalisation, of the same images and captions."""
    pixels, (ids, lengths) = images(ours.image_size), captions()
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (mean, std))
    image = theirs.encode_image((pixels / 255 - mean) / std)
    assert image.std() > 1e-3 and (image[0] - image[1]).abs().max() > 1e-3
    # Of numbers up to one: random weights make larger ones of some networks.
    close = {"rtol": 0.0, "atol": 1e-5 * max(1.0, float(image.abs().max()))}
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


TIMM = {"image_size": 160, "timm_pool": "", "timm_proj": "linear"}
SIGLIP = TEXT | {"no_causal_mask": True, "proj_bias": True, "pool_type": "last"}
SIGLIP |= {"norm_kwargs": {"eps": 1e-6}}
TANH = {"act_kwargs": {"approximate": "tanh"}}
SIGLIP_VIT = {"timm_model_name": "test_vit4", "timm_pool": "map", "timm_proj": "none"}
EVA = {"timm_model_name": "eva02_tiny_patch14_224", "timm_pool": "token", "timm_proj": None}
RESNET = {"image_size": 64, "layers": [3, 4, 6, 3], "width": 64, "patch_size": None}
FAMILIES = {
    "SigLIP": {"embed_dim": 96, "vision_cfg": TIMM | SIGLIP_VIT, "text_cfg": SIGLIP},
    "SigLIP 2": {"embed_dim": 96, "vision_cfg": TIMM | SIGLIP_VIT, "text_cfg": SIGLIP | TANH},
    "EVA": {"embed_dim": 8, "vision_cfg": EVA | {"image_size": 224}, "text_cfg": TEXT},
    "ResNet": {"embed_dim": 8, "vision_cfg": RESNET, "text_cfg": TEXT},
    "ConvNeXt": CLIP | {"vision_cfg": TIMM | {"timm_model_name": "test_convnext"}},
    "two layers": CLIP | {"vision_cfg": TIMM | {"timm_model_name": "test_vit", "timm_proj": "mlp"}},
    "attending to padding": CLIP | {"text_cfg": TEXT | {"no_causal_mask": True}},
}


@pytest.mark.parametrize("name", FAMILIES)
def test_other_families_and_the_way_back(name, tmp_path):
    custom = {"custom_text": True}
    theirs = made(FAMILIES[name] | custom | {"init_logit_bias": -10.0}, tmp_path)
    ours = read_foreign(str(tmp_path)).build()
    check(ours, theirs, [0.1, 0.2, 0.3], [0.4] * 3)
    config, tensors = to_open_clip(ours)
    config.pop("custom_text", None)
    again = open_clip.CustomTextCLIP if "text.ln_final.bias" in tensors else open_clip.CLIP
    again = again(**config).eval()
    again.load_state_dict(tensors)
    check(ours, again, [0.1, 0.2, 0.3], [0.4] * 3)


def test_images_of_a_file_are_prepared_as_for_published_weights():
    assert pixels_of(published_preprocess("ViT-B-32"), 224) == Pixels(224)
    siglip = pixels_of(published_preprocess("ViT-B-16-SigLIP"), 224)
    assert siglip == Pixels(224, (0.5,) * 3, (0.5,) * 3, resize="squash")
    mobile = pixels_of(published_preprocess("MobileCLIP-S1"), 256)
    assert mobile == Pixels(256, (0.0,) * 3, (1.0,) * 3, "bilinear")
    # Some of these were trained with other statistics than the others.
    assert published_preprocess("ViT-L-14") == {}


def test_captions_are_cleaned_and_filled_as_open_clip_does_it():
    texts = ["A  &amp; b_c, D!", "the MOON's house", ""]
    for how in ("whitespace", "lower", "canonicalize"):
        want = [open_clip.tokenizer.get_clean_fn(how)(text) for text in texts]
        assert [cleaned(text, how) for text in texts] == want
    text = SIGLIP | {"hf_tokenizer_name": "timm/ViT-B-16-SigLIP"}
    text |= {"tokenizer_kwargs": {"clean": "canonicalize", "strip_sep_token": True}}
    state = open_clip.CustomTextCLIP(8, VISION, SIGLIP).state_dict()
    foreign = convert(CLIP | {"text_cfg": text}, state)
    assert foreign.config["text"]["init_args"]["pad_id"] == 1
    arguments = {"name": "timm/ViT-B-16-SigLIP", "clean": "canonicalize", "left_out": ["[SEP]"]}
    assert foreign.tokenizer["init_args"] == arguments
    config, tensors = to_open_clip(foreign.build())
    again = convert(config, tensors)
    assert again.config["text"]["init_args"]["pad_id"] == 1


@pytest.mark.parametrize(("kind", "pooler"), [("roberta", "mean_pooler"), ("bert", "cls_pooler")])
def test_text_towers_of_transformers(kind, pooler, tmp_path):
    sizes = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 32}
    sizes |= {"num_attention_heads": 2, "max_position_embeddings": 20, "pad_token_id": 0}
    transformers.AutoConfig.for_model(kind, **sizes).save_pretrained(tmp_path / "encoder")
    text = {"hf_model_name": str(tmp_path / "encoder"), "hf_pooler_type": pooler}
    text |= {"hf_model_pretrained": False, "context_length": 12}
    theirs = made(CLIP | {"text_cfg": text}, tmp_path)
    ours = read_foreign(str(tmp_path)).build()
    check(ours, theirs, [0.1, 0.2, 0.3], [0.4] * 3)
    ids, lengths = captions()
    cut = ours.encode_text(ids[:1, :4], lengths[:1], ".raw")
    torch.testing.assert_close(ours.encode_text(ids, lengths, ".raw")[:1], cut)
    assert ours.layers()[-1] is ours.text.trunk.encoder.layer[1]
    config, tensors = to_open_clip(ours)
    state = theirs.state_dict()
    assert tensors.keys() == state.keys()
    assert [n for n in state if not torch.equal(state[n], tensors[n])] == []
    assert config.pop("custom_text")
    open_clip.CustomTextCLIP(**config).load_state_dict(tensors)


LOST = {
    "no class token": ({"class_token": False, "global_pool": "avg"}, "always has a class token"),
    "register tokens": ({"reg_tokens": 2}, "register tokens"),
}


@pytest.mark.parametrize("name", LOST)
def test_what_open_clip_cannot_hold(name):
    args, sentence = LOST[name]
    sizes = {"patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
    image = TimmTower("vit_tiny_patch16_224", 32, model_args=sizes | args)
    text = ClipTextTower(16, 1, 2, context_length=12, vocab_size=50)
    with pytest.raises(ValueError, match=sentence):
        to_open_clip(TwoTower(image, text, 8))


def test_a_learned_mask_token_and_shared_towers_are_not_lost_silently():
    sizes = {"patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
    text = ClipTextTower(16, 1, 2, context_length=12, vocab_size=50)
    ours = TwoTower(TimmTower("vit_tiny_patch16_224", 32, model_args=sizes), text, 8)
    ours.image.learn_mask_token()
    with pytest.raises(ValueError, match="mask token was learned and would be lost"):
        to_open_clip(ours)
    shared = TwoTower(SharedImageTower(32, 8, 16, 1, 2), SharedTextTower(16, 12, 50), 8)
    with pytest.raises(ValueError, match="it is a SharedImageTower"):
        to_open_clip(shared)


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
