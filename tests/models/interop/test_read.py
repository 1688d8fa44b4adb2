"""What lies where: OpenAI's files, timm's, and what cannot be read."""

import json

import open_clip
import pytest
import timm
import torch
from foreign_inputs import captions, images, shaken
from safetensors.torch import save_file

from counterpoint.data.text.tokenize import HFTokenizer
from counterpoint.models.interop.open_clip_text import encoder_config
from counterpoint.models.interop.read import is_foreign, read_foreign

VISION = {"image_size": 32, "layers": 2, "width": 64, "head_width": 64, "patch_size": 16}
TEXT = {"context_length": 12, "vocab_size": 50, "width": 64, "heads": 1, "layers": 2}


@pytest.fixture(scope="module")
def openai():
    """A model in OpenAI's layout, which is that of open_clip's CLIP."""
    torch.manual_seed(0)
    return shaken(open_clip.CLIP(8, VISION, TEXT, quick_gelu=True))


@torch.no_grad()
def check(model, theirs):
    pixels, (ids, lengths) = images(), captions()
    close = {"rtol": 0.0, "atol": 1e-5}
    image = theirs.encode_image(model.image.stem(pixels))
    torch.testing.assert_close(model.encode_image(pixels, ".raw"), image, **close)
    text = theirs.encode_text(ids)
    torch.testing.assert_close(model.encode_text(ids, lengths, ".raw"), text, **close)


def marks():
    numbers = {"input_resolution": 32, "context_length": 12, "vocab_size": 50}
    return {name: torch.tensor(number) for name, number in numbers.items()}


@pytest.mark.parametrize("form", ["marked", "named"])
def test_a_state_dict_of_openai(form, openai, tmp_path):
    state = openai.state_dict() | (marks() if form == "marked" else {})
    torch.save(state, tmp_path / "clip.pt")
    source = str(tmp_path / "clip.pt")
    foreign = read_foreign(source if form == "marked" else f"openai:{source}")
    assert foreign.family == "OpenAI CLIP"
    assert foreign.config["text"]["init_args"]["activation"] == "quick_gelu"
    check(foreign.build(), openai)


def test_an_archive_of_openai_is_read_and_not_executed(openai, tmp_path, monkeypatch):
    file = tmp_path / "ViT-B-32.pt"
    pixels, (ids, _) = images() / 255.0, captions()
    torch.jit.trace(openai, (pixels, ids), check_trace=False).save(file)
    monkeypatch.setattr(torch.jit, "load", None)
    foreign = read_foreign(str(file))
    check(foreign.build(), openai)


def test_an_archive_that_names_anything_else_is_refused(tmp_path):
    import zipfile

    with zipfile.ZipFile(tmp_path / "bad.pt", "w") as archive:
        # cos.system('false') as a pickle
        archive.writestr("bad/data.pkl", b"cos\nsystem\n(S'false'\ntR.")
        archive.writestr("bad/constants.pkl", b"")
    with pytest.raises(ValueError, match=r"names os\.system, which is no tensor"):
        read_foreign(str(tmp_path / "bad.pt"))


def test_code_beside_a_tokenizer_or_an_encoder_is_not_run(tmp_path, monkeypatch):
    """Nor is anybody asked whether it may be."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    (tmp_path / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    config = {"model_type": "unheard_of", "auto_map": {"AutoConfig": "code.Own"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="whose configuration is not here"):
        encoder_config(str(tmp_path))
    config = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["code.Own", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="no tokenizer could be loaded"):
        HFTokenizer(str(tmp_path))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["test_vit", "test_convnext"])
@torch.no_grad()
def test_a_trunk_of_timm(name, tmp_path):
    torch.manual_seed(0)
    theirs = shaken(timm.create_model(name))
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    file = tmp_path / "model.safetensors"
    (tmp_path / "config.json").write_text(
        f'{{"architecture": "{name}", "pretrained_cfg": {{"mean": [0.1, 0.2, 0.3]}}}}'
    )
    named, folder = read_foreign(f"timm/{name}:{file}"), read_foreign(str(tmp_path))
    assert folder.towers == named.towers == ("image",) and folder.pixels.mean == (0.1, 0.2, 0.3)
    assert named.pixels.crop == pytest.approx(160 / 168)  # crop_pct 0.95, rounded down
    trunk = timm.create_model(name, num_classes=0).eval()
    prefix = "image.trunk."
    trunk.load_state_dict({n.removeprefix(prefix): v for n, v in named.weights.items()})
    pixels = images(160) / 255.0
    want = theirs.forward_head(theirs.forward_features(pixels), pre_logits=True)
    torch.testing.assert_close(trunk(pixels), want)
    with pytest.raises(ValueError, match="image tower alone"):
        named.build()


def test_what_cannot_be_read(openai, tmp_path):
    file = tmp_path / "clip.safetensors"
    save_file(openai.state_dict(), file)
    wrong = {
        str(tmp_path): "holds no model",
        str(file): "does not say what it is of",
        f"ViT-B-99:{file}": "open_clip has no architecture 'ViT-B-99'",
        f"timm/vit_nothing:{file}": "timm has no model 'vit_nothing'",
        f"timm/test_vit:{file}": "are not those of timm's test_vit",
        f"ViT-B-32:{tmp_path / 'none.pt'}": "there is no file",
    }
    for source, sentence in wrong.items():
        with pytest.raises(ValueError, match=sentence):
            read_foreign(source)
    damaged = {
        '{"model_type": "bert"}': "transformers model of type bert",
        "{": r"config\.json cannot be read as JSON",
        "[]": "holds a list, and no settings by name",
        '{"model_type": "vision-text-dual-encoder"}': "settings have no 'vision_config'",
    }
    for content, sentence in damaged.items():
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(ValueError, match=sentence):
            read_foreign(str(tmp_path))
    assert is_foreign(str(tmp_path)) and is_foreign(f"ViT-B-32:{file}") and not is_foreign("x")
