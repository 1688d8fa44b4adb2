"""ONNX files answer like the run, alone with onnxruntime, tokenizers, numpy and Pillow."""

import importlib.util
import json
import runpy
import subprocess
import sys
from pathlib import Path

import export_run
import numpy as np
import pytest
import torch

from counterpoint.data.images.transforms import EvalTransform
from counterpoint.data.text.tokenize import ClipTokenizer
from counterpoint.launch.cli import main as cli
from counterpoint.launch.commands.export import main
from counterpoint.launch.export import onnx as target
from counterpoint.launch.export.parity import texture
from counterpoint.launch.export.source import load_source
from counterpoint.launch.export.tokenizer_files import make_tokenizer
from counterpoint.launch.run.load import load_run

ort = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

TEXTS = [
    "a red house",
    "Two DOGS,  3 cats; isn't\tit? \u00c9t\u00e9 na\u00efve",
    "it\u2019s \u201cquoted\u201d",
    "\u65e5\u672c\u8a9e \U0001f600\U0001f600x",
    "we're they'll 2026!!! #tag @x",
    "long words " * 40,
    "",
]
# Runs the program where torch and this package cannot be imported.
ALONE = """
import runpy, sys
for name in ("torch", "transformers", "counterpoint", "timm"):
    sys.modules[name] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    return export_run.write_run(tmp_path_factory.mktemp("run") / "small", export_run.config())


def test_the_tokenizers_file_gives_the_runs_ids(run_dir):
    tokenizer = make_tokenizer(load_source(run_dir))
    ids, lengths = ClipTokenizer()(TEXTS, 12)
    rows = tokenizer.encode_batch(TEXTS)
    width = max(lengths)
    assert [row.ids for row in rows] == ids[:, :width].tolist()
    assert [sum(row.attention_mask) for row in rows] == lengths.tolist()


@pytest.mark.parametrize(
    "how",
    [
        {"interpolation": "bilinear"},
        {"crop": 0.8},
        {"resize": "squash", "crop": 0.8},
        {"resize": "longest", "fill": 200},
    ],
)
def test_the_program_prepares_images_to_within_a_grey_level(run_dir, tmp_path, how):
    source, transform = load_source(run_dir), EvalTransform(**how)
    make_tokenizer(source).save(str(tmp_path / "tokenizer.json"))
    described = target.describe(source)
    keys = ("resize", "crop", "fill", "interpolation")
    described["image"] |= {key: vars(transform)[key] for key in keys}
    (tmp_path / "towers.json").write_text(json.dumps(described))
    (tmp_path / "answer.py").write_text(target.SCRIPT.read_text())
    spec = importlib.util.spec_from_file_location("answer", tmp_path / "answer.py")
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    rng = np.random.default_rng(0)
    for seed, (height, width) in enumerate(rng.integers(20, 120, (50, 2)).tolist()):
        image = texture(height, width, seed)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        ours = transform(pixels, 24, None).permute(1, 2, 0).numpy().astype(int)
        theirs = program.prepare(image).astype(int)
        assert ours.shape == theirs.shape
        # Both round after each of two passes, and rarely to numbers two apart.
        assert (abs(ours - theirs) > 1).mean() < 0.01, (height, width)


def test_towers_of_any_batch_and_their_program(run_dir, tmp_path, capsys, monkeypatch):
    """The images in fp32, the texts in fp32 and of other lengths, and what `answer.py` prints."""
    source = load_source(run_dir)
    model = source.model
    target.write_image(model, tmp_path / "image.onnx")
    target.write_text(model, tmp_path / "text.onnx")
    image, text = (target.session(tmp_path / f"{name}.onnx") for name in ("image", "text"))
    for batch in (1, 5):
        pixels = torch.randint(0, 256, (batch, 24, 24, 3), dtype=torch.uint8)
        (theirs,) = image.run(None, {"pixels": pixels.numpy()})
        ours = model.encode_image(pixels.permute(0, 3, 1, 2))
        torch.testing.assert_close(ours, torch.from_numpy(theirs), rtol=0, atol=1e-5)
        lengths = torch.arange(2, 2 + batch)
        mask = (torch.arange(9) < lengths[:, None]).long()
        ids = torch.randint(1, 49406, (batch, 9)) * mask
        ids[range(batch), lengths - 1] = ClipTokenizer.end_id
        (theirs,) = text.run(None, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
        ours = model.encode_text(ids, lengths)
        torch.testing.assert_close(ours, torch.from_numpy(theirs), rtol=0, atol=1e-5)
    make_tokenizer(source).save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "towers.json").write_text(json.dumps(target.describe(source)))
    picture = texture(24, 24, 7)
    picture.save(tmp_path / "image.png")
    program = tmp_path / "answer.py"
    program.write_text(target.SCRIPT.read_text())
    monkeypatch.setattr(sys, "argv", ["answer.py", str(tmp_path / "image.png"), *TEXTS])
    runpy.run_path(str(program), run_name="__main__")
    printed = [float(line.split()[0]) for line in capsys.readouterr().out.splitlines()]
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]
    ours = model.encode_image(pixels) @ model.encode_text(*source.run.tokenizer(TEXTS, 12)).T
    torch.testing.assert_close(torch.tensor([printed]), ours, rtol=0, atol=1e-4)


@pytest.mark.soak
def test_the_whole_folder_answers_alone(run_dir, tmp_path):
    out = tmp_path / "onnx"
    assert main([str(run_dir), str(out), "--to", "onnx"]) == 0
    run = load_run(run_dir)
    program = (out / "answer.py").read_text()
    lines = [line for line in program.splitlines() if line.strip()]
    assert len(lines) <= 30
    picture = texture(24, 24, 7)
    picture.save(tmp_path / "image.png")
    command = [sys.executable, "-c", ALONE, str(out / "answer.py"), str(tmp_path / "image.png")]
    answer = subprocess.run([*command, *TEXTS], capture_output=True, text=True, check=True).stdout
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]
    with torch.inference_mode():
        image = run.model.encode_image(pixels)
        text = run.model.encode_text(*run.tokenizer(TEXTS, 12))
    printed = [float(line.split()[0]) for line in answer.splitlines()]
    torch.testing.assert_close(torch.tensor([printed]), image @ text.T, rtol=0, atol=1e-4)
    # Half precision, other numbers of texts, other lengths.
    for suffix, limit in (("", 1e-5), (".fp16", 1e-2)):
        session = ort.InferenceSession(
            Path(out / f"text{suffix}.onnx"), providers=["CPUExecutionProvider"]
        )
        for texts in (TEXTS[:1], TEXTS[:5], TEXTS):
            rows = make_tokenizer(load_source(run_dir)).encode_batch(texts)
            ids = np.array([row.ids for row in rows])
            mask = np.array([row.attention_mask for row in rows])
            (theirs,) = session.run(None, {"input_ids": ids, "attention_mask": mask})
            ours = text[: len(texts)]
            torch.testing.assert_close(torch.from_numpy(theirs), ours, rtol=0, atol=limit)
    card = (out / "README.md").read_text()
    assert "One image, fp32 | " in card and " ms (median of " in card


@pytest.mark.soak
def test_what_torch_cannot_translate_is_refused(tmp_path, capsys):
    """Captions through a shared transformer: its batch is fixed while it is traced."""
    image = {
        "class_path": "counterpoint.models.shared.SharedImageTower",
        "init_args": {"image_size": 24, "patch_size": 8, "width": 16, "depth": 1, "num_heads": 2},
    }
    text = {
        "class_path": "counterpoint.models.shared.SharedTextTower",
        "init_args": {"width": 16, "context_length": 12},
    }
    run_dir = export_run.write_run(tmp_path / "run", export_run.config(image, text))
    assert cli(["export", str(run_dir), str(tmp_path / "onnx"), "--to", "onnx"]) == 2
    error = capsys.readouterr().err
    assert "cannot translate the text tower" in error and "Traceback" not in error
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
