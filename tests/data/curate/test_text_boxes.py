"""What is stored of the text in images, and that a real reader finds it."""

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont
from safetensors.torch import load_file

from counterpoint.data.curate.text_boxes import MAX_TEXT, decoded, encoded
from counterpoint.data.images.masked_text import MAX_BOXES
from counterpoint.launch.cli import main


def test_boxes_are_fractions_the_largest_first():
    boxes = np.array([[0, 0, 10, 5], [10, 10, 40, 30], [5, 0, 20, 5], [35, 25, 90, 90]])
    stored, area, text = encoded(boxes, ["a", "bc", "é", "d"], 50, 60)
    # By hand: the last is cut at the image's edge to 25 x 25 = 625, the second is 600.
    stored = stored.reshape(MAX_BOXES, 4)
    np.testing.assert_allclose(stored[0], [35 / 60, 25 / 50, 1, 1])
    np.testing.assert_allclose(stored[1], [10 / 60, 10 / 50, 40 / 60, 30 / 50])
    np.testing.assert_allclose(stored[2], [5 / 60, 0, 20 / 60, 5 / 50])
    assert not stored[4:].any()
    union = len(
        {
            (y, x)
            for left, top, right, bottom in boxes.tolist()
            for y in range(top, min(bottom, 50))
            for x in range(left, min(right, 60))
        }
    )
    assert area == pytest.approx(union / 3000)
    assert decoded(text[None]) == ["a bc é d"]


def test_many_boxes_and_long_texts_are_cut():
    boxes = np.array([[0, 0, n + 1, 10] for n in range(30)])
    stored, _, text = encoded(boxes, ["é" * MAX_TEXT], 50, 60)
    np.testing.assert_allclose(stored.reshape(-1, 4)[:, 2] * 60, np.arange(30, 14, -1))
    assert decoded(text[None]) == ["é" * (MAX_TEXT // 2)]
    stored, area, text = encoded(np.zeros((0, 4)), [], 50, 60)
    assert not stored.any() and area == 0 and decoded(text[None]) == [""]


def written(path, samples):
    """Writes (key, image, caption) as a shard."""
    with tarfile.open(path, "w") as tar:
        for key, image, caption in samples:
            data = io.BytesIO()
            image.save(data, "PNG")
            members = {
                "png": data.getvalue(),
                "txt": caption.encode(),
                "json": json.dumps({"key": key}).encode(),
            }
            for extension, content in members.items():
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def lettering(text):
    image = Image.new("RGB", (200, 100), "white")
    ImageDraw.Draw(image).text((20, 30), text, "black", ImageFont.load_default(32))
    return image


@pytest.mark.soak
def test_a_pool_is_read_and_its_parrots_are_left_out(tmp_path, capsys):
    pytest.importorskip("rapidocr")
    blank = Image.new("RGB", (200, 100), "lightblue")
    samples = [
        ("a", lettering("STOP SIGN"), "a stop sign"),
        ("b", blank, "the sky"),
        ("c", lettering("HELLO"), "a greeting card"),
    ]
    written(tmp_path / "00000.tar", samples)
    pool = str(tmp_path / "pool.parquet")
    assert main(["data", "index", str(tmp_path / "00000.tar"), "--out", pool]) == 0
    boxes, table = str(tmp_path / "boxes"), str(tmp_path / "table")
    assert main(["boxes", pool, "--out", boxes, "--workers", "1"]) == 0
    rows = load_file(tmp_path / "boxes/default/00000.safetensors")
    assert [text.upper() for text in decoded(rows["text"].numpy())] == ["STOP SIGN", "", "HELLO"]
    area = rows["area"].tolist()
    assert area[1] == 0 and area[0] > area[2] > 0.05
    assert main(["score", pool, "--out", table, "--workers", "1"]) == 0
    curation = tmp_path / "parrots.yaml"
    curation.write_text("filters: {parrots: {config: parrot_captions, max_rate: 0.5}}\n")
    out = tmp_path / "out"
    stores = ["--table", table, "--store", f"boxes={boxes}", "--out", str(out)]
    assert main(["curate", str(curation), *stores]) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["samples"], summary["kept"]) == (3, 2)
    assert "left out 1" in capsys.readouterr().out
    # The whole is there: nothing is read again, and other settings are refused.
    assert main(["boxes", pool, "--out", boxes]) == 0
    assert main(["boxes", pool, "--out", boxes, "--side", "64"]) == 2
    assert "holds text boxes of other side" in capsys.readouterr().err
