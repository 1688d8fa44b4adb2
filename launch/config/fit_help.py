"""`counterpoint fit --help`: one page about the options that people change.

In: nothing that is slow to import; defaults stand here as text, and a test holds them against the
parser. `fit --help SLOT` (`slot_help`) lists everything, from the classes themselves.
"""

import re
import textwrap
from itertools import takewhile
from pathlib import Path

from .packaged import packaged_files
from .run_files import SLOTS

REQUIRED = "required"
# (key, its default as YAML, what it is)
OPTIONS: dict[str, list[tuple[str, str, str]]] = {
    "The run": [
        ("name", "run", "name in reports"),
        ("run_dir", "null", "folder for results; null: runs/NAME"),
        ("mirror", "null", "copy of that folder in a store, such as s3://bucket/run"),
        ("seed", "0", "of weights, order, augmentation"),
        ("init_from", "null", "weights to start from: a run, a file, another library's model"),
    ],
    "Length and rates: phases, in their order, each with a name (here: train)": [
        ("phases.train.samples", REQUIRED, "length in image-text pairs"),
        ("phases.train.batch_size", REQUIRED, "pairs of the global batch, over all processes"),
        ("phases.train.learning_rate", REQUIRED, "at the peak"),
        ("phases.train.warmup_samples", "0", "pairs of linear warm-up"),
        ("phases.train.schedule", "cosine", "after the warm-up: cosine, constant, rsqrt"),
        ("phases.train.image_reducer", "null", "leaves out patches, or makes images smaller"),
    ],
    "Data": [
        ("data.manifest", REQUIRED, ".parquet file that `counterpoint data index` writes"),
        ("data.num_workers", "2", "loader processes of each training process"),
        ("data.caption", "[txt]", "where captions are: a list of extensions and json:FIELD"),
    ],
    "Model": [
        ("model.embed_dim", "512", "width of the common space"),
        ("model.chunks", "1", "parts in which the towers see a batch: the more, the less memory"),
    ],
    "Devices": [
        ("trainer.accelerator", "auto", "gpu or cpu; auto: what there is"),
        ("trainer.devices", "auto", "a number, or [0, 1]; several nodes: torchrun or launch"),
        ("trainer.strategy", "auto", "ddp, fsdp2, hsdp, zero1, zero2, zero3"),
        ("trainer.precision", "auto", "bf16-mixed, 16-mixed, 32-true, bf16-true"),
        ("trainer.compile", "null", "inductor compiles the towers; auto: on GPUs"),
    ],
    "Optimisation": [
        ("grad_clip", "null", "limits gradients: norm, zclip, agc, ... (--help grad_clip)"),
        ("ema", "null", "moving average of the weights, such as --ema.decay 0.999"),
    ],
    "Logs, checkpoints, evaluation": [
        ("trainer.logger", "null", "wandb, tensorboard, mlflow, csv; null: what is installed"),
        ("trainer.log_every_n_steps", "null", "steps between rows of metrics.jsonl; null: 50"),
        ("checkpoint.every_n_steps", "1000", "steps between checkpoints"),
        ("checkpoint.keep", "3", "how many of them stay; 0: all"),
        ("checkpoint.format", "single", "distributed: each process writes, training goes on"),
        ("evaluation.suite", "null", "zero-shot and retrieval tasks: a name or a file"),
        ("evaluation.every_n_steps", "1000000000", "steps between evaluations"),
    ],
}
# Defaults that read badly as they are.
IN_WORDS = {"1000000000": "only after the last step"}
ABOUT = {
    "trainer": "device, precision, strategy, loggers, callbacks",
    "data": "shards, captions, tokenizer, transforms, views, mixture",
    "model": "image tower, text tower, and what they share",
    "objective": "losses (terms), their weights, similarities, scalars",
    "optim": "the optimizer and its parameter groups",
    "grad_clip": "clippers of gradients",
    "guard": "what happens to steps that are not finite, and to spikes",
    "phases": "length, batch size, learning rate, token reducers",
    "teachers": "frozen models for distillation",
    "ema": "moving average of the student",
    "evaluation": "the suite, and when",
    "checkpoint": "how often, and how many",
    "watch": "when a run that hangs is ended",
    "trace": "steps that a profiler records",
}
WIDTH = 28
MAX_COMMENT = 100
PAGE = """\
usage: counterpoint fit --config RUN [--KEY VALUE ...]
       counterpoint fit --resume RUN_DIR [--KEY VALUE ...]

Trains an image tower and a text tower together. RUN is a run file (YAML) or the name of a packaged
one. Options override its keys.

  counterpoint fit --config emoji_clip
  counterpoint fit --config emoji_clip --phases.train.learning_rate 5e-4 --seed 1
  counterpoint fit --config emoji_clip --objective siglip --optim lion
  counterpoint fit --config clip_cc3m --data.manifest train.parquet --trainer.devices 8
  counterpoint fit --resume runs/emoji_clip --phases.train.samples 300000

Options that people change, with the defaults of files that do not name them:
{options}
Slots: each holds its keys, a file with them, or the name of a packaged file, in a run file as on
the command line. A file replaces all of a slot; --SLOT.KEY VALUE changes one key.
{slots}

Phases follow one another in one run: `phases: {{masked: {{samples: ...}}, tune: {{...}}}}`. Their
samples are the length of the run. Steps are samples / batch_size, rounded up.

More: counterpoint fit --help SLOT   all keys and classes of a slot, their defaults (some seconds)
      counterpoint fit --help run    all packaged runs
      --print_config                 prints the whole configuration, and starts nothing
      --resume auto                  continues what is in run_dir, or starts there
      counterpoint init DIR          copies the packaged files, for you to change
      COUNTERPOINT_TRACEBACK=1       shows the stack trace of a mistake\
"""


def page() -> str:
    """Returns the page."""
    lines = []
    for title, rows in OPTIONS.items():
        lines += ["", title]
        for key, default, text in rows:
            shown = "" if default == REQUIRED else f" ({IN_WORDS.get(default, default)})"
            lines.append(f"  --{key:<{WIDTH}}  {text}{shown}")
    slots = []
    for slot in SLOTS:
        count = len(packaged_files(slot))
        files = f" ({count} files)" if count else ""
        slots.append(f"  {slot:<11} {ABOUT[slot]}{files}")
    return PAGE.format(options="\n".join([*lines, ""]), slots="\n".join(slots))


def packaged(kind: str) -> str:
    """Returns the packaged files of a kind, each with the first sentence of its comment."""
    files = packaged_files(kind)
    if not files:
        return ""
    width = max(map(len, files))
    rows = [f"  {name:<{width}}  {_comment(path)}".rstrip() for name, path in files.items()]
    return "\n".join([f"Packaged files (--{'config' if kind == 'run' else kind} NAME):", *rows])


def _comment(file: Path) -> str:
    """The first sentence of the comment that a file begins with."""
    text = file.read_text(encoding="utf-8")
    lines = takewhile(lambda line: line.startswith("#"), text.splitlines())
    first = re.split(
        r"[.:;] (?![^(]*\))", " ".join(line.removeprefix("#").strip() for line in lines)
    )[0]
    return textwrap.shorten(first.rstrip(".:"), MAX_COMMENT, placeholder=" ...")
