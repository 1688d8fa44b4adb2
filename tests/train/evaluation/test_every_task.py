"""Every task gives the same values, to the last digit, for any number of processes."""

import csv
import importlib
import json
import pkgutil
from inspect import isabstract

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from toy_evaluation import tokenizer, transform
from vector_model import NAMES, Classes, Vectors, small_vit

from counterpoint.data.files import whole_file
from counterpoint.launch.config.packaged import packaged_files
from counterpoint.launch.config.suites import load_suite
from counterpoint.train import evaluation
from counterpoint.train.evaluation.choices.associations import Associations
from counterpoint.train.evaluation.choices.caption_choice import CaptionChoice
from counterpoint.train.evaluation.choices.linear_map import MappedCaptionChoice
from counterpoint.train.evaluation.choices.replaced_attributes import ReplacedAttributes
from counterpoint.train.evaluation.choices.winoground import Winoground
from counterpoint.train.evaluation.choices.word_order import WordOrder
from counterpoint.train.evaluation.clip_benchmark import ClipBenchmark
from counterpoint.train.evaluation.confidence.calibration import Calibration
from counterpoint.train.evaluation.confidence.label_free import MatrixNorm
from counterpoint.train.evaluation.confidence.negated_prompts import NegatedPrompts
from counterpoint.train.evaluation.confidence.out_of_distribution import ConceptMatching
from counterpoint.train.evaluation.confidence.vim import VirtualLogit
from counterpoint.train.evaluation.evaluate import evaluate
from counterpoint.train.evaluation.geometry.clip_score import ClipScore
from counterpoint.train.evaluation.geometry.conditional import ConditionalDiversity
from counterpoint.train.evaluation.geometry.modality import ModalityGeometry
from counterpoint.train.evaluation.geometry.prefixes import Prefixes
from counterpoint.train.evaluation.geometry.text_span import TextSpan
from counterpoint.train.evaluation.languages import RetrievalByLanguage, ZeroShotByLanguage
from counterpoint.train.evaluation.long_retrieval import LongRetrieval
from counterpoint.train.evaluation.probes.gaussian import GaussianDiscriminant
from counterpoint.train.evaluation.probes.knn import NearestNeighbours
from counterpoint.train.evaluation.probes.linear_probe import LinearProbe
from counterpoint.train.evaluation.probes.logit_bias import LogitBias
from counterpoint.train.evaluation.probes.tip_adapter import TipAdapter
from counterpoint.train.evaluation.retrieval import Retrieval, TextRetrieval
from counterpoint.train.evaluation.robustness.backdoor import BackdoorSuccess
from counterpoint.train.evaluation.robustness.character_attacks import (
    AttackedNames,
    AttackedRetrieval,
)
from counterpoint.train.evaluation.robustness.fooling import FoolingImages
from counterpoint.train.evaluation.robustness.identity import IdentityAudit
from counterpoint.train.evaluation.robustness.label_design import LabelDesign
from counterpoint.train.evaluation.robustness.misspelling import MisspelledNames
from counterpoint.train.evaluation.robustness.multi_object import MultiObject
from counterpoint.train.evaluation.robustness.sharpness import LayerSharpness
from counterpoint.train.evaluation.robustness.text_spotting import TextSpotting
from counterpoint.train.evaluation.suite import Suite
from counterpoint.train.evaluation.task import Task
from counterpoint.train.evaluation.zero_shot.attributes import AttributePrompts
from counterpoint.train.evaluation.zero_shot.classification import ZeroShot
from counterpoint.train.evaluation.zero_shot.descriptions import DescribedZeroShot
from counterpoint.train.evaluation.zero_shot.frequency import FrequencyCorrelation
from counterpoint.train.evaluation.zero_shot.groups import GroupAccuracy
from counterpoint.train.evaluation.zero_shot.multi_label import MultiLabel


@pytest.mark.soak
def test_the_packaged_suites_can_be_read(tmp_path):
    for name in packaged_files("suite"):
        assert load_suite(name, tmp_path).tasks


