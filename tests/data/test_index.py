"""Patterns, sidecars, counting, and the sentences for shards that cannot be used."""

import json
import os
from pathlib import Path

import pytest

from counterpoint.data.index import count_samples, expand_all, expand_braces, index_shards
from counterpoint.data.manifest import Manifest


def test_braces():
    assert expand_braces("a{08..11}.tar") == ["a08.tar", "a09.tar", "a10.tar", "a11.tar"]
    assert expand_braces("{9..10}") == ["9", "10"]
    assert expand_braces("{x,y}/{0..1}") == ["x/0", "x/1", "y/0", "y/1"]
    assert expand_braces("plain{.tar") == ["plain{.tar"]


def test_patterns_folders_and_paths_name_the_same_files_once(shards, tmp_path):
    for urls in (
        [str(tmp_path)],
        [str(tmp_path / "*.tar")],
        [str(tmp_path / "{00000..00002}.tar")],
        [shards[0], str(tmp_path / "0000?.tar"), shards[2]],
    ):
        assert expand_all(urls) == shards


def test_counts_are_walked_and_the_manifest_is_saved(shards, tmp_path):
    seen = []
    manifest = index_shards(
        [str(tmp_path)], tmp_path / "m.parquet", "emoji", lambda *a: seen.append(a)
    )
    assert manifest.counts.tolist() == [7, 5, 9]
    assert manifest.sources == ["emoji"]
    assert seen == [(1, 3), (2, 3), (3, 3)]
    loaded = Manifest.load(tmp_path / "m.parquet")
    assert loaded.fingerprint == manifest.fingerprint
    loaded.check_files()
    os.rename(tmp_path, tmp_path.with_name("moved"))
    moved = Manifest.load(tmp_path.with_name("moved") / "m.parquet")
    moved.check_files()
    assert moved.fingerprint == manifest.fingerprint
    os.rename(tmp_path.with_name("moved"), tmp_path)


def test_shards_elsewhere_are_listed_by_their_full_path(shards, tmp_path, tmp_path_factory):
    out = tmp_path_factory.mktemp("elsewhere") / "m.parquet"
    assert index_shards(shards, out).urls[:] == shards


def test_img2datasets_statistics_are_trusted_unless_the_tar_disagrees(
    make_tar, make_pairs, tmp_path
):
    path = make_tar(tmp_path / "00000.tar", make_pairs(0, 4))
    sidecar = tmp_path / "00000_stats.json"
    sidecar.write_text(json.dumps({"count": 6, "successes": 4}))
    assert count_samples(path) == 4
    assert not os.path.exists(f"{path}.index")  # no walk was needed
    content = Path(path).read_bytes()
    Path(path).write_bytes(content[: content.index(b"000000002.png") + 600])
    with pytest.raises(ValueError, match=r"00000.tar' is cut off or damaged .*; fetch it again"):
        count_samples(path)
    # Cut between two samples, which only the number of samples can tell.
    Path(path).write_bytes(content[: content.index(b"000000002.png")])
    with pytest.raises(ValueError, match=r"holds 2 samples, its _stats.json says 4"):
        count_samples(path)
    sidecar.write_text("{")
    assert count_samples(path) == 2


@pytest.mark.parametrize("statistics", [None, {"successes": 3}])
@pytest.mark.parametrize(
    ("kept", "message"),
    [
        (".txt", r"has no pictures \(found: .txt\)"),
        (".png", r"has no captions in .txt \(found: .png\); name"),
    ],
)
def test_a_tar_without_pictures_or_captions(
    make_tar, make_pairs, tmp_path, kept, message, statistics
):
    members = [(name, data) for name, data in make_pairs(0, 3) if name.endswith(kept)]
    path = make_tar(tmp_path / "0.tar", members)
    if statistics:
        (tmp_path / "0_stats.json").write_text(json.dumps(statistics))
    with pytest.raises(ValueError, match=message):
        index_shards([path], tmp_path / "m.parquet")
    assert not (tmp_path / "m.parquet").exists()


def test_captions_in_json_need_no_txt(make_tar, make_pairs, tmp_path):
    members = [(name, data) for name, data in make_pairs(0, 3) if not name.endswith("txt")]
    path = make_tar(tmp_path / "0.tar", members)
    assert count_samples(path, ["json:caption"]) == 3


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("none/{00000..00041}.tar", r"'none/00000.tar', .* and 39 more; check"),
        ("none", "no shard found for 'none'"),
        ("s3://bucket/0.tar", "is not a local path"),
        ("pipe:cat 0.tar", "is not a local path"),
    ],
)
def test_missing_and_remote(url, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        index_shards([url], tmp_path / "m.parquet")


def test_nothing_given_and_nothing_inside(make_tar, tmp_path):
    with pytest.raises(ValueError, match="no shards given"):
        expand_all([])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no shard found"):
        expand_all([str(tmp_path / "empty")])
    with pytest.raises(ValueError, match="hold no samples"):
        index_shards([make_tar(tmp_path / "0.tar", [])], tmp_path / "m.parquet")
    garbage = tmp_path / "1.tar"
    garbage.write_bytes(b"<html>404</html>" * 100)
    with pytest.raises(ValueError, match="no tar header at byte 0"):
        index_shards([str(garbage)], tmp_path / "m.parquet")
