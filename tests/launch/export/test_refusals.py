"""What cannot be exported is refused with a sentence, and nothing is left behind."""

import importlib.util

import export_run
import pytest

from counterpoint.launch import arguments
from counterpoint.launch.cli import main
from counterpoint.launch.export import transformers as hf
from counterpoint.launch.export.source import load_source
from counterpoint.launch.export.write import TARGETS, export

SHARED = (
    {
        "class_path": "counterpoint.models.shared.SharedImageTower",
        "init_args": {"image_size": 24, "patch_size": 8, "width": 16, "depth": 1, "num_heads": 2},
    },
    {
        "class_path": "counterpoint.models.shared.SharedTextTower",
        "init_args": {"width": 16, "context_length": 12},
    },
)
CLASS_TOKEN = export_run.IMAGE | {
    "init_args": export_run.IMAGE["init_args"] | {"model_args": export_run.SIZES}
}
OPENAI = export_run.IMAGE | {
    "init_args": {
        key: CLASS_TOKEN["init_args"][key] for key in ("name", "image_size", "model_args")
    }
}
EVAL = {"class_path": "counterpoint.data.images.transforms.EvalTransform"}
CROP, LONGEST = (EVAL | {"init_args": how} for how in ({"crop": 0.8}, {"resize": "longest"}))
DISTANCE = {
    "class_path": "counterpoint.losses.infonce.InfoNCE",
    "init_args": {
        "similarity": {"class_path": "counterpoint.losses.components.similarity.SquaredDistance"}
    },
}


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    return export_run.write_run(tmp_path_factory.mktemp("run") / "small", export_run.config())


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["{run}", "out.safetensors", "--to", "coreml"], "invalid choice: 'coreml'"),
        (["{run}", "out", "--to", "safetensors"], "must end in .safetensors"),
        (["{run}", "out.safetensors", "--to", "onnx"], "writes a folder"),
        (["{run}", "there", "--to", "onnx"], "there exists already; remove it"),
        (["{run}", "there.safetensors"], "there.safetensors exists already"),
        (["nowhere", "out.safetensors"], "nowhere is no run folder"),
        (["{run}", "out.safetensors", "--checkpoint", "4"], "no checkpoint of step 4"),
        (["{run}", "out.safetensors", "--weights", "ema"], "take the trained weights"),
        (["{empty}", "out.safetensors"], "checkpoint"),
    ],
)
def test_wrong_input_is_one_sentence(run_dir, tmp_path, monkeypatch, capsys, words, sentence):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    (tmp_path / "there.safetensors").touch()
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "config.yaml").write_text((run_dir / "config.yaml").read_text())
    before = sorted(tmp_path.iterdir())
    assert main(["export", *(word.format(run=run_dir, empty=empty) for word in words)]) == 2
    error = capsys.readouterr().err
    assert sentence in error and "Traceback" not in error
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("target", "values", "sentence"),
    [
        ("transformers", export_run.config(*SHARED), "SharedTextTower"),
        ("open_clip", export_run.config(*SHARED), "SharedImageTower"),
        ("open_clip", export_run.config(), "its own ViT always has a class token"),
        ("datacomp", export_run.config(), "its own ViT always has a class token"),
        ("open_clip", export_run.config(CLASS_TOKEN, eval_transform=CROP), "cuts the middle 0.8"),
        ("datacomp", export_run.config(CLASS_TOKEN), "prepares images as OpenAI's CLIP does"),
        ("datacomp", export_run.config(OPENAI), "none has these sizes"),
        *(
            (target, export_run.config(objective={"terms": {"distance": DISTANCE}}), "by SquaredD")
            for target in ("open_clip", "transformers", "sentence-transformers", "onnx")
        ),
        ("transformers", export_run.config(eval_transform=LONGEST), "pads images to squares"),
    ],
)
def test_what_a_target_cannot_hold_is_refused(tmp_path, capsys, target, values, sentence):
    if target.startswith("sentence") and not importlib.util.find_spec("sentence_transformers"):
        pytest.skip(f"{target} is not installed")
    run_dir = export_run.write_run(tmp_path / "run", values)
    out = tmp_path / ("out.pt" if target == "datacomp" else "out")
    assert main(["export", str(run_dir), str(out), "--to", target]) == 2
    error = capsys.readouterr().err
    assert sentence in error and "Traceback" not in error
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_package_that_is_missing_is_named(run_dir, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    missing = ("onnxscript", "onnx")
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in missing else find(name)
    )
    with pytest.raises(ValueError, match="needs onnx and onnxscript: pip install onnx onnxscript"):
        export(load_source(run_dir), tmp_path / "out", "onnx")
    assert not list(tmp_path.iterdir())


def test_another_model_than_the_runs_is_not_left_there(run_dir, tmp_path, monkeypatch):
    """Each half of the comparison finds a fault that is planted in what is written."""
    source, processor = load_source(run_dir), hf.make_processor

    def blind(*args):
        made = processor(*args)
        made.image_processor.size = {"shortest_edge": 26}
        return made

    def deaf(*args):
        made = processor(*args)
        made.tokenizer.model_max_length = 9
        return made

    for fault, sentence in ((blind, "prepares images in another way"), (deaf, "other embeddings")):
        monkeypatch.setattr(hf, "make_processor", fault)
        with pytest.raises(ValueError, match=sentence):
            export(source, tmp_path / "out", "transformers")
        assert not list(tmp_path.iterdir())


def test_the_command_line_knows_every_target():
    assert set(arguments.TARGETS) == set(TARGETS)
    assert {
        name: made.suffix for name, made in TARGETS.items() if made.suffix
    } == arguments.SUFFIXES