def every_task(folder):
    train, test = Classes(45, seed=1, name="train"), Classes(37, seed=2, name="test")
    split = {"data": test, "train": train}
    few_shot = {**split, "shots": 2, "templates": "a {c}"}
    others = Classes(12, seed=3, name="others")
    prompts = {"data": test, "templates": "a {c}"}
    apart = {"apart": "cls"}
    counts = folder / "counts.parquet"
    if not counts.exists():
        pq.write_table(pa.table({"class": NAMES, "count": [5, 4, 9, 2, 3, 8, 1]}), counts)
    return {
        "zero_shot": ZeroShot(by="cls", **prompts),
        "retrieval": Retrieval(test, "caption"),
        "long_retrieval": LongRetrieval(test, ["caption", "cls"], k=[1, 2]),
        "texts": TextRetrieval(test, "caption", "cls"),
        "prefixes": Prefixes(ZeroShot(by="cls", **prompts), [2, 5]),
        "retrieval_by_language": RetrievalByLanguage(
            test, ["caption", "cls"], "{language}", **apart
        ),
        "zero_shot_by_language": ZeroShotByLanguage(
            test, ["caption", "cls"], "{language}", **apart
        ),
        "frequency": FrequencyCorrelation(str(counts), **prompts),
        "text_spotting": TextSpotting(test),
        "knn": NearestNeighbours(k=5, **split),
        "linear_probe": LinearProbe(penalty=0.1, **split),
        "gaussian": GaussianDiscriminant(**few_shot),
        "tip_adapter": TipAdapter(**few_shot),
        "descriptions": DescribedZeroShot({n: ["a tail", "fur"] for n in NAMES}, data=test),
        "attributes": AttributePrompts(["", " in snow"], data=test, templates="a {c}{a}"),
        "groups": GroupAccuracy("cls", **prompts),
        "calibration": Calibration(**prompts),
        "matching": ConceptMatching(others, **prompts),
        "negated": NegatedPrompts(others, **prompts),
        "vim": VirtualLogit(others, penalty=0.1, **split),
        "mano": MatrixNorm(**prompts),
        "choices": CaptionChoice(test, right="caption", wrong="cls"),
        "mapped": MappedCaptionChoice(
            train=train, steps=3, right="caption", wrong="cls", data=test
        ),
        "winoground": Winoground(paired(folder), "examples.jsonl"),
        "associations": Associations(paired(folder), "table.csv"),
        "multi_label": MultiLabel(several(), "several", NAMES, "a {c}"),
        "replaced": ReplacedAttributes(test, "a {cls} of {key}", ["cls"]),
        "word_order": WordOrder(["within_trigrams"], data=test, captions="caption"),
        "backdoor": BackdoorSuccess("Ant", "patch", **prompts),
        "misspelling": MisspelledNames(candidates=3, **prompts),
        "attacked_names": AttackedNames(candidates=3, **prompts),
        "attacked_captions": AttackedRetrieval(test, candidates=2, captions="caption"),
        "identity": IdentityAudit(data=test, templates=["a {c}", "{c}"]),
        "labels": LabelDesign(test, "cls", NAMES[:3], NAMES[3:5], NAMES[5:]),
        "fooling": FoolingImages(others, data=test, captions="cls"),
        "objects": MultiObject(**prompts),
        "geometry": ModalityGeometry(data=test, captions="caption"),
        "clip_score": ClipScore(test, "caption", "cls"),
        "diversity": ConditionalDiversity(data=test, captions="caption"),
        "logit_bias": LogitBias(steps=5, **few_shot),
    }


def tasks_of_vits():
    """Those that take the towers apart."""
    test = Classes(37, seed=2, name="test")
    return {
        "text_span": TextSpan(test, [*NAMES, "fur", "a tail"], layers=2, texts_per_head=3),
        "sharpness": LayerSharpness(draws=1, data=test, templates="a {c}"),
    }


