"""Held-out shards: which, how many, never those to train on; and what is usable in them."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from counterpoint.data.shards.holdout import fetch, hold_out
from counterpoint.data.shards.index import index_shards
from counterpoint.data.shards.manifest import SCHEMA, Manifest
from counterpoint.data.shards.transport import Transport
from counterpoint.data.validation import ValidationPairs


def manifest(rows, folder="/data"):
    """Of (source, url, samples)."""
    columns = [list(column) for column in zip(*rows, strict=True)]
    columns += [[0] * len(rows), [""] * len(rows)]
    return Manifest(pa.table(dict(zip(SCHEMA.names, columns, strict=True)), SCHEMA), folder)


def names(part):
    return list(zip((part.sources[i] for i in part.source_ids), part.urls, strict=True))


ROWS = [("web", f"{i:05d}.tar", 100) for i in range(40)] + [("photos", "a.tar", 7)]


def test_whole_shards_are_divided_without_loss_and_in_order():
    training, validation = hold_out(manifest(ROWS), 250)
    assert validation.num_samples == 300 and training.num_samples == 40 * 100 + 7 - 300
    assert sorted(names(training) + names(validation)) == sorted(names(manifest(ROWS)))
    assert names(training) == [row for row in names(manifest(ROWS)) if row in names(training)]
    assert ("photos", "/data/a.tar") in names(training), "the last shard of a source stays"


def test_the_choice_depends_on_names_alone_and_is_no_run_of_neighbours():
    _, first = hold_out(manifest(ROWS), 500)
    _, moved = hold_out(manifest(ROWS[::-1], "/elsewhere"), 500)
    chosen = {url.rsplit("/", 1)[1] for url in first.urls}
    assert chosen == {url.rsplit("/", 1)[1] for url in moved.urls}
    numbers = sorted(int(name.split(".")[0]) for name in chosen)
    assert len(numbers) == 5 and np.diff(numbers).max() > 1
    _, more = hold_out(manifest(ROWS), 900)
    assert chosen < {url.rsplit("/", 1)[1] for url in more.urls}


@pytest.mark.parametrize(
    ("rows", "num_pairs", "message"),
    [
        ([("web", "0.tar", 100)], 50, "leaves 0 of 100 pairs in 1 shards to hold out"),
        (ROWS, 3901, "leaves 3900 of 4007 pairs"),
        (ROWS, 0, "--holdout 0"),
    ],
)
def test_what_cannot_be_held_out_is_refused(rows, num_pairs, message):
    with pytest.raises(ValueError, match=message):
        hold_out(manifest(rows), num_pairs)


def test_shards_of_other_machines_are_copied(tmp_path, shards):
    there = f"file://{shards[1]}"
    rows = [("web", shards[0], 7), ("web", there, 5)]
    found = fetch(manifest(rows, tmp_path / "out"), tmp_path / "out", "val", Transport())
    assert found.urls[0] == shards[0]
    assert found.urls[1] == str(tmp_path / "out" / "val" / "00001.tar")
    assert (tmp_path / "out/val/00001.tar").read_bytes() == Path(shards[1]).read_bytes()
    lost = manifest([("web", f"file://{tmp_path}/lost.tar", 5)], tmp_path)
    with pytest.raises(ValueError, match=r"lost\.tar cannot be fetched to be held out"):
        fetch(lost, tmp_path, "val", Transport(num_attempts=1))


def jpeg(seed):
    out = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(out, "JPEG")
    return out.getvalue()


@pytest.fixture
def flawed(tmp_path):
    """Ten samples: 2 without a caption, 4 with an empty one, 5 cut off."""
    with tarfile.open(tmp_path / "00000.tar", "w") as tar:
        for i in range(10):
            members = {"jpg": jpeg(i), "txt": f"caption {i}".encode()}
            if i < 2:
                members["json"] = json.dumps({"title": f"title {i}"}).encode()
            if i == 2:
                del members["txt"]
            if i == 4:
                members["txt"] = b" \n"
            if i == 5:
                members["jpg"] = members["jpg"][:400]
            for extension, data in members.items():
                info = tarfile.TarInfo(f"{i:04d}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    index_shards([str(tmp_path / "00000.tar")], tmp_path / "val.parquet")
    return tmp_path


def pairs(root, **arguments):
    images = ValidationPairs(**arguments)
    images.root = root
    return images


def test_what_cannot_be_used_is_passed_over_and_counted(flawed):
    images = pairs(flawed, limit=5)
    assert [item.get("txt") for item in images.items] == [f"caption {i}" for i in (0, 1, 3, 6, 7)]
    assert images.note == ("5 pairs of val.parquet, passed over: 1 bad_image, 2 no_caption")
    assert all(images.image(i).shape == (3, 40, 40) for i in range(5))
    assert len(pairs(flawed)) == 7
    other = pairs(flawed, captions=["json:title", "txt"])
    assert [item.get("caption") for item in other.items][:3] == ["title 0", "title 1", "caption 3"]


def test_what_is_missing_is_named_with_its_command(flawed, tmp_path):
    with pytest.raises(ValueError, match=r"no .*nowhere/val\.parquet .* --holdout 5000"):
        len(pairs(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"no sample .*'no_caption': 10.*\(now: heading, alt\)"):
        len(pairs(flawed, captions=["json:heading", "alt"]))
    with pytest.raises(ValueError, match="limit: 0"):
        ValidationPairs(limit=0)
