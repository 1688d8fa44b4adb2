"""Curations of filters inside an ablation: run once, again after a change, told when they fail."""

import os
import sys
from pathlib import Path

import pytest

from counterpoint.launch.experiments.ablation.curated import curate_command, curated

STUB = """
import pathlib, sys
out = pathlib.Path(sys.argv[1])
out.mkdir(parents=True, exist_ok=True)
with (out.parent / "calls").open("a") as file:
    file.write("x")
if "bad" in out.name:
    print("counterpoint curate: the filter has a hole")
    sys.exit(2)
(out / "keep.parquet").write_bytes(b"")
"""

OWN = """
from dataclasses import dataclass
from counterpoint.data.curate.filters.general.basic import Basic

@dataclass(frozen=True)
class Mine(Basic):
    pass
"""


@pytest.fixture
def ask(tmp_path):
    (tmp_path / "stub.py").write_text(STUB)
    (tmp_path / "rules.yaml").write_text("filters: {size: basic}\n")
    (tmp_path / "table" / "web").mkdir(parents=True)
    (tmp_path / "table" / "web" / "0.parquet").write_bytes(b"rows")

    def command(file, table, stores, out):
        return [sys.executable, str(tmp_path / "stub.py"), str(out)]

    def curate(name="rules", stores=None):
        file, out = str(tmp_path / "rules.yaml"), tmp_path / "out"
        out.mkdir(exist_ok=True)
        found = curated(name, file, tmp_path / "table", stores or {}, out, command)
        return found, len((out / "calls").read_text())

    return curate


def test_it_is_run_once_and_again_after_a_change(ask, tmp_path):
    assert ask() == (tmp_path / "out" / "rules" / "keep.parquet", 1)
    assert ask()[1] == 1
    (tmp_path / "rules.yaml").write_text("filters: {size: {config: basic, min_side: 9}}\n")
    assert ask()[1] == 2
    shard = tmp_path / "table" / "web" / "0.parquet"
    os.utime(shard, ns=(1, 1))
    assert ask()[1] == 3
    part = tmp_path / "store" / "web" / "0.safetensors"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"features")
    stores = {"clip": str(tmp_path / "store")}
    assert ask(stores=stores)[1] == 4 and ask(stores=stores)[1] == 4
    part.write_bytes(b"features of another model")
    assert ask(stores=stores)[1] == 5
    (tmp_path / "out" / "rules" / "keep.parquet").unlink()
    assert ask(stores=stores)[1] == 6


def test_a_file_that_a_filter_reads_counts(ask, tmp_path):
    entries = tmp_path / "entries.txt"
    entries.write_text("a dog\n")
    (tmp_path / "rules.yaml").write_text(
        f"filters: {{match: {{config: match_concepts, entries: {entries}}}}}\n"
    )
    assert ask()[1] == 1 and ask()[1] == 1
    entries.write_text("a cat\n")
    assert ask()[1] == 2


def test_a_class_of_ones_own_counts(ask, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    code = tmp_path / "own_filter_of_an_ablation.py"
    code.write_text(OWN)
    (tmp_path / "rules.yaml").write_text(
        "filters: {mine: {class_path: own_filter_of_an_ablation.Mine}}\n"
    )
    assert ask()[1] == 1 and ask()[1] == 1
    code.write_text(OWN + "\n# other code\n")
    assert ask()[1] == 2


def test_one_that_was_stopped_is_not_taken_for_the_one_before(ask, tmp_path):
    """Its files may be there in part: going back to the old filters must run them again."""
    rules, stub = tmp_path / "rules.yaml", tmp_path / "stub.py"
    assert ask()[1] == 1
    rules.write_text("filters: {size: {config: basic, min_side: 9}}\n")
    stub.write_text(STUB + "sys.exit(3)\n")
    with pytest.raises(ValueError, match="curation rules failed"):
        ask()
    rules.write_text("filters: {size: basic}\n")
    stub.write_text(STUB)
    assert ask()[1] == 3


def test_a_failure_says_why_and_is_tried_again(ask, tmp_path):
    for _ in range(2):
        with pytest.raises(ValueError, match=r"curation bad failed .*the filter has a hole"):
            ask("bad")
    assert not (tmp_path / "out" / "bad.claim").exists()
    assert len((tmp_path / "out" / "calls").read_text()) == 2


def test_the_command_is_one_that_the_command_line_takes():
    from counterpoint.launch.arguments import curate

    words = curate_command("basic", Path("t"), {"clip": "a", "dino": "b"}, Path("o"))
    assert words[1:4] == ["-m", "counterpoint.launch.cli", "curate"]
    options = curate().parse_args(words[4:])
    assert (options.file, options.table, options.out) == ("basic", Path("t"), Path("o"))
    assert options.store == ["clip=a", "dino=b"]