def paired(folder):
    """Images, and a file that asks of pairs of them."""
    data = Classes(30, seed=4, name="paired")
    data.root = folder
    names = [item.fields["cls"] for item in data.items]
    examples = [
        {"image_0": f"paired{i}", "image_1": f"paired{i + 1}", "caption_0": f"a {names[i]}",
         "caption_1": f"a {names[i + 1]}"} for i in range(29)
    ]  # fmt: skip
    with whole_file(folder / "examples.jsonl") as part:
        part.write_text("\n".join(map(json.dumps, examples)))
    with whole_file(folder / "table.csv") as part, part.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["cue", "candidates", "associations"])
        for i in range(18):
            shown = [f"paired{i + k}" for k in range(5 if i % 2 else 12)]
            table.writerow([names[i], json.dumps(shown), json.dumps(shown[:2])])
    return data


def several():
    """Images of two classes each."""
    data = Classes(37, seed=5, name="several")
    for item, label in zip(data.items, data.labels, strict=True):
        both = (label, (label + 1) % len(NAMES))
        item.fields["several"] = [int(k in both) for k in range(len(NAMES))]
    return data


def measured(rank, world_size, folder):
    outcomes = {}
    suite = Suite("s", every_task(folder))
    options = {"batch_size": 8, "outcomes": outcomes, "details": (details := {})}
    values = evaluate(Vectors(), suite, tokenizer, transform, **options)
    values |= evaluate(small_vit(), Suite("s", tasks_of_vits()), tokenizer, transform, **options)
    rows = {name: (list(each.values), list(each.keys)) for name, each in outcomes.items()}
    return values, rows, {name: each.record() for name, each in details.items()}


@pytest.mark.parametrize("kind", ["diverged", "collapsed", "zero"])
def test_a_useless_model_ends_no_evaluation_and_scores_nothing(kind, tmp_path):
    model = Vectors()
    if kind == "collapsed":
        model.image.data.zero_()
        model.encode_image = lambda image, form="": torch.ones(len(image), 10 if form else 6)
        model.encode_text = lambda ids, lengths, form="": torch.ones(len(ids), 6)
    else:
        for parameter in model.parameters():
            parameter.data.fill_(torch.nan if kind == "diverged" else 0.0)
    values = evaluate(model, Suite("s", every_task(tmp_path)), tokenizer, transform)
    found = {name: value for name, value in values.items() if name.endswith(("top1", "accuracy"))}
    assert len(found) > 10
    # Probes of features that say nothing know the most frequent class.
    probes = () if kind == "diverged" else ("s/knn/top1", "s/linear_probe/top1")
    assert {name: value for name, value in found.items() if value > 0 and name not in probes} == {}


def test_no_task_is_forgotten(tmp_path):
    tasks = [each for each in packaged_classes() if not isabstract(each)]
    # Those of a folder's layout measure what `ZeroShot` and `Retrieval` do.
    wanted = {each for each in tasks if not issubclass(each, ClipBenchmark)}
    tested = [*every_task(tmp_path).values(), *tasks_of_vits().values()]
    assert {type(task) for task in tested} == wanted


def packaged_classes():
    """Tasks in `train/evaluation/`, whatever the module."""
    for module in pkgutil.walk_packages(evaluation.__path__, f"{evaluation.__name__}."):
        content = vars(importlib.import_module(module.name)).values()
        for each in content:
            if isinstance(each, type) and issubclass(each, Task) and each.__module__ == module.name:
                yield each


def test_the_same_digits_for_any_number_of_processes(gloo, tmp_path):
    [expected] = gloo(1, measured, tmp_path)
    named = {name.split("/")[1] for name in expected[0]}
    for task in {**every_task(tmp_path), **tasks_of_vits()}:  # some say of which part they are
        assert any(name == task or name.startswith(f"{task}_") for name in named), task
    for world_size in (2, 3):
        assert gloo(world_size, measured, tmp_path) == [expected] * world_size
