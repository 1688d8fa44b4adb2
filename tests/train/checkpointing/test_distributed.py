"""A checkpoint of several ranks' files: torch's own reader, cut anew, damaged, unfinished."""

import json
import multiprocessing
import os
import re
import signal
from pathlib import Path

import pytest
import torch
from torch.distributed.tensor import Replicate, Shard, distribute_tensor, init_device_mesh

from counterpoint.models.distributed_checkpoint import (
    INDEX,
    STATE,
    damage_of_distributed,
    read_distributed,
    whole,
)
from counterpoint.models.weights import read_weights
from counterpoint.train.checkpointing import distributed
from counterpoint.train.checkpointing.checkpoint import change, newest_whole
from counterpoint.train.checkpointing.distributed import DistributedWriter
from counterpoint.train.strategies.fsdp2 import cut_like
from counterpoint.train.strategies.pieces import Piece, piece_of

SHAPES = {"model.a": (7, 3), "model.b": (5,), "model.c": (1, 2, 2), "model.d": (8, 2)}


def tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=draw) for name, shape in SHAPES.items()}


def checkpoint(state, step=2.0):
    """As Lightning's, with a step count that is no part and a plain value among tensors."""
    moments = {i: {"exp_avg": v, "step": torch.tensor(step)} for i, v in enumerate(state.values())}
    groups = [{"lr": 0.1, "params": [0, 1, 2, 3]}]
    return {
        "state_dict": {**state, "model.whole": torch.arange(6.0), "model.scale": torch.tensor(1.5)},
        "optimizer_states": [{"state": moments, "param_groups": groups}],
        "counterpoint": {"config": {"name": "x"}, "guard": torch.ones(2)},
        "left_out": [(12, 48)],
    }


def rows(rank, world_size):
    """FSDP2's: cut between rows."""
    mesh = init_device_mesh("cpu", (world_size,))
    return {n: piece_of(distribute_tensor(v, mesh, [Shard(0)])) for n, v in tensors().items()}


