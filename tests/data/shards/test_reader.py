"""Random access against webdataset's sequential reading."""

import errno
import os
import pickle

import pytest
from webdataset.compat import WebDataset
from webdataset.writer import ShardWriter

from counterpoint.data.errors import SampleError
from counterpoint.data.shards.reader import ShardReader


def test_every_sample_equals_webdatasets(tmp_path, make_pairs):
    pattern = str(tmp_path / "%05d.tar")
    with ShardWriter(pattern, maxcount=4, verbose=0) as writer:
        members = make_pairs(0, 10)
        for number in range(10):
            sample = {name.split(".")[1]: data for name, data in members[3 * number :][:3]}
            writer.write({"__key__": f"{number:09d}", **sample})
    urls = [str(tmp_path / f"{number:05d}.tar") for number in range(3)]
    reader = ShardReader(urls, max_open=2)
    expected = [
        (
            shard,
            ordinal,
            {k: v for k, v in sample.items() if k in ("__key__", "png", "txt", "json")},
        )
        for shard, url in enumerate(urls)
        for ordinal, sample in enumerate(WebDataset(url, shardshuffle=False))
    ]
    assert len(expected) == 10
    for shard, ordinal, sample in [*expected[::-1], *expected]:
        assert reader.read(shard, ordinal) == sample


def test_causes(tmp_path, make_tar, make_pairs):
    good = make_tar(tmp_path / "good.tar", make_pairs(0, 3))
    cut = tmp_path / "cut.tar"
    with open(good, "rb") as file:
        cut.write_bytes(file.read()[: 3 * 1024 + 512 * 9])
    reader = ShardReader([good, str(cut), str(tmp_path / "none.tar")])
    assert reader.read(1, 0) == reader.read(0, 0)
    for place, cause in [
        ((0, 3), "wrong_count"),
        ((1, 2), "shard_truncated"),
        ((2, 0), "shard_missing"),
    ]:
        with pytest.raises(SampleError) as caught:
            reader.read(*place)
        assert caught.value.cause == cause
        assert reader.urls[place[0]] in str(caught.value)


def test_what_the_disk_says_of_one_shard_is_counted(tmp_path, shards, monkeypatch):
    folder = tmp_path / "folder.tar"
    folder.mkdir()
    reader = ShardReader([str(folder), *shards])
    with pytest.raises(SampleError, match=r"shard_missing: '.*folder.tar': Is a directory"):
        reader.read(0, 0)

    def broken(*_):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("counterpoint.data.shards.tar.os.pread", broken)
        with pytest.raises(SampleError, match=r"shard_missing: '.*00000.tar': Input/output error"):
            reader.read(1, 0)
    # Nothing wrong was written down: what passes is forgotten.
    assert reader.read(1, 6)["txt"] == b"image 6"


def test_a_shard_that_shrinks_while_it_is_open(tmp_path, make_tar, make_pairs):
    path = make_tar(tmp_path / "a.tar", make_pairs(0, 3))
    reader = ShardReader([path])
    reader.read(0, 0)
    os.truncate(path, 1500)
    with pytest.raises(SampleError, match="shard_truncated"):
        reader.read(0, 2)


def open_among(paths: list[str]) -> int:
    links = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]
    return sum(os.path.realpath(link) in paths for link in links)


def test_open_files_are_few_and_do_not_travel(shards):
    reader = ShardReader(shards, max_open=2)
    for _ in range(3):
        for shard in range(3):
            reader.read(shard, 1)
    assert open_among(shards) == 2
    copy = pickle.loads(pickle.dumps(reader))
    assert open_among(shards) == 2
    assert copy.read(2, 8) == reader.read(2, 8)
    del reader, copy
    assert not open_among(shards)
