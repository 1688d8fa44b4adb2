"""Bad input gets one sentence, and a good run is never lost to it."""

import json
import os
import tarfile

import pytest
import tiny
from processes import Run, fit

from counterpoint.data.shards.index import index_shards
from counterpoint.launch.cli import main


@pytest.fixture
def pairs(tmp_path):
    """(manifest, shards) of a tiny data set of this test's own."""
    shards = tiny.write_shards(tmp_path / "pairs")
    manifest = tmp_path / "pairs" / "train.parquet"
    index_shards([str(p) for p in shards], str(manifest))
    return manifest, shards


@pytest.fixture
def refused(tmp_path, capsys):
    """Runs a command that must fail with status 2; returns its one sentence."""

    def call(*argv: str) -> str:
        assert main(list(argv)) == 2
        text = capsys.readouterr().err.strip()
        assert "Traceback" not in text
        assert len(text.splitlines()) == 1, text
        return text

    return call


def run_file(tmp_path, manifest, **changes) -> list[str]:
    path = tiny.write_config(tmp_path, tiny.config(manifest) | changes)
    return ["fit", "--config", str(path), "--run_dir", str(tmp_path / "run")]


def test_missing_shard(tmp_path, pairs, refused):
    manifest, shards = pairs
    shards[1].unlink()
    text = refused(*run_file(tmp_path, manifest))
    assert "00001.tar" in text
    assert not (tmp_path / "run").exists()


def test_truncated_tar(tmp_path, pairs, refused):
    manifest, shards = pairs
    os.truncate(shards[2], 9000)
    assert "00002.tar" in refused(*run_file(tmp_path, manifest))


def test_tar_without_captions(tmp_path, refused):
    path = tmp_path / "images.tar"
    with tarfile.open(path, "w") as tar:
        tiny.add(tar, "a.png", b"x")
    text = refused("data", "index", str(path), "--out", str(tmp_path / "m.parquet"))
    assert "caption" in text
    assert "images.tar" in text


def test_no_shards(tmp_path, refused):
    text = refused("data", "index", str(tmp_path / "*.tar"), "--out", str(tmp_path / "m.parquet"))
    assert "*.tar" in text


def test_missing_manifest(tmp_path, refused):
    assert "absent.parquet" in refused(*run_file(tmp_path, tmp_path / "absent.parquet"))


@pytest.mark.parametrize(
    ("option", "word"),
    [
        ("--model.typo=1", "model.typo"),
        ("--trainer.strategy=zero4", "zero1, zero2 or zero3"),
        ("--phases.train.typo=1", "typo"),
        ("--optim.weight_decay=much", "weight_decay"),
        ("--trainer.max_steps=3", "max_steps"),
        ("--trainer.accumulate_grad_batches=2", "phases.NAME.batch_size"),
        ("--trainer.max_time=00:10:00:00", "send SIGTERM when time is up"),
        ("--phases.train.samples=0", "phases.train.samples is 0"),
        ("--checkpoint.every_n_steps=0", "checkpoint.every_n_steps is 0"),
        ("--checkpoint.keep=-1", "checkpoint.keep is -1: it must be >= 0 (0 keeps all)"),
        ("--evaluation.every_n_steps=0", "evaluation.every_n_steps is 0"),
        ("--evaluation.batch_size=0", "evaluation.batch_size is 0"),
        ("--trainer.log_every_n_steps=0", "trainer.log_every_n_steps is 0"),
        ("--evaluation.suite=nowhere", "nowhere"),
        ("--init_from=nowhere.safetensors", "nowhere.safetensors"),
    ],
)
def test_a_value_that_cannot_work(tmp_path, pairs, refused, option, word):
    assert word in refused(*run_file(tmp_path, pairs[0]), option)


