"""Files, addresses, the fingerprint, and what is refused."""

import hashlib
import os
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from counterpoint.data.shards.manifest import SCHEMA, Manifest
from counterpoint.data.urls import base_name


def table(**changes):
    columns = {
        "source": ["b", "a", "b"],
        "url": ["x/0.tar", "1.tar", "/far/2.tar"],
        "num_samples": [3, 4, 5],
        "num_bytes": [30, 40, 50],
        "sha256": ["", "", ""],
    }
    return pa.table(columns | changes, schema=SCHEMA)


def test_columns_and_addresses(tmp_path):
    Manifest(table(), tmp_path).save(tmp_path / "m" / "manifest.parquet")
    manifest = Manifest.load(tmp_path / "m" / "manifest.parquet")
    assert manifest.counts.tolist() == [3, 4, 5]
    assert manifest.sources == ["a", "b"]
    assert manifest.source_ids.tolist() == [1, 0, 1]
    assert manifest.num_samples == 12
    folder = str(tmp_path / "m")
    assert manifest.urls[:] == [f"{folder}/x/0.tar", f"{folder}/1.tar", "/far/2.tar"]
    assert os.listdir(tmp_path / "m") == ["manifest.parquet"]


def test_the_fingerprint_follows_the_shards_not_the_folder(tmp_path):
    first = Manifest(table(), tmp_path).fingerprint
    assert Manifest(table(url=["y/0.tar", "z/1.tar", "2.tar"]), "/other").fingerprint == first
    changes = [
        {"url": ["x/9.tar", "1.tar", "/far/2.tar"]},
        {"source": ["b", "b", "b"]},
        {"num_samples": [3, 4, 6]},
        {"num_bytes": [30, 40, 51]},
        {"sha256": ["f", "", ""]},
        {"num_samples": [4, 3, 5]},
    ]
    others = [Manifest(table(**change), tmp_path).fingerprint for change in changes]
    assert len({first, *others}) == len(changes) + 1


def test_files_are_checked_before_a_run(shards, tmp_path):
    sizes = [os.path.getsize(path) for path in shards]
    manifest = Manifest(table(url=shards, num_bytes=sizes), tmp_path)
    manifest.check_files()
    shutil.copy(shards[1], tmp_path / "kept")
    os.truncate(shards[1], 700)
    with pytest.raises(ValueError, match=r"00001.tar' has 700 bytes, .* it was cut off; fetch"):
        manifest.check_files()
    os.unlink(shards[1])
    with pytest.raises(ValueError, match=r"1 of 3 shards .* missing, the first is '.*00001.tar'"):
        manifest.check_files()
    remote = Manifest(table(url=["s3://b/0.tar", "pipe:cat 1.tar", "2"]), tmp_path)
    assert remote.urls[:2] == ["s3://b/0.tar", "pipe:cat 1.tar"]
    with pytest.raises(ValueError, match=r"1 of 3 shards .*, the first is '.*/2'"):
        remote.check_files()


def test_the_fingerprint_is_the_one_of_older_runs(tmp_path):
    """Checkpoints hold it: computed here the long way, with hashlib alone."""
    manifest = Manifest(table(sha256=["e", "f0", ""]), tmp_path)
    state = hashlib.sha256()
    for text in ("b\na\nb", "0.tar\n1.tar\n2.tar", "e\nf0\n"):
        state.update(len(text).to_bytes(8, "little") + text.encode())
    for number in (3, 4, 5, 30, 40, 50):
        state.update(number.to_bytes(8, "little"))
    assert manifest.fingerprint == state.hexdigest()[:32]


def test_a_signature_is_no_part_of_a_name(tmp_path):
    """A manifest that is signed again lists the same shards, with the keys of before."""
    urls = ["https://h/x/0.tar", "http://h/1.tar", "s3://b/2?#.tar"]
    plain = Manifest(table(url=urls), tmp_path)
    signatures = ["?X-Amz-Credential=AK/2024/s3&X=1", "?a=b#c/d\n?", ""]
    signed = Manifest(
        table(url=[url + more for url, more in zip(urls, signatures, strict=True)]), tmp_path
    )
    assert plain.urls.names() == ["0.tar", "1.tar", "2?#.tar"]
    assert signed.urls.names() == plain.urls.names() == [base_name(url) for url in signed.urls]
    assert signed.fingerprint == plain.fingerprint


def test_several_files_are_one_manifest(tmp_path):
    Manifest(table(), tmp_path).save(tmp_path / "one" / "m.parquet")
    urls = ["s3://b/0.tar", "pipe:cat x", "y/2.tar"]
    other = table(source=["c", "a2", "c"], url=urls, num_samples=[6, 7, 8])
    Manifest(other, tmp_path).save(tmp_path / "source=two" / "m.parquet")
    paths = [tmp_path / "one" / "m.parquet", tmp_path / "source=two" / "m.parquet"]
    both = Manifest.load(paths)
    assert both.counts.tolist() == [3, 4, 5, 6, 7, 8]
    assert both.sources == ["a", "a2", "b", "c"]
    assert [both.sources[i] for i in both.source_ids] == ["b", "a", "b", "c", "a2", "c"]
    assert both.urls[:] == [url for path in paths for url in Manifest.load(path).urls]
    assert both.urls[-1] == str(tmp_path / "source=two" / "y/2.tar")
    assert Manifest.load(paths[:1]).fingerprint == Manifest.load(paths[0]).fingerprint
    both.save(tmp_path / "both.parquet")
    assert Manifest.load(tmp_path / "both.parquet").urls[:] == both.urls[:]
    with pytest.raises(ValueError, match=r"source 'b' is in '.*' and in '.*'; index one of them"):
        Manifest.load([paths[0], paths[0]])
    with pytest.raises(ValueError, match="empty list"):
        Manifest.load([])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.parquet", "does not exist; write one with"),
        (".", "is a folder; name a file in it"),
        ("text.parquet", "is not a parquet file"),
        ("other.parquet", "has no column url, sha256"),
        ("empty.parquet", "lists 0 shards with 0 samples"),
        ("zero.parquet", "lists 3 shards with 0 samples"),
    ],
)
def test_refusals(tmp_path, name, message):
    (tmp_path / "text.parquet").write_text("hello")
    pq.write_table(table().drop_columns(["url", "sha256"]), tmp_path / "other.parquet")
    pq.write_table(table().slice(0, 0), tmp_path / "empty.parquet")
    pq.write_table(table(num_samples=[0, 0, 0]), tmp_path / "zero.parquet")
    with pytest.raises(ValueError, match=message):
        Manifest.load(tmp_path / name)


def test_half_a_million_shards(tmp_path):
    num = 500_000
    columns = {
        "source": pa.array(np.array(["a", "b"])[np.arange(num) % 2]),
        "url": pa.array([f"{number:06d}.tar" for number in range(num)]),
        "num_samples": np.full(num, 10_000),
        "num_bytes": np.zeros(num, dtype=np.int64),
        "sha256": pa.array([""] * num),
    }
    manifest = Manifest(pa.table(columns, schema=SCHEMA), tmp_path)
    assert manifest.num_samples == 5_000_000_000
    assert manifest.urls[123_456].endswith("/123456.tar")
    assert len(manifest.fingerprint) == 32


def test_a_missing_emoji_manifest_names_the_command_that_builds_it():
    for name in ("train.parquet", "negatives/train.parquet"):
        with pytest.raises(
            ValueError, match=r"does not exist; .* `counterpoint data emoji a/emoji`"
        ):
            Manifest.load(f"a/emoji/{name}")
