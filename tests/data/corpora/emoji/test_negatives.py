"""The emoji's hard negatives: one word exchanged, no held-out name, the corpus left as it is."""

import io
import json
import re
import tarfile

import numpy as np
import pytest
from PIL import Image

from counterpoint.data.corpora.emoji.corpus import Settings, build_emoji
from counterpoint.data.corpora.emoji.negatives import build_negatives, choose_negatives
from counterpoint.data.shards.manifest import Manifest

SMALL = Settings(num_held_out=10, seed=2, limit=100)
TONE = re.compile(r"(medium-light|medium-dark|light|medium|dark) skin tone")


def members(folder):
    """Member name -> bytes, in the order of the tars."""
    found = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            found |= {member.name: tar.extractfile(member).read() for member in tar}
    return found


def stamps(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus") / "emoji"
    build_emoji(folder, SMALL)
    before = stamps(folder)
    summary = build_negatives(folder, seed=2)
    assert summary["built"] and stamps(folder).items() >= before.items()
    return folder, summary


def test_the_corpus_is_complete_and_its_samples_come_in_the_same_order(corpus):
    folder, summary = corpus
    assert not build_emoji(folder, SMALL)["built"] and not build_negatives(folder, 2)["built"]
    own, both = members(folder / "train"), members(folder / "negatives" / "train")
    assert list(own.items()) == [(k, v) for k, v in both.items() if ".negative." not in k]
    assert len(both) - len(own) == 2 * summary["with_negative"] > 0
    manifests = [Manifest.load(folder / f"{name}train.parquet") for name in ("", "negatives/")]
    assert manifests[0].counts.tolist() == manifests[1].counts.tolist()
    assert manifests[0].sources == manifests[1].sources
    assert manifests[0].fingerprint != manifests[1].fingerprint


def test_a_second_build_has_the_same_bytes_and_an_older_one_is_replaced(corpus):
    folder, summary = corpus
    before = {path: path.read_bytes() for path in (folder / "negatives").rglob("*.tar")}
    about = folder / "negatives" / "negatives.json"
    about.write_text(json.dumps(json.loads(about.read_text()) | {"format": 1}))
    (folder / "negatives" / "of an older version").touch()
    assert build_negatives(folder, seed=2) == summary
    assert not (folder / "negatives" / "of an older version").exists()
    assert before == {path: path.read_bytes() for path in (folder / "negatives").rglob("*.tar")}


def test_negatives_are_training_samples_of_the_style_with_one_word_exchanged(corpus):
    folder, _ = corpus
    found = members(folder / "negatives" / "train")
    training = members(folder / "train")
    pairs = {
        (name.partition("-")[0], data): training[name.replace(".txt", ".png")]
        for name, data in training.items()
        if name.endswith(".txt")
    }
    held_out = {v for k, v in members(folder / "heldout").items() if k.endswith(".txt")}
    kinds = set()
    for name, data in found.items():
        if not name.endswith(".negative.txt"):
            continue
        key = name.partition(".")[0]
        assert data not in held_out
        image = found[f"{key}.negative.png"]
        assert pairs[key.partition("-")[0], data] == image
        pixels = [np.asarray(Image.open(io.BytesIO(p))) for p in (image, found[f"{key}.png"])]
        assert np.abs(pixels[0].astype(int) - pixels[1]).max() > 8
        words = [
            TONE.sub(lambda tone: tone[1] + "-tone", text.decode()).split()
            for text in (found[f"{key}.txt"], data)
        ]
        assert len(words[0]) == len(words[1]) > 1
        (exchanged,) = [pair for pair in zip(*words, strict=True) if pair[0] != pair[1]]
        kinds.add(sum(word.endswith("-tone") for word in exchanged))
    assert kinds >= {0, 2}, "tones and other words"


def test_same_bytes_every_time_and_damage_is_repaired(corpus):
    folder, _ = corpus
    first = {p: p.read_bytes() for p in (folder / "negatives").rglob("*") if p.is_file()}
    (folder / "negatives" / "train" / "00001.tar").unlink()
    assert build_negatives(folder, 2)["built"]
    assert {p: p.read_bytes() for p in first} == first
    assert build_emoji(folder, SMALL)["built"] is False
    assert sorted(p.name for p in folder.parent.iterdir()) == ["emoji"]


def test_an_image_that_looks_the_same_is_no_negative():
    def sample(caption, value):
        buffer = io.BytesIO()
        Image.new("RGB", (4, 4), (value, 0, 0)).save(buffer, "PNG")
        return {"txt": caption.encode(), "png": buffer.getvalue(), "json": json.dumps({}).encode()}

    samples = {
        "a-1": sample("red car", 100),
        "a-2": sample("blue car", 103),
        "a-3": sample("red bus", 200),
        "b-1": sample("green car", 10),
        "a-4": sample("car", 50),
    }
    assert choose_negatives(samples, 0) == {"a-1": "a-3", "a-3": "a-1"}
