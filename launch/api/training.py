"""A run file as objects: what `counterpoint fit` trains, for a script of one's own.

In: a run file or the name of a packaged run, and keys that override it. Out: the LightningModule,
the data module and the Trainer, connected, with the run folder made.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch import Callback, LightningModule, Trainer

from ...data.pairs import Pairs
from ...train.module import ContrastiveModule
from ..config.diagnosis import check_words
from ..config.run_files import read
from ..run.env import prepare
from ..run.train import Fit, Run


class Training(NamedTuple):
    """What a fit needs: `trainer.fit(module, datamodule=data)`."""

    module: ContrastiveModule
    data: Pairs
    trainer: Trainer


def build(
    config: str | Path,
    overrides: Mapping[str, Any] | None = None,
    *,
    run_dir: str | Path | None = None,
    callbacks: Sequence[Callback] = (),
    resume: str | None = None,
) -> Training:
    """Builds a run as `counterpoint fit` does, up to the fit itself.

    `trainer.fit(module, datamodule=data)` then trains it: with checkpoints, evaluations and
    `metrics.jsonl` in the run folder, and `summary.json` at the end.

    Args:
        config: a run file, or the name of a packaged run.
        overrides: values by dotted key, such as `{"phases.train.samples": 4800}`.
        run_dir: where results go; None: as the configuration says.
        callbacks: beside those of the configuration. A run that is resumed does not know them.
        resume: `auto`: go on with what the run folder holds, if it does; None: a new run.

    Raises:
        ValueError: the configuration is wrong or does not fit the machine, the folder holds a run,
            or the run cannot be trained in one fit.
    """
    prepare()
    words = ["--config", str(config)]
    words += [f"--{key}={as_word(value)}" for key, value in (overrides or {}).items()]
    words += [] if run_dir is None else [f"--run_dir={run_dir}"]
    written = read(words)
    check_words(written)
    run = Run.of(written, resume, callbacks)
    start = run.restore()
    if start is None:
        raise ValueError(f"{run.run_dir} is finished; raise phases.NAME.samples to go on")
    if start.parts.guard.rewinds:
        raise ValueError(
            "guard.spikes goes back to a checkpoint, which takes several fits: leave it out, or "
            "train with counterpoint fit"
        )
    fit = run.prepare(start)
    if start.checkpoint is not None:
        fit.trainer.ckpt_path = start.checkpoint
    fit.trainer.callbacks.append(Finish(run, fit))  # type: ignore[attr-defined]
    return Training(start.module, start.parts.data, fit.trainer)


def as_word(value: Any) -> str:
    """Returns a value as one would write it on the command line, where texts have no quotes."""
    return value if isinstance(value, str) else json.dumps(value)


class Finish(Callback):
    """Writes the summary of a run when its fit has ended."""

    def __init__(self, run: Run, fit: Fit):
        self.run, self.ended = run, fit

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.run.finish(self.ended.outcome())
        self.run.close()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Lets another process continue the run."""
        self.run.close()
