"""A run folder that is copied to a store: whole there, and brought to a machine that is new."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from tiny import config, write_config, write_shards

from counterpoint.data.shards import transport
from counterpoint.data.shards.index import index_shards
from counterpoint.launch.cli import main
from counterpoint.launch.run.faults import mirror as mirrors
from counterpoint.launch.run.faults.mirror import Mirror, open_mirror
from counterpoint.models.distributed_checkpoint import INDEX
from counterpoint.train.checkpointing.checkpoint import checkpoints_in, load, newest, write

URL = "memory://bucket/run"


@pytest.fixture(autouse=True)
def store(monkeypatch):
    """A store in memory, whose pauses are short."""
    monkeypatch.setattr(transport, "REMOTE", transport.REMOTE | {"memory"})
    monkeypatch.setattr(transport, "MAX_DELAY", 0.0)
    for name, seconds in {"PULSE": 0.05, "SILENCE": 0.3, "INTERVAL": 0.02}.items():
        monkeypatch.setattr(mirrors, name, seconds)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    MemoryFileSystem.pseudo_dirs[:] = [""]
    MemoryFileSystem.store.clear()
    yield MemoryFileSystem.store
    MemoryFileSystem.store.clear()


def there(store) -> set[str]:
    return {name.removeprefix("/bucket/run/") for name in store if "lease" not in name}


def put(run_dir: Path, *steps: int) -> None:
    (run_dir / "checkpoints").mkdir(parents=True, exist_ok=True)
    for step in steps:
        write({"step": torch.tensor(step)}, run_dir / "checkpoints" / f"step-{step:08d}.ckpt")


def test_whole_files_go_there_and_old_checkpoints_with_the_local_ones(tmp_path, store):
    mirror = Mirror(URL, tmp_path)
    put(tmp_path, 1, 2)
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    (tmp_path / ".lock").write_text("here only")
    mirror.acquire()
    mirror.push()
    names = {"metrics.jsonl", "checkpoints/step-00000001.ckpt", "checkpoints/step-00000002.ckpt"}
    assert there(store) == names
    before = dict(store)
    mirror.push()  # nothing has changed, so that nothing is sent
    assert all(store[name] is file for name, file in before.items())
    put(tmp_path, 3)
    (tmp_path / "checkpoints" / "step-00000001.ckpt").unlink()
    (tmp_path / "metrics.jsonl").write_text("{}\n{}\n")
    mirror.close()
    assert there(store) == names - {"checkpoints/step-00000001.ckpt"} | {
        "checkpoints/step-00000003.ckpt"
    }
    assert store["/bucket/run/metrics.jsonl"].getvalue() == b"{}\n{}\n"
    assert not [name for name in store if "lease" in name]


def test_a_new_machine_gets_the_newest_whole_checkpoint(tmp_path, store):
    old, new = tmp_path / "old", tmp_path / "new"
    put(old, 1, 2, 3)
    (old / "metrics.jsonl").write_text("{}\n")
    (old / "log.txt").touch()
    first = Mirror(URL, old)
    first.acquire()
    first.close()
    file = store["/bucket/run/checkpoints/step-00000003.ckpt"]
    file.truncate(file.getbuffer().nbytes - 9)
    again = open_mirror(URL, new, is_resumed=True)
    assert newest(new) is not None and newest(new).name == "step-00000003.ckpt"
    assert (new / "checkpoints" / "step-00000002.ckpt").is_file()  # since 3 is damaged
    assert (new / "metrics.jsonl").read_text() == "{}\n" and (new / "log.txt").exists()
    again.close()
    # What is newer here stays, and goes there.
    put(new, 5)
    (new / "metrics.jsonl").write_text("{}\n{}\n")
    open_mirror(URL, new, is_resumed=True).close()
    assert (new / "metrics.jsonl").read_text() == "{}\n{}\n"
    assert "checkpoints/step-00000005.ckpt" in there(store)


def test_a_folder_without_its_index_is_no_checkpoint(tmp_path, store, monkeypatch):
    folder = tmp_path / "old" / "checkpoints" / "step-00000004.ckpt"
    folder.mkdir(parents=True)
    for name in (INDEX, "part-00000.safetensors", "state.pt"):
        (folder / name).write_text("x")
    sent = []
    upload = transport.Transport.upload
    monkeypatch.setattr(
        transport.Transport,
        "upload",
        lambda self, path, url: sent.append(path.name) or upload(self, path, url),
    )
    mirror = Mirror(URL, tmp_path / "old")
    mirror.acquire()
    mirror.push()
    assert sent[-1] == INDEX and mirror.holds_run()
    shutil.rmtree(folder)
    removed = []
    remove = transport.Transport.remove
    monkeypatch.setattr(
        transport.Transport, "remove", lambda self, url: removed.append(url) or remove(self, url)
    )
    mirror.push()
    assert removed[0].endswith(INDEX) and not mirror.holds_run() and not there(store)


def test_failures_are_tried_again_and_said_at_the_end(tmp_path, store, monkeypatch):
    put(tmp_path, 1)
    mirror = Mirror(URL, tmp_path)
    mirror.acquire()
    put_file, failures = MemoryFileSystem.put_file, iter([1, 1, 1])

    def flaky(self, *args, **kwargs):
        if next(failures, None):
            raise OSError("connection lost")
        return put_file(self, *args, **kwargs)

    monkeypatch.setattr(MemoryFileSystem, "put_file", flaky)
    mirror.push()
    assert there(store) == {"checkpoints/step-00000001.ckpt"}

    def down(self, *args, **kwargs):
        raise OSError("connection lost")

    monkeypatch.setattr(MemoryFileSystem, "put_file", down)
    put(tmp_path, 2)
    with pytest.raises(ValueError, match=r"could be copied to its mirror: .*connection lost"):
        mirror.close()
    assert there(store) == {"checkpoints/step-00000001.ckpt"}


def test_a_store_that_does_not_answer_is_one_sentence(tmp_path, store, monkeypatch):
    def down(self, *args, **kwargs):
        raise OSError("connection lost")

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", down)
    with pytest.raises(ValueError, match=r"mirror cannot be used: .*connection lost"):
        open_mirror(URL, tmp_path, is_resumed=True)


def held(store, **facts) -> None:
    lease = {"host": "elsewhere", "process": 7, "pulse": 1, "since": "now"} | facts
    MemoryFileSystem().pipe_file(f"{URL}/.lease.json", json.dumps(lease).encode())


def test_who_writes_there_is_left_alone_while_its_pulse_goes_on(tmp_path, store, monkeypatch):
    held(store)
    Mirror(URL, tmp_path).acquire()  # it says nothing any more
    held(store, host=os.uname().nodename, process=2**22 - 1)  # a process that there is not
    monkeypatch.setattr(mirrors, "SILENCE", 1e6)
    Mirror(URL, tmp_path).acquire()
    held(store)
    sleep, pulses = mirrors.time.sleep, iter(range(2, 100))

    def beating(seconds):
        held(store, pulse=next(pulses))
        sleep(0)

    monkeypatch.setattr(mirrors.time, "sleep", beating)
    with pytest.raises(ValueError, match="being written by process 7 on elsewhere"):
        Mirror(URL, tmp_path).acquire()


def test_a_lease_that_is_taken_ends_the_copying(tmp_path, store):
    put(tmp_path, 1)
    mirror = Mirror(URL, tmp_path)
    mirror.acquire()
    held(store)
    with pytest.raises(ValueError, match="has been taken over by process 7 on elsewhere"):
        mirror.close()
    assert not there(store)


def test_names_of_a_store_stay_in_the_folder(tmp_path, store):
    put(tmp_path / "old", 1)
    mirror = Mirror(URL, tmp_path / "old")
    mirror.acquire()
    mirror.push()
    MemoryFileSystem().pipe_file("/bucket/run/../../escaped", b"x")
    store["/bucket/run/../escaped"] = store["/bucket/run/checkpoints/step-00000001.ckpt"]
    mirror.close()
    open_mirror(URL, tmp_path / "new" / "run", is_resumed=True).close()
    assert not (tmp_path / "new" / "escaped").exists()


@pytest.mark.parametrize("form", ["single", "distributed"])
def test_a_run_goes_on_where_nothing_is(tmp_path, store, form):
    """Bit for bit: the machine was lost with the last checkpoint, which no other has seen."""
    manifest = tmp_path / "train.parquet"
    index_shards([str(p) for p in write_shards(tmp_path)], str(manifest))
    values = config(manifest, steps=6)
    values["checkpoint"] = {"every_n_steps": 2, "keep": 2, "format": form}
    values["data"]["num_workers"] = 0
    words = ["fit", "--config", str(write_config(tmp_path, values))]
    one, two = tmp_path / "one", tmp_path / "two"
    assert main([*words, "--run_dir", str(one)]) == 0

    mirrored = [*words, "--run_dir", str(two), f"--mirror={URL}"]
    assert main(mirrored) == 0
    assert {"config.yaml", "metrics.jsonl", "summary.json"} <= there(store)
    for name in [n for n in store if "step-00000006" in n or "summary" in n]:
        del store[name]
    assert main([*words, f"--mirror={URL}", "--run_dir", str(tmp_path / "three")]) == 2
    shutil.rmtree(two)
    assert main([*mirrored, "--resume", "auto"]) == 0
    a, b = load(newest(one)), load(newest(two))
    assert a["global_step"] == b["global_step"] == 6
    for name, value in a["state_dict"].items():
        assert torch.equal(b["state_dict"][name], value), name
    steps = [json.loads(row)["step"] for row in (two / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5, 6]
    kept = {path.name for path in checkpoints_in(two)}
    assert {n.split("/")[1] for n in there(store) if n.startswith("checkpoints/")} == kept