def replicated(rank, world_size):
    """HSDP's: two groups hold the same."""
    mesh = init_device_mesh("cpu", (2, world_size // 2))
    cut = (Replicate(), Shard(0))
    return {n: piece_of(distribute_tensor(v, mesh, cut)) for n, v in tensors().items()}


def flat(rank, world_size):
    """ZeRO's: cut anywhere, also within rows."""
    pieces = {}
    for name, value in tensors().items():
        size = -(-value.numel() // world_size)
        own = value.flatten()[rank * size : (rank + 1) * size]
        pieces[name] = Piece(own, value.shape, rank * size)
    return pieces


def copies(rank, world_size):
    """DDP's: everything everywhere."""
    return tensors()


def saved(rank, world_size, path, cut):
    made = checkpoint(cut(rank, world_size))
    writer = DistributedWriter(lambda path: None)
    for name in ("before", path):  # the copies of the first are used again
        writer.begin(made, Path(path).with_name(name) if name == "before" else Path(path))
        # Training goes on while the files are written.
        trained = [v.value if isinstance(v, Piece) else v for v in made["state_dict"].values()]
        kept = [value.clone() for value in trained]
        for value in trained:
            value.zero_()
        failure = writer.wait()
        for value, old in zip(trained, kept, strict=True):
            value.copy_(old)
    return None if failure is None else str(failure)


def check(path):
    want, got = checkpoint(tensors()), whole(read_distributed(path))
    assert list(got) == list(want) and list(got["state_dict"]) == list(want["state_dict"])
    for name, value in want["state_dict"].items():
        assert torch.equal(got["state_dict"][name], value), name
    optimizer, theirs = got["optimizer_states"][0], want["optimizer_states"][0]
    assert optimizer["param_groups"] == theirs["param_groups"]
    for number, values in theirs["state"].items():
        for key, value in values.items():
            assert torch.equal(optimizer["state"][number][key], value), (number, key)
    assert got["left_out"] == want["left_out"]
    assert got["counterpoint"]["config"] == want["counterpoint"]["config"]
    assert damage_of_distributed(path) is None


@pytest.mark.parametrize(
    ("cut", "world_size"), [(rows, 3), (replicated, 4), (flat, 3), (copies, 2), (rows, 1)]
)
def test_all_parts_are_the_whole(gloo, tmp_path, cut, world_size):
    path = tmp_path / "step-00000002.ckpt"
    assert gloo(world_size, saved, str(path), cut) == [None] * world_size
    check(path)
    assert not list(tmp_path.glob(".*"))
    sizes = [file.stat().st_size for file in path.glob("part-*")]
    assert len(sizes) == world_size
    written = sum(map(len, (file.read_bytes() for file in path.glob("part-*"))))
    once = 4 * (2 * sum(torch.Size(s).numel() for s in SHAPES.values()) + 7)
    headers = sum(8 + int.from_bytes(f.read_bytes()[:8], "little") for f in path.glob("part-*"))
    assert written - headers == once  # each element by one rank


@pytest.mark.parametrize("cut", [rows, replicated])
def test_torchs_own_reader_finds_the_same(gloo, tmp_path, cut):
    """`torch.distributed.checkpoint`, which knows nothing of this project."""
    import torch.distributed.checkpoint as dcp

    path = tmp_path / "step-00000002.ckpt"
    gloo(4, saved, str(path), cut)
    want = tensors()
    state = {"state_dict": {name: torch.zeros_like(value) for name, value in want.items()}}
    dcp.load(state, storage_reader=dcp.HuggingFaceStorageReader(str(path)))
    for name, value in want.items():
        assert torch.equal(state["state_dict"][name], value), name


def recut(rank, world_size, path):
    mesh = init_device_mesh("cpu", (world_size,))
    stored = read_distributed(path)["state_dict"]
    found = {}
    for name, value in tensors(1).items():
        parameter = torch.nn.Parameter(distribute_tensor(value, mesh, [Shard(0)]))
        found[name] = cut_like(parameter, stored[name]).full_tensor()
    return found


@pytest.mark.parametrize("cut", [rows, flat])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_parts_are_cut_anew(gloo, tmp_path, cut, world_size):
    path = tmp_path / "step-00000002.ckpt"
    gloo(3, saved, str(path), cut)
    for found in gloo(world_size, recut, str(path)):
        for name, value in tensors().items():
            assert torch.equal(found[name], value), name


def test_any_range_is_read_and_no_more(gloo, tmp_path):
    path = tmp_path / "step-00000002.ckpt"
    gloo(3, saved, str(path), rows)
    stored = read_distributed(path)["state_dict"]["model.a"]
    want = tensors()["model.a"].flatten()
    for first in range(22):
        for end in range(first, 22):
            assert torch.equal(stored.range(first, end), want[first:end]), (first, end)
    (path / "part-00002.safetensors").unlink()  # its rows 6 and on
    assert torch.equal(stored.range(0, 18), want[:18])
    with pytest.raises(FileNotFoundError):
        stored.range(0, 19)


def test_weights_are_read_without_the_optimizers_states(gloo, tmp_path):
    path = tmp_path / "step-00000002.ckpt"
    gloo(2, saved, str(path), rows)
    read = read_weights(path)
    assert read.keys() == {"a", "b", "c", "d", "whole", "scale"}
    for name, value in tensors().items():
        assert torch.equal(read[name.removeprefix("model.")], value)


def spoil(path: Path, how: str) -> None:
    part = path / "part-00001.safetensors"
    if how == "bytes":
        data = bytearray(part.read_bytes())
        data[-3] ^= 1
        part.write_bytes(data)
    elif how == "cut off":
        part.write_bytes(part.read_bytes()[:-1])
    elif how == "no part":
        part.unlink()
    elif how == "no index":
        (path / INDEX).unlink()
    elif how == "state":
        data = bytearray((path / STATE).read_bytes())
        data[data.index(b"guard")] ^= 1
        (path / STATE).write_bytes(data)
    else:
        index = json.loads((path / INDEX).read_text())
        if how == "a hole":
            index["tensors"][0]["parts"].pop()
        else:
            index["files"] = {"../" + k: v for k, v in index["files"].items()}
        (path / INDEX).write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("bytes", "has other bytes than were written"),
        ("cut off", "has .* bytes and not"),
        ("no part", "FileNotFoundError"),
        ("no index", "FileNotFoundError"),
        ("state", "bytes of state.pt/.* have changed"),
        ("a hole", "parts of state_dict.model.a are missing"),
        ("elsewhere", "is no file of the checkpoint"),
    ],
)
def test_damage_is_found(gloo, tmp_path, how, reason):
    path = tmp_path / "step-00000002.ckpt"
    gloo(2, saved, str(path), rows)
    spoil(path, how)
    assert re.search(reason, damage_of_distributed(path) or "")


def unfinished(rank, world_size, path, failing):
    def write(*args):
        raise OSError(28, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        if rank == failing:
            patch.setattr(distributed, "_write_part", write)
        return saved(rank, world_size, path, rows)


@pytest.mark.parametrize("failing", [0, 1])
def test_a_rank_that_cannot_write_leaves_the_last_one(gloo, tmp_path, failing):
    path = tmp_path / "step-00000002.ckpt"
    gloo(2, saved, str(path), rows)
    failures = gloo(2, unfinished, str(path), failing)
    assert "No space left" in failures[0]
    check(path)
    assert not list(tmp_path.glob(".*"))


def killed_in_the_middle(folder, is_writing):
    """Writes one checkpoint, and a part of the next, which never ends."""

    def stuck(path, pieces):
        path.write_bytes(b"half")
        is_writing.set()
        signal.pause()

    writer = DistributedWriter(lambda path: None)
    writer.begin(checkpoint(tensors()), folder / "step-00000002.ckpt")
    assert writer.wait() is None
    distributed._write_part = stuck
    writer.begin(checkpoint(tensors(1)), folder / "step-00000004.ckpt")
    writer.wait()


def test_a_kill_in_the_middle_leaves_the_last_one(tmp_path):
    context = multiprocessing.get_context("fork")
    folder, is_writing = tmp_path / "checkpoints", context.Event()
    folder.mkdir()
    process = context.Process(target=killed_in_the_middle, args=(folder, is_writing))
    process.start()
    assert is_writing.wait(60)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert list(folder.glob(".step-00000004.ckpt.part-*/*"))
    path, damaged = newest_whole(tmp_path)
    assert (path.name, damaged) == ("step-00000002.ckpt", {})
    check(path)


def test_what_is_not_a_tensor_changes_whole_or_not(gloo, tmp_path):
    path = tmp_path / "step-00000002.ckpt"
    gloo(2, saved, str(path), rows)
    with change(path) as state:
        state["left_out"] = [(1, 2)]
    assert read_distributed(path)["left_out"] == [(1, 2)]
    assert damage_of_distributed(path) is None
