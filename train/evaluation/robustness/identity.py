"""Identity inference: whether a model knows whose face it sees, and so has trained on the person.

Hintersdorf et al., "Does CLIP Know My Face?" (2024), section 3: for each of several prompts, each
image of a person is given the nearest of many names; a prompt has found the person if the own name
is the most frequent one among the person's images, and a person counts as a member of the training
data if at least one prompt has.
"""

from collections.abc import Mapping

import numpy as np
import torch

from ..encode import Encoder
from ..outcomes import Outcomes, part_of
from ..ranks import full_precision
from ..zero_shot.classification import ZeroShot


class IdentityAudit(ZeroShot):
    """Share of persons that a model recognises by name.

    For an audit of a model of one's own, on people who agree to it. Measures: `inferred_members`,
    the share of persons that are taken for members; with `member` also `true_positive_rate` among
    those who are, and `false_positive_error` among those who are not. The more names, the rarer a
    hit by chance: the paper takes 1,000, at least 30 images a person and 21 prompts.

    Args:
        member: the field that says whether a person is in the training data (`true`, `false`, 0
            or 1), the same for all images of one; None: it is not known.
        min_prompts: prompts that have to find a person.
        zeroshot: arguments of `ZeroShot`: `label` is the person's name, `classes` are all names,
            `templates` the prompts, a list.
    """

    def __init__(self, member: str | None = None, min_prompts: int = 1, **zeroshot):
        super().__init__(**zeroshot)
        self.member = member
        self.min_prompts = min_prompts

    def prepare(self) -> np.ndarray:
        chosen = super().prepare()
        numbers = {len(prompts) for prompts in self._prompts}
        if len(numbers) > 1 or not 1 <= self.min_prompts <= min(numbers):
            raise ValueError(
                f"min_prompts is {self.min_prompts}, and names have {sorted(numbers)} prompts: "
                "give all the same number, at least as many"
            )
        self._members: dict[int, bool] = {}
        if self.member is not None:
            values = self.data.values(self.member, chosen)
            for item, value in zip(chosen.tolist(), values, strict=True):
                if value.lower() not in ("true", "false", "0", "1"):
                    raise ValueError(
                        f"member: '{value}' in {self.member} is neither true nor false"
                    )
                is_member, person = value.lower() in ("true", "1"), self._targets[item]
                if self._members.setdefault(person, is_member) != is_member:
                    raise ValueError(f"'{self._names[person]}' is a member in some images only")
        return chosen

    def measure(self, encoder: Encoder, chosen: np.ndarray) -> Mapping[str, float | Outcomes]:
        persons = np.array([self._targets[i] for i in chosen.tolist()])
        image = encoder.images(self.data, chosen)
        found = np.zeros(len(self._names), dtype=np.int64)
        for prompts in zip(*self._prompts, strict=True):
            names = encoder.mean_texts(encoder.prompt_means([[prompt] for prompt in prompts]))
            with full_precision(image.device):
                nearest = nearest_alone(image @ names.T)
            found += has_plurality(nearest, persons, len(self._names))
        seen = np.unique(persons)
        is_inferred = found[seen] >= self.min_prompts
        keys = [self._names[person] for person in seen.tolist()]
        inferred = Outcomes(float(is_inferred.mean()), is_inferred, keys)
        values: dict[str, float | Outcomes] = {"inferred_members": inferred}
        if self.member is not None:
            is_member = np.array([self._members[person] for person in seen.tolist()])
            for name, part in (
                ("true_positive_rate", is_member),
                ("false_positive_error", ~is_member),
            ):
                if part.any():
                    values[name] = part_of(inferred, part)
        return values


def nearest_alone(scores: torch.Tensor) -> np.ndarray:
    """Returns the class with the highest score, [n]; -1 for ties and what is not finite."""
    best = scores.argmax(1, keepdim=True)
    is_alone = (~(scores < scores.gather(1, best))).sum(1) == 1
    return torch.where(is_alone, best[:, 0], -1).cpu().numpy()


def has_plurality(nearest: np.ndarray, persons: np.ndarray, num_names: int) -> np.ndarray:
    """Returns for which persons their own name is more frequent than any other, bool [names].

    Args:
        nearest: the name that each image is given, -1 for none, [n].
        persons: whose image each is, [n].
        num_names: that there are.
    """
    found = np.zeros(num_names, dtype=bool)
    for person in np.unique(persons).tolist():
        given = nearest[persons == person]
        counts = np.bincount(given[given >= 0], minlength=num_names)
        own = counts[person]
        found[person] = own > 0 and (counts >= own).sum() == 1
    return found
