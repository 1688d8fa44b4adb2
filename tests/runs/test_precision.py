"""Runs that leave the precision to the machine: written down, kept on resume."""

import json
from pathlib import Path

import pytest
import yaml
from processes import fit
from tiny import config, write_config, write_shards

from counterpoint.data.shards.index import index_shards


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    path = folder / "train.parquet"
    index_shards([str(p) for p in write_shards(folder)], str(path))
    return path


def arguments(folder: Path, manifest: Path, precision: str, steps: int = 2) -> list[str]:
    values = config(manifest, steps=steps)
    values["trainer"]["precision"] = precision
    path = write_config(folder, values)
    return ["--config", str(path), "--run_dir", str(folder / "run")]


def written(folder: Path) -> tuple[str, str]:
    """The precision in the resolved configuration, and in the summary."""
    resolved = yaml.safe_load((folder / "run" / "config.yaml").read_bytes())
    summary = json.loads((folder / "run" / "summary.json").read_bytes())
    return resolved["trainer"]["precision"], summary["precision"]


def test_what_the_machine_chose_is_written_down(tmp_path, manifest):
    text = fit(arguments(tmp_path, manifest, "auto"), 2, tmp_path / "log")
    (line,) = [line for line in text.splitlines() if "precision: " in line]
    chosen, said = written(tmp_path)
    assert chosen == said in ("bf16-mixed", "32-true")
    assert f"precision: {chosen} (auto: " in line


@pytest.mark.parametrize("began", ["bf16-mixed", "32-true"])
def test_a_run_goes_on_as_it_began(tmp_path, manifest, began):
    """Whichever this machine would choose, one of the two runs began as another one's."""
    fit(arguments(tmp_path, manifest, began, 1), 1, tmp_path / "log")
    more = arguments(tmp_path, manifest, "auto", 2)
    text = fit([*more, "--resume", "auto"], 1, tmp_path / "log.resumed")
    assert f"precision: {began}, as the run began" in text
    assert written(tmp_path) == (began, began)
