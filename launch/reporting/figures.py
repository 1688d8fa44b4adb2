"""Draws a panel as inline SVG.

Colours are names of CSS variables and the text has no font, so that the page's light and dark
styles apply to both. Identifiers start with the panel's prefix, since a page has several drawings.
matplotlib comes with the extra `report`.
"""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from .panels import Line, Panel

NUM_COLOURS = 8
DASHES = ("-", (0, (4, 1.5)), (0, (1.2, 1.2)), (0, (5, 1.5, 1.2, 1.5)))
NUM_POINTS = 400  # drawn per curve; more are not visible at this size
NUM_POINTS_A_PANEL = 1_200
SMOOTHING = 15  # drawn points of a noisy curve averaged into its strong line

# matplotlib needs real colours; these stand for CSS variables and are replaced in the output.
INK, MUTED, GRID = "#010101", "#020202", "#030303"
NAMES = {INK: "var(--ink)", MUTED: "var(--muted)", GRID: "var(--grid)"}
SERIES = [f"#0a00{index + 1:02x}" for index in range(NUM_COLOURS)]
NAMES |= {stand_in: f"var(--series-{index + 1})" for index, stand_in in enumerate(SERIES)}


def draw(panel: Panel, prefix: str) -> str:
    """Returns the panel as an `<svg>` element whose identifiers all start with `prefix`."""
    with drawing((5.4, 2.6), (0.1, 0.165, 0.88, 0.8), prefix) as (figure, axes):
        for line in panel.lines:
            _plot(axes, panel, line, min(NUM_POINTS, NUM_POINTS_A_PANEL // len(panel.lines)))
        _dress(axes, panel)
        return svg_of(figure, prefix, f"{panel.title}, {panel.note}")


@contextmanager
def drawing(
    size: tuple[float, float], frame: tuple[float, float, float, float], prefix: str
) -> Iterator[tuple[Any, Any]]:
    """Yields an empty figure and its axes.

    Args:
        size: in inches.
        frame: left, bottom, width and height of the axes, as shares of the figure.
        prefix: of its identifiers.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError(
            "the report's curves need matplotlib, which is not installed; "
            "run `pip install -e '.[report]'` in Counterpoint's folder"
        ) from None

    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": prefix, "font.size": 9}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=size, facecolor="none")
        yield figure, figure.add_axes(frame, facecolor="none")


def svg_of(figure: Any, prefix: str, label: str) -> str:
    """Returns a figure as an `<svg>` element; `label` is what it is called aloud."""
    out = io.StringIO()
    # Without a date and a creator the drawing is a function of the numbers alone.
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return _inline(out.getvalue(), prefix, label)


def thin(x: np.ndarray, y: np.ndarray, num_points: int) -> tuple[np.ndarray, np.ndarray]:
    """Averages neighbours to at most `num_points` points; NaN where all are NaN."""
    if len(x) <= num_points:
        return x, y
    edges = np.linspace(0, len(x), num_points + 1).astype(int)[:-1]
    finite = np.isfinite(y)
    counts = np.add.reduceat(finite.astype(float), edges)
    sums = np.add.reduceat(np.where(finite, y, 0.0), edges)
    sizes = np.diff(np.r_[edges, len(x)])
    means = np.divide(sums, counts, out=np.full(num_points, np.nan), where=counts > 0)
    return np.add.reduceat(x, edges) / sizes, means


def smooth(y: np.ndarray, width: int) -> np.ndarray:
    """Returns a centred running mean of `width` points, fewer at both ends, without NaN."""
    half = width // 2
    finite = np.isfinite(y)
    sums = np.r_[0, np.cumsum(np.where(finite, y, 0.0))]
    counts = np.r_[0, np.cumsum(finite)]
    index = np.arange(len(y))
    reach = np.minimum(half, np.minimum(index, len(y) - 1 - index))
    low, high = index - reach, index + reach + 1
    num = counts[high] - counts[low]
    means = np.divide(sums[high] - sums[low], num, out=np.full(len(y), np.nan), where=num > 0)
    return np.where(finite, means, np.nan)


def _plot(axes, panel: Panel, line: Line, num_points: int) -> None:
    colour = SERIES[line.colour % NUM_COLOURS]
    dash = DASHES[line.colour // NUM_COLOURS % len(DASHES)]
    x, y = thin(line.x, line.y, num_points)
    if panel.grain == "sparse":
        mark = {"marker": "o", "markersize": 4 if len(x) <= 30 else 0}
        axes.plot(x, y, color=colour, linestyle=dash, linewidth=1.8, clip_on=False, **mark)
        return
    if panel.grain == "exact" or len(x) < 4 * SMOOTHING:
        mark = {"marker": "o", "markersize": 3 if len(x) <= 3 else 0}
        axes.plot(x, y, color=colour, linestyle=dash, linewidth=1.6, **mark)
        return
    axes.plot(x, y, color=colour, linewidth=0.8, alpha=0.28)
    axes.plot(x, smooth(y, SMOOTHING), color=colour, linestyle=dash, linewidth=1.7)


def dress(axes: Any, grid: str) -> None:
    """Leaves of a frame the bottom alone, and draws the grid of `x`, `y` or `both` axes."""
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(MUTED)
    axes.tick_params(length=0, colors=MUTED, pad=5)
    axes.grid(axis=grid, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)


def _dress(axes, panel: Panel) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    dress(axes, "y")
    axes.set_xlabel(panel.x_label, color=MUTED, labelpad=3)
    axes.margins(x=0.02)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: brief(value)))
    values = np.concatenate([line.y[np.isfinite(line.y)] for line in panel.lines] or [[]])
    if panel.scale == "share":
        _share_axis(axes, values.max(initial=0.0))
        return
    if panel.scale == "spiky" and len(values) and 0 < 50 * values.min() < values.max():
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        low, high = axes.get_ylim()
        # A flat curve would otherwise be magnified until rounding errors look like events.
        if high - low < 1e-3 * max(abs(low), abs(high)):
            axes.set_ylim(min(0.0, 2 * low), max(2 * high, 1e-6))
        axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: brief(value)))


def _share_axis(axes, largest: float) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    top = max(largest * 1.08, 0.02)
    axes.set_ylim(0, min(top, 1.0) if largest <= 1 else top)
    digits = 0 if top >= 0.05 else 1
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.{digits}f}%"))


def brief(value: float) -> str:
    """Returns a tick's number in few characters: 1500 -> 1.5k, 0.05 -> 0.05, 0.0005 -> 5e-4."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.4g}{unit}"
    if value and abs(value) < 1e-2:
        digits, exponent = f"{value:.2e}".split("e")
        return f"{float(digits):g}e{int(exponent)}"
    return f"{value:.4g}"


def _inline(svg: str, prefix: str, label: str) -> str:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # Styles would apply to the entire page.
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)
    # Inside HTML the namespaces are implied, and the page must contain no address.
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}-\1)", svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{prefix}-\1"', svg)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]+", r"font-size: \1px", svg)
    for stand_in, name in NAMES.items():
        svg = svg.replace(stand_in, name)
    words = label.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    return svg.replace("<svg", f'<svg role="img" aria-label="{words}"', 1).strip()
