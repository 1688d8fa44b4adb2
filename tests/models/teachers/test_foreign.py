"""Teachers of other libraries: the features that those libraries compute themselves."""

import json

import open_clip
import pytest
import torch
import transformers
from torch.nn import functional as F

from counterpoint.data.text.tokenize import ClipTokenizer
from counterpoint.models.teachers.foreign import (
    ForeignImage,
    OpenClip,
    PaddedText,
    Transformers,
    towers,
)

CAPTIONS = ["a red square", "the moon's house", "", "one two three four five six seven eight nine"]
NEEDS = ("image", "image.raw", "text", "text.raw", "logit_scale", "logit_bias")
VISION = {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 16}
TEXT = {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}


def refuse(source):
    raise AssertionError("nothing of our own is loaded")


def batch(ids, lengths, size=32):
    pixels = torch.randint(0, 256, (len(ids), 3, size, size), dtype=torch.uint8)
    return {"image": pixels, "text": ids, "text_length": lengths}


def shortened(context_length):
    """Captions as a student with short texts has them."""
    return ClipTokenizer()(CAPTIONS, context_length)


def normalised(pixels, mean, std):
    mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in (mean, std))
    return (pixels.float() / 255 - mean) / std


def check(found, image, text, scale):
    torch.testing.assert_close(found["image.raw"], image)
    torch.testing.assert_close(found["text.raw"], text)
    torch.testing.assert_close(found["image"], F.normalize(image, dim=-1))
    torch.testing.assert_close(found["logit_scale"], scale.exp().view(1))
    assert not any(value.requires_grad for value in found.values())


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders in open_clip's layout: CLIP, and SigLIP's towers with a bias."""
    made = {}
    siglip = {"no_causal_mask": True, "pool_type": "last", "proj_bias": True, "pad_id": 1}
    for name, more, text in (
        ("clip", {}, {}),
        ("siglip", {"init_logit_bias": -7.0, "custom_text": True}, siglip),
    ):
        folder = tmp_path_factory.mktemp(name)
        config = {"embed_dim": 8, "vision_cfg": VISION, "text_cfg": TEXT | text} | more
        preprocess = {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7]}
        content = {"model_cfg": config, "preprocess_cfg": preprocess}
        (folder / "open_clip_config.json").write_text(json.dumps(content))
        torch.manual_seed(0)
        model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
        torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")
        made[name] = folder, model.eval()
    return made


@pytest.mark.parametrize("name", ["clip", "siglip"])
@torch.no_grad()
def test_an_open_clip_folder(folders, name):
    folder, model = folders[name]
    ids, lengths = shortened(10)
    data = batch(ids, lengths)
    towers = OpenClip(str(folder)).build(refuse)
    assert (towers.model.image_size, towers.model.context_length) == (32, 12)
    found = towers(data, NEEDS)
    image = model.encode_image(normalised(data["image"], [0.1, 0.2, 0.3], [0.5, 0.6, 0.7]))
    full = ClipTokenizer()(CAPTIONS, 10)[0]
    pad = 1 if name == "siglip" else 0
    full = full.masked_fill(torch.arange(10) >= lengths[:, None], pad)
    text = model.encode_text(F.pad(full, (0, 2), value=pad))
    check(found, image, text, model.logit_scale)
    assert ("logit_bias" in found) == (name == "siglip")
    if name == "siglip":
        assert found["logit_bias"].item() == -7.0


@torch.no_grad()
def test_an_open_clip_file_with_the_models_name(folders, tmp_path):
    folder, model = folders["clip"]
    config = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]
    (tmp_path / "tiny-of-the-test.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "tiny-of-the-test.json")
    file = str(folder / "open_clip_pytorch_model.bin")
    towers = OpenClip(file, "tiny-of-the-test", precision="bfloat16").build(refuse)
    full = {n for n, p in towers.model.named_parameters() if p.dtype != torch.bfloat16}
    assert full == {"logit_scale"}
    ids, lengths = shortened(12)
    found = towers(batch(ids, lengths), ("text",))["text"]
    wanted = F.normalize(model.encode_text(ids), dim=-1)
    assert found.dtype == torch.float32 and (found * wanted).sum(1).min() > 0.99


@pytest.mark.parametrize(("source", "name"), [("somewhere.pt", None), ("FOLDER", "ViT-B-32")])
def test_an_open_clip_teacher_needs_a_folder_or_a_name(folders, source, name):
    source = str(folders["clip"][0]) if source == "FOLDER" else source
    with pytest.raises(ValueError, match=r"folder with open_clip_config\.json alone, or a file"):
        OpenClip(source, name)


def test_a_folder_without_weights_is_no_teacher(folders, tmp_path):
    config = (folders["clip"][0] / "open_clip_config.json").read_text()
    (tmp_path / "open_clip_config.json").write_text(config)
    with pytest.raises(ValueError, match="open_clip cannot load the teacher"):
        OpenClip(str(tmp_path)).build(refuse)


def test_building_leaves_the_statistics_of_a_batch_norm_alone(tmp_path):
    vision = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 16}
    config = {"embed_dim": 8, "vision_cfg": vision | {"patch_size": None}, "text_cfg": TEXT}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    model = open_clip.create_model(f"local-dir:{tmp_path}", load_weights=False)
    before = model.state_dict()
    assert any("running_mean" in name for name in before)
    torch.save(before, tmp_path / "open_clip_pytorch_model.bin")
    after = OpenClip(str(tmp_path)).build(refuse).model.image.model.state_dict()
    assert [name for name, value in before.items() if not torch.equal(after[name], value)] == []


def test_ids_are_those_of_open_clip(folders):
    found = OpenClip(str(folders["clip"][0])).tokenize(CAPTIONS, 10)
    assert torch.equal(found, shortened(10)[0])


def save(folder, model, processor):
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model.eval()


def output(features):
    return getattr(features, "pooler_output", features)


@torch.no_grad()
def test_a_clip_model_of_transformers(tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 2, "projection_dim": 8}
    text = sizes | {"vocab_size": 49408, "max_position_embeddings": 12, "eos_token_id": 49407}
    vision = sizes | {"image_size": 32, "patch_size": 16}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    mean, std = [0.3, 0.2, 0.1], [0.7, 0.6, 0.5]
    processor = transformers.CLIPImageProcessor(image_mean=mean, image_std=std)
    model = save(tmp_path, transformers.CLIPModel(config), processor)
    towers = Transformers(str(tmp_path)).build(refuse)
    assert (towers.model.image_size, towers.model.context_length) == (32, 12)
    ids, lengths = shortened(10)
    data = batch(ids, lengths)
    image = output(model.get_image_features(pixel_values=normalised(data["image"], mean, std)))
    # Caption by caption, as if there were no padding.
    text = [output(model.get_text_features(ids[i : i + 1, : lengths[i]])) for i in range(len(ids))]
    check(towers(data, NEEDS), image, torch.cat(text), model.logit_scale)


@torch.no_grad()
def test_a_siglip_model_of_transformers(tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 2}
    text = sizes | {"vocab_size": 49408, "max_position_embeddings": 12, "pad_token_id": 1}
    text["projection_size"] = 16
    vision = sizes | {"image_size": 32, "patch_size": 16}
    config = transformers.SiglipConfig(text_config=text, vision_config=vision)
    processor = transformers.SiglipImageProcessor(image_mean=[0.5] * 3, image_std=[0.5] * 3)
    model = save(tmp_path, transformers.SiglipModel(config), processor)
    towers = Transformers(str(tmp_path)).build(refuse)
    ids, lengths = shortened(10)
    data = batch(ids, lengths)
    image = model.get_image_features(pixel_values=normalised(data["image"], [0.5] * 3, [0.5] * 3))
    # Trained on rows of one length, which are filled with its own padding and not masked.
    full = torch.full((len(ids), 12), 1)
    for row, (words, length) in enumerate(zip(ids, lengths, strict=True)):
        full[row, :length] = words[:length]
    found = towers(data, NEEDS)
    check(found, output(image), output(model.get_text_features(full)), model.logit_scale)
    torch.testing.assert_close(found["logit_bias"], model.logit_bias)


def test_a_model_without_a_scale_is_given_none():
    image = ForeignImage(torch.nn.Identity(), lambda x: x.mean((2, 3)), 4, [0.5] * 3, [0.5] * 3)
    joined = towers(image, PaddedText(lambda ids: ids.float(), 3, 0), torch.nn.Identity())
    assert joined.logit_scale.isnan().all() and joined.logit_bias is None


def test_what_transformers_cannot_give(tmp_path):
    with pytest.raises(ValueError, match="transformers cannot load the teacher"):
        Transformers(str(tmp_path)).build(refuse)
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    save(tmp_path, transformers.ViTModel(config), transformers.ViTImageProcessor())
    with pytest.raises(ValueError, match="is a ViTModel, which has no image and text features"):
        Transformers(str(tmp_path)).build(refuse)
    with pytest.raises(ValueError, match="has no tokenizer to compare ours with"):
        Transformers(str(tmp_path)).tokenize(CAPTIONS, 8)
