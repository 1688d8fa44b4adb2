"""What docs/data.md and docs/objectives.md show works."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from torch.nn import functional as F

from counterpoint.data.shards.index import index_shards
from counterpoint.data.sidecar import Sidecar
from counterpoint.launch.config import parser as run_config
from counterpoint.launch.config.packaged import packaged_files
from counterpoint.launch.config.suites import load_suite

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "data.md").read_text()
BLOCK = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)
BLOCKS = BLOCK.findall(TEXT)
OBJECTIVES = BLOCK.findall((ROOT / "docs" / "objectives.md").read_text())
RUN = ROOT / "configs" / "run" / "emoji" / "emoji_clip.yaml"


@pytest.fixture(scope="module")
def parser():
    return run_config.make_parser()


@pytest.mark.parametrize("block", [text for kind, text in BLOCKS if kind == "yaml"])
def test_settings(parser, block, tmp_path):
    (tmp_path / "data.yaml").write_text(yaml.safe_dump({"manifest": "m", **yaml.safe_load(block)}))
    argv = ["--config", str(RUN), "--data", str(tmp_path / "data.yaml")]
    config = run_config.parse(parser, argv)
    parser.instantiate(config)
    chosen = yaml.safe_load(block)
    resolved = run_config.plain(parser, config)["data"]
    assert all(resolved[key] or value is None for key, value in chosen.items())


@pytest.mark.parametrize("block", [text for kind, text in OBJECTIVES if kind == "yaml"])
def test_objectives(parser, block, tmp_path):
    (tmp_path / "objective.yaml").write_text(block)
    argv = ["--config", str(RUN), "--objective", str(tmp_path / "objective.yaml")]
    objective = parser.instantiate(run_config.parse(parser, argv)).objective
    features = {
        name + form: F.normalize(torch.randn(6, 5), dim=1)
        for name in ("image", "image.other", "text")
        for form in ("", ".raw")
    }
    scalars = {"logit_scale": torch.tensor([5.0]), "logit_bias": torch.tensor([-2.0])}
    features["image.tokens"] = torch.randn(6, 4, 768)
    batch = {
        "text": torch.randint(1, 99, (6, 8)),
        "text_length": torch.full((6,), 8),
        "key": torch.arange(6),
    }
    value, report = objective(features | scalars, batch)
    assert value.isfinite() and report.keys() == yaml.safe_load(block)["terms"].keys()


def test_a_term_of_ones_own():
    (code,) = (text for kind, text in OBJECTIVES if kind == "python")
    names = {}
    exec(compile(code, "docs/objectives.md", "exec"), names)
    image = F.normalize(torch.randn(6, 5, dtype=torch.float64), dim=1)
    scale = torch.tensor([5.0], dtype=torch.float64)
    found = names["ImagesApart"]()({"image": image, "logit_scale": scale}, {})["images_apart"]
    logits = (5 * image @ image.T).fill_diagonal_(-torch.inf)
    torch.testing.assert_close(found, logits.logsumexp(1).mean())


def test_programs(tmp_path, monkeypatch):
    import tiny

    monkeypatch.chdir(tmp_path)
    shards = tiny.write_shards(tmp_path / "pairs", num_shards=2, per_shard=8)
    index_shards([str(path) for path in shards], "train.parquet")
    for kind, text in BLOCKS:
        if kind == "python":
            exec(compile(text, "docs/data.md", "exec"), {})
    Sidecar("teacher", {"image": "image_embedding", "drawn": "augmentation"}).check(["default"])
    assert sorted(path.name for path in (tmp_path / "teacher" / "default").iterdir()) == [
        "00000.safetensors",
        "00001.safetensors",
    ]
    assert (tmp_path / "keep.parquet").is_file()


def test_files_named_exist():
    for path in re.findall(r"`(configs/[\w/]+\.yaml)`", TEXT):
        assert (ROOT / path).is_file()


def test_the_suite_in_docs_evaluation(tmp_path):
    text = (ROOT / "docs" / "evaluation.md").read_text()
    (suite,) = (text for kind, text in BLOCK.findall(text) if kind == "yaml")
    (tmp_path / "mine.yaml").write_text(suite)
    tasks = load_suite(tmp_path / "mine.yaml").tasks
    assert len(tasks["imagenet_simple"].templates) == 7 and "mine" in tasks
    table = re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)
    assert {*table, "example_folder"} == set(packaged_files("suite"))
