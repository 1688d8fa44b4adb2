"""The method catalogue: the rows, and that the page in docs/ is up to date."""

import json
import statistics

import pytest
import yaml

from counterpoint.launch.experiments.catalogue import render, render_file
from counterpoint.launch.run.provenance import ROOT

COLUMNS = {
    "columns": [
        {"title": "Held out", "metrics": ["emoji/heldout_a/top1", "emoji/heldout_b/top1"]},
        {"title": "R@1", "metrics": ["emoji/retrieval/text_to_image_recall@1"]},
    ]
}
CLIP = {
    "title": "CLIP",
    "objective": "softmax",
    "what": "Both | directions.",
    "paper": "Radford et al. 2021",
    "expectation": "A reference.",
    "runs": {"short/clip": "emoji_clip_short", "standard/clip": "emoji_clip"},
    "place": 0,
}
OTHER = {
    "title": "Another",
    "objective": "other",
    "what": "Better.",
    "runs": {"short/other": "emoji_other"},
    "baseline": {"short/other": "short/clip"},
    "direction": "up",
}


def write_result(folder, seed, top1=(0.4, 0.3), run="clip", **changes):
    final = {
        "emoji/heldout_a/top1": top1[0],
        "emoji/heldout_b/top1": top1[1],
        "emoji/retrieval/text_to_image_recall@1": 0.5,
    }
    record = {
        "sweep": "short",
        "run": run,
        "config": "emoji_clip_short",
        "seed": seed,
        "overrides": {},
        "identity": {"values": {"optim.lr": 1, "trainer.precision": "bf16-mixed"}, "chosen": []},
        "commit": {"revision": "0123456789abcdef", "dirty": False},
        "machine": {"cpu": "Abacus", "cores": 2, "accelerators": [], "python": "3", "torch": "2"},
        "date": f"2026-01-0{seed + 1}T10:00:00+00:00",
        "seconds": 100.0 + seed,
        "samples": 40000,
        "final": final,
    } | changes
    path = folder / "results" / record["sweep"] / f"{run}-seed{seed}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record))


def render_in(folder) -> str:
    return render(catalogue_in(folder), folder / "results")


def catalogue_in(folder, **methods):
    catalogue = folder / "methods"
    catalogue.mkdir(exist_ok=True)
    for name, texts in ({"columns": COLUMNS, "clip": CLIP} | methods).items():
        (catalogue / f"{name}.yaml").write_text(yaml.safe_dump(texts))
    return catalogue


def cells_of(page: str, run: str) -> list[str]:
    (line,) = [line for line in page.splitlines() if f"| {run} |" in line]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_mean_and_deviation_over_seeds(tmp_path):
    scores = [(0.40, 0.30), (0.44, 0.32), (0.36, 0.34)]
    for seed, top1 in enumerate(scores):
        write_result(tmp_path, seed, top1)
    cells = cells_of(render_in(tmp_path), "short/clip")
    means = [sum(pair) / 2 for pair in scores]
    mean, deviation = statistics.fmean(means), statistics.stdev(means)
    assert cells == [
        *["CLIP", "softmax", "short/clip", "`emoji_clip_short`"],
        f"{100 * mean:.1f}% ± {100 * deviation:.1f}%",
        *["50.0% ± 0.0%", "", "", "3", "40,000", "1 min 41 s"],
        "2 cores, Abacus; bf16-mixed; 2026-01-01 to 2026-01-03; 01234567",
    ]


def test_a_single_seed_has_no_deviation(tmp_path):
    write_result(tmp_path, 0)
    assert cells_of(render_in(tmp_path), "short/clip")[4:9] == ["35.0%", "50.0%", "", "", "1"]


def test_a_run_without_results_says_not_run(tmp_path):
    cells = cells_of(render_in(tmp_path), "standard/clip")
    assert cells[3:9] == ["`emoji_clip`", "not run", "", "", "", "0"]


def test_results_of_an_older_configuration_are_left_out_and_counted(tmp_path):
    write_result(tmp_path, 0, top1=(0.9, 0.9), identity={"values": {"optim.lr": 2}, "chosen": []})
    write_result(tmp_path, 1)
    page = render_in(tmp_path)
    assert cells_of(page, "short/clip")[4] == "35.0%"
    assert "short/clip: 1 result(s) of an older configuration are left out." in page


def test_a_result_outside_the_catalogue_is_shown_all_the_same(tmp_path):
    write_result(tmp_path, 0, run="secret")
    assert cells_of(render_in(tmp_path), "short/secret")[0] == "(not in the catalogue)"


def test_uncommitted_changes_and_missing_metrics_are_told(tmp_path):
    write_result(tmp_path, 0, commit={"revision": "f" * 40, "dirty": True}, final={})
    cells = cells_of(render_in(tmp_path), "short/clip")
    assert cells[4:6] == ["-", "-"]
    assert cells[-1].endswith("ffffffff changed")


def test_the_texts_of_a_method(tmp_path):
    page = render_in(tmp_path)
    section = page[page.index("## CLIP") :]
    assert "Both | directions." in section
    assert "- **Paper:** Radford et al. 2021" in section
    assert "- **Found:** nothing yet." in section


@pytest.mark.parametrize("key", ["title", "runs"])
def test_an_incomplete_method_is_refused(tmp_path, key):
    method = {k: v for k, v in CLIP.items() if k != key}
    with pytest.raises(ValueError, match=rf"clip\.yaml: the key {key} is missing"):
        render(catalogue_in(tmp_path, clip=method), tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"titel": "x"}, "unknown key titel"),
        ({"direction": "left"}, "direction must be one of"),
        ({"baseline": "short/clip"}, "baseline is .short/clip.; write"),
    ],
)
def test_a_wrong_key_is_refused(tmp_path, change, said):
    with pytest.raises(ValueError, match=said):
        render(catalogue_in(tmp_path, other=OTHER | change), tmp_path)


