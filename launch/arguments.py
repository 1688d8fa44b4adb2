"""The options of every command that imports torch or Lightning, known without importing them.

`--help` answers at once, and a misspelt option is refused before the 14 seconds of imports.
"""

import argparse
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

# What a run's data are, and a pool that it embeds are not.
NOT_OF_A_POOL = ("keep_weights", "temperature", "same_as", "caption_same_as")
# As in models.teachers.frozen.DTYPES (a test compares them).
STORED = ("float32", "bfloat16", "float16")
# As in export.write.TARGETS, and those that are one file (a test compares them).
TARGETS = ("safetensors", "open_clip", "transformers", "sentence-transformers", "onnx", "datacomp")
SUFFIXES = {"safetensors": ".safetensors", "datacomp": ".pt"}


class Arguments(argparse.ArgumentParser):
    """A parser that raises a mistake as one sentence, with the nearest option."""

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, allow_abbrev=False, **options)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parses all arguments; refuses what is missing, unknown, or of the wrong kind."""
        options, rest = self.parse_known_args(args, namespace)
        if rest:
            self.error(self._unknown(rest[0]))
        return options

    def error(self, message: str) -> NoReturn:
        """Raises what argparse would print below its usage."""
        raise ValueError(f"{message.removeprefix('argument ')} ({self.prog} --help lists all)")

    def _unknown(self, word: str) -> str:
        options = [option for action in self._actions for option in action.option_strings]
        close = get_close_matches(word.partition("=")[0], options, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        return f"'{word}' is not understood{hint}"


def evaluate() -> Arguments:
    """The options of `counterpoint evaluate`."""
    made = Arguments(
        prog="counterpoint evaluate", description="Evaluate a model on a suite of tasks."
    )
    made.add_argument(
        "model",
        metavar="MODEL",
        help="a run folder or a checkpoint in one; a folder of open_clip, transformers; NAME:FILE",
    )
    made.add_argument("--suite", help="a packaged suite or a .yaml file (the run's own)")
    made.add_argument("--checkpoint", type=int, metavar="STEP", help="(the newest whole one)")
    made.add_argument("--weights", choices=("trained", "ema"), default="trained", help="of a run")
    made.add_argument("--batch_size", type=int, help="per tower call (the run's own)")
    made.add_argument("--data_root", help="where relative paths in the suite start")
    made.add_argument(
        "--out",
        type=Path,
        help="(RUN_DIR/evaluation/SUITE-STEP.json, else evaluation/NAME/SUITE.json)",
    )
    made.add_argument(
        "--baseline",
        type=Path,
        metavar="RUN",
        help="compare with this run's newest results on the suite, item for item",
    )
    made.add_argument(
        "--toward",
        metavar="END",
        help="evaluate weights on the line from MODEL to this model (WiSE-FT), at --alphas",
    )
    made.add_argument(
        "--alphas",
        type=float,
        nargs="+",
        default=[0.0, 0.25, 0.5, 0.75, 1.0],
        metavar="ALPHA",
        help="points of the line, from 0 (MODEL) to 1 (END) (0 0.25 0.5 0.75 1)",
    )
    made.add_argument(
        "--prompts",
        type=Path,
        metavar="FOLDER",
        help="where embeddings of class prompts are kept (prompts/ beside the results)",
    )
    made.add_argument(
        "--watch",
        action="store_true",
        help="evaluate each new checkpoint of a run once, until the run has ended",
    )
    return made


def embed() -> Arguments:
    """The options of `counterpoint embed`; all others are the run's."""
    made = Arguments(
        prog="counterpoint embed",
        description="Stores embeddings beside the shards: a teacher's, of images as training sees "
        "them, those of a run of your own (--run), of images as evaluation sees them, or a "
        "language model's, of captions (--language_model). Further arguments are those of "
        "`counterpoint fit`: --config RUN, --data.manifest FILE, ...",
    )
    _add_model(made).add_argument(
        "--language_model",
        action="store_true",
        help="that of the run's text tower (a VectorTower); --variants: captions a sample",
    )
    made.add_argument(
        "--transform",
        choices=("train", "eval"),
        help="of images: data.train_transform (train), data.eval_transform (eval, with --run)",
    )
    made.add_argument("--out", required=True, type=Path, help="folder of the sidecar")
    made.add_argument(
        "--views",
        nargs="+",
        metavar="VIEW",
        help="what is embedded: image, text, text.NAME, ... (what the run's terms need)",
    )
    made.add_argument("--variants", type=int, default=1, help="augmentations a sample (1)")
    made.add_argument("--batch_size", type=int, default=256, help="samples at a time (256)")
    made.add_argument(
        "--precision", choices=STORED, default="float16", help="of what is stored (float16)"
    )
    made.add_argument("--device", help="cuda, cpu, ... (cuda where there is a GPU)")
    return made


