"""Splits of the icons: concepts held out in all sets, whole sets, and pictures of known concepts.

In: all icons. Out: the split of each, a pure function of names, drawings and seed (each concept has
its own rank, so that one icon more or less moves few others):

- `shift`: whole sets, whose style training never shows;
- `unseen`: concepts that training shows in no set;
- `val`: other such concepts, on which settings are chosen;
- `indist`: pictures of known concepts in known styles: all icons of one concept in one set;
- `train`: the rest.

Classes are concepts that `indist`, `shift` and several sets of `train` all show, so that accuracy
under the shift stands beside accuracy in distribution over the same classes.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Sequence

from ...hashing import text_hash
from .names import Icon

SPLITS = ("train", "val", "indist", "shift", "unseen")
MAX_FAMILIES = 2  # of one class in `indist`, each all icons of the class in one set

Family = tuple[str, str]  # set, concept


@dataclasses.dataclass(frozen=True)
class Splits:
    """Which icon goes where.

    Attributes:
        held_out_sets: sets of `shift`.
        classes: concepts that are classified.
        unseen: concepts of `unseen`.
        val: concepts of `val`.
        families: (set, concept) of `indist`.
    """

    held_out_sets: frozenset[str]
    classes: frozenset[str]
    unseen: frozenset[str]
    val: frozenset[str]
    families: frozenset[Family]

    def split(self, icon: Icon) -> str:
        """Returns the split of an icon."""
        if icon.set in self.held_out_sets:
            return "shift"
        if icon.concept in self.unseen:
            return "unseen"
        if icon.concept in self.val:
            return "val"
        return "indist" if (icon.set, icon.concept) in self.families else "train"


def choose_splits(
    icons: Sequence[Icon], held_out_sets: Iterable[str], min_sets: int, num_held_out: int, seed: int
) -> Splits:
    """Chooses classes, held-out concepts and held-out pictures.

    No drawing outside of `train` and `shift` has a second name in another concept: none is in
    training under another caption. Drawings are compared as SVG, so that one made twice is two.

    Args:
        icons: all icons.
        held_out_sets: sets of `shift`.
        min_sets: sets, not held out, in which a class occurs; 2 or more.
        num_held_out: concepts of `unseen`, and as many of `val`.
        seed: chooses which.

    Raises:
        ValueError: there are no classes, or too few concepts.
    """
    held_out_sets = frozenset(held_out_sets)
    known: dict[str, set[str]] = defaultdict(set)
    shifted: set[str] = set()
    pictures: dict[bytes, set[Family]] = defaultdict(set)
    for icon in icons:
        if icon.set in held_out_sets:
            shifted.add(icon.concept)
        else:
            known[icon.concept].add(icon.set)
        pictures[icon.picture].add((icon.set, icon.concept))
    shared = {family for families in pictures.values() if len(families) > 1 for family in families}
    synonyms = joined_concepts(pictures.values())
    candidates = [
        concept for concept, sets in known.items() if len(sets) >= min_sets and concept in shifted
    ]
    # Of two names of one picture the one that more sets use.
    candidates.sort(key=lambda concept: (-len(known[concept]), text_hash(seed, "class", concept)))
    classes: set[str] = set()
    families: set[Family] = set()
    for concept in candidates:
        free = [(name, concept) for name in known[concept] if (name, concept) not in shared]
        if free and not synonyms[concept] & classes:
            free.sort(key=lambda family: text_hash(seed, "family", *family))
            classes.add(concept)
            families.update(free[: min(MAX_FAMILIES, len(known[concept]) - 1)])
    if not classes:
        raise ValueError(
            f"no concept occurs in {min_sets} of the {len({i.set for i in icons} - held_out_sets)} "
            f"sets for training and in one of the sets held out ({', '.join(sorted(held_out_sets))}"
            "); give more sets, a larger --limit or a smaller --min-sets"
        )
    ranked = sorted(
        (c for c, sets in known.items() if len(sets) > 1 and not synonyms[c] and c not in classes),
        key=lambda concept: text_hash(seed, "concept", concept),
    )
    if len(ranked) < 2 * num_held_out:
        raise ValueError(
            f"num_held_out is {num_held_out}, and twice as many concepts are held out, but only "
            f"{len(ranked)} besides the classes occur in several sets; give {len(ranked) // 2} "
            "or fewer"
        )
    return Splits(
        held_out_sets=held_out_sets,
        classes=frozenset(classes),
        unseen=frozenset(ranked[:num_held_out]),
        val=frozenset(ranked[num_held_out : 2 * num_held_out]),
        families=frozenset(families),
    )


def joined_concepts(pictures: Iterable[set[Family]]) -> dict[str, set[str]]:
    """Returns concept -> the other concepts that name one of its pictures, too."""
    joined: dict[str, set[str]] = defaultdict(set)
    for families in pictures:
        concepts = {concept for _, concept in families}
        for concept in concepts:
            joined[concept] |= concepts - {concept}
    return joined


def limited(icons: Sequence[Icon], limit: int, seed: int) -> list[Icon]:
    """Returns the icons of `limit` concepts, in all their sets; all for limit 0."""
    if not limit:
        return list(icons)
    concepts = {icon.concept for icon in icons}
    kept = sorted(concepts, key=lambda concept: text_hash(seed, "limit", concept))[:limit]
    chosen = set(kept)
    return [icon for icon in icons if icon.concept in chosen]
