"""The run file: its slots, and the parser that reads them.

In: a run file (one file a slot, phases inline) and leaf overrides of the command line. Out: one
resolved configuration, which goes into the run folder and every checkpoint. Unknown keys are
refused.
"""

import pkgutil
import typing
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Literal, Optional, Union

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace
from jsonargparse.typing import PositiveFloat, class_from_function
from lightning.pytorch import Trainer
from lightning.pytorch.loggers.logger import Logger

from ...data.files import write_whole
from ...data.recipe import View
from ...data.stream.module import make_pairs
from ...data.stream.shards import Stream
from ...losses.objective import Objective
from ...models.teachers.frozen import Teacher
from ...models.two_tower import TwoTower
from ...train.callbacks.evaluation import EvaluationConfig
from ...train.callbacks.trace import TraceConfig
from ...train.checkpointing.checkpoint import Format
from ...train.checks import at_least
from ...train.ema import EmaConfig
from ...train.grad_clip.base import Clipper
from ...train.optim.adamw import AdamW
from ...train.phases import Phase
from ...train.spike_guard import SpikeGuard, Spikes
from . import signatures
from .diagnosis import diagnose
from .messages import shortened
from .run_files import Written, read
from .stages import split_stages

OWNED: set[str | int] = {
    # The phases own the run's length, the data module owns the order,
    *("max_epochs", "max_steps", "min_epochs", "min_steps", "fast_dev_run", "overfit_batches"),
    *("limit_train_batches", "limit_val_batches", "limit_test_batches", "limit_predict_batches"),
    *("use_distributed_sampler", "reload_dataloaders_every_n_epochs"),
    *("val_check_interval", "check_val_every_n_epoch", "num_sanity_val_steps"),
    # grad_clip clips, and logs and checkpoints are ours.
    *("gradient_clip_val", "gradient_clip_algorithm", "enable_checkpointing", "default_root_dir"),
    *("enable_autolog_hparams", "model_registry", "barebones"),
}

ADAMW = f"{AdamW.__module__}.{AdamW.__qualname__}"  # of a run that names no optimizer
# What Lightning takes; `auto` is ours, and null is Lightning's own default, 32-true.
AUTO = "auto"
PRECISIONS = Literal["auto"] | typing.get_type_hints(Trainer.__init__)["precision"]
# A class that cannot be read here is taken as it stands, and refused where it is built: a resumed
# run can do without it.
LOGGER_NAMES = Literal["wandb", "tensorboard", "mlflow", "csv"]
LOGGER = Union[LOGGER_NAMES, Logger, dict[str, Any]]  # noqa: UP007 - jsonargparse names members
LOGGERS = Optional[Union[bool, LOGGER, list[LOGGER]]]  # noqa: UP007, UP045
PAIRS = class_from_function(make_pairs)  # once: it reads the source of every caller
# Defaults of Lightning's that are enums of strings (Timer's interval) go into files as such.
yaml.SafeDumper.add_multi_representer(Enum, lambda dumper, item: dumper.represent_data(item.value))


@dataclass
class CheckpointConfig:
    """How often the run is saved.

    Attributes:
        every_n_steps: distance between checkpoints; there is always one after the last step.
        keep: how many of these stay, one that a stop leaves in between not counted; 0: all.
        max_failures: how many in a row may not be written (a full disk) before the run ends.
        format: `single`, a file that the first process writes while training waits; `distributed`,
            a folder with a part of each process, written while training goes on.
    """

    every_n_steps: int = 1000
    keep: int = 3
    max_failures: int = 3
    format: Format = "single"

    def __post_init__(self) -> None:
        always = "there is always a checkpoint after the last step"
        at_least("checkpoint.every_n_steps", self.every_n_steps, 1, always)
        at_least("checkpoint.keep", self.keep, 0, "0 keeps all")


@dataclass
class WatchConfig:
    """When a run that makes no progress is ended, with the name of the rank that hangs.

    Attributes:
        timeout: seconds; none: never.
    """

    timeout: float | None = 900.0


