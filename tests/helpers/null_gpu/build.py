"""Compiles the null GPU, a stand-in for the CUDA runtime, driver, cuBLAS and NCCL.

In: the C files beside this one, the system's compiler, the headers in Triton's wheel. Out: one
library in a folder of one's own, and the environment of processes that are to use it.
"""

import os
import re
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import torch

HERE = Path(__file__).parent
# The name by which torch and Triton load the driver.
LIBRARY = "libcuda.so.1"
# Libraries whose functions must be ours, or end the process when they are called.
USERS = ("libtorch_cuda.so", "libc10_cuda.so", "libtorch_python.so")
REPLACED = re.compile(r"(cuda|cublas|nccl)[A-Z]\w*")
# The libraries' own functions that ask no device for anything.
KEPT = {"ncclGetVersion", "ncclGetErrorString", "ncclGetLastError", "cublasLtGetVersion"}


def missing() -> str | None:
    """Returns why there can be no null GPU here; None: there can."""
    if torch.version.cuda is None:
        return "torch is built without CUDA"
    if torch.cuda.is_available():
        return "there is a GPU here, which torch would mix up with the null GPU"
    if compiler() is None or shutil.which("nm") is None:
        return "the null GPU is compiled, and there is no C compiler (apt-get install gcc)"
    if headers() is None:
        return "Triton's wheel, which has CUDA's headers, is not installed"
    return None


def compiler() -> str | None:
    """Returns the system's C compiler."""
    return next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)


def headers() -> Path | None:
    """Returns the folder of CUDA's headers that come with Triton."""
    spec = find_spec("triton")
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent / "backends" / "nvidia" / "include"
    return folder if (folder / "cuda_runtime_api.h").exists() else None


def build(folder: Path) -> dict[str, str]:
    """Compiles the library into `folder`; returns the environment in which a process uses it."""
    major, minor = str(torch.version.cuda).split(".")[:2]
    options = ["-O1", "-fPIC", "-w", "-I", str(headers()), "-I", str(HERE)]
    options.append(f"-DNULL_GPU_CUDA={int(major) * 1000 + int(minor) * 10}")
    objects = folder / "written.o"
    sources = sorted(str(path) for path in HERE.glob("*.c"))
    link = ["-shared", f"-Wl,-soname,{LIBRARY}", "-o", str(folder / LIBRARY)]
    libraries = ["-lpthread", "-ldl", "-lm"]
    run(["-r", "-nostdlib", "-o", str(objects), *options, *sources])
    (folder / "unknown.c").write_text(stubs(objects))
    run([*link, *options, str(objects), str(folder / "unknown.c"), *libraries])
    return {
        "LD_PRELOAD": str(folder / LIBRARY),
        "LD_LIBRARY_PATH": f"{folder}:{os.environ.get('LD_LIBRARY_PATH', '')}",
        "TRITON_LIBCUDA_PATH": str(folder),
        "PYTORCH_ALLOC_CONF": "expandable_segments:False",  # which the driver maps
        "TRITON_CACHE_DIR": str(folder / "triton"),
        # One root for all ranks: torch would gather the roots of a large world over the store.
        "TORCH_NCCL_RANKS_PER_ROOT": "100000",
    }


def stubs(objects: Path) -> str:
    """Returns a C file with a function for each one that torch knows and nobody has written."""
    written = set(symbols(objects, "--defined-only"))
    wanted: set[str] = set()
    for name in USERS:
        wanted.update(symbols(Path(torch.__file__).parent / "lib" / name, "--undefined-only", "-D"))
    names = {name for name in wanted if REPLACED.fullmatch(name)} - written - KEPT
    return '#include "null_gpu.h"\n' + "".join(
        f'int {name}() {{ return null_gpu_unknown("{name}"); }}\n' for name in sorted(names)
    )


def symbols(library: Path, *options: str) -> list[str]:
    """Returns the names of a library's symbols, without their versions."""
    listed = subprocess.run(
        ["nm", *options, str(library)], capture_output=True, text=True, check=True
    ).stdout
    return [line.split()[-1].split("@")[0] for line in listed.splitlines() if line.strip()]


def run(arguments: list[str]) -> None:
    """Runs the compiler."""
    found = compiler()
    assert found is not None
    done = subprocess.run([found, *arguments], capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
