"""PromptKD's term: what cannot be read or compared is said."""

import pytest
import torch
from safetensors.torch import save_file

from counterpoint.losses.distillation.class_logits import ClassLogits

SCALES = {"logit_scale": torch.ones(1), "teacher.t.logit_scale": torch.ones(1)}


def test_mistakes_are_said(tmp_path):
    with pytest.raises(ValueError, match="temperature=0 must be above 0"):
        ClassLogits("none", "teacher.t", temperature=0)
    features = SCALES | {"image": torch.eye(4), "teacher.t.image": torch.eye(4)}
    path = tmp_path / "classes.safetensors"
    with pytest.raises(ValueError, match=r"classes\.safetensors' cannot be read .* prompts"):
        ClassLogits(str(path), "teacher.t")(features, {})
    save_file({"others": torch.eye(4)}, path)
    with pytest.raises(ValueError, match=r"cannot be read \('classes'\)"):
        ClassLogits(str(path), "teacher.t")(features, {})
    save_file({"classes": torch.eye(5)}, path)
    with pytest.raises(ValueError, match="'image' has 4 numbers a sample, and the class vectors"):
        ClassLogits(str(path), "teacher.t")(features, {})


def test_a_student_like_its_teacher_has_no_loss_and_wins_nothing(tmp_path):
    """For as many classes as do not fit one tile."""
    torch.manual_seed(0)
    path = tmp_path / "classes.safetensors"
    save_file({"classes": torch.randn(50, 6)}, path)
    rows = torch.nn.functional.normalize(torch.randn(9, 6), dim=1)
    student = rows.clone().requires_grad_()
    scales = {name: torch.tensor([20.0]) for name in SCALES}
    term = ClassLogits(str(path), "teacher.t", tile_bytes=1 << 10)
    value = term(scales | {"image": student, "teacher.t.image": rows}, {})["class_logits"]
    value.backward()
    assert abs(float(value)) < 1e-6 and float(student.grad.abs().max()) < 1e-6
