"""Figures in the catalogue's texts: which are read, which a result supports, and those of docs/."""

import json

import pytest
import yaml

from counterpoint.launch.experiments.catalogue.figures_quoted import figures, unsupported
from counterpoint.launch.experiments.catalogue.records import current, read_groups
from counterpoint.launch.experiments.catalogue.tables import Results
from counterpoint.launch.experiments.catalogue.texts import read_catalogue
from counterpoint.launch.run.provenance import ROOT

TOP1 = "emoji/heldout/top1"
COLUMNS = {"columns": [{"title": "Held out", "metrics": [TOP1]}]}
METHOD = {
    "title": "Another",
    "objective": "other",
    "what": "Better.",
    "runs": {"short/other": "a", "short/clip": "b"},
    "claims": [{"run": "short/other", "against": "short/clip", "claim": "nothing"}],
}
SCORES = {"clip": (0.46, 0.4875, 0.45125), "other": (0.4875, 0.48, 0.47625)}


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("12.5% of ViT-B/16 in 3 seeds", [("12.5%", "%")]),
        ("+3.6, -1.0 and +1.8 points", [(t, "points") for t in ("+3.6", "-1.0", "+1.8")]),
        ("10.8, 11 and 12% there", [("10.8%", "%"), ("11%", "%"), ("12%", "%")]),
        ("5 to 11 points", [("5", "points"), ("11", "points")]),
        ("a loss of 0.32295 = 2 ln(127) / 30", [("0.32295", "")]),
        ("norms of 1e-6, 48,000 pairs", [("1e-6", ""), ("48,000", "")]),
        ("2.3 times the cost, 604 s, R@1", [("2.3", "times"), ("604", "s")]),
        ("exp(-1), 2026-11-22, docs/decisions.md 13.", []),
    ],
)
def test_which_numbers_are_figures(text, read):
    assert [(figure.text, figure.unit) for figure in figures(text)] == read


def told(folder, found, **changes) -> list[str]:
    for name, scores in SCORES.items():
        for seed, top1 in enumerate(scores):
            record = {
                "sweep": "short",
                "run": name,
                "config": name,
                "seed": seed,
                "samples": 48000,
                "identity": {"values": {"optim.init_args.eps": 1e-6}, "chosen": []},
                "seconds": 100.0,
                "cpu_seconds": 46.0 if name == "other" else 20.0,
                "date": "2026-01-01T10:00:00+00:00",
                "machine": {},
                "overrides": {},
                "final": {TOP1: top1, "loss/infonce": 0.8863, "grad_norm": 1.3e-7},
            }
            path = folder / "results" / "short" / f"{name}-seed{seed}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(record))
    texts = folder / "methods"
    texts.mkdir(exist_ok=True)
    (texts / "columns.yaml").write_text(yaml.safe_dump(COLUMNS))
    (texts / "other.yaml").write_text(yaml.safe_dump(METHOD | {"found": found} | changes))
    (folder / "source.md").write_text("The start had 41.8%.")
    groups = read_groups(folder / "results")
    catalogue = read_catalogue(texts)
    results = Results(catalogue, {run: current(records) for run, records in groups.items()})
    return unsupported(results, catalogue.methods[0], folder)


@pytest.mark.parametrize(
    "text",
    [
        "48.8, 48.0 and 47.6% where CLIP has 46.6%",  # seeds, and a mean
        "+2.8, -0.8 and +2.5 points, 1.5 points on average",
        "48.1% ± 0.6%",
        "2.3 times the cost, 46 s, 48,000 pairs",
        "a loss of 0.886, a norm of 1e-7, an epsilon of 1e-6",
    ],
)
def test_what_the_results_say_may_be_quoted(tmp_path, text):
    assert told(tmp_path, text) == []


@pytest.mark.parametrize(
    ("text", "figure"),
    [
        ("+2.9 points", "+2.9 points"),  # a difference that the results have left behind
        ("48.9%", "48.9%"),
        ("0.8 points", ""),  # of one seed, whichever its sign
        ("+0.8 points", "+0.8 points"),
        ("2.8%", "2.8%"),  # a difference is no share
        ("48.1 points", "48.1 points"),  # and a share no difference
        ("2.5 times the cost", "2.5 times"),
        ("47,000 pairs", "47,000"),
        ("a loss of 0.885", "0.885"),
        ("a norm of 2e-7", "2e-7"),
    ],
)
def test_what_no_result_says_is_told(tmp_path, text, figure):
    sentence = f"other.yaml: {figure} is no figure of its runs' results"
    assert told(tmp_path, text) == ([sentence] if figure else [])


def test_figures_from_elsewhere_have_a_source_that_has_them(tmp_path):
    found = "41.8% at the start, 99.9% in the paper"
    elsewhere = {"source.md": ["41.8%"], "the paper": ["99.9%"]}
    assert told(tmp_path, found, elsewhere=elsewhere) == []
    assert told(tmp_path, found, elsewhere={"source.md": ["41.8%", "99.9%"]}) == [
        "other.yaml: 99.9% is not in source.md"
    ]
    assert told(tmp_path, "41.8% at the start", elsewhere=elsewhere) == [
        "other.yaml: 99.9% is listed under elsewhere and not in the text"
    ]


@pytest.mark.parametrize(
    ("anchor", "has_it"),
    [("", True), ("#how-it-starts", True), ("#the-end", False), ("#no", False)],
)
def test_a_source_may_be_a_section(tmp_path, anchor, has_it):
    (tmp_path / "page.md").write_text("# Page\n\n## How it starts\n\n41.8%\n\n## The end\n\n7%\n")
    source = f"docs/page.md{anchor}"
    sentences = told(tmp_path, "41.8% at the start", elsewhere={source: ["41.8%"]})
    assert sentences == ([] if has_it else [f"other.yaml: 41.8% is not in {source}"])


DOCS = ROOT / "docs"
CATALOGUE = read_catalogue(DOCS / "methods")


@pytest.fixture(scope="module")
def results():
    groups = read_groups(DOCS / "results")
    return Results(CATALOGUE, {run: current(records) for run, records in groups.items()})


@pytest.mark.parametrize("method", CATALOGUE.methods, ids=lambda method: method.stem)
def test_the_catalogue_quotes_what_its_results_say(results, method):
    assert unsupported(results, method, DOCS) == []
