"""The method catalogue: rows and verdicts, and that the page in docs/ is up to date."""

import statistics

import numpy as np
import pytest
import scipy.stats
from catalogue_case import (
    CLAIM,
    CLIP,
    CLIP_SCORES,
    COLUMNS,
    OTHER,
    TOP1,
    catalogue_in,
    write_result,
)

from counterpoint.launch.experiments.catalogue.page import render, render_file
from counterpoint.launch.experiments.run_traces import pack
from counterpoint.launch.run.provenance import ROOT
from counterpoint.train.evaluation.outcomes import Stored


def write_seeds(folder, scores, **changes):
    for seed, top1 in enumerate(scores):
        write_result(folder, seed, top1, **changes)


def render_in(folder, **methods) -> str:
    return render(catalogue_in(folder, **methods), folder / "results")["methods.md"]


def cells_of(page: str, start: str) -> list[str]:
    (line,) = [line for line in page.splitlines() if line.startswith(f"| {start} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def verdict_of(page: str) -> list[str]:
    """Difference and verdict of the other run."""
    return cells_of(page, "[Another](#another)")[4:6]


def test_mean_and_deviation_over_seeds(tmp_path):
    scores = [0.35, 0.38, 0.36]
    write_seeds(tmp_path, scores)
    page = render_in(tmp_path)
    mean, deviation = statistics.fmean(scores), statistics.stdev(scores)
    assert cells_of(page, "[CLIP](#clip)") == [
        *["[CLIP](#clip)", "`clip`", f"{100 * mean:.1f}% ± {100 * deviation:.1f}%"],
        *["", "", "", "1.00", "3"],
    ]
    section = page[page.index("## CLIP") :]
    numbers, where = [line for line in section.splitlines() if line.startswith("| `short/clip` |")]
    assert numbers == "| `short/clip` | 36.3% (35.0, 38.0, 36.0) | 50.0% (50.0, 50.0, 50.0) |"
    measured = "2 cores, Abacus; bf16-mixed; 2026-01-01 to 2026-01-03; 01234567"
    assert where == f"| `short/clip` | `emoji_clip_short` | 40,000 | 1 min 41 s | {measured} |"


def test_a_single_seed_has_no_deviation(tmp_path):
    write_result(tmp_path, 0)
    cells = cells_of(render_in(tmp_path), "[CLIP](#clip)")
    assert (cells[2], cells[7]) == ("35.0%", "1")


def test_runs_without_results_are_listed(tmp_path):
    page = render_in(tmp_path)
    assert "Not run yet: `short/clip`, `standard/clip`." in page
    assert "- **Runs:** none has been measured yet." in page


def test_results_of_an_older_configuration_are_left_out_and_counted(tmp_path):
    write_result(tmp_path, 0, top1=0.9, identity={"values": {"optim.lr": 2}, "chosen": []})
    write_result(tmp_path, 1)
    page = render_in(tmp_path)
    assert cells_of(page, "[CLIP](#clip)")[2] == "35.0%"
    assert "short/clip: 1 result(s) of an older configuration are left out." in page


def test_a_result_outside_the_catalogue_is_shown_all_the_same(tmp_path):
    write_result(tmp_path, 0, run="secret", sweep="night")
    page = render_in(tmp_path)
    assert "## Sweep `night`" in page
    assert cells_of(page, "(not in the catalogue)")[1:3] == ["`secret`", "35.0%"]


def test_uncommitted_changes_and_missing_metrics_are_told(tmp_path):
    write_result(tmp_path, 0, commit={"revision": "f" * 40, "dirty": True}, final={})
    page = render_in(tmp_path)
    assert cells_of(page, "[CLIP](#clip)")[2] == "-"
    assert "ffffffff changed |" in page


def test_the_texts_of_a_method(tmp_path):
    write_result(tmp_path, 0)
    write_result(tmp_path, 0, run="other")
    found = {"found": "As | expected.", "elsewhere": {"the paper": ["31.4%"]}}
    page = render_in(tmp_path, other=OTHER | found)
    section = page[page.index("## CLIP") : page.index("## Another")]
    assert "Both | directions." in section
    assert "- **Paper:** Radford et al. 2021" in section
    assert "- **Found:** nothing yet." in section
    section = page[page.index("## Another") :]
    claim = "`other` against `clip`: More accurate. *One seed: no verdict.*"
    assert f"- **Claim:** {claim}" in section
    assert "- **Not from these runs:** 31.4% (the paper)" in section


@pytest.mark.parametrize("key", ["title", "runs"])
def test_an_incomplete_method_is_refused(tmp_path, key):
    method = {k: v for k, v in CLIP.items() if k != key}
    with pytest.raises(ValueError, match=rf"clip\.yaml: the key {key} is missing"):
        render_in(tmp_path, clip=method)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"titel": "x"}, "unknown key titel"),
        ({"baseline": {"short/other": "short/clip"}}, r"unknown key baseline; write claims: \["),
        ({"claims": [CLAIM | {"claim": "up"}]}, "must be one of better, worse, as_good, nothing"),
        ({"claims": [CLAIM | {"against": "short/x"}]}, "names short/x, which is no run of any"),
        ({"claims": [CLAIM | {"run": "short/x"}]}, "about short/x, which is not among its runs"),
        ({"claims": [CLAIM | {"measure": "R@7"}]}, "no measure 'R@7'; give it under measures"),
        ({"claims": [CLAIM | {"says": ""}]}, "lacks says: what the paper says"),
        ({"claims": [CLAIM | {"why": ""}]}, "unknown key why of a claim"),
        ({"claims": ["short/clip"]}, "a claim is 'short/clip'; write {run: SWEEP/RUN"),
        ({"beside": ["short/y"]}, "names short/y, which is no run of any"),
    ],
)
def test_a_wrong_key_is_refused(tmp_path, change, said):
    with pytest.raises(ValueError, match=said):
        render_in(tmp_path, other=OTHER | change)


