"""Retrieval among texts, and tasks with the first dimensions of embeddings, against brute force."""

import numpy as np
import pytest
from vector_model import Classes, features, run, texts

from counterpoint.losses.components.similarity import Metric, SquaredDistance
from counterpoint.train.evaluation.geometry.prefixes import Prefixes
from counterpoint.train.evaluation.retrieval import Retrieval, TextRetrieval
from counterpoint.train.evaluation.zero_shot.classification import ZeroShot


def fields(i, label):
    """Some queries have several answers, and some answers several queries."""
    return {"query": f"{label} {i // 2}", "answer": f"{label[::-1]} {i // 3}"}


def images():
    return Classes(40, seed=6, fields=fields)


def unit(rows, width):
    cut = rows[:, :width]
    return cut / np.sqrt((cut**2).sum(1, keepdims=True))


def groups(task, **options):
    """Results as {(group, measure): value}."""
    found = {}
    for name, value in run(task, **options).items():
        group, _, measure = name.removeprefix("s/t").removeprefix("_").rpartition("/")
        found[group, measure] = value
    return found


def hits(queries, candidates, right, k):
    order = np.argsort(-(queries @ candidates.T), axis=1)[:, :k]
    return np.mean([bool(set(row.tolist()) & right[i]) for i, row in enumerate(order)])


@pytest.mark.parametrize("k", [1, 3])
def test_recall_among_texts(k):
    data = images()
    values = [(item.fields["query"], item.fields["answer"]) for item in data.items]
    queries, answers = (sorted(set(column)) for column in zip(*values, strict=True))
    right = [{answers.index(a) for q, a in values if q == query} for query in queries]
    assert max(map(len, right)) > 1 and len(answers) < len(values)
    want = hits(texts(queries), texts(answers), right, k)
    found = run(TextRetrieval(data, "query", "answer", k=[k]))
    assert found[f"recall@{k}"] == pytest.approx(want)
    assert 0 < want < 1


def test_a_task_by_the_first_dimensions():
    data = images()
    names = sorted({item.fields["cls"] for item in data.items})
    labels = [{names.index(item.fields["cls"])} for item in data.items]
    found = groups(Prefixes(ZeroShot(data, templates="{c}"), [2, 4, 6]))
    wanted = {}
    for width in (2, 4, 6):
        scores = unit(features(data), width), unit(texts(names), width)
        wanted[f"{width}"] = hits(*scores, labels, 1)
        assert found[f"{width}", "top1"] == pytest.approx(wanted[f"{width}"])
    assert len(set(wanted.values())) == 3
    whole = groups(ZeroShot(data, templates="{c}"))
    assert found["6", "top1"] == whole["", "top1"]


def test_groups_stand_behind_the_width():
    data = images()
    found = groups(Prefixes(ZeroShot(data, templates="{c}", by="cls"), [2]))
    assert ("2", "top1") in found and ("2_Ant", "top1") in found


def test_mistakes():
    data = images()
    with pytest.raises(ValueError, match=r"widths: \[0\] is not a list"):
        Prefixes(Retrieval(data, "query"), [0])
    with pytest.raises(ValueError, match="task: 'retrieval' is no task"):
        Prefixes("retrieval", [2])
    with pytest.raises(ValueError, match="widths: 7 dimensions of embeddings that have 6"):
        groups(Prefixes(Retrieval(data, "query"), [7]))
    with pytest.raises(ValueError, match=r"k: \[0\] is not a list"):
        TextRetrieval(data, "query", "answer", k=[0])


def test_only_cosines_have_prefixes():
    task = Prefixes(Retrieval(images(), "query"), [2])
    assert groups(task) and not groups(task, metric=Metric(SquaredDistance()))
