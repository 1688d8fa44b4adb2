"""Panels of the report: the curves of each figure, their order and titles.

One run: curves of one kind share a panel (R@1, R@5 and R@10 of one direction). Several runs: one
panel a metric and one colour a run, the same in every panel. Of many runs those that end best are
drawn at first.
"""

import re
from dataclasses import dataclass, field

import numpy as np

from ...train.evaluation.measures import base_of, unit_of
from ..run.means import WEIGHTED_BY
from .repeats import constants, repeated
from .runs import Run, is_evaluation, is_share, show

MANY = 5  # more runs than these are rows of a table, not columns
NUM_DRAWN = 8  # of many runs; more colours are not distinguishable
# Logged by training, the most important first: title, what the numbers are, scale, grain.
TRAINING = {
    "loss": ("Loss", "optimised value, mean over ranks", "linear", "noisy"),
    "logit_scale": ("Logit scale", "multiplies the similarities", "linear", "exact"),
    "lr": ("Learning rate", "of the phase; groups take multiples of it", "linear", "exact"),
    "grad_norm": ("Gradient norm", "before clipping", "spiky", "noisy"),
    "mean_cosine/image": ("Alike images", "mean cosine of different samples", "linear", "noisy"),
    "mean_cosine/text": ("Alike texts", "mean cosine of different samples", "linear", "noisy"),
    "pairs_per_s": ("Throughput", "pairs per second, all ranks", "linear", "noisy"),
    "flops_per_pair": ("Compute", "FLOPs a pair, forward and backward", "linear", "noisy"),
    "mfu": ("Utilisation", "the towers' FLOPs, of the device's peak", "share", "noisy"),
    "data_wait": ("Waiting for data", "share of the step's time", "share", "noisy"),
    "peak_memory_gib": ("Peak memory", "GiB, of the rank that needs most", "linear", "exact"),
}
UNDRAWN = (
    *("samples", "steps", "seconds", "epoch", "collapsed"),
    *("data_wait_max_rank", "forward_seconds_max_rank"),
)
RECALL = re.compile(r"(?P<direction>\w+?)_?recall@(?P<rank>\d+)")
DIRECTIONS = {"image_to_text": "image to text", "text_to_image": "text to image"}


@dataclass(frozen=True)
class Line:
    """One curve.

    Attributes:
        final: the number in the legend; `final_is` is "last" or "mean".
        x: points on the panel's axis.
        steps: the same points in steps, which the page converts to other axes.
        run: index of its run.
    """

    label: str
    final: str
    final_is: str
    x: np.ndarray
    y: np.ndarray
    colour: int
    steps: np.ndarray
    run: int


@dataclass
class Panel:
    """One figure: a title, a line of explanation, and curves over the same axis."""

    title: str
    note: str
    x_label: str
    scale: str  # "share" (percent), "linear", or "spiky" (logarithmic if the range is wide)
    grain: str  # "noisy" (a running mean helps), "exact", or "sparse" (few points, marked)
    lines: list[Line] = field(default_factory=list)


def training_panels(runs: list[Run]) -> list[Panel]:
    """Returns panels of training metrics, without those that no run has."""
    terms = [name for name in all_metrics(runs) if name.startswith("loss/")]
    titles = dict(TRAINING)
    if len(terms) > 1:
        titles |= {
            name: (f"Loss term: {name[5:]}", "raw value", "linear", "noisy") for name in terms
        }
    # Readers expect the throughput, even a constant one.
    flat = {each.name for each in constants(runs, list(titles))} - {"loss", "pairs_per_s"}
    panels = [_by_run(runs, name, *titles[name]) for name in titles if name not in flat]
    return [panel for panel in panels if panel.lines]


def flat_metrics(runs: list[Run]) -> list[str]:
    """Returns `name value` of every logged metric that never changed."""
    left_out = {"loss", "pairs_per_s", *UNDRAWN, *evaluation_metrics(runs)}
    names = [
        name
        for name in all_metrics(runs)
        if name not in left_out and not name.startswith("errors/")
    ]
    return [f"{each.name} {each.text}" for each in constants(runs, names)]


def evaluation_panels(runs: list[Run]) -> list[Panel]:
    """Returns panels of zero-shot and retrieval results, equal ones once."""
    metrics = distinct_metrics(runs)
    if len(runs) > 1:
        return [_by_run(runs, n, title_of(n), n, _scale(n), "sparse") for n in metrics]
    groups: dict[tuple[str, str], list[str]] = {}
    for name in metrics:
        groups.setdefault(_group_of(name), []).append(name)
    return [_by_metric(runs[0], names, title, note) for (title, note), names in groups.items()]


def other_panels(runs: list[Run]) -> list[Panel]:
    """Returns panels of every other logged metric."""
    shown = {*TRAINING, *UNDRAWN, *evaluation_metrics(runs)}
    rest = [
        m for m in all_metrics(runs) if m not in shown and not m.startswith(("errors/", "loss/"))
    ]
    flat = {each.name for each in constants(runs, rest)}
    panels = [_by_run(runs, n, n, "", "linear", "noisy") for n in rest if n not in flat]
    return [panel for panel in panels if panel.lines]


