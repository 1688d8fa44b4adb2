"""Captions a second whose entries are found, of 500,000 entries, on one core.

Run: `cd tests && OMP_NUM_THREADS=1 ../.venv/bin/python -m benchmarks.concept_matching`. Entries and
captions are made up: 250,000 words, and pairs and triples of them, drawn as words of a language are
(the n-th comes 1/n times as often as the first); captions have 5 to 24 words. Ours is the whole
filter (punctuation, matching, the column of lists); pyahocorasick's is a loop that does the same.
Each in a fresh process; rates are medians of processor time.
"""

import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow as pa

from counterpoint.data.curate.entries import spaced
from counterpoint.data.curate.filters.concepts.match_concepts import MatchConcepts

NUM_ENTRIES, NUM_CAPTIONS, ROUNDS = 500_000, 30_000, 5
LETTERS = np.array(list("abcdefghijklmnopqrstuvwxyz"))


def make_entries_and_captions() -> tuple[list[str], list[str]]:
    """Returns both, the same each time."""
    rng = np.random.default_rng(0)
    words = {"".join(LETTERS[rng.integers(26, size=size)]) for size in rng.integers(2, 10, 340_000)}
    words = np.array(sorted(words), dtype=object)[rng.permutation(len(words))]
    chances = 1 / np.arange(1, len(words) + 1)
    chances /= chances.sum()

    def phrases(sizes: np.ndarray) -> list[str]:
        drawn = words[rng.choice(len(words), size=sizes.sum(), p=chances)]
        ends = np.cumsum(sizes)
        return [" ".join(drawn[a:b]) for a, b in zip(ends - sizes, ends, strict=True)]

    entries = dict.fromkeys(words[: NUM_ENTRIES // 2])
    while len(entries) < NUM_ENTRIES:
        entries |= dict.fromkeys(phrases(rng.choice([2, 3], size=100_000, p=[0.8, 0.2])))
    captions = phrases(rng.integers(5, 25, NUM_CAPTIONS))
    return list(entries)[:NUM_ENTRIES], [text.replace(" ", ", ", 1) for text in captions]


def pyahocorasick(entries: list[str]) -> Callable[[list[str]], list[list[int]]]:
    """Returns a function that finds entries in captions."""
    import ahocorasick

    automaton = ahocorasick.Automaton()
    for number, entry in enumerate(entries):
        automaton.add_word(f" {entry} ", number)
    automaton.make_automaton()
    return lambda captions: [
        sorted({number for _, number in automaton.iter(spaced(text))}) for text in captions
    ]


def memory() -> float:
    """Returns the peak resident memory of this process, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def ours(entries: list[str]) -> Callable[[list[str]], pa.Array]:
    """Returns the filter as a function that finds entries in captions."""
    path = Path(tempfile.mkdtemp(), "entries.txt")
    path.write_text("\n".join(entries))
    each = MatchConcepts(path)

    def match(captions: list[str]) -> pa.Array:
        rows = pa.RecordBatch.from_pydict({"key": range(len(captions)), "caption": captions})
        return each.apply(rows, {})["concepts"]

    match(["a"])
    return match


def measure(name: str) -> None:
    """Prints a row of the table."""
    entries, captions = make_entries_and_captions()
    started, before = time.process_time(), memory()
    match = {"ours": ours, "pyahocorasick": pyahocorasick}[name](entries)
    seconds, size = time.process_time() - started, memory() - before
    rates = []
    for _ in range(ROUNDS):
        started = time.process_time()
        matches = match(captions)
        rates.append(NUM_CAPTIONS / (time.process_time() - started))
    mean = statistics.fmean(map(len, matches.to_pylist() if name == "ours" else matches))
    print(
        f"| {name} | {statistics.median(rates):,.0f} | {mean:.1f} | {seconds:.1f} s | {size:.0f} |"
    )


def main() -> None:
    """Prints a markdown table."""
    print(f"{NUM_ENTRIES:,} entries, {NUM_CAPTIONS:,} captions, {os.cpu_count()} cores")
    print("| | captions/s a core | entries in a caption | to build | peak memory for it, MiB |")
    print("| --- | ---: | ---: | ---: | ---: |", flush=True)
    for name in ("pyahocorasick", "ours"):
        process = get_context("spawn").Process(target=measure, args=(name,))
        process.start()
        process.join()
        if process.exitcode:
            raise SystemExit(f"{name} failed")


if __name__ == "__main__":
    main()