def _add_model(made: Arguments) -> Any:
    """Adds the options that say whose embeddings are computed; returns the group of them."""
    whose = made.add_mutually_exclusive_group(required=True)
    whose.add_argument("--teacher", help="its name under `teachers` in the run file")
    whose.add_argument("--run", type=Path, metavar="RUN_DIR", help="instead of a run file")
    made.add_argument("--checkpoint", type=int, metavar="STEP", help="of --run (the newest whole)")
    return whose


def embed_words(argv: list[str]) -> tuple[Any, list[str]]:
    """Reads the arguments of `counterpoint embed`.

    Returns:
        Its options, and the arguments of a run: with `--run`, those of that run, but for which
        samples it takes of its own data.
    """
    options, rest = embed().parse_known_args(argv)
    if options.run is None:
        if options.checkpoint is not None:
            raise ValueError("--checkpoint is for --run; a teacher's stands in the run file")
        return options, rest
    return options, [*words_of_run(options.run), *rest]


def words_of_run(run: Path) -> list[str]:
    """Returns the arguments of a run, but for which samples it takes of its own data."""
    if not (run / "config.yaml").exists():
        raise ValueError(f"--run {run}: there is no run (no {run}/config.yaml)")
    of_its_own = ("keep_lists=[]", "sidecars={}", *(f"{key}=null" for key in NOT_OF_A_POOL))
    return ["--config", str(run / "config.yaml"), *(f"--data.{word}" for word in of_its_own)]


def cluster() -> Arguments:
    """The options of `counterpoint cluster`."""
    made = Arguments(
        prog="counterpoint cluster",
        description="Puts the samples of a store into clusters of similar embeddings (k-means). "
        "Start it again to go on where it stopped.",
    )
    made.add_argument("store", type=Path, help="folder that counterpoint embed wrote")
    made.add_argument("--out", required=True, type=Path, help="folder of the sidecar to write")
    made.add_argument("--clusters", type=int, help="how many")
    made.add_argument("--centres", type=Path, help="those of other clusters: centres.safetensors")
    made.add_argument("--column", default="image", help="which embeddings (image)")
    made.add_argument("--iterations", type=int, default=20, help="of k-means (20)")
    made.add_argument(
        "--samples_per_cluster", type=int, default=256, help="that k-means looks at, at most (256)"
    )
    made.add_argument("--seed", type=int, default=0)
    return made


def prompts() -> Arguments:
    """The options of `counterpoint prompts`; all others are the run's."""
    made = Arguments(
        prog="counterpoint prompts",
        description="Stores embeddings of class prompts, a teacher's or those of a run of your own "
        "(--run), for filters that compare samples with classes. Further arguments are those of "
        "`counterpoint fit`: --config RUN.",
    )
    _add_model(made)
    made.add_argument("--classes", required=True, type=Path, help="file with a name a line")
    made.add_argument("--templates", type=Path, help="file with a prompt a line, {c} for the name")
    made.add_argument("--view", default="text", help="text.NAME: with a tokenizer of its own")
    made.add_argument("--out", required=True, type=_safetensors, help="ends in .safetensors")
    return made


def probe() -> Arguments:
    """The options of `counterpoint probe`."""
    made = Arguments(
        prog="counterpoint probe",
        description="Fits a linear probe on stored embeddings and labels (logistic regression).",
    )
    made.add_argument("store", type=Path, help="folder that counterpoint embed wrote")
    made.add_argument(
        "--labels", required=True, type=Path, help="parquet file: key, label (0, 1, ..)"
    )
    made.add_argument("--column", default="image", help="which embeddings (image)")
    made.add_argument("--l2", type=float, default=1.0, help="strength of the penalty (1)")
    made.add_argument("--out", required=True, type=_safetensors, help="ends in .safetensors")
    return made


def curate() -> Arguments:
    """The options of `counterpoint curate`."""
    made = Arguments(
        prog="counterpoint curate",
        description="Runs the filters of a curation over a score table. Start it again to go on "
        "where it stopped.",
    )
    made.add_argument("file", metavar="FILE", help="a curation: a YAML file or a packaged name")
    made.add_argument("--table", required=True, type=Path, help="what counterpoint score wrote")
    made.add_argument(
        "--store",
        action="append",
        default=[],
        metavar="NAME=FOLDER",
        help="embeddings or clusters (counterpoint embed, cluster); may be repeated",
    )
    made.add_argument("--out", required=True, type=Path, help="folder of the results")
    engine(made)
    return made


