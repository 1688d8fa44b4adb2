"""Curations of an ablation that are given as files of filters: run once, then known.

In: a curation, a score table, stores. Out: the keep-list that `counterpoint curate` writes, in a
folder of the ablation. It is run again when one of its filters, a file that they read, the table or
a store has changed; to run it in any case, delete the folder.
"""

import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ....data.curate.digest import digest
from ....data.curate.runner import VERSION
from ....data.curate.stores import Store
from ....data.files import write_json
from ...config.curations import load_curation
from ...config.packaged import find
from ..work_claims import claimed

NUM_TAIL = 12  # lines of a failed curation's output that are shown
WAIT_SECONDS = 2.0
STAMP = "ablation.json"


def curate_command(curation: str, table: Path, stores: Mapping[str, str], out: Path) -> list[str]:
    """Returns the command line that runs a curation."""
    command = [sys.executable, "-m", "counterpoint.launch.cli", "curate", curation]
    named = [word for name, folder in stores.items() for word in ("--store", f"{name}={folder}")]
    return [*command, "--table", str(table), *named, "--out", str(out)]


def curated(
    name: str,
    curation: str,
    table: Path,
    stores: Mapping[str, str],
    folder: Path,
    command: Callable[..., list[str]] = curate_command,
) -> Path:
    """Returns the keep-list of a curation, and makes it if it is not there.

    Several processes may ask at once: one curates, the others wait.

    Args:
        name: of the curation in the ablation.
        curation: a file, or a packaged name.
        table: the score table.
        stores: folders by name.
        folder: the curation's folder is made in it.
        command: what is run.

    Raises:
        ValueError: there is no such curation, table or store, or it failed.
    """
    file, out = find(curation, "curation"), folder / name
    if not table.is_dir():
        raise ValueError(f"there is no score table {table}; make it with counterpoint score")
    stamp = _stamp(file, table, stores)
    while _known(out) != stamp:
        with claimed(out.with_name(f"{name}.claim")) as ours:
            if ours and _known(out) != stamp:
                # What is there now is replaced file by file: nobody may take it for whole.
                (out / STAMP).unlink(missing_ok=True)
                _run(name, command(str(file), table, stores, out), out)
                write_json(out / STAMP, stamp)
        if not ours:
            time.sleep(WAIT_SECONDS)
    return out / "keep.parquet"


def _run(name: str, command: list[str], out: Path) -> None:
    log = out.with_name(f"{name}.log")
    print(f"curation {name}: runs, output in {log}", flush=True)
    with log.open("wb") as output:
        status = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT).returncode
    if status or not (out / "keep.parquet").is_file():
        tail = log.read_text(encoding="utf-8", errors="replace").split("\n")[-NUM_TAIL:]
        text = " ".join(" ".join(tail).split())
        raise ValueError(f"the curation {name} failed (all of its output: {log}): {text}")


def _stamp(file: Path, table: Path, stores: Mapping[str, str]) -> dict[str, Any]:
    shards = [
        (str(path.relative_to(table)), path.stat().st_size, path.stat().st_mtime_ns)
        for path in sorted(table.rglob("*.parquet"))
    ]
    opened = {name: Store(Path(place)) for name, place in stores.items()}
    # Its file names filters; what these are and read lies in other files.
    filters = f"{VERSION}"
    for name, each in load_curation(file).items():
        filters = digest(f"{filters} {name}", each, opened)
    return {
        "curation": filters,
        "table": hashlib.sha256(json.dumps(shards).encode()).hexdigest()[:16],
        "stores": {name: each.fingerprint for name, each in opened.items()},
    }


def _known(out: Path) -> dict[str, Any] | None:
    file = out / STAMP
    is_whole = file.is_file() and (out / "keep.parquet").is_file()
    return json.loads(file.read_text(encoding="utf-8")) if is_whole else None
