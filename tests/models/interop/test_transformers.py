"""Models of transformers, with random weights: equal features, and the same bytes back."""

import pytest
import torch
import transformers
from foreign_inputs import captions, images, shaken

from counterpoint.models.image import TimmTower
from counterpoint.models.interop.read import read_foreign
from counterpoint.models.interop.transformers import to_transformers
from counterpoint.models.text.clip import ClipTextTower
from counterpoint.models.text.siglip import SiglipTextTower
from counterpoint.models.two_tower import TwoTower

SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 2}
TEXT = SIZES | {"vocab_size": 50, "max_position_embeddings": 12, "bos_token_id": 48}
TEXT |= {"eos_token_id": 49, "pad_token_id": 0}
ROBERTA = TEXT | {"pad_token_id": 1, "max_position_embeddings": 14, "project_dim": 24}
VISION = SIZES | {"image_size": 32, "patch_size": 16}
GELU = {"hidden_act": "gelu"}


def clip(kind, text, vision=VISION):
    return kind(text_config=text, vision_config=vision, projection_dim=8)


def siglip(text, vision=VISION):
    text = {"projection_size": 16} | text
    return transformers.SiglipConfig(text_config=text, vision_config=vision)


MODELS = {
    "CLIP": (transformers.CLIPModel, clip(transformers.CLIPConfig, TEXT)),
    "CLIP with gelu": (
        transformers.CLIPModel,
        clip(transformers.CLIPConfig, TEXT | GELU, VISION | GELU),
    ),
    "SigLIP": (transformers.SiglipModel, siglip(TEXT | {"pad_token_id": 1})),
    "SigLIP 2": (transformers.SiglipModel, siglip(TEXT | {"vocab_size": 60})),
    "AltCLIP": (transformers.AltCLIPModel, clip(transformers.AltCLIPConfig, ROBERTA)),
    "Chinese CLIP": (transformers.ChineseCLIPModel, clip(transformers.ChineseCLIPConfig, TEXT)),
    "MetaCLIP 2": (transformers.MetaClip2Model, clip(transformers.MetaClip2Config, TEXT)),
}
BACK = ("CLIP", "CLIP with gelu", "SigLIP", "SigLIP 2")


@pytest.fixture(scope="module", params=MODELS)
def saved(request, tmp_path_factory):
    """A model with random weights, in a folder of transformers' layout."""
    kind, config = MODELS[request.param]
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    model = shaken(kind(config))
    model.save_pretrained(folder)
    return request.param, folder, model


def pooled(features):
    return getattr(features, "pooler_output", features)


def theirs(name, model, ids, lengths):
    """Text features, caption by caption without padding, or of whole rows."""
    if name.startswith("SigLIP"):
        pad = model.config.text_config.pad_token_id
        rows = ids.masked_fill(torch.arange(ids.shape[1]) >= lengths[:, None], pad)
        return pooled(model.get_text_features(input_ids=rows))
    rows = [row[None, :length] for row, length in zip(ids, lengths, strict=True)]
    return torch.cat([pooled(model.get_text_features(input_ids=row)) for row in rows])


@torch.no_grad()
def test_a_folder_gives_the_same_features(saved):
    name, folder, model = saved
    foreign = read_foreign(str(folder))
    ours, pixels, (ids, lengths) = foreign.build(), images(), captions()
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (foreign.pixels.mean, foreign.pixels.std))
    close = {"rtol": 0.0, "atol": 1e-5}
    image = pooled(model.get_image_features(pixel_values=(pixels / 255 - mean) / std))
    torch.testing.assert_close(ours.encode_image(pixels, ".raw"), image, **close)
    text = theirs(name, model, ids, lengths)
    assert (text[0] - text[1]).abs().max() > 1e-3
    torch.testing.assert_close(ours.encode_text(ids, lengths, ".raw"), text, **close)
    assert ours.context_length == foreign.context_length == 12
    torch.testing.assert_close(ours.logit_scale.view(-1), model.logit_scale.view(-1))


def test_the_way_back_changes_no_byte(saved):
    name, folder, model = saved
    ours = read_foreign(str(folder)).build()
    if name not in BACK and "Meta" not in name:
        with pytest.raises(ValueError, match="no text tower like a HFTextTower"):
            to_transformers(ours)
        return
    config, tensors = to_transformers(ours)
    state = model.state_dict()
    assert tensors.keys() == state.keys()
    assert [n for n in state if not torch.equal(state[n], tensors[n])] == []
    if name in BACK:
        again = type(model)(type(model.config)(**config))
        again.load_state_dict(tensors)
        pixels = images() / 255.0
        with torch.no_grad():
            want, found = (pooled(m.eval().get_image_features(pixels)) for m in (model, again))
        assert torch.equal(want, found)


@pytest.mark.parametrize("name", ["siglip", "clip"])
@torch.no_grad()
def test_a_model_of_ours_in_transformers(name, tmp_path):
    sizes = {"patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
    trunk = "vit_base_patch16_siglip_224" if name == "siglip" else "vit_base_patch32_clip_224"
    image = TimmTower(trunk, 32, model_args=sizes)
    if name == "siglip":
        text = SiglipTextTower(16, 2, 2, context_length=12, vocab_size=50, pad_id=0)
        ours = TwoTower(image, text, 16, image_projection="none", text_projection="affine")
    else:
        ours = TwoTower(image, ClipTextTower(16, 2, 2, context_length=12, vocab_size=50), 8)
    config, tensors = to_transformers(shaken(ours))
    kind = getattr(transformers, config["architectures"][0])
    model = kind(kind.config_class(**config)).eval()
    model.load_state_dict(tensors)
    pixels, (ids, lengths) = images(), captions()
    image = pooled(model.get_image_features(pixel_values=ours.image.stem(pixels)))
    close = {"rtol": 0.0, "atol": 1e-5}
    torch.testing.assert_close(ours.encode_image(pixels, ".raw"), image, **close)
    text = pooled(model.get_text_features(input_ids=ids))
    torch.testing.assert_close(ours.encode_text(ids, lengths, ".raw"), text, **close)


LOST = {
    "no norm before the blocks": ("vit_tiny_patch16_224", {}, None, "a norm before its blocks"),
    "layer scale": ("vit_base_patch32_clip_224", {"init_values": 0.1}, None, "have no scales"),
    "a bias": ("vit_base_patch32_clip_224", {}, -10.0, "no bias of the logits"),
    "no ViT": ("test_convnext", None, None, "it is a ConvNeXt"),
}


@pytest.mark.parametrize("name", LOST)
def test_what_transformers_cannot_hold(name):
    trunk, args, bias, sentence = LOST[name]
    sizes = {"patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
    image = TimmTower(trunk, 32, model_args=None if args is None else sizes | args)
    text = ClipTextTower(16, 1, 2, context_length=12, vocab_size=50)
    with pytest.raises(ValueError, match=sentence):
        to_transformers(TwoTower(image, text, 8, logit_bias_init=bias))
