"""Hard negatives for the emoji: the same name with one word exchanged, and its own image.

In: the training shards of a finished corpus. Out: `negatives/` in the same folder, which holds the
same samples under the same names in the same order, most of them with two members more:

    negatives/train/00000.tar ...   KEY.negative.png, KEY.negative.txt beside KEY.png, KEY.txt
    negatives/train.parquet         manifest
    negatives/negatives.json        counts and file sizes

The shards of the corpus itself stay as they are; a run on these sees the same samples in the same
order, with the negatives.
"""

import io
import shutil
import tarfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...files import whole_folder
from ...shards.index import index_shards
from ..shards import read_summary, write_summary, write_tars
from .names import TONE_PHRASE
from .split import TOLERANCE, draw

FORMAT = 2  # raise it when the same corpus gives other bytes
FOLDER = "negatives"

Sample = dict[str, bytes]


def build_negatives(corpus: Path, seed: int = 0) -> dict[str, Any]:
    """Writes the shards with negatives into a corpus, unless they are complete.

    Args:
        corpus: folder of a finished corpus.
        seed: decides which of the possible negatives a sample has.

    Returns:
        "pairs", "with_negative" (how many of them have one) and "built".
    """
    corpus = corpus.resolve()
    out = corpus / FOLDER
    summary = read_summary(out / "negatives.json", {"format": FORMAT, "seed": seed})
    if summary is not None:
        return {**summary, "built": False}
    # Beside the corpus, which is not replaced when it holds other files.
    with whole_folder(out, near=corpus) as part:
        summary = write_negatives(corpus, part, seed)
    return {**summary, "built": True}


def write_negatives(corpus: Path, folder: Path, seed: int) -> dict[str, Any]:
    """Writes shards, manifest and summary into a new folder."""
    paths = sorted((corpus / "train").glob("*.tar"))
    shards = {path: read_shard(path) for path in paths}
    samples = {key: sample for shard in shards.values() for key, sample in shard.items()}
    negatives = choose_negatives(samples, seed)
    (folder / "train").mkdir()
    written = [
        [with_negative(key, sample, samples.get(negatives.get(key, ""))) for key, sample in shard]
        for shard in map(dict.items, shards.values())
    ]
    write_tars(folder / "train", written)
    for path in paths:
        stats = f"{path.stem}_stats.json"
        shutil.copyfile(path.with_name(stats), folder / "train" / stats)
    index_shards([str(folder / "train")], folder / "train.parquet", source="emoji")
    facts = {
        "format": FORMAT,
        "seed": seed,
        "pairs": len(samples),
        "with_negative": len(negatives),
    }
    return write_summary(folder / "negatives.json", facts)


def with_negative(key: str, sample: Sample, other: Sample | None) -> dict[str, str | bytes]:
    """Returns a sample as `write_tars` takes it, with the image and text of another one."""
    more = {} if other is None else {f"negative.{kind}": other[kind] for kind in ("png", "txt")}
    return {"__key__": key, **sample, **more}


def read_shard(path: Path) -> dict[str, Sample]:
    """Returns key -> extension -> bytes of a tar, in its order."""
    samples: dict[str, Sample] = defaultdict(dict)
    with tarfile.open(path) as tar:
        for member in tar:
            key, _, extension = member.name.partition(".")
            file = tar.extractfile(member)
            assert file is not None
            samples[key][extension] = file.read()
    return samples


def choose_negatives(samples: dict[str, Sample], seed: int) -> dict[str, str]:
    """Chooses for each key the key of its negative; those without a possible one are left out.

    A negative is a sample of the same style whose caption differs in one word of several, a skin
    tone being one word, and whose image differs too. First the position in the caption is drawn,
    then the word that replaces it, so that no kind of word outnumbers the others.
    """
    words = {key: spelled(sample["txt"].decode()) for key, sample in samples.items()}
    alike: dict[tuple, list[str]] = defaultdict(list)
    for key, caption in words.items():
        for frame in frames(key, caption):
            alike[frame].append(key)
    pixels = {key: decoded(sample["png"]) for key, sample in samples.items()}
    chosen = {}
    for key, caption in words.items():
        candidates = sorted(
            frames(key, caption), key=lambda frame: draw(seed, "place", f"{key}{frame}")
        )
        for frame in candidates:
            others = [other for other in alike[frame] if words[other] != caption]
            others.sort(key=lambda other: draw(seed, "word", f"{key} {other}"))
            negative = next((o for o in others if differs(pixels[o], pixels[key])), None)
            if negative is not None:
                chosen[key] = negative
                break
    return chosen


def spelled(caption: str) -> list[str]:
    """Returns the words of a caption; a skin tone is one word."""
    return TONE_PHRASE.sub(lambda tone: tone[0].replace(" ", "_"), caption).split()


def frames(key: str, words: list[str]) -> list[tuple]:
    """Returns (style, words before, words after) of every word; none for a single word."""
    style = key.partition("-")[0]
    return [
        (style, tuple(words[:i]), tuple(words[i + 1 :]))
        for i in range(len(words))
        if len(words) > 1
    ]


def decoded(png: bytes) -> np.ndarray:
    """Returns the pixels as int16 [height, width, 3]."""
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(np.int16)


def differs(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two images differ by more than the rounding of curves."""
    return bool(np.abs(one - other).max() > TOLERANCE)
