"""Score tables say what the tars hold, call samples as training does, and survive re-sharding."""

import hashlib
import io
import json
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.recipes import loader
from helpers.score_table import kept, make_store
from PIL import Image

from counterpoint.data.curate.base import Filter, vectors
from counterpoint.data.curate.filters.duplicates.exact_duplicates import ExactDuplicates
from counterpoint.data.curate.filters.general.basic import Basic
from counterpoint.data.curate.runner import Curation
from counterpoint.data.curate.score import Scores, ScoreSettings, field_value, shard_names
from counterpoint.data.curate.stores import Store
from counterpoint.data.curate.table import Table
from counterpoint.data.errors import CAUSES
from counterpoint.data.images.decode import EncodedImage
from counterpoint.data.images.perceptual import perceptual_hashes
from counterpoint.data.images.transforms import EvalTransform
from counterpoint.data.order.keep_lists import KeepLists
from counterpoint.data.shards.index import index_shards


def settings(manifest, captions=("txt",), **more):
    sources = manifest.sources
    return ScoreSettings(dict.fromkeys(sources, captions), dict.fromkeys(sources, "key"), **more)


def score(folder, manifest, captions=("txt",), **more):
    scores = Scores(folder, manifest, settings(manifest, captions, **more))
    scores.open()
    names = shard_names(manifest)
    for shard in range(len(names)):
        scores.write(shard, names[shard])
    return Table(folder)


def rows(table):
    return [row for path in table.files for row in pq.read_table(path).to_pylist()]


def hashed(data):
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little", signed=True)


def test_rows_are_what_the_tars_hold(shards, tmp_path):
    manifest = index_shards(shards, tmp_path / "m.parquet")
    table = score(
        tmp_path / "table", manifest, ("json:caption", "txt"), fields={"json:key": "text"}
    )
    assert table.num_samples == 21
    assert table.shards == [("default", f"{n:05d}.tar", size) for n, size in enumerate((7, 5, 9))]
    table_rows = iter(rows(table))
    for path in shards:
        with tarfile.open(path) as tar:
            files = {member.name: tar.extractfile(member).read() for member in tar}
        for index, key in enumerate(sorted({name.partition(".")[0] for name in files})):
            image, caption = files[f"{key}.png"], json.loads(files[f"{key}.json"])["caption"]
            row = next(table_rows)
            assert row.pop("phash") is not None
            assert row == {
                "key": hashed(f"default\0{key}".encode()),
                "source": "default",
                "shard": Path(path).name,
                "index": index,
                "name": key,
                "error": None,
                "caption": caption,
                "width": 24,
                "height": 20,
                "num_bytes": len(image),
                "words": 2,
                "characters": len(caption),
                "image_hash": hashed(image),
                "caption_hash": hashed(caption.encode()),
                "json:key": key,
            }


def test_samples_have_the_keys_and_causes_of_training(broken, tmp_path):
    manifest, bad = broken
    scores = Scores(tmp_path / "table", manifest, settings(manifest))
    samples = loader(manifest, EvalTransform())
    for shard in (0, 1, 2, 4):
        table = scores.rows(shard, "x.tar").to_pylist()
        batch, texts = samples.load([(0, shard, index) for index in range(6)])
        assert [row["error"] for row in table] == [bad.get((shard, i)) for i in range(6)]
        assert [CAUSES[code] for code in batch["status"]] == [r["error"] or "read" for r in table]
        for row, key, caption in zip(table, batch["key"].tolist(), texts["text"], strict=True):
            if row["error"] is None:
                assert (row["key"], row["caption"]) == (key, caption)
            else:
                known = {"key", "source", "shard", "index", "name", "error"}
                assert {name for name, value in row.items() if value is not None} <= known
                assert (row["key"] is None) == (row["error"] == "shard_truncated")
    with pytest.raises(ValueError, match=r"3\.tar.*restore it, or index without it"):
        scores.rows(3, "x.tar")


