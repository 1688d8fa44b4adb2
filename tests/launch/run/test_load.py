"""Which checkpoint a run folder stands for."""

import re

import pytest
import torch

from counterpoint.launch.run.load import checkpoint_of
from counterpoint.launch.run.start.initial import read_source


@pytest.fixture
def run_dir(tmp_path):
    """A run folder with two checkpoints."""
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.yaml").touch()
    for step in (3, 12):
        torch.save({"x": torch.full((50,), 0.1)}, file_of(tmp_path, step))
    return tmp_path


def file_of(run_dir, step):
    return run_dir / f"checkpoints/step-{step:08d}.ckpt"


def change(path):
    data = bytearray(path.read_bytes())
    data[data.index(torch.full((50,), 0.1).numpy().tobytes()) + 7] ^= 64
    path.write_bytes(data)


def test_the_newest_whole_checkpoint_is_taken(run_dir, capsys):
    assert checkpoint_of(run_dir) == file_of(run_dir, 12)
    assert checkpoint_of(run_dir, 3) == file_of(run_dir, 3)
    assert capsys.readouterr().out == ""
    change(file_of(run_dir, 12))
    assert checkpoint_of(run_dir) == file_of(run_dir, 3)
    out = capsys.readouterr().out
    assert "step-00000012.ckpt is damaged (bytes of" in out
    assert "; step-00000003.ckpt is used instead" in out
    # Only a run that goes on gives it another name.
    assert file_of(run_dir, 12).exists()


def test_a_file_is_itself(run_dir):
    (run_dir / "config.yaml").write_text("data: {}")
    for source in (run_dir, file_of(run_dir, 12)):
        assert read_source(str(source)).name == str(file_of(run_dir, 12))
    assert read_source(str(run_dir)).tokenizer == {}


def test_what_is_not_there_is_said(run_dir):
    with pytest.raises(ValueError, match="holds no checkpoint of step 4"):
        checkpoint_of(run_dir, 4)
    for step in (3, 12):
        change(file_of(run_dir, step))
    with pytest.raises(ValueError, match=r"12\.ckpt cannot be read .* no whole one before it"):
        checkpoint_of(run_dir)
    for step in (3, 12):
        file_of(run_dir, step).unlink()
    with pytest.raises(ValueError, match=re.escape(f"{run_dir} holds no checkpoint: it has to be")):
        checkpoint_of(run_dir)
    with pytest.raises(ValueError, match=r"is no run folder: it has no config\.yaml"):
        checkpoint_of(run_dir / "checkpoints")
