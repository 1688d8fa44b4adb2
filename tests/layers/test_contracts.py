"""The layer contracts of setup.cfg hold, and each one breaks when it is violated.

import-linter runs as a process of its own: on the tree, and on copies of it in which one file
imports what is forbidden.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("launch", "train", "losses", "models", "data", "configs")

TYPE_ONLY = """
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..run import build
"""
PLANTED = [
    ("losses/planted.py", "from ..models import two_tower", "launch > train"),
    ("data/planted.py", "from ..losses import siglip", "launch > train"),
    ("models/planted.py", "from ..data import plan", "launch > train"),
    ("train/planted.py", "from ..launch import cli", "launch > train"),
    ("losses/planted.py", "import numpy", "losses depends on torch only"),
    ("models/planted.py", "def f():\n    import lightning", "models depends on"),
    ("data/planted.py", "from lightning.pytorch import Trainer", "data knows Lightning"),
    ("losses/kernels/planted.py", "from ..base import Term", "the rooms of losses"),
    ("models/reducers/planted.py", "from ..teachers import frozen", "the rooms of models"),
    ("data/shards/planted.py", "from ..text import captions", "the rooms of data"),
    ("train/strategies/planted.py", "def f():\n    from .. import module", "the rooms of train"),
    pytest.param("launch/config/planted.py", TYPE_ONLY, "the rooms of launch", id="type only"),
    ("train/planted.py", "", "the rooms of train"),  # a module without a place
    ("data/stream/planted.py", "from ..module import PairsDataModule", None),
]


def lint(folder: Path) -> subprocess.CompletedProcess:
    """Runs import-linter on the package that `folder/counterpoint` is."""
    return subprocess.run(
        [
            sys.executable,
            "-c",
            "from importlinter.cli import lint_imports_command as c; c()",
            "--config",
            str(ROOT / "setup.cfg"),
            "--no-cache",
            "--no-logo",
        ],
        cwd=folder,
        # An editable install's finder comes after sys.path, so this copy is the one that is seen.
        env=os.environ | {"PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
    )


@pytest.fixture
def copy(tmp_path):
    """A folder with a copy of the package in it."""
    for part in PARTS:
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / part, tmp_path / "counterpoint" / part, ignore=ignore)
    return tmp_path


def test_the_tree_keeps_the_contracts(copy):
    done = lint(copy)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


@pytest.mark.parametrize(("file", "text", "broken"), PLANTED)
def test_a_planted_import_breaks_its_contract(copy, file, text, broken):
    (copy / "counterpoint" / file).write_text(text + "\n")
    done = lint(copy)
    lines = [line for line in done.stdout.splitlines() if " BROKEN" in line]
    if broken is None:
        assert done.returncode == 0, done.stdout + done.stderr
    else:
        assert done.returncode == 1, done.stdout + done.stderr
        assert any(line.startswith(broken) for line in lines)
