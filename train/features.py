"""Feature providers: frozen teachers and the moving average of the student.

In: a batch and the names that the terms need. Out: features named `teacher.NAME.VIEW` and
`ema.VIEW` (each also as `.raw`, and `.logit_scale`), without gradient.

Teachers are not part of the saved state: they are loaded again. The average is: it is what the run
has learned, a function of synchronised weights and so the same on every rank.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from ..losses.features import MODEL_SCALARS
from ..models.reducers.attentive import PLACE, attended, moved
from ..models.reducers.base import Reduction
from ..models.teachers.frozen import FrozenTowers
from ..models.two_tower import TwoTower
from .ema import Ema
from .phases import Phases


def teacher_features(
    providers: Mapping[str, FrozenTowers], batch: Mapping[str, Tensor], needs: Iterable[str]
) -> dict[str, Tensor]:
    """Computes what is needed of each provider, each view once.

    Args:
        providers: `ema` and `teacher.NAME`.
        batch: As for the model.
        needs: Names of features; those of nobody here are left to others.
    """
    features: dict[str, Tensor] = {}
    for provider, towers in providers.items():
        prefix = f"{provider}."
        wanted = {name.removeprefix(prefix) for name in needs if name.startswith(prefix)}
        if wanted:
            features |= {prefix + name: value for name, value in towers(batch, wanted).items()}
    return features


def stored_features(
    batch: Mapping[str, Tensor], needs: Iterable[str], features: Collection[str]
) -> dict[str, Tensor]:
    """Returns the needed features that come with the batch (a sidecar's), in float32 at least.

    Args:
        batch: As for the model.
        needs: Names of features.
        features: Those that are there already.
    """
    found = {name: batch[name] for name in needs if name in batch and name not in features}
    return {
        name: value.float() if value.is_floating_point() and value.dtype.itemsize < 4 else value
        for name, value in found.items()
    }


def score_patches(
    reduction: Reduction, ema: Ema | None, batch: Mapping[str, Tensor], needs: Iterable[str]
) -> tuple[Reduction, dict[str, Tensor]]:
    """Lets the average look at the pictures first, if the step's reducer keeps what it looks at.

    Args:
        reduction: Of the step.
        ema: The average.
        batch: As for the model, with each view's `.augmentation`.
        needs: Names of features.

    Returns:
        The reduction with scores of all views of the picture that are needed, and those features of
        the average that come of it: it sees those pictures once.
    """
    seen = None if reduction.image is None else reduction.image.sees
    if reduction.image is None or seen is None:
        return reduction, {}
    assert ema is not None, "check_scores comes first"
    tower = ema.model.image
    names = {name.removeprefix("ema.") for name in needs if name.startswith("ema.")}
    wanted = {name for name in names if name.removesuffix(".raw") == seen} or {seen}
    features, attention = attended(tower, batch[seen], partial(ema, batch, wanted))
    scores = {}
    for view in image_views(needs):
        size = reduction.image.pixels(batch[view][:1])
        whole, part = (batch[f"{n}.augmentation"][:, : len(PLACE)] for n in (seen, view))
        scores[view] = moved(attention, whole, part, tower.grid(size))
    return replace(reduction, scores=scores), {f"ema.{n}": v for n, v in features.items()}


def image_views(needs: Iterable[str]) -> list[str]:
    """The views of the picture that the student encodes."""
    names = {name.removesuffix(".raw") for name in needs if name.split(".")[0] == "image"}
    return sorted(names)


def check_scores(
    phases: Phases,
    needs: Iterable[str],
    providers: Collection[str],
    placed: Mapping[str, int],
    model: TwoTower,
) -> None:
    """Looks at what phases need that keep the patches that the average looks at.

    Args:
        phases: Of the run.
        needs: Of the objective.
        providers: `ema` and `teacher.NAME`, as far as configured.
        placed: Side in pixels of the views whose place in the picture batches tell.
        model: The student.

    Raises:
        ValueError: Scores cannot be computed.
    """
    for name, phase in phases.named.items():
        seen = None if phase.image_reducer is None else phase.image_reducer.sees
        if seen is None:
            continue
        if "ema" not in providers:
            raise ValueError(
                f"phases.{name}.image_reducer keeps what an average of the student looks at: "
                "give the run one, such as ema: {decay: 0.996}, or use RandomPatches"
            )
        for view in (seen, *image_views(needs)):
            if view not in placed:
                raise ValueError(
                    f"phases.{name}.image_reducer needs to know where '{view}' lies in the "
                    f"picture, and there are {sorted(placed)}: make it in data.views, with a "
                    "TrainTransform or an EnclosingCrop"
                )
        side = placed[seen]
        model.image.grid(torch.empty(1, 3, side, side, dtype=torch.uint8))


def check_needs(
    needs: Iterable[str],
    providers: Collection[str],
    views: Collection[str],
    stored_features: Collection[str],
) -> None:
    """Looks for needs that nobody provides.

    Args:
        needs: Of the objective.
        providers: `ema` and `teacher.NAME`, as far as configured.
        views: `image`, `text` and further ones that batches hold.
        stored: Entries that come from sidecars.

    Raises:
        ValueError: There is one.
    """
    for name in sorted(set(needs) - set(stored_features)):
        words = name.split(".")
        own = words[0] in ("image", "text")
        if not own and words[0] not in ("ema", "teacher") and len(words) == 1:
            continue  # of every batch, such as its `key`
        provider = ".".join(words[:2]) if words[0] == "teacher" else words[0]
        if not own and provider not in providers:
            raise ValueError(f"a term needs '{name}', which nobody provides: {_fix(words)}")
        view = (name if own else name.removeprefix(f"{provider}.")).removesuffix(".raw")
        if view not in views and (own or view not in MODEL_SCALARS):
            raise ValueError(
                f"a term needs '{name}', but batches have no '{view}': name one of "
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
