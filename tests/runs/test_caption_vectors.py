"""Captions as stored vectors of a language model: embed, fit, evaluate, as a user types it."""

import json
import tarfile

import pytest
import safetensors.torch
import tiny
import torch
import yaml
from PIL import Image
from tiny_language_model import WIDTH, write_language_model

from counterpoint.data.text.tokenize import HFTokenizer
from counterpoint.launch import cli
from counterpoint.launch.api.embedder import load_model
from counterpoint.models.text.language_model import LanguageModel


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Shards whose samples have three captions, a language model, a suite, and the run."""
    folder = tmp_path_factory.mktemp("vectors")
    shards = tiny.write_shards(folder / "shards", 2, 8)
    for shard in shards:
        rewrite(shard)
    manifest = folder / "m.parquet"
    assert cli.main(["data", "index", *map(str, shards), "--out", str(manifest)]) == 0
    write_language_model(folder / "llama")
    for name in ("red", "blue"):
        (folder / "images" / name).mkdir(parents=True)
        Image.new("RGB", (20, 20), name).save(folder / "images" / name / "0.png")
    (folder / "colours.yaml").write_text(tiny.COLOURS)
    values = tiny.config(manifest, steps=4)
    model = {"source": str(folder / "llama"), "skip": 1, "precision": "float32"}
    values["data"]["tokenizer"] = {
        "class_path": "counterpoint.data.text.tokenize.HFTokenizer",
        "init_args": {"name": str(folder / "llama")},
    }
    values["model"] |= {
        "text_projection": "affine",
        "text": {
            "class_path": "counterpoint.models.text.vector.VectorTower",
            "init_args": {
                "width": WIDTH,
                "context_length": 12,
                "language_model": {
                    "class_path": "counterpoint.models.text.language_model.LanguageModel",
                    "init_args": model,
                },
            },
        },
    }
    values["evaluation"] = {
        "suite": str(folder / "colours.yaml"),
        "data_root": str(folder),
        "every_n_steps": 4,
    }
    return folder, values


def rewrite(shard):
    """Adds a list of three captions to each sample."""
    with tarfile.open(shard) as tar:
        files = [(member.name, tar.extractfile(member).read()) for member in tar]
    with tarfile.open(shard, "w") as tar:
        for name, data in files:
            if name.endswith(".json"):
                number = int(name[:9])
                words = [tiny.WORDS[(number + i) % 12] for i in range(3)]
                data = json.dumps(json.loads(data) | {"captions": words}).encode()
            tiny.add(tar, name, data)


def stored(values, folder, store, **more):
    values = json.loads(json.dumps(values))
    values["model"]["text"]["init_args"]["stored"] = "llm.text"
    columns = {"text": "text", "draw": "text.draw"}
    values["data"]["sidecars"] = {
        "llm": {
            "class_path": "counterpoint.data.sidecar.Sidecar",
            "init_args": {"folder": str(store), "columns": columns, "missing": "replaced", **more},
        }
    }
    return values


def written(folder, values, name):
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(values))
    return str(path)


def embed(config, out, *more):
    argv = ["embed", "--config", config, "--language_model", "--out", str(out), *more]
    return cli.main([*argv, "--device", "cpu", "--precision", "float32"])


def losses(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


def test_a_store_trains_as_its_language_model_does(world, tmp_path, capsys):
    folder, values = world
    online = written(tmp_path, values, "online")
    # The run that reads the store names it before it is there.
    later = written(tmp_path, stored(values, tmp_path, tmp_path / "store"), "stored")
    assert embed(later, tmp_path / "store") == 0
    assert "complete, 16 of 16 samples have a row" in capsys.readouterr().out
    for name, config in (("a", online), ("b", later)):
        assert cli.main(["fit", "--config", config, "--run_dir", str(tmp_path / name)]) == 0
    assert losses(tmp_path / "b") == pytest.approx(losses(tmp_path / "a"), rel=1e-5)
    assert len(losses(tmp_path / "b")) == 4
    assert cli.main(["evaluate", str(tmp_path / "b"), "--data_root", str(folder)]) == 0
    assert "colours" in capsys.readouterr().out
    model = load_model(tmp_path / "b", device="cpu")
    rows = safetensors.torch.load_file(next((tmp_path / "store").glob("*/00000.safetensors")))
    with tarfile.open(folder / "shards" / "00000.tar") as tar:
        texts = [tar.extractfile(m).read().decode() for m in tar if m.name.endswith(".txt")]
    made = model.encode_text(texts, normalize=False)
    want = model.model.text_projection(model.model.text(rows["text"]))
    # The store is in the order of keys.
    assert torch.cdist(made, want).min(dim=1).values.max() < 1e-4


@pytest.mark.soak
def test_each_of_several_captions_is_stored_once(world, tmp_path):
    folder, values = world
    values = json.loads(json.dumps(values))
    values["data"]["caption"] = {
        "class_path": "counterpoint.data.text.captions.WeightedChoice",
        "init_args": {"weights": {"json:captions": 1.0}},
    }
    assert embed(written(tmp_path, values, "run"), tmp_path / "store", "--variants", "3") == 0
    model = LanguageModel(str(folder / "llama"), skip=1, precision="float32")
    read = HFTokenizer(str(folder / "llama"))
    vectors = torch.nn.functional.normalize(model(*read(tiny.WORDS, 12)), dim=1)
    for path in (tmp_path / "store").glob("*/*.safetensors"):
        found = safetensors.torch.load_file(path)
        assert found["text"].shape == (8, 3, WIDTH)
        words = torch.cdist(found["text"], vectors[None]).argmin(2)
        torch.testing.assert_close(found["text"], vectors[words])
        # Three neighbours in the list, in its order.
        assert ((words[:, 1:] - words[:, :1]) % 12 == torch.tensor([1, 2])).all()
    later = stored(values, tmp_path, tmp_path / "store", variants=3)
    later["data"]["caption_same_as"] = "llm.draw"
    later = written(tmp_path, later, "stored")
    assert cli.main(["fit", "--config", later, "--run_dir", str(tmp_path / "b")]) == 0


@pytest.mark.soak
def test_samples_without_a_vector_are_replaced_and_counted(world, tmp_path):
    _, values = world
    later = stored(values, tmp_path, tmp_path / "store")
    assert embed(written(tmp_path, later, "run"), tmp_path / "store") == 0
    path = next((tmp_path / "store").glob("*/00001.safetensors"))
    found = safetensors.torch.load_file(path)
    safetensors.torch.save_file({name: rows[1:].clone() for name, rows in found.items()}, path)
    later["data"]["max_error_rate"] = 0.5
    config = written(tmp_path, later, "run")
    assert cli.main(["fit", "--config", config, "--run_dir", str(tmp_path / "b")]) == 0
    skipped = json.loads((tmp_path / "b" / "skipped.json").read_text())
    assert "no_row" in json.dumps(skipped)


def refused(tmp_path, values, capsys):
    config = written(tmp_path, values, "run")
    assert cli.main(["fit", "--config", config, "--run_dir", str(tmp_path / "no")]) == 2
    return capsys.readouterr().err


@pytest.mark.soak
def test_what_cannot_work_is_refused_at_the_start(world, tmp_path, capsys):
    folder, values = world
    (tmp_path / "store" / "default").mkdir(parents=True)
    zeros = {"key": torch.zeros(1).long(), "text": torch.zeros(1, 3), "text.draw": torch.zeros(1)}
    safetensors.torch.save_file(zeros, tmp_path / "store" / "default" / "00000.safetensors")
    good = stored(values, tmp_path, tmp_path / "store")
    alone = json.loads(json.dumps(good))
    alone["data"]["sidecars"] = {}
    message = refused(tmp_path, alone, capsys)
    assert "'llm.text', which batches do not have: store it with counterpoint embed" in message
    for_zeros = json.loads(json.dumps(good))
    del for_zeros["data"]["sidecars"]["llm"]["init_args"]["missing"]
    assert "init_args.missing to replaced" in refused(tmp_path, for_zeros, capsys)
    silent = json.loads(json.dumps(good))
    del silent["model"]["text"]["init_args"]["language_model"]
    assert "the run names none that could read other texts" in refused(tmp_path, silent, capsys)
    other = json.loads(json.dumps(good))
    del other["data"]["tokenizer"]
    assert "data.tokenizer does not read texts as the language" in refused(tmp_path, other, capsys)
    narrow = json.loads(json.dumps(good))
    narrow["model"]["text"]["init_args"]["width"] = 8
    assert "set model.text.init_args.width to 16" in refused(tmp_path, narrow, capsys)
    shortened = json.loads(json.dumps(good))
    shortened["phases"]["train"]["text_reducer"] = {
        "class_path": "counterpoint.models.reducers.tokens.Truncate",
        "init_args": {"num_tokens": 4},
    }
    message = refused(tmp_path, shortened, capsys)
    assert "phases.train.text_reducer would change nothing" in message
    plain = written(tmp_path, tiny.config(folder / "m.parquet"), "plain")
    assert embed(plain, tmp_path / "other") == 2
    assert "the run's text tower names no language model" in capsys.readouterr().err
