"""Stored tensors joined to samples by key."""

import pickle

import pyarrow as pa
import pytest
import torch

from counterpoint.data.shards.manifest import SCHEMA, Manifest
from counterpoint.data.sidecar import EvenDraws, Sidecar, check_file_names, write_sidecar


@pytest.fixture
def folder(tmp_path):
    """Rows in an order of their own: key k holds k, k + 0.5 and a box of k."""
    for source, shard, keys in (
        ("a", "00000", [5, -3, 9]),
        ("a", "00001.tar", [4]),
        ("b", "0", []),
    ):
        key = torch.tensor(keys, dtype=torch.int64)
        vectors = torch.stack([key.float(), key.float() + 0.5], 1)
        boxes = key.to(torch.int16)[:, None, None].expand(-1, 2, 4)
        write_sidecar(tmp_path, source, shard, {"key": key, "vector": vectors.half(), "box": boxes})
    return str(tmp_path)


def rows(sidecar, source, shard, keys):
    found = [sidecar.row(source, shard, key) for key in keys]
    return {entry: torch.stack([row[entry] for row in found]) for entry in found[0]}


def test_rows_are_joined_by_key_and_absent_ones_are_zero(folder):
    sidecar = Sidecar(folder, {"image": "vector", "boxes": "box"})
    found = rows(sidecar, "a", "00000.tar", [9, 7, -3])
    assert found["image"].tolist() == [[9, 9.5], [0, 0], [-3, -2.5]]
    assert found["image"].dtype == torch.float16
    assert found["boxes"][:, 1, 3].tolist() == [9, 0, -3]
    assert found["present"].tolist() == [True, False, True]


@pytest.mark.parametrize("place", [("a", "00001"), ("b", "0.tar"), ("c", "0")])
def test_every_shard_gives_the_same_entries(folder, place):
    found = rows(Sidecar(folder, {"image": "vector"}), *place, [4, 1])
    assert found["image"].shape == (2, 2)
    assert found["present"].tolist() == [place == ("a", "00001"), False]


def test_one_of_several_variants_is_drawn(folder):
    sidecar = Sidecar(folder, {"boxes": "box", "image": "vector"}, variants=2)
    drawn = [sidecar.row("a", "00000", 5, draw) for draw in (0.0, 0.49, 0.5, 0.99)]
    assert [row["image"].item() for row in drawn] == [5, 5, 5.5, 5.5]
    assert drawn[0]["boxes"].shape == (4,) and drawn[0]["present"]
    assert not sidecar.row("a", "00000", 6, 0.7)["image"].any()
    with pytest.raises(ValueError, match="variants=3 they begin with that"):
        Sidecar(folder, {"image": "vector"}, variants=3).row("a", "00000", 5)


def test_few_files_stay_open_and_workers_get_their_own(folder):
    sidecar = Sidecar(folder, {"image": "vector"}, max_open=1)
    for _ in range(2):
        assert sidecar.row("a", "00000", 5)["image"].tolist() == [5, 5.5]
        assert sidecar.row("a", "00001", 4)["image"].tolist() == [4, 4.5]
    assert len(sidecar._open) == 1
    copy = pickle.loads(pickle.dumps(sidecar))
    assert not copy._open and copy.row("a", "00001", 4)["present"]


def test_mistakes_are_sentences(folder, tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        Sidecar(f"{folder}/none", {"image": "vector"}).check()
    with pytest.raises(ValueError, match=r"holds no SOURCE/SHARD\.safetensors"):
        Sidecar(f"{folder}/a", {"image": "vector"}).check()
    with pytest.raises(ValueError, match="needs columns"):
        Sidecar(folder, {})
    with pytest.raises(ValueError, match="no column vektor; it has box, key, vector"):
        Sidecar(folder, {"image": "vektor"}).row("a", "00000", 5)
    (tmp_path / "a" / "00000.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(ValueError, match="damaged"):
        Sidecar(folder, {"image": "vector"}).row("a", "00000", 5)
    with pytest.raises(ValueError, match="keys repeat"):
        write_sidecar(tmp_path, "a", "1", {"key": torch.tensor([1, 1])})
    with pytest.raises(ValueError, match="differ in length"):
        write_sidecar(tmp_path, "a", "1", {"key": torch.tensor([1]), "x": torch.zeros(2)})
    with pytest.raises(ValueError, match="int64"):
        write_sidecar(tmp_path, "a", "1", {"x": torch.zeros(2)})


def test_folders_that_cannot_be_meant_are_refused(folder):
    Sidecar(folder, {"v": "vector"}).check(["b", "c"])
    with pytest.raises(ValueError, match=r"has rows of a, b, none of the run's sources \(c, d\)"):
        Sidecar(folder, {"v": "vector"}).check(["c", "d"])
    with pytest.raises(ValueError, match="variants=7"):
        Sidecar(folder, {"v": "vector"}, variants=7).check()


def test_others_may_read_what_is_written(folder, tmp_path):
    (tmp_path / "plain").touch()
    written = tmp_path / "a" / "00000.safetensors"
    assert written.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_shards_of_one_name_need_sources_of_their_own():
    def check(*shards):
        rows = [
            {"source": source, "url": url, "num_samples": 1, "num_bytes": 1, "sha256": ""}
            for source, url in shards
        ]
        check_file_names(Manifest(pa.Table.from_pylist(rows, SCHEMA), "/pairs"))

    check(("a", "one/0.tar"), ("b", "two/0.tar"), ("a", "one/1.tar"), ("a", "one/0.tar"))
    with pytest.raises(ValueError, match=r"/pairs/one/0 and .*/two/0\.tar\?t .*'a'.*FIRST=URLS"):
        check(("b", "two/0.tar"), ("a", "one/0"), ("a", "https://x/two/0.tar?t"))


def test_even_draws_need_no_files():
    """Of five captions of equal weight, five variants take each once."""
    draws, taken = EvenDraws(), []
    for variant in range(5):
        draws.value = (variant + 0.5) / 5
        row = pickle.loads(pickle.dumps(draws)).row("a", "00000", 3)
        assert row["present"] and row["draw"].dtype == torch.float64
        taken.append(int(row["draw"] * 5))
    assert taken == [0, 1, 2, 3, 4]
