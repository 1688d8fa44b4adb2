"""The teachers of a run file, loaded and checked against what terms need.

In: the slots of a run. Out: frozen models by name, or one sentence about what cannot work.
"""

import copy
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch

from ....data.pairs import Pairs
from ....data.recipe import View
from ....data.text.tokenize import ClipTokenizer, Tokenizer
from ....losses.components.features import MODEL_SCALARS, needs_of_stream
from ....models.attention import class_token_blocks
from ....models.image import ImageTower
from ....models.reducers.base import ImageView
from ....models.teachers.frozen import ATTENTION, FrozenTowers, Teacher, view_of
from ....models.two_tower import TwoTower
from ....models.weights import load_weights
from ....train.checkpointing import checkpoint as checkpoints
from ....train.features import check_needs, check_scores
from ..load import CONFIG, load_run
from .initial import read_source, start_from
from .stored_texts import check_stored_texts
from .tokenizers import PROBE, PROBE_TOKENS, read_alike, tokenizer_of


def load_teachers(parts: Any) -> dict[str, FrozenTowers]:
    """Loads the teachers, after checking that each need of a term or reducer is met."""
    check_stored_texts(parts)
    teachers, data = parts.teachers or {}, parts.data
    for name in teachers:
        if {".", "/"} & set(name) or name in ("image", "text"):
            raise ValueError(
                f"the teacher '{name}' needs another name: no dots, slashes, image or text"
            )
    names = [f"teacher.{name}" for name in teachers] + ["ema"] * (parts.ema is not None)
    needs, sizes, stored = parts.objective.needs, sizes_of(parts), _stored(data)
    for stream, each in data.every_stream.items():
        reader = f"a term of the stream {stream}" if stream else "a term"
        own = needs_of_stream(needs, stream)
        check_needs(own, names, sizes_of(parts, stream), _stored(each), reader)
    for name, phase in parts.phases.named.items():
        if phase.image_reducer is not None:
            reader = f"phases.{name}.image_reducer"
            check_needs(phase.image_reducer.needs, names, sizes, stored, reader)
    views = {"image": View(data.train_transform)}
    views |= {f"image.{name}": view for name, view in data.views.items()}
    image_views = {
        # The position of a crop in another image says nothing about this one.
        name: ImageView(size, view.transform.columns if view.member is None else ())
        for name, view in views.items()
        if (size := sizes[name]) is not None
    }
    check_scores(parts.phases, needs, image_views, parts.model.image)
    loaded = {name: load_teacher(parts, name)[0] for name in teachers}
    for stream, each in data.every_stream.items():
        _check_own_texts(needs_of_stream(needs, stream), each, parts.model.context_length)
    return loaded


def load_teacher(
    parts: Any, name: str, chosen: Sequence[str] | None = None
) -> tuple[FrozenTowers, list[str]]:
    """Loads one teacher; returns it and the embeddings read of it (`image`, `text.theirs.raw`).

    Args:
        parts: slots of a run.
        name: of the teacher.
        chosen: the embeddings; None: those that terms and reducers need.
    """
    teacher, prefix = parts.teachers[name], f"teacher.{name}."
    streams: dict[str, Pairs] = parts.data.every_stream if chosen is None else {"": parts.data}
    needs = parts.objective.needs | parts.phases.needs
    own = {stream: needs_of_stream(needs, stream) for stream in streams}
    read = {s: {n.removeprefix(prefix) for n in own[s] if n.startswith(prefix)} for s in own}
    sizes = sizes_of(parts)
    if chosen is not None:
        read[""] = set(chosen)
        if unknown := sorted(n for n in read[""] if n.removesuffix(".raw") not in sizes):
            raise ValueError(
                f"batches have no '{unknown[0]}' to embed; they have {', '.join(sizes)} (further "
                "ones are data.views.NAME and data.texts.NAME)"
            )
    wanted = set[str]().union(*read.values())
    if not wanted:
        raise ValueError(f"no term needs the teacher '{name}': remove it, or name {prefix}...")
    views = {
        stream: sorted({view_of(need) for need in read[stream]} & sizes_of(parts, stream).keys())
        for stream in streams
    }
    tokenizers = [
        streams[stream].reads(view)[0]
        for stream, of_stream in views.items()
        for view in of_stream
        if view.startswith("text")
    ]
    towers = teacher.build(partial(load_model, parts, tokenizers))
    towers.model.chunks = parts.model.chunks
    for scalar in MODEL_SCALARS:
        value = getattr(towers.model, scalar)
        if scalar in wanted and (value is None or bool(value.isnan().any())):
            raise ValueError(
                f"a term needs '{prefix}{scalar}', and this teacher has none of its own: give the "
                "term numbers instead (teacher_scales, teacher_biases)"
            )
    for stream, of_stream in views.items():
        for view in of_stream:
            if view.startswith("image"):
                _check_size(prefix + view, view, sizes_of(parts, stream)[view], towers.model)
            else:
                _check_text(prefix + view, teacher, streams[stream], view, towers.model)
    if any(need.endswith(ATTENTION) for need in wanted):
        class_token_blocks(cast(ImageTower, towers.model.image))
    return towers, sorted(n for n in wanted if n.removesuffix(".raw") in sizes)


