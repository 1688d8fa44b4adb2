"""The console command: `counterpoint COMMAND ...`.

Each command is one module with a `main(argv)`. It is imported only when it is called and when its
arguments have been looked at, so that help and mistakes need no seconds of imports.
"""

import importlib
import os
import sys
from difflib import get_close_matches
from importlib.metadata import version

# By name: the module in `commands`, and what it does.
COMMANDS = {
    "fit": ("fit", "train, or continue a run with --resume"),
    "evaluate": ("evaluate", "evaluate a run on a suite of tasks"),
    "embed": ("embed", "store a teacher's embeddings beside the shards"),
    "cluster": ("cluster", "put stored embeddings into clusters"),
    "prompts": ("curation.prompts", "store a teacher's embeddings of class prompts"),
    "probe": ("curation.probe", "fit a linear probe on stored embeddings"),
    "score": ("curation.score", "write the score table of a pool, one row a sample"),
    "boxes": ("curation.boxes", "read the text in a pool's images"),
    "card": ("curation.card", "write one HTML page about a pool and its curation"),
    "curate": ("curation.curate", "choose samples of a pool by filters over its score table"),
    "keep": ("curation.keep", "combine, draw, move and repack keep-lists"),
    "export": ("export", "write a run's model for other libraries, with a model card"),
    "report": ("report", "write one HTML page about one or more runs"),
    "sweep": ("sweep", "run (config, seed) pairs and render the results"),
    "ablate": ("ablate", "compare subsets of a pool: train, test, one table"),
    "replay": ("replay", "compute a step that was not finite again, and say where that begins"),
    "plan": ("plan", "compute what a run needs and costs, before it is started"),
    "launch": ("launch", "write (and submit) a job for SLURM, Kubernetes or SkyPilot"),
    "data": ("data", "build the emoji shards, index shards to a manifest"),
    "init": ("init", "copy the configs into a project of your own"),
}
# What other programs call them.
ALIASES = {"train": "fit", "resume": "fit", "eval": "evaluate", "test": "evaluate"}


def usage() -> str:
    """Returns the help text: every command with its one-line description."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, (_, text) in COMMANDS.items()]
    first = "usage: counterpoint COMMAND [options]   (COMMAND --help: more; --version)"
    return "\n".join([first, "", *lines])


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0 if argv else 2
    if argv[0] == "--version":
        print(f"counterpoint {version('counterpoint')}")
        return 0
    command = argv[0]
    if command not in COMMANDS:
        print(f"counterpoint: {unknown(command)}", file=sys.stderr)
        return 2
    from .checks import check
    from .errors import reports_for_its_node, sentence
    from .run.run_log import announce

    try:
        check(command, argv[1:])
        announce(argv)
        module = importlib.import_module(f"{__package__}.commands.{COMMANDS[command][0]}")
        return module.main(argv[1:]) or 0
    except KeyboardInterrupt:
        print(f"counterpoint {command}: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of `--help | head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        text = sentence(error)
        if text is None:
            raise
        if reports_for_its_node(error):
            print(f"counterpoint {command}: {text}", file=sys.stderr)
        return 2


def unknown(command: str) -> str:
    """Returns the sentence about a command that is not there."""
    close = get_close_matches(command, [*COMMANDS, *ALIASES], n=1)
    hint = f"; did you mean {ALIASES.get(close[0], close[0])}?" if close else ""
    return f"unknown command '{command}'; known: {', '.join(COMMANDS)}{hint}"


if __name__ == "__main__":
    sys.exit(main())
