"""Lists of entries (MetaCLIP's metadata) and the automaton that finds them in captions.

In: files with one entry a line (or parquet, column `entry`; or JSON, a list, as MetaCLIP's own is
published), one file or one for each language.
Out: entries by number, and a matcher. Xu et al., "Demystifying CLIP Data" (2023), section 3.2 and
its code: an entry occurs in a caption if it does as a substring, case and all, spaces around it;
punctuation stands apart.
"""

import functools
import json
import string
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.parquet as pq

from .text_files import read_text

Padding = Literal["spaces", "by_script"]

PUNCTUATION = ",.;:?!`"
WHITE_SPACE = "\t\n\r"
# "MetaCLIP 2" (Chuang et al., 2025): entries that begin or end with such a character need no space
# there, for in these scripts words follow one another without.
OTHER_PUNCTUATION = "，。、；：？！“”‘’（）【】《》〈〉「」『』～—"
UNSPACED = (
    (0x4E00, 0x9FFF),  # Chinese, Japanese, Korean ideographs, and their extensions
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF),
    (0x2CEB0, 0x2EBEF),
    (0xF900, 0xFAFF),
    (0x2E80, 0x2EFF),
    (0x2F00, 0x2FDF),
    (0x2FF0, 0x2FFF),
    (0x0E00, 0x0E7F),  # Thai
    (0x0E80, 0x0EFF),  # Lao
    (0x1000, 0x109F),  # Burmese
    (0x1780, 0x17FF),  # Khmer
    (0x0F00, 0x0FFF),  # Tibetan
)


@dataclass(frozen=True)
class Entries:
    """Entries of one or several files, numbered in the order of the languages' codes.

    Args:
        files: one file, or one for each language; under `other`, for all other languages.
    """

    files: Path | Mapping[str, Path]

    @property
    def by_language(self) -> dict[str | None, Path]:
        """The file of each language, sorted; of None if there is but one."""
        if isinstance(self.files, Mapping):
            return {code: Path(self.files[code]) for code in sorted(self.files)}
        return {None: Path(self.files)}

    def first_numbers(self) -> dict[str | None, int]:
        """Returns the number of each language's first entry."""
        sizes = [len(read_entries(path, _changed(path))) for path in self.by_language.values()]
        return dict(zip(self.by_language, np.cumsum([0, *sizes]).tolist(), strict=False))

    def all(self) -> list[str]:
        """Returns the entries by number."""
        parts = [read_entries(path, _changed(path)) for path in self.by_language.values()]
        return [entry for part in parts for entry in part]

    def matcher(self, language: str | None, padding: Padding) -> Any:
        """Returns the automaton of a language, made once in each process; None without a file."""
        paths = self.by_language
        path = paths.get(language, paths.get("other"))
        return None if path is None else automaton(path, _changed(path), padding)


def spaced(text: str) -> str:
    """Returns a caption with white space as spaces, and spaces around punctuation and the whole."""
    text = f" {text} "
    for character in PUNCTUATION:
        if character in text:
            text = text.replace(character, f" {character} ")
    for character in WHITE_SPACE:
        if character in text:
            text = text.replace(character, " ")
    return text


def padded(entry: str, padding: Padding) -> str:
    """Returns an entry with the spaces that have to be around it."""
    if padding == "spaces":
        return f" {entry} "
    before = "" if is_unspaced(entry[0]) else " "
    return f"{before}{entry}{'' if is_unspaced(entry[-1]) else ' '}"


def is_unspaced(character: str) -> bool:
    """Whether a character needs no space beside it (punctuation needs none either)."""
    if character in string.punctuation or character in OTHER_PUNCTUATION:
        return True
    return any(first <= ord(character) <= last for first, last in UNSPACED)


@functools.cache
def read_entries(path: Path, changed: int) -> list[str]:
    """Returns the entries of a file; `changed` is when it did.

    Raises:
        ValueError: an entry comes twice, or there is none; or it is no list.
    """
    if path.suffix == ".parquet":
        lines = pq.read_table(path, columns=["entry"])["entry"].drop_null().to_pylist()
    elif path.suffix == ".json":
        lines = _json_list(path)
    else:
        lines = read_text(path).split("\n")
    entries = [entry for line in lines if (entry := line.rstrip("\r")).strip()]
    if not entries:
        raise ValueError(f"the file of entries '{path}' has none; write one a line")
    if len(set(entries)) < len(entries):
        seen: set[str] = set()
        twice = next(entry for entry in entries if entry in seen or seen.add(entry))
        raise ValueError(f"the file of entries '{path}' has '{twice}' twice; remove one of them")
    return entries


def _json_list(path: Path) -> list[str]:
    try:
        found = json.loads(read_text(path))
    except json.JSONDecodeError:
        found = None
    if not isinstance(found, list) or not all(isinstance(entry, str) for entry in found):
        raise ValueError(
            f"the file of entries '{path}' is no list of texts in JSON; write one, or a text file "
            "with one entry a line"
        )
    return found


@functools.cache
def automaton(path: Path, changed: int, padding: Padding) -> Any:
    """Returns the automaton of a file (some 500 MB while 500,000 entries are built, 3 s)."""
    try:
        import daachorse
    except ImportError as error:
        raise ValueError(
            "entries are found in captions by daachorse; install it: pip install "
            "'counterpoint[curate]'"
        ) from error
    patterns = [padded(entry, padding) for entry in read_entries(path, changed)]
    # Almost everywhere in a caption some entry may begin: a prefilter only takes time.
    return daachorse.CharwiseDoubleArrayAhoCorasick(patterns, use_prefilter=False)


def _changed(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError as error:
        raise ValueError(
            f"the file of entries '{path}' cannot be read ({error.strerror})"
        ) from error
