"""What docs/data.md shows works."""

import re
from pathlib import Path

import pytest
import yaml

from counterpoint.data.index import index_shards
from counterpoint.data.sidecar import Sidecar
from counterpoint.launch import config as run_config

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "data.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", TEXT, re.DOTALL)
RUN = ROOT / "configs" / "run" / "emoji_clip.yaml"


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
    assert all(run_config.plain(parser, config)["data"][key] for key in chosen)


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