@pytest.mark.parametrize(
    ("scores", "claim", "word"),
    [
        # Paired by seed: a spread between seeds that both share says nothing.
        ((0.390, 0.409, 0.431), "better", "agrees"),
        ((0.390, 0.409, 0.431), "worse", "disagrees"),
        ((0.390, 0.409, 0.431), "as_good", "agrees"),
        ((0.390, 0.409, 0.431), "nothing", "nothing claimed: higher"),
        ((0.30, 0.32, 0.34), "better", "disagrees"),
        ((0.30, 0.32, 0.34), "worse", "agrees"),
        ((0.30, 0.32, 0.34), "as_good", "disagrees"),
        ((0.30, 0.32, 0.34), "nothing", "nothing claimed: lower"),
        # A mean of eight points, of which one seed has none.
        ((0.38, 0.52, 0.54), "better", "no difference seen"),
    ],
)
def test_a_verdict(tmp_path, scores, claim, word):
    write_seeds(tmp_path, CLIP_SCORES)
    write_seeds(tmp_path, scores, run="other")
    page = render_in(tmp_path, other=OTHER | {"claims": [CLAIM | {"claim": claim}]})
    difference, text = verdict_of(page)
    by_seed = np.subtract(scores, CLIP_SCORES)
    error = scipy.stats.sem(by_seed)
    if error > 1e-12:
        low, high = 100 * np.array(scipy.stats.t(2, by_seed.mean(), error).interval(0.95))
        assert difference == f"{100 * by_seed.mean():+.1f} [{low:+.1f}, {high:+.1f}]°"
    assert text == word
    assert f"| **{word}** | 1 | [Another](#another) {difference} |" in page
    # A method's own place in the table is that of its title, after the reference.
    assert page.index("| [CLIP](#clip) |") < page.index("| [Another](#another) |")


def test_seeds_are_paired_by_their_number(tmp_path):
    write_seeds(tmp_path, CLIP_SCORES)
    for seed, score in ((2, 0.43), (3, 0.99), (1, 0.41), (0, 0.395)):
        write_result(tmp_path, seed, score, run="other")
    difference, text = verdict_of(render_in(tmp_path, other=OTHER))
    assert difference.startswith("+1.2 [") and text == "agrees"


@pytest.mark.parametrize(("num", "text"), [(1, "one seed"), (2, "two seeds")])
def test_few_seeds_give_no_verdict(tmp_path, num, text):
    write_seeds(tmp_path, CLIP_SCORES)
    write_seeds(tmp_path, (0.9, 0.92)[:num], run="other")
    page = render_in(tmp_path, other=OTHER)
    assert verdict_of(page)[1] == f"{text}: no verdict"
    assert "| **no verdict** | 1 | [Another](#another)" in page


