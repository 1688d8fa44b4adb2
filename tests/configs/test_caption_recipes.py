"""The recipes about captions have the constants of their papers, and what they compute."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from term_case import unit
from torch.nn import functional as F

from counterpoint.data.text.frequent_words import RareWords
from counterpoint.launch.config import parser as run_config
from counterpoint.launch.config.fit_arguments import read
from counterpoint.launch.config.staged import parse_stages

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
RECIPES = CONFIGS / "run" / "recipes"


@pytest.fixture(scope="module")
def parser():
    return run_config.make_parser()


def stages(parser, name):
    """The parts of each stage, and what was written for it."""
    found = parse_stages(parser, read(["--config", str(RECIPES / f"{name}.yaml")]))
    with torch.device("meta"):
        return {
            stage: (parser.instantiate(config), run_config.plain(parser, config))
            for stage, config in found.items()
        }


def only(found):
    (each,) = found.values()
    return each


def test_long_clip(parser):
    parts, written = only(stages(parser, "longclip"))
    phase = parts.phases["train"]
    assert (phase.learning_rate, phase.batch_size, phase.warmup_samples) == (1e-6, 2048, 200 * 2048)
    assert phase.samples == 6 * 1_245_000 and phase.final_fraction == 0
    assert tuple(parts.optim.betas) == (0.9, 0.999) and parts.optim.weight_decay == 0.01
    assert parts.model.context_length == 248 == 20 + 4 * (77 - 20)
    assert parts.model.text.kept_positions == 20
    short = parts.objective.terms["short"]
    assert (short.num_components, short.smoothing) == (32, 0.1)
    assert parts.objective.terms["long"].amount == 0.1
    assert parts.objective.logit_scale_init == 100
    sample = {"__key__": "k", "txt": b"A dog. It runs. Its tail is long."}
    assert parts.data.caption(sample, 0.5) == "A dog. It runs. Its tail is long."
    assert parts.data.texts["short"].caption(sample, 0.5) == "A dog."
    assert "augmentation" not in written["data"]["train_transform"]["class_path"]


def test_laclip(parser):
    parts, _ = only(stages(parser, "laclip"))
    phase = parts.phases["train"]
    assert (phase.learning_rate, phase.batch_size) == (1e-3, 2048)
    assert (phase.samples, phase.warmup_samples) == (350_000_000, 10_000_000)
    assert parts.optim.weight_decay == 0.5
    assert any(name.endswith("attn.q_norm.weight") for name, _ in parts.model.named_parameters())
    rewrites = ["a red car", "car", "the car is red", "one car, red"]
    fields = {"rewrites": rewrites}
    sample = {"__key__": "k", "txt": b"the original", "json": json.dumps(fields).encode()}
    drawn = [parts.data.caption(sample, (i + 0.5) / 100) for i in range(100)]
    # A fifth each; that of the rewrite of one word is the original's.
    assert drawn.count("the original") == 40
    assert all(drawn.count(text) == 20 for text in rewrites if text != "car")


def test_all_captions_are_the_mean_over_the_texts(parser):
    parts, _ = only(stages(parser, "all_captions"))
    texts = ["text", *(f"text.rewrite_{i}" for i in range(1, 5))]
    assert {f"text.{name}" for name in parts.data.texts} == set(texts[1:])
    generator = torch.Generator().manual_seed(2)
    features = {name: unit(generator, 6, 5) for name in ("image", *texts)}
    features["logit_scale"] = torch.tensor([8.0], dtype=torch.float64)
    loss, _ = parts.objective(features, {})
    labels, wanted = torch.arange(6), 0.0
    for name in texts:
        logits = 8.0 * features["image"] @ features[name].T
        both = F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)
        wanted = wanted + both / 2 / 5
    torch.testing.assert_close(loss, wanted)


def test_clipf(parser):
    (masked, _), (finish, _) = stages(parser, "clipf").values()
    first, last = masked.phases["masked"], finish.phases["finish"]
    assert (first.learning_rate, first.batch_size) == (1e-3, 4 * 896)
    assert first.samples == 30 * 10_968_539 and first.image_reducer.drop == 0.75
    assert first.text_reducer.num_tokens == 16
    assert isinstance(masked.data.caption, RareWords) and masked.data.caption.num_words == 14
    assert (last.learning_rate, last.batch_size, last.samples) == (1e-5, 4 * 160, 10_968_539)
    assert last.image_reducer is None and last.text_reducer is None
    assert finish.data.caption.fields == ("txt",) and not isinstance(finish.data.caption, RareWords)
    assert finish.model.context_length == 32 and masked.optim.weight_decay == 0.2
    (table,) = yaml.safe_load((CONFIGS / "curation" / "clipf.yaml").read_text())["filters"].values()
    assert table == {"config": "word_frequency", "t": 1e-6, "rare": "negative"}


@pytest.mark.parametrize(
    ("name", "keep_list"),
    [
        ("wfpp", "wfpp/keep.parquet"),
        pytest.param("clip_cid", "clip_cid/keep.parquet", marks=pytest.mark.soak),
    ],
)
def test_a_pruned_pool_and_then_all_of_it(parser, name, keep_list):
    (first, _), (last, _) = stages(parser, name).values()
    assert [str(path) for path in first.data.keep_lists] == [keep_list]
    assert not last.data.keep_lists
    (pruned,), (finish,) = first.phases.values(), last.phases.values()
    assert finish.learning_rate == pytest.approx(pruned.learning_rate / 100)
    if name == "wfpp":
        assert (pruned.learning_rate, pruned.batch_size) == (1e-3, 640)
        assert finish.samples == 10_968_539 and first.optim.weight_decay == 0.2
    else:
        assert {"infonce", "soft_contrastive", "clusters"} == set(first.objective.terms)
        assert {"infonce", "soft_contrastive"} == set(last.objective.terms)
