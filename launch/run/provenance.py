"""What a run's numbers came from: machine, size of the model and of the data, what was chosen.

In: the parts of a run that is about to start. Out: facts as plain JSON, for `starts.jsonl`,
`summary.json` and reports.
"""

import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from torch import nn

from ...data.pairs import Pairs
from ...models.two_tower import TwoTower
from ..config.identity import names


def facts(model: TwoTower, data: Pairs, trainer: Trainer, chosen: dict[str, Any]) -> dict[str, Any]:
    """Returns what a start adds to the configuration.

    Args:
        model: the student.
        data: what it learns from.
        trainer: made, not yet started.
        chosen: the configuration without what is as it is when nobody names it.
    """
    return {
        "machine": machine(),
        "device": trainer.strategy.root_device.type,
        "world_size": trainer.world_size,
        "precision": trainer.precision,
        "parameters": parameters(model),
        "epoch_size": data.epoch_size,
        "chosen": list(names(chosen)),
    }


def parameters(model: TwoTower) -> dict[str, int]:
    """Counts each parameter once: of the towers with their projections, of all, of what learns."""
    sides = {
        "image": [model.image, model.image_projection],
        "text": [model.text, model.text_projection],
    }
    counts = {side: _count(_of(modules)) for side, modules in sides.items()}
    whole = list(model.parameters())
    return counts | {
        "total": _count(whole),
        "trainable": _count(p for p in whole if p.requires_grad),
    }


def _of(modules: Iterable[nn.Module]) -> Iterator[nn.Parameter]:
    for module in modules:
        yield from module.parameters()


def _count(parameters: Iterable[nn.Parameter]) -> int:
    return sum({id(p): p.numel() for p in parameters}.values())


ROOT = Path(__file__).resolve().parents[2]


# The sweep itself changes these, so they do not make the code that is measured a different one.
OWN_OUTPUT = (":(exclude)docs/results", ":(exclude)docs/methods.md")


def commit() -> dict[str, Any]:
    """Returns {"revision", "dirty"} of the code; revision None outside a git checkout."""
    if not (ROOT / ".git").exists():
        return {"revision": None, "dirty": False}
    revision = _git("rev-parse", "HEAD")
    return {
        "revision": revision,
        "dirty": bool(_git("status", "--porcelain", "--", ".", *OWN_OUTPUT)),
    }


def machine() -> dict[str, Any]:
    """Returns the kind of machine: processor, cores, accelerators, versions; no names of hosts."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    accelerators = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "cpu": _processor(),
        "cores": cores,
        "accelerators": accelerators,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _git(*arguments: str) -> str | None:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None


PACKAGES = ("train", "data", "models", "losses", "configs", "launch")


# Where ranks meet and how they talk; nothing that could hold a secret.
TOLD = (
    "NCCL_",
    "GLOO_",
    "OMP_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
    "SLURM_JOB_ID",
    "SLURM_RESTART",
)


def packages() -> list[str]:
    """`name==version` of everything installed, from the names of folders: reading takes longer."""
    found = (p.name for place in sys.path for p in Path(place or ".").glob("*.dist-info"))
    return sorted({name.removesuffix(".dist-info").replace("-", "==", 1) for name in found})


def changes() -> str:
    """What differs from the commit, new files of the packages included, for `git apply`."""
    parts = [_git_output("diff", "--binary", "HEAD")]
    new = _git_output("ls-files", "--others", "--exclude-standard", "-z", "--", *PACKAGES)
    for path in new.split("\0"):
        if path.endswith((".py", ".yaml")):
            parts.append(_git_output("diff", "--no-index", "--", os.devnull, path))
    return "".join(parts)


def _git_output(*arguments: str) -> str:
    # `--no-index` ends with 1 where files differ: the output counts.
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, check=False)
    return done.stdout.decode("utf-8", errors="replace")


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("torch", "lightning", "timm", "transformers")}