def test_what_cannot_be_seen_says_why_whatever_came_out(tmp_path):
    write_seeds(tmp_path, CLIP_SCORES)
    write_seeds(tmp_path, (0.1, 0.1, 0.1), run="other")
    claim = CLAIM | {"unseen": "it needs a billion pairs"}
    page = render_in(tmp_path, other=OTHER | {"claims": [claim]})
    assert verdict_of(page)[1] == "cannot be seen here"
    reason = "[Another](#another): it needs a billion pairs"
    assert f"| **cannot be seen here** | 1 | {reason} |" in page
    assert "*Cannot be seen here: it needs a billion pairs.*" in page


def test_collapsed_seeds_are_no_comparison(tmp_path):
    write_seeds(tmp_path, CLIP_SCORES)
    for seed in range(3):
        norm = 0.2 if seed == 0 else 4e-8
        write_result(tmp_path, seed, run="other", final={TOP1: 0.0, "grad_norm": norm})
    page = render_in(tmp_path, other=OTHER | {"claims": [CLAIM | {"claim": "worse"}]})
    assert verdict_of(page)[1] == "collapsed in 2 of 3 seeds"
    # Nor is a comparison with one that has collapsed.
    for seed in range(3):
        write_result(tmp_path, seed, run="other")
        write_result(tmp_path, seed, final={TOP1: 0.0, "grad_norm": 1e-9})
    page = render_in(tmp_path, other=OTHER)
    assert verdict_of(page)[1] == "baseline collapsed in 3 of 3 seeds"


def write_outcomes_of(folder, run, rows, items="same"):
    for seed, row in enumerate(rows):
        stored = Stored(row.astype(float), np.ones(len(row)), items)
        packed = pack({TOP1: stored})
        write_result(folder, seed, float(row.mean()), run=run, outcomes=packed)


def test_with_outcomes_seeds_and_items_are_in_the_interval(tmp_path):
    """All seeds agree on a difference that lies in three of forty items: other items have none."""
    base = np.zeros((3, 40), dtype=bool)
    base[:, ::2] = True
    better = base.copy()
    better[:, [1, 3, 5]] = True
    write_outcomes_of(tmp_path, "clip", base)
    write_outcomes_of(tmp_path, "other", better)
    difference, text = verdict_of(render_in(tmp_path, other=OTHER))
    error = np.std([1.0] * 3 + [0.0] * 37, ddof=1) / 40**0.5
    low, high = 100 * np.array(scipy.stats.norm(0.075, error).interval(0.95))
    assert difference == f"+7.5 [{low:+.1f}, {high:+.1f}]"
    assert text == "no difference seen" if low < 0 else "agrees"
    # Of other items nothing can be paired: over seeds alone.
    write_outcomes_of(tmp_path, "other", better, items="others")
    assert verdict_of(render_in(tmp_path, other=OTHER))[0] == "+7.5 [+7.5, +7.5]°"


def test_a_measure_of_its_own(tmp_path):
    attack = "emoji_attacks/names/success"
    for run, values in (("clip", (0.5, 0.52, 0.54)), ("other", (0.3, 0.33, 0.34))):
        for seed, value in enumerate(values):
            write_result(tmp_path, seed, run=run, final={attack: value})
    own = {"measures": [{"title": "Attacks that succeed", "metrics": [attack]}]}
    page = render_in(tmp_path, other=OTHER | own)
    cells = cells_of(page, "[Another](#another)")
    assert cells[1] == "`other` against `clip`: Attacks that succeed"
    # Less of them is better.
    assert cells[4].startswith("-19.7 [") and cells[5] == "agrees"
    section = page[page.index("## Another") :]
    assert "| Run | Attacks that succeed |" in section


def test_what_a_claim_reads_is_named_before_it_was_measured(tmp_path):
    write_seeds(tmp_path, CLIP_SCORES, run="other")
    measures = [{"title": title, "metrics": [f"emoji/{title}/top1"]} for title in ("tone", "group")]
    claims = [CLAIM | {"measure": title} for title in ("tone", "group")]
    page = render_in(tmp_path, other=OTHER | {"measures": measures, "claims": claims})
    rows = [line.split("|")[2:7] for line in page.splitlines() if line.startswith("| [Another]")]
    compared = [" `other` against `clip`: tone ", " `other` against `clip`: group "]
    assert rows == [[each, " - ", "  ", "  ", " not measured "] for each in compared]


