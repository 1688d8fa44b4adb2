"""Facts of runs for the report: date, machine, code and data of each."""

import re
import shlex
from collections.abc import Callable
from typing import Any

from .runs import Run
from .tables import Row, precision_of

AUTO = re.compile(r"precision: \S+ \(auto: (.*)\)")


def origin(runs: list[Run]) -> list[Row]:
    """Returns one row a fact, without those that no run has."""
    rows = [Row(key, title, [make(run) for run in runs]) for key, title, make in FACTS]
    return [row for row in rows if any(cell != "-" for cell in row.cells)]


def million(count: float) -> str:
    """Returns a number of parameters or pairs in short: `7.81 M`, `400 M`, `1.28 G`."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= limit:
            return f"{count / limit:.3g} {unit}"
    return f"{count:,.0f}"


def _date(run: Run) -> str:
    if not run.starts:
        return _minute(run.summary.get("date"))
    times = [_minute(start.get("time")) for start in run.starts]
    ended = _minute(run.summary.get("date"))
    day = times[0].partition(" ")[0]
    if ended not in ("-", times[0]):
        begun = times[0].removesuffix(" UTC")
        times[0] = f"{begun} to {ended.removeprefix(day + ' ')}"
    num_starts = len(times) - max(len(_first_steps(run)) - 1, 0)  # a stage that follows is none
    return times[0] + (f", {num_starts} starts" if num_starts > 1 else "")


def _stages(run: Run) -> str:
    stages = _first_steps(run).items()
    return ", ".join(f"{name} from step {step + 1:,}" for name, step in stages) or "-"


def _first_steps(run: Run) -> dict[str, int]:
    """Returns the steps that were done when each stage began."""
    steps: dict[str, int] = {}
    for start in run.starts:
        if "stage" in start:
            steps.setdefault(start["stage"], start["step"])
    return steps


def _minute(time: Any) -> str:
    return f"{str(time)[:16].replace('T', ' ')} UTC" if time else "-"


def _machine(run: Run) -> str:
    machine = run.facts.get("machine")
    if not machine:
        return "-"
    processes = run.facts.get("world_size", 1)
    accelerators = machine.get("accelerators") or []
    if accelerators and run.facts.get("device") != "cpu":
        kinds = ", ".join(dict.fromkeys(accelerators))
        return f"{processes} \u00d7 {kinds}"
    several = f", {processes} processes" if processes > 1 else ""
    return f"{machine.get('cpu', 'CPU')}, {machine.get('cores', '?')} cores{several}"


def _host(run: Run) -> str:
    host, nodes = run.facts.get("host"), run.facts.get("nodes") or 1
    return "-" if not host else f"{host} and {nodes - 1} more" if nodes > 1 else str(host)


def _code(run: Run) -> str:
    code = run.facts.get("code") or {}
    if not code.get("revision"):
        return "-"
    changed = code.get("changes")
    dirty = f", changed ({changed})" if changed else ", changed" if code.get("dirty") else ""
    return f"{code['revision'][:12]}{dirty}"


def _command(run: Run) -> str:
    words = run.facts.get("command")
    if not words:
        return "-"
    return shlex.join([str(words[0]).rsplit("/", 1)[-1], *map(str, words[1:])])


def _parameters(run: Run) -> str:
    counts = run.facts.get("parameters")
    if not counts:
        return "-"
    frozen = counts["total"] - counts["trainable"]
    learning = f"{million(counts['trainable'])} trainable" if frozen else "all trainable"
    return (
        f"{million(counts['total'])} (image {million(counts['image'])}, "
        f"text {million(counts['text'])}), {learning}"
    )


def _data(run: Run) -> str:
    size = run.facts.get("epoch_size")
    return f"{size:,} pairs" if size else "-"


def _precision(run: Run) -> str:
    log = run.folder / "log.txt"
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    chosen = AUTO.search(text)
    return precision_of(run) + (f", chosen by auto: {chosen[1]}" if chosen else "")


def _skipped(run: Run) -> str:
    counts = [value for name, value in run.final.items() if name.startswith("errors/")]
    left_out = [run.final.get(f"guard/{name}", 0) for name in ("nonfinite", "spikes")]
    texts = [f"{sum(counts):,.0f} samples"] if sum(counts) else []
    texts += [f"{sum(left_out):,.0f} steps"] if sum(left_out) else []
    return " and ".join(texts) or ("none" if run.rows else "-")


def _warnings(run: Run) -> str:
    logs = sorted(run.folder.glob("log*.txt"))
    if not logs:
        return "-"
    counts = {log.name: log.read_text(errors="replace").count("Warning: ") for log in logs}
    return ", ".join(f"{n:,} in {name}" for name, n in counts.items() if n) or "none"


def _loggers(run: Run) -> str:
    return ", ".join(f"{name} {identity}" for name, identity in run.loggers.items()) or "-"


FACTS: list[tuple[str, str, Callable[[Run], str]]] = [
    ("date", "Date", _date),
    ("machine", "Machine", _machine),
    ("host", "Host", _host),
    ("precision", "Precision", _precision),
    ("parameters", "Parameters", _parameters),
    ("epoch_size", "Training set", _data),
    ("stages", "Stages", _stages),
    ("skipped", "Left out", _skipped),
    ("warnings", "Warnings", _warnings),
    ("code", "Commit", _code),
    ("loggers", "Also logged to", _loggers),
    ("command", "Command", _command),
]
