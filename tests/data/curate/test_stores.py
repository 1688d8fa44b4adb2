"""Rows of a store are joined by key, wherever they are."""

import itertools
import pickle

import numpy as np
import pytest
import torch
from helpers.score_table import kept, make_store, make_table

from counterpoint.data.curate import key_index
from counterpoint.data.curate.base import Filter, numbers, vectors
from counterpoint.data.curate.runner import Curation
from counterpoint.data.curate.stores import Store
from counterpoint.data.sidecar import write_sidecar


@pytest.fixture
def store(tmp_path):
    """Three files with keys in no order, and the rows by key."""
    rng = np.random.default_rng(0)
    keys = rng.permutation(np.arange(-300, 300) * (2**53 + 1))
    rows = {int(key): rng.normal(size=(2, 3)).astype(np.float16) for key in keys}
    for number, part in enumerate(np.split(keys, [100, 101])):
        columns = {"key": torch.from_numpy(part)}
        columns["image"] = torch.from_numpy(np.stack([rows[int(key)] for key in part]))
        columns["id"] = torch.from_numpy(part % 7)
        write_sidecar(tmp_path / "store", "web", f"{number}.tar", columns)
    return tmp_path / "store", rows


def expect(store, rows, source, stem, keys):
    image, ids = store.read(source, stem, np.array(keys), ["image", "id"])
    wanted = [rows[key].reshape(-1).tolist() if key in rows else None for key in keys]
    assert image.to_pylist() == wanted
    assert ids.to_pylist() == [key % 7 if key in rows else None for key in keys]


@pytest.mark.parametrize("size", [1 << 20, 8])
def test_rows_are_found_in_any_file(store, monkeypatch, size):
    monkeypatch.setattr(key_index, "KEYS_A_BUCKET", size)
    folder, rows = store
    own = Store(folder).read("web", "0", np.array([1]), ["id"])
    assert own[0].to_pylist() == [None]
    some = [*itertools.islice(rows, 0, None, 3), 5, 2**62]
    for source, stem in (("web", "0"), ("web", "1"), ("web", "new"), ("new", "0")):
        expect(Store(folder), rows, source, stem, some)
        expect(pickle.loads(pickle.dumps(Store(folder))), rows, source, stem, some[::-1])


def test_the_index_is_made_when_it_is_needed_and_of_these_files(store):
    folder, rows = store
    torch_keys = list(rows)[:100]
    expect(Store(folder), rows, "web", "0", torch_keys)
    assert not (folder / ".keys").exists()
    expect(Store(folder), rows, "web", "1", torch_keys)
    (made,) = (folder / ".keys").iterdir()
    assert made.is_dir()
    columns = {"key": torch.tensor([5]), "image": torch.ones(1, 2, 3).half()}
    write_sidecar(folder, "web", "9.tar", {**columns, "id": torch.tensor([5])})
    rows[5] = np.ones((2, 3))
    expect(Store(folder), rows, "web", "1", [5, *torch_keys])


def test_files_that_do_not_fit_are_named(store, tmp_path):
    folder, rows = store
    with pytest.raises(ValueError, match=r"0\.safetensors' has no column text; it has id, image"):
        Store(folder).read("web", "0", np.array(list(rows)[:2]), ["text"])
    columns = {"key": torch.tensor([5]), "image": torch.ones(1, 4).half()}
    write_sidecar(folder, "web", "9.tar", columns)
    with pytest.raises(ValueError, match=r"has rows of float16 \[4\], other files of float16 \["):
        Store(folder).read("web", "0", np.array([*rows, 5]), ["image"])
    (folder / "web" / "0.safetensors").write_bytes(b"12345678901")
    with pytest.raises(ValueError, match="is damaged"):
        Store(folder).read("web", "0", np.array([1]), ["image"])


def test_an_index_that_cannot_be_written_is_named(store):
    folder, rows = store
    (folder / ".keys").write_text("in the way")
    with pytest.raises(ValueError, match="an index of its keys cannot be written"):
        Store(folder).read("web", "1", np.array(list(rows)), ["id"])


class Northern(Filter):
    """Keeps vectors with a positive first number."""

    reads = ("clip.image", "clip.id")

    def __repr__(self):
        return "Northern()"

    def apply(self, rows, state):
        return {"keep": (vectors(rows, "clip.image")[:, 0] > 0) & (numbers(rows, "clip.id") > 0)}


def test_a_store_of_the_old_shards_serves_the_new_ones(tmp_path):
    old = make_table(tmp_path / "old", {}, [40, 60])
    rng = np.random.default_rng(1)
    rows = {
        row * 7919 - 10**6: {
            "image": rng.normal(size=3).astype(np.float32),
            "id": np.int64(row % 3),
        }
        for row in range(100)
        if row % 10
    }
    store = Store(make_store(tmp_path / "store", old, rows))
    expected = {k: 1.0 for k, row in rows.items() if row["image"][0] > 0 and row["id"] > 0}
    new = make_table(tmp_path / "new", {}, [10, 50, 40], np.random.default_rng(2).permutation(100))
    for table in (old, new):
        out = tmp_path / f"out-{table.folder.name}"
        Curation(table, {"northern": Northern()}, {"clip": store}, out).run()
        assert kept(out) == expected