def test_a_sweeps_own_measures_come_first_and_have_a_table(tmp_path):
    measure = {"title": "R@1", "metrics": ["emoji/retrieval/text_to_image_recall@1"]}
    columns = COLUMNS | {"sweeps": {"short": {"title": "Short runs", "measures": [measure]}}}
    write_seeds(tmp_path, CLIP_SCORES)
    page = render_in(tmp_path, columns=columns)
    assert cells_of(page, "[CLIP](#clip)")[1:3] == ["`clip`", "50.0% ± 0.0%"]
    assert "| Run | R@1 |\n| --- | ---: |\n| `clip` | 50.0% ± 0.0% |" in page


def test_the_cost_of_a_pair_is_relative_to_the_sweeps_reference(tmp_path):
    for seed, (seconds, others) in enumerate([(100.0, 70.0), (102.0, 60.0), (300.0, 61.0)]):
        write_result(tmp_path, seed, seconds=seconds, samples=40000)
        write_result(tmp_path, seed, run="other", seconds=others, samples=20000)
    page = render_in(tmp_path, other=OTHER)
    assert cells_of(page, "[CLIP](#clip)")[6] == "1.00"
    assert cells_of(page, "[Another](#another)")[6] == f"{61 * 2 / 102:.2f}"


def test_the_cost_is_processor_time_without_an_accelerator_and_the_clock_with_one(tmp_path):
    machine = {"cpu": "Abacus", "cores": 2, "python": "3", "torch": "2"}
    for accelerators, cost in (([], "3.00"), (["Engine"], "0.50")):
        at = {"machine": machine | {"accelerators": accelerators}}
        write_result(tmp_path, 0, seconds=100.0, cpu_seconds=20.0, **at)
        write_result(tmp_path, 0, run="other", seconds=50.0, cpu_seconds=60.0, **at)
        page = render_in(tmp_path, other=OTHER)
        assert cells_of(page, "[Another](#another)")[6] == cost


def test_what_a_sweep_takes_is_said(tmp_path):
    for seed, clock in enumerate((100.0, 200.0)):
        write_result(tmp_path, seed, seconds=clock)
        write_result(tmp_path, seed, run="other", seconds=9e9, cpu_seconds=40.0 + seed)
    page = render_in(tmp_path, other=OTHER)
    assert "`counterpoint sweep short` repeats these 4 runs: 6 min 21 s of the training" in page
    assert "The longest row, `clip`, took 5 min 00 s, all seeds." in page


def test_a_difference_between_precisions_is_marked(tmp_path):
    write_seeds(tmp_path, (0.4, 0.5, 0.6))
    write_seeds(tmp_path, (0.5, 0.6, 0.7), run="other")
    assert "≠" not in verdict_of(render_in(tmp_path, other=OTHER))[0]
    plain = {"values": {"optim.lr": 1, "trainer.precision": "32-true"}, "chosen": []}
    write_result(tmp_path, 1, 0.6, run="other", identity=plain)
    difference = verdict_of(render_in(tmp_path, other=OTHER))[0]
    assert difference.endswith("≠")


def test_results_of_an_older_configuration_are_told(tmp_path):
    write_result(tmp_path, 0)
    columns = catalogue_in(tmp_path) / "columns.yaml"
    text = columns.read_text()
    columns.write_text(f"{text}\nolder: {{short/clip: half the batch}}\n")
    page = render(columns.parent, tmp_path / "results")["methods.md"]
    assert "\n\nOf an older configuration: `clip` (half the batch).\n\n" in page
    columns.write_text(f"{text}\nolder: {{short/x: half the batch}}\n")
    with pytest.raises(ValueError, match="older names short/x, which is no run of any method"):
        render(columns.parent, tmp_path / "results")


def test_a_file_that_is_no_result_is_refused(tmp_path):
    write_result(tmp_path, 0)
    (tmp_path / "results" / "short" / "x.json").write_text("{")
    with pytest.raises(ValueError, match=r"x\.json is no result"):
        render_in(tmp_path)


def test_the_page_is_written_beside_the_catalogue(tmp_path):
    page = render_in(tmp_path)
    assert render_file(tmp_path / "methods", tmp_path / "results").read_text() == page


def test_the_page_in_docs_is_up_to_date():
    docs = ROOT / "docs"
    for name, content in render(docs / "methods", docs / "results").items():
        assert (docs / name).read_text(encoding="utf-8") == content, (
            f"{name} is not: run `counterpoint sweep --render`"
        )
