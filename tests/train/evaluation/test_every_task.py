"""Every task gives the same values, to the last digit, for any number of processes."""

import pytest
import torch
from toy_evaluation import tokenizer, transform
from vector_model import NAMES, Classes, Vectors

from counterpoint.launch.config.packaged import packaged_files
from counterpoint.launch.config.suites import load_suite
from counterpoint.train.evaluation.attributes import AttributePrompts
from counterpoint.train.evaluation.choices.caption_choice import CaptionChoice
from counterpoint.train.evaluation.choices.linear_map import MappedCaptionChoice
from counterpoint.train.evaluation.confidence.calibration import Calibration
from counterpoint.train.evaluation.confidence.label_free import MatrixNorm
from counterpoint.train.evaluation.confidence.out_of_distribution import ConceptMatching
from counterpoint.train.evaluation.confidence.vim import VirtualLogit
from counterpoint.train.evaluation.descriptions import DescribedZeroShot
from counterpoint.train.evaluation.evaluate import evaluate
from counterpoint.train.evaluation.geometry.clip_score import ClipScore
from counterpoint.train.evaluation.geometry.conditional import ConditionalDiversity
from counterpoint.train.evaluation.geometry.modality import ModalityGeometry
from counterpoint.train.evaluation.groups import GroupAccuracy
from counterpoint.train.evaluation.probes.gaussian import GaussianDiscriminant
from counterpoint.train.evaluation.probes.knn import NearestNeighbours
from counterpoint.train.evaluation.probes.linear_probe import LinearProbe
from counterpoint.train.evaluation.probes.logit_bias import LogitBias
from counterpoint.train.evaluation.probes.tip_adapter import TipAdapter
from counterpoint.train.evaluation.robustness.backdoor import BackdoorSuccess
from counterpoint.train.evaluation.robustness.fooling import FoolingImages
from counterpoint.train.evaluation.robustness.identity import IdentityAudit
from counterpoint.train.evaluation.robustness.label_design import LabelDesign
from counterpoint.train.evaluation.robustness.misspelling import MisspelledNames
from counterpoint.train.evaluation.robustness.multi_object import MultiObject
from counterpoint.train.evaluation.suite import Suite


@pytest.mark.soak
def test_the_packaged_suites_can_be_read(tmp_path):
    for name in packaged_files("suite"):
        assert load_suite(name, tmp_path).tasks


def every_task():
    train, test = Classes(45, seed=1, name="train"), Classes(37, seed=2, name="test")
    split = {"data": test, "train": train}
    few_shot = {**split, "shots": 2, "templates": "a {c}"}
    others = Classes(12, seed=3, name="others")
    prompts = {"data": test, "templates": "a {c}"}
    return {
        "knn": NearestNeighbours(k=5, **split),
        "linear_probe": LinearProbe(penalty=0.1, **split),
        "gaussian": GaussianDiscriminant(**few_shot),
        "tip_adapter": TipAdapter(**few_shot),
        "descriptions": DescribedZeroShot({n: ["a tail", "fur"] for n in NAMES}, data=test),
        "attributes": AttributePrompts(["", " in snow"], data=test, templates="a {c}{a}"),
        "groups": GroupAccuracy("cls", **prompts),
        "calibration": Calibration(**prompts),
        "matching": ConceptMatching(others, **prompts),
        "vim": VirtualLogit(others, penalty=0.1, **split),
        "mano": MatrixNorm(**prompts),
        "choices": CaptionChoice(test, right="caption", wrong="cls"),
        "mapped": MappedCaptionChoice(
            train=train, steps=3, right="caption", wrong="cls", data=test
        ),
        "backdoor": BackdoorSuccess("Ant", "patch", **prompts),
        "misspelling": MisspelledNames(candidates=3, **prompts),
        "identity": IdentityAudit(data=test, templates=["a {c}", "{c}"]),
        "labels": LabelDesign(test, "cls", NAMES[:3], NAMES[3:5], NAMES[5:]),
        "fooling": FoolingImages(others, data=test, captions="cls"),
        "objects": MultiObject(**prompts),
        "geometry": ModalityGeometry(data=test, captions="caption"),
        "clip_score": ClipScore(test, "caption", "cls"),
        "diversity": ConditionalDiversity(data=test, captions="caption"),
        "logit_bias": LogitBias(steps=5, **few_shot),
    }


def measured(rank, world_size):
    outcomes = {}
    suite = Suite("s", every_task())
    values = evaluate(Vectors(), suite, tokenizer, transform, batch_size=8, outcomes=outcomes)
    rows = {name: (list(each.values), list(each.keys)) for name, each in outcomes.items()}
    return values, rows


@pytest.mark.parametrize("kind", ["diverged", "collapsed", "zero"])
def test_a_useless_model_ends_no_evaluation_and_scores_nothing(kind):
    model = Vectors()
    if kind == "collapsed":
        model.image.data.zero_()
        model.encode_image = lambda image, form="": torch.ones(len(image), 10 if form else 6)
        model.encode_text = lambda ids, lengths, form="": torch.ones(len(ids), 6)
    else:
        for parameter in model.parameters():
            parameter.data.fill_(torch.nan if kind == "diverged" else 0.0)
    values = evaluate(model, Suite("s", every_task()), tokenizer, transform)
    found = {name: value for name, value in values.items() if name.endswith(("top1", "accuracy"))}
    assert len(found) > 10
    # Probes of features that say nothing know the most frequent class.
    probes = () if kind == "diverged" else ("s/knn/top1", "s/linear_probe/top1")
    assert {name: value for name, value in found.items() if value > 0 and name not in probes} == {}


def test_the_same_digits_for_any_number_of_processes(gloo):
    [expected] = gloo(1, measured)
    assert len(NAMES) > 5 and {name.split("/")[1] for name in expected[0]} == set(every_task())
    for world_size in (2, 3):
        assert gloo(world_size, measured) == [expected] * world_size
