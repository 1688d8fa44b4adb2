"""`counterpoint score`: the same table by any number of processes, mistakes in one sentence."""

import io
import json
import os
import signal
import tarfile

import pyarrow.parquet as pq
import pytest
from PIL import Image

from counterpoint.data.curate.score import Scores
from counterpoint.data.curate.table import Table
from counterpoint.data.shards.manifest import Manifest
from counterpoint.launch.cli import main


@pytest.fixture
def pool(tmp_path):
    """Five shards of two sources; one of the images is damaged."""
    paths = []
    for number in range(5):
        path = tmp_path / "shards" / f"{number}.tar"
        path.parent.mkdir(exist_ok=True)
        with tarfile.open(path, "w") as tar:
            for row in range(4):
                key = f"{number}{row}"
                buffer = io.BytesIO()
                Image.new("RGB", (8 + row, 9), (10 * row, 0, number)).save(buffer, "PNG")
                image = buffer.getvalue()[: 40 if key == "32" else None]
                fields = {"id": f"id{key}", "label": key, "quality": 0.5 * row}
                members = {"png": image, "txt": b"a text", "json": json.dumps(fields).encode()}
                for extension, data in members.items():
                    info = tarfile.TarInfo(f"{key}.{extension}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
        paths.append(str(path))
    manifest = str(tmp_path / "pool.parquet")
    words = [*(f"one={path}" for path in paths[:2]), *(f"two={path}" for path in paths[2:])]
    assert main(["data", "index", *words, "--out", manifest]) == 0
    return manifest


OPTIONS = ["--caption", "two=json:label", "--key_field", "id", "--field", "json:label"]
OPTIONS += ["--number", "json:quality"]


def test_any_number_of_processes_writes_the_same_table(pool, tmp_path, capsys):
    for workers in (1, 3):
        out = tmp_path / f"table{workers}"
        command = ["score", pool, "--out", str(out), "--workers", str(workers), *OPTIONS]
        assert main(command) == 0
        said = capsys.readouterr().out
        assert f"{out}: complete, 20 samples, 1 cannot be used (1 bad_image)" in said
    one, three = Table(tmp_path / "table1"), Table(tmp_path / "table3")
    assert one.about == three.about
    assert [p.read_bytes() for p in one.files] == [p.read_bytes() for p in three.files]
    last = pq.read_table(one.files[-1]).to_pylist()
    assert [row["caption"] for row in last] == ["40", "41", "42", "43"]
    assert [row["json:quality"] for row in last] == [0.0, 0.5, 1.0, 1.5]
    assert [row["caption"] for row in pq.read_table(one.files[0]).to_pylist()] == ["a text"] * 4
    assert not list((tmp_path / "table3").rglob("*.claim"))


def test_shards_of_other_processes_are_left_to_them(pool, tmp_path, capsys):
    out = tmp_path / "table"
    command = ["score", pool, "--out", str(out), *OPTIONS]
    assert main(command) == 0
    for path in out.rglob("*.parquet"):
        path.unlink()
    claim = out / "two" / "3.claim"
    claim.touch()
    assert main(command) == 1
    assert "shards not done: 1; others work on them" in capsys.readouterr().out
    stamps = {path: path.stat().st_mtime_ns for path in out.rglob("*.parquet")}
    assert len(stamps) == 4
    claim.unlink()
    assert main(command) == 0
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps


def test_a_lost_shard_is_named_and_the_others_are_written(pool, tmp_path, capsys, monkeypatch):
    # Gone after the check at the start.
    monkeypatch.setattr(Manifest, "check_files", lambda self: {})
    os.unlink(tmp_path / "shards" / "1.tar")
    assert main(["score", pool, "--out", str(tmp_path / "table"), "--workers", "2", *OPTIONS]) == 2
    assert "1 of 5 shards are not scored: '" in (told := capsys.readouterr().err)
    assert "1.tar' does not exist" in told or "restore it" in told
    assert len(list((tmp_path / "table").rglob("*.parquet"))) == 4


def test_a_killed_worker_is_one_sentence_and_the_next_start_goes_on(
    pool, tmp_path, capsys, monkeypatch
):
    parent, write = os.getpid(), Scores.write

    def killed(scores, shard, name):
        if shard == 2 and os.getpid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
        write(scores, shard, name)

    monkeypatch.setattr(Scores, "write", killed)
    command = ["score", pool, "--out", str(tmp_path / "table"), *OPTIONS, "--workers"]
    assert main([*command, "2"]) == 2
    assert "a worker was killed, for want of memory perhaps; what is" in capsys.readouterr().err
    assert main([*command, "1"]) == 0


@pytest.mark.parametrize(
    "options, message",
    [
        (["--caption", "three=txt"], "the manifest has no source 'three'; it has one, two"),
        (["--key_field", "a", "--key_field", "b"], "the source 'one' has two; give one"),
        (["--field", "json:a", "--number", "json:a"], "of texts (--field) or of numbers"),
        (["--workers", "0"], "--workers 0: give 1 or more"),
        (["--caption", "two=json:text"], "json:quality; give --caption [SOURCE=]FIELD where it is"),
        (["--no_pixels"], "did you mean --no-pixels?"),
    ],
)
def test_mistakes_are_named(pool, tmp_path, capsys, options, message):
    assert main(["score", pool, "--out", str(tmp_path / "table"), *options]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.rglob("table/*/*.parquet"))


def test_fields_that_no_sample_has_are_named(pool, tmp_path, capsys):
    command = ["score", pool, "--workers", "1", "--field", "json:label", "--out"]
    assert main([*command, str(tmp_path / "a")]) == 0
    said = capsys.readouterr()
    assert said.err == "" and "no sample has" not in said.out
    # A label such as 00 is a number too, `one of a kind` of words is none.
    wrong = ["--field", "json:lable", "--number", "txt", "--number", "json:id"]
    assert main([*command, str(tmp_path / "b"), *wrong]) == 0
    said = capsys.readouterr()
    assert "20 samples looked at has a text in json:lable or a number in txt or a num" in said.err
    assert said.err.endswith("they have json, png, txt, json:id, json:label, json:quality\n")
    assert f"{tmp_path}/b: no sample has json:lable, txt, json:id\n" in said.out


def test_a_table_of_other_settings_says_what_differs(pool, tmp_path, capsys):
    command = ["score", pool, "--workers", "1", "--out", str(tmp_path / "table")]
    assert main([*command, "--field", "json:label"]) == 0
    assert main([*command, "--field", "json:label", "--number", "json:quality"]) == 2
    assert "of other fields (there none, here json:quality: number); ch" in capsys.readouterr().err
    other = ["--field", "json:label", "--caption", "two=json:label", "--no-pixels"]
    assert main([*command, *other]) == 2
    message = capsys.readouterr().err
    assert "captions (there two: ['txt'], here two: ['json:label']); pixels (there True" in message


def test_a_folder_of_other_things_is_refused(pool, tmp_path, capsys):
    shards = tmp_path / "shards"
    before = sorted(shards.iterdir())
    assert main(["score", pool, "--out", str(shards)]) == 2
    assert "shards' holds other things ('0.tar'); name a new" in capsys.readouterr().err
    assert sorted(shards.iterdir()) == before


def test_without_pixels_there_is_no_perceptual_hash(pool, tmp_path):
    out = tmp_path / "table"
    assert main(["score", pool, "--out", str(out), "--no-pixels", "--workers", "1"]) == 0
    table = pq.read_table(Table(out).files[0])
    assert table["phash"].null_count == len(table) and table["width"].null_count == 0
