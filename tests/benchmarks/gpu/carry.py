"""Fills a folder with what `make gpu` needs on a machine without network: wheels, emoji shards.

Run: `.venv/bin/python tests/benchmarks/gpu/carry.py FOLDER --there names.txt`, where `names.txt` is
what `pip list --format=freeze` printed on that machine (versions do not count). Downloads the
packages that Counterpoint needs and that are not there, in the versions that are installed here.
torch and what comes with it is never carried. There, in the clone, with FOLDER in it:
`make gpu CARRY=FOLDER PYTHON=python3`.
"""

import argparse
import re
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

EXTRAS = ("deepspeed",)  # of Counterpoint, beside what it always needs
MORE = ("pytest", "pytest-xdist")
WITH_TORCH = re.compile(r"torch|torchvision|triton|nvidia-.*|cuda-.*")
# https://pypi.org/project/auditwheel: names of platforms under which Linux wheels are published.
PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_24", "manylinux_2_17")
PLATFORMS += ("manylinux_2_12", "manylinux_2_5", "manylinux2014", "manylinux2010", "manylinux1")


def main() -> None:
    """Fills the folder, and says how large it is."""
    parser = argparse.ArgumentParser(description="Fills a folder with what make gpu needs.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--there", type=Path, help="names of packages that are there already")
    parser.add_argument("--python", default="3.12", help="version there (%(default)s)")
    parser.add_argument("--machine", default="x86_64", help="of wheels (%(default)s)")
    parser.add_argument("--limit", type=float, default=64.0, help="MiB in all (%(default)s)")
    parser.add_argument("--emoji", type=int, default=1200, help="names of the corpus (%(default)s)")
    options = parser.parse_args()
    there = names_in(options.there.read_text()) if options.there else set()
    environment = {"python_version": options.python, "platform_machine": options.machine}
    environment |= {"python_full_version": f"{options.python}.0", "extra": ""}
    wanted = sorted(needed("counterpoint", environment, there))
    wheels = options.folder / "wheels"
    wheels.mkdir(parents=True, exist_ok=True)
    for name in wanted:
        fetch(f"{name}=={distribution(name).version}", wheels, options)
    corpus = options.folder / "emoji"
    if not corpus.exists():
        make = [sys.executable, "-m", "counterpoint.launch.cli", "data", "emoji", str(corpus)]
        subprocess.run([*make, "--limit", str(options.emoji), "--num-held-out", "50"], check=True)
        shutil.rmtree(corpus / "negatives")
    files = [path for path in options.folder.rglob("*") if path.is_file()]
    total = sum(path.stat().st_size for path in files) / 2**20
    print(f"{options.folder}: {total:.1f} MiB, {len(wanted)} wheels")
    if total > options.limit:
        largest = sorted(files, key=lambda path: -path.stat().st_size)[:5]
        listed = ", ".join(f"{path.name} {path.stat().st_size / 2**20:.1f}" for path in largest)
        raise SystemExit(f"that is more than {options.limit:g} MiB; the largest: {listed}")


def names_in(listing: str) -> set[str]:
    """Returns the names of packages, one a line or separated by commas, without versions."""
    words = re.split(r"[\s,]+", listing)
    return {normal(re.split(r"[=@<>~!;\[]", word)[0]) for word in words if word}


def normal(name: str) -> str:
    """Returns a package's name as the index compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def needed(root: str, environment: dict[str, str], there: set[str]) -> set[str]:
    """Returns the packages that one needs, those of others included, without what is there."""
    found: set[str] = set()
    waiting = [Requirement(f"{root}[{','.join(EXTRAS)}]"), *map(Requirement, MORE)]
    while waiting:
        requirement = waiting.pop()
        name = normal(requirement.name)
        if name != root and (name in there or WITH_TORCH.fullmatch(name) or name in found):
            continue
        try:
            requires = distribution(name).requires or []
        except PackageNotFoundError:  # which another Python or machine needs
            continue
        found.add(name)
        for each in map(Requirement, requires):
            extras = [environment | {"extra": extra} for extra in ("", *requirement.extras)]
            if each.marker is None or any(each.marker.evaluate(e) for e in extras):
                waiting.append(each)
    return found - {root}


def fetch(pinned: str, wheels: Path, options: argparse.Namespace) -> None:
    """Downloads a wheel; builds one of a package that is published as source only."""
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    platforms = [f"--platform={name}_{options.machine}" for name in PLATFORMS]
    download = [*pip, "download", "--no-deps", "--only-binary=:all:", "--implementation=cp"]
    download += [f"--python-version={options.python}", *platforms, f"--dest={wheels}", pinned]
    if subprocess.run(download, capture_output=True).returncode:
        build = [*pip, "wheel", "--no-deps", "--no-build-isolation", f"--wheel-dir={wheels}"]
        subprocess.run([*build, pinned], check=True)


if __name__ == "__main__":
    main()
