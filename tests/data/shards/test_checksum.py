"""Checksums in a manifest."""

import hashlib
import io
import tarfile

import pytest

from counterpoint.data.shards.checksum import store_checksums
from counterpoint.data.shards.index import index_shards
from counterpoint.data.shards.manifest import Manifest


@pytest.fixture
def shards(tmp_path):
    """Two shards of one sample each, one beside the manifest and one elsewhere, and their list."""
    paths = [tmp_path / "set" / "00000.tar", tmp_path / "far" / "00001.tar"]
    for path in paths:
        path.parent.mkdir()
        with tarfile.open(path, "w") as tar:
            for name in ("a.png", "a.txt"):
                data = f"{path.name}/{name}".encode()
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    out = tmp_path / "set" / "shards.parquet"
    index_shards([str(path) for path in paths], out)
    return paths, out


def test_checksums_are_those_of_the_files(shards):
    import pyarrow.parquet as pq

    paths, out = shards
    before = Manifest.load(out)
    calls = []
    store_checksums(out, lambda done, total: calls.append((done, total)))
    assert calls == [(1, 2), (2, 2)]
    table = pq.read_table(out)
    by_name = dict(zip(table["url"].to_pylist(), table["sha256"].to_pylist(), strict=True))
    assert by_name == {
        "00000.tar": hashlib.sha256(paths[0].read_bytes()).hexdigest(),
        str(paths[1]): hashlib.sha256(paths[1].read_bytes()).hexdigest(),
    }
    after = Manifest.load(out)
    assert list(after.urls) == list(before.urls)
    assert after.counts.tolist() == before.counts.tolist() == [1, 1]
    assert sorted(path.name for path in out.parent.iterdir() if path.suffix == ".parquet") == [
        "shards.parquet"
    ]


def test_missing_shard_is_named(shards):
    paths, out = shards
    content = out.read_bytes()
    paths[1].unlink()
    with pytest.raises(ValueError, match=r"lists the shard .*00001\.tar, which does not exist"):
        store_checksums(out)
    assert out.read_bytes() == content
