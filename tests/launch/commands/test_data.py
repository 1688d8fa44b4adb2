"""`counterpoint data`: what a user types, and what is printed."""

import io
import tarfile
from hashlib import sha256

import pyarrow.parquet as pq
import pytest

from counterpoint.launch import cli
from counterpoint.launch.commands.data import by_source, main


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A corpus of a few dozen names."""
    return tmp_path_factory.mktemp("data") / "emoji"


def small(out):
    return ["emoji", str(out), "--limit", "30", "--num-held-out", "2", "--workers", "1"]


def test_emoji_builds_once(corpus, capsys):
    assert main(small(corpus)) == 0
    first = capsys.readouterr()
    assert "built; " in first.out and "4 held out" in first.out
    assert first.err == "", "no progress bar away from a terminal"
    assert "pairs with a hard negative" in first.out
    assert main(small(corpus)) == 0
    again = capsys.readouterr().out
    assert "complete already, nothing to do" in again and "negatives: complete already;" in again


def test_index_counts_shards_and_stores_checksums(corpus, capsys, tmp_path):
    main(small(corpus))
    capsys.readouterr()
    out = tmp_path / "manifest.parquet"
    shards = str(corpus / "train" / "{00000..00003}.tar")
    assert main(["index", shards, "--out", str(out), "--source", "drawn"]) == 0
    table = pq.read_table(out)
    assert set(table["source"].to_pylist()) == {"drawn"}
    assert set(table["sha256"].to_pylist()) == {""}
    num_samples = sum(table["num_samples"].to_pylist())
    assert capsys.readouterr().out == f"{out}: 4 shards, {num_samples} samples\n"
    assert main(["index", shards, "--out", str(out), "--checksum"]) == 0
    assert {len(text) for text in pq.read_table(out)["sha256"].to_pylist()} == {64}


def test_index_puts_shards_into_named_sources(corpus, capsys, tmp_path):
    main(small(corpus))
    out, train = tmp_path / "manifest.parquet", str(corpus / "train")
    urls = [f"{train}/00000.tar", f"drawn={train}/{{00001..00002}}.tar", f"flat={train}/00003.tar"]
    assert main(["index", *urls, "--source", "rest", "--out", str(out)]) == 0
    rows = zip(*(pq.read_table(out)[name].to_pylist() for name in ("source", "url")), strict=True)
    assert [(source, url[-9:]) for source, url in rows] == [
        ("rest", "00000.tar"),
        ("drawn", "00001.tar"),
        ("drawn", "00002.tar"),
        ("flat", "00003.tar"),
    ]
    assert by_source(["./a=b/0.tar", "https://h/0.tar?a=b"], "rest").keys() == {"rest"}


def test_captions_in_json_and_commands(corpus, capsys, tmp_path):
    main(small(corpus))
    tar, out = tmp_path / "a.tar", tmp_path / "m.parquet"
    with tarfile.open(tar, "w") as file:
        for name, data in {"a.png": b"x", "a.json": b'{"caption": "a cat"}'}.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    index = ["data", "index", "--out", str(out)]
    assert cli.main([*index, str(tar)]) == 2
    assert "captions in .txt" in capsys.readouterr().err
    assert cli.main([*index, "--caption", "txt", "--caption", "json:caption", str(tar)]) == 0
    assert cli.main([*index, f"pipe:cat {corpus}/train/00000.tar"]) == 2
    assert "--allow_pipe to `counterpoint data index`" in capsys.readouterr().err
    assert (
        cli.main([*index, "--allow_pipe", "--checksum", f"pipe:cat {corpus}/train/00000.tar"]) == 0
    )
    stored = pq.read_table(out)["sha256"].to_pylist()
    assert stored == [sha256((corpus / "train" / "00000.tar").read_bytes()).hexdigest()]


def test_mistakes_are_told_in_a_sentence(tmp_path, capsys):
    arguments = ["data", "index", str(tmp_path / "none"), "--out", str(tmp_path / "m.parquet")]
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("counterpoint data: ") and error.count("\n") == 1
    (tmp_path / "mine.txt").write_text("")
    assert cli.main(["data", "emoji", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "holds 'mine.txt'" in error and error.count("\n") == 1


def test_command_without_a_sub_command():
    with pytest.raises(ValueError, match="required: COMMAND"):
        main([])


def test_some_shards_are_held_out(corpus, capsys, tmp_path):
    main(small(corpus))
    capsys.readouterr()
    shards, out = str(corpus / "train" / "*.tar"), tmp_path / "train.parquet"
    main(["index", shards, "--out", str(tmp_path / "all.parquet")])
    capsys.readouterr()
    assert main(["index", shards, "--out", str(out), "--checksum", "--holdout", "1"]) == 0
    parts = [pq.read_table(tmp_path / name) for name in ("train.parquet", "val.parquet")]
    assert capsys.readouterr().out == "".join(
        f"{tmp_path / name}.parquet: {len(part)} shards, {sum(part['num_samples'].to_pylist())} "
        "samples\n"
        for name, part in zip(("train", "val"), parts, strict=True)
    )
    urls = [part["url"].to_pylist() for part in parts]
    assert sorted(urls[0] + urls[1]) == pq.read_table(tmp_path / "all.parquet")["url"].to_pylist()
    assert len(urls[1]) == 1
    assert {len(text) for part in parts for text in part["sha256"].to_pylist()} == {64}
    assert cli.main(["data", "index", shards, "--out", str(out), "--holdout", "99999"]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and "--holdout 99999: whole shards" in message
    wrong = ["data", "index", shards, "--out", str(tmp_path / "val.parquet"), "--holdout", "1"]
    assert cli.main(wrong) == 2
    assert "val.parquet is what --holdout calls the other part" in capsys.readouterr().err


def test_a_manifest_is_not_written_under_the_name_of_another_format(corpus, capsys, tmp_path):
    out = tmp_path / "train.csv"
    assert cli.main(["data", "index", str(corpus / "train"), "--out", str(out)]) == 2
    assert f"a manifest is parquet; write {tmp_path}/train.parquet" in capsys.readouterr().err
    assert not out.exists()
