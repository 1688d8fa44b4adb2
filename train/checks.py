"""Checks of numbers in the configuration."""


def at_least(name: str, value: float, lowest: float, remark: str = "") -> None:
    """Refuses a number that is too low.

    Args:
        name: the number's key in the configuration.
        value: the number.
        lowest: lowest valid value.
        remark: added to the message.

    Raises:
        ValueError: `value` is below `lowest`.
    """
    if value < lowest:
        remark = remark and f" ({remark})"
        raise ValueError(f"{name} is {value}: it must be >= {lowest}{remark}")
