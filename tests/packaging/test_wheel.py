"""The wheel holds the package, all of it and nothing else, and works where it is installed."""

import configparser
import email
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("train", "data", "models", "losses", "configs", "launch")
NOT_PACKAGED = {"tests", "docs", "build", "dist", "runs", "emoji", "icons", "site"}
PURPOSES = {
    "emoji",
    "icons",
    "report",
    "tensorboard",
    "wandb",
    "s3",
    "gcs",
    "deepspeed",
    "cluster",
    "ocr",
    "curate",
    "export",
    "syntax",
}
EXTRAS = PURPOSES | {"demo", "docs", "dev"}
BUILD = "import sys, setuptools.build_meta as b; print(b.build_wheel(sys.argv[1]))"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built without network from a copy of the tree (a build leaves files behind)."""
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("wheel")
    for name in (*PARTS, "tests"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree / name)
    command = [sys.executable, "-c", BUILD, str(out)]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return out / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """A folder the wheel is installed into, as pip --target does for a pure package."""
    folder = tmp_path_factory.mktemp("target")
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


def counterpoint(folder: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    """Runs the command line of the package installed in `folder`."""
    return subprocess.run(
        [sys.executable, "-m", "counterpoint", *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
    )


def test_the_wheel_is_the_package(wheel):
    packed = {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}
    tree = {
        f"counterpoint/{path.relative_to(ROOT).as_posix()}".replace("launch/entry/", "")
        for part in PARTS
        for path in (ROOT / part).rglob("*")
        if path.is_file() and path.suffix != ".pyc" and not path.name.startswith(".")
    }
    assert len(tree) > 30
    assert packed == tree, "name new folders and file types in setup.cfg (packages, package_data)"


def test_no_other_folder_holds_code():
    others = [
        path
        for path in ROOT.iterdir()
        if path.is_dir() and not path.name.startswith(".") and not path.name.endswith(".egg-info")
    ]
    strays = {path.name for path in others if any(path.rglob("*.py"))}
    assert strays - NOT_PACKAGED == set(PARTS)


def test_metadata(wheel):
    archive = zipfile.ZipFile(wheel)
    name = next(n for n in archive.namelist() if n.endswith("/METADATA"))
    meta = email.message_from_bytes(archive.read(name))
    assert (meta["Name"], meta["License-Expression"]) == ("counterpoint", "Apache-2.0")
    assert set(meta.get_all("Provides-Extra", [])) == EXTRAS
    assert set(meta["Requires-Python"].split(",")) == {">=3.10", "<3.15"}
    assert meta.get_payload() == (ROOT / "README.md").read_text()
    required = meta.get_all("Requires-Dist", [])
    assert "lightning<2.7,>=2.6.6" in required and 'emoji; extra == "emoji"' in required
    names = archive.namelist()
    assert any(n.endswith("licenses/LICENSE") for n in names)
    scripts = configparser.ConfigParser()
    scripts.read_string(archive.read(name.replace("METADATA", "entry_points.txt")).decode())
    assert dict(scripts["console_scripts"]) == {"counterpoint": "counterpoint.launch.cli:main"}


def test_the_installed_wheel_answers(installed, tmp_path):
    done = counterpoint(installed, "--help", cwd=tmp_path)
    assert done.returncode == 0 and "usage: counterpoint COMMAND" in done.stdout, done.stderr


def test_the_installed_wheel_knows_its_version(installed, tmp_path):
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    done = counterpoint(installed, "--version", cwd=tmp_path)
    assert done.stdout == f"counterpoint {settings['metadata']['version']}\n", done.stderr


def test_the_installed_wheel_is_imported_at_once(installed, tmp_path):
    lines = """
import sys, counterpoint
assert "load_model" in dir(counterpoint) and not hasattr(counterpoint, "nothing")
assert not {"torch", "lightning", "transformers"} & sys.modules.keys()
print(counterpoint.load_model.__module__, counterpoint.__file__)
"""
    done = subprocess.run(
        [sys.executable, "-c", lines],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == [
        "counterpoint.launch.api.embedder",
        str(installed / "counterpoint/__init__.py"),
    ], done.stderr


def test_the_installed_wheel_brings_its_configs(installed, tmp_path):
    """And takes no folder of the user's project for its own."""
    for part in PARTS:
        (tmp_path / part).mkdir()
        (tmp_path / part / "__init__.py").write_text("raise RuntimeError('the wrong module')\n")
    done = counterpoint(installed, "init", "mine", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "mine" / "configs" / "run" / "clip_cpu.yaml").is_file()


def test_constraints_are_names_and_exact_versions():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    names = [pin.partition("==")[0] for pin in pins]
    assert names == sorted(set(names)) and "torch" in names and "counterpoint" not in names
    assert all("==" in pin and "/" not in pin and "@" not in pin for pin in pins)
