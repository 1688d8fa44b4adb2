"""The user's callbacks: which of Lightning's work in a run, and what takes the place of the others.

In: `trainer.callbacks`. Out: the same list, or one sentence about what cannot work here.
"""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch import callbacks as theirs
from lightning.pytorch.callbacks.weight_averaging import WeightAveraging

from ...train.callbacks.evaluation import EvaluationConfig

FOLDER = "model_checkpoints"
INSTEAD: dict[type[Callback], str] = {
    theirs.GradientAccumulationScheduler: "it would contrast each pair with a part of the batch "
    "only; set phases.NAME.batch_size to the global batch, and model.chunks to save memory",
    theirs.BatchSizeFinder: "the global batch is phases.NAME.batch_size; model.chunks saves memory",
    theirs.LearningRateFinder: "the phases set the rate of every step; sweep "
    "phases.NAME.learning_rate (counterpoint sweep)",
    theirs.StochasticWeightAveraging: "it would set rates against the phases' schedule; average "
    "with ema (docs/teachers.md)",
    WeightAveraging: "it would save the average in the place of the weights; average with ema "
    "(docs/teachers.md)",
    theirs.BaseFinetuning: "what is trainable may not change in a run; freeze with optim.groups, "
    "and start a second run with init_from",
    theirs.ModelPruning: "it renames the weights, which nothing could load; prune what "
    "counterpoint export writes",
    theirs.OnExceptionCheckpoint: "Lightning would start later runs from its file without being "
    "asked; a run saves every checkpoint.every_n_steps steps, and at a stop",
    theirs.BasePredictionWriter: "nothing is predicted in a run; use counterpoint embed",
}


def checked_callbacks(
    chosen: list[Callback], evaluation: EvaluationConfig, run_dir: Path
) -> list[Callback]:
    """Refuses callbacks that cannot work in a run; gives a ModelCheckpoint its folder there."""
    for callback in chosen:
        reason = next((why for kind, why in INSTEAD.items() if isinstance(callback, kind)), None)
        if reason is not None:
            raise ValueError(
                f"trainer.callbacks: {type(callback).__name__} is not for runs: {reason}"
            )
        if isinstance(callback, theirs.ModelCheckpoint):
            # It has epochs where neither steps nor a time are named: ours are evaluations.
            if callback.every_n_epochs and evaluation.suite is None:
                raise ValueError(
                    "trainer.callbacks: ModelCheckpoint would save after evaluations, and there "
                    "are none: give it every_n_train_steps, or the run an evaluation.suite"
                )
            if callback.dirpath is None:
                callback.dirpath = str(run_dir / FOLDER)
    return chosen


def progress_bar(arguments: dict[str, Any]) -> bool:
    """Whether one of Lightning's bars is wanted: named in callbacks, or asked for."""
    bars = [c for c in arguments.get("callbacks") or [] if isinstance(c, theirs.ProgressBar)]
    wanted = arguments.get("enable_progress_bar")
    if bars and wanted is False:
        raise ValueError(
            f"trainer.enable_progress_bar is false, and trainer.callbacks has a "
            f"{type(bars[0]).__name__}: leave one of the two out"
        )
    return bool(wanted or bars)
