"""The weights that a run starts from: of a run, a file or another library, whole or by tower.

In: `init_from`, one source or `{image: SOURCE, text: SOURCE}`, and the model. Out: the model with
these weights, resized where they can be, and one line for each source about what became of them.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import yaml
from torch import Tensor

from ....data.images.transforms import Transform
from ....data.text.tokenize import ClipTokenizer, Tokenizer
from ....models.distributed_checkpoint import is_distributed
from ....models.image import ImageTower
from ....models.interop.archive import read_tensors
from ....models.interop.base import ForeignModel
from ....models.interop.differences import differences
from ....models.interop.openai import convert_openai, is_openai
from ....models.interop.read import is_foreign, read_foreign
from ....models.text.base import TextTower
from ....models.two_tower import TwoTower
from ....models.weight_inheritance import inherit
from ....models.weight_resizing import resized, vocabularies
from ....models.weights import TOWERS, load_weights, read_weights
from ..env import log
from ..load import CONFIG, checkpoint_of, load_run
from .pixels import preprocessing_mismatch
from .tokenizers import read_alike, tokenizer_of

InitFrom = str | Mapping[str, str]


@dataclass(frozen=True)
class Source:
    """Weights under our names.

    Attributes:
        name: of the file, for messages.
        weights: tensors.
        tokenizer: value of `data.tokenizer` that the texts were read with; {}: CLIP's; None: it is
            not known.
        foreign: the model of another library that they are of.
    """

    name: str
    weights: dict[str, Tensor]
    tokenizer: Mapping[str, Any] | None = None
    foreign: ForeignModel | None = None

    @property
    def advice(self) -> str:
        """The configuration that such weights are for."""
        return f"; model: {json.dumps(self.foreign.config)}" if self.foreign else ""


def load_initial_weights(
    model: TwoTower,
    config: Any,
    tokenizer: Tokenizer | None = None,
    eval_transform: Transform | None = None,
) -> None:
    """Gives a model that is not resumed the weights that its configuration names, and logs them.

    Args:
        model: of the run.
        config: of the run: `init_from` and `inherit_from`.
        tokenizer: of the run's captions; None: CLIP's.
        eval_transform: of the run's images; None: it is not compared with the source's.

    Raises:
        ValueError: a source cannot be read, or is another model's.
    """
    if config.init_from and config.inherit_from:
        raise ValueError("give init_from (equal shapes) or inherit_from (slices), not both")
    if config.init_from:
        read = tokenizer or ClipTokenizer(), eval_transform
        for line in start_from(model, config.init_from, *read):
            log(f"init_from {line}")
        rest = isinstance(config.init_from, Mapping) and "image" not in config.init_from
        if rest and (loaded := cast(ImageTower, model.image).load_pretrained()):
            log(loaded)
    elif config.inherit_from:
        larger = load_run(config.inherit_from).model
        log(f"inherit_from {config.inherit_from}: {inherit(model, larger)}")
    elif loaded := cast(ImageTower, model.image).load_pretrained():
        log(loaded)


def start_from(
    model: TwoTower,
    init_from: InitFrom,
    tokenizer: Tokenizer,
    eval_transform: Transform | None = None,
) -> list[str]:
    """Loads one source, or one for each tower; the latter leave scale and bias as they are.

    Returns:
        What became of each source, a line each.

    Raises:
        ValueError: see `load_initial_weights`.
    """
    read = tokenizer, eval_transform
    if isinstance(init_from, str):
        return [_load(model, read_source(init_from), TOWERS, *read)]
    if unknown := sorted(init_from.keys() - set(TOWERS)):
        raise ValueError(
            f"init_from has {', '.join(unknown)}: name one source, or towers, "
            "{image: SOURCE, text: SOURCE}"
        )
    return [_load(model, read_source(name), (tower,), *read) for tower, name in init_from.items()]


def read_source(source: str) -> Source:
    """Reads weights from a run folder, a file, or what `models.interop.read` reads.

    Raises:
        ValueError: there are none.
    """
    path = Path(source)
    if is_foreign(source):
        return _foreign(read_foreign(source), source)
    if path.is_dir() and not is_distributed(path):
        path = checkpoint_of(path)
        return Source(str(path), read_weights(path), _tokenizer_of(path.parents[1]))
    if path.suffix != ".ckpt" and path.is_file() and is_openai(tensors := read_tensors(path)):
        return _foreign(convert_openai(tensors), source)
    return Source(source, read_weights(path), _tokenizer_of(path.parent.parent))


def _foreign(model: ForeignModel, source: str) -> Source:
    return Source(f"{source} ({model.family})", model.weights, model.tokenizer, model)


def _tokenizer_of(run_dir: Path) -> Mapping[str, Any] | None:
    if not (run_dir / CONFIG).is_file():
        return None
    config = yaml.safe_load((run_dir / CONFIG).read_text())
    return config.get("data", {}).get("tokenizer") or {}


def _load(
    model: TwoTower,
    source: Source,
    towers: tuple[str, ...],
    tokenizer: Tokenizer,
    eval_transform: Transform | None,
) -> str:
    others = tuple(f"{t}{mark}" for t in TOWERS if t not in towers for mark in "._")
    weights = {n: v for n, v in source.weights.items() if not n.startswith(others)}
    if towers != TOWERS:
        weights = {n: v for n, v in weights.items() if n.startswith(TOWERS)}
    weights = _within(weights, cast(TextTower, model.text).inner)
    changed = resized(weights, model)
    notes = []
    if any(n.startswith("text.") for n in weights):
        notes += check_tokenizer(source, weights, model, tokenizer)
    try:
        report = load_weights(model, weights | changed, source.name, changed)
    except ValueError as error:
        raise ValueError(f"{error}{source.advice}") from None
    if source.foreign is not None:
        held = [tower for tower in source.foreign.towers if tower in towers]
        notes += [f"differs: {n}" for n in differences(source.foreign, model, held)]
        pixels = source.foreign.pixels if "image" in held else None
        if pixels and eval_transform and (n := preprocessing_mismatch(pixels, eval_transform)):
            notes.append(f"differs: {n}")
    return "; ".join([f"{source.name}: {report}", *notes])


def _within(weights: dict[str, Tensor], inner: str) -> dict[str, Tensor]:
    """Weights of a text tower, under the names that they have within one that wraps it."""
    start, within = "text.", f"text.{inner}"
    if not inner or any(n.startswith(within) for n in weights):
        return weights
    return {
        n.replace(start, within, 1) if n.startswith(start) else n: v for n, v in weights.items()
    }


def check_tokenizer(
    source: Source, weights: Mapping[str, Tensor], model: TwoTower, tokenizer: Tokenizer
) -> list[str]:
    """Compares the run's tokenizer with the source's; returns what could not be compared.

    Raises:
        ValueError: they read a text differently, or the vocabularies differ and nothing is known.
    """
    sizes = vocabularies(weights, model)
    theirs, reason = None, "what it was trained with is not known"
    if source.tokenizer is not None:
        try:
            theirs = tokenizer_of(source.tokenizer)
        except ValueError as error:
            reason = str(error)
    if theirs is None:
        if sizes is None or sizes[0] == sizes[1]:
            return ["its tokenizer was not compared"]
        raise ValueError(
            f"{source.name} has {sizes[0]} token ids, and the text tower {sizes[1]}; its tokenizer "
            f"cannot be compared with the run's ({reason}): give the text tower its vocab_size, or "
            "take its image tower only (init_from: {image: ...})"
        )
    if not read_alike(tokenizer, theirs):
        raise ValueError(
            f"{source.name} was trained with another tokenizer than the run's: set data.tokenizer "
            f"to {dict(source.tokenizer or {}) or 'null'}, or take its image tower only "
            "(init_from: {image: ...})"
        )
    return []
