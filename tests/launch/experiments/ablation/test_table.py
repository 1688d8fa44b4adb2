"""The record of an ablation from results made up here: every number by hand or by numpy."""

import numpy as np
import pytest
from fake_runs import Page
from scipy import stats

from counterpoint.launch.experiments.ablation.plan import Plan, Subset
from counterpoint.launch.experiments.ablation.subsets import Bits
from counterpoint.launch.experiments.ablation.table import Results, make_table
from counterpoint.launch.reporting.ablation_page import render_page
from counterpoint.launch.reporting.ablation_sections import render_markdown
from counterpoint.train.evaluation.outcomes import Stored

IN, SHIFT = "s/in/top1", "s/shift/top1"
POOL, ITEMS = 1000, 150
ACCURACY = {"pool": 0.6, "good": 0.62, "bad": 0.3, "weights": 0.6, "random_500": 0.45}


def bits(size):
    member = np.arange(POOL) < size
    return Bits(size, np.packbits(member), "")


SUBSETS = [
    Subset("pool", "pool", POOL, None, bits(POOL)),
    Subset("good", "curation", 500, "random_500", bits(500)),
    Subset("bad", "curation", 499, "random_500", bits(499)),
    Subset("weights", "curation", POOL, "pool", bits(POOL)),
    Subset("random_500", "random", 500),
]


def plan(**changes):
    named = {"in_distribution": "in/top1", "shift": "shift/top1"}
    values = {"evaluations": named} | changes
    return Plan("made-up", 4000, [0, 1, 2], SUBSETS, [], POOL, **values)


def results(with_outcomes=True, seeds=(0, 1, 2), items="aa"):
    rng, records, outcomes = np.random.default_rng(0), {}, {}
    for name, accuracy in ACCURACY.items():
        for seed in seeds:
            found = {}
            for metric, less in ((IN, 0.0), (SHIFT, 0.1)):
                values = (rng.random(ITEMS) < accuracy - less).astype(float)
                found[metric] = Stored(values, np.ones(ITEMS), items + metric.encode().hex())
            final = {metric: float(each.values.mean()) for metric, each in found.items()}
            records[name, seed] = {
                "final": final | {"loss": 1.0}, "seconds": 10.0 + seed, "cpu_seconds": 20.0,
                "device": "cpu", "world_size": 1, "epochs": 4.0,
                "history": {"samples": [1990, 4000], IN: [0.2, 0.6], SHIFT: [0.15, 0.5]},
            }  # fmt: skip
            outcomes[name, seed] = found if with_outcomes else {}
    return Results(records, outcomes)


def means(made, metric):
    return np.array([[made.records[n, s]["final"][metric] for s in range(3)] for n in ACCURACY])


def test_rows_hold_size_compute_and_spread():
    made = results()
    table = make_table(plan(), made, 50)
    good = table["rows"][1]
    values = [made.records["good", seed]["final"][IN] for seed in range(3)]
    assert (good["share"], good["epochs"], good["seconds"], good["device_seconds"]) == (
        *(0.5, 4.0, 11.0, 20.0),
    )
    assert good["evaluations"][IN]["mean"] == pytest.approx(np.mean(values))
    assert good["evaluations"][IN]["std"] == pytest.approx(np.std(values, ddof=1))
    assert table["metrics"] == [IN, SHIFT] and table["missing"] == 0
    assert table["overlap"]["good"]["bad"] == {"jaccard": 499 / 500, "share": 499 / 500}
    assert set(table["overlap"]) == {"good", "bad", "weights"}


def test_curations_are_compared_with_their_control_and_with_the_pool():
    made = results()
    table = make_table(plan(), made, 2000)
    rows = table["comparisons"][IN]
    pairs = [("good", "random_500"), ("bad", "random_500"), ("weights", "pool")]
    # Each family is corrected by itself; the one whose control is the pool is in the first.
    assert [(row["run"], row["against"]) for row in rows] == [
        *pairs,
        *(("good", "pool"), ("bad", "pool")),
    ]
    by_seed = means(made, IN)
    assert rows[0]["value"] == pytest.approx((by_seed[1] - by_seed[4]).mean())
    assert rows[0]["num_items"] == ITEMS and rows[0]["num_seeds"] == 3
    assert rows[0]["t"][0] < rows[0]["value"] < rows[0]["t"][1]
    for family in (rows[:3], rows[3:]):
        order = sorted(family, key=lambda row: row["p"])
        assert order[0]["p_holm"] == pytest.approx(min(1, len(family) * order[0]["p"]))
    text = render_markdown(table)
    assert f"| good | random_500 | **+{100 * rows[0]['value']:.1f}** |" in text
    assert f"| bad | random_500 | **{100 * rows[1]['value']:.1f}** |" in text
    short = text.partition("## In short")[2].partition("\n## ")[0].splitlines()
    (line,) = [line for line in short if line.startswith("| good |")]
    p_holm = "< 0.001" if rows[0]["p_holm"] < 0.001 else f"{rows[0]['p_holm']:.3f}"
    mean, spread = 100 * by_seed[1].mean(), 100 * by_seed[1].std(ddof=1)
    cells = ["500", "random_500", f"{mean:.1f}% ± {spread:.1f}"]
    cells.append(f"{100 * rows[0]['value']:+.1f} ({p_holm})")
    assert line.startswith(f"| good | {' | '.join(cells)} |") and line.count("|") == 9
    page = Page(render_page(table))
    assert sum(tag == "svg" for tag, _ in page.tags) == 5
    cells = [attrs.get("class") for tag, attrs in page.tags if tag == "td"]
    assert "better" in cells and "worse" in cells


