"""Job scripts: a template with its values filled in, and given to the cluster's program if asked.

In: a commented shell script or manifest whose placeholders are `@{name}`. Out: the script, without
the lines whose value is not given.
"""

import re
import shlex
import shutil
import string
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

TEMPLATES = Path(__file__).resolve().parents[1] / "templates"


class Template(string.Template):
    """Placeholders are `@{name}`: a shell script is full of dollars."""

    delimiter = "@"


def fill(template: str, values: Mapping[str, Any], repeated: Mapping[str, Sequence[str]]) -> str:
    """Returns the script.

    Args:
        template: its file's name.
        values: by placeholder; a line with one that is None is left out.
        repeated: options that may be given several times, a line each.
    """
    lines = []
    for line in (TEMPLATES / template).read_text(encoding="utf-8").splitlines():
        names = re.findall(r"@\{(\w+)\}", line)
        if names and names[0] in repeated:
            filled = [line.replace(f"@{{{names[0]}}}", text) for text in repeated[names[0]]]
            lines += [text if text.strip() else "" for text in filled]
        elif all(values[key] is not None for key in names):
            lines.append(Template(line).substitute(values).rstrip())
    return "\n".join(lines) + "\n"


def groups(command: list[str]) -> list[str]:
    """Quoted words, an option and its value a line."""
    lines: list[str] = []
    for word in command:
        if not lines or word.startswith("--"):
            lines.append(shlex.quote(word))
        else:
            lines[-1] += f" {shlex.quote(word)}"
    return lines


def write_script(
    path: Path, text: str, log_folder: Path, command: Sequence[str] = ("sbatch",)
) -> None:
    """Writes the script that `command` submits; one that somebody has edited is left alone."""
    if path.exists() and path.read_text(encoding="utf-8") != text:
        raise ValueError(
            f"{path} is there and differs from what this command writes: submit it as it is "
            f"({shlex.join([*command, str(path)])}), delete it, or write to another --out"
        )
    # SLURM does not make the folder of the log; without it there is no log of why the job failed.
    for folder in (log_folder, path.parent):
        folder.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def check_least(options: Any, **least: int) -> None:
    """Refuses numbers below the least that makes sense, by option."""
    for name, lowest in least.items():
        value = getattr(options, name)
        if value is not None and value < lowest:
            raise ValueError(f"--{name} is {value}; give at least {lowest}")


def check_time(time: str) -> None:
    """Refuses a time limit that SLURM would read in another way, or not at all."""
    if not re.fullmatch(r"(\d+-)?\d+(:\d+){0,2}", time):
        raise ValueError(f"--time is {time}; write it as 24:00:00, 2-12:00:00 or minutes")


def submit(path: Path, command: Sequence[str] = ("sbatch",)) -> int:
    """Gives the script to the cluster, if its program is here."""
    words = [*command, str(path)]
    if shutil.which(words[0]) is None:
        raise ValueError(
            f"there is no {words[0]} on this machine; run this where there is one: "
            f"{shlex.join(words)}"
        )
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"{words[0]} refuses {path}: {done.stderr.strip()}")
    print(done.stdout.strip())
    return 0
