"""Columns of another kind, and numbers that are none, are refused in a sentence that names them."""

import math
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file

from counterpoint.data.curate.base import GroupFilter, lists, texts, vector_column
from counterpoint.data.curate.filters.captions.text_rules import TextRules
from counterpoint.data.curate.filters.clusters.cluster_weights import ClusterWeights
from counterpoint.data.curate.filters.clusters.image_based import ImageBased
from counterpoint.data.curate.filters.clusters.refine_clusters import RefineClusters
from counterpoint.data.curate.filters.concepts.balance_concepts import BalanceConcepts
from counterpoint.data.curate.filters.concepts.concept_counts import ConceptCounts
from counterpoint.data.curate.filters.concepts.match_concepts import MatchConcepts
from counterpoint.data.curate.filters.duplicates.semantic_balance import SemanticBalance
from counterpoint.data.curate.filters.duplicates.semdedup import SemDeDup
from counterpoint.data.curate.filters.embeddings.clipcov import ClipCov
from counterpoint.data.curate.filters.embeddings.outlier import Outlier
from counterpoint.data.curate.filters.embeddings.probe import Probe
from counterpoint.data.curate.filters.general.cap import Cap
from counterpoint.data.curate.filters.general.moment_matching import MomentMatching
from counterpoint.data.curate.filters.general.threshold import Threshold
from counterpoint.data.curate.filters.general.weight_by import WeightBy
from counterpoint.data.curate.filters.general.where import Where
from counterpoint.data.curate.numerics.logistic import fit_logistic

RNG = np.random.default_rng(3)
EMBEDDINGS = vector_column(RNG.normal(size=(8, 4)).astype(np.float32))


def batch(**columns):
    """Rows with keys 0, 1, 2, ..."""
    values = {name: pa.array(value) for name, value in columns.items()}
    size = len(next(iter(values.values())))
    return pa.RecordBatch.from_pydict({"key": np.arange(size), **values})


def run(each, rows):
    """The columns that a filter gives for rows that are all in one group."""
    state = each.finish(each.partial(rows)) if each.reduces else {}
    if isinstance(each, GroupFilter):
        each.groups(rows, state)
        return each.apply_groups(rows, np.array([0, rows.num_rows]), state)
    return each.apply(rows, state)


@pytest.mark.parametrize(
    ("each", "message"),
    [
        (Threshold("texts", min=0), "texts holds string"),
        (Threshold("vectors", fraction=0.5), r"vectors holds fixed_size_list"),
        (WeightBy("texts"), "texts holds string"),
        (Cap("vectors", 1), r"vectors holds fixed_size_list"),
        (ClusterWeights(cluster="score"), "score holds double; name a column with one integer"),
        (SemDeDup(cluster="score", embedding="vectors"), "score holds double"),
        (SemanticBalance(at_most=1, cluster="score", embedding="vectors"), "score holds double"),
        (Outlier(image="score", k=1, batch=4), "score holds double; name a store's column"),
        (Outlier(image="texts", k=1, batch=4), "texts holds string"),
        (MomentMatching({"texts": 0.5}), "texts holds string"),
    ],
)
def test_a_column_of_another_kind_is_named(each, message):
    rows = batch(texts=["a"] * 8, score=RNG.random(8), vectors=EMBEDDINGS)
    with pytest.raises(ValueError, match=message):
        run(each, rows)


def test_texts_and_lists_are_no_numbers():
    rows = batch(score=[0.5])
    with pytest.raises(ValueError, match="score holds double; name a column with one text"):
        texts(rows, "score")
    with pytest.raises(ValueError, match="score holds double; name a column with a list"):
        lists(rows, "score")


@pytest.mark.parametrize(
    "each", [SemDeDup(cluster="c", embedding="v"), SemanticBalance(1, cluster="c", embedding="v")]
)
def test_one_embedding_that_is_not_finite_does_not_decide_for_its_cluster(each):
    spoilt = RNG.normal(size=(8, 4)).astype(np.float32)
    spoilt[5, 1] = np.nan
    with pytest.raises(ValueError, match="v has numbers that are not finite"):
        run(each, batch(c=np.zeros(8, dtype=np.int32), v=vector_column(spoilt)))


