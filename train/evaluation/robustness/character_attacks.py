"""Names and captions with the worst changed character that a search finds.

Abad Rocamora et al., "Robustness in Both Domains: CLIP Needs a Robust Text Encoder" (2025,
LEAF), section 4: for each edit, some places of a text are tried with a space in the place of the
character, then some characters at the place that moved the embedding furthest, in squared Euclidean
distance before normalisation. Nothing is known of the images. The paper's tables use Charmer, which
tries all characters at its places; the search here is the paper's own of training.
"""

import random
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ....data.hashing import text_hash
from ....data.image_sets import ImageSet
from ....data.text.character_edits import ALPHABET, edited_at
from ..accuracy import class_ranks
from ..encode import Encoder
from ..outcomes import Outcomes
from ..ranks import full_precision, ranks, recall_at
from ..retrieval import Retrieval
from ..zero_shot.classification import ZeroShot

RAW = ".raw"
# Of candidates [[text, ...], ...] their features [n, width, d].
Features = Callable[[Sequence[Sequence[str]]], Tensor]


def attack(
    texts: Sequence[str], features: Features, edits: int, candidates: int, seed: int
) -> list[str]:
    """Returns each text with the edits that move its feature furthest, of those that are tried.

    Args:
        texts: the clean texts.
        features: of candidates for each text, as many for each; called 2 * edits + 1 times.
        edits: changes of one character, one after the other.
        candidates: places, and then characters, that are tried for each of them.
        seed: with a text it decides what is tried.
    """
    clean = features([[text] for text in texts])
    rngs = [random.Random(text_hash(seed, text)) for text in texts]
    found = list(texts)
    for _ in range(edits):
        places = [
            [rng.randrange(2 * len(text) + 1) for _ in range(candidates)]
            for rng, text in zip(rngs, found, strict=True)
        ]
        probes = [[edited_at(t, p, " ") for p in ps] for t, ps in zip(found, places, strict=True)]
        place = [ps[i] for ps, i in zip(places, furthest(features, probes, clean), strict=True)]
        letters = [rng.choices([*ALPHABET, ""], k=candidates) for rng in rngs]
        tried = [
            [edited_at(text, p, letter) for letter in each]
            for text, p, each in zip(found, place, letters, strict=True)
        ]
        found = [ts[i] for ts, i in zip(tried, furthest(features, tried, clean), strict=True)]
    return found


def furthest(features: Features, tried: Sequence[Sequence[str]], clean: Tensor) -> list[int]:
    """Returns which candidate of each text lies furthest from the clean feature."""
    return (features(tried) - clean).square().sum(2).argmax(1).tolist()


class AttackedNames(ZeroShot):
    """Zero-shot accuracy with attacked class names in the prompts.

    Measures: `clean_top1`, and `attacked_top1` with the name of every class changed by `attack`.

    Args:
        edits: characters that are changed in a name.
        candidates: places, and then characters, that the attack tries for each.
        seed: of what is tried.
        zeroshot: arguments of `ZeroShot`.
    """

    def __init__(self, edits: int = 1, candidates: int = 20, seed: int = 0, **zeroshot):
        super().__init__(**zeroshot)
        self.edits, self.candidates, self.seed = checked(edits, candidates), candidates, seed

    def measure(self, encoder: Encoder, chosen: np.ndarray) -> Mapping[str, float | Outcomes]:
        def prompts(names: Sequence[Sequence[str]]) -> list[list[str]]:
            """Returns the prompts of each class once for each of its other names."""
            classes = zip(self._prompts, self._names, names, strict=True)
            return [[p.replace(name, n) for p in ps] for ps, name, ns in classes for n in ns]

        def features(names: Sequence[Sequence[str]]) -> Tensor:
            texts = prompts(names)
            flat = encoder.text_features([t for each in texts for t in each], RAW)
            means = torch.stack([part.mean(0) for part in flat.split([len(t) for t in texts])])
            return means.unflatten(0, (len(names), -1))

        names = attack(self._names, features, self.edits, self.candidates, self.seed)
        attacked = encoder.mean_texts(encoder.prompt_means(prompts([[name] for name in names])))
        image = encoder.images(self.data, chosen)
        targets = torch.tensor([self.target(i) for i in chosen.tolist()], device=image.device)
        values, keys = {}, self.keys(chosen)
        for name, classifier in (("clean", self.classifier(encoder)), ("attacked", attacked)):
            with full_precision(image.device):
                found = class_ranks(image @ classifier.T, targets)
            values[f"{name}_top1"] = Outcomes(recall_at(found, 1), found.numpy() < 1, keys)
        return values


class AttackedRetrieval(Retrieval):
    """Recall with attacked captions.

    Measures: `clean_text_to_image_recall@k`, `attacked_text_to_image_recall@k` (attacked queries),
    and the same of `image_to_text`, where all candidates are attacked.

    Args:
        edits: characters that are changed in a caption.
        candidates: places, and then characters, that the attack tries for each.
        seed: of what is tried.
        retrieval: arguments of `Retrieval`.
    """

    def __init__(
        self, data: ImageSet, edits: int = 1, candidates: int = 20, seed: int = 0, **retrieval
    ):
        super().__init__(data, **retrieval)
        self.edits, self.candidates, self.seed = checked(edits, candidates), candidates, seed

    def measure(self, encoder: Encoder, chosen: np.ndarray) -> Mapping[str, float | Outcomes]:
        def features(texts: Sequence[Sequence[str]]) -> Tensor:
            flat = encoder.text_features([text for each in texts for text in each], RAW)
            return flat.unflatten(0, (len(texts), -1))

        clean, of_image, of_text = self.pairs(chosen)
        attacked = attack(clean, features, self.edits, self.candidates, self.seed)
        image, keys = encoder.images(self.data, chosen), self.keys(chosen)
        values = {}
        for name, texts in (("clean", clean), ("attacked", attacked)):
            text = encoder.texts(texts)
            ways = {
                "image_to_text": (ranks(image, text, of_image), keys),
                "text_to_image": (ranks(text, image, of_text), clean),
            }
            values |= {
                f"{name}_{way}_recall@{k}": Outcomes(recall_at(found, k), found.numpy() < k, items)
                for way, (found, items) in ways.items()
                for k in self.k
            }
        return values


def checked(edits: int, candidates: int) -> int:
    """Returns `edits`; refuses numbers that make no attack."""
    if edits < 1 or candidates < 1:
        raise ValueError(f"edits is {edits} and candidates {candidates}; give at least 1")
    return edits
