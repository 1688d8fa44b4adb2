"""Compares every figure that a `found` text quotes with the results of the runs it speaks of.

In: a method's text, the records of its runs, of those it is compared with, and of those `beside`.
Out: the figures that no result gives. A figure is a number with a decimal point, a percent sign, a
thousands separator, or one that counts points, times or seconds; `12, 13 and 14%` are three. It is
right if, rounded as it is written, it is a measure of one seed or the mean or deviation over seeds;
if it is signed or counts points, the difference of a claim's two runs, of one seed or the mean; if
it counts times, the ratio of their costs; else a logged loss, norm or scale, a number of pairs, a
time, or a setting. What comes from elsewhere stands under `elsewhere`, with its source: a page of
the documentation, or the section of one that is named, must have it, too.
"""

import math
import re
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...reporting.runs import is_evaluation, show
from .records import Record, busy_seconds, value
from .tables import Results, slug
from .texts import Method

NUMBER = re.compile(
    r"(?<![\w.,/@^-])(?<!exp\()(?P<sign>[+-]?)(?P<digits>\d[\d,]*(?:\.\d+)?(?:e-?\d+)?)(?!\w)"
)
UNIT = re.compile(r"(%|\s+points?\b|\s+times\b|\s+s\b)")
# What stands between numbers that share the unit behind the last of them.
JOINED = re.compile(r"(%?,? (to|and|or|against|of) |, )")
LOGGED = ("loss", "grad_norm", "logit_scale", "mean_cosine", "spread")


@dataclass(frozen=True)
class Figure:
    """A number in a text: as it is written, its value, its unit, and what its last digit counts."""

    text: str
    value: float
    unit: str
    step: float
    signed: bool

    def equals(self, other: float) -> bool:
        """Whether it is `other`, rounded."""
        return abs(self.value - other) <= 0.5001 * self.step


@dataclass
class Known:
    """What the results say: shares in percent, differences in points, and so on."""

    shares: list[float] = field(default_factory=list)
    differences: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    counts: list[float] = field(default_factory=list)
    plain: list[float] = field(default_factory=list)
    settings: set[float] = field(default_factory=set)

    def has(self, figure: Figure) -> bool:
        """Whether the results give a figure."""
        if figure.unit == "" and figure.value in self.settings:
            return True
        return any(figure.equals(each) for each in self.candidates(figure))

    def candidates(self, figure: Figure) -> Iterable[float]:
        """Returns the numbers that it may be."""
        if figure.unit == "points" or figure.signed:
            return [*self.differences, *(() if figure.signed else map(abs, self.differences))]
        if figure.unit in ("times", "s"):
            return self.ratios if figure.unit == "times" else self.seconds
        if figure.unit == "%":
            return self.shares
        if "," in figure.text:
            return self.counts
        return [*self.shares, *self.plain]


def unsupported(found: Results, method: Method, docs: Path) -> list[str]:
    """Returns a sentence for each figure of a method's text that is not supported.

    Args:
        found: all results.
        method: whose text is read.
        docs: the folder where sources among the documentation's files are.
    """
    quoted = figures(method.found)
    texts = {figure.text for figure in quoted}
    told = []
    for source, listed in method.elsewhere.items():
        content = _page(docs, source)
        for text in listed:
            if text not in texts:
                told.append(f"{text} is listed under elsewhere and not in the text")
            elif content is not None and text.rstrip("%") not in content:
                told.append(f"{text} is not in {source}")
    elsewhere = {text for listed in method.elsewhere.values() for text in listed}
    known = known_of(found, method)
    told += [
        f"{figure.text}{'' if figure.unit in ('', '%') else ' ' + figure.unit} is no figure of "
        "its runs' results"
        for figure in quoted
        if figure.text not in elsewhere and not known.has(figure)
    ]
    return [f"{method.stem}.yaml: {each}" for each in dict.fromkeys(told)]


def _page(docs: Path, source: str) -> str | None:
    """Returns a source of figures, `PAGE` or `PAGE#SECTION`; None: it is no page."""
    name, _, anchor = source.partition(" ")[0].removeprefix("docs/").partition("#")
    if not (docs / name).is_file():
        return None
    content = (docs / name).read_text(encoding="utf-8")
    sections = re.split(r"^#+ (?=.)", content, flags=re.M)
    named = [part for part in sections if slug(part.partition("\n")[0]) == anchor]
    return "".join(named) if anchor else content