def test_a_moved_sample_has_a_finite_embedding(tmp_path):
    path = tmp_path / "centres.safetensors"
    save_file({"centres": np.array([[1, 0], [1, 0.01], [0, 1]], dtype=np.float32)}, path)
    rows = batch(c=[1], v=vector_column(np.array([[np.inf, 0]], dtype=np.float32)))
    with pytest.raises(ValueError, match="v has numbers that are not finite"):
        run(RefineClusters(path, cluster="c", embedding="v"), rows)


@pytest.mark.parametrize("scale", [1e-300, 1e-60, 1.0, 1e200])
def test_weights_of_any_size_have_the_mean(scale):
    weight = run(WeightBy("s", mean=2.0), batch(s=np.array([1.0, 3.0]) * scale))["weight"]
    np.testing.assert_allclose(weight, [1.0, 3.0], rtol=1e-8)


def test_attributes_are_shares_and_labels_finite():
    with pytest.raises(ValueError, match="a has the value nan: an attribute is true or false"):
        run(MomentMatching({"a": 0.5}), batch(a=[0.0, 1.0, np.nan]))
    with pytest.raises(ValueError, match=r"a has the value 3\.0: an attribute"):
        run(MomentMatching({"a": 0.5}), batch(a=[0.0, 3.0]))
    with pytest.raises(ValueError, match="y has the value inf: a label"):
        run(MomentMatching({"a": 0.5}, ["y"]), batch(a=[0.0, 1.0], y=[0.0, np.inf]))


def test_concepts_of_a_longer_list_of_entries_are_refused(tmp_path):
    entries = tmp_path / "entries.txt"
    entries.write_text("cat\ndog\n")
    rows = batch(concepts=pa.array([[0, 5], [1]], pa.list_(pa.int32())))
    with pytest.raises(ValueError, match="concepts has the entry number 5, and entries only 2"):
        run(BalanceConcepts(entries, t=1), rows)


def test_a_batch_too_small_for_its_neighbours_is_to_be_larger():
    rows = batch(v=vector_column(np.eye(2, dtype=np.float32)))
    with pytest.raises(ValueError, match="give a larger batch than 8"):
        run(Outlier(image="v", k=2, batch=8), rows)


def test_a_file_written_anew_is_read_anew(tmp_path):
    rows = batch(v=vector_column(np.array([[1, 0]], dtype=np.float32)))
    path = tmp_path / "probe.npz"
    found = []
    for number, weight in enumerate((0.0, 3.0)):
        np.savez(path, weight=np.array([[weight, 0.0]]), bias=np.zeros(1))
        os.utime(path, (number, number))
        found.append(run(Probe(path, embedding="v"), rows)["probe"][0])
    np.testing.assert_allclose(found, [0.5, 1 / (1 + np.exp(-3.0))], rtol=1e-6)
    np.savez(path, weight=np.array([[np.nan, 0.0]]), bias=np.zeros(1))
    with pytest.raises(ValueError, match=r"'weight' in .* has numbers that are not finite"):
        run(Probe(path, embedding="v"), rows)
    np.savez(path, weight=np.array([[1.0, 0.0]]), bias=np.zeros(1))
    with pytest.raises(ValueError, match="v has numbers that are not finite"):
        run(Probe(path, embedding="v"), batch(v=vector_column(np.array([[np.nan, 0.0]]))))


def test_hits_written_anew_are_read_anew(tmp_path):
    path = tmp_path / "hits" / "s" / "0.safetensors"
    path.parent.mkdir(parents=True)
    kept = []
    for number in (3, 4):
        save_file({"key": np.arange(1), "id": np.array([number])}, path)
        os.utime(path, (number, number))
        kept.append(run(ImageBased(tmp_path / "hits", "c"), batch(c=[3, 4]))["keep"].tolist())
    assert kept == [[True, False], [False, True]]


def test_keys_of_a_file_may_be_missing(tmp_path):
    path = tmp_path / "keep.parquet"
    big = 2**62 + 1  # a float64 holds 2^62 only
    pq.write_table(pa.table({"n": pa.array([big, None])}), path)
    keep = run(Where("n", file=path), batch(n=[2**62, big]))["keep"]
    assert keep.tolist() == [False, True]


def test_a_value_beyond_64_bits_does_not_fit():
    with pytest.raises(ValueError, match="does not fit the column n of type int64"):
        run(Where("n", values=[2**70]), batch(n=[1]))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_settings_are_finite(value):
    for make in (
        lambda: WeightBy("a", mean=value),
        lambda: WeightBy("a", max=value),
        lambda: ClusterWeights(share=value),
    ):
        with pytest.raises(ValueError, match="above 0"):
            make()
    with pytest.raises(ValueError, match="eps_r=nan"):
        MomentMatching({"a": 0.5}, eps_r=math.nan)


