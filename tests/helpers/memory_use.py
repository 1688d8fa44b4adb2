"""What a loss keeps for its backward pass, and the largest tensor that it ever makes."""

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode


def kept_bytes(loss) -> int:
    """Bytes made by `loss()` that live as long as its value does, wherever they are held."""
    with _Tensors() as made:
        value = loss()
    num_bytes = sum(size for storage, size in made.storages.items() if not storage.expired())
    assert value.requires_grad
    return num_bytes


def largest_tensor(loss) -> int:
    """Elements of the largest tensor made by `loss()` and by the way back from it."""
    with _Tensors() as made:
        loss().backward()
    return made.largest


class _Tensors(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.largest = 0
        self.storages: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.numel())
                storage = tensor.untyped_storage()
                self.storages[StorageWeakRef(storage)] = storage.nbytes()
        return out
