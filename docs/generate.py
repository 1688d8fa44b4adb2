"""Writes the pages under docs/reference/ that come from the code; `make docs` runs it.

Out: `command_line.md` (what every command prints for --help), `options.md` (every key of a run, and
every class that may stand in it, by slot), `gpu.md` (what `make gpu` has measured), and in `api/`
one page for each package with its modules, whose docstrings mkdocstrings renders. None of them is
checked in. mkdocstrings reads the source without importing it, and looks for a folder called like
the import package: links in build/docs/.
"""

import contextlib
import io
import os
import re
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import gpu_results

from counterpoint.launch import cli
from counterpoint.launch.config.fit_help import ABOUT

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = ROOT / "docs" / "reference"
PACKAGES = {
    "losses": "Objectives: one loss a file, the contract of a term, the weighted sum.",
    "losses.distillation": "Losses that learn from a teacher.",
    "losses.captioning": "A decoder that writes captions, as a loss.",
    "losses.self_supervision": "Losses among views of one modality, and of its average.",
    "losses.wrappers": "Terms around other terms.",
    "losses.components": "Parts that terms hold: heads, similarities, caption embeddings.",
    "losses.kernels": "All pairs of the global batch, a tile at a time, exact.",
    "losses.distributed": "How columns reach a rank, and the only collectives.",
    "models": "The two-tower model, its towers, weights.",
    "models.interop": "Models of other libraries, in and out.",
    "models.reducers": "What leaves out patches and tokens.",
    "models.teachers": "Frozen teachers.",
    "models.text": "Text towers.",
    "data": "The data module, samples, recipes, sidecars.",
    "data.order": "Which sample comes next.",
    "data.shards": "Bytes of any sample, here or far away.",
    "data.images": "Decoding and transforms.",
    "data.text": "Captions, word edits, tokenizers.",
    "data.stream": "Sources that can be neither indexed nor cached.",
    "data.corpora": "What builders of corpora share.",
    "data.corpora.emoji": "The corpus that is always at hand.",
    "data.corpora.icons": "A small dirty web: icon sets.",
    "data.curate": "Curation: score tables, filters in sequence, keep-lists.",
    "data.curate.filters.captions": "By language, words, patterns; by text in images.",
    "data.curate.filters.clusters": "By clusters of embeddings, and weights of clusters.",
    "data.curate.filters.concepts": "By which entries of a list captions name.",
    "data.curate.filters.duplicates": "Exact, near and semantic duplicates.",
    "data.curate.filters.embeddings": "Scores of stored embeddings.",
    "data.curate.filters.general": "By any columns: limits, conditions, weights, random subsets.",
    "data.curate.lists": "Keep-lists: combined, drawn, moved, exchanged, repacked.",
    "data.curate.numerics": "Exact sums, counts and similarities, the same in any order.",
    "train": "The LightningModule, features, phases, learning rates.",
    "train.optim": "Optimizers, parameter groups, freezing.",
    "train.grad_clip": "Gradient clippers.",
    "train.strategies": "DDP, FSDP2 and DeepSpeed behind one interface.",
    "train.checkpointing": "Checkpoints, resume, rewind.",
    "train.callbacks": "Metrics, evaluation, errors of samples, stops, the hang watchdog.",
    "train.evaluation": "Evaluation suites and tasks.",
    "train.evaluation.choices": "Which of several captions an image shows.",
    "train.evaluation.confidence": "Calibration, images of other classes, accuracy without labels.",
    "train.evaluation.geometry": "Where embeddings lie.",
    "train.evaluation.probes": "Classifiers on features of a training split.",
    "train.evaluation.robustness": "Triggers, misspelt names, several objects, drawn words.",
    "train.evaluation.zero_shot": "Classification by prompts, descriptions, attributes.",
    "launch": "The command line.",
    "launch.api": "What Python code of one's own calls.",
    "launch.commands": "One command a file.",
    "launch.commands.curation": "The commands of curation.",
    "launch.config": "Run files and options: parsing, messages, identity.",
    "launch.run": "What a run consists of.",
    "launch.run.faults": "What happens to a run from outside: another run, a process that is gone.",
    "launch.run.start": "What a run starts from: weights, teachers.",
    "launch.experiments": "Sweeps: pairs, claims, results.",
    "launch.experiments.ablation": "Ablations: plan, statistics, table.",
    "launch.experiments.catalogue": "The method catalogue: texts, verdicts, page.",
    "launch.export": "A run's model in other libraries' layouts, compared and described.",
    "launch.planning": "What a run needs and costs, computed before it is started.",
    "launch.reporting": "The report page.",
}
INTRODUCTION = """Every key of a run file, by slot, with its type and default, and every class of
Counterpoint that may stand there with its arguments. On the command line a key is written
`--SLOT.KEY VALUE`; a class by its `class_path`, its arguments below `init_args`.
`counterpoint fit --help SLOT` prints the same."""
SUBCOMMANDS = {"launch": ["slurm", "k8s", "sky"], "data": ["index", "emoji", "icons"]}


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
    (REFERENCE / "options.md").write_text(options(), encoding="utf-8")
    (REFERENCE / "gpu.md").write_text(gpu_results.page(), encoding="utf-8")


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


def options() -> str:
    """Returns the page of all keys and classes of a run."""
    lines = ["# Options", "", INTRODUCTION]
    for slot, text in ABOUT.items():
        listing = printed("fit", "--help", slot).splitlines()
        lines += ["", f"## `{slot}`", "", f"{text[0].upper()}{text[1:]}.", ""]
        lines += as_lists(listing[1:-1])  # without the title and what else to ask for
    return "\n".join(lines) + "\n"


def as_lists(listing: list[str]) -> list[str]:
    """Turns indented lines into Markdown: titles, keys or classes, keys of classes."""
    lines, inside = [], ""  # of a class above, whose keys are one level deeper
    for line in filter(str.strip, listing):
        depth, text = len(line) - len(line.lstrip()), line.strip()
        key = re.match(r"(\w+)(: | (?=\())(.*)", text)
        if depth == 0:
            inside = ""
            lines += ["", f"### {text.rstrip(':')}", ""]
        elif depth == 2:
            inside = "    "
            word, _, rest = text.partition(" ")
            lines.append(f"- `{word.rstrip(':')}` {escaped(rest)}".rstrip())
        elif key:
            lines.append(f"{inside}- `{key[1]}`{key[2]}{escaped(key[3])}")
        else:
            lines.append(f"{inside}{escaped(text)}")
    return lines


def escaped(text: str) -> str:
    """Returns text in which Markdown sees no markup but code."""
    parts = re.split(r"(`+[^`]*`+)", text)
    parts[::2] = [re.sub(r"([\\*_<>\[\]|])", r"\\\1", part) for part in parts[::2]]
    return "".join(parts)


def help_of(*command: str) -> str:
    """Returns what a command prints for --help."""
    return printed(*command, "--help")


def printed(*words: str) -> str:
    """Returns what a command line prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        cli.main(list(words))
    return out.getvalue().rstrip()


def block(text: str) -> list[str]:
    """Returns the lines of a block that is shown as it is."""
    return ["```text", text, "```"]


if __name__ == "__main__":
    os.environ["COLUMNS"] = "84"  # what a block on the page shows without scrolling
    main()
