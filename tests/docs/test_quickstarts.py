"""The quickstarts run as they are printed, from top to bottom, on little data.

`counterpoint` is a script in front of the real one, which makes runs short; `/data/pairs` is a
folder of small shards, and blocks that need GPUs are left out. The rest is the page's own text.
"""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import yaml
from doc_pages import DOCS, ROOT, blocks

pytestmark = pytest.mark.soak
SHIM = """#!{python}
import os
import sys

words = sys.argv[1:]
if words[0] == "fit" and "--resume" not in words and "--print_config" not in words:
    words += ["--phases.train.samples", "64", "--phases.train.batch_size", "16"]
    words += ["--phases.train.warmup_samples", "16"]
    if any("clip_cc12m" in word for word in words):
        words += ["--model", "configs/model/vit_mini_96px.yaml"]
if words[0] == "fit" and "--resume" in words:  # nobody stopped the run, so that it goes on longer
    words += ["--phases.train.samples", "96"]
if words[:2] == ["data", "emoji"]:
    words += ["--limit", "300", "--num-held-out", "20"]
if "--holdout" in words:
    words[words.index("--holdout") + 1] = "16"
command = [sys.executable, "-m", "counterpoint.launch.cli", *words]
os.execv(command[0], command)
"""
QUICKSTARTS = ["first_run", "own_data", "howto/pretrain", "howto/distil", "howto/finetune"]


@pytest.fixture
def bin_folder(tmp_path) -> Path:
    """A folder for PATH with the script that makes runs short."""
    folder = tmp_path / "bin"
    folder.mkdir()
    script = folder / "counterpoint"
    script.write_text(SHIM.format(python=sys.executable))
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return folder


@pytest.fixture
def run(tmp_path, bin_folder):
    """Runs a page's blocks in a folder with the configurations."""
    pairs, work = tmp_path / "pairs", tmp_path / "work"
    tiny.write_shards(pairs, num_shards=6, per_shard=16)
    work.mkdir()
    (work / "configs").symlink_to(ROOT / "configs")

    def run(*commands: str) -> Path:
        done = subprocess.run(
            ["bash", "-c", "\n".join(["set -e", *commands]).replace("/data/pairs", str(pairs))],
            cwd=work,
            env=os.environ | {"PATH": f"{bin_folder}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            timeout=3600,
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return work

    return run


def commands_of(page):
    return [block.text for block in blocks(DOCS / f"{page}.md", "") if not block.mark]


@pytest.mark.parametrize("page", QUICKSTARTS)
def test_quickstart(page, run):
    run(*commands_of(page))


def test_sweep(run, monkeypatch):
    """The sweep starts its runs by itself, so they are shortened in its file."""
    page = DOCS / "howto" / "compare.md"
    (sweep,) = (block for block in blocks(page, "yaml") if "runs:" in block.text)
    work = run("counterpoint data emoji emoji")
    monkeypatch.chdir(work)
    content = yaml.safe_load(sweep.text)
    short = {"phases.train.samples": 64, "phases.train.batch_size": 16}
    for one in content["runs"].values():
        one["seeds"] = [0]
        one["set"] = one.get("set", {}) | short | {"phases.train.warmup_samples": 0}
    (work / "settings.yaml").write_text(yaml.safe_dump(content))
    run(*(text for text in commands_of("howto/compare") if "settings" in text))
    assert {path.name for path in (work / "results" / "settings").glob("*.json")} == {
        "clip-seed0.json",
        "more_decay-seed0.json",
    }
    assert (work / "settings.html").is_file()