def test_rows_survive_resharding(make_tar, make_pairs, tmp_path):
    members = make_pairs(0, 23)
    tables = []
    for number, sizes in enumerate(([23], [10, 13], [1, 2, 20])):
        order = np.random.default_rng(number).permutation(23)
        paths, first = [], 0
        for shard, size in enumerate(sizes):
            part = [m for at in order[first : first + size] for m in members[3 * at : 3 * at + 3]]
            paths.append(make_tar(tmp_path / f"{number}-{shard}.tar", part))
            first += size
        manifest = index_shards(paths, tmp_path / f"{number}.parquet")
        table = score(tmp_path / f"table{number}", manifest)
        moved = ("shard", "index")
        tables.append(
            {r["key"]: {n: v for n, v in r.items() if n not in moved} for r in rows(table)}
        )
    assert len(tables[0]) == 23
    assert tables[0] == tables[1] == tables[2]


@dataclass(frozen=True)
class Northern(Filter):
    """Keeps vectors with a positive first number."""

    reads = ("clip.image",)

    def apply(self, rows, state):
        return {"keep": vectors(rows, "clip.image")[:, 0] > 0}


def test_a_curation_survives_resharding_with_the_old_store(make_tar, make_pairs, tmp_path):
    members = make_pairs(0, 40)
    for at in range(0, 120, 12):  # every fourth image is a copy of the one before
        members[at] = (members[at][0], members[at + 3][1])
    filters = {"size": Basic(min_side=20, min_words=1), "copies": ExactDuplicates()}
    results, store = [], None
    for number, sizes in enumerate(([15, 25], [4, 30, 6])):
        order = np.random.default_rng(number).permutation(40)
        paths, first = [], 0
        for shard, size in enumerate(sizes):
            part = [m for at in order[first : first + size] for m in members[3 * at : 3 * at + 3]]
            paths.append(make_tar(tmp_path / f"{'ab'[number]}{shard}.tar", part))
            first += size
        table = score(tmp_path / f"t{number}", index_shards(paths, tmp_path / f"{number}.parquet"))
        if store is None:
            keys = [row["key"] for row in rows(table)]
            image = np.random.default_rng(9).normal(size=(40, 3)).astype(np.float32)
            vectors_of = {key: {"image": each} for key, each in zip(keys, image, strict=True)}
            store = Store(make_store(tmp_path / "store", table, vectors_of))
        out = tmp_path / f"out{number}"
        Curation(table, {**filters, "northern": Northern()}, {"clip": store}, out).run()
        results.append(kept(out))
    assert results[0] == results[1]
    assert 0 < len(results[0]) < 30
    assert all(vectors_of[key]["image"][0] > 0 for key in results[0])


def test_a_table_goes_on_and_is_of_one_pool(shards, tmp_path):
    manifest = index_shards(shards, tmp_path / "m.parquet")
    table = score(tmp_path / "table", manifest)
    content = table.files[1].read_bytes()
    table.files[1].unlink()
    with pytest.raises(ValueError, match=r"is not complete.*start counterpoint score again"):
        Table(tmp_path / "table")
    scores = Scores(tmp_path / "table", manifest, settings(manifest))
    scores.open()
    assert scores.missing() == [1]
    scores.write(1, "00001.tar")
    assert table.files[1].read_bytes() == content
    other = Scores(tmp_path / "table", manifest, settings(manifest, ("json:caption",)))
    with pytest.raises(ValueError, match=r"of other captions \(there.*; choose another --out"):
        other.open()
    fewer = index_shards(shards[:2], tmp_path / "fewer.parquet")
    with pytest.raises(ValueError, match="of other shards"):
        Scores(tmp_path / "table", fewer, settings(fewer)).open()
    with pytest.raises(ValueError, match=r"no caption in json:text"):
        Scores(tmp_path / "new", manifest, settings(manifest, ("json:text",))).open()
    with pytest.raises(ValueError, match="has a column 'caption' already"):
        settings(manifest, fields={"caption": "text"})
    (tmp_path / "table" / "table.json").unlink()
    with pytest.raises(ValueError, match=r"holds other things \('default'\)"):
        Scores(tmp_path / "table", manifest, settings(manifest, ("json:caption",))).open()


