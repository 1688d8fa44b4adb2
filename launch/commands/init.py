"""`counterpoint init DIR`: runs and the config parts that they use, for a project of one's own.

In: a folder, new or not, and names of packaged runs. Out: `DIR/configs/` with these runs and the
files that they name, to be edited at will; the next commands are printed. Called again, it adds
what is not there yet. Nothing is ever overwritten.
"""

import shlex
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import yaml

from ..arguments import Arguments
from ..config.packaged import CONFIGS, find_packaged, packaged_files

# For photographs: a look on a CPU, one GPU, eight, many nodes.
STARTING = ("clip_cpu", "clip_cc3m", "clip_cc12m", "clip_400m")
HELD_OUT = 5000


def main(argv: list[str]) -> int:
    """Copies the files and prints what to do next; returns the exit status."""
    parser = Arguments(
        prog="counterpoint init",
        description="Copies runs and the config parts that they use into DIR/configs, for you to "
        "change. Call it again to add runs; nothing is overwritten.",
    )
    parser.add_argument("folder", metavar="DIR", type=Path, help="your project; made if missing")
    parser.add_argument(
        "--run",
        action="append",
        metavar="NAME",
        help=f"may be repeated ({', '.join(STARTING)}); one of: {', '.join(packaged_files())}",
    )
    parser.add_argument("--all", action="store_true", help="all runs, parts, suites and sweeps")
    options = parser.parse_args(argv)
    runs = options.run or STARTING
    wanted = sorted(CONFIGS.rglob("*.yaml")) if options.all else files_of(runs)
    written, kept = copy_configs(options.folder, wanted)
    print(f"wrote {len(written)} files to {options.folder / 'configs'}; change what you like")
    for path in kept:
        print(f"kept {path}, which differs from the packaged one")
    print("next:", *next_commands(options.folder, runs), sep="\n  ")
    if not options.run:
        print(
            "further runs for photographs: siglip, flip, clipa, lit, distill_from_open_clip, "
            f"finetune (counterpoint init {shlex.quote(str(options.folder))} --run siglip)"
        )
    return 0


def files_of(runs: Iterable[str]) -> list[Path]:
    """Returns packaged runs and the packaged files that they name."""
    found: dict[Path, None] = {}
    for run in runs:
        path = find_packaged(run)
        content = yaml.safe_load(path.read_text())
        slots = [content, *content.get("stages", {}).values()]
        named = (value for tree in slots for value in tree.values() if isinstance(value, str))
        parts = (path.parent / value for value in named if value.endswith(".yaml"))
        found.update(dict.fromkeys([path, *(part.resolve() for part in parts)]))
    return list(found)


def copy_configs(folder: Path, sources: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Copies packaged files below `folder/configs` unless they are there.

    Returns:
        The new files, and those that were there and differ from the packaged ones.

    Raises:
        ValueError: a file stands where a folder has to be, or the reverse; nothing is written then.
    """
    targets = {folder / "configs" / source.relative_to(CONFIGS): source for source in sources}
    for target in targets:
        for above in target.parents:
            if above.exists() and not above.is_dir():
                raise ValueError(f"{above} is a file, and init needs a folder there: name another")
        if target.is_dir():
            raise ValueError(f"{target} is a folder, and init writes a file there: move it away")
    written, kept = [], []
    for target, source in targets.items():
        if target.exists() or target.is_symlink():
            if not target.exists() or target.read_bytes() != source.read_bytes():
                kept.append(target)
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        written.append(target)
    return written, kept


def next_commands(folder: Path, runs: Sequence[str]) -> list[str]:
    """Returns what to type now, in the order in which it is needed."""
    first = find_packaged(runs[0])
    run_file = Path("configs", first.relative_to(CONFIGS)).as_posix()
    content = yaml.safe_load(first.read_text())
    slots = [content, *content.get("stages", {}).values()]
    data = next(
        (Path(tree["data"]).name for tree in slots if isinstance(tree.get("data"), str)), ""
    )
    commands = []
    if folder.resolve() != Path.cwd():
        commands.append(f"cd {shlex.quote(str(folder))}")
    if not data.startswith(("emoji", "icons")):
        commands.append(
            "counterpoint data index '/data/pairs/*.tar' --out train.parquet "
            f"--holdout {HELD_OUT}  # your shards"
        )
    else:
        corpus = "icons" if data.startswith("icons") else "emoji"
        commands.append(f"counterpoint data {corpus} {corpus}")
    if "init_from" in content:
        commands.append(f"edit {run_file}: init_from is the run that goes on")
    commands.append(f"counterpoint fit --config {run_file}")
    run_dir = f"runs/{content['name']}"
    return [*commands, f"counterpoint evaluate {run_dir}", f"counterpoint report {run_dir}"]
