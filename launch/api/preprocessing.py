"""Whether a model sees its images as its weights want them: a check before an evaluation.

In: a loaded model. Out: a sentence to print; "" if nothing is wrong, or nothing is known. Models of
other libraries bring their preprocessing along; a run that started from one may evaluate otherwise.
"""

from collections.abc import Mapping

from ...models.interop.differences import statistics_apart
from ..run.start.initial import read_source
from ..run.start.pixels import ALIKE, levels_apart, preprocessing_mismatch
from .sources import Loaded


def start_mismatch(loaded: Loaded) -> str:
    """Compares a run with the foreign model that its image tower started from, if it is there."""
    source = loaded.config.get("init_from") if loaded.run_dir else None
    source = source.get("image") if isinstance(source, Mapping) else source
    try:
        foreign = read_source(str(source)).foreign if source else None
    except (ValueError, OSError):  # a run needs its source at the first start only
        return ""
    if foreign is None or foreign.pixels is None:
        return ""
    differences = statistics_apart(foreign.pixels, loaded.model)
    if phrase := preprocessing_mismatch(foreign.pixels, loaded.eval_transform):
        differences.append(phrase)
    if not differences:
        return ""
    return f"{loaded.name} started from {source}, whose images are others: {'; '.join(differences)}"


def line_mismatch(start: Loaded, end: Loaded) -> str:
    """Compares the two models of a line, on which images are those of the first."""
    levels = levels_apart(start.eval_transform, end.eval_transform, start.model.image_size)
    if levels <= ALIKE:
        return ""
    return (
        f"{end.name} prepares images otherwise than {start.name} (a test image differs by up to "
        f"{levels} of 255 grey levels), whose preprocessing is taken for all points"
    )
