"""Counted classes against loops over classes and captions, and cases by hand."""

import json
import random

import pyarrow.parquet as pq
import pytest
from helpers.filter_run import batch_of, run_filter, state_of
from helpers.score_table import make_table

from counterpoint.data.curate.filters.concepts.concept_counts import ConceptCounts
from counterpoint.data.curate.runner import Curation

CLASSES = {
    "crane": {"names": ["crane"], "without": ["bird", "water hole"]},
    "dog": ["dog", "hound"],
    "hot dog": "hot dog",
    "bighorn": "bighorn sheep or ram (animal)",
    "mouse": "mouse",
}
LEMMAS = {"cranes": "crane", "dogs": "dog", "hounds": "hound", "mice": "mouse", "birds": "bird"}


@pytest.fixture
def classes(tmp_path):
    path = tmp_path / "classes.json"
    path.write_text(json.dumps(CLASSES))
    return path


def test_cases_by_hand(classes):
    captions = {
        "Two CRANES at the harbour": ["crane"],
        "Cranes and other birds": [],
        "a crane near a hole": [],
        "the dog is hot": ["dog", "hot dog"],
        "hotdogs": [],
        "hound-dogs, hot": ["dog", "hot dog"],
        "a sheep (bighorn)": ["bighorn"],
        "an animal": [],
        "RAM of 3 mice": ["bighorn", "mouse"],
        "": [],
    }
    found = run_filter(ConceptCounts(classes), batch_of({"caption": list(captions)}), pieces=3)
    names = [[list(CLASSES)[number] for number in numbers] for numbers in found["classes"]]
    assert names == list(captions.values())
    assert found["num_concepts"] == [len(part) for part in captions.values()]


def expected(caption):
    words = {LEMMAS.get(word, word) for word in caption.lower().split()}
    names = [[{"crane"}], [{"dog"}, {"hound"}], [{"hot", "dog"}]]
    names += [[{"bighorn", "sheep"}, {"ram"}], [{"mouse"}]]
    found = [number for number, own in enumerate(names) if any(name <= words for name in own)]
    return [n for n in found if n != 0 or not words & {"bird", "water", "hole"}]


def test_counts_do_not_depend_on_how_rows_are_cut(tmp_path, classes):
    rng = random.Random(0)
    pool = [*LEMMAS, *LEMMAS.values(), "hot", "a", "bighorn", "sheep", "ram", "hole", "red"]
    captions = [" ".join(rng.choices(pool, k=rng.randrange(9))) for _ in range(500)]
    rows, each = batch_of({"caption": captions}), ConceptCounts(classes)
    wanted = [expected(caption) for caption in captions]
    assert run_filter(each, rows, pieces=7)["classes"] == wanted
    counts = [sum(number in part for part in wanted) for number in range(5)]
    assert state_of(each, rows, pieces=7)["counts"].tolist() == counts and min(counts) > 10
    table = make_table(tmp_path / "table", {"caption": captions}, [100, 150, 250])
    Curation(table, {"concepts": each}, {}, tmp_path / "out").run()
    written = pq.read_table(tmp_path / "out/tables/concepts.parquet").to_pydict()
    assert written == {"class": list(CLASSES), "count": counts}


def test_a_list_of_classes(tmp_path):
    (tmp_path / "classes.txt").write_text("brown bear\n\npolar bear / ice bear\n")
    rows = batch_of({"caption": ["bears on ice", "a bear, brown", "polar"]})
    found = run_filter(ConceptCounts(tmp_path / "classes.txt"), rows)
    assert found["classes"] == [[1], [0], []]


def test_files_that_cannot_be_are_refused(tmp_path):
    rows = batch_of({"caption": ["a"]})
    (tmp_path / "a.json").write_text("3")
    (tmp_path / "b.json").write_text('{"7": "7"}')
    (tmp_path / "c.json").write_text("{")
    for name, words in {
        "a.json": "neither a list of classes",
        "b.json": "class '7' of .* has no word",
        "c.json": "is no JSON",
        "d.json": "cannot be read",
    }.items():
        with pytest.raises(ValueError, match=words):
            run_filter(ConceptCounts(tmp_path / name), rows)
