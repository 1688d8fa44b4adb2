"""Writes the pages under docs/reference/ that come from the code; `make docs` runs it.

Out: `command_line.md` (what every command prints for --help), and in `api/` one page for each
package with its modules, whose docstrings mkdocstrings renders. None of them is checked in.
mkdocstrings reads the source without importing it, and looks for a folder called like the import
package: links in build/docs/.
"""

import contextlib
import io
import os
import shutil
from pathlib import Path

from counterpoint.launch import cli

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = ROOT / "docs" / "reference"
PACKAGES = {
    "losses": "Objectives: terms, the objective, temperatures, similarities, exchanges.",
    "models": "The two-tower model, its towers, teachers, weights.",
    "models.reducers": "What leaves out patches and tokens.",
    "data": "Shards, order, captions, images, the data module.",
    "train": "The LightningModule, phases, optimisers, strategies, callbacks.",
    "train.clip": "Gradient clippers.",
    "train.evaluation": "Evaluation suites and tasks.",
    "launch": "The commands and what a run consists of.",
    "launch.reporting": "The report page.",
}
SUBCOMMANDS = {"launch": ["slurm"], "data": ["index", "emoji"]}


def main() -> None:
    """Writes all pages anew."""
    shutil.rmtree(REFERENCE, ignore_errors=True)
    (REFERENCE / "api").mkdir(parents=True)
    links = ROOT / "build" / "docs" / "counterpoint"
    shutil.rmtree(links, ignore_errors=True)
    links.mkdir(parents=True)
    for package in {name.split(".")[0] for name in PACKAGES}:
        (links / package).symlink_to(os.path.relpath(ROOT / package, links))
    for package, text in PACKAGES.items():
        page = REFERENCE / "api" / f"{package.replace('.', '_')}.md"
        page.write_text(api_page(package, text), encoding="utf-8")
    (REFERENCE / "command_line.md").write_text(command_line(), encoding="utf-8")


def api_page(package: str, text: str) -> str:
    """Returns the page of a package: a directive for each of its modules."""
    folder = ROOT / package.replace(".", "/")
    modules = sorted(path.stem for path in folder.glob("*.py") if path.stem[0] != "_")
    lines = [f"# `counterpoint.{package}`", "", text]
    for module in modules:
        lines += ["", f"::: counterpoint.{package}.{module}"]
    return "\n".join(lines) + "\n"


def command_line() -> str:
    """Returns the page of the commands."""
    lines = ["# Command line", "", *block(help_of())]
    for name, (_, text) in cli.COMMANDS.items():
        lines += ["", f"## `counterpoint {name}`", "", f"{text[0].upper()}{text[1:]}.", ""]
        lines += block(help_of(name))
        for part in SUBCOMMANDS.get(name, []):
            lines += ["", f"### `counterpoint {name} {part}`", "", *block(help_of(name, part))]
    return "\n".join(lines) + "\n"


def help_of(*command: str) -> str:
    """Returns what a command prints for --help."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        cli.main([*command, "--help"])
    return out.getvalue().rstrip()


def block(text: str) -> list[str]:
    """Returns the lines of a block that is shown as it is."""
    return ["```text", text, "```"]


if __name__ == "__main__":
    os.environ["COLUMNS"] = "84"  # what a block on the page shows without scrolling
    main()
