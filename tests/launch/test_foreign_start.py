"""A run starts from another library's model once; resumed it needs that no more."""

import json
import shutil

import torch
from safetensors.torch import save_file
from tiny import config, write_config, write_shards

from counterpoint.data.shards.index import index_shards
from counterpoint.launch import cli
from counterpoint.launch.run.load import load_run
from counterpoint.models.interop.base import made
from counterpoint.models.interop.open_clip import to_open_clip
from counterpoint.models.two_tower import TwoTower


def test_a_foreign_model_is_read_at_the_first_start_only(tmp_path, capsys):
    manifest = tmp_path / "train.parquet"
    index_shards([str(path) for path in write_shards(tmp_path / "pairs", 2, 12)], manifest)
    values = config(manifest, steps=2)
    # Nothing moves, so that what was loaded can be recognised.
    values["phases"]["train"]["learning_rate"] = 0.0
    values["data"]["num_workers"] = 0
    values["trainer"]["logger"] = False
    torch.manual_seed(5)
    theirs = TwoTower(**made(values["model"]))
    cfg, tensors = to_open_clip(theirs)
    folder = tmp_path / "open_clip"
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": cfg}))
    save_file(tensors, folder / "open_clip_model.safetensors")
    run = str(write_config(tmp_path, values))
    first = str(tmp_path / "first")
    mixture = f"{{image: {folder}, text: local-dir:{folder}}}"
    command = ["fit", "--config", run, "--run_dir", first, "--init_from", mixture]
    assert cli.main(command) == 0
    out = capsys.readouterr().out
    assert f"init_from {folder} (open_clip): " in out and "text tower 100%" in out
    shutil.rmtree(folder)
    assert cli.main(["fit", "--resume", first, "--phases.train.samples", "48"]) == 0
    state = load_run(first).model.state_dict()
    want = theirs.state_dict()
    assert torch.equal(state["text_projection.weight"], want["text_projection.weight"])
    name = "image.trunk.blocks.1.mlp.fc1.weight"
    assert torch.equal(state[name], want[name])
