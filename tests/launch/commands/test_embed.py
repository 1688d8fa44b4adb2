"""Stored teachers: what is written, and training from it as with the teacher itself."""

import json
import shutil

import pytest
import safetensors.torch
import tiny
import torch
import yaml

from counterpoint.launch import cli
from counterpoint.launch.commands.embed import main
from counterpoint.launch.commands.fit import main as cli_fit
from counterpoint.launch.config import parser as run_config
from counterpoint.launch.run.build import build_parts
from counterpoint.models.weights import read_weights
from counterpoint.train.checkpointing import checkpoint as checkpoints

VARIANTS = 3


def taught(prefix, **more):
    """A student of a teacher's features and softmax."""
    soft = {"teachers": [prefix], "teacher_scales": [20.0]}
    return {
        "infonce": {"class_path": "counterpoint.losses.infonce.InfoNCE"},
        "soft": {
            "class_path": "counterpoint.losses.distillation.soft_contrastive.SoftContrastive",
            "init_args": soft,
        },
        "near": {
            "class_path": "counterpoint.losses.distillation.feature_regression.FeatureRegression",
            "init_args": {"feature": "image", "target": f"{prefix}.image"},
        },
    }


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Shards, a teacher's weights, and the run file that names it."""
    folder = tmp_path_factory.mktemp("embed")
    shards = tiny.write_shards(folder / "shards", 2, 9)
    manifest = folder / "m.parquet"
    assert cli.main(["data", "index", *map(str, shards), "--out", str(manifest)]) == 0
    values = tiny.config(manifest, steps=4) | {"seed": 3}
    parser = run_config.make_parser()
    path = tiny.write_config(folder, values)
    config = run_config.parse(parser, ["--config", str(path), "--seed", "9"])
    model = build_parts(parser, config).model
    safetensors.torch.save_file(dict(model.state_dict()), folder / "teacher.safetensors")
    values["teachers"] = {
        "big": {
            "class_path": "counterpoint.models.teachers.frozen.Frozen",
            "init_args": {"source": str(folder / "teacher.safetensors")},
        }
    }
    values["objective"]["terms"] = taught("teacher.big")
    values["data"]["caption"] = {
        "class_path": "counterpoint.data.text.captions.WeightedChoice",
        "init_args": {"weights": {"txt": 1.0, "json:key": 1.0}},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(values))
    return folder, values


def embed(world, out, *more):
    argv = ["--config", str(world[0] / "run.yaml"), "--teacher", "big", "--out", str(out)]
    return main([*argv, "--variants", str(VARIANTS), "--batch_size", "4", *more])


@pytest.fixture(scope="module")
def store(world):
    out = world[0] / "store"
    assert embed(world, out, "--precision", "float32") == 0
    return out


def columns_of(store):
    files = sorted(store.glob("*/*.safetensors"))
    return {file.stem: safetensors.torch.load_file(file) for file in files}


def test_a_row_is_what_the_teacher_makes_of_each_augmentation(world, store):
    parser = run_config.make_parser()
    parts = build_parts(parser, run_config.parse(parser, ["--config", str(world[0] / "run.yaml")]))
    parts.model.load_state_dict(read_weights(world[0] / "teacher.safetensors"))
    parts.model.eval()
    dataset = parts.data.train_dataset()
    columns = columns_of(store)
    assert sorted(columns) == ["00000", "00001"]
    for number, found in enumerate(columns.values()):
        assert found["image"].shape[:2] == found["text"].shape[:2] == (9, VARIANTS)
        for variant in range(VARIANTS):
            batch, texts = dataset.loader.load([(variant, number, i) for i in range(9)])
            batch |= dataset.tokenized(texts)
            order = batch["key"].argsort()
            assert torch.equal(found["key"], batch["key"][order])
            stored = found["image.augmentation"][:, variant]
            assert torch.equal(stored, batch["image.augmentation"][order])
            with torch.no_grad():
                features = parts.model(batch, ("image", "text"))
            for side in ("image", "text"):
                torch.testing.assert_close(found[side][:, variant], features[side][order])


def fit(folder, values, run_dir):
    path = folder / f"{run_dir.name}.yaml"
    path.write_text(yaml.safe_dump(values))
    assert cli.main(["fit", "--config", str(path), "--run_dir", str(run_dir)]) == 0
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    return losses, checkpoints.load(checkpoints.newest(run_dir))["state_dict"]


def test_training_from_the_store_is_training_with_the_teacher(world, store, tmp_path):
    values = world[1]
    columns = {"image": "image", "text": "text", "augmentation": "image.augmentation"}
    sidecar = {"folder": str(store), "columns": columns | {"draw": "text.draw"}}
    values = json.loads(json.dumps(values))
    values["data"] |= {
        "sidecars": {"store": {"init_args": sidecar | {"variants": VARIANTS}}},
        "same_as": "store.augmentation",
        "caption_same_as": "store.draw",
    }
    values["data"]["sidecars"]["store"]["class_path"] = "counterpoint.data.sidecar.Sidecar"
    online = fit(tmp_path, values, tmp_path / "online")
    del values["teachers"]
    values["objective"]["terms"] = taught("store")
    stored = fit(tmp_path, values, tmp_path / "stored")
    assert stored[0] == pytest.approx(online[0], rel=1e-5) and len(online[0]) > 1
    for name, value in online[1].items():
        torch.testing.assert_close(stored[1][name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_it_goes_on_where_it_was_left(world, store, tmp_path, capsys):
    out = tmp_path / "part"
    shutil.copytree(store, out)
    lost = next(iter(out.glob("*/00001.safetensors")))
    kept = next(iter(out.glob("*/00000.safetensors")))
    lost.unlink()
    claim = lost.with_suffix(".claim")
    claim.touch()
    before = kept.stat().st_mtime_ns
    assert embed(world, out, "--precision", "float32") == 1
    assert "shards not done: 1; others work on them" in capsys.readouterr().out
    claim.unlink()
    assert embed(world, out, "--precision", "float32") == 0
    printed = capsys.readouterr().out
    assert "9 samples x 3 variants to store, about 0.0 MB" in printed
    assert "complete, 18 of 18 samples have a row" in printed
    assert kept.stat().st_mtime_ns == before
    torch.testing.assert_close(columns_of(out), columns_of(store))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--precision", "bfloat16"], "holds a store of other precision; choose another --out"),
        (["--precision", "float32", "--variants", "2"], "holds a store of other variants"),
        (
            ["--precision", "float32", "--seed", "9", "--data.key_field", "uid"],
            r"a store of other data\.key_field, seed; choose",
        ),
        (["--teacher", "none"], "the run file has no teacher 'none'; it has big"),
        (["--variants", "0"], "--variants 0 and --batch_size 4: give 1 or more"),
    ],
)
def test_what_cannot_be_stored_is_refused(world, store, more, words):
    with pytest.raises(ValueError, match=words):
        embed(world, store, *more)


