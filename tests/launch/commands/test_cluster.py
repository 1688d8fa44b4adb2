"""Clusters of stored embeddings: those that are there, by other means, and on any second start."""

import re

import pytest
import safetensors.torch
import torch
from sklearn.metrics import adjusted_rand_score

from counterpoint.data.sidecar import Sidecar, write_sidecar
from counterpoint.launch.cli import main

NUM, WIDTH = 4, 16


@pytest.fixture
def store(tmp_path):
    """Three shards of samples around four directions; the folder and the truth by key."""
    draw = torch.Generator().manual_seed(0)
    centres = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=draw))[0][:NUM]
    truth = {}
    for shard, count in enumerate((40, 1, 60)):
        label = torch.randint(0, NUM, (count,), generator=draw)
        noise = 0.1 * torch.randn(count, 2, WIDTH, generator=draw)
        rows = (centres[label][:, None] + noise) * 7
        keys = torch.arange(count) + 1000 * shard
        truth |= dict(zip(keys.tolist(), label.tolist(), strict=True))
        columns = {"key": keys, "image": rows.half(), "draw": torch.zeros(count)}
        write_sidecar(tmp_path / "store", "pairs", f"s{shard}.tar", columns)
    return tmp_path / "store", truth


def cluster(store, out, *more):
    return main(["cluster", str(store), "--out", str(out), "--clusters", str(NUM), *more])


def test_samples_find_their_cluster(store, tmp_path, capsys):
    folder, truth = store
    # With this seed k-means starts from a sample of each.
    assert cluster(folder, tmp_path / "out", "--seed", "1") == 0
    assert f"101 samples in {NUM} of {NUM} clusters" in capsys.readouterr().out
    sidecar = Sidecar(str(tmp_path / "out"), {"id": "id"})
    found = {k: int(sidecar.row("pairs", f"s{k // 1000}.tar", k)["id"]) for k in truth}
    assert adjusted_rand_score(list(truth.values()), list(found.values())) == 1.0
    centres = safetensors.torch.load_file(tmp_path / "out" / "centres.safetensors")["centres"]
    torch.testing.assert_close(centres.norm(dim=1), torch.ones(NUM))


def test_a_second_start_writes_what_is_missing_and_nothing_else(store, tmp_path, capsys):
    folder, _ = store
    out = tmp_path / "out"
    assert cluster(folder, out, "--samples_per_cluster", "5") == 0
    before = {path: path.read_bytes() for path in out.glob("*/*")}
    assert not list(out.glob("*.claim"))
    gone = out / "pairs" / "s2.safetensors"
    gone.unlink()
    capsys.readouterr()
    assert cluster(folder, out, "--samples_per_cluster", "5") == 0
    assert "k-means" not in capsys.readouterr().out
    assert {path: path.read_bytes() for path in out.glob("*/*")} == before


def test_clusters_do_not_depend_on_shards(store, tmp_path):
    folder, truth = store
    assert cluster(folder, tmp_path / "out", "--samples_per_cluster", "5") == 0
    rows = [safetensors.torch.load_file(path) for path in sorted(folder.glob("*/*"))]
    joined = {name: torch.cat([each[name] for each in rows]) for name in rows[0]}
    order = torch.randperm(len(truth), generator=torch.Generator().manual_seed(3))
    for first, last in ((0, 77), (77, 101)):
        columns = {name: column[order[first:last]] for name, column in joined.items()}
        write_sidecar(tmp_path / "other", "mixed", f"t{first}.tar", columns)
    assert cluster(tmp_path / "other", tmp_path / "again", "--samples_per_cluster", "5") == 0
    found = [ids_of(tmp_path / name) for name in ("out", "again")]
    assert len(found[0]) == 101 and found[0] == found[1]
    centres = [(tmp_path / name / "centres.safetensors").read_bytes() for name in ("out", "again")]
    assert centres[0] == centres[1]


