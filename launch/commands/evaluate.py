"""`counterpoint evaluate`: a model on a suite.

In: a run folder (or a checkpoint in one) and a suite. Out: a table on the terminal and
`RUN/evaluation/SUITE-STEP.json`, with intervals; beside it the outcomes of items (`.npz`) and a
page with curves and texts (`.html`), where tasks give some. Alone or under torchrun, with the same
values. With `--watch` it follows a run that another process trains.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import yaml

from ...data.files import write_whole
from ...train.distributed import gather_objects
from ...train.evaluation.details import Detail
from ...train.evaluation.measures import base_of, number, show, show_difference
from ...train.evaluation.outcomes import Outcomes
from ...train.evaluation.suite import Suite
from .. import arguments
from ..api.evaluation import (
    evaluate_loaded,
    results_file,
    results_folder,
    suite_of,
    write_results,
)
from ..api.interpolation import check_alphas, interpolate
from ..api.preprocessing import line_mismatch, start_mismatch
from ..api.sources import Loaded, load_source
from ..api.watch import new_checkpoints
from ..experiments.ablation.statistics import Interval
from ..experiments.compare import Comparison, baseline_outcomes
from ..reporting.results_page import has_page, render_results
from ..run.env import is_first_process, prepare, under_torchrun
from ..run.load import CONFIG, Weights


def main(argv: list[str]) -> int:
    """Parses the command line and evaluates."""
    options = arguments.evaluate().parse_args(argv)
    prepare()
    with process_group() as device:
        if options.watch:
            watch(options, device)
        else:
            loaded = load_source(options.model, options.checkpoint, options.weights)
            name = str(loaded.run_dir or loaded.name)
            suite = suite_of(loaded.config, name, options.suite, options.data_root)
            print_first(start_mismatch, loaded)
            if options.toward is None:
                report(loaded, suite, options, device)
            else:
                evaluate_line(loaded, suite, options, device)
    return 0


def evaluate_line(start: Loaded, suite: Suite, options: Any, device: torch.device) -> None:
    """Evaluates weights between two models, and prints all of them side by side."""
    check_alphas(options.alphas)
    end = load_source(options.toward)
    print_first(line_mismatch, start, end)
    folder = results_folder(start.run_dir, start.name)
    stem = (
        options.out or folder / results_file(suite.name, start.step, start.weights)
    ).with_suffix("")
    line: dict[float, dict[str, float]] = {}
    for alpha in sorted(options.alphas):
        out = stem.with_name(f"{stem.name}-toward-{end.name}-{alpha:g}.json")
        line[alpha] = report(interpolate(start, end, alpha), suite, options, device, out)
    if is_first_process():
        out = stem.with_name(f"{stem.name}-toward-{end.name}.json")
        record = {"suite": suite.name, "start": options.model, "end": options.toward}
        points = [{"alpha": alpha, "metrics": results} for alpha, results in line.items()]
        write_whole(out, json.dumps(record | {"line": points}, indent=1) + "\n")
        print(line_table(line), f"written to {out}", sep="\n")
        write_page(out, f"{start.name} toward {end.name}")


def line_table(line: Mapping[float, Mapping[str, float]]) -> str:
    """One line a measure, one column an alpha."""
    names = list(next(iter(line.values())))
    width = max(map(len, names))
    rows = [f"{'alpha':<{width}}  " + "  ".join(f"{alpha:>8g}" for alpha in line)]
    for name in names:
        values = [results[name] for results in line.values()]
        rows.append(f"{name:<{width}}  " + "  ".join(f"{number(name, v):>8}" for v in values))
    return "\n".join(rows)


def watch(options: Any, device: torch.device) -> None:
    """Evaluates the checkpoints of a run that have no results yet, until the run has ended."""
    if options.checkpoint is not None or options.out is not None:
        raise ValueError(
            "--watch writes a file for each checkpoint: leave --checkpoint and --out away"
        )
    run_dir = Path(options.model)
    if not (run_dir / CONFIG).is_file():
        raise ValueError(f"{run_dir} is no run folder: it has no {CONFIG} (--watch follows a run)")
    config = yaml.safe_load((run_dir / CONFIG).read_text(encoding="utf-8"))
    suite = suite_of(config, str(run_dir), options.suite, options.data_root)
    folder = results_folder(run_dir, "")

    def is_done(step: int) -> bool:
        return (folder / results_file(suite.name, step, options.weights)).exists()

    for turn, path in enumerate(new_checkpoints(run_dir, is_done)):
        if (loaded := load_if_there(path, options.weights)) is not None:
            if turn == 0:
                print_first(start_mismatch, loaded)
            report(loaded, suite, options, device)


def print_first(check: Callable[..., str], *models: Loaded) -> None:
    """Prints, on the first process, what a check of models found."""
    if is_first_process() and (sentence := check(*models)):
        print(sentence, flush=True)


def load_if_there(path: Path, weights: Weights) -> Loaded | None:
    """Loads a checkpoint, unless the run has deleted it meanwhile (collective)."""
    loaded, reason = None, None
    try:
        loaded = load_source(path, weights=weights)
    except ValueError as error:
        reason = (str(error), path.exists())
    reasons = [each for each in gather_objects(reason) if each is not None]
    if not reasons:
        return loaded
    text, is_there = reasons[0]
    if is_there:
        raise ValueError(text)
    if is_first_process():
        print(f"{path.name} was deleted before it was evaluated: keep more (checkpoint.keep)")
    return None


def report(
    loaded: Loaded, suite: Suite, options: Any, device: torch.device, out: Path | None = None
) -> dict[str, float]:
    """Evaluates; the first process prints and writes the results (to `out`, if it is given)."""
    folder = results_folder(loaded.run_dir, loaded.name)
    # Read first: a baseline that is not there should not be noticed after hours.
    baseline = options.baseline and baseline_outcomes(options.baseline, suite.name)
    outcomes: dict[str, Outcomes] = {}
    details: dict[str, Detail] = {}
    results = evaluate_loaded(
        loaded,
        suite,
        batch_size=options.batch_size,
        device=device,
        prompts=options.prompts or folder / "prompts",
        outcomes=outcomes,
        details=details,
    )
    if not is_first_process():
        return results
    file = results_file(suite.name, loaded.step, loaded.weights)
    path: Path = out or options.out or folder / file
    bounds, compared = write_results(path, loaded, suite.name, results, outcomes, details, baseline)
    sets = [images for task in suite.tasks.values() for images in task.image_sets()]
    notes = dict.fromkeys(images.note for images in sets)
    print(*filter(None, notes), table(results, bounds), sep="\n")
    if baseline is not None:
        print(comparison_table(compared, str(baseline[0])))
    step = "" if loaded.step is None else f", step {loaded.step}"
    print(f"{loaded.run_dir or loaded.name}{step}: written to {path}", flush=True)
    write_page(path, str(loaded.run_dir or loaded.name))
    return results


def write_page(path: Path, name: str) -> None:
    """Draws results beside their file, if there are curves or texts among them."""
    record = json.loads(path.read_text(encoding="utf-8"))
    if not has_page(record):
        return
    if find_spec("matplotlib") is None or find_spec("jinja2") is None:
        print("its curves are drawn where the extra `report` is installed (matplotlib, jinja2)")
        return
    page = path.with_suffix(".html")
    write_whole(page, render_results(record, name))
    print(f"drawn in {page}", flush=True)


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


def table(results: Mapping[str, float], bounds: Mapping[str, Interval] | None = None) -> str:
    """One line a task and group, one column a measure; shares are shown in percent.

    Args:
        results: measures by name.
        bounds: 95% intervals of some of them, over test items.
    """
    bounds = bounds or {}
    rows: dict[str, list[str]] = {}
    for name, value in results.items():
        task, _, measure = name.rpartition("/")
        text = f"{base_of(measure)} {show(measure, value)}"
        if name in bounds:
            text += f" [{', '.join(number(measure, bound) for bound in bounds[name])}]"
        rows.setdefault(task, []).append(text)
    width = max(map(len, rows))
    return "\n".join(f"{task:<{width}}  {'   '.join(cells)}" for task, cells in rows.items())


def comparison_table(compared: Mapping[str, Comparison], baseline: str) -> str:
    """One line a measure: both values, their difference with its interval, and p."""
    if not compared:
        return f"no measure was taken on the same items as those of {baseline}"
    width = max(map(len, compared))
    lines = [f"less {baseline}, on the same items; p corrected for {len(compared)} measures:"]
    for name, each in compared.items():
        low, high = (show_difference(name, bound) for bound in each.interval)
        p = "< 0.001" if each.p < 0.001 else f"{each.p:.3f}"
        values = f"{show(name, each.ours)} - {show(name, each.theirs)}"
        lines.append(
            f"{name:<{width}}  {values} = {show_difference(name, each.difference)} "
            f"[{low}, {high}]  p {p}"
        )
    return "\n".join(lines)
