"""What the results say about a claim: a difference paired by seed, its interval, a word.

In: a claim, and the records of its two runs. Out: a verdict. The interval is Student's, of the
differences of runs with the same seed; where results keep the outcomes of their items, seeds and
items are crossed in it (`..ablation.statistics`), else it holds for these test items. It is not the
bootstrap over seeds, which of three seeds finds a difference where there is none in a fifth of all
cases (docs/howto/compare.md). The spread is that of the two runs alone: methods scatter unequally.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ....train.evaluation import measures
from ....train.evaluation.outcomes import Stored
from ..ablation.statistics import Difference, Interval, difference_of_means, paired_t
from ..run_traces import unpack
from .records import Record, has_collapsed, values
from .texts import Claim, Measure

AGREES, DISAGREES = "agrees", "disagrees"
UNCLEAR, UNSEEN = "no difference seen", "cannot be seen here"
HIGHER, LOWER = "nothing claimed: higher", "nothing claimed: lower"
COLLAPSED, TOO_FEW, MISSING = "collapsed", "no verdict", "not measured"
# In this order the page lists them.
WORDS = (AGREES, DISAGREES, UNCLEAR, UNSEEN, HIGHER, LOWER, COLLAPSED, TOO_FEW, MISSING)
COUNTS = {1: "one seed", 2: "two seeds"}
MIN_SEEDS = 3


@dataclass(frozen=True)
class Verdict:
    """What came of a claim.

    Attributes:
        claim: it.
        word: one of `WORDS`.
        measure: that was compared; None: nothing was.
        difference: of the runs with the same seeds; None: nothing was compared.
        text: the word with its reason or its counts.
        mixed: whether runs with the same seed were trained in different precision.
    """

    claim: Claim
    word: str
    measure: Measure | None = None
    difference: Difference | None = None
    text: str = ""
    mixed: bool = False

    @property
    def interval(self) -> Interval | None:
        """95% interval of the difference."""
        return self.difference.own_t if self.difference else None


def judge(
    claim: Claim, ours: Sequence[Record], theirs: Sequence[Record], choices: Sequence[Measure]
) -> Verdict:
    """Returns the verdict.

    Args:
        claim: to judge.
        ours: records of its run, of one configuration.
        theirs: of the run that it is compared with.
        choices: measures, of which the first that all records have is compared where the claim
            names none.
    """
    pairs = [(a, b) for a in ours for b in theirs if a["seed"] == b["seed"]]
    mine, other = [a for a, _ in pairs], [b for _, b in pairs]
    offered = choices if claim.measure is None else [claim.measure]
    measure = next((m for m in offered if values(m, mine) and values(m, other)), None)
    if measure is None:
        return Verdict(claim, MISSING, claim.measure, text=MISSING)
    difference = difference_of(measure, mine, other)
    for records, prefix in ((ours, ""), (theirs, "baseline ")):
        if dead := sum(map(has_collapsed, records)):
            text = f"{prefix}{COLLAPSED} in {dead} of {len(records)} seeds"
            return Verdict(claim, COLLAPSED, measure, difference, text)
    if len(pairs) < MIN_SEEDS:
        text = f"{COUNTS[len(pairs)]}: {TOO_FEW}"
        return Verdict(claim, TOO_FEW, measure, difference, text)
    if claim.unseen:
        return Verdict(claim, UNSEEN, measure, difference, f"{UNSEEN}: {claim.unseen}")
    word = _word(claim, measure, difference)
    return Verdict(claim, word, measure, difference, word)


def difference_of(measure: Measure, ours: Sequence[Record], theirs: Sequence[Record]) -> Difference:
    """Compares runs with the same seeds, in the same order, item by item where that was kept."""
    stored = _outcomes(measure, [*ours, *theirs])
    if stored is None:
        a, b = values(measure, ours), values(measure, theirs)
        assert a is not None and b is not None
        return difference_of_means(np.array(a), np.array(b))
    rows = np.stack([each.values for each in stored])
    return paired_t(rows[: len(ours)], rows[len(ours) :], stored[0].weights)


def _outcomes(measure: Measure, records: Sequence[Record]) -> list[Stored] | None:
    if len(measure.metrics) != 1:
        return None
    found = [unpack(record).get(measure.metrics[0]) for record in records]
    stored = [each for each in found if each is not None]
    kinds = {(each.items, each.weights.tobytes()) for each in stored}
    return stored if len(stored) == len(records) and len(kinds) == 1 else None


def _word(claim: Claim, measure: Measure, difference: Difference) -> str:
    assert difference.own_t is not None
    low, high = difference.own_t
    if low <= 0 <= high:
        return UNCLEAR
    if claim.claim == "nothing":
        return HIGHER if low > 0 else LOWER
    is_better = (low > 0) != measures.lower_is_better(measure.metrics[0])
    return AGREES if is_better == (claim.claim != "worse") else DISAGREES
