"""`counterpoint export RUN_DIR OUT --to TARGET`: a run's model for other libraries.

In: a checkpoint, which is the same file whatever strategy wrote it. Out: the model in float32, in a
file under Counterpoint's own names (`--init_from` reads it) or in another library's layout, with a
model card.
"""

from .. import arguments
from ..export.source import load_source
from ..export.write import export


def main(argv: list[str]) -> int:
    """Parses the command line and exports."""
    options = arguments.export().parse_args(argv)
    arguments.check_export(options)
    source = load_source(options.run_dir, options.checkpoint, options.weights)
    done = export(source, options.out, options.to, options.license)
    for note in done.notes:
        print(f"note: {note}")
    print(f"{options.out}: step {source.step}, {done.parity}")
    print(f"model card: {done.card}")
    return 0