def make_parser() -> ArgumentParser:
    """The parser of run files: the slots are flat and typed by the classes they build."""
    parser = ArgumentParser(
        prog="counterpoint fit",
        exit_on_error=False,
        description="Train a two-tower model. --resume RUN_DIR continues a run; --resume auto "
        "continues the one in run_dir, or starts it.",
    )
    parser.add_argument("--config", action="config", help="a run file, or a packaged run's name")
    parser.add_argument("--run_dir", type=str | None, help="where results go (runs/NAME)")
    parser.add_argument(
        "--mirror", type=str | None, help="copy of the run folder in a store: s3://bucket/run"
    )
    parser.add_argument("--name", type=str, default="run", help="name in reports")
    parser.add_argument("--seed", type=int, default=0, help="of weights, order, augmentation")
    parser.add_argument(
        "--init_from",
        type=Optional[Union[dict[str, str], str]],  # noqa: UP007, UP045
        help="weights only: a run folder, a file, another library's model, or a source a tower",
    )
    parser.add_argument(
        "--inherit_from", type=str | None, help="run folder of a larger model: layers and slices"
    )
    retyped = {"logger", "precision"}
    parser.add_class_arguments(Trainer, "trainer", skip=OWNED | retyped, instantiate=False)
    parser.add_argument(
        "--trainer.logger",
        type=LOGGERS,
        help="wandb, tensorboard, mlflow, csv, a class, or a list of these, beside metrics.jsonl "
        "(tensorboard, where it is installed; false: none)",
    )
    parser.add_argument(
        "--trainer.precision",
        type=PRECISIONS,
        default=AUTO,
        help="what towers compute in; auto: bf16-mixed where the device is fast at it, else "
        "32-true",
    )
    parser.add_argument(
        "--trainer.compile",
        type=Literal["auto", "inductor", "aot_eager"] | None,
        help="compile the towers' layers with this backend of torch.compile; auto: inductor on "
        "GPUs, else none",
    )
    parser.add_argument(
        "--trainer.peak_tflops",
        type=Optional[PositiveFloat],  # noqa: UP045 - it is no class
        help="of one device in this precision, for mfu; none: what a matrix product reaches",
    )
    parser.add_class_arguments(PAIRS, "data")
    add_model(parser)
    # No default: arguments of another class of the same names would begin with AdamW's defaults.
    parser.add_subclass_arguments(AdamW, "optim", required=False)
    parser.add_subclass_arguments(Clipper, "grad_clip", required=False)
    parser.add_class_arguments(SpikeGuard, "guard")
    parser.add_argument("--phases", type=dict[str, Phase], required=True)
    parser.add_argument("--teachers", type=dict[str, Teacher] | None, help="frozen models")
    parser.add_argument("--ema", type=EmaConfig | None, help="moving average of the student")
    parser.add_class_arguments(EvaluationConfig, "evaluation")
    parser.add_class_arguments(CheckpointConfig, "checkpoint")
    parser.add_class_arguments(WatchConfig, "watch")
    parser.add_class_arguments(TraceConfig, "trace")
    return parser


def add_model(parser: ArgumentParser) -> None:
    """Adds the slots of the model and the objective, which sets the model's scale and bias."""
    parser.add_class_arguments(TwoTower, "model")
    parser.add_class_arguments(Objective, "objective")
    for name in ("logit_scale_init", "logit_bias_init", "logit_scale_bounds"):
        parser.link_arguments(f"objective.{name}", f"model.{name}")


def parse(parser: ArgumentParser, argv: list[str]) -> Namespace:
    """Reads the files that arguments name and parses all of it; a mistake becomes one sentence.

    Raises:
        ValueError: there is a mistake, or the run has stages, each of which is a configuration.
    """
    stages = split_stages(read(argv))
    if len(stages) > 1 or "" not in stages:
        raise ValueError(
            f"the run has the stages {', '.join(stages)}, and this command takes a run of one: "
            "write a run file with the slots of the stage that is meant"
        )
    return parse_written(parser, stages[""])


def parse_written(parser: ArgumentParser, written: Written) -> Namespace:
    """Parses what was read already; a mistake becomes one sentence."""
    words = written.words()
    if written.whole().get("optim") is None:
        words.append(f"--optim={ADAMW}")
    try:
        return parser.parse_args(words)
    except ArgumentError as error:
        found = diagnose(parser, written) or shortened(str(error))
        raise ValueError(found) from None


def plain(parser: ArgumentParser, config: Namespace) -> dict[str, Any]:
    """The resolved configuration as plain dicts, as it goes into files and checkpoints."""
    tree = yaml.safe_load(parser.dump(config, skip_unset=False))
    # Frozen defaults of a logger's service would keep the run from going on with another version.
    logger = tree["trainer"].get("logger")
    for one in logger if isinstance(logger, list) else [logger]:
        if isinstance(one, dict):
            _drop_all_defaults(one)
    return tree


def save(config: dict[str, Any], path: Path) -> None:
    """Writes a resolved configuration as YAML."""
    write_whole(path, yaml.safe_dump(config, sort_keys=False, allow_unicode=True))


def without_defaults(parser: ArgumentParser, config: Namespace) -> dict[str, Any]:
    """Returns the configuration as plain dicts, without what is at its default."""
    chosen = yaml.safe_load(parser.dump(config, skip_unset=False, skip_default=True))
    kinds = [(Phase, phase) for phase in chosen["phases"].values()]
    kinds += [(View, view) for view in (chosen.get("data", {}).get("views") or {}).values()]
    kinds += [(EmaConfig, chosen.get("ema")), (Spikes, (chosen.get("guard") or {}).get("spikes"))]
    kinds += [(Stream, chosen.get("data", {}).get("webdataset"))]
    for kind, values in kinds:
        _drop_defaults(values or {}, kind)
    _drop_all_defaults(chosen)
    return chosen


def _drop_all_defaults(tree: dict[str, Any]) -> None:
    # A dump has all keys of what stands in a mapping, and lists where defaults are tuples.
    if isinstance(tree.get("class_path"), str) and isinstance(tree.get("init_args"), dict):
        with suppress(ImportError, AttributeError):  # a logger that is not installed here
            _drop_defaults(tree["init_args"], pkgutil.resolve_name(tree["class_path"]))
    for value in tree.values():
        if isinstance(value, dict):
            _drop_all_defaults(value)


def _drop_defaults(values: dict[str, Any], kind: Callable[..., Any]) -> None:
    missing = object()
    # With those of `**kwargs`: inherited ones are not chosen either.
    for name, parameter in signatures.parameters(kind).items():
        default = parameter.default
        default = list(default) if isinstance(default, tuple) else default
        if values.get(name, missing) == default:
            del values[name]
