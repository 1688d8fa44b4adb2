"""What a run starts from: models of other libraries, resized, tower by tower, or refused."""

import json
import types
from pathlib import Path

import open_clip
import pytest
import torch
import transformers
from foreign_inputs import shaken
from safetensors.torch import save_file
from timm.layers.pos_embed import resample_abs_pos_embed

from counterpoint.data.images.transforms import EvalTransform
from counterpoint.data.text.tokenize import ClipTokenizer, Tokenizer
from counterpoint.launch.run.start.initial import load_initial_weights
from counterpoint.launch.run.start.teachers import load_model
from counterpoint.models.image import TimmTower
from counterpoint.models.text.clip import ClipTextTower
from counterpoint.models.text.hf import HFTextTower
from counterpoint.models.text.siglip import SiglipTextTower
from counterpoint.models.text.windows import WindowTower
from counterpoint.models.two_tower import TwoTower

VISION = {"image_size": 32, "layers": 2, "width": 16, "head_width": 8, "patch_size": 8}
TEXT = {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
SIZES = {"patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
POSITIONS = "text.trunk.embeddings.position_embedding.weight"
TOKENS = "text.trunk.embeddings.token_embedding.weight"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A model of open_clip with random weights, in a folder."""
    folder = tmp_path_factory.mktemp("open_clip")
    config = {"embed_dim": 8, "vision_cfg": VISION, "text_cfg": TEXT}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    torch.manual_seed(0)
    model = shaken(open_clip.CLIP(**config))
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return str(folder), model


def model(image_size=32, context_length=12, vocab_size=49408, activation="gelu"):
    torch.manual_seed(1)
    image = TimmTower("vit_base_patch32_clip_224", image_size, model_args=SIZES)
    sizes = {"context_length": context_length, "vocab_size": vocab_size}
    return TwoTower(image, ClipTextTower(16, 2, 2, **sizes, activation=activation), 8)


def start(made, init_from, *read):
    before = {name: value.clone() for name, value in made.state_dict().items()}
    config = types.SimpleNamespace(init_from=init_from, inherit_from=None)
    load_initial_weights(made, config, *read)
    return before, made.state_dict()


def test_positions_are_resized(source, capsys):
    folder, theirs = source
    _, state = start(model(48, 8), folder)
    positions = theirs.visual.positional_embedding[None]
    want = resample_abs_pos_embed(positions, [6, 6], [4, 4], num_prefix_tokens=1)
    torch.testing.assert_close(state["image.trunk.pos_embed"], want)
    torch.testing.assert_close(state[POSITIONS], theirs.positional_embedding[:8])
    torch.testing.assert_close(state["logit_scale"], theirs.logit_scale.view(1))
    out = capsys.readouterr().out
    assert f"init_from {folder} (open_clip): 100% of the model's parameters matched" in out
    assert "2 resized (image.trunk.pos_embed, text.trunk" in out and "differs" not in out


def test_other_preprocessing_is_named(source, capsys):
    folder, _ = source
    start(model(), folder, None, EvalTransform())
    assert "differs" not in capsys.readouterr().out
    start(model(), folder, None, EvalTransform("squash"))
    assert "differs: evaluation prepares images otherwise (a test" in capsys.readouterr().out
    start(model(), {"text": folder}, None, EvalTransform("squash"))
    assert "differs" not in capsys.readouterr().out


def test_a_longer_context_is_that_of_open_clip(source):
    folder, theirs = source
    _, state = start(model(context_length=20), folder)
    want = dict(theirs.state_dict())
    longer = open_clip.CLIP(8, VISION, TEXT | {"context_length": 20})
    open_clip.model.resize_text_pos_embed(want, longer)
    torch.testing.assert_close(state[POSITIONS], want["positional_embedding"])


def test_a_row_that_is_pooled_at_its_end_is_stretched_both_ways(tmp_path):
    theirs = SiglipTextTower(16, 1, 2, context_length=12, vocab_size=50)
    image = TimmTower("vit_base_patch32_clip_224", 32, model_args=SIZES)
    full = TwoTower(image, theirs, 8)
    save_file(full.state_dict(), tmp_path / "x.safetensors")
    shorter = TwoTower(image, SiglipTextTower(16, 1, 2, context_length=6, vocab_size=50), 8)
    _, state = start(shorter, str(tmp_path / "x.safetensors"))
    rows = theirs.state_dict()[POSITIONS.removeprefix("text.")]
    # Each of six positions stands between two of twelve.
    torch.testing.assert_close(state[POSITIONS], (rows[::2] + rows[1::2]) / 2)


class Shifted(Tokenizer):
    """CLIP's with other numbers."""

    vocab_size, pad_id = 49409, 0

    def __call__(self, texts, context_length):
        ids, lengths = ClipTokenizer()(texts, context_length)
        return ids + 1, lengths


def test_a_vocabulary_is_extended_or_cut_if_tokenizers_agree(source):
    folder, theirs = source
    table = theirs.token_embedding.weight
    before, state = start(model(vocab_size=49500), folder)
    torch.testing.assert_close(state[TOKENS][:49408], table)
    assert torch.equal(state[TOKENS][49408:], before[TOKENS][49408:])
    _, state = start(model(vocab_size=300), folder)
    torch.testing.assert_close(state[TOKENS], table[:300])
    with pytest.raises(ValueError, match="trained with another tokenizer than the run's"):
        start(model(vocab_size=49409), folder, Shifted())
    # The image tower reads no texts.
    start(model(vocab_size=49409), {"image": folder}, Shifted())


def test_towers_of_two_sources(source, tmp_path, capsys):
    folder, theirs = source
    text = {"hidden_size": 16, "intermediate_size": 64, "num_hidden_layers": 2}
    text |= {"num_attention_heads": 2, "vocab_size": 49408, "max_position_embeddings": 12}
    vision = text | {"image_size": 32, "patch_size": 16}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    other = shaken(transformers.CLIPModel(config))
    other.save_pretrained(tmp_path)
    before, state = start(model(), {"image": folder, "text": str(tmp_path)})
    torch.testing.assert_close(state["image_projection.weight"], theirs.visual.proj.T)
    assert torch.equal(state["text_projection.weight"], other.text_projection.weight)
    assert torch.equal(state[TOKENS], other.text_model.embeddings.token_embedding.weight)
    assert torch.equal(state["logit_scale"], before["logit_scale"])
    out = capsys.readouterr().out
    assert "(image tower 100%, text tower 0%)" in out and "(image tower 0%, text tower 100%)" in out
    # OpenAI's activation is the default of transformers.
    assert "differs: text activation GELUActivation, there QuickGELUActivation" in out


@torch.no_grad()
def test_a_frozen_teacher_is_one_of_another_library(source):
    folder, theirs = source
    run = types.SimpleNamespace(model=model(48), init_from=None)
    teacher = load_model(run, [ClipTokenizer()], folder)
    assert teacher.image_size == 32
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    want = theirs.encode_image(teacher.image.stem(pixels))
    torch.testing.assert_close(teacher.encode_image(pixels, ".raw"), want, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="was trained with another tokenizer"):
        load_model(run, [Shifted()], folder)


def test_what_cannot_be_a_start(source, tmp_path):
    folder = source[0]
    with pytest.raises(ValueError, match="init_from has words: name one source, or towers"):
        start(model(), {"words": folder})
    with pytest.raises(
        ValueError, match=r"of another model: <1%.* model: {\"embed_dim\": 8, \"image\""
    ):
        wide = TimmTower("vit_base_patch32_clip_224", 32, model_args=SIZES | {"embed_dim": 32})
        start(TwoTower(wide, ClipTextTower(32, 2, 2, context_length=12), 8), folder)
    with pytest.raises(ValueError, match="there is no file"):
        start(model(), "ViT-B-32:nowhere.pt")


SIZED = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "vocab_size": 50}
SIZED |= {"num_attention_heads": 2, "max_position_embeddings": 12, "pad_token_id": 1}


def test_an_encoder_alone_goes_into_the_text_tower(source, tmp_path, capsys):
    folder, theirs = source
    torch.manual_seed(2)
    bert = shaken(transformers.BertModel(transformers.BertConfig(**SIZED)))
    bert.save_pretrained(tmp_path)
    made = model()
    made.text = HFTextTower({"model_type": "bert", **SIZED}, 12, "first")
    before, state = start(made, {"text": str(tmp_path), "image": folder})
    for name, value in bert.state_dict().items():
        if not name.startswith("pooler."):
            assert torch.equal(state[f"text.trunk.{name}"], value), name
    assert torch.equal(state["image_projection.weight"], theirs.visual.proj.T)
    for name in ("text_projection.weight", "logit_scale"):
        assert torch.equal(state[name], before[name]), name
    out = capsys.readouterr().out
    assert f"init_from {tmp_path} (transformers BertModel): " in out
    assert "text tower 98%" in out.partition("BertModel")[2]
    # Alone it leaves the image tower as it is.
    made = model()
    made.text = HFTextTower({"model_type": "bert", **SIZED}, 12)
    before, state = start(made, {"text": str(tmp_path)})
    assert all(torch.equal(state[n], before[n]) for n in state if n.startswith("image"))
    # One tower only: its name need not be said.
    start(made, str(tmp_path))


def test_weights_published_by_timm_come_with_a_text_tower_from_elsewhere(source, monkeypatch):
    asked = []
    monkeypatch.setattr(TimmTower, "load_pretrained", lambda tower: asked.append(1) or "loaded")
    start(model(), {"text": source[0]})
    assert asked == [1]
    start(model(), {"image": source[0]})
    start(model(), source[0])
    assert asked == [1]


def test_a_tower_of_windows_is_filled_as_the_tower_within(source):
    folder, theirs = source
    made = model()
    made.text = WindowTower(ClipTextTower(16, 2, 2, 20, 49408), 40, 8)
    _, state = start(made, folder)
    positions = state["text.tower.trunk.embeddings.position_embedding.weight"]
    assert len(positions) == 20
    name = TOKENS.replace("text.", "text.tower.", 1)
    assert torch.equal(state[name], theirs.token_embedding.weight)
    assert torch.equal(state["text_projection.weight"], theirs.text_projection.T)
    # Its own weights have their names already.
    again = model()
    again.text = WindowTower(ClipTextTower(16, 2, 2, 20, 49408), 40, 8)
    path = Path(folder) / "ours.safetensors"
    save_file({n: v.clone() for n, v in state.items()}, path)
    _, state = start(again, str(path))
    assert torch.equal(state[name], theirs.token_embedding.weight)
