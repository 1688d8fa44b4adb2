"""PromptKD's divergence over stored class vectors, as the authors' code computes it."""

import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from term_case import Case, unit
from torch.nn import functional as F

from counterpoint.losses.distillation.class_logits import ClassLogits

FOLDER = tempfile.TemporaryDirectory()  # for as long as the module is there
FILE = Path(FOLDER.name) / "classes.safetensors"
CLASSES = unit(torch.Generator().manual_seed(7), 11, 7).float()
save_file({"classes": CLASSES}, FILE)


def inputs(generator, b):
    features = {"image": unit(generator, b, 7), "teacher.large.image": unit(generator, b, 7)}
    scales = {"logit_scale": 9.0, "teacher.large.logit_scale": 14.0}
    return features | {
        name: torch.tensor([value], dtype=torch.float64) for name, value in scales.items()
    }, {}


def formula(features, batch, term):
    classes, t = F.normalize(CLASSES, dim=1).to(features["image"].dtype), term.temperature
    scale = term.teacher_scale or features["teacher.large.logit_scale"]
    student = features["logit_scale"] * features["image"] @ classes.T
    teacher = scale * features["teacher.large.image"] @ classes.T
    divergence = F.kl_div((student / t).log_softmax(1), (teacher / t).softmax(1), reduction="sum")
    return divergence * t * t / student.numel()


def case(**arguments):
    constants = frozenset({"teacher.large.image", "teacher.large.logit_scale"})
    return Case(
        lambda: ClassLogits(str(FILE), "teacher.large", tile_bytes=96, **arguments),
        formula,
        inputs,
        takes_exchange=False,
        constants=constants,
    )


CASES = {
    "plain": case(),
    "temperature": case(temperature=2.0),
    "given_scale": case(teacher_scale=20.0),
}