SCALED = {"class_path": "TrainTransform", "init_args": {"scale": [0, 1]}}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"caption": "txt"}, "run.yaml): is 'txt'; write it as a list: [txt]"),
        ({"caption": {"class_path": "WeightedChoice", "init_args": {"weights": {}}}}, "weights={}"),
        (
            {"caption": ["text"]},
            "no caption in text: none of 24 samples looked at, which have json",
        ),
        ({"sources": {"default": {"caption": ["json:a"]}}}, "json:key, json:caption; set"),
        ({"sources": {"default": {"shar": 1}}}, "did you mean data.sources.default.share?"),
        ({"views": {"augmentation": {"transform": SCALED}}}, "scale=(0.0, 1.0) must be"),
        ({"views": {"a": {"transform": {"class_path": "EvalTransform"}, "size": 0}}}, "size=0"),
        (
            {"views": {"augmentation": {"transform": {"class_path": "EvalTransform"}}}},
            "another name",
        ),
        ({"max_error_rate": 2}, "max_error_rate"),
        ({"num_workers": -1}, "num_workers=-1"),
        ({"sidecars": {"t": {"folder": "nowhere", "columns": {"a": "b"}}}}, "does not exist"),
    ],
)
def test_data_that_cannot_work(tmp_path, pairs, refused, data, words):
    values = tiny.config(pairs[0])
    values["data"] |= data
    arguments = ["--config", str(tiny.write_config(tmp_path, values))]
    text = refused("fit", *arguments, "--run_dir", str(tmp_path / "run"))
    assert words in text and "Subtypes" not in text
    assert not (tmp_path / "run").exists()


def test_unknown_run_and_command(refused):
    assert "emoji_clip" in refused("fit", "--config", "emoji_clp")
    assert "unknown command 'fitt'" in refused("fitt")


def test_a_batch_that_does_not_divide(tmp_path, pairs):
    run = Run([*run_file(tmp_path, pairs[0]), "--phases.train.batch_size=13"], 2, tmp_path / "log")
    assert run.wait() == [2, 2]
    assert "batch_size=13" in run.text()
    assert "12 or 14" in run.text()
    assert "Traceback" not in run.text()


def test_a_run_folder_is_never_overwritten(tmp_path, pairs, refused):
    arguments = run_file(tmp_path, pairs[0])
    fit([*arguments[1:], "--phases.train.samples=24"], 1, tmp_path / "log")
    assert "--resume" in refused(*arguments)
    assert "is finished" in refused("fit", "--resume", str(tmp_path / "run"))


@pytest.mark.parametrize(
    ("option", "word"),
    [
        ("--seed=5", "seed: 0 -> 5"),
        ("--model.embed_dim=9", "model.embed_dim: 8 -> 9"),
        ("--phases.train.batch_size=24", "phases.train.batch_size: 12 -> 24"),
        ("--objective.logit_scale_init=3", "objective.logit_scale_init"),
        ("--data.sources={default: {share: 1}}", "data.sources"),
        ("--data.texts={long: [txt]}", "data.texts"),
        ("--data.manifest=OTHER", "the data behind data.manifest"),
        ("--data.temperature=2", "data.temperature: None -> 2"),
        (
            "--optim={class_path: counterpoint.train.optim.timm_optimizers.Timm, "
            "init_args: {opt: lion}}",
            "train.optim.adamw.AdamW -> counterpoint.train",
        ),
        ("--optim={class_path: AdamW, init_args: {groups: {image: {rate: 0.5}}}}", "optim makes"),
    ],
)
def test_resume_refuses_to_become_another_run(tmp_path_factory, refused, option, word, stopped):
    run_dir, other = stopped
    assert word in refused("fit", "--resume", str(run_dir), option.replace("OTHER", str(other)))


def test_a_streams_command_is_not_run_unasked(refused, tmp_path):
    values = tiny.config(tmp_path / "none")
    values["data"] = {"webdataset": {"urls": f"pipe:touch {tmp_path / 'touched'}"}}
    argv = ["fit", "--config", str(tiny.write_config(tmp_path, values))]
    assert "data.allow_pipe=true" in refused(*argv)
    assert not (tmp_path / "touched").exists()
    assert "data.lanes needs listed shards" in refused(*argv, "--data.lanes=3")
    values["data"] = {"num_workers": 0}
    argv = ["fit", "--config", str(tiny.write_config(tmp_path, values))]
    assert "data.manifest is missing" in refused(*argv)


