"""A text tower of one's own is one file and one configuration, in a folder of one's own."""

import shutil
import sys
from pathlib import Path

import torch
import yaml
from tiny import config, write_config, write_shards

from counterpoint.data.shards.index import index_shards
from counterpoint.launch import cli
from counterpoint.launch.run.load import load_run

TOWER = Path(__file__).parents[1] / "helpers" / "bert_tower.py"


def test_a_tower_of_ones_own_trains(tmp_path, capsys, monkeypatch):
    manifest = tmp_path / "train.parquet"
    index_shards([str(path) for path in write_shards(tmp_path / "pairs", 2, 12)], manifest)
    values = config(manifest, steps=2)
    values["data"]["num_workers"] = 0
    values["trainer"]["logger"] = False
    values["checkpoint"]["every_n_steps"] = 1
    run = str(write_config(tmp_path, values))
    # The two files.
    mine = tmp_path / "mine"
    mine.mkdir()
    shutil.copy(TOWER, mine / "my_tower.py")
    text = {"class_path": "my_tower.BertTower", "init_args": {"depth": 3, "vocab_size": 49408}}
    model = {**values["model"], "text": text}
    (mine / "my_model.yaml").write_text(yaml.safe_dump(model))

    out = str(tmp_path / "run")
    command = ["fit", "--config", run, "--model", str(mine / "my_model.yaml"), "--run_dir", out]
    monkeypatch.chdir(mine)
    assert cli.main(command) == 2
    assert "PYTHONPATH=. counterpoint" in capsys.readouterr().err
    monkeypatch.syspath_prepend(mine)
    assert cli.main([*command, "--optim.groups.text.layer_decay", "0.5"]) == 0
    trained = load_run(out).model
    assert type(trained.text).__module__ == "my_tower" and len(trained.text.layers()) == 3
    first = load_run(out, 1).model.text.state_dict()
    last = trained.text.state_dict()
    moved = [n for n in last if not torch.equal(first[n], last[n])]
    assert {"word_embeddings.weight", "pooler.weight", "encoder.layer.2.mlp.0.weight"} <= {*moved}
    sys.modules.pop("my_tower")
