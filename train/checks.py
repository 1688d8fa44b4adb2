"""Checks of numbers in the configuration."""


def at_least(name: str, value: float, lowest: float, remark: str = "") -> None:
    """Refuses a number that is too low, by its key in the configuration."""
    if value < lowest:
        remark = remark and f" ({remark})"
        raise ValueError(f"{name} is {value}: it must be >= {lowest}{remark}")
