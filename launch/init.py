"""`counterpoint init DIR`: the config parts and one run, copied into a project of the user's own.

In: a folder, new or not. Out: `DIR/configs/` with every part (one folder a slot) and one run that
names them, to be edited at will; the next commands are printed. Nothing is ever overwritten.
"""

import shutil
from pathlib import Path

from .arguments import Arguments
from .paths import CONFIGS, config_names, packaged_config


def main(argv: list[str]) -> int:
    """Copies the files and prints what to do next; returns the exit status."""
    parser = Arguments(
        prog="counterpoint init",
        description="Copies the config parts and a run into DIR/configs, for you to change.",
    )
    parser.add_argument("folder", metavar="DIR", type=Path, help="your project; made if missing")
    parser.add_argument(
        "--run", default="emoji_clip", metavar="NAME", help=f"one of: {', '.join(config_names())}"
    )
    options = parser.parse_args(argv)
    written = copy_configs(options.folder, options.run)
    print(f"wrote {len(written)} files to {options.folder / 'configs'}; change what you like, then")
    if options.folder.resolve() != Path.cwd():
        print(f"  cd {options.folder}")
    if options.run.startswith("emoji"):
        print("  counterpoint data emoji emoji")
    print(f"  counterpoint fit --config configs/run/{options.run}.yaml")
    return 0


def copy_configs(folder: Path, run: str) -> list[Path]:
    """Copies every part and the run called `run` below `folder/configs`; returns the new files.

    Raises:
        ValueError: no such run, or a file is in the way; nothing has been written then.
    """
    chosen = packaged_config(run)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: name a folder")
    sources = [
        path
        for path in sorted(CONFIGS.rglob("*.yaml"))
        if path.relative_to(CONFIGS).parts[0] != "run" or path == chosen
    ]
    targets = [folder / "configs" / path.relative_to(CONFIGS) for path in sources]
    for target in targets:
        if target.exists() or target.is_symlink():
            raise ValueError(
                f"{target} exists already and init overwrites nothing: choose another folder, or "
                "move the file away"
            )
    for source, target in zip(sources, targets, strict=True):
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    return targets
