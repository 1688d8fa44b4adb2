"""Process-wide settings, made before the first tensor.

In: the environment (torchrun, plain). Out: ranks, thread and kernel choices that are better than
torch's defaults on the machine at hand.
"""

import logging
import os
import warnings

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
    quieten()
    torch.set_float32_matmul_precision("high")
    if not torch.cuda.is_available():
        torch.backends.cuda.enable_flash_sdp(False)


def quieten() -> None:
    """Leaves out what Lightning says about itself; its warnings about the run stay."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    for message in (
        ".*isinstance.treespec, LeafSpec.*",  # torch's deprecation, in Lightning's own code
        ".*smaller than the logging interval.*",  # the last step is always logged
        ".*dataloader is not resumable.*",  # ours is: it starts at the stored step
        r".*module\(s\) in eval mode at the start.*",  # the student's average always is
    ):
        warnings.filterwarnings("ignore", message)