def figures(text: str) -> list[Figure]:
    """Returns the figures of a text, in their order."""
    numbers = list(NUMBER.finditer(text))
    units = []
    for i, number in enumerate(numbers):
        after = UNIT.match(text, number.end())
        units.append(after[1].strip().rstrip("s") if after else "")
        units[i] = {"point": "points", "time": "times", "": units[i]}.get(units[i], units[i])
        if after and after[1].strip() == "s":
            units[i] = "s"
    for i in reversed(range(len(numbers) - 1)):
        between = text[numbers[i].end() : numbers[i + 1].start()]
        if not units[i] and JOINED.fullmatch(between):
            units[i] = units[i + 1]
    found = []
    for number, unit in zip(numbers, units, strict=True):
        digits = number["digits"].rstrip(",")
        if not (unit or number["sign"] or re.search(r"[.e]|,\d{3}", digits)):
            continue
        mantissa, _, exponent = digits.replace(",", "").partition("e")
        step = 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2]))
        sign = -1 if number["sign"] == "-" else 1
        text_of = number["sign"] + digits + ("%" if unit == "%" else "")
        plain = sign * float(digits.replace(",", ""))
        found.append(Figure(text_of, plain, unit, step, bool(number["sign"])))
    return found


def known_of(found: Results, method: Method) -> Known:
    """Returns what the results of a method's runs say."""
    claimed = [(claim.run, claim.against) for claim in method.claims]
    runs = dict.fromkeys([*method.runs, *(b for _, b in claimed), *method.beside])
    known = Known()
    for run in runs:
        records = found.records.get(run, [])
        _add_shares(known, found, method, run, records)
        for record in records:
            known.seconds += [record["seconds"], record.get("cpu_seconds") or math.nan]
            known.counts.append(record["samples"])
            known.plain += [*_logged(record), record.get("epochs") or math.nan]
            known.settings |= set(_settings(record))
    for ours, theirs in dict.fromkeys(claimed):
        mine, other = found.records.get(ours, []), found.records.get(theirs, [])
        if mine and other:
            _add_differences(known, found, method, mine, other)
            costs = [statistics.median(map(_cost, records)) for records in (mine, other)]
            totals = [statistics.fmean(map(busy_seconds, records)) for records in (mine, other)]
            pairs = [statistics.fmean(r["samples"] for r in records) for records in (mine, other)]
            known.ratios += [a / b for a, b in (costs, totals, pairs)]
    return known


def _add_shares(
    known: Known, found: Results, method: Method, run: str, records: Sequence[Record]
) -> None:
    for measure in found.choices(method, run):
        scores = [s for record in records if (s := value(measure, record)) is not None]
        if not scores:
            continue
        all_of_it = [*scores, statistics.fmean(scores)]
        if show(measure.metrics[0], scores[0]).endswith("%"):
            known.shares += [100 * each for each in all_of_it]
        else:
            known.plain += all_of_it
        if len(scores) > 1 and is_evaluation(measure.metrics[0]):
            known.shares.append(100 * statistics.stdev(scores))
            known.differences.append(100 * statistics.stdev(scores))


def _add_differences(
    known: Known, found: Results, method: Method, ours: Sequence[Record], theirs: Sequence[Record]
) -> None:
    pairs = [(a, b) for a in ours for b in theirs if a["seed"] == b["seed"]]
    for measure in found.choices(method, f"{ours[0]['sweep']}/{ours[0]['run']}"):
        scores = [(value(measure, a), value(measure, b)) for a, b in pairs]
        by_seed = [100 * (a - b) for a, b in scores if a is not None and b is not None]
        if by_seed:
            known.differences += [*by_seed, statistics.fmean(by_seed)]


def _cost(record: Record) -> float:
    return busy_seconds(record) / record["samples"]


def _logged(record: Record) -> Iterator[float]:
    for name, each in record["final"].items():
        if name.partition("/")[0] in LOGGED and isinstance(each, int | float):
            yield float(each)


def _settings(record: Record) -> Iterator[float]:
    values: Mapping[str, Any] = record["identity"]["values"]
    for each in values.values():
        if isinstance(each, float):
            yield each
