"""The messages of jsonargparse, as one line.

Its prose is taken apart here and nowhere else; it is what is left where `diagnosis` finds nothing,
and for configurations that a program wrote.
"""

import re

MAX_LENGTH = 600
USELESS = ("Expected a <class", "Does not validate against any", "Expected a dot import path")


def shortened(message: str) -> str:
    """Returns a message of the parser as one line.

    Of a value that may be of several types it lists what is wrong with it as each of these; that it
    is of another type is of no use where it was meant to be this one.
    """
    name = re.match(r"(?:Parser key \"([^\"]*)\":)?", message)[1]  # type: ignore[index]
    if lost := re.search(r"No module named '(\w+)", message):
        fix = f"put the folder that holds {lost[1]}.py into PYTHONPATH, or install it"
        return (f"{name}: " if name else "") + f"there is no module '{lost[1]}': {fix}"
    reasons: list[str] = []
    for line in message.splitlines():
        text = line.strip()
        if text.startswith("- "):
            reasons.append(text[2:])
        elif text.startswith(("Subtypes:", "Errors:", "Given value")):
            continue
        elif reasons:
            reasons[-1] += f" {text}"
    useful = [reason for reason in reasons if not reason.startswith(USELESS)]
    if useful:
        return (f"{name}: " if name else "") + "; ".join(dict.fromkeys(useful))
    types = re.search(r"Subtypes: \[(.*)\]", message)
    given = re.search(r"Given value: (.*)", message, re.DOTALL)
    if not types or not given or not name:
        line = " ".join(message.split())
        return line if len(line) <= MAX_LENGTH else f"{line[:MAX_LENGTH]} ..."
    accepted = re.sub(r"<class '(.*?)'>", r"\1", types[1]).replace("NoneType", "null")
    return (
        f"{name} is {' '.join(given[1].split())}; it takes one of {accepted} (a list as [a, b], a "
        "class by the whole name of its class_path)"
    )
