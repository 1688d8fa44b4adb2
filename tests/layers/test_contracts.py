"""The layer contracts of setup.cfg hold, and each one breaks when it is violated.

import-linter runs as a process of its own: on the tree, and on a copy of it in which files import
what is forbidden, each of which has to be named by its contract.
"""

import os
import re
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
# Files, what is planted there, and the contract that has to name them; none: it is allowed.
PLANTED = [
    ("losses/planted_model.py", "from ..models import two_tower", "launch > train"),
    ("data/planted_loss.py", "from ..losses import siglip", "launch > train"),
    ("models/planted_data.py", "from ..data import plan", "launch > train"),
    ("train/planted_launch.py", "from ..launch import cli", "launch > train"),
    ("losses/planted_numpy.py", "import numpy", "losses depends on torch only"),
    ("models/planted_lightning.py", "def f():\n    import lightning", "models depends on"),
    ("data/planted_trainer.py", "from lightning.pytorch import Trainer", "data knows Lightning"),
    ("losses/kernels/planted.py", "from ..base import Term", "the rooms of losses"),
    ("models/reducers/planted.py", "from ..teachers import frozen", "the rooms of models"),
    ("data/shards/planted.py", "from ..text import captions", "the rooms of data"),
    ("train/strategies/planted.py", "def f():\n    from .. import module", "the rooms of train"),
    pytest.param("launch/config/planted.py", TYPE_ONLY, "the rooms of launch", id="type only"),
    ("train/planted_nowhere.py", "", "the rooms of train"),  # a module without a place
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
        # Long lines stay whole.
        env=os.environ | {"PYTHONPATH": str(folder), "COLUMNS": "200"},
        capture_output=True,
        text=True,
    )


def copy_to(folder: Path) -> Path:
    """Copies the package into a folder."""
    for part in PARTS:
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / part, folder / "counterpoint" / part, ignore=ignore)
    return folder


def test_the_tree_keeps_the_contracts(tmp_path):
    done = lint(copy_to(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


@pytest.fixture(scope="module")
def broken(tmp_path_factory) -> dict[str, str]:
    """What is said of each broken contract, by its name, where everything is planted at once."""
    folder = copy_to(tmp_path_factory.mktemp("planted"))
    for row in PLANTED:
        file, text, _ = getattr(row, "values", row)
        assert not (folder / "counterpoint" / file).exists()
        (folder / "counterpoint" / file).write_text(text + "\n")
    done = lint(folder)
    assert done.returncode == 1, done.stdout + done.stderr
    _, found, told = done.stdout.partition("Broken contracts\n")
    assert found, done.stdout
    parts = re.split(r"^(.+)\n-{3,}$", told, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


@pytest.mark.parametrize(("file", "text", "contract"), PLANTED)
def test_a_planted_import_breaks_its_contract(broken, file, text, contract):
    module = ".".join(Path("counterpoint", file).with_suffix("").parts)
    blamed = {
        name
        for name, told in broken.items()
        if re.search(rf"^- +{re.escape(module)}( -> |$)", told, re.MULTILINE)
    }
    if contract is None:
        assert not blamed
    else:
        assert any(name.startswith(contract) for name in blamed), broken
