"""`counterpoint export RUN_DIR FILE`: a run's weights as one safetensors file.

In: a checkpoint, which is the same file whatever strategy wrote it. Out: the model's tensors, whole
and in float32, under their own names; `--init_from FILE` and `models.weights` read them.
"""

import argparse
import os
from pathlib import Path

import safetensors.torch

from ..models.weights import read_weights
from ..train import checkpoint as checkpoints
from .load import checkpoint_of

AVERAGE = "ema.model."


def main(argv: list[str]) -> int:
    """Parses the command line and writes the file."""
    parser = argparse.ArgumentParser(
        prog="counterpoint export", description="Write a run's weights as one safetensors file."
    )
    parser.add_argument("run_dir", type=Path, help="folder written by `counterpoint fit`")
    parser.add_argument("file", type=Path, help="ends in .safetensors")
    parser.add_argument("--checkpoint", type=int, metavar="STEP", help="(the newest whole one)")
    parser.add_argument("--weights", choices=("trained", "ema"), default="trained")
    options = parser.parse_args(argv)
    if options.file.suffix != ".safetensors":
        raise ValueError(f"{options.file} must end in .safetensors")
    path = checkpoint_of(options.run_dir, options.checkpoint)
    count = export(path, options.file, options.weights)
    print(f"{options.file}: {count} tensors of step {checkpoints.step_of(path)}")
    return 0


def export(checkpoint: Path, file: Path, weights: str = "trained") -> int:
    """Writes the weights of a checkpoint; returns the number of tensors.

    Raises:
        ValueError: it cannot be read, or holds no such weights.
    """
    found = read_weights(checkpoint)
    if weights != "trained":
        state = checkpoints.load(checkpoint)["state_dict"]
        found = {n.removeprefix(AVERAGE): v for n, v in state.items() if n.startswith(AVERAGE)}
    if not found:
        raise ValueError(f"{checkpoint} holds no average; leave --weights=ema out")
    # Tensors that share memory (towers with common layers) cannot be told apart in such a file.
    whole = {name: value.contiguous().clone() for name, value in found.items()}
    part = file.with_name(f"{file.name}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    step = str(checkpoints.step_of(checkpoint))
    safetensors.torch.save_file(whole, part, {"format": "pt", "step": step})
    os.replace(part, file)
    return len(whole)
