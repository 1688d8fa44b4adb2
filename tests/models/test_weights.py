"""Which files of weights a model is started from, and what is said about them."""

import pytest
import torch
from tiny_tower import tiny_vit

from counterpoint.models.text.clip import ClipTextTower
from counterpoint.models.two_tower import TwoTower
from counterpoint.models.weights import LoadReport, load_weights, percent, read_weights


def tiny(image_width=16, text_width=16, vocab_size=50, image_size=16, seed=0):
    torch.manual_seed(seed)
    image = tiny_vit(2, image_width)
    if image_size != 16:
        image.trunk.set_input_size(img_size=image_size)
    text = ClipTextTower(text_width, 2, 2, context_length=12, vocab_size=vocab_size)
    return TwoTower(image, text, embed_dim=8)


def elements(state, prefix=""):
    return sum(tensor.numel() for name, tensor in state.items() if name.startswith(prefix))


PARTS = {
    "image tower only": lambda n: n.startswith(("image.", "image_projection.")),
    "image trunk only": lambda n: n.startswith("image."),
    "text tower only": lambda n: n.startswith(("text.", "text_projection.")),
    "no heads": lambda n: "projection" not in n,
}


@pytest.mark.parametrize("part", PARTS)
def test_a_part_of_a_model_is_loaded_and_its_share_is_named(part):
    state, target = tiny(seed=1).state_dict(), tiny()
    weights = {n: v for n, v in state.items() if PARTS[part](n)}
    report = load_weights(target, weights, "x")
    assert report.matched == list(weights) and not report.unused
    assert report.share == pytest.approx(elements(weights) / elements(state))
    for tower in ("image", "text"):
        of_tower = elements(state, f"{tower}.") + elements(state, f"{tower}_")
        loaded = elements(weights, f"{tower}.") + elements(weights, f"{tower}_")
        assert report.towers[tower] == pytest.approx(loaded / of_tower)
        assert f"{tower} tower {percent(loaded / of_tower)}" in str(report)


@pytest.mark.parametrize("sizes", [{"vocab_size": 5000}, {"image_size": 32}, {"image_width": 32}])
def test_another_vocabulary_resolution_or_other_tower_is_no_other_model(sizes):
    # A small text tower is mostly its vocabulary.
    report = load_weights(tiny(**sizes), tiny(seed=1).state_dict(), "x")
    assert report.reshaped and not report.missing
    assert report.share < 1


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("transformers", "a CLIP or SigLIP of transformers"),
        ("open_clip", "a model of open_clip or OpenAI"),
        ("timm", "an image tower of timm"),
        ("wider", "use the model configuration that it was trained with"),
    ],
)
def test_a_file_of_which_little_matches_is_refused(kind, words):
    model = tiny()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match="x holds the weights of another model: ") as refusal:
        load_weights(model, foreign(kind), "x")
    assert words in str(refusal.value)
    assert "% of the model's parameters matched (image tower " in str(refusal.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def foreign(kind):
    """Random weights in somebody else's layout."""
    if kind == "transformers":
        from transformers import CLIPConfig, CLIPModel

        side = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
        config = CLIPConfig(
            text_config=side | {"intermediate_size": 64, "vocab_size": 50},
            vision_config=side | {"intermediate_size": 64, "image_size": 16, "patch_size": 8},
            projection_dim=8,
        )
        state = CLIPModel(config).state_dict()
        # The trap: this one has our name and our shape.
        assert state["text_projection.weight"].shape == tiny().text_projection.weight.shape
        return state
    if kind == "open_clip":
        import open_clip

        return open_clip.CLIP(
            8,
            {"image_size": 16, "layers": 2, "width": 16, "patch_size": 8, "head_width": 8},
            {"context_length": 12, "vocab_size": 50, "width": 16, "heads": 2, "layers": 2},
        ).state_dict()
    if kind == "timm":
        return tiny().image.trunk.state_dict()
    return tiny(image_width=32, text_width=32).state_dict()


def test_a_share_is_all_or_nothing_only_where_it_is():
    shares = (0.0, 0.001, 0.5, 0.996, 1.0)
    assert [percent(x) for x in shares] == ["0%", "<1%", "50%", ">99%", "100%"]
    report = LoadReport(["a"], ["b"], [], [], 0.5, {})
    assert str(report) == "50% of the model's parameters matched; 1 missing (b)"


def test_a_file_that_is_no_tensors_is_one_sentence_that_advises_no_risk(tmp_path):
    """torch's own message proposes to run what is in the file."""
    (tmp_path / "text.pt").write_text("import os")
    torch.save({"a": print}, tmp_path / "function.pt")
    for name in ("text.pt", "function.pt"):
        with pytest.raises(ValueError, match="it holds no tensors, or more than these") as caught:
            read_weights(tmp_path / name)
        assert "weights_only" not in str(caught.value) and "\n" not in str(caught.value)