def drawn_first(runs: list[Run]) -> list[int]:
    """Returns the indices of the runs to draw: all of a few, the best of many."""
    if len(runs) <= MANY:
        return list(range(len(runs)))
    metric = chosen_by(runs)

    def rank(index: int) -> float:
        value = runs[index].final.get(metric or "")
        return -value if value is not None and value == value else np.inf

    return sorted(range(len(runs)), key=rank)[:NUM_DRAWN]


def chosen_by(runs: list[Run]) -> str | None:
    """Returns the metric that ranks many runs: the first evaluation result."""
    return next(iter(evaluation_metrics(runs)), None)


def distinct_metrics(runs: list[Run]) -> list[str]:
    """Returns evaluation results, without those that repeat another one in every row."""
    metrics = evaluation_metrics(runs)
    again = repeated(runs, metrics)
    return [name for name in metrics if name not in again]


def all_metrics(runs: list[Run]) -> list[str]:
    """Returns the metrics of all runs, in the order of first appearance."""
    return list(dict.fromkeys(name for run in runs for name in run.metrics))


def evaluation_metrics(runs: list[Run]) -> list[str]:
    """Returns names of evaluation results, `suite/task/measure`: zero-shot, then retrieval."""
    names = dict.fromkeys(name for run in runs for name in [*run.metrics, *run.final])
    metrics = [name for name in names if is_evaluation(name)]

    order = {name: index for index, name in enumerate(metrics)}

    def rank(name: str) -> tuple:
        folder, leaf = name.rsplit("/", 1)
        if _recall(name):
            return 1, _sort_key(folder), _sort_key(leaf)
        # Top-1 before means over classes; tasks stay in the suite's order.
        return 0, _sort_key(leaf if not leaf.startswith("top") else f" {leaf}"), order[name]

    return sorted(metrics, key=rank)


def title_of(metric: str) -> str:
    """Returns words for a metric's name: `emoji/x/top1` -> `Zero-shot top-1: x`."""
    parts = metric.split("/")
    recall = _recall(metric)
    if recall:
        return f"R@{recall['rank']}, {_direction(recall)}"
    task = "/".join(parts[1:-1]).replace("_", " ")
    return f"{_measure(parts[-1])}: {task}"


def _measure(leaf: str) -> str:
    """Returns `Zero-shot top-1`; of a measure that is not `ZeroShot`'s, its name in words."""
    words = re.sub(r"^top(\d+)$", r"top-\1", base_of(leaf)).replace("_", " ")
    words += f" ({unit})" if (unit := unit_of(leaf)) else ""
    if leaf.startswith(("top", "mean_per_class")):
        return f"Zero-shot {words}"
    return words[:1].upper() + words[1:]


def _recall(metric: str) -> re.Match[str] | None:
    return RECALL.fullmatch(metric.rsplit("/", 1)[-1])


def _direction(recall: re.Match[str]) -> str:
    return DIRECTIONS.get(recall["direction"], recall["direction"].replace("_", " "))


def _group_of(metric: str) -> tuple[str, str]:
    folder, leaf = metric.rsplit("/", 1)
    recall = _recall(metric)
    if recall:
        return f"Retrieval, {_direction(recall)}", f"recall within the first k, {folder}"
    return _measure(leaf), f"one curve a task, {metric.split('/')[0]}"


def _short(metric: str) -> str:
    recall = _recall(metric)
    if recall:
        return f"R@{recall['rank']}"
    return "/".join(metric.split("/")[1:-1]).replace("_", " ") or metric.rsplit("/", 1)[-1]


def _scale(metric: str) -> str:
    return "share" if is_share(metric) else "linear"


def _sort_key(metric: str) -> list[tuple[int, int, str]]:
    # Digits compare as numbers: R@5 comes before R@10.
    parts = re.findall(r"\d+|\D+", metric)
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts]


def _by_run(runs: list[Run], metric: str, title: str, note: str, scale: str, grain: str) -> Panel:
    x_label, axis = _axis(runs)
    panel = Panel(title, note, x_label, scale, grain)
    first = drawn_first(runs)
    for index, run in enumerate(runs):
        steps, values = run.series(metric)
        if len(steps):
            colour = first.index(index) if index in first else index
            line = (axis(run, steps), values, colour, steps, index)
            label = run.name if len(runs) > 1 else title
            panel.lines.append(Line(label, *_final(run, metric), *line))
    return panel


def _final(run: Run, metric: str) -> tuple[str, str]:
    if metric in WEIGHTED_BY and metric in run.means:
        return show(metric, run.means[metric]), "mean"
    return show(metric, run.final.get(metric)), "last"


def _by_metric(run: Run, metrics: list[str], title: str, note: str) -> Panel:
    x_label, axis = _axis([run])
    panel = Panel(title, note, x_label, _scale(metrics[0]), "sparse")
    for colour, metric in enumerate(metrics):
        steps, values = run.series(metric)
        line = (axis(run, steps), values, colour, steps, 0)
        panel.lines.append(Line(_short(metric), *_final(run, metric), *line))
    return panel


def _axis(runs: list[Run]):
    """Returns the axis: steps, or the pairs seen if the runs' batch sizes differ."""
    sizes = set()
    for run in runs:
        steps, samples = run.series("samples")
        sizes.add(round(samples[-1] / steps[-1]) if len(steps) and steps[-1] else None)
    if len(sizes) > 1 and None not in sizes:
        return "pairs seen", lambda run, steps: run.samples_at(steps)
    return "step", lambda run, steps: steps
