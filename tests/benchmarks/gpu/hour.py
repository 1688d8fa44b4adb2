"""All that has to be measured on a GPU, in pieces, the most valuable first: `make gpu`.

In: a GPU; for a machine without network a folder that `carry.py` filled. Out:
`docs/results/gpu/DEVICE-DATE.json`, into which each piece writes its own part as it goes, so that a
piece that dies or takes too long costs nothing but what it had not measured yet. Imports only the
standard library: pieces are processes of their own.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
# Seconds that a piece may take: 24 minutes in all, none more than nine.
PIECES = {
    "tests": 240,  # what is marked `gpu`
    "losses": 150,  # kernels at 16k to 131k pairs against open_clip's
    "step-b32": 240,  # train step and MFU against open_clip's, masked, compiled
    "step-b16": 240,
    "loader": 120,  # one GPU fed from JPEGs
    "emoji": 120,  # a run's losses on the GPU against those on the CPU
    "siglip": 90,  # a step of 131,072 pairs
    "step-l14": 240,
}
SPARE = 15.0  # before the end, from which on a piece begins nothing more


def main() -> int:
    """Runs pieces; returns the exit status, 1 if one of them has failed as a whole."""
    parser = argparse.ArgumentParser(description="Measures in pieces what needs a GPU.")
    parser.add_argument("pieces", nargs="*", metavar="PIECE", help=f"of {', '.join(PIECES)}")
    parser.add_argument("--scale", choices=("full", "tiny"), default="full")
    parser.add_argument("--carry", type=Path, help="folder that carry.py filled")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "gpu")
    parser.add_argument("--limit", type=float, help="seconds of each piece, in place of its own")
    options = parser.parse_args()
    if unknown := set(options.pieces) - PIECES.keys():
        parser.error(
            f"there is no piece {', '.join(sorted(unknown))}; there are {', '.join(PIECES)}"
        )
    environment = prepared(options.carry)
    machine = json.loads(output([sys.executable, "-m", "benchmarks.gpu.piece"], environment))
    if machine["device"] == "cpu" and options.scale == "full":
        raise SystemExit("there is no GPU here; --scale tiny tries the pieces on a processor")
    options.out.mkdir(parents=True, exist_ok=True)
    name = "-".join(machine["device"].lower().replace("/", " ").split())
    path = options.out / f"{name}-{date.today().isoformat()}.json"
    failed = 0
    for piece in options.pieces or PIECES:
        limit = options.limit or PIECES[piece]
        start = time.monotonic()
        why = run(piece, limit, path, options, environment)
        if why is not None:
            note(path, piece, why)
        failed += why is not None
        print(f"{piece}: {time.monotonic() - start:.0f} s{f', {why}' if why else ''}", flush=True)
    print(path)
    return min(failed, 1)


def prepared(carry: Path | None) -> dict[str, str]:
    """Returns the environment of pieces; installs carried wheels into their folder, once."""
    paths = [str(ROOT / "tests")]
    if carry is not None:
        site, wheels = carry / "site", sorted((carry / "wheels").glob("*.whl"))
        if wheels and not site.exists():
            install = ["-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-compile"]
            install += ["--no-cache-dir", "--target", str(site), *map(str, wheels)]
            subprocess.run([sys.executable, *install], check=True)
        links = carry / "links"
        links.mkdir(parents=True, exist_ok=True)
        if not (links / "counterpoint").is_symlink():
            (links / "counterpoint").symlink_to(ROOT)
        paths += [str(links.resolve()), str(site.resolve())]
    given = os.environ.get("PYTHONPATH")
    return os.environ | {"PYTHONPATH": os.pathsep.join([*paths, *([given] if given else [])])}


def run(
    piece: str, limit: float, path: Path, options: argparse.Namespace, environment: dict[str, str]
) -> str | None:
    """Runs one piece; returns why it has failed as a whole."""
    words = [sys.executable, "-m", "benchmarks.gpu.piece", piece, str(path.resolve())]
    words += ["--scale", options.scale, "--seconds", str(max(limit - SPARE, limit / 2))]
    words += ["--carry", str(options.carry.resolve())] if options.carry else []
    process = subprocess.Popen(words, env=environment, cwd=ROOT, start_new_session=True)
    try:
        status = process.wait(limit)
    except subprocess.TimeoutExpired:
        # With all that it has started, such as loader workers.
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return f"stopped after {limit:.0f} s"
    return None if status == 0 else f"ended with status {status}"


def note(path: Path, piece: str, why: str) -> None:
    """Writes why a piece has failed, if it could not do so itself."""
    whole: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"pieces": {}}
    whole["pieces"].setdefault(piece, {"rows": []}).setdefault("failed", why)
    path.write_text(json.dumps(whole, indent=1) + "\n")


def output(words: list[str], environment: dict[str, str]) -> str:
    """Returns the last line that a command prints."""
    done = subprocess.run(words, env=environment, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"the packages of the pieces do not load: {done.stderr.strip()[-500:]}")
    return done.stdout.strip().splitlines()[-1]


if __name__ == "__main__":
    sys.exit(main())
