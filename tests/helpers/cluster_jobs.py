"""Jobs for clusters: runs that say where they are, words that scripts make of them, pods."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import yaml

from counterpoint.data.shards.index import index_shards
from counterpoint.launch.cli import main

STEPS = 30
# What a shell, YAML or Kubernetes could take for something else.
HOSTILE = 'it\'s  a "run" $(date) $HOME $$(NAME)\n `two`'
PAIRS = [("one", 3, []), ("it's", 3, ["--optim.weight_decay=0.5"]), ("one", 5, [])]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    index_shards([str(p) for p in tiny.write_shards(folder)], str(folder / "train.parquet"))
    return folder / "train.parquet"


def run_file(folder: Path, manifest: Path, **changes) -> Path:
    folder.mkdir(exist_ok=True)
    values = tiny.config(manifest, steps=STEPS) | changes
    progress = {"class_path": "progress.Progress", "init_args": {"path": str(folder / "at")}}
    values["trainer"] |= {"logger": False, "callbacks": [progress]}
    return tiny.write_config(folder, values)


def launched(target: str, *options: str, out: str = "out.yaml") -> list[dict]:
    """The documents that `counterpoint launch TARGET` writes."""
    assert main(["launch", target, *options, "--out", out]) == 0
    return list(yaml.safe_load_all(Path(out).read_text()))


def words_of(script: str, folder: Path, **environment: str) -> list[str]:
    """What bash makes of the script's last command; its folders are ones of the test."""
    (folder / "torchrun").write_text('#!/bin/sh\nprintf "%s\\0" "$@"\n')
    (folder / "torchrun").chmod(0o755)
    moved = script.replace("mkdir -p /data\ncd /data\n", "")
    assert moved != script
    environment |= {"PATH": f"{folder}:{os.environ['PATH']}", "TMPDIR": str(folder), "HOME": "no"}
    done = subprocess.run(
        ["bash", "-c", moved], env=environment, cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\0")[:-1]


def sweep_file(folder: Path, path: Path) -> Path:
    runs = {
        "one": {"config": str(path), "seeds": [3, 5]},
        "it's": {"config": str(path), "seeds": [3], "set": {"optim.weight_decay": 0.5}},
    }
    file = folder / "sweep.yaml"
    file.write_text(json.dumps({"name": "My sweep", "runs": runs}))
    return file


class Pod:
    """The script of a manifest, run on this machine as the pod of an index.

    Args:
        script: with this machine's addresses and folders in the place of the cluster's.
        index: of the pod.
        folder: for its output.
    """

    def __init__(self, script: str, index: int, folder: Path):
        helpers = Path(__file__).resolve().parent
        (folder / "bin").mkdir(exist_ok=True)
        shim = folder / "bin" / "torchrun"
        run = shlex.join([sys.executable, "-m", "torch.distributed.run"])
        shim.write_text(f'#!/bin/sh\nexec {run} "$@"\n')
        shim.chmod(0o755)
        environment = {
            **os.environ,
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "PYTHONPATH": f"{helpers}:{os.environ.get('PYTHONPATH', '')}",
            "JOB_COMPLETION_INDEX": str(index),
            "POD_IP": "127.0.0.1",
            "OMP_NUM_THREADS": "1",
        }
        self.log = folder / f"log{index}"
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                ["bash", "-c", script], env=environment, stdout=out, stderr=out, cwd=folder
            )

    def alive(self) -> bool:
        return self.process.poll() is None

    def text(self) -> str:
        return self.log.read_text()[-4000:]
