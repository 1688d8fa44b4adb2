"""Help and mistakes are answered before anything heavy is imported, in one sentence."""

import subprocess
import sys

import pytest

from counterpoint.launch import arguments
from counterpoint.launch.cli import main
from counterpoint.models.teachers.frozen import DTYPES

# Imports that take seconds each.
HEAVY = ("torch", "lightning", "transformers", "timm", "open_clip", "pyarrow")
# Prints what was imported by the calls of the command line given as words between "+".
PROBE = """
import contextlib, io, sys
from counterpoint.launch.cli import main
calls = " ".join(sys.argv[1:]).split(" + ")
for call in calls:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            main(call.split())
        except SystemExit as exit:
            assert exit.code == 0, call
    assert out.getvalue().strip(), call
print("imported", *sys.modules)
"""
ANSWERED = (
    "fit --help",
    "fit --config emoji_clip -h",
    "fit --help run",
    "fit --help modell",
    "fit",
    "fit --config emoji_clp",
    "fit --config emoji_clip --lr 3",
    "fit --config emoji_clip --optim lyon",
    "fit --resume nowhere",
    "embed --teacher t --out o --config emoji_clip --lr 3",
    "--help",
    "--version",
    "evaluate --help",
    "embed --help",
    "cluster --help",
    "prompts --help",
    "probe --help",
    "curate --help",
    "export --help",
    "report --help",
    "sweep --help",
    "data --help",
    "data index --help",
    "init --help",
    "launch --help",
    "launch slurm --help",
    "launch k8s --help",
    "launch sky --help",
    "evaluate run --sute imagenet",
    "embed --teecher large",
    "cluster store --out clusters --clusters many",
    "probe store --labels labels.parquet --out probe.pt",
    "export run weights.pt",
    "launch slurm --config emoji_clip --nodes two",
    "launch k8s --config emoji_clip --volume data:/data",
    "launch sky --config emoji_clip --volume data:/data --lr 3",
    "fit --config emoji_clip --data.keep_lists [none.parquet]",
    "embed --config emoji_clip --teacher t --out o --data.keep_lists [none.parquet]",
)


def test_help_and_mistakes_import_nothing_heavy():
    words = " + ".join(ANSWERED).split()
    done = subprocess.run([sys.executable, "-c", PROBE, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    imported = set(done.stdout.split())
    assert "counterpoint.launch.arguments" in imported
    assert imported.isdisjoint(HEAVY)


def test_the_probe_sees_what_is_imported():
    words = ["cluster", "missing", "--out", "c", "--clusters", "2"]
    done = subprocess.run([sys.executable, "-c", PROBE, *words], capture_output=True, text=True)
    assert "torch" in done.stdout.split(), done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("trian", "unknown command 'trian'; known: fit, evaluate"),
        ("trian", "did you mean fit?"),
        ("evaluat run", "did you mean evaluate?"),
        ("launch k9s", "there is no launcher 'k9s'; there are: slurm, k8s, sky"),
        ("evaluate run --sute imagenet", "'--sute' is not understood; did you mean --suite?"),
        ("evaluate", "required: MODEL (counterpoint evaluate --help lists all)"),
        ("export run weights.pt", "weights.pt must end in .safetensors"),
        ("export run w.safetensors --weights emma", "--weights: invalid choice: 'emma'"),
        ("cluster store --out c --clusters many", "--clusters: invalid int value: 'many'"),
        ("report", "required: RUN_DIR (counterpoint report --help lists all)"),
        ("sweep --limt 3", "'--limt' is not understood; did you mean --limit?"),
        ("sweep", "name a sweep FILE, or --render"),
        ("init mine --rum clip", "'--rum' is not understood; did you mean --run?"),
        ("data index s.tar", "required: --out (counterpoint data index --help lists all)"),
        (
            "fit --config emoji_clip --data.keep_lists [none.parquet]",
            "data.keep_lists (on the command line): there is no file 'none.parquet'; paths start",
        ),
        ("data pack", "invalid choice: 'pack'"),
    ],
)
def test_a_mistake_is_one_sentence(words, said, capsys):
    assert main(words.split()) == 2
    text = capsys.readouterr().err
    assert said in text
    assert text.count("\n") == 1 and "usage" not in text


def test_precisions_of_stores_are_those_of_teachers():
    assert tuple(DTYPES) == arguments.STORED


def test_an_interrupted_command_says_so(monkeypatch, capsys):
    def stopped(argv):
        raise KeyboardInterrupt

    monkeypatch.setattr("counterpoint.launch.commands.init.main", stopped)
    assert main(["init", "mine"]) == 130
    assert capsys.readouterr().err == "counterpoint init: stopped\n"
