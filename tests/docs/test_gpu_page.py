"""The page of GPU results: what was measured, what has failed, and what nobody has measured."""

import json
import runpy
from pathlib import Path

import pytest

RENDERED = runpy.run_path(str(Path(__file__).parents[2] / "docs" / "gpu_results.py"))


def test_without_a_file_nothing_is_said_to_be_measured(tmp_path):
    page = RENDERED["page"](tmp_path)
    assert page.count("Not measured yet.") == len(RENDERED["PIECES"]) == 6
    assert "On GPUs: not measured yet." in page and "|" not in page


def test_rows_failures_and_other_pieces_stand_in_tables(tmp_path):
    step = {"model": "ViT-B/16", "framework": "ours", "ms": 171.26, "mfu": 0.3141, "batch": 1024}
    lost = {"model": "ViT-L/14", "framework": "open_clip", "failed": "OutOfMemoryError: 1 | 2"}
    pieces = {
        "step-b16": {"rows": [step]},
        "step-l14": {"rows": [lost], "failed": "stopped after 240 s", "scale": "tiny"},
        "tests": {"rows": [{"file": "a.py", "passed": 3, "skipped": {"test_x": "no <gpu>"}}]},
    }
    for day in ("2026-11-01", "2026-12-24"):
        found = {"machine": {"device": f"H200 of {day}", "driver": None}, "pieces": pieces}
        (tmp_path / f"nvidia-h200-{day}.json").write_text(json.dumps(found))
    page = RENDERED["page"](tmp_path)
    assert page.index("## nvidia-h200-2026-12-24") < page.index("## nvidia-h200-2026-11-01")
    assert "device H200 of 2026-12-24." in page and "driver" not in page
    assert "| ViT-B/16 | ours | 1,024 | 171.3 | 31.4% |  |" in page
    assert "| ViT-L/14 | open_clip |  |  |  | OutOfMemoryError: 1 \\| 2 |" in page
    assert "Ended early: stopped after 240 s" in page and "tiny scale" in page
    assert "| a.py | 3 | test_x: no \\<gpu> |" in page
    assert page.count("Not measured yet.") == 2 * 4


@pytest.mark.parametrize("path", sorted(Path("docs/results/gpu").glob("*.json")), ids=str)
def test_checked_in_results_are_of_a_gpu_at_full_scale(path):
    found = json.loads(path.read_text())
    assert found["machine"]["device"] != "cpu" and found["machine"]["commit"]
    assert {part["scale"] for part in found["pieces"].values()} == {"full"}