def engine(made: Arguments) -> None:
    """Adds the options that say where the tasks of a pass over a pool run."""
    made.add_argument(
        "--workers", type=int, metavar="N", help="processes of this machine (one a core)"
    )
    made.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="run on this Ray cluster instead; auto: the one that this machine belongs to",
    )
    made.add_argument(
        "--task_memory",
        type=float,
        metavar="GIB",
        help="memory that Ray sets apart for a task (it counts cores alone)",
    )


def export() -> Arguments:
    """The options of `counterpoint export`."""
    made = Arguments(
        prog="counterpoint export",
        description="Write a run's model for other libraries, compare it with the run as they load "
        "it, and write a model card.",
    )
    made.add_argument("run_dir", type=Path, help="folder written by `counterpoint fit`")
    made.add_argument(
        "out", type=Path, help="folder; with safetensors and datacomp a file, .safetensors or .pt"
    )
    made.add_argument("--to", choices=TARGETS, default="safetensors", help="(safetensors)")
    made.add_argument("--checkpoint", type=int, metavar="STEP", help="(the newest whole one)")
    made.add_argument("--weights", choices=("trained", "ema"), default="trained")
    made.add_argument("--license", default="", metavar="ID", help="of the weights, for the card")
    return made


def replay() -> Arguments:
    """The options of `counterpoint replay`."""
    made = Arguments(
        prog="counterpoint replay",
        description="Compute a step that was not finite again, on the CPU, and say where that "
        "begins: module by module, then gradient by gradient.",
    )
    made.add_argument(
        "capsule", type=Path, help="RUN_DIR/nonfinite/step-*.pt, of a run with --trace.nonfinite 1"
    )
    return made


def check_export(options: Any) -> None:
    """Refuses a place that does not fit what is written there."""
    suffix = SUFFIXES.get(options.to, "")
    if suffix and options.out.suffix != suffix:
        raise ValueError(f"{options.out} must end in {suffix}: --to {options.to} writes one file")
    if not suffix and options.out.suffix in SUFFIXES.values():
        raise ValueError(
            f"--to {options.to} writes a folder: name one, without the {options.out.suffix} of "
            f"{options.out}"
        )
    if options.out.exists():
        raise ValueError(f"{options.out} exists already; remove it, or export to another place")


def plan() -> Arguments:
    """The options of `counterpoint plan`; all others are the run's."""
    made = Arguments(
        prog="counterpoint plan",
        description="Compute what a run needs (memory, network, time, cores, money) before it is "
        "started. Further arguments are those of `counterpoint fit`: RUN, --model.chunks 8, ...",
    )
    made.add_argument(
        "--on", metavar="DEVICE", help="a100, h100, h200, b200, cpu, or a .yaml file of such keys"
    )
    made.add_argument("--gpus", type=int, default=1, help="devices of all nodes (1)")
    made.add_argument("--nodes", type=int, help="that they stand in (as few as possible)")
    made.add_argument("--price", type=float, help="of a GPU hour")
    made.add_argument(
        "--caption_tokens", type=float, default=12.4, help="of a caption on average (12.4)"
    )
    made.add_argument("--json", type=Path, metavar="FILE", help="write all numbers there, too")
    made.add_argument(
        "--measure", type=Path, metavar="FILE", help="write the constants of this machine, and end"
    )
    return made


def check_plan(options: Any, rest: list[str]) -> None:
    """Refuses what cannot be planned."""
    if options.measure is not None:
        if rest or options.on is not None:
            raise ValueError("--measure FILE takes no run and no device: it measures this machine")
        return
    if options.on is None:
        raise ValueError("name the device with --on, such as --on h100 (or a file of --measure)")
    for name in ("gpus", "nodes", "caption_tokens", "price"):
        value = getattr(options, name)
        if value is not None and value <= 0:
            raise ValueError(f"--{name} is {value:g}; give more than 0")
    if options.nodes is not None and options.gpus % options.nodes:
        raise ValueError(
            f"--gpus {options.gpus} does not divide into --nodes {options.nodes}: --gpus counts "
            "the devices of all nodes"
        )


def _safetensors(value: str) -> Path:
    if Path(value).suffix != ".safetensors":
        raise argparse.ArgumentTypeError(f"{value} must end in .safetensors")
    return Path(value)
