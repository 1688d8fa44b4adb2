"""The code and the machine that numbers came from.

In: the checkout, the machine, what is installed. Out: plain values, for run folders and results.
Nothing heavy is imported: sweeps and reports start without torch.
"""

import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("train", "data", "models", "losses", "configs", "launch")
# Prefixes of environment variables that are recorded: where ranks meet and how they communicate,
# nothing that could hold a secret.
RECORDED = (
    *("NCCL_", "GLOO_", "OMP_NUM_THREADS"),
    *("CUDA_VISIBLE_DEVICES", "SLURM_JOB_ID", "SLURM_RESTART"),
)
# The sweep itself changes these, so they do not make the code that is measured a different one.
OWN_OUTPUT = (":(exclude)docs/results", ":(exclude)docs/methods.md")


def commit() -> dict[str, Any]:
    """Returns {"revision", "dirty"} of the code; revision None outside a git checkout."""
    if not (ROOT / ".git").exists():
        return {"revision": None, "dirty": False}
    return {
        "revision": _git("rev-parse", "--verify", "HEAD").strip() or None,
        "dirty": bool(_git("status", "--porcelain", "--", ".", *OWN_OUTPUT)),
    }


def machine() -> dict[str, Any]:
    """Returns the kind of machine: processor, cores, accelerators, versions; no names of hosts."""
    import torch

    accelerators = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "cpu": _processor(),
        "cores": num_cores(),
        "accelerators": accelerators,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def num_cores() -> int:
    """Returns the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def packages() -> list[str]:
    """`name==version` of everything installed, from the names of folders: reading takes longer."""
    folders = (p.name for entry in sys.path for p in Path(entry or ".").glob("*.dist-info"))
    return sorted({name.removesuffix(".dist-info").replace("-", "==", 1) for name in folders})


def changes() -> str:
    """What differs from the commit, new files of the packages included, for `git apply`."""
    parts = [_git("diff", "--binary", "HEAD")]
    new = _git("ls-files", "--others", "--exclude-standard", "-z", "--", *PACKAGES)
    for path in new.split("\0"):
        if path.endswith((".py", ".yaml")):
            parts.append(_git("diff", "--no-index", "--", os.devnull, path))
    return "".join(parts)


def _git(*arguments: str) -> str:
    # `--no-index` ends with 1 where files differ: the output counts.
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, check=False)
    return done.stdout.decode("utf-8", errors="replace")


def versions() -> dict[str, str]:
    return {name: version(name) for name in ("torch", "lightning", "timm", "transformers")}
