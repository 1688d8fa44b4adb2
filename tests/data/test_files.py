"""Files are written atomically; parts of killed writers are removed."""

import multiprocessing
import os
import signal
import time

import pytest
from full_disk import fill_disk

from counterpoint.data import files
from counterpoint.data.files import (
    OLD_SECONDS,
    durable_file,
    remove_parts,
    whole_file,
    whole_folder,
    write_json,
)

FORK = multiprocessing.get_context("fork")


@pytest.mark.parametrize("writing", [whole_file, durable_file])
def test_a_file_has_its_name_only_when_it_is_complete(writing, tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with writing(path) as part:
        part.write_text("half")
        assert path.read_text() == "old"
        part.write_text("new")
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("writing", [whole_file, durable_file, whole_folder])
def test_an_error_leaves_what_was_there(writing, tmp_path):
    path = tmp_path / "name"
    path.mkdir()
    (path / "old").touch()
    with pytest.raises(RuntimeError, match="half-way"), writing(path):
        raise RuntimeError("half-way")
    assert list(tmp_path.rglob("*")) == [path, path / "old"]


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "record.json"
    write_json(path, {"step": 1})
    fill_disk(path.name, monkeypatch)
    with pytest.raises(OSError, match="No space left"):
        write_json(path, {"step": 2})
    assert list(tmp_path.iterdir()) == [path] and '"step": 1' in path.read_text()


def test_a_folder_is_replaced_as_one(tmp_path):
    path = tmp_path / "deep" / "folder"
    for name in ("a", "b"):
        with whole_folder(path) as part:
            (part / name).touch()
    assert [file.name for file in path.iterdir()] == ["b"]
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_is_filled_beside_another(tmp_path):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    with whole_folder(corpus / "inner", near=corpus) as part:
        assert part.parent == tmp_path and not list(corpus.iterdir())
    assert (corpus / "inner").is_dir()


def test_others_may_read_what_a_library_keeps_for_its_owner(tmp_path):
    before = os.umask(0o022)
    try:
        with whole_file(tmp_path / "file") as part:
            part.unlink()
            os.close(os.open(part, os.O_CREAT | os.O_WRONLY, 0o600))
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o644


def test_many_writers_at_once_leave_one_whole_file(tmp_path):
    path = tmp_path / "file"

    def write(letter: str) -> None:
        for _ in range(50):
            with whole_file(path) as part:
                part.write_text(letter * 10_000)

    writers = [FORK.Process(target=write, args=(letter,)) for letter in "abcd"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    text = path.read_text()
    assert len(text) == 10_000 and len(set(text)) == 1
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_writer_left_goes_once_it_is_old(tmp_path):
    def write() -> None:
        with whole_file(tmp_path / "file") as part, whole_folder(tmp_path / "folder") as folder:
            part.write_text("half")
            (folder / "inner").touch()
            os.kill(os.getpid(), signal.SIGKILL)

    victim = FORK.Process(target=write)
    victim.start()
    victim.join()
    assert victim.exitcode == -signal.SIGKILL
    (tmp_path / ".file.part-of-mine").touch()
    names = {path.name.partition(".part-")[0] for path in tmp_path.iterdir()}
    assert names == {".file", ".folder"}

    remove_parts(tmp_path, older_than=OLD_SECONDS)
    assert len(list(tmp_path.iterdir())) == 3, "a living process may be writing these"
    long_ago = time.time() - 2 * OLD_SECONDS
    for path in tmp_path.iterdir():
        os.utime(path, (long_ago, long_ago))
    files._sweep_once.cache_clear()
    with whole_file(tmp_path / "other"):
        pass
    left = {path.name.partition(".part-")[0] for path in tmp_path.iterdir()}
    assert left == {".file", ".folder", "other"}, "the folder was written to a moment ago"
    assert (tmp_path / ".file.part-of-mine").exists()
    assert sum(path.name.startswith(".file") for path in tmp_path.iterdir()) == 1

    remove_parts(tmp_path, "folder")
    assert {path.name for path in tmp_path.iterdir()} == {".file.part-of-mine", "other"}
