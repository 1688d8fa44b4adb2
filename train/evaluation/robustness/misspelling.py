"""Misspelt class names: what a few changed characters do to zero-shot classification.

Abad Rocamora et al., "Robustness in Both Domains: CLIP Needs a Robust Text Encoder" (2025), attack
the text tower by characters: of several edits the one is taken that moves the embedding furthest.
Here edits are drawn at random, beside the worst of them.
"""

import hashlib
import random
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch.nn import functional as F

from ....losses.components.similarity import Metric
from ..accuracy import class_ranks
from ..encode import Encoder
from ..outcomes import Outcomes
from ..ranks import full_precision, recall_at
from ..zero_shot.classification import ZeroShot

LETTERS = "abcdefghijklmnopqrstuvwxyz"


class MisspelledNames(ZeroShot):
    """Zero-shot accuracy with edited class names in the prompts.

    Every prompt's name gets `edits` random changes of a character (one replaced, inserted, left
    out, or two exchanged), in `candidates` ways that depend on the name and the seed alone.
    Measures: `clean_top1`; `misspelled_top1`, with the first candidate of each class;
    `attacked_top1`, with the candidate whose class embedding has the smallest cosine with the clean
    one.

    Args:
        edits: characters that are changed in a name.
        candidates: ways to do so, of which the attack takes the worst.
        seed: of the edits.
        zeroshot: arguments of `ZeroShot`.
    """

    def __init__(self, edits: int = 1, candidates: int = 20, seed: int = 0, **zeroshot):
        super().__init__(**zeroshot)
        if edits < 1 or candidates < 1:
            raise ValueError(f"edits is {edits} and candidates {candidates}; give at least 1")
        self.edits = edits
        self.candidates = candidates
        self.seed = seed

    def prepare(self) -> np.ndarray:
        chosen = super().prepare()
        clean, names = self._prompts, self._names
        edited = [
            [misspelled(name, self.edits, f"{self.seed}/{n}") for name in names]
            for n in range(self.candidates)
        ]
        by_candidate = []
        for column in edited:
            by_candidate.append(
                [
                    [prompt.replace(name, other) for prompt in prompts]
                    for prompts, name, other in zip(clean, names, column, strict=True)
                ]
            )
        self._misspelled = by_candidate
        return chosen

    def measure(self, encoder: Encoder, chosen: np.ndarray) -> Mapping[str, float | Outcomes]:
        clean = self.classifier(encoder)
        prompts = [of_class for candidate in self._misspelled for of_class in candidate]
        split = (self.candidates, len(self._names))
        features = encoder.mean_texts(encoder.prompt_means(prompts)).unflatten(0, split)
        plain = replace(encoder, metric=Metric())
        means = F.normalize(plain.prompt_means(prompts), dim=1).unflatten(0, split)
        cosines = (means * F.normalize(plain.prompt_means(self._prompts), dim=1)).sum(2)
        worst = features[cosines.argmin(0), torch.arange(len(self._names), device=clean.device)]
        image = encoder.images(self.data, chosen)
        targets = torch.tensor([self._targets[i] for i in chosen.tolist()], device=image.device)
        values, keys = {}, self.keys(chosen)
        for name, classifier in (
            ("clean", clean),
            ("misspelled", features[0]),
            ("attacked", worst),
        ):
            with full_precision(image.device):
                ranks = class_ranks(image @ classifier.T, targets)
            values[f"{name}_top1"] = Outcomes(recall_at(ranks, 1), ranks.numpy() < 1, keys)
        return values


def misspelled(text: str, edits: int, seed: str) -> str:
    """Returns a text with some characters changed, another one than before.

    >>> misspelled("red fox", 1, "0") == misspelled("red fox", 1, "0") != "red fox"
    True
    """
    digest = hashlib.sha256(f"{seed}/{text}".encode()).digest()
    rng = random.Random(digest)
    out = text
    while out == text:
        out = text
        for _ in range(edits):
            out = _edited(out, rng)
    return out


def _edited(text: str, rng: random.Random) -> str:
    kind, place, letter = rng.randrange(4), rng.randrange(max(1, len(text))), rng.choice(LETTERS)
    before, after = text[:place], text[place + 1 :]
    if kind == 0 or not text:
        return before + letter + text[place:]
    if kind == 1:
        return before + letter + after
    if kind == 2:
        return before + after if len(text) > 1 else letter
    return before + after[:1] + text[place] + after[1:]
