"""Process-wide settings, made before the first tensor.

In: the environment (torchrun, plain). Out: ranks, thread and kernel choices that are better than
torch's defaults on the machine at hand.
"""

import os

import torch


def is_first_process() -> bool:
    """True in the process that writes the run folder (rank 0, or not yet launched)."""
    return int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))) == 0


def under_torchrun() -> tuple[int, int] | None:
    """Returns (processes on this node, nodes) under torchrun, else None."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    local = int(os.environ["LOCAL_WORLD_SIZE"])
    return local, int(os.environ["WORLD_SIZE"]) // local


def prepare() -> None:
    """Sets what has no configuration key.

    Without a GPU, attention goes through plain matrix products: the backward of torch's fused CPU
    kernel takes most of a small model's step in bf16 (docs/benchmarks.md).
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    torch.set_float32_matmul_precision("high")
    if not torch.cuda.is_available():
        torch.backends.cuda.enable_flash_sdp(False)