def test_a_store_does_not_depend_on_the_order_and_the_place_of_samples(world, store, capsys):
    order = ["--data.lanes", "4", "--data.block", "8", "--data.num_workers", "0"]
    assert embed(world, store, "--precision", "float32", *order) == 0
    assert "complete" in capsys.readouterr().out


def test_chosen_views_need_no_term_and_missing_texts_have_no_embedding(world, tmp_path):
    """Keys are numbers, of which no text is left."""
    values = json.loads(json.dumps(world[1]))
    values["objective"]["terms"] = {"infonce": taught("")["infonce"]}
    policy = {
        "class_path": "counterpoint.data.text.without_numbers.WithoutNumbers",
        "init_args": {
            "of": {
                "class_path": "counterpoint.data.text.captions.WeightedChoice",
                "init_args": {"weights": {"txt": 1.0, "json:key": 1.0}},
            }
        },
    }
    values["data"] |= {
        "texts": {"masked": policy},
        "train_transform": {"class_path": "counterpoint.data.images.transforms.EvalTransform"},
    }
    run = tmp_path / "run.yaml"
    run.write_text(yaml.safe_dump(values))
    argv = ["--config", str(run), "--teacher", "big", "--out", str(tmp_path / "store")]
    assert main([*argv, "--views", "image", "text.masked", "--precision", "float32"]) == 0
    parser = run_config.make_parser()
    data = build_parts(parser, run_config.parse(parser, ["--config", str(run)])).data
    loader = data.train_dataset()
    for number, found in enumerate(columns_of(tmp_path / "store").values()):
        assert {"key", "image", "text.masked"} <= found.keys() and "text" not in found
        batch, texts = loader.loader.load([(0, number, i) for i in range(9)])
        batch |= loader.tokenized(texts)
        present = batch["text.masked.present"][batch["key"].argsort()]
        assert present.any() and not present.all()
        assert torch.equal(found["text.masked"].norm(dim=1) > 0, present)
        assert found["image"].norm(dim=1).min() > 0
    with pytest.raises(ValueError, match="no term needs the teacher 'big'"):
        main([*argv[:-1], str(tmp_path / "other")])
    with pytest.raises(ValueError, match="batches have no 'texts' to embed; they have image, text"):
        main([*argv, "--views", "texts"])


def test_shards_that_would_share_a_file_are_refused(world, store, tmp_path):
    shards = [*tiny.write_shards(tmp_path / "a", 1, 9), *tiny.write_shards(tmp_path / "b", 1, 9)]
    assert cli.main(["data", "index", *map(str, shards), "--out", str(tmp_path / "m")]) == 0
    manifest = f"--data.manifest={tmp_path / 'm'}"
    with pytest.raises(ValueError, match=r"a/00000\.tar and .*b/00000\.tar are shards of the same"):
        embed(world, tmp_path / "store", manifest)
    assert not (tmp_path / "store").exists()
    sidecar = {"folder": str(store), "columns": {"image": "image"}, "variants": VARIANTS}
    option = f"--data.sidecars={json.dumps({'big': sidecar})}"
    argv = ["--config", str(world[0] / "run.yaml"), "--run_dir", str(tmp_path / "run"), manifest]
    with pytest.raises(ValueError, match="sidecars know shards by these"):
        cli_fit([*argv, option])


def test_a_disk_that_is_too_small_is_told_before(world, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(
        ValueError, match=r"the store needs 0\.0 GB, and the disk of .* has 0\.0 GB"
    ):
        embed(world, tmp_path / "small")
    assert not list((tmp_path / "small").iterdir())


def test_a_run_inherits_from_a_larger_run(world, tmp_path, capsys):
    values = world[1]
    values = json.loads(json.dumps({k: v for k, v in values.items() if k != "teachers"}))
    values["objective"]["terms"] = {"infonce": taught("")["infonce"]}
    fit(tmp_path, values, tmp_path / "large")
    values["model"]["text"]["init_args"]["depth"] = 1
    values["model"]["embed_dim"] //= 2
    capsys.readouterr()
    fit(tmp_path, values | {"inherit_from": str(tmp_path / "large")}, tmp_path / "small")
    assert "tensors inherited, " in capsys.readouterr().out
    path = tmp_path / "both.yaml"
    both = {"inherit_from": str(tmp_path / "large"), "init_from": str(tmp_path / "large")}
    path.write_text(yaml.safe_dump(values | both))
    assert cli.main(["fit", "--config", str(path), "--run_dir", str(tmp_path / "no")]) == 2
    assert "not both" in capsys.readouterr().err
