"""Whether a run has collapsed: embeddings of different samples that are equal, or no gradient.

In: rows of `metrics.jsonl`. Out: a sentence. Nothing is imported: reports start without torch.
"""

from collections.abc import Mapping, Sequence
from typing import Any

# Random weights give mean cosines of up to 0.97, training lowers them; collapsed runs end above
# 0.9999. With cosines within 0.001, even the largest scale, 100, leaves a softmax almost uniform.
LEAST_SPREAD = 1e-3
# Gradients of runs that learn are above 0.1, or as small as the loss is; those of collapsed runs
# were 7e-4 to 4e-8, at losses of 0.3 to 4.9. Both must hold, since a loss may end near zero.
LEAST_NORM, LEAST_NORM_OF_LOSS = 1e-3, 1e-2
NUM_ROWS = 2  # the last ones, in all of which it must be so: a run's first row says nothing


def collapse(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns what says that training ended in a collapse; "" if nothing does."""
    last = [row for row in rows if "loss" in row and "grad_norm" in row][-NUM_ROWS:]
    if len(last) < NUM_ROWS:
        return ""
    reasons = []
    for modality, samples in (("image", "images"), ("text", "texts")):
        spreads = [_spread(row, modality) for row in last]
        if all(spread is not None and spread < LEAST_SPREAD for spread in spreads):
            how = _shown(last[-1], modality)
            reasons.append(f"the embeddings of different {samples} are nearly equal ({how})")
    if all(_has_no_gradient(row) for row in last):
        norm, loss = last[-1]["grad_norm"], last[-1]["loss"]
        reasons.append(f"no gradient is left (its norm is {norm:.2g}, the loss {loss:.4g})")
    return f"collapsed: {', and '.join(reasons)}" if reasons else ""


def _spread(row: Mapping[str, Any], modality: str) -> float | None:
    """Of what the objective compares: raw features, where it was logged."""
    if (spread := row.get(f"spread/{modality}")) is not None:
        return spread
    cosine = row.get(f"mean_cosine/{modality}")
    return None if cosine is None else 1.0 - cosine


def _shown(row: Mapping[str, Any], modality: str) -> str:
    if (spread := row.get(f"spread/{modality}")) is not None:
        return f"their variance is {spread:.1g} of their mean squared length"
    return f"mean cosine {row[f'mean_cosine/{modality}']:.6f}"


def _has_no_gradient(row: Mapping[str, Any]) -> bool:
    norm, loss = row["grad_norm"], row["loss"]
    return norm < LEAST_NORM and norm < LEAST_NORM_OF_LOSS * abs(loss)