def test_shards_are_called_as_keep_lists_know_them(make_tar, make_pairs, tmp_path):
    places = ["a/x/0.tar", "a/y/0.tar", "b/x/0.tar", "b/1.tar"]
    for number, place in enumerate(places):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        make_tar(tmp_path / place, make_pairs(number, 1))
    sources = {f"s{n}": [str(tmp_path / place)] for n, place in enumerate(places)}
    manifest = index_shards(sources, tmp_path / "m.parquet")
    assert shard_names(manifest) == ["a/x/0.tar", "y/0.tar", "b/x/0.tar", "1.tar"]
    table = score(tmp_path / "table", manifest)
    keep = tmp_path / "keep.parquet"
    schema = pa.schema([("shard", pa.string()), ("index", pa.int32())])
    parts = [pq.read_table(path, columns=schema.names).cast(schema) for path in table.files]
    pq.write_table(pa.concat_tables(parts), keep)
    assert KeepLists([keep], manifest).count().tolist() == [0, 1, 2, 3, 4]
    same = index_shards([str(tmp_path / place) for place in places[:2]], tmp_path / "same.parquet")
    with pytest.raises(ValueError, match="make each set a source of its own"):
        score(tmp_path / "other", same)


def test_fields_of_samples_become_columns():
    fields = {"style": "flat", "size": 7, "at": {"x": [1.5, None]}, "score": "0.25", "on": True}
    raw = {
        "__key__": "k",
        "json": json.dumps({**fields, "half": "\ud83d", "far": 10**400}).encode(),
        "alt": "grün".encode(),
        "bad": b"\xff",
    }
    texts = {f: field_value(raw, f"json:{f}", "text") for f in (*fields, "half", "none")}
    assert texts == {
        "style": "flat",
        "size": "7",
        "at": '{"x": [1.5, null]}',
        "score": "0.25",
        "on": "true",
        "half": None,
        "none": None,
    }
    numbers = {f: field_value(raw, f"json:{f}", "number") for f in (*fields, "far", "none")}
    assert numbers == {
        **dict.fromkeys(("style", "at", "on", "far", "none")),
        "size": 7.0,
        "score": 0.25,
    }
    assert field_value(raw, "alt", "text") == "grün"
    assert field_value(raw, "bad", "text") is None
    assert field_value(raw, "json:at.x", "text") == "[1.5, null]"


def photo(seed, size=96):
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    return small.resize((size, size), Image.Resampling.BICUBIC)


def encoded(image, form, **save):
    buffer = io.BytesIO()
    image.save(buffer, form, **save)
    return buffer.getvalue()


def test_the_perceptual_hash_is_the_lowest_frequencies_against_their_median():
    thumbnails = np.stack(
        [EncodedImage.open(encoded(photo(seed), "PNG")).thumbnail(32) for seed in range(9)]
    )
    expected = []
    for image in thumbnails.astype(np.float64):
        place = (np.arange(32) + 0.5) * np.pi / 32
        low = [
            (image * np.outer(np.cos(u * place), np.cos(v * place))).sum()
            for u in range(1, 9)
            for v in range(1, 9)
        ]
        limit = np.median(low) + np.mean(np.abs(low)) / 8
        expected.append(sum(1 << bit for bit, value in enumerate(low) if value > limit))
    found = perceptual_hashes(thumbnails)
    assert found.view(np.uint64).tolist() == expected
    assert [perceptual_hashes(each[None])[0] for each in thumbnails] == found.tolist()


def test_copies_differ_in_few_bits_and_other_images_in_many():
    def bits(data):
        thumbnail = EncodedImage.open(data).thumbnail(32)
        return np.unpackbits(perceptual_hashes(thumbnail[None]).view(np.uint8))

    own = [bits(encoded(photo(seed), "PNG")) for seed in range(20)]
    copies = [bits(encoded(photo(seed, 300), "JPEG", quality=60)) for seed in range(20)]
    distances = np.array([[int((one != other).sum()) for other in copies] for one in own])
    assert np.diag(distances).max() <= 8
    assert distances[~np.eye(20, dtype=bool)].min() >= 10


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_thumbnails_are_means_of_areas(form):
    image = photo(3, 256)
    data = encoded(image, form, **({} if form == "PNG" else {"quality": 95}))
    grey = np.asarray(image.convert("L"), dtype=np.float64)
    means = grey.reshape(32, 8, 32, 8).mean(axis=(1, 3))
    error = np.abs(EncodedImage.open(data).thumbnail(32) - means)
    assert error.max() <= (1.0 if form == "PNG" else 6.0)
