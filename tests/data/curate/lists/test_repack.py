"""New tars hold the members of the kept samples, byte for byte, and their keys."""

import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import webdataset as wds

from counterpoint.data.curate.lists.repack import Repack
from counterpoint.data.shards.fields import sample_key
from counterpoint.data.shards.index import index_shards
from counterpoint.data.shards.manifest import Manifest
from counterpoint.data.shards.reader import ShardReader


@pytest.fixture
def pool(make_tar, make_pairs, tmp_path):
    """Two sources of 12 and 9 samples; in the second, two shards use the same names."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    members = make_pairs(0, 12)
    urls = {"one": [], "two": []}
    for number, part in enumerate((members[:21], members[21:])):
        urls["one"].append(make_tar(tmp_path / "one" / f"{number}.tar", part))
    for number, count in enumerate((4, 5)):
        pairs = make_pairs(0, count)
        renamed = [
            (name, json.dumps({"key": f"{number}/{name}"}).encode() if name.endswith("json") else d)
            for name, d in pairs
        ]
        urls["two"].append(make_tar(tmp_path / "two" / f"b{number}.tar", renamed))
    manifest = index_shards(urls, tmp_path / "pool.parquet")
    return manifest, write_list(tmp_path / "keep.parquet", manifest, lambda s, i: (s + i) % 3 != 1)


def write_list(path, manifest, keeps, weight=None):
    reader = ShardReader(manifest.urls)
    rows = [
        (
            manifest.sources[manifest.source_ids[s]],
            Path(manifest.urls[s]).name,
            i,
            raw_key(reader, manifest, s, i),
        )
        for s, count in enumerate(manifest.counts.tolist())
        for i in range(count)
        if keeps(s, i)
    ]
    columns = dict(zip(("source", "shard", "index", "key"), zip(*rows, strict=True), strict=True))
    if weight is not None:
        columns["weight"] = [weight] * len(rows)
    order = np.random.default_rng(0).permutation(len(rows))
    pq.write_table(pa.table(columns).take(order), path)
    return path


def raw_key(reader, manifest, shard, index):
    source = manifest.sources[manifest.source_ids[shard]]
    name = Path(manifest.urls[shard]).name
    return sample_key(reader.read(shard, index), source, name, "key")


def repack(pool, out, size=5, **more):
    manifest, keep = pool
    return Repack(keep, manifest, out, size, dict.fromkeys(manifest.sources, "key"), **more)


def contents(manifest):
    reader = ShardReader(manifest.urls)
    return {
        raw_key(reader, manifest, s, i): {
            n: v for n, v in reader.read(s, i).items() if n != "__key__"
        }
        for s, count in enumerate(manifest.counts.tolist())
        for i in range(count)
    }


def test_members_and_keys_stay(pool, tmp_path):
    manifest, keep = pool
    work = repack(pool, tmp_path / "out%d")
    work.open(ignores_weights=False)
    counts = work.run()
    new = Manifest.load(tmp_path / "out%d" / "manifest.parquet")
    kept = pq.read_table(keep)["key"].to_pylist()
    old = contents(manifest)
    assert counts == {"successes": len(kept), "unreadable": 0, "no_key": 0}
    assert contents(new) == {key: old[key] for key in kept}
    assert new.sources == ["one", "two"]
    one = sum(number % 3 != 1 for number in (*range(7), *range(1, 6)))
    assert new.counts.tolist() == [5, one - 5, 5, len(kept) - one - 5]
    for url, count in zip(new.urls, new.counts.tolist(), strict=True):
        stats = json.loads(Path(url).with_name(f"{Path(url).stem}_stats.json").read_text())
        assert stats["successes"] == count
        # As other readers see it: no two samples run into one.
        assert len(list(wds.WebDataset(url, shardshuffle=False))) == count
    indexed = index_shards([str(tmp_path / "out%d" / "one")], tmp_path / "again.parquet")
    assert indexed.num_samples == new.counts[new.source_ids == 0].sum()


def test_a_list_of_another_pool_is_refused(pool, tmp_path):
    _, keep = pool
    rows = pq.read_table(keep)
    other = pc.add(rows["key"], pc.if_else(pc.equal(rows["index"], 3), 1, 0))
    pq.write_table(rows.set_column(rows.schema.get_field_index("key"), "key", other), keep)
    with pytest.raises(ValueError, match=r"sample 3 of the shard .* is not the one .*keep locate"):
        repack(pool, tmp_path / "out").run()


def test_it_goes_on_where_it_stopped(pool, tmp_path):
    work = repack(pool, tmp_path / "out")
    work.open(ignores_weights=False)
    work.run()
    tars = sorted((tmp_path / "out").rglob("*.tar"))
    content = [path.read_bytes() for path in tars]
    stamps = [path.stat().st_mtime_ns for path in tars]
    # A tar without its statistics may not be whole.
    tars[1].write_bytes(b"half")
    tars[1].with_name(f"{tars[1].stem}_stats.json").unlink()
    again = repack(pool, tmp_path / "out")
    again.open(ignores_weights=False)
    again.run()
    assert [path.read_bytes() for path in tars] == content
    assert [path.stat().st_mtime_ns == stamp for path, stamp in zip(tars, stamps, strict=True)] == [
        number != 1 for number in range(len(tars))
    ]
    with pytest.raises(ValueError, match="tars of another samples_per_shard"):
        repack(pool, tmp_path / "out", size=6).open(ignores_weights=False)


def test_weights_and_damage_are_not_passed_over(pool, tmp_path):
    manifest, _ = pool
    heavy = write_list(tmp_path / "heavy.parquet", manifest, lambda s, i: i < 3, weight=2.0)
    work = repack((manifest, heavy), tmp_path / "out")
    with pytest.raises(ValueError, match=r"has weights.*or give --ignore_weights"):
        work.open(ignores_weights=False)
    work.open(ignores_weights=True)
    assert work.run()["successes"] == 12
    ones = write_list(tmp_path / "ones.parquet", manifest, lambda s, i: i < 3, weight=1.0)
    repack((manifest, ones), tmp_path / "out1").open(ignores_weights=False)
    work = repack((manifest, ones), tmp_path / "out2")
    work.open(ignores_weights=False)
    path = Path(manifest.urls[0])
    with tarfile.open(path) as tar:
        third = tar.getmembers()[6].offset
    path.write_bytes(path.read_bytes()[: third + 600])
    Path(f"{path}.index").unlink(missing_ok=True)
    # The sample before the cut may lack members, too.
    assert work.run() == {"successes": 10, "unreadable": 2, "no_key": 0}
    with pytest.raises(ValueError, match="give 1 or more"):
        repack(pool, tmp_path / "out3", size=0).open(ignores_weights=False)


@pytest.mark.parametrize("name", ["one/00000.tar", "two/00000_stats.json", "manifest.parquet"])
def test_files_that_are_there_stay(pool, tmp_path, name):
    path = tmp_path / "out" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(b"mine")
    with pytest.raises(ValueError, match=r"out' holds other things .*; name a new"):
        repack(pool, tmp_path / "out").open(ignores_weights=False)
    assert [each for each in (tmp_path / "out").rglob("*") if each.is_file()] == [path]


def test_a_list_of_other_shards_leaves_no_folder(pool, tmp_path):
    manifest, _ = pool
    rows = {"source": ["one"], "shard": ["x.tar"], "index": pa.array([0], pa.int32()), "key": [1]}
    pq.write_table(pa.table(rows), tmp_path / "other.parquet")
    with pytest.raises(ValueError, match=r"names the shard 'x\.tar'"):
        repack((manifest, tmp_path / "other.parquet"), tmp_path / "out").open(False)
    assert not (tmp_path / "out").exists()
