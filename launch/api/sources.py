"""What a model may be loaded from, and what evaluation and the API need of it.

In: a run folder or a checkpoint in one; what open_clip, transformers and others wrote. Out: towers,
what reads images and texts for them, and the measure by which features are compared.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...data.images.transforms import Transform
from ...data.text.tokenize import Tokenizer
from ...losses.components.similarity import Metric
from ...models.interop.read import read_foreign
from ...models.two_tower import TwoTower
from ...train.checkpointing.checkpoint import PATTERN, step_of
from ..run.load import CONFIG, Weights, checkpoint_of, load_run
from ..run.start.pixels import eval_transform_of
from ..run.start.tokenizers import tokenizer_of


@dataclass(frozen=True)
class Loaded:
    """A model as it is stored, on the CPU and in evaluation mode.

    Attributes:
        model: with its weights.
        tokenizer: texts and a length to ids and lengths.
        eval_transform: an image to the model's input.
        metric: how features are compared.
        name: of the results.
        config: of a run, its whole configuration; of another model what defines its towers.
        run_dir: of a run; None: it is no run's.
        step: of a run's checkpoint.
        weights: of a run.
    """

    model: TwoTower
    tokenizer: Tokenizer
    eval_transform: Transform
    metric: Metric
    name: str
    config: dict[str, Any]
    run_dir: Path | None = None
    step: int | None = None
    weights: Weights = "trained"


def load_source(
    source: str | Path, step: int | None = None, weights: Weights = "trained"
) -> Loaded:
    """Loads a model from wherever it lies.

    Args:
        source: a run folder or a checkpoint in one; a folder, a file or `NAME:FILE` of another
            library, see `models.interop.read`.
        step: which checkpoint of a run; None: the newest whole one.
        weights: of a run.

    Raises:
        ValueError: there is no such model, or it cannot be read.
    """
    path = Path(source).expanduser()
    if PATTERN.fullmatch(path.name) and (path.parents[1] / CONFIG).is_file():
        path, step = path.parents[1], step_of(path)
    if (path / CONFIG).is_file():
        # Chosen here, so that a run that goes on cannot get ahead of the name of the results.
        step = step_of(checkpoint_of(path, step))
        run = load_run(path, step, weights)
        read = run.tokenizer, run.eval_transform
        name = path.resolve().name
        return Loaded(
            run.model, *read, run.objective.metric(), name, run.config, path, step, weights
        )
    if step is not None or weights != "trained":
        raise ValueError(f"{source} is no run folder, so that it has neither steps nor an average")
    return load_foreign(str(source))


def load_foreign(source: str) -> Loaded:
    """Loads a model in another library's layout, with its own preprocessing.

    Raises:
        ValueError: nothing lies there that can be read, or it has one tower only.
    """
    foreign = read_foreign(source)
    model = foreign.build()
    assert foreign.pixels is not None and foreign.tokenizer is not None, "both towers are there"
    transform = eval_transform_of(foreign.pixels)
    tokenizer = tokenizer_of(foreign.tokenizer)
    name = Path(source.rpartition(":")[2]).expanduser().resolve()
    config = {"family": foreign.family, "model": foreign.config}
    return Loaded(
        model, tokenizer, transform, Metric(), name.stem if name.is_file() else name.name, config
    )
