"""A word and several images: which of them does the word stand for?

Bitton et al., "WinoGAViL: Gamified Association Benchmark to Challenge Vision-and-Language Models"
(2022), section 4: of the candidates as many are chosen as were associated, those that score
highest with "A cue" or "An cue", and the measure is the Jaccard index of both sets.
"""

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ....data.image_sets import ImageSet
from ..encode import Encoder
from ..outcomes import Outcomes, part_of
from ..ranks import full_precision
from ..task import Task
from .winoground import positions


class Associations(Task):
    """Jaccard index of chosen and associated images.

    Measures: `jaccard` over all cues, `jaccard_5_6` and `jaccard_10_12` over those with up to six
    and from ten candidates on, and `main`, which DataComp averages: the last, if there are such.
    Of equal scores the wrong image is chosen.

    Args:
        data: the images; their keys, without folder and ending, are the candidates' names.
        questions: a CSV file with the columns `cue`, `candidates` and `associations` (both JSON
            lists), relative to the data root.
        where: see `Task`; cues with other images are left out.
    """

    def __init__(
        self,
        data: ImageSet,
        questions: str = "winogavil_dataset.csv",
        where: dict[str, Any] | None = None,
    ):
        super().__init__(data, where)
        self.questions = questions

    def prepare(self) -> np.ndarray:
        chosen = set(super().prepare().tolist())
        place = positions(self.data)
        self._names: list[str] = []
        self._cues: list[str] = []
        self._items: list[list[int]] = []
        self._right: list[list[bool]] = []
        for number, row in enumerate(read_rows(self.data.root / self.questions)):
            name = row.get("ID") or str(number)
            candidates, right = (
                _names(row, key, f"row {name} of {self.questions}")
                for key in ("candidates", "associations")
            )
            items = [place.get(each) for each in candidates]
            if None in items or not row.get("cue") or not set(right) <= set(candidates):
                absent = [c for c, i in zip(candidates, items, strict=True) if i is None]
                what = (
                    f"names the image '{absent[0]}', which is not in {self.data} or there twice"
                    if absent
                    else "has no cue, or associations that are no candidates"
                )
                raise ValueError(f"questions: row {name} of {self.questions} {what}")
            if right and chosen.issuperset(found := [i for i in items if i is not None]):
                self._names.append(name)
                self._cues.append(prompt(row["cue"]))
                self._items.append(found)
                self._right.append([each in right for each in candidates])
        if not self._names:
            raise ValueError(
                f"questions: none of {self.questions} is about the images of {self.data}"
            )
        self._chosen = np.unique(np.concatenate(self._items))
        return self._chosen

    def measure(self, encoder: Encoder, chosen: np.ndarray) -> Mapping[str, float | Outcomes]:
        place: dict[str, int] = {}
        rows = [place.setdefault(cue, len(place)) for cue in self._cues]
        text = encoder.texts(list(place))
        values = []
        for row, items, right in zip(rows, self._items, self._right, strict=True):
            image = encoder.images(self.data, items)
            with full_precision(encoder.device):
                scores = (image * text[row]).sum(1).cpu()
            values.append(jaccard(scores, torch.tensor(right)))
        whole = Outcomes(float(np.mean(values)), np.array(values), self._names)
        sizes = np.array([len(items) for items in self._items])
        parts = {"jaccard_5_6": sizes <= 6, "jaccard_10_12": sizes >= 10}
        found = {n: part_of(whole, members) for n, members in parts.items() if members.any()}
        main = found.get("jaccard_10_12", whole)
        return {"jaccard": whole, **found, "main": main}


def jaccard(scores: torch.Tensor, right: torch.Tensor) -> float:
    """Returns the Jaccard index of the right candidates and as many with the highest scores."""
    # NaN lies below all others, and of equal scores the wrong ones come first.
    order = sorted(range(len(right)), key=lambda i: (-_finite(scores[i]), bool(right[i])))
    num_right = int(right.sum())
    hits = sum(bool(right[i]) for i in order[:num_right])
    return hits / (2 * num_right - hits)


def _finite(score: torch.Tensor) -> float:
    return float(score.nan_to_num(-torch.inf))


def prompt(cue: str) -> str:
    """Returns what is encoded for a cue, as the benchmark's code has it."""
    cue = cue.strip().lower()
    return f"{'An' if cue[:1] in 'aeiou' else 'A'} {cue}"


def read_rows(path: Path) -> list[dict[str, str]]:
    """Reads a CSV file with a header.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"questions: {path} cannot be read ({error})") from error


def _names(row: Mapping[str, Any], key: str, where: str) -> list[str]:
    try:
        found = json.loads(row.get(key) or "")
    except ValueError:
        found = None
    if not isinstance(found, list):
        raise ValueError(f"questions: {where} has no JSON list '{key}', but {row.get(key)!r}")
    return [str(each) for each in found]
