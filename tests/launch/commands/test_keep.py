"""`counterpoint keep`: every sub-command does its work, and mistakes are named."""

import io
import tarfile

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers.score_table import make_table
from PIL import Image

from counterpoint.launch.cli import main


@pytest.fixture
def table(tmp_path):
    uids = [f"{number:032x}" for number in range(100)]
    return make_table(tmp_path / "table", {"json:uid": uids}, [30, 70]).folder


def test_lists_are_drawn_combined_and_exchanged(table, tmp_path, capsys):
    a, b, c = (str(tmp_path / f"{name}.parquet") for name in "abc")
    npy = str(tmp_path / "c.npy")
    of = ["--table", str(table)]
    for words, told in (
        (["random", *of, "--samples", "40", "--out", a], "40 samples"),
        (["random", *of, "--samples", "60", "--seed", "1", "--out", b], "60 samples"),
        (["combine", "--mix", f"{a}=0.7", f"{b}=0.3", "--out", c], "samples"),
        (["combine", "--intersect", a, b, "--out", c], "samples"),
        (["npy", c, *of, "--out", npy], "uids"),
        (["from_npy", npy, *of, "--out", str(tmp_path / "d.parquet")], "samples, of"),
        (["locate", c, *of, "--out", str(tmp_path / "e.parquet")], "samples"),
    ):
        assert main(["keep", *words]) == 0
        assert told in capsys.readouterr().out
    keys = [set(pq.read_table(tmp_path / f"{n}.parquet")["key"].to_pylist()) for n in "abcde"]
    assert keys[2] == keys[0] & keys[1] == keys[3] == keys[4]
    assert len(np.load(npy)) == len(keys[2])


def test_a_field_is_named_as_counterpoint_score_was_told(tmp_path, capsys):
    uids = [f"{number:032x}" for number in range(20)]
    folder = make_table(tmp_path / "table", {"json:web_uid": uids}, [20]).folder
    of = ["--table", str(folder)]
    a, npy, b = (str(tmp_path / name) for name in ("a.parquet", "a.npy", "b.parquet"))
    assert main(["keep", "random", *of, "--samples", "5", "--out", a]) == 0
    of += ["--field", "json:web.uid"]
    assert main(["keep", "npy", a, *of, "--out", npy]) == 0
    assert main(["keep", "from_npy", npy, *of, "--out", b]) == 0
    assert pq.read_table(b)["key"] == pq.read_table(a)["key"]


def test_tars_are_written_anew(make_pool, tmp_path, capsys):
    manifest, table = make_pool
    keep = str(tmp_path / "keep.parquet")
    out = tmp_path / "out"
    assert main(["keep", "random", "--table", str(table), "--samples", "5", "--out", keep]) == 0
    command = ["keep", "repack", keep, "--manifest", manifest, "--out", str(out)]
    assert main([*command, "--samples_per_shard", "3", "--workers", "1"]) == 0
    assert "5 samples" in (told := capsys.readouterr().out)
    assert "5 samples have no key in their JSON" in told
    assert sorted(path.name for path in out.rglob("*.tar")) == ["00000.tar", "00001.tar"]


def test_no_other_file_is_written_over(table, tmp_path, capsys):
    a, b, npy = (tmp_path / name for name in ("a.parquet", "b.parquet", "c.npy"))
    of = ["--table", str(table)]
    for seed, out in enumerate((a, b, a)):  # the last one writes over a list
        words = ["random", *of, "--samples", "40", "--seed", str(seed), "--out", str(out)]
        assert main(["keep", *words]) == 0
    shard = table / "web" / "00000.parquet"
    assert main(["keep", "npy", str(a), *of, "--out", str(npy)]) == 0
    before = {path: path.read_bytes() for path in (a, b, shard, npy)}
    capsys.readouterr()
    for words, out, told in (
        (["combine", "--union", str(a), str(b)], b, "is one of the lists that are read"),
        (["combine", "--mix", f"{a}=1", f"{b}=1"], a, "is one of the lists that are read"),
        (["locate", str(a), *of], tmp_path / "x" / ".." / "a.parquet", "is one of the lists"),
        (["combine", "--union", str(a), str(b)], shard, "would write over another file: "),
        (["random", "--samples", "3", *of], table, "is a folder; name a file"),
        (["npy", str(a), *of], b, "an array of DataComp's ends in .npy"),
        (["from_npy", str(npy), *of], npy, "it is parquet"),
        (["combine", "--union", str(a), str(shard)], tmp_path / "d.parquet", "00000.parquet' is a"),
    ):
        (tmp_path / "x").mkdir(exist_ok=True)
        assert main(["keep", *words, "--out", str(out)]) == 2
        assert told in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in before}


def test_an_array_of_another_pool(table, tmp_path, capsys):
    npy, out = tmp_path / "other.npy", tmp_path / "new" / "list.parquet"
    command = ["keep", "from_npy", str(npy), "--table", str(table), "--out", str(out)]
    np.save(npy, np.array([(1, 5), (1, 6)], dtype="u8,u8"))
    assert main(command) == 2
    assert "it is of another pool, or --field is another" in capsys.readouterr().err
    assert not out.parent.exists()
    np.save(npy, np.array([(0, 5), (0, 6), (1, 6)], dtype="u8,u8"))
    assert main(command) == 0
    assert "2 samples, of 3 entries; not in the table: 1" in capsys.readouterr().out


@pytest.fixture
def make_pool(tmp_path):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for row in range(8):
            for extension, data in (("png", buffer.getvalue()), ("txt", b"text")):
                info = tarfile.TarInfo(f"{row}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    manifest = str(tmp_path / "m.parquet")
    assert main(["data", "index", str(tmp_path / "0.tar"), "--out", manifest]) == 0
    assert main(["score", manifest, "--out", str(tmp_path / "scores"), "--workers", "1"]) == 0
    return manifest, tmp_path / "scores"


@pytest.mark.parametrize(
    "words, message",
    [
        (["combine", "--union", "a.parquet", "--out", "o"], "name two lists or more"),
        (["combine", "--union", "a", "b", "--samples", "3", "--out", "o"], "is for a mixture"),
        (["combine", "--mix", "a.parquet", "--out", "o"], "write LIST=SHARE"),
        (["combine", "--mix", "a=x", "--out", "o"], "write LIST=SHARE"),
        (["combine", "--mix", "a=1", "a=2", "--out", "o"], "write LIST=SHARE"),
        (["combine", "--mix", "a=1", "b=2", "--out", "o"], "'a' is no keep-list"),
        (["combine", "--out", "o"], "one of the arguments"),
        (["random", "--table", "nothing", "--samples", "3", "--out", "o"], "is no score table"),
        (["locate", "a", "--table", "nothing", "--out", "new/o"], "is no score table"),
    ],
)
def test_mistakes_are_named(words, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["keep", *words]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
