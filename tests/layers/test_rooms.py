"""The graph of imports has no circle, losses stand alone, and folders stay small enough to read.

Every import counts: those for type checkers, and those inside functions. The order of the rooms is
in setup.cfg.
"""

import ast
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("launch", "train", "losses", "models", "data", "configs")
MOST_MODULES, MOST_ROOMS = 18, 7
# What losses/ holds beside losses, of which there may be any number.
CONTRACT = {"base", "objective", "scalars", "weight_schedules"}


def modules(root: Path) -> dict[str, Path]:
    """Files of the product by module: `train.optim.adamw`, `train.optim` for its __init__.py."""
    files = [file for part in PARTS for file in (root / part).rglob("*.py")]
    parts = {file: file.relative_to(root).with_suffix("").parts for file in files}
    return {
        ".".join(names[:-1] if names[-1] == "__init__" else names): file
        for file, names in parts.items()
    }


def imports(root: Path) -> dict[str, set[str]]:
    """The modules of the product that each one names in an import, wherever it stands."""
    files = modules(root)
    graph = {name: set() for name in files}
    for name, file in files.items():
        package = name.split(".") if file.name == "__init__.py" else name.split(".")[:-1]
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.ImportFrom) or not node.level:
                continue  # test_imports.py: the product imports itself by relative imports
            source = ".".join([*package[: len(package) - node.level + 1], node.module or ""])
            source = source.rstrip(".")
            for alias in node.names:
                module = f"{source}.{alias.name}"
                graph[name].add(module if module in files else source)
    return graph


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Returns modules that import one another in a ring, the first again at the end; or []."""
    finished: set[str] = set()

    def visit(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in finished:
            return []
        rings = (visit(imported, [*path, name]) for imported in sorted(graph.get(name, ())))
        ring = next((ring for ring in rings if ring), [])
        finished.add(name)
        return ring

    return next((ring for name in sorted(graph) if (ring := visit(name, []))), [])


@pytest.fixture
def copy(tmp_path):
    """A folder with a copy of the product in it."""
    for part in PARTS:
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / part, tmp_path / part, ignore=ignore)
    return tmp_path


def test_no_module_is_imported_in_a_circle():
    graph = imports(ROOT)
    assert len(graph["train.module"]) > 10  # the graph is no empty one
    assert not circle(graph)


@pytest.mark.parametrize(
    "text",
    [
        "from ..module import ContrastiveModule",
        "def f():\n    from .. import module",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ..module import x",
    ],
)
def test_a_planted_circle_is_found(copy, text):
    file = copy / "train" / "optim" / "adamw.py"
    file.write_text(f"{file.read_text()}\n{text}\n")
    assert {"train.module", "train.optim.adamw"} <= set(circle(imports(copy)))


def test_losses_stand_alone():
    """A loss is imported by none beside it: what two of them need stands in a room of its own."""
    files = (ROOT / "losses").glob("*.py")
    losses = {f"losses.{file.stem}" for file in files if file.stem not in {"__init__", *CONTRACT}}
    assert {"losses.infonce", "losses.siglip"} <= losses
    users = {
        name
        for name, imported in imports(ROOT).items()
        if name.startswith("losses.") and imported & losses
    }
    assert not users


def test_a_folder_can_be_read_at_a_glance():
    files = {part: list((ROOT / part).rglob("*.py")) for part in PARTS}
    folders = {file.parent for part in PARTS for file in files[part]}
    counts = {
        str(folder.relative_to(ROOT)): sum(
            file.name != "__init__.py" and (folder.name != "losses" or file.stem in CONTRACT)
            for file in folder.glob("*.py")
        )
        for folder in folders
    }
    assert counts["losses"] == len(CONTRACT) and counts["train"] > 5
    assert {folder: n for folder, n in counts.items() if n > MOST_MODULES} == {}
    rooms = {file.parent for file in files["losses"]} - {ROOT / "losses"}
    assert 1 < len(rooms) <= MOST_ROOMS
