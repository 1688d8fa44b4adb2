"""Patterns, sidecars, counting, and the sentences for shards that cannot be used."""

import json
import os
from pathlib import Path

import pytest
from hostile_http import serve

from counterpoint.data.shards.index import MANY_SHARDS, count_samples, index_shards
from counterpoint.data.shards.manifest import Manifest
from counterpoint.data.shards.transport import Transport
from counterpoint.data.urls import expand_all


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


def test_a_link_keeps_its_name(shards, tmp_path):
    """As in Hugging Face's cache: `snapshots/REVISION/NAME` are links to `blobs/CHECKSUM`."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "1"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for number, shard in enumerate(shards):
        os.rename(shard, blobs / f"{number}f86d081")
        os.symlink(f"../../blobs/{number}f86d081", snapshot / os.path.basename(shard))
    os.symlink("../../blobs/manifest", snapshot / "m.parquet")
    os.symlink("snapshots", tmp_path / "link")
    index_shards([str(snapshot)], tmp_path / "link" / "1" / "m.parquet")
    manifest = Manifest.load(snapshot / "m.parquet")
    assert manifest.urls.names() == ["00000.tar", "00001.tar", "00002.tar"]
    assert manifest.counts.tolist() == [7, 5, 9]
    # The folder may be moved, and has received the indices.
    os.rename(tmp_path / "snapshots", tmp_path / "moved")
    moved = Manifest.load(tmp_path / "moved" / "1" / "m.parquet")
    moved.check_files()
    assert os.path.exists(f"{moved.urls[0]}.index") and len(os.listdir(blobs)) == 3


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
    # Cut between two samples, which only the number of samples reveals.
    Path(path).write_bytes(content[: content.index(b"000000002.png")])
    with pytest.raises(ValueError, match=r"holds 2 samples, its _stats.json says 4"):
        count_samples(path)
    sidecar.write_text("{")
    assert count_samples(path) == 2


@pytest.mark.parametrize("statistics", [None, {"successes": 3}])
@pytest.mark.parametrize(
    ("kept", "message"),
    [
        (".txt", r"has no images \(found: .txt\)"),
        (".png", r"has no captions in .txt \(found: .png\); name"),
    ],
)
def test_a_tar_without_images_or_captions(
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
        (
            "none://bucket/0.tar",
            "'none://bucket/0.tar' cannot be fetched: none:// names no server or store",
        ),
        ("pipe:cat 0.tar", "is a command, and running commands .* is not allowed"),
        ("@none.txt", "the list of shards 'none.txt' cannot be read"),
    ],
)
def test_missing_and_refused(url, message, tmp_path):
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


def test_remote_shards_are_counted_like_local_ones(shards, tmp_path, monkeypatch):
    """A sidecar is believed, a shard without one fetched; the server fails now and then."""
    # A wrong size cannot be detected when only the size is requested.
    monkeypatch.setattr("hostile_http.FAULTS", ("drop", "stall", "503"))
    (tmp_path / "00001_stats.json").write_text(json.dumps({"successes": 5}))
    (tmp_path / "list.txt").write_text("# two more\n\n00001.tar\n00002.tar\n")
    with serve(tmp_path, seed=3, num_faults=2) as server:
        lines = (tmp_path / "list.txt").read_text().replace("0000", f"{server.url}/0000")
        (tmp_path / "list.txt").write_text(lines)
        urls = {"a": [f"{server.url}/00000.tar"], "b": [f"@{tmp_path}/list.txt"]}
        manifest = index_shards(urls, tmp_path / "m.parquet", transport=hasty())
        assert manifest.counts.tolist() == [7, 5, 9]
        assert manifest.num_bytes.tolist() == [os.path.getsize(path) for path in shards]
        assert [manifest.sources[i] for i in manifest.source_ids] == ["a", "b", "b"]
        assert manifest.urls[:] == [f"{server.url}/0000{i}.tar" for i in range(3)]
        assert server.whole["/00001.tar"] == 0
        with pytest.raises(ValueError, match=r"a shard cannot be indexed: '.*/9.tar' does not exi"):
            index_shards([f"{server.url}/9.tar"], tmp_path / "m.parquet", transport=hasty())


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_sidecar_is_none(shards, tmp_path, status):
    """Buckets without permission to list, and signed addresses, answer 403 for absent files."""
    with serve(tmp_path) as server:
        url = f"{server.url}/00000.tar?signature=secret"
        server.refusals["/00000_stats.json"] = status
        few = Transport(num_attempts=2, stall_timeout=900.0, first_delay=0.01)
        manifest = index_shards([url], tmp_path / "m.parquet", transport=few)
        assert manifest.counts.tolist() == [7]
        assert server.asked["/00000_stats.json"] == 1
        # What may pass is no answer: another count could be in it.
        server.refusals["/00000_stats.json"] = 503
        with pytest.raises(
            ValueError, match=r"_stats.json' could not be read in 2 attempts: .*503"
        ):
            index_shards([url], tmp_path / "m.parquet", transport=few)
        server.refusals["/00000.tar"] = status
        with pytest.raises(ValueError, match=rf"'.*/00000.tar' cannot be read: .* {status}; check"):
            del server.refusals["/00000_stats.json"]
            index_shards([url], tmp_path / "m.parquet", transport=few)


def test_a_folder_of_a_web_server_is_listed(shards, tmp_path):
    with serve(tmp_path) as server:
        for pattern in (server.url + "/", server.url + "/0000*.tar"):
            manifest = index_shards([pattern], tmp_path / "m.parquet", transport=hasty())
            assert manifest.counts.tolist() == [7, 5, 9]
        with pytest.raises(ValueError, match=r"no shard found for 'http://.*/none"):
            index_shards([server.url + "/none*.tar"], tmp_path / "m.parquet", transport=hasty())


def hasty() -> Transport:
    return Transport(num_attempts=30, stall_timeout=1.0, first_delay=0.01)


def test_many_shards_are_counted_by_several_processes(make_tar, make_pairs, tmp_path):
    members = make_pairs(0, 3)
    for number in range(MANY_SHARDS):
        make_tar(tmp_path / f"{number:03d}.tar", members[: 3 * (1 + number % 3)])
    seen = []
    manifest = index_shards(
        [str(tmp_path)], tmp_path / "m.parquet", progress=lambda *a: seen.append(a), num_workers=2
    )
    assert manifest.counts.tolist() == [1 + number % 3 for number in range(MANY_SHARDS)]
    assert seen == [(number, MANY_SHARDS) for number in range(1, MANY_SHARDS + 1)]
