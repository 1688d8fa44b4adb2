"""A run that is built in Python is the one that the command trains."""

import pytest
import tiny
import torch

from counterpoint.launch.api.training import build
from counterpoint.launch.commands import data
from counterpoint.launch.commands.fit import main
from counterpoint.models.weights import read_weights


@pytest.fixture(scope="module")
def run_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("built")
    shards = tiny.write_shards(folder / "pairs", 2, 13)
    assert data.main(["index", *map(str, shards), "--out", str(folder / "train.parquet")]) == 0
    values = tiny.config(folder / "train.parquet", steps=4)
    values["data"]["num_workers"] = 0
    values["trainer"] |= {"logger": False, "peak_tflops": 1.0, "log_every_n_steps": 2}
    return tiny.write_config(folder, values)


def test_it_trains_as_the_command_does_and_goes_on(run_file, tmp_path):
    fitted, built = tmp_path / "fitted", tmp_path / "built"
    assert main(["--config", str(run_file), "--run_dir", str(fitted), "--seed", "3"]) == 0
    module, pairs, trainer = build(run_file, {"seed": 3}, run_dir=built)
    trainer.fit(module, datamodule=pairs)
    theirs, ours = (read_weights(d / "checkpoints/step-00000004.ckpt") for d in (fitted, built))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    assert (built / "metrics.jsonl").read_text().count("\n") == 2
    with pytest.raises(ValueError, match="already holds a run"):
        build(run_file, run_dir=built)
    with pytest.raises(ValueError, match="is finished"):
        build(run_file, {"seed": 3}, run_dir=built, resume="auto")
    longer = {"phases.train.samples": 72, "seed": 3}
    module, pairs, trainer = build(run_file, longer, run_dir=built, resume="auto")
    trainer.fit(module, datamodule=pairs)
    assert trainer.global_step == 6
    steps = [line.split(",")[0] for line in (built / "metrics.jsonl").read_text().splitlines()]
    assert steps == ['{"step": 2', '{"step": 4', '{"step": 6']


def test_mistakes_are_those_of_the_command(run_file, tmp_path):
    with pytest.raises(ValueError, match="neither a file nor a packaged run"):
        build("no_such_run")
    with pytest.raises(ValueError, match="batch_sise"):
        build(run_file, {"phases.train.batch_sise": 12})
    spikes = {"then": "rewind"}
    with pytest.raises(ValueError, match="takes several fits"):
        build(run_file, {"guard.spikes": spikes}, run_dir=tmp_path / "run")
    assert not (tmp_path / "run/starts.jsonl").exists()
