"""Arrays that filters are given as files: weights of a probe, embeddings of class prompts.

In: a `.safetensors`, `.npz` or `.npy` file. Out: its arrays by name, read once a process.
"""

import functools
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file


def read_arrays(path: Path) -> Mapping[str, np.ndarray]:
    """Returns the arrays of a file by name; that of a `.npy` file is called `classes`.

    Raises:
        ValueError: it cannot be read, or holds numbers that are not finite.
    """
    try:
        changed = path.stat().st_mtime_ns
    except OSError as error:
        raise ValueError(f"'{path}' cannot be read ({error.strerror})") from error
    return _read(path, changed)


@functools.lru_cache(maxsize=4)
def _read(path: Path, changed: int) -> Mapping[str, np.ndarray]:
    """Reads a file; `changed` is when it did."""
    arrays = _load(path)
    for name, values in arrays.items():
        if np.issubdtype(values.dtype, np.floating) and not np.isfinite(values).all():
            raise ValueError(f"'{name}' in '{path}' has numbers that are not finite; make it again")
    return arrays


def _load(path: Path) -> Mapping[str, np.ndarray]:
    try:
        if path.suffix == ".safetensors":
            return {name: value.float().numpy() for name, value in load_file(path).items()}
        read = np.load(path, allow_pickle=False)
        return {"classes": read} if isinstance(read, np.ndarray) else dict(read)
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(
            f"'{path}' cannot be read as arrays (.safetensors, .npz or .npy): {error}"
        ) from error


def class_embeddings(path: Path, width: int) -> np.ndarray:
    """Returns the array `classes` of a file as unit rows, float64 [classes, width].

    Raises:
        ValueError: there is none of this width.
    """
    arrays = read_arrays(path)
    if "classes" not in arrays:
        raise ValueError(f"'{path}' has no array 'classes'; it has {', '.join(sorted(arrays))}")
    classes = arrays["classes"].astype(np.float64)
    check_width(path, "classes", classes, width)
    return classes / np.linalg.norm(classes, axis=1, keepdims=True).clip(min=1e-12)


def check_width(path: Path, name: str, values: np.ndarray, width: int) -> None:
    """Refuses an array that is not [n, width].

    Raises:
        ValueError: it is not.
    """
    if values.ndim != 2 or values.shape[1] != width:
        raise ValueError(
            f"'{name}' in '{path}' has the shape {list(values.shape)}, and the store's embeddings "
            f"have {width} numbers: both must come from the same model"
        )
