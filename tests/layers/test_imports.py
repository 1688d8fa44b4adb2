"""What each part imports from outside: nothing undeclared, nothing that is not its business.

import-linter can only forbid; here are the complete lists of what is allowed.
"""

import ast
import configparser
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("launch", "train", "losses", "models", "data", "configs")
ALLOWED = {
    # Of one loss whose targets are stored: tensors of a file, read without unpickling.
    "losses": {"torch", "jaxtyping", "triton", "safetensors"},
    "models": {"torch", "timm", "transformers", "open_clip", "safetensors", "jaxtyping", "numpy"},
}


def imports(file: Path) -> list[tuple[str, bool]]:
    """Returns (top-level name, whether it is imported as the file is) of third-party imports."""
    tree = ast.parse(file.read_text())
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    third_party = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module or ""]
        else:
            continue
        tops = {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names)
        third_party += [(top, id(node) not in inside) for top in sorted(tops)]
    return third_party


def declared() -> tuple[set[str], set[str]]:
    """Returns the distributions setup.cfg always installs, and those of the user's extras."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")

    def names(text: str) -> set[str]:
        lines = [line.strip() for line in text.splitlines()]
        kept = [line for line in lines if line and not line.startswith("#")]
        return {canonicalize_name(Requirement(line).name) for line in kept}

    extras = config["options.extras_require"]
    optional = "".join(extras[name] for name in extras if name not in ("dev", "docs"))
    return names(config["options"]["install_requires"]), names(optional)


def files(part: str) -> list[Path]:
    return sorted((ROOT / part).rglob("*.py"))


@pytest.mark.parametrize("part", ALLOWED)
def test_a_part_imports_only_what_it_may(part):
    wrong = {
        (str(file.relative_to(ROOT)), name)
        for file in files(part)
        for name, _ in imports(file)
        if name not in ALLOWED[part]
    }
    assert not wrong


def test_lightning_is_known_to_the_base_of_data_modules_only():
    users = {
        file.relative_to(ROOT / "data").as_posix()
        for file in files("data")
        for name, _ in imports(file)
        if name in ("lightning", "pytorch_lightning", "lightning_fabric")
    }
    assert users == {"pairs.py"}


def test_strategies_are_known_to_their_room_only():
    """Everyone else asks `Sharding`, so that a new strategy is one file."""
    kinds = ("deepspeed", "lightning.pytorch.strategies", "torch.nn.parallel")
    kinds += tuple(f"torch.distributed.{name}" for name in ("fsdp", "tensor", "device_mesh"))
    users = {
        file.relative_to(ROOT).parent.as_posix()
        for file in (file for part in PARTS for file in files(part))
        if file.name != "torch_internals.py"
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ImportFrom | ast.Import)
        for name in (getattr(node, "module", None), *(alias.name for alias in node.names))
        if name and name.startswith(kinds)
    }
    assert users == {"train/strategies"}


def test_every_import_is_a_declared_dependency():
    core, extras = declared()
    distributions = packages_distributions()
    undeclared = set()
    for file in (file for part in PARTS for file in files(part)):
        for name, at_import in imports(file):
            if file.stem.endswith("_triton") and name == "triton":
                continue  # comes with torch where it exists; asked for on CUDA devices only
            owners = {canonicalize_name(owner) for owner in distributions.get(name, [])}
            if not owners & (core if at_import else core | extras):
                undeclared.add((str(file.relative_to(ROOT)), name))
    assert not undeclared, "declare these in setup.cfg (or import an extra inside the function)"


def test_the_package_imports_itself_by_relative_imports():
    absolute = {
        str(file.relative_to(ROOT))
        for part in PARTS
        for file in files(part)
        for name, _ in imports(file)
        if name in (*PARTS, "counterpoint")
    }
    assert not absolute
