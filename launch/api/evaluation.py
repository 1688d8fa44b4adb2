"""A loaded model on a suite.

In: a model and a suite. Out: measures by name, and the file they are written to.
"""

import json
import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ...data.files import write_whole
from ...data.workers import cores_of
from ...train.evaluation.details import Detail
from ...train.evaluation.evaluate import evaluate
from ...train.evaluation.outcomes import Outcomes, Stored, read_outcomes, write_outcomes
from ...train.evaluation.prompts import PromptCache
from ...train.evaluation.suite import Suite
from ..config.suites import load_suite
from ..experiments.ablation.statistics import Interval
from ..experiments.compare import Comparison, compare, intervals
from ..run.env import choose_attention, is_first_process
from ..run.load import Weights
from ..run.precision import slow_bf16
from .sources import Loaded

BATCH_SIZE = 256  # of a model that is no run's


def suite_of(
    config: Mapping[str, Any],
    name: str,
    suite: str | Path | None = None,
    data_root: str | Path | None = None,
) -> Suite:
    """Returns the suite that is named, else the one that a run was evaluated on in training.

    Args:
        config: of the run; of another model without `evaluation`.
        name: of the run or model, for messages.
        suite: name or file.
        data_root: where relative paths in the suite start; None: as in the run if it is the run's
            suite, else as in the suite.

    Raises:
        ValueError: no suite is known, or it cannot be read.
    """
    in_training = config.get("evaluation") or {}
    own = in_training.get("suite")
    suite = suite or own
    if suite is None:
        what = "was trained without a suite" if in_training else "has no suite of its own"
        raise ValueError(f"{name} {what}; name one with --suite")
    if data_root is None and suite == own:
        data_root = in_training["data_root"]
    return load_suite(suite, data_root)


def evaluate_loaded(
    loaded: Loaded,
    suite: Suite,
    *,
    batch_size: int | None = None,
    device: torch.device | None = None,
    prompts: Path | None = None,
    outcomes: dict[str, Outcomes] | None = None,
    details: dict[str, Detail] | None = None,
) -> dict[str, float]:
    """Evaluates a model, a run's in its own precision; called by every process that takes part.

    Args:
        loaded: the model; it is moved to the device.
        suite: what to measure.
        batch_size: images or texts per tower call; None: as in the run, else 256.
        device: where the towers run; None: the CPU.
        prompts: folder for embeddings of class prompts; None: they are not kept.
        outcomes: takes what each item contributed to a measure.
        details: takes what tasks find beside numbers.
    """
    device = device or torch.device("cpu")
    name = (loaded.config.get("trainer") or {}).get("precision")
    if is_first_process() and (slow := slow_bf16(name, "cuda" if device.type == "cuda" else "cpu")):
        print(f"{loaded.name} was trained in {name}, which is slow here: {slow}", flush=True)
    choose_attention(name)
    model = loaded.model.to(device, weights_type(name))
    about = json.dumps([loaded.config.get("model"), str(name), torch.__version__], default=str)
    return evaluate(
        model,
        suite,
        loaded.tokenizer,
        loaded.eval_transform,
        device=device,
        precision=tower_context(name, device),
        batch_size=batch_size
        or (loaded.config.get("evaluation") or {}).get("batch_size")
        or BATCH_SIZE,
        num_threads=min(8, cores_of(int(os.environ.get("LOCAL_WORLD_SIZE", "1")))),
        metric=loaded.metric.to(device, weights_type(name)),
        prompts=None if prompts is None else PromptCache(prompts, model, about),
        outcomes=outcomes,
        details=details,
    )


def results_folder(run_dir: Path | None, name: str) -> Path:
    """Returns where results of a model go: in a run's own folder, else below `evaluation/` here."""
    return run_dir / "evaluation" if run_dir else Path("evaluation", name)


def results_file(suite: str, step: int | None, weights: Weights) -> str:
    """Returns the name of a suite's results: SUITE-STEP.json of a run, else SUITE.json."""
    average = "-ema" if weights == "ema" else ""
    return f"{suite}.json" if step is None else f"{suite}-{step:08d}{average}.json"


def write_results(
    path: Path,
    loaded: Loaded,
    suite: str,
    results: Mapping[str, float],
    outcomes: Mapping[str, Outcomes],
    details: Mapping[str, Detail] | None = None,
    baseline: tuple[Path, Mapping[str, Stored]] | None = None,
) -> tuple[dict[str, Interval], dict[str, Comparison]]:
    """Writes measures, and of which model they are, and beside them the outcomes of items (.npz).

    Args:
        path: the file (.json).
        loaded: the model.
        suite: name of the suite.
        results: measures by name.
        outcomes: of those that are means over items.
        details: what tasks found beside numbers.
        baseline: outcomes to compare with, and their file.

    Returns:
        Intervals of measures, and their comparison with the baseline.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = path.with_suffix(".npz")
    write_outcomes(stored, outcomes)
    ours = read_outcomes(stored)
    bounds, compared = intervals(ours), {} if baseline is None else compare(ours, baseline[1])
    record: dict[str, Any] = {"suite": suite}
    if loaded.run_dir is None:
        record |= {"model": loaded.name}
    else:
        record |= {"step": loaded.step, "run": str(loaded.run_dir), "weights": loaded.weights}
    record |= {"metrics": results, "intervals": bounds}
    if details:
        record |= {"details": {name: each.record() for name, each in details.items()}}
    if baseline is not None:
        differences = {
            name: {"difference": each.difference, "interval": each.interval, "p": each.p}
            for name, each in compared.items()
        }
        record |= {"baseline": {"outcomes": str(baseline[0]), "differences": differences}}
    write_whole(path, json.dumps(record, indent=1) + "\n")
    return bounds, compared


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
