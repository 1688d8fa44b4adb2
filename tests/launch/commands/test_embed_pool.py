"""A pool embedded with a run of one's own, as evaluation sees it: one command, no run file."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import tiny
import torch
import yaml

from counterpoint.data.curate.stores import Store
from counterpoint.data.images.decode import EncodedImage
from counterpoint.data.shards.fields import find_image, read_text, sample_key
from counterpoint.data.shards.index import index_shards
from counterpoint.data.shards.manifest import Manifest
from counterpoint.data.shards.reader import ShardReader
from counterpoint.launch import cli
from counterpoint.launch.run.load import load_run


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A run that has trained on a keep-list of its own source, and a pool of other shards."""
    folder = tmp_path_factory.mktemp("pool")
    for name, shards in (("own", 1), ("pool", 2)):
        paths = tiny.write_shards(folder / name, shards, 14)
        words = [f"{name}={path}" for path in paths]
        assert cli.main(["data", "index", *words, "--out", str(folder / f"{name}.parquet")]) == 0
    values = tiny.config(folder / "own.parquet", steps=4)
    kept = {"shard": ["00000.tar"] * 12, "index": list(range(12))}
    pq.write_table(pa.table(kept), folder / "keep.parquet")
    values["data"]["keep_lists"] = [str(folder / "keep.parquet")]
    values["data"]["sources"] = {"own": {"share": 1.0}}
    values["data"]["eval_transform"] = {
        "class_path": "counterpoint.data.images.transforms.EvalTransform",
        "init_args": {"crop": 0.9},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(values))
    command = ["fit", "--config", str(folder / "run.yaml"), "--run_dir", str(folder / "run")]
    assert cli.main(command) == 0
    return folder


def embed(world, out, *more):
    command = ["embed", "--run", str(world / "run"), "--out", str(out), "--precision", "float32"]
    return cli.main([*command, "--data.manifest", str(world / "pool.parquet"), *more])


def test_rows_are_what_evaluation_makes_of_the_pool(world, tmp_path, capsys):
    assert embed(world, tmp_path / "store") == 0
    assert "complete, 28 of 28 samples have a row" in capsys.readouterr().out
    run = load_run(world / "run")
    manifest = Manifest.load(world / "pool.parquet")
    reader = ShardReader(manifest.urls)
    for shard in range(2):
        raw = [reader.read(shard, index) for index in range(14)]
        keys = [sample_key(sample, "pool", f"{shard:05d}.tar", "key") for sample in raw]
        size = run.model.image_size
        images = [run.eval_transform(EncodedImage.open(find_image(s)), size) for s in raw]
        texts, lengths = run.tokenizer([read_text(s, "txt") for s in raw], run.model.context_length)
        batch = {
            "image": torch.stack(images),
            "text": texts,
            "text_length": lengths,
            "key": torch.tensor(keys),
        }
        with torch.no_grad():
            features = run.model(batch, ("image", "text"))
        found = safetensors.torch.load_file(
            tmp_path / "store" / "pool" / f"{shard:05d}.safetensors"
        )
        order = torch.tensor(keys).argsort()
        assert torch.equal(found["key"], torch.tensor(keys)[order])
        for side in ("image", "text"):
            torch.testing.assert_close(found[side], features[side][order])
        assert "image.augmentation" not in found
    about = json.loads((tmp_path / "store" / "store.json").read_text())
    assert about["transform"] == "eval"
    (source,) = (value for name, value in about.items() if name.endswith("init_args.source"))
    assert source.endswith("step-00000004.ckpt")
    assert len(Store(tmp_path / "store").files()) == 2


def test_training_and_evaluation_are_not_mixed(world, tmp_path, capsys):
    out = tmp_path / "store"
    assert embed(world, out, "--transform", "train") == 0
    assert "image.augmentation" in safetensors.torch.load_file(out / "pool" / "00000.safetensors")
    assert embed(world, out) == 2
    assert "holds a store of other" in (told := capsys.readouterr().err) and "transform" in told
    # A store of an earlier version does not say which it is: of training.
    about = json.loads((out / "store.json").read_text())
    del about["transform"]
    (out / "store.json").write_text(json.dumps(about))
    assert embed(world, out) == 2
    assert "transform" in capsys.readouterr().err
    assert embed(world, out, "--transform", "train") == 0


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--variants", "2"], "in evaluation nothing is augmented"),
        (["--checkpoint", "3"], "holds no checkpoint of step 3"),
        (["--teacher", "big"], "not allowed with argument"),
        (["--views", "image.big"], "batches have no 'image.big' to embed"),
        (["--transform", "test"], "invalid choice: 'test'"),
        (["--data.manifest", "none.parquet"], "the manifest 'none.parquet' does not exist"),
    ],
)
def test_what_cannot_be_embedded_is_named(world, tmp_path, capsys, more, words):
    assert embed(world, tmp_path / "store", *more) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "store").exists()


def test_a_folder_that_is_no_run_is_named(tmp_path, capsys):
    command = ["embed", "--out", str(tmp_path / "store")]
    assert cli.main([*command, "--run", str(tmp_path)]) == 2
    assert "there is no run" in capsys.readouterr().err
    assert cli.main([*command, "--teacher", "a", "--checkpoint", "3"]) == 2
    assert "--checkpoint is for --run" in capsys.readouterr().err
    assert cli.main(command) == 2
    assert (
        "one of the arguments --teacher --run --language_model is required"
        in capsys.readouterr().err
    )


def test_a_keep_list_of_another_pool_is_refused(world, tmp_path, capsys):
    rows = {"shard": ["00000.tar"] * 3, "index": [0, 1, 2], "key": [1, 2, 3]}
    pq.write_table(pa.table(rows), tmp_path / "keep.parquet")
    lists = ["--data.keep_lists", f"[{tmp_path}/keep.parquet]"]
    assert embed(world, tmp_path / "store", *lists) == 2
    assert "keep.parquet' is of other samples: none of 3" in capsys.readouterr().err
    assert not (tmp_path / "store").exists()


def test_shards_of_texts_alone_have_vectors_of_texts(world, tmp_path, capsys):
    texts = [str(path) for path in tiny.write_texts(tmp_path / "texts", 1)]
    index_shards(texts, tmp_path / "texts.parquet", caption=["json:anchor"], images=())
    chosen = ["--data.manifest", str(tmp_path / "texts.parquet"), "--views", "text"]
    assert embed(world, tmp_path / "out", *chosen, "--data.caption=[json:anchor]") == 0
    assert "complete, 13 of 13 samples have a row" in capsys.readouterr().out
