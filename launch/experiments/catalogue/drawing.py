"""Draws points and curves over two axes as a small SVG file of its own.

In: series and names of axes. Out: text, the same for the same numbers on every machine, which a
plotting library does not promise from one version to the next: a test compares these files. The
ground is part of the drawing and follows the reader's light or dark scheme, shapes stand beside
colours (Okabe and Ito's, which colour-blind people tell apart), and curves are named at their end.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape

STYLE = """
svg{--page:#fff;--ink:#1b1c1e;--muted:#5c6066;--grid:#e4e4e0;--blue:#0072b2;--orange:#c85200;--grey:#74787e;--green:#00795a;--purple:#a3568a}
@media(prefers-color-scheme:dark){svg{--page:#1d2024;--ink:#ececea;--muted:#a8acb3;--grid:#343940;--blue:#56b4e9;--orange:#ee8a4a;--grey:#a0a4aa;--green:#2fc29a;--purple:#d891bd}}
text{font:12px system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif;fill:var(--ink)}
.m{fill:var(--muted)}.e{text-anchor:end}.c{text-anchor:middle}.t{font-size:13px;font-weight:600}
.g{stroke:var(--grid)}.l{stroke:var(--muted);stroke-width:.6;opacity:.6}
path,line{fill:none}
"""
COLOURS = ("ink", "blue", "orange", "grey", "green", "purple")
SHAPES = ("diamond", "circle", "triangle", "square", "ring", "cross")
LINE_HEIGHT = 14.0
NUM_TICKS = 6
SIZE = 4.5  # half of a marker's width


@dataclass(frozen=True)
class Series:
    """One run.

    Attributes:
        name: at its end.
        curves: points (x, y) of each seed on the way; none: only the end is known.
        ends: the last point of each seed.
        colour: one of `COLOURS`.
        shape: one of `SHAPES`, of the mean of the ends.
    """

    name: str
    ends: Sequence[tuple[float, float]]
    curves: Sequence[Sequence[tuple[float, float]]] = ()
    colour: str = "blue"
    shape: str = "circle"

    @property
    def end(self) -> tuple[float, float]:
        """The mean of the ends."""
        return tuple(sum(values) / len(self.ends) for values in zip(*self.ends, strict=True))  # type: ignore[return-value]


@dataclass(frozen=True)
class Axes:
    """What the x axis is called, and how numbers are written along both."""

    x: str
    show_x: Callable[[float], str]
    show_y: Callable[[float], str]
    log_x: bool = False
    zero_y: bool = True


@dataclass
class Panel:
    """A rectangle [left, top, width, height] of a drawing, with names to the right of it."""

    axes: Axes
    series: Sequence[Series]
    box: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    title: str = ""
    parts: list[str] = field(default_factory=list)

    def draw(self) -> str:
        """Returns its elements."""
        points = [p for s in self.series for p in (*s.ends, *(p for c in s.curves for p in c))]
        xs, ys = [x for x, _ in points], [y for _, y in points]
        self._x = (min(xs), max(xs)) if self.axes.log_x else (0.0, max(xs))
        low, high = min(ys), max(ys)
        self._y = (0.0 if self.axes.zero_y else low, high)
        if self._x[0] == self._x[1]:
            self._x = (self._x[0] / 2, self._x[1] * 2)
        room = 0.06 * ((self._y[1] - self._y[0]) or 1.0)
        self._y = (self._y[0] - (0.0 if self.axes.zero_y else room), self._y[1] + room)
        self._frame()
        for series in self.series:
            self._curves(series)
        for series in self.series:
            self._ends(series)
        self._names()
        return "".join(self.parts)

    def _at(self, x: float, y: float) -> tuple[float, float]:
        left, top, width, height = self.box
        low, high = self._x
        if self.axes.log_x:
            x, low, high = math.log(x), math.log(low), math.log(high)
        share = (y - self._y[0]) / (self._y[1] - self._y[0])
        # Points stand off the axes, so that markers are whole.
        return left + 8 + (width - 16) * (x - low) / (high - low), top + height * (1 - share)

    def _frame(self) -> None:
        left, top, width, height = self.box
        if self.title:
            self.parts.append(
                f'<text class="t" x="{left:g}" y="{top - 10:g}">{escape(self.title)}</text>'
            )
        for tick in ticks(*self._y):
            _, y = self._at(self._x[1], tick)
            number, right = self.axes.show_y(tick), left + width
            self.parts.append(
                f'<line class="g" x1="{left:g}" x2="{right:g}" y1="{y:.1f}" y2="{y:.1f}"/>'
                f'<text class="m e" x="{left - 6:g}" y="{y + 4:.1f}">{number}</text>'
            )
        base = top + height
        for tick in log_ticks(*self._x) if self.axes.log_x else ticks(*self._x):
            x, _ = self._at(tick, self._y[0])
            self.parts.append(
                f'<line class="g" x1="{x:.1f}" x2="{x:.1f}" y1="{base:g}" y2="{base + 4:g}"/>'
                f'<text class="m c" x="{x:.1f}" y="{base + 17:g}">{self.axes.show_x(tick)}</text>'
            )
        middle = left + width / 2
        self.parts.append(
            f'<line class="l" x1="{left:g}" x2="{left + width:g}" y1="{base:g}" y2="{base:g}"/>'
            f'<text class="m c" x="{middle:g}" y="{base + 34:g}">{escape(self.axes.x)}</text>'
        )

    def _curves(self, series: Series) -> None:
        for curve in series.curves:
            if len(curve) > 1:
                path = "L".join("{:.1f} {:.1f}".format(*self._at(*point)) for point in curve)
                self.parts.append(
                    f'<path d="M{path}" stroke="var(--{series.colour})" stroke-width="1.4" '
                    'stroke-opacity=".75"/>'
                )

    def _ends(self, series: Series) -> None:
        x, y = self._at(*series.end)
        heights = [self._at(*end)[1] for end in series.ends]
        if max(heights) - min(heights) > 2 * SIZE:
            self.parts.append(
                f'<path d="M{x:.1f} {min(heights):.1f}V{max(heights):.1f}" '
                f'stroke="var(--{series.colour})" stroke-opacity=".6"/>'
            )
        self.parts.append(marker(series.shape, series.colour, x, y))

    def _names(self) -> None:
        left, top, width, height = self.box
        ordered = sorted(self.series, key=lambda s: (self._at(*s.end)[1], s.name))
        wanted = [self._at(*series.end)[1] for series in ordered]
        places = spread_out(wanted, LINE_HEIGHT, top, top + height)
        for series, place in zip(ordered, places, strict=True):
            x, y = self._at(*series.end)
            start, edge = x + SIZE + 2, left + width + 14
            self.parts.append(
                f'<path class="l" d="M{start:.1f} {y:.1f}L{max(start, left + width):.1f} {y:.1f}'
                f'L{edge:g} {place:.1f}"/><text x="{edge + 3:g}" y="{place + 4:.1f}" '
                f'style="fill:var(--{series.colour})">{escape(series.name)}</text>'
            )


def svg(parts: Sequence[str], width: float, height: float, label: str) -> str:
    """Returns a whole SVG file; `label` is what it is called aloud."""
    words = escape(label, quote=True)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" '
        f'width="{width:g}" height="{height:g}" role="img" aria-label="{words}">'
    )
    ground = f'<rect width="{width:g}" height="{height:g}" rx="6" style="fill:var(--page)"/>'
    return f"{head}<style>{STYLE.strip()}</style>{ground}{''.join(parts)}</svg>\n"


def legend(entries: Sequence[tuple[str, str, str]], x: float, y: float) -> str:
    """Returns names beside their markers in one line: (name, shape, colour) each."""
    parts = []
    for name, shape, colour in entries:
        parts.append(marker(shape, colour, x, y - 4))
        parts.append(f'<text class="m" x="{x + 10:g}" y="{y:g}">{escape(name)}</text>')
        x += 28 + 6.4 * len(name)
    return "".join(parts)


def marker(shape: str, colour: str, x: float, y: float) -> str:
    """Returns a marker with its centre at a point."""
    s, fill = SIZE, f'style="fill:var(--{colour})"'
    if shape == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{s - 0.5:g}" {fill}/>'
    outline = f'style="fill:var(--page);stroke:var(--{colour});stroke-width:1.5"'
    if shape == "ring":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{s - 1:g}" {outline}/>'
    steps = {
        "diamond": f"m0 {-s - 1:g}l{s + 1:g} {s + 1:g}l{-s - 1:g} {s + 1:g}l{-s - 1:g} {-s - 1:g}z",
        "triangle": f"m0 {-s:g}l{s:g} {1.8 * s:g}h{-2 * s:g}z",
        "square": f"m{-s + 0.5:g} {-s + 0.5:g}h{2 * s - 1:g}v{2 * s - 1:g}h{1 - 2 * s:g}z",
        "cross": f"m{-s:g} {-s:g}l{2 * s:g} {2 * s:g}m0 {-2 * s:g}l{-2 * s:g} {2 * s:g}",
    }
    drawn = outline.replace("fill:var(--page);", "") if shape == "cross" else fill
    return f'<path d="M{x:.1f} {y:.1f}{steps[shape]}" {drawn}/>'


def spread_out(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Returns rising places at least `gap` apart, near those wanted (rising), from `low` on.

    Neighbours that are too close are moved together, around their mean.
    """
    groups: list[list[float]] = []  # of each: sum of what its members want for it, and their number
    for place in wanted:
        groups.append([place, 1])
        while len(groups) > 1:
            (total, size), (other, count) = groups[-2:]
            top = total / size - gap * (size - 1) / 2
            if top + gap * size <= other / count - gap * (count - 1) / 2:
                break
            groups[-2:] = [[total + other, size + count]]
    places: list[float] = []
    for total, size in groups:
        top = total / size - gap * (size - 1) / 2
        places += [top + gap * i for i in range(int(size))]
    for i, place in enumerate(places):
        places[i] = max(place, places[i - 1] + gap if i else low)
    for i in reversed(range(len(places))):
        limit = places[i + 1] - gap if i + 1 < len(places) else high
        places[i] = min(places[i], limit)
    return places


def ticks(low: float, high: float) -> list[float]:
    """Returns about six round numbers from `low` to `high`."""
    rough = (high - low) / NUM_TICKS
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * k for k in (1, 2, 5, 10) if unit * k >= rough)
    first = math.ceil(low / step - 1e-9)
    return [step * k for k in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Returns 1, 2 and 5 times powers of ten from `low` to `high`; more over a short way."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if high > 20 * low else (1, 1.5, 2, 3, 5, 7)
    found = [factor * 10.0**power for power in powers for factor in factors]
    return [tick for tick in found if low * 0.999 <= tick <= high * 1.001]
