"""Mistakes that a command's own options show, found before anything heavy is imported."""

from .arguments import (
    check_export,
    check_plan,
    cluster,
    curate,
    embed_words,
    evaluate,
    export,
    plan,
    probe,
    prompts,
    replay,
)
from .config import fit_arguments
from .config.diagnosis import check_words
from .config.packaged import find
from .config.run_files import read
from .job_arguments import LAUNCHERS, check_launcher


def check(command: str, argv: list[str]) -> None:
    """Answers `--help` of a command and exits; refuses mistakes that its own options show."""
    whole = {each.__name__: each for each in (evaluate, cluster, probe, curate, export, replay)}
    if command in whole:
        options = whole[command]().parse_args(argv)
        if command == "export":
            check_export(options)
    elif command == "fit":
        fit_arguments.parse(argv)
    elif command == "embed":
        written = read(embed_words(argv)[1])
        check_words(written)
        fit_arguments.check_keep_lists(written)
    elif command == "plan":
        options, rest = plan().parse_known_args(argv)
        check_plan(options, rest)
        if options.measure is not None:
            plan().parse_args(argv)
        else:
            find(options.on, "device")
            fit_arguments.parse_words(rest)
    elif command == "prompts":
        prompts().parse_known_args(argv)
    elif command == "launch":
        options, rest = LAUNCHERS[check_launcher(argv)]().parse_known_args(argv[1:])
        if fit_arguments.take_option(rest, "--resume")[1] is not None:
            raise ValueError("leave --resume out: a job always continues what its run_dir holds")
        if options.config is not None:
            check_words(read(["--config", options.config, *rest]))
