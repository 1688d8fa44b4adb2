"""Embeddings of class prompts are those of the model, and what filters read."""

import numpy as np
import pytest
import safetensors.torch
import tiny
import torch
import yaml

from counterpoint.data.curate.numerics.array_files import class_embeddings
from counterpoint.launch.cli import main
from counterpoint.launch.config import parser as run_config
from counterpoint.launch.run.build import build_parts

NAMES = ["red fox", "blue whale", "sun"]
TEMPLATES = ["a photo of a {c}.", "{c}"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A run file with a teacher, its model, and files of names and templates."""
    folder = tmp_path_factory.mktemp("prompts")
    shards = tiny.write_shards(folder / "shards", 1, 9)
    assert main(["data", "index", *map(str, shards), "--out", str(folder / "m.parquet")]) == 0
    values = tiny.config(folder / "m.parquet", steps=4) | {"seed": 3}
    parser = run_config.make_parser()
    config = run_config.parse(parser, ["--config", str(tiny.write_config(folder, values))])
    parts = build_parts(parser, config)
    weights = folder / "teacher.safetensors"
    safetensors.torch.save_file(dict(parts.model.state_dict()), weights)
    values["teachers"] = {
        "big": {
            "class_path": "counterpoint.models.teachers.frozen.Frozen",
            "init_args": {"source": str(weights)},
        }
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(values))
    (folder / "classes.txt").write_text("\n".join(["", *NAMES, ""]))
    (folder / "templates.txt").write_text("\n".join(TEMPLATES))
    return folder, parts


def prompts(folder, *more):
    files = ["--classes", str(folder / "classes.txt"), "--out", str(folder / "c.safetensors")]
    return main(["prompts", "--config", str(folder / "run.yaml"), *files, *more])


def test_a_class_is_the_mean_of_its_prompts(world):
    folder, parts = world
    assert prompts(folder, "--teacher", "big", "--templates", str(folder / "templates.txt")) == 0
    expected = []
    tokenize, length = parts.data.reads("text")
    for name in NAMES:
        ids, lengths = tokenize([text.replace("{c}", name) for text in TEMPLATES], length)
        with torch.no_grad():
            features = parts.model.eval()({"text": ids, "text_length": lengths}, ["text"])["text"]
        rows = features.double().numpy()
        mean = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).mean(0)
        expected.append(mean / np.linalg.norm(mean))
    found = class_embeddings(folder / "c.safetensors", len(expected[0]))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_prompts_of_a_run_are_those_of_its_checkpoint_as_a_teacher(world, tmp_path):
    folder, _ = world
    run, out = tmp_path / "run", str(tmp_path / "own.safetensors")
    values = yaml.safe_load((folder / "run.yaml").read_text())
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(values | {"teachers": {}}))
    assert main(["fit", "--config", str(tmp_path / "own.yaml"), "--run_dir", str(run)]) == 0
    classes = ["--classes", str(folder / "classes.txt")]
    assert main(["prompts", "--run", str(run), *classes, "--out", out]) == 0
    found = safetensors.torch.load_file(out)["classes"]
    source = f"--teachers.big.init_args.source={run}"
    assert prompts(folder, "--teacher", "big", source) == 0
    expected = safetensors.torch.load_file(folder / "c.safetensors")["classes"]
    torch.testing.assert_close(found, expected)
    assert main(["prompts", "--run", str(tmp_path), *classes, "--out", out]) == 2


def test_what_cannot_be_used_is_refused(world, capsys):
    folder, _ = world
    (folder / "bad.txt").write_text("a photo of a {}.")
    (folder / "empty.txt").write_text("\n")
    for more, said in [
        (["--teacher", "small"], "the run file has no teacher 'small'; it has big"),
        (["--teacher", "big", "--templates", str(folder / "bad.txt")], "needs {c} where the class"),
        (["--teacher", "big", "--templates", str(folder / "empty.txt")], "has no line of text"),
        (["--teacher", "big", "--templates", str(folder / "no.txt")], "cannot be read as lines"),
        (["--teacher", "big", "--view", "text.x"], "batches have no 'text.x' to embed"),
    ]:
        assert prompts(folder, *more) == 2
        err = capsys.readouterr().err
        assert said in err and err.count("\n") == 1
