"""Files that others wrote: nothing in them is executed or unpickled but tensors.

In: safetensors, a torch file, a TorchScript archive (as OpenAI published CLIP), or JSON. Out:
tensors by name, or settings.
"""

import collections
import io
import json
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..weights import read_weights

# What a TorchScript archive's pickle of data names for storages of each kind of number.
STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
# What damaged data makes of the steps below.
WRONG = (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Reads tensors by name.

    Raises:
        ValueError: the file is missing or holds something else.
    """
    if is_torchscript(path):
        return read_torchscript(path)
    return read_weights(path)


def read_settings(path: Path) -> dict[str, Any]:
    """Reads a JSON file of settings by name.

    Raises:
        ValueError: it is missing, damaged, or holds something else.
    """
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path} holds a {type(settings).__name__}, and no settings by name")
    return settings


def read_shards(folder: Path) -> dict[str, Tensor]:
    """Reads all tensors of a folder, from one file or as many as its index names.

    Raises:
        ValueError: there are none.
    """
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (index := folder / f"{name}.index.json").is_file():
            files = sorted(set(read_settings(index)["weight_map"].values()))
            return {n: v for file in files for n, v in read_tensors(folder / file).items()}
        if (folder / name).is_file():
            return read_tensors(folder / name)
    raise ValueError(f"{folder} has no model.safetensors or pytorch_model.bin")


def is_torchscript(path: Path) -> bool:
    """Whether the file is a TorchScript archive, which holds code beside its data."""
    if path.suffix == ".safetensors" or not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """Returns the parameters and buffers of an archive, of its data alone; its code is not read.

    Raises:
        ValueError: its data names anything but modules, tensors and plain values.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            root = next(n for n in archive.namelist() if n.endswith("/data.pkl"))
            module = _Reader(archive, root.removesuffix(".pkl")).load()
    except (zipfile.BadZipFile, pickle.UnpicklingError, EOFError, StopIteration, *WRONG) as error:
        raise ValueError(f"{path} cannot be read as a TorchScript archive: {error!r}") from error
    tensors: dict[str, Tensor] = {}
    _collect(module, "", tensors)
    if not tensors:
        raise ValueError(f"{path} is a TorchScript archive without tensors")
    return tensors


class _Module:
    """Stands for any class of the archive: takes its attributes, and has no code."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.attributes = state


class _Reader(pickle.Unpickler):
    """Makes tensors, mappings and attributes; refuses every other name."""

    def __init__(self, archive: zipfile.ZipFile, root: str):
        super().__init__(io.BytesIO(archive.read(f"{root}.pkl")))
        self.archive, self.root = archive, root

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("__torch__"):
            return _Module
        known = KNOWN.get((module, name))
        if known is None and module == "torch" and name in STORAGES:
            return name
        if known is None:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is no tensor")
        return known

    def persistent_load(self, pid: Any) -> Tensor:
        record = bytearray(self.archive.read(f"{self.root}/{pid[2]}"))
        dtype = STORAGES[pid[1]]
        return torch.frombuffer(record, dtype=dtype) if record else torch.empty(0, dtype=dtype)


def _tensor(storage: Tensor, offset: int, size: Any, stride: Any, *rest: Any) -> Tensor:
    # A view that leaves its storage is refused by torch.
    return torch.as_strided(storage, tuple(size), tuple(stride), offset)


def _parameter(data: Tensor, *rest: Any) -> Tensor:
    return data


KNOWN: dict[tuple[str, str], Any] = {
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("collections", "OrderedDict"): collections.OrderedDict,
} | {
    ("torch.jit._pickle", f"build_{kind}list"): list for kind in ("int", "double", "bool", "tensor")
}


def _collect(module: Any, prefix: str, tensors: dict[str, Tensor]) -> None:
    values = module.attributes if isinstance(module, _Module) else module
    if not isinstance(values, Mapping):
        return
    for name, value in values.items():
        if isinstance(value, Tensor):
            tensors[f"{prefix}{name}"] = value
        elif isinstance(value, _Module):
            _collect(value, f"{prefix}{name}.", tensors)
