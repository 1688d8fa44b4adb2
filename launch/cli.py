"""The console command: `counterpoint COMMAND ...`.

Each command is one module with a `main(argv)`; it is imported only when it is called, so that
`counterpoint --help` answers at once.
"""

import importlib
import sys

COMMANDS = {
    "fit": ("counterpoint.launch.fit", "train, or continue a run with --resume"),
    "evaluate": ("counterpoint.launch.evaluate", "evaluate a run on a suite of tasks"),
    "embed": ("counterpoint.launch.embed", "store a teacher's embeddings beside the shards"),
    "cluster": ("counterpoint.launch.cluster", "put stored embeddings into clusters"),
    "export": ("counterpoint.launch.export", "write a run's weights as one safetensors file"),
    "report": ("counterpoint.launch.report", "write one HTML page about one or more runs"),
    "sweep": ("counterpoint.launch.sweep", "run (config, seed) pairs and render the results"),
    "launch": ("counterpoint.launch.slurm", "write (and submit) the job script of a SLURM cluster"),
    "data": ("counterpoint.launch.data", "build the emoji shards, index shards to a manifest"),
    "init": ("counterpoint.launch.init", "copy the configs into a project of your own"),
}


def usage() -> str:
    """Returns the help text: every command with its one-line description."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(
        ["usage: counterpoint COMMAND [options]   (COMMAND --help says more)", "", *lines]
    )


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0 if argv else 2
    if argv[0] not in COMMANDS:
        known = ", ".join(COMMANDS)
        print(f"counterpoint: unknown command '{argv[0]}'; known: {known}", file=sys.stderr)
        return 2
    from .errors import sentence

    try:
        return importlib.import_module(COMMANDS[argv[0]][0]).main(argv[1:]) or 0
    except Exception as error:
        text = sentence(error)
        if text is None:
            raise
        print(f"counterpoint {argv[0]}: {text}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
