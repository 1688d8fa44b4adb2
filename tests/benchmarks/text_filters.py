"""Captions a second that each text filter judges, on one core.

Run: `cd tests && OMP_NUM_THREADS=1 ../.venv/bin/python -m benchmarks.text_filters`. Captions are
the made-up ones of `concept_matching`; entries and classes are words and pairs of words of them.
Rates are of processor time for `partial` (where a filter counts) and `apply`, medians of three.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

from counterpoint.data.curate.base import Filter
from counterpoint.data.curate.filters.captions.language import Language
from counterpoint.data.curate.filters.captions.text_rules import TextRules
from counterpoint.data.curate.filters.captions.word_frequency import WordFrequency
from counterpoint.data.curate.filters.concepts.balance_concepts import BalanceConcepts
from counterpoint.data.curate.filters.concepts.concept_counts import ConceptCounts
from counterpoint.data.curate.filters.concepts.match_concepts import MatchConcepts
from counterpoint.data.curate.filters.general.random_subset import RandomSubset
from counterpoint.data.curate.filters.general.threshold import Threshold
from counterpoint.data.curate.filters.general.where import Where

from .concept_matching import make_entries_and_captions

ROUNDS = 3


def filters(folder: Path, entries: list[str]) -> dict[str, Filter]:
    """Returns the filters by name."""
    lists = {"entries": entries, "classes": [e for e in entries if " " in e][:1000]}
    for name, lines in lists.items():
        (folder / f"{name}.txt").write_text("\n".join(lines))
    return {
        "language": Language(["en"]),
        "text_rules": TextRules(0.6, 0.2, 0.5, (r"(?i)\.(jpe?g|png)\b", "https?://")),
        "match_concepts": MatchConcepts(folder / "entries.txt"),
        "balance_concepts": BalanceConcepts(folder / "entries.txt", t=20),
        "word_frequency": WordFrequency(),
        "concept_counts": ConceptCounts(folder / "classes.txt"),
        "threshold": Threshold("score", 0.3),
        "random_subset": RandomSubset(0.3),
        "where": Where("key", list(range(0, 30_000, 7))),
    }


def rate(function: Callable[[pa.RecordBatch], object], rows: pa.RecordBatch) -> str:
    """Returns rows a second of processor time."""
    function(rows.slice(0, 1))
    rates = []
    for _ in range(ROUNDS):
        started = time.process_time()
        function(rows)
        rates.append(rows.num_rows / (time.process_time() - started))
    return f"{statistics.median(rates):,.0f}"


def main() -> None:
    """Prints a markdown table."""
    entries, captions = make_entries_and_captions()
    rng = np.random.default_rng(0)
    columns = {"key": np.arange(len(captions)), "caption": captions}
    rows = pa.RecordBatch.from_pydict({**columns, "score": rng.normal(0.25, 0.05, len(captions))})
    print(f"{len(captions):,} captions, {os.cpu_count()} cores")
    print("| filter | partial, rows/s | apply, rows/s |\n| --- | ---: | ---: |", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for name, each in filters(Path(folder), entries).items():
            state, counting = {}, ""
            if each.reduces:
                state, counting = each.finish(each.partial(rows)), rate(each.partial, rows)
            applying = rate(lambda part, each=each, state=state: each.apply(part, state), rows)
            print(f"| {name} | {counting} | {applying} |", flush=True)
            if name == "match_concepts":
                rows = rows.append_column("concepts", each.apply(rows, {})["concepts"])


if __name__ == "__main__":
    main()
