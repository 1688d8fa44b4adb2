"""Numbers of the configuration that have a lowest value."""


def at_least(name: str, value: float, lowest: float, remark: str = "") -> None:
    """Refuses a number that is too low.

    Args:
        name: Its key in the configuration.
        value: What it is.
        lowest: What it may be.
        remark: What to know besides.

    Raises:
        ValueError: It is lower.
    """
    if value < lowest:
        told = f" ({remark})" if remark else ""
        raise ValueError(f"{name} is {value}: it must be >= {lowest}{told}")