def test_a_run_goes_on_in_its_own_folder(refused, stopped, tmp_path):
    run_dir = str(stopped[0])
    for other in (["--run_dir", str(tmp_path / "b")], [f"--run_dir={tmp_path / 'b'}"]):
        text = refused("fit", "--resume", run_dir, *other)
        assert f"--run_dir is {tmp_path / 'b'}" in text and f"--init_from {run_dir}" in text
    assert not (tmp_path / "b").exists()
    assert "is finished" in refused("fit", f"--run_dir={run_dir}/../run", "--resume", run_dir)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run of two steps, and the manifest of other data."""
    folder = tmp_path_factory.mktemp("stopped")
    shards = tiny.write_shards(folder / "pairs")
    index_shards([str(p) for p in shards], str(folder / "pairs" / "train.parquet"))
    index_shards([str(p) for p in shards[:2]], str(folder / "pairs" / "other.parquet"))
    path = tiny.write_config(folder, tiny.config(folder / "pairs" / "train.parquet", steps=2))
    fit(["--config", str(path), "--run_dir", str(folder / "run")], 1, folder / "log")
    return folder / "run", folder / "pairs" / "other.parquet"


def test_more_samples_and_other_workers_may_be_asked_for(stopped, tmp_path):
    run_dir, _ = stopped
    options = ["--phases.train.samples=48", "--data.num_workers=0"]
    options += ["--optim=AdamW", "--optim.weight_decay=0.1"]
    fit(["--resume", str(run_dir), *options], 1, tmp_path / "log")
    assert json.loads((run_dir / "summary.json").read_text())["steps"] == 4


def test_weights_of_another_model(tmp_path, pairs, refused, stopped):
    wider = tiny.config(pairs[0])
    wider["model"]["text"]["init_args"]["width"] = 32
    wider["model"]["image"]["init_args"]["model_args"]["embed_dim"] = 32
    wider["model"]["embed_dim"] = 4
    path = tiny.write_config(tmp_path, wider)
    arguments = ["--config", str(path), "--run_dir", str(tmp_path / "run")]
    text = refused("fit", *arguments, "--init_from", str(stopped[0]))
    assert "another model" in text


def test_a_damaged_checkpoint(tmp_path, pairs, refused):
    arguments = run_file(tmp_path, pairs[0])
    fit([*arguments[1:], "--phases.train.samples=24"], 1, tmp_path / "log")
    (checkpoint,) = (tmp_path / "run" / "checkpoints").glob("*.ckpt")
    os.truncate(checkpoint, 1000)
    text = refused("fit", "--resume", str(tmp_path / "run"), "--phases.train.samples=48")
    assert "cannot be read as a checkpoint" in text


def test_a_full_disk_is_said_and_leaves_the_last_checkpoint(tmp_path, pairs):
    checkpoints = tmp_path / "run" / "checkpoints"
    arguments = run_file(tmp_path, pairs[0])
    fit([*arguments[1:], "--phases.train.samples=72"], 1, tmp_path / "log")
    # Step 6 fitted, the file of step 12 is written to a device that is always full.
    longer = ["fit", "--resume", str(tmp_path / "run"), "--phases.train.samples=240"]
    full = [{"class_path": "full_disk.FullDisk", "init_args": {"name": "step-00000012.ckpt"}}]
    options = [f"--trainer.callbacks={json.dumps(full)}", "--checkpoint.max_failures=1"]
    run = Run([*longer, *options], 1, tmp_path / "log")
    assert run.wait() == [2], run.text()[-2000:]
    assert "No space left on device" in run.text() and "Traceback" not in run.text()
    assert "the last good one is step-00000006.ckpt; make room" in run.text()
    assert [path.name for path in checkpoints.iterdir()] == ["step-00000006.ckpt"]
    fit([*longer[1:], "--trainer.callbacks=null"], 1, tmp_path / "log")


def test_corrupt_images_are_counted_and_stop_the_run_past_the_budget(tmp_path):
    shards = tiny.write_shards(tmp_path / "pairs", num_shards=2, per_shard=25)
    with tarfile.open(shards[0], "a") as tar:
        for i in range(5):
            tiny.add(tar, f"bad{i}.png", b"not an image")
            tiny.add(tar, f"bad{i}.txt", b"bad")
    manifest = tmp_path / "train.parquet"
    index_shards([str(p) for p in shards], str(manifest))
    values = tiny.config(manifest)
    values["phases"]["train"] |= {"samples": 1200, "batch_size": 60}
    values["data"]["max_error_rate"] = 0.5
    path = tiny.write_config(tmp_path, values)
    fit(["--config", str(path), "--run_dir", str(tmp_path / "fine")], 1, tmp_path / "log")
    final = json.loads((tmp_path / "fine" / "summary.json").read_text())["final"]
    # 5 of 55 samples, 1,200 drawn: 21 whole epochs and 45 samples of another.
    assert 21 * 5 <= final["errors/bad_image/default"] <= 22 * 5
    arguments = ["fit", "--config", str(path), "--run_dir", str(tmp_path / "strict")]
    run = Run([*arguments, "--data.max_error_rate=0.05"], 1, tmp_path / "log2")
    assert run.wait() == [2]
    assert "bad_image" in run.text()
    assert "data.max_error_rate" in run.text()
    assert "Traceback" not in run.text()