FILES = {
    "entries": lambda path: MatchConcepts(path),
    "classes": lambda path: ConceptCounts(path),
    "words": lambda path: TextRules(words=path),
    "values": lambda path: Where("caption", file=path),
}


@pytest.mark.parametrize("make", FILES.values(), ids=FILES)
def test_files_of_texts_are_in_utf8_with_or_without_a_mark(tmp_path, make):
    (tmp_path / "latin.txt").write_bytes("café\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin\.txt' is not in UTF-8 \(byte 3\)"):
        run(make(tmp_path / "latin.txt"), batch(caption=["café"]))
    (tmp_path / "mark.txt").write_text("café\ndog\n", encoding="utf-8-sig")
    found = run(make(tmp_path / "mark.txt"), batch(caption=["café", "horse"]))
    kept = found["keep"] if "keep" in found else found["num_concepts"] > 0
    assert kept.tolist() == [True, False]


def test_lines_that_no_word_of_a_caption_can_be_are_refused(tmp_path):
    (tmp_path / "words.txt").write_text("dog\ngreat white shark\n")
    with pytest.raises(ValueError, match="has the line 'great white shark'"):
        run(TextRules(words=tmp_path / "words.txt"), batch(caption=["a great white shark"]))


@pytest.mark.parametrize("content", ['{"dog": 3}', '{"dog": {"names": 3}}'])
def test_names_of_a_class_are_texts(tmp_path, content):
    (tmp_path / "classes.json").write_text(content)
    with pytest.raises(ValueError, match="a class has the names 3"):
        run(ConceptCounts(tmp_path / "classes.json"), batch(caption=["a dog"]))


@pytest.mark.parametrize("epsilon", [0.0, 1e-9, math.nan])
def test_an_epsilon_below_the_rounding_is_refused(epsilon):
    with pytest.raises(ValueError, match="give 1e-5 to 1"):
        SemDeDup(epsilon)
    same = batch(c=np.zeros(5, dtype=np.int32), v=vector_column(np.full((5, 3), 0.7, np.float32)))
    assert run(SemDeDup(1e-5, cluster="c", embedding="v"), same)["keep"].sum() == 1


@pytest.mark.parametrize("centres", [[1.0, 0.0], [[1.0, 0.0], [np.nan, 0.0]]])
def test_centres_are_finite_rows(tmp_path, centres):
    save_file({"centres": np.array(centres, dtype=np.float32)}, tmp_path / "c.safetensors")
    rows = batch(c=[0, 1], v=vector_column(np.eye(2, dtype=np.float32)))
    with pytest.raises(ValueError, match=r"c\.safetensors' holds no centres"):
        run(RefineClusters(tmp_path / "c.safetensors", cluster="c", embedding="v"), rows)


def test_shapes_of_other_models_are_named(tmp_path):
    save_file({"classes": np.eye(3, dtype=np.float32)}, tmp_path / "classes.safetensors")
    rows = batch(i=vector_column(np.eye(3)), t=vector_column(np.eye(3)[:, :2].copy()))
    with pytest.raises(ValueError, match="i has 3 numbers a row and t 2"):
        run(ClipCov(tmp_path / "classes.safetensors", "i", "t"), rows)
    np.savez(tmp_path / "probe.npz", weight=np.ones((1, 3)), bias=np.ones(2))
    with pytest.raises(ValueError, match="has 2 numbers, and 'weight' 1 rows"):
        run(Probe(tmp_path / "probe.npz", embedding="i"), rows)


def test_a_probe_is_fitted_to_finite_rows_of_labels_from_0():
    values, labels = RNG.normal(size=(6, 2)), np.array([0, 1] * 3)
    with pytest.raises(ValueError, match="there is the label -1"):
        fit_logistic(values, -labels)
    values[2, 0] = np.nan
    with pytest.raises(ValueError, match="numbers that are not finite"):
        fit_logistic(values, labels)


def test_white_space_of_any_script_is_no_character():
    rules = TextRules(min_letters=1.0)
    keep = run(rules, batch(caption=["a\u00a0b", "日本\u3000語", "a b", "a-b"]))["keep"]
    assert keep.tolist() == [True, True, True, False]
