"""Features that do not come from the student: of teachers, of its moving average, of sidecars.

In: a batch and the names that terms and reducers need. Out: features named `teacher.NAME.VIEW` and
`ema.VIEW` (each also as `.raw` and, for images, `.attention`; and `.logit_scale`), and entries of
sidecars, without gradient; the scores by which a reducer keeps patches.

Teachers are not part of the saved state: they are loaded again. The average is: it is what the run
has learned, a function of synchronised weights and so the same on every rank.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

from torch import Tensor

from ..losses.components.features import MODEL_SCALARS, in_stream, of_stream, stream_of
from ..models.image import ImageTower
from ..models.reducers.base import ImageView, Reduction
from ..models.teachers.frozen import FrozenTowers, view_of
from ..models.two_tower import view_of as view_of_student
from .phases import Phases


def frozen_features(
    frozen: Mapping[str, FrozenTowers], batch: Mapping[str, Tensor], needs: Iterable[str]
) -> dict[str, Tensor]:
    """Computes what is needed of frozen towers (`ema`, `teacher.NAME`), each view once."""
    features: dict[str, Tensor] = {}
    for stream in sorted({stream_of(name) for name in needs}) if frozen else ():
        entries = of_stream(batch, stream)
        for model, towers in frozen.items():
            prefix = in_stream(f"{model}.", stream)
            wanted = {name.removeprefix(prefix) for name in needs if name.startswith(prefix)}
            if wanted:
                features |= {prefix + name: v for name, v in towers(entries, wanted).items()}
    return features


def stored_features(
    batch: Mapping[str, Tensor], needs: Iterable[str], features: Collection[str]
) -> dict[str, Tensor]:
    """Returns needed features that come with the batch (a sidecar's), in float32 at least."""
    stored = {name: batch[name] for name in needs if name in batch and name not in features}
    return {
        name: value.float() if value.is_floating_point() and value.dtype.itemsize < 4 else value
        for name, value in stored.items()
    }


def score_patches(
    reduction: Reduction,
    tower: ImageTower,
    frozen: Mapping[str, FrozenTowers],
    batch: Mapping[str, Tensor],
    needs: Iterable[str],
) -> tuple[Reduction, dict[str, Tensor]]:
    """Computes the scores by which the step's image reducer keeps patches, if it has any.

    The batch also holds `.augmentation` of each view.

    Returns:
        The reduction with scores of the image views that the student encodes, and the features
        computed for them, so that no frozen model encodes a view twice.
    """
    reducer, scored = reduction.image, image_views(needs)
    if reducer is None or not scored:  # a step of a stream without images
        return reduction, {}
    # What terms read of the same views comes from the same pass.
    scoring = {view_of(name) for name in reducer.needs}
    asked = {*reducer.needs, *(name for name in needs if view_of(name) in scoring)}
    features = frozen_features(frozen, batch, asked)
    features |= stored_features(batch, reducer.needs, features)
    for name in set(reducer.needs) - features.keys():
        raise ValueError(f"{type(reducer).__name__} needs '{name}': {_fix(name.split('.'))}")
    grids = {v: tower.grid(reducer.pixels(batch[v][:1])) for v in scored}
    return replace(reduction, scores=reducer.scores(features, batch, grids)), features


def image_views(needs: Iterable[str]) -> list[str]:
    """Returns the image views that the student encodes."""
    words = {name: name.rpartition("/")[2].split(".")[0] for name in needs}
    names = {view_of_student(name) for name, word in words.items() if word == "image"}
    return sorted(names)


def check_scores(
    phases: Phases, needs: Iterable[str], views: Mapping[str, ImageView], tower: ImageTower
) -> None:
    """Checks that the image reducers of all phases can score what the student encodes."""
    for name, phase in phases.named.items():
        if (reducer := phase.image_reducer) is None:
            continue
        student = [need for need in reducer.needs if need.split(".")[0] in ("image", "text")]
        try:
            if student:
                raise ValueError(
                    f"{type(reducer).__name__} needs {student} of the student, which runs after "
                    "the scores: name features of ema or of teacher.NAME, or read the batch"
                )
            reducer.check_views(tower, views, image_views(needs))
        except ValueError as error:
            raise ValueError(f"phases.{name}.image_reducer: {error}") from None


def check_needs(
    needs: Iterable[str],
    frozen: Collection[str],
    views: Collection[str],
    stored: Collection[str],
    reader: str = "a term",
) -> None:
    """Checks that all features that a part of the run reads are provided.

    Frozen models are `ema` and `teacher.NAME` as configured, views are `image`, `text` and further
    ones of batches, stored features come from sidecars; `reader` is for the message.
    """
    for name in sorted(set(needs) - set(stored)):
        words = name.split(".")
        is_student = words[0] in ("image", "text")
        if not is_student and words[0] not in ("ema", "teacher") and len(words) == 1:
            continue  # of every batch, such as its `key`
        model = ".".join(words[:2]) if words[0] == "teacher" else words[0]
        if not is_student and model not in frozen:
            raise ValueError(f"{reader} needs '{name}', which the run does not have: {_fix(words)}")
        view = view_of_student(name) if is_student else view_of(name.removeprefix(f"{model}."))
        if view not in views and (is_student or view not in MODEL_SCALARS):
            raise ValueError(
                f"{reader} needs '{name}', but batches have no '{view}': name one of "
                f"{sorted(views)}, or add it to data.views or data.texts"
            )


def _fix(words: list[str]) -> str:
    if words[0] == "ema":
        return "give the run an average of the student, such as ema: {decay: 0.996}"
    if words[0] != "teacher":
        return (
            f"give data.sidecars.{words[0]} a column {'.'.join(words[1:])}, or name a feature of a "
            "teacher as teacher.NAME.image or teacher.NAME.text"
        )
    name = words[1] if len(words) > 2 else "NAME"
    return (
        f"configure teachers: {{{name}: {{class_path: counterpoint.models.teachers.frozen.Frozen, "
        "init_args: {source: RUN_DIR}}} and name its features teacher.NAME.image or "
        "teacher.NAME.text, or store them in a sidecar"
    )