@pytest.mark.parametrize(
    ("scores", "direction", "said"),
    [
        ((0.50, 0.52, 0.54), "up", "+12.0 to short/clip, agrees"),
        ((0.30, 0.32, 0.34), "up", "-8.0 to short/clip, disagrees"),
        ((0.30, 0.32, 0.34), "none", "-8.0 to short/clip"),
        ((0.39, 0.41, 0.43), "up", "+1.0 to short/clip, within the spread"),
        ((0.50,), "up", "+10.0 to short/clip, one seed"),
    ],
)
def test_the_difference_to_a_baseline(tmp_path, scores, direction, said):
    for seed, top1 in enumerate((0.38, 0.40, 0.42)):
        write_result(tmp_path, seed, (top1, top1))
    for seed, top1 in enumerate(scores):
        write_result(tmp_path, seed, (top1, top1), run="other")
    page = render(
        catalogue_in(tmp_path, other=OTHER | {"direction": direction}), tmp_path / "results"
    )
    assert cells_of(page, "short/other")[6:8] == [said, ""]
    assert cells_of(page, "short/clip")[6:8] == ["", ""]
    assert page.index("| CLIP |") < page.index("| Another |")


def test_collapsed_seeds_are_no_comparison(tmp_path):
    for seed in range(3):
        write_result(tmp_path, seed)
        final = {"emoji/heldout_a/top1": 0.0, "emoji/heldout_b/top1": 0.0}
        norm = 0.2 if seed == 0 else 4e-8
        write_result(tmp_path, seed, run="other", final=final | {"grad_norm": norm})
    page = render(catalogue_in(tmp_path, other=OTHER | {"direction": "down"}), tmp_path / "results")
    against = cells_of(page, "short/other")[6]
    assert against == "-35.0 to short/clip, collapsed in 2 of 3 seeds"


def test_the_cost_of_a_pair_is_relative_to_clip_in_the_same_sweep(tmp_path):
    for seed, (seconds, others) in enumerate([(100.0, 70.0), (102.0, 60.0), (300.0, 61.0)]):
        write_result(tmp_path, seed, sweep="catalogue", seconds=seconds, samples=40000)
        changes = {"seconds": others, "samples": 20000}
        write_result(tmp_path, seed, run="other", sweep="catalogue", **changes)
    other = OTHER | {"runs": {"catalogue/other": "emoji_other"}}
    clip = CLIP | {"runs": {"catalogue/clip": "emoji_clip_short"}}
    page = render(catalogue_in(tmp_path, clip=clip, other=other), tmp_path / "results")
    assert cells_of(page, "catalogue/clip")[7] == "1.00"
    assert cells_of(page, "catalogue/other")[7] == f"{61 * 2 / 102:.2f}"


def test_a_student_with_a_teacher_costs_so_much_more_than_one_alone(tmp_path):
    for run, seconds in (("none", 100.0), ("other", 150.0)):
        write_result(tmp_path, 0, run=run, sweep="distillation", seconds=seconds)
    alone = CLIP | {"runs": {"distillation/none": "distill_none"}}
    other = OTHER | {"runs": {"distillation/other": "emoji_other"}}
    page = render(catalogue_in(tmp_path, clip=alone, other=other), tmp_path / "results")
    assert cells_of(page, "distillation/other")[7] == "1.50"


def test_the_cost_is_processor_time_without_an_accelerator_and_the_clock_with_one(tmp_path):
    clip = CLIP | {"runs": {"catalogue/clip": "emoji_clip_short"}}
    other = OTHER | {"runs": {"catalogue/other": "emoji_other"}}
    machine = {"cpu": "Abacus", "cores": 2, "python": "3", "torch": "2"}
    for accelerators, cost in (([], "3.00"), (["Engine"], "0.50")):
        at = {"sweep": "catalogue", "machine": machine | {"accelerators": accelerators}}
        write_result(tmp_path, 0, seconds=100.0, cpu_seconds=20.0, **at)
        write_result(tmp_path, 0, run="other", seconds=50.0, cpu_seconds=60.0, **at)
        page = render(catalogue_in(tmp_path, clip=clip, other=other), tmp_path / "results")
        assert cells_of(page, "catalogue/other")[7] == cost


def test_a_file_that_is_no_result_is_refused(tmp_path):
    write_result(tmp_path, 0)
    (tmp_path / "results" / "short" / "x.json").write_text("{")
    with pytest.raises(ValueError, match=r"x\.json is no result"):
        render_in(tmp_path)


def test_the_page_is_written_beside_the_catalogue(tmp_path):
    page = render_in(tmp_path)
    assert render_file(tmp_path / "methods", tmp_path / "results").read_text() == page


def test_a_further_text_ends_the_page(tmp_path):
    (catalogue_in(tmp_path) / "further.md").write_text("## More\n\nA picture.\n\n")
    assert render_in(tmp_path).endswith("\n\n## More\n\nA picture.\n")


def test_the_page_in_docs_is_up_to_date():
    docs = ROOT / "docs"
    expected = render(docs / "methods", docs / "results")
    assert (docs / "methods.md").read_text(encoding="utf-8") == expected, (
        "run `counterpoint sweep --render`"
    )
