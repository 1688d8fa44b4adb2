"""The command line of `counterpoint fit`: what is written in files and as options, and its help."""

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path

from . import fit_help
from .diagnosis import check_words
from .run_files import EXAMPLES, SLOTS, Written, read
from .stages import FILE, split_stages

AUTO = "auto"  # --resume: what the run folder holds, if there is one


def parse(argv: list[str]) -> tuple[Written, str | None]:
    """Reads the arguments of `counterpoint fit`, as `parse_words`; keep-lists have to be there.

    Raises:
        ValueError: as of `parse_words`, or a keep-list is not there.
    """
    written, resume = parse_words(argv)
    if not any(option.key.startswith("print_config") for option in written.options):
        check_keep_lists(written)
    return written, resume


def parse_words(argv: list[str]) -> tuple[Written, str | None]:
    """Reads the arguments of `counterpoint fit`; of data nothing has to be there.

    Returns:
        What is written in files and as options, and what is to be resumed: a folder, `auto`, None.

    Raises:
        ValueError: nothing is named, a file is not there, or a word is not one of ours.
    """
    answer_help(argv)
    if not argv:
        raise ValueError(f"name a run: {EXAMPLES} (counterpoint fit --help)")
    argv, resume = take_option(argv, "--resume")
    if resume is not None and resume != AUTO:
        argv = ["--config", str(_config_of(resume)), *argv]
        argv, run_dir = take_option(argv, "--run_dir")
        if run_dir is not None and Path(run_dir).resolve() != Path(resume).resolve():
            raise ValueError(
                f"--resume {resume} goes on in that folder, and --run_dir is {run_dir}: leave it "
                f"out; to keep {resume} as it is, resume a copy of the folder, or start a new run "
                f"with --init_from {resume}"
            )
        argv = [*argv, "--run_dir", resume]
    written = read(argv)
    check_words(written)
    return written, resume


def check_keep_lists(written: Written) -> None:
    """Refuses a keep-list that is not there, before anything slow is imported."""
    for stage in split_stages(written).values():
        _check_keep_lists(stage)


def _check_keep_lists(written: Written) -> None:
    data = written.whole().get("data")
    lists = (data.get("keep_lists") if isinstance(data, Mapping) else None) or []
    lists = lists if isinstance(lists, list) else [lists]
    for path in (Path(each) for each in lists if isinstance(each, str)):
        if not path.is_file():
            inside = path / "keep.parquet"
            fix = "paths start where the command is run"
            fix = f"name the list in it: {inside}" if inside.is_file() else fix
            raise ValueError(
                f"data.keep_lists ({written.place('data.keep_lists')}): there is no file '{path}'; "
                f"{fix}"
            )


def answer_help(argv: list[str]) -> None:
    """Prints the page, or what there is about a slot (`--help SLOT`, `--SLOT.help`), and exits."""
    for i, word in enumerate(argv):
        name = word.partition("=")[0]
        if name in ("-h", "--help"):
            following = argv[i + 1 : i + 2] if "=" not in word else [word.partition("=")[2]]
            topic = following[0] if following and not following[0].startswith("-") else ""
        elif name.startswith("--") and name.endswith((".help", "-help")):
            topic = name[2:].partition(".")[0]
        else:
            continue
        print(_help(topic.partition(".")[0].removeprefix("--")))
        raise SystemExit(0)


def _help(topic: str) -> str:
    if not topic:
        return fit_help.page()
    if topic in ("run", "runs", "config", "suite"):
        return fit_help.packaged("suite" if topic == "suite" else "run")
    if topic not in SLOTS:
        close = get_close_matches(topic, SLOTS, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise ValueError(
            f"--help {topic}: {hint}there is help about run, suite, and the slots "
            f"{', '.join(SLOTS)}; `counterpoint fit --help` is one page about all"
        )
    from .slot_help import listing

    return listing(topic)


def _config_of(run_dir: str) -> Path:
    path = Path(run_dir, "config.yaml")
    if (stages := Path(run_dir, FILE)).exists():
        return stages
    if path.exists():
        return path
    file = Path(run_dir)
    if file.suffix == ".ckpt" and file.exists():
        folder = file.parent.parent if file.parent.name == "checkpoints" else file.parent
        raise ValueError(
            f"--resume takes a run's folder and goes on from its newest whole checkpoint: --resume "
            f"{folder}; a new run starts from these weights with --init_from {run_dir}"
        )
    raise ValueError(
        f"--resume {run_dir}: there is no run (no {path}); it takes a folder that `fit` wrote, or "
        "auto with the command that started the run"
    )


def take_option(argv: list[str], name: str) -> tuple[list[str], str | None]:
    """Removes `name VALUE` or `name=VALUE` from the arguments and returns the value, if any."""
    for i, word in enumerate(argv):
        if word == name:
            if i + 1 == len(argv) or argv[i + 1].startswith("--"):
                hint = ": a run's folder, such as runs/NAME, or auto" if name == "--resume" else ""
                raise ValueError(f"{name} needs a value{hint}")
            return argv[:i] + argv[i + 2 :], argv[i + 1]
        if word.startswith(name + "="):
            return argv[:i] + argv[i + 1 :], word.split("=", 1)[1]
    return argv, None
