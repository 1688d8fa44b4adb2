"""Whole runs on a CUDA device, by strategy, precision and number of processes, to their end."""

import json

import pytest
from null_gpu.jobs import fit

# Of `make test`: every strategy and precision once.
OFTEN = {
    ("auto", "bf16-mixed", 1),
    ("ddp", "32-true", 2),
    ("fsdp2", "bf16-mixed", 2),
    ("zero2", "bf16-true", 1),
}


def cases():
    for strategy in ("auto", "ddp", "fsdp2", "zero1", "zero2", "zero3"):
        for precision in ("32-true", "bf16-mixed", "bf16-true"):
            for world_size in (1, 2):
                case = strategy, precision, world_size
                yield pytest.param(*case, marks=() if case in OFTEN else pytest.mark.soak)


@pytest.mark.parametrize(("strategy", "precision", "world_size"), cases())
def test_a_run_ends(null_gpu, run_file, tmp_path, strategy, precision, world_size):
    options = {"trainer.strategy": strategy, "trainer.precision": precision}
    if strategy == "fsdp2":
        options["checkpoint.format"] = "distributed"
    null_gpu(world_size, fit, run_file, tmp_path / "run", options, (8, 9))
    rows = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [8, 16, 17]
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == ["step-00000010.ckpt", "step-00000017.ckpt"]
