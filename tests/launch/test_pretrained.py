"""A run starts from timm's weights once; resumed, evaluated or passed on it needs them no more."""

import timm
import torch
from safetensors.torch import load_file, save_file
from tiny import config, write_config, write_shards

from counterpoint.data.shards.index import index_shards
from counterpoint.launch import cli
from counterpoint.launch.run.load import load_run


def test_weights_are_asked_for_at_the_first_start_only(tmp_path, capsys):
    manifest = tmp_path / "train.parquet"
    index_shards([str(path) for path in write_shards(tmp_path / "pairs", 2, 12)], manifest)
    values = config(manifest, steps=2)
    # Nothing moves, so that what was loaded can be recognised.
    values["phases"]["train"]["learning_rate"] = 0.0
    values["data"]["num_workers"] = 0
    values["trainer"]["logger"] = False
    image, file = values["model"]["image"]["init_args"], tmp_path / "weights.safetensors"
    made = timm.create_model(image["name"], img_size=16, num_classes=3, **image["model_args"])
    save_file(made.state_dict(), file)
    image["pretrained"] = str(file)
    run = str(write_config(tmp_path, values))
    first, second = str(tmp_path / "first"), str(tmp_path / "second")
    assert cli.main(["fit", "--config", run, "--run_dir", first]) == 0
    assert f"image tower: weights of {image['name']} from {file}" in capsys.readouterr().out
    weights = load_file(file)
    file.unlink()
    longer = ["--phases.train.samples", "48"]
    assert cli.main(["fit", "--resume", first, *longer]) == 0
    assert cli.main(["fit", "--config", run, "--run_dir", second, "--init_from", first]) == 0
    assert "image tower: weights" not in capsys.readouterr().out
    for folder in (first, second):
        loaded = load_run(folder)
        trunk = loaded.model.image.trunk.state_dict()
        assert all(torch.equal(trunk[name], weights[name]) for name in trunk)
    assert cli.main(["fit", "--config", run, "--run_dir", str(tmp_path / "third")]) == 2
    message = capsys.readouterr().err
    assert "model.image.init_args.pretrained" in message and message.strip().count("\n") == 0
