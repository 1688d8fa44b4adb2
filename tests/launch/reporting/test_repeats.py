"""What is shown once: measures that equal others in every row, and curves that never move."""

import json

import pytest
from fake_runs import Page

from counterpoint.launch.commands.report import write_report
from counterpoint.launch.reporting.panels import evaluation_panels
from counterpoint.launch.reporting.repeats import constants, repeated
from counterpoint.launch.reporting.runs import read_run, read_runs

TOP1, MEAN = "emoji/heldout/top1", "emoji/heldout/mean_per_class_recall"
RECALL, OTHER = "emoji/find/image_to_text_recall@1", "emoji/gender/top1"


def write(folder, rows):
    """A run whose rows are given; row n is of step n."""
    folder.mkdir()
    lines = [json.dumps({"step": n, "wall": n} | row) for n, row in enumerate(rows, start=1)]
    (folder / "metrics.jsonl").write_text("".join(line + "\n" for line in lines))
    return str(folder)


def values(top1, mean, recall, other):
    return {TOP1: top1, MEAN: mean, RECALL: recall, OTHER: other}


def test_equal_measures_are_found_and_near_ones_are_not(tmp_path):
    rows = [values(x, x + 1e-9, x, x + (x == 0.3) / 400) for x in (0.1, 0.2, 0.3)]
    run = read_run(write(tmp_path / "run", rows))
    assert repeated([run], [TOP1, MEAN, RECALL, OTHER]) == {MEAN: TOP1, RECALL: TOP1}
    panels = evaluation_panels([run])
    assert [[line.label for line in panel.lines] for panel in panels] == [["heldout", "gender"]]


def test_one_run_of_several_that_differs_keeps_a_measure(tmp_path):
    same = write(tmp_path / "a", [values(x, x, x, 1 - x) for x in (0.1, 0.2, 0.3)])
    other = write(tmp_path / "b", [values(x, x / 2, x, 1 - x) for x in (0.1, 0.2, 0.3)])
    assert repeated(read_runs([same, other]), [TOP1, MEAN, RECALL, OTHER]) == {RECALL: TOP1}


def test_few_values_are_equal_by_chance(tmp_path):
    run = read_run(write(tmp_path / "run", [values(0.25, 0.25, 0.25, 0.25)]))
    # Both means of one task are the same; another task or direction is not.
    assert repeated([run], [TOP1, MEAN, RECALL, OTHER]) == {MEAN: TOP1}
    back = RECALL.replace("image_to_text", "text_to_image")
    young = read_run(write(tmp_path / "young", [{RECALL: 0.25, back: 0.25}]))
    assert repeated([young], [RECALL, back]) == {}


def test_the_page_names_what_it_leaves_out(tmp_path):
    rows = [values(x, x, x, 1 - x) | {"phase": 0, "weight/infonce": 1.0, "loss": x, "noise": x}
            for x in (0.1, 0.2, 0.3)]  # fmt: skip
    page = Page(write_report([write(tmp_path / "run", rows)], suite="none").read_text())
    assert TOP1 in page.cells and not {MEAN, RECALL} & page.cells.keys()
    assert "the same: Zero-shot mean per class recall: heldout; R@1, image to text" in page.said
    assert "Constant: phase 0, weight/infonce 1." in page.said
    figures = [a["aria-label"] for tag, a in page.tags if tag == "svg"]
    assert not any(name in label for label in figures for name in ("phase", "weight"))
    assert any(label.startswith("noise") for label in figures)


def test_constants_of_several_runs(tmp_path):
    a = write(tmp_path / "a", [{"flat": 1.0, "own": 0.5, "short": 3, "moves": n} for n in range(4)])
    b = write(tmp_path / "b", [{"flat": 1.0, "own": 0.25, "moves": 2} for n in range(4)])
    runs = read_runs([a, b])
    found = {each.name: each.text for each in constants(runs, ["flat", "own", "moves"])}
    assert found == {"flat": "1", "own": "0.5 / 0.25"}
    young = read_run(write(tmp_path / "young", [{"flat": 1.0}] * 2))
    assert constants([young], ["flat"]) == []


@pytest.mark.parametrize("last", [5, 20])
def test_a_last_row_of_few_steps_is_not_drawn(tmp_path, last):
    from counterpoint.launch.reporting.panels import training_panels

    folder = tmp_path / "run"
    folder.mkdir()
    steps = [20, 40, 60, 60 + last]
    rows = [{"step": s, "wall": s, "samples": 8 * s, "pairs_per_s": 100.0 + s, "loss": 1 / s}
            for s in steps]  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    panels = {panel.title: panel.lines[0] for panel in training_panels([read_run(folder)])}
    assert panels["Throughput"].x.tolist() == (steps if last == 20 else steps[:3])
    assert panels["Loss"].x.tolist() == steps
    seconds = sum(8 * n / (100.0 + s) for n, s in zip((20, 20, 20, last), steps, strict=True))
    assert panels["Throughput"].final == f"{8 * steps[-1] / seconds:.4g}"
    assert panels["Throughput"].final_is == "mean"
