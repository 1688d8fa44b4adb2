"""`counterpoint export RUN_DIR FILE`: a run's weights as one safetensors file.

In: a checkpoint, which is the same file whatever strategy wrote it. Out: the model's tensors, whole
and in float32, under their own names; `--init_from FILE` and `models.weights` read them.
"""

from pathlib import Path

import safetensors.torch

from ...data.files import whole_file
from ...models.weights import read_weights
from ...train.checkpointing import checkpoint as checkpoints
from .. import arguments
from ..run.load import checkpoint_of

AVERAGE = "ema.model."


def main(argv: list[str]) -> int:
    """Parses the command line and writes the file."""
    options = arguments.export().parse_args(argv)
    path = checkpoint_of(options.run_dir, options.checkpoint)
    count = export(path, options.file, options.weights)
    print(f"{options.file}: {count} tensors of step {checkpoints.step_of(path)}")
    return 0


def export(checkpoint: Path, file: Path, weights: str = "trained") -> int:
    """Writes the weights of a checkpoint; returns the number of tensors."""
    found = read_weights(checkpoint)
    if weights != "trained":
        state = checkpoints.load(checkpoint)["state_dict"]
        found = {n.removeprefix(AVERAGE): v for n, v in state.items() if n.startswith(AVERAGE)}
    if not found:
        raise ValueError(f"{checkpoint} holds no average; leave --weights=ema out")
    # Tensors that share memory (towers with common layers) cannot be told apart in such a file.
    whole = {name: value.contiguous().clone() for name, value in found.items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    step = str(checkpoints.step_of(checkpoint))
    with whole_file(file) as part:
        safetensors.torch.save_file(whole, part, {"format": "pt", "step": step})
    return len(whole)
