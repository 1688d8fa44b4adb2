"""`counterpoint evaluate`: a run's checkpoint on a suite.

In: a run folder and a suite. Out: a table on the terminal and `RUN/evaluation/SUITE-STEP.json`.
Alone or under torchrun, with the same values.
"""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist

from ...data.files import write_whole
from ...train.checkpointing.checkpoint import step_of
from ...train.evaluation.evaluate import evaluate
from .. import arguments
from ..config.suites import load_suite
from ..run.env import choose_attention, is_first_process, num_threads, prepare, under_torchrun
from ..run.load import checkpoint_of, load_run
from ..run.precision import slow_bf16


def main(argv: list[str]) -> int:
    """Parses the command line and evaluates."""
    options = arguments.evaluate().parse_args(argv)
    prepare()
    with process_group() as device:
        evaluate_run(
            options.run_dir,
            options.suite,
            step=options.checkpoint,
            batch_size=options.batch_size,
            data_root=options.data_root,
            out=options.out,
            device=device,
        )
    return 0


def evaluate_run(
    run_dir: Path,
    suite: str | None = None,
    *,
    step: int | None = None,
    batch_size: int | None = None,
    data_root: str | None = None,
    out: Path | None = None,
    device: torch.device | None = None,
) -> dict[str, float]:
    """Evaluates a checkpoint; the first process prints and writes the results.

    Args:
        run_dir: folder of the run.
        suite: name or file; None: what the run was evaluated on while it trained.
        step: which checkpoint; None: the newest whole one.
        batch_size: images or texts per tower call; None: as in the run.
        data_root: where relative paths in the suite start; None: as in the run if it is the run's
            suite, else as in the suite.
        out: the file to write; None: in the run folder.
        device: where the towers run; None: the CPU.

    Raises:
        ValueError: no such run, checkpoint, suite or data.
    """
    device = device or torch.device("cpu")
    # Chosen here, so that a run still going on cannot get ahead of the file's name.
    step = step_of(checkpoint_of(run_dir)) if step is None else step
    run = load_run(run_dir, step)
    in_training = run.config["evaluation"]
    suite = suite or in_training["suite"]
    if suite is None:
        raise ValueError(f"{run_dir} was trained without a suite; name one with --suite")
    if data_root is None and suite == in_training["suite"]:
        data_root = in_training["data_root"]
    tasks = load_suite(suite, data_root)
    name = run.config["trainer"].get("precision")
    if is_first_process() and (slow := slow_bf16(name, "cuda" if device.type == "cuda" else "cpu")):
        print(f"{run_dir} was trained in {name}, which is slow here: {slow}", flush=True)
    choose_attention(name)
    run.model.to(device, weights_type(name))
    run.objective.to(device, weights_type(name))
    results = evaluate(
        run.model,
        tasks,
        run.tokenizer,
        run.eval_transform,
        device=device,
        precision=tower_context(name, device),
        batch_size=batch_size or in_training["batch_size"],
        num_threads=min(8, num_threads(int(os.environ.get("LOCAL_WORLD_SIZE", "1")))),
        metric=run.objective.metric(),
    )
    if is_first_process():
        out = out or run_dir / "evaluation" / f"{tasks.name}-{step:08d}.json"
        record = {"suite": tasks.name, "step": step, "run": str(run_dir), "metrics": results}
        out.parent.mkdir(parents=True, exist_ok=True)
        write_whole(out, json.dumps(record, indent=1) + "\n")
        notes = dict.fromkeys(task.data.note for task in tasks.tasks.values())
        print(*filter(None, notes), table(results), sep="\n")
        print(f"{run_dir}, step {step}: written to {out}")
    return results


@contextmanager
def process_group() -> Iterator[torch.device]:
    """Joins torchrun's processes, if there are any; yields this process's device."""
    has_cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if has_cuda else None
    if device is not None:
        torch.cuda.set_device(device)
    joined = under_torchrun() is not None and not dist.is_initialized()
    if joined:
        dist.init_process_group("nccl" if has_cuda else "gloo")
    try:
        yield device or torch.device("cpu")
    finally:
        if joined:
            dist.destroy_process_group()


def weights_type(precision: str | int | None) -> torch.dtype | None:
    """Returns the weights' type under Lightning's `precision`; None: as they are."""
    double = torch.float64
    kinds = {"64": double, "64-true": double, "bf16-true": torch.bfloat16, "16-true": torch.half}
    return kinds.get(str(precision))


def tower_context(
    precision: str | int | None, device: torch.device
) -> Callable[[], AbstractContextManager]:
    """Returns what makes the context in which training with `precision` runs the towers."""
    half, brain = torch.float16, torch.bfloat16
    kinds = {"16": half, "16-mixed": half, "bf16": brain, "bf16-mixed": brain}
    dtype = kinds.get(str(precision))
    return nullcontext if dtype is None else partial(torch.autocast, device.type, dtype=dtype)


def table(results: dict[str, float]) -> str:
    """One line a task and group, one column a measure; fractions are shown in percent."""
    rows: dict[str, list[str]] = {}
    for name, value in results.items():
        task, _, measure = name.rpartition("/")
        rows.setdefault(task, []).append(f"{measure} {100 * value:.1f}%")
    width = max(map(len, rows))
    return "\n".join(f"{task:<{width}}  {'   '.join(cells)}" for task, cells in rows.items())