def test_without_outcomes_seeds_alone_are_compared():
    made = results(with_outcomes=False)
    row = make_table(plan(), made, 50)["comparisons"][IN][0]
    by_seed = means(made, IN)
    rest = by_seed - by_seed.mean(1, keepdims=True) - by_seed.mean(0) + by_seed.mean()
    square, dof = (rest**2).sum() / 8, 8
    reach = stats.t.ppf(0.975, dof) * (2 * square / 3) ** 0.5
    assert row["t"] == pytest.approx((row["value"] - reach, row["value"] + reach))
    own = stats.ttest_rel(by_seed[1], by_seed[4])
    assert row["own_p"] == pytest.approx(own.pvalue)
    assert (row["num_items"], row["bootstrap"], row["over_items"]) == (0, None, None)
    assert "Outcomes of single items are not known" in render_markdown(make_table(plan(), made, 9))


def test_one_seed_marks_nothing():
    table = make_table(plan(), results(seeds=(1,)), 500)
    assert table["missing"] == 10
    row = table["comparisons"][IN][0]
    assert row["t"] is None and row["p"] is None and row["bootstrap"] is None
    assert row["over_items"][0] < row["value"] < row["over_items"][1]
    text = render_markdown(table)
    assert "**" not in text and "One seed: how far another training" in text
    assert "| Subset | Against | Difference | Items only | Seeds | Items |" in text
    line = next(line for line in text.splitlines() if line.startswith("| good | 500 | random_500"))
    assert "(" not in line and "of one seed, which cannot tell" in text
    assert "runs without a result: 10" in text
    page = Page(render_page(table)).said
    assert "95% intervals, over test items alone" in page and "standard deviation" not in page


def test_effective_robustness_is_above_the_line_of_pool_and_random_runs():
    made = results()
    table = make_table(plan(baseline=[2000]), made, 400)
    found = table["robustness"]
    x, y = (means(made, metric)[[0, 4]].ravel() for metric in (IN, SHIFT))
    x, y = np.append(x, [0.2] * 3), np.append(y, [0.15] * 3)  # on the way: 1,990 is near 2,000

    def logit(p):
        return np.log(p / (1 - p))

    slope, intercept = np.polyfit(logit(x), logit(y), 1)
    assert found["line"]["slope"] == pytest.approx(slope)
    assert found["line"]["num_points"] == 9
    own_x, own_y = (means(made, metric)[1] for metric in (IN, SHIFT))
    expected = (own_y - 1 / (1 + np.exp(-(slope * logit(own_x) + intercept)))).mean()
    rows = {row["run"]: row for row in found["rows"]}
    assert rows["good"]["effective"] == pytest.approx(expected)
    assert rows["good"]["interval"][0] < expected < rows["good"]["interval"][1]
    assert rows["good"]["drop"] == pytest.approx((own_x - own_y).mean())
    assert rows["good"]["extrapolated"] == (not x.min() <= own_x.mean() <= x.max())
    short = render_markdown(table).partition("## In short")[2].partition("\n## ")[0]
    starred = {line.split(" | ")[0][2:] for line in short.splitlines() if line.endswith("* |")}
    assert starred == {name for name, row in rows.items() if row["extrapolated"]} != set()
    assert "A star: beyond the accuracies" in short


def test_without_three_baseline_runs_there_is_no_line():
    made = results(seeds=(0,))
    table = make_table(plan(), made, 20)
    assert table["robustness"]["line"] is None
    assert table["robustness"]["rows"][0]["effective"] is None
    assert "There is no line" in render_markdown(table)


def test_runs_that_were_measured_on_other_items_are_refused():
    made = results()
    other = results(items="bb").outcomes
    outcomes = {**made.outcomes, ("bad", 1): other["bad", 1]}
    with pytest.raises(ValueError, match="measured on different items"):
        make_table(plan(), Results(made.records, outcomes), 5)


def test_a_measure_that_one_run_lacks_is_said():
    made = results()
    final = made.records["bad", 1]["final"]
    made.records["bad", 1]["final"] = final | {SHIFT: None}  # not finite
    table = make_table(plan(evaluations={}), made, 5)
    assert table["metrics"] == [IN] and table["left_out"] == {SHIFT: "bad-1"}
    assert "Left out, as a run has no such number: shift/top1 (bad-1)." in render_markdown(table)
    assert make_table(plan(), results(), 5)["left_out"] == {}
