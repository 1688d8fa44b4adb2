"""A student learns from a teacher's run and leaves as ONNX, without its heads and its teacher."""

import shutil

import numpy as np
import pytest
import torch
from processes import fit
from tiny import config, write_config, write_shards

from counterpoint.data.shards.index import index_shards
from counterpoint.launch.cli import main
from counterpoint.launch.run.load import load_run
from counterpoint.train.checkpointing.checkpoint import load, newest

TEXTS = ["a red star", "two blue fish", ""]


def interactive(student: int, teacher: int) -> dict:
    """The term of ICL with heads of its own between embeddings of unequal widths."""
    head = {
        "class_path": "counterpoint.losses.components.heads.UnitMLP",
        "init_args": {"widths": [student, teacher]},
    }
    return {
        "class_path": "counterpoint.losses.distillation.interactive.Interactive",
        "init_args": {"teacher": "teacher.large", "image_head": head, "text_head": head},
    }


@pytest.mark.soak
def test_a_distilled_student_goes_to_onnx_alone(tmp_path):
    ort = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    manifest = tmp_path / "train.parquet"
    index_shards([str(p) for p in write_shards(tmp_path / "shards")], str(manifest))
    teacher, student = (config(manifest, steps=3) for _ in range(2))
    teacher["model"]["embed_dim"] = 12
    student["teachers"] = {
        "large": {
            "class_path": "counterpoint.models.teachers.frozen.Frozen",
            "init_args": {"source": str(tmp_path / "large")},
        }
    }
    student["objective"]["terms"] |= {"interactive": interactive(8, 12)}
    for name, values in (("large", teacher), ("small", student)):
        words = ["--config", str(write_config(tmp_path, values))]
        fit([*words, "--run_dir", str(tmp_path / name)], 1, tmp_path / f"{name}.log")
    run_dir, out = tmp_path / "small", tmp_path / "onnx"
    assert any("interactive.image_head" in key for key in load(newest(run_dir))["state_dict"])
    # Neither the pairs nor the teacher are needed any more, nor what the run kept of it.
    for path in (tmp_path / "large", tmp_path / "shards", run_dir / "frozen"):
        shutil.rmtree(path, ignore_errors=True)
    manifest.unlink()

    assert main(["export", str(run_dir), str(out), "--to", "onnx"]) == 0
    card = (out / "README.md").read_text()
    assert "| Teachers | large |" in card and "One text, fp32 | " in card

    run = load_run(run_dir)
    pixels = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    ids, lengths = run.tokenizer(TEXTS, run.model.context_length)
    mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
    inputs = {
        "image": {"pixels": np.ascontiguousarray(pixels.permute(0, 2, 3, 1).numpy())},
        "text": {"input_ids": ids.numpy(), "attention_mask": mask.numpy()},
    }
    with torch.inference_mode():
        ours = {
            "image": run.model.encode_image(pixels),
            "text": run.model.encode_text(ids, lengths),
        }
    for tower, named in inputs.items():
        session = ort.InferenceSession(out / f"{tower}.onnx", providers=["CPUExecutionProvider"])
        (theirs,) = session.run(None, named)
        torch.testing.assert_close(torch.from_numpy(theirs), ours[tower], rtol=0, atol=1e-5)
