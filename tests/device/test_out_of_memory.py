"""A run that needs more memory than the device has: what it says, and what it leaves."""

import os
import pickle
from pathlib import Path

import pytest
from null_gpu.jobs import begin

from counterpoint.launch.config.run_files import read
from counterpoint.launch.run.env import prepare
from counterpoint.launch.run.train import Run


def refused(rank, world_size, messages, config, run_dir, gib, options):
    """The sentence with which a run on a device of so many GiB ends."""
    os.environ["NULL_GPU_GIB"] = str(gib)
    begin(world_size, messages)
    prepare()
    words = ["--config", str(config), f"--run_dir={run_dir}", *options]
    with pytest.raises(ValueError) as error:
        Run.of(read(words)).train()
    return str(error.value)


def test_it_says_which_key_to_turn(null_gpu, run_file, tmp_path):
    wide = ["--model.image.init_args.model_args.embed_dim=1024"]
    for name, gib, options, key in (
        ("batch", 0.03, [], "raise model.chunks from 1 to 2"),
        ("state", 0.35, wide, "trainer.strategy=fsdp2"),
    ):
        run_dir = tmp_path / name
        (text,) = null_gpu(1, refused, run_file, run_dir, gib, options)
        assert text.startswith("rank 0 (") and "is out of GPU memory in step " in text
        assert key in text, text
        path = run_dir / "memory" / "oom_rank_0.pickle"
        assert str(path) in text
        snapshot = pickle.loads(Path(path).read_bytes())
        assert sum(segment["total_size"] for segment in snapshot["segments"]) > 0
