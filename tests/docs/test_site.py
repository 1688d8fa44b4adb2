"""The site builds, strictly: every page is there, no link is broken, nothing is fetched."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from doc_pages import DOCS, ROOT
from processes import run_program

from counterpoint.launch import cli
from counterpoint.launch.config.fit_help import ABOUT

pytest.importorskip("zensical", reason="the site's tools need Python 3.11 (extra docs)")
# On one worker, so that the site is built once.
pytestmark = pytest.mark.xdist_group("site")
WRITE = """
import os, runpy
os.chdir({tree!r})
runpy.run_path("docs/generate.py", run_name="__main__")
"""
TREE = ("configs", "data", "launch", "losses", "models", "train")


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site, built in a copy of what it is made of, as `make docs` builds it."""
    tree = tmp_path_factory.mktemp("tree")
    shutil.copytree(DOCS, tree / "docs", ignore=shutil.ignore_patterns("reference"))
    for name in TREE:
        (tree / name).symlink_to(ROOT / name)
    for name in ("mkdocs.yml", "CHANGELOG.md", "CONTRIBUTING.md", "CITATION.cff"):
        shutil.copy(ROOT / name, tree / name)
    # From where everything that --help reads is imported already.
    written = run_program(WRITE.format(tree=str(tree)), tree / "log")
    command = [sys.executable, "-m", "zensical", "build", "--strict"]
    built = subprocess.run(command, cwd=tree, capture_output=True, text=True, timeout=600)
    for status, told in (written, (built.returncode, built.stdout + built.stderr)):
        assert status == 0 and not re.search("warn|error|griffe", told, re.I), told
    return tree / "site"


def test_each_command_and_module_has_its_place(site):
    commands = (site / "reference" / "command_line.html").read_text()
    assert all(f"usage: counterpoint {name}" in commands for name in cli.COMMANDS)
    rendered = "".join(page.read_text() for page in (site / "reference" / "api").glob("*.html"))
    for path in (path for name in TREE for path in (ROOT / name).rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        if not path.stem.startswith("_") and "configs" not in module:
            assert f'id="counterpoint.{module}"' in rendered, module


def test_every_slot_and_term_is_among_the_options(site):
    options = (site / "reference" / "options.html").read_text()
    assert all(f'id="{slot}"' in options for slot in ABOUT)
    words = (
        "--phases.NAME.learning_rate",
        "counterpoint.train.grad_clip.zclip.ZClip",
        "--model.chunks",
    )
    assert all(f"<code>{word}</code>" in options for word in words)
    terms = re.findall(r"counterpoint[.]losses[.]\w+[.]\w+", options)
    assert {"counterpoint.losses.siglip.SigLIP", "counterpoint.losses.infonce.InfoNCE"} <= {*terms}
    classes = re.findall(r"<li><code>([\w.]+)</code>", options)
    assert "counterpoint.losses.components.heads.UnitMLP" in classes
    assert not [name for name in classes if name.startswith("torch.")]


def test_nothing_comes_from_the_network(site):
    for page in site.rglob("*.html"):
        loaded = re.findall(
            r"""<(?:script|img|link|iframe)[^>]*(?:src|href)=["']?(http[^"' >]*)""",
            page.read_text(),
        )
        assert not loaded, (page, loaded)
    for style in site.rglob("*.css"):
        assert not re.findall(r"""url\(["']?http|@import ["']?http""", style.read_text())