def sizes_of(parts: Any, stream: str = "") -> dict[str, int | None]:
    """Returns the side in pixels of each image that batches hold, and None for each text."""
    data: Pairs = parts.data.every_stream[stream]
    sizes: dict[str, int | None] = {"image": parts.model.image_size, "text": None}
    sizes |= {f"image.{n}": view.size or sizes["image"] for n, view in data.views.items()}
    return sizes | {f"text.{n}": None for n in data.texts}


def _stored(data: Pairs) -> list[str]:
    return [
        f"{name}.{entry}"
        for name, sidecar in data.sidecars.items()
        for entry in (*sidecar.columns, "present")
    ]


def load_model(parts: Any, tokenizers: Sequence[Tokenizer], source: str | None) -> TwoTower:
    """Returns a model with the weights of `source`, which reads ids of these tokenizers.

    See `Teacher.build`.
    """
    if source is None:
        source = parts.init_from
        if not source:
            raise ValueError(
                "a teacher without `source` is the model that the run starts from; name its "
                "weights with init_from, or give the teacher a source"
            )
        # As in a new run: a checkpoint that is resumed does not hold the weights of the start.
        model = copy.deepcopy(parts.model)
        start_from(model, source, parts.data.tokenizer or ClipTokenizer())
        return model
    path = Path(source)
    in_run = checkpoints.PATTERN.fullmatch(path.name) and (path.parents[1] / CONFIG).exists()
    if in_run or (path / CONFIG).is_file():
        run = (path.parents[1], checkpoints.step_of(path)) if in_run else (path, None)
        with torch.random.fork_rng(devices=[]):
            theirs = load_run(*run)
        for tokenizer in tokenizers:
            _check_tokenizer(source, tokenizer, theirs.tokenizer)
        return theirs.model
    read = read_source(source)
    if read.foreign is not None:
        for tokenizer in tokenizers:
            _check_tokenizer(source, tokenizer, tokenizer_of(read.tokenizer or {}))
        return read.foreign.build()
    model = copy.deepcopy(parts.model)
    report = load_weights(model, read.weights, source)
    if report.missing or report.reshaped:
        raise ValueError(
            f"the teacher {source} is not of the run's own architecture ({report}); name the "
            "folder of the run that trained it"
        )
    return model


def _check_tokenizer(source: str, ours: Tokenizer, theirs: Tokenizer) -> None:
    if not read_alike(ours, theirs):
        raise ValueError(
            f"the teacher {source} was trained with another tokenizer, so that it cannot read this "
            "text: use its data.tokenizer, only its image features, or a text of its own "
            "(data.texts.NAME with tokenizer and context_length) for ...text.NAME"
        )


def _check_size(need: str, view: str, size: int | None, teacher: TwoTower) -> None:
    if size != teacher.image_size:
        raise ValueError(
            f"'{need}' would get images of {size} pixels, and this teacher takes "
            f"{teacher.image_size}: add the view data.views.NAME with size {teacher.image_size} "
            f"(same_as: {view}) and let the term need ...image.NAME"
        )


def _check_text(need: str, teacher: Teacher, data: Pairs, view: str, towers: TwoTower) -> None:
    tokenizer, context_length = data.reads(view)
    if context_length > towers.context_length:
        raise ValueError(
            f"'{need}' would get texts of {context_length} tokens, and this teacher takes "
            f"{towers.context_length}: set the student's context_length to that, or give the "
            "teacher a text of its own, data.texts.NAME with tokenizer and context_length"
        )
    ids, lengths = tokenizer(PROBE, PROBE_TOKENS)
    theirs = teacher.tokenize(PROBE, PROBE_TOKENS)
    if theirs is not None and not torch.equal(ids[0, : lengths[0]], theirs[0, : lengths[0]]):
        raise ValueError(
            f"'{need}' would get ids of another tokenizer than this teacher's: add "
            "data.texts.NAME with its tokenizer (counterpoint.data.text.tokenize.HFTokenizer) and "
            "context_length, and let the term need ...text.NAME"
        )


def _check_own_texts(needs: Iterable[str], data: Pairs, context_length: int) -> None:
    """The student, and so its average, reads neither ids of another tokenizer nor longer texts."""
    for need in sorted(needs):
        entry = view_of(need.removeprefix("ema."))
        if not entry.startswith("text."):
            continue
        tokenizer, length = data.reads(entry)
        if length > context_length:
            raise ValueError(
                f"a term needs '{need}' of the student, which takes texts of {context_length} "
                f"tokens, and data.{entry.replace('text', 'texts', 1)} makes {length}: set the "
                f"student's context_length to {length}, or shorten the text"
            )
        if tokenizer is not data.tokenizer:
            raise ValueError(
                f"a term needs '{need}' of the student, but data.texts gives this text a tokenizer "
                "of its own, for a teacher: use a text without one"
            )