def ids_of(folder):
    found = {}
    for path in folder.glob("*/*.safetensors"):
        rows = safetensors.torch.load_file(path)
        found |= dict(zip(rows["key"].tolist(), rows["id"].tolist(), strict=True))
    return found


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--iterations", "0"], "--iterations 0: give 1 or more"),
        (["--clusters", "102"], "101 rows .* too few for --clusters 102"),
        (["--column", "text"], "no embeddings named 'text'; it has draw, image: choose"),
        (["--seed", "1"], "holds clusters of other seed; choose another --out"),
    ],
)
def test_what_cannot_be_is_refused(store, tmp_path, capsys, more, says):
    folder, _ = store
    assert cluster(folder, tmp_path / "out") == 0
    assert cluster(folder, tmp_path / "out", *more) == 2
    err = capsys.readouterr().err
    assert re.search(says, err) and err.count("\n") == 1


def test_other_images_are_put_into_clusters_that_are_there(store, tmp_path, capsys):
    folder, _ = store
    assert cluster(folder, tmp_path / "out") == 0
    centres = tmp_path / "out" / "centres.safetensors"
    other = tmp_path / "other"
    rows = safetensors.torch.load_file(centres)["centres"][[2, 0, 2]] * 3
    write_sidecar(other, "imagenet", "0.tar", {"key": torch.tensor([5, 6, 7]), "image": rows})
    argv = ["cluster", str(other), "--out", str(tmp_path / "hits"), "--centres", str(centres)]
    assert main(argv) == 0
    assert f"3 samples in 2 of {NUM} clusters" in capsys.readouterr().out
    found = safetensors.torch.load_file(tmp_path / "hits" / "imagenet" / "0.safetensors")
    assert dict(zip(found["key"].tolist(), found["id"].tolist(), strict=True)) == {5: 2, 6: 0, 7: 2}
    assert main(argv) == 0
    assert cluster(other, tmp_path / "x", "--centres", str(centres)) == 2
    assert "give --clusters N, or --centres FILE" in capsys.readouterr().err
    write_sidecar(other, "imagenet", "0.tar", {"key": torch.tensor([5]), "image": torch.ones(1, 3)})
    assert main([*argv[:3], str(tmp_path / "y"), *argv[4:]]) == 2
    assert "both must come from the same model" in capsys.readouterr().err
    assert main([*argv[:3], str(tmp_path / "y"), "--centres", str(folder / "none")]) == 2
    assert "is no file of centres" in capsys.readouterr().err


def test_a_folder_in_the_store_is_refused(store, capsys):
    folder, _ = store
    before = sorted(folder.rglob("*"))
    for out in (folder, folder / "clusters"):
        assert cluster(folder, out) == 2
        assert "lies in the store; choose a folder outside" in capsys.readouterr().err
    assert sorted(folder.rglob("*")) == before


def test_a_store_that_is_still_written_is_refused(store, tmp_path, capsys):
    folder, _ = store
    (folder / "pairs" / "s3.claim").touch()
    assert cluster(folder, tmp_path / "out") == 2
    assert "is still being written" in capsys.readouterr().err


def test_centres_that_somebody_else_makes_are_waited_for(store, tmp_path, capsys):
    folder, _ = store
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "centres.claim").touch()
    assert cluster(folder, tmp_path / "out") == 2
    assert "another process makes the centres" in capsys.readouterr().err


def test_rows_that_cannot_be_compared_are_refused(store, tmp_path, capsys):
    folder, _ = store
    keys = torch.arange(2) + 5000
    write_sidecar(folder, "pairs", "s5.tar", {"key": keys, "image": torch.ones(2, 2, 3)})
    assert cluster(folder, tmp_path / "out") == 2
    assert "widths [3, 16]" in capsys.readouterr().err
    bad = torch.full((2, 2, WIDTH), torch.nan)
    write_sidecar(folder, "pairs", "s5.tar", {"key": keys, "image": bad})
    assert cluster(folder, tmp_path / "out") == 2
    assert "s5.safetensors' has 'image' that are not finite" in capsys.readouterr().err


def test_an_empty_folder_is_refused(tmp_path, capsys):
    (tmp_path / "store").mkdir()
    assert cluster(tmp_path / "store", tmp_path / "out") == 2
    assert "0 rows" in capsys.readouterr().err
