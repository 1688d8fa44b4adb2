"""What the name of a measure says: its unit, and whether less is better.

In: `SUITE/TASK/MEASURE`, or the measure alone. A measure is a share, shown in percent, unless its
name ends with a dot and a unit: `uniformity.nats`. Of measures with a unit none is better.
"""

# Last words of measures of which less is better.
LOWER_IS_BETTER = ("error", "drop", "gap", "fpr95", "success")


def unit_of(name: str) -> str:
    """Returns the unit of a measure; "" for a share.

    >>> unit_of("icons/geometry_v1.0/uniformity.nats"), unit_of("icons/zeroshot/top1")
    ('nats', '')
    """
    return name.rpartition("/")[2].rpartition(".")[2] if "." in name.rpartition("/")[2] else ""


def base_of(name: str) -> str:
    """Returns a measure's name without its unit."""
    unit = unit_of(name)
    return name.removesuffix(f".{unit}") if unit else name


def show(name: str, value: float) -> str:
    """Returns a value as text.

    >>> show("top1", 0.125), show("uniformity.nats", -3.14159)
    ('12.5%', '-3.142 nats')
    """
    unit = unit_of(name)
    return f"{number(name, value)} {unit}" if unit else f"{number(name, value)}%"


def number(name: str, value: float) -> str:
    """Returns a value as `show` does, without its unit or percent sign."""
    return f"{value:.4g}" if unit_of(name) else f"{100 * value:.1f}"


def show_difference(name: str, value: float) -> str:
    """Returns a difference with its sign: of shares in points, of others in their unit."""
    return f"{value:+.3g}" if unit_of(name) else f"{100 * value:+.1f}"


def lower_is_better(name: str) -> bool:
    """Whether the smallest value is the best."""
    return name.rpartition("/")[2].rpartition("_")[2] in LOWER_IS_BETTER
