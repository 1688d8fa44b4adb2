"""CLOOB and its parts: singular inputs; the margin's sign."""

import pytest
import torch
from torch.nn import functional as F

from counterpoint.losses.cloob import CLOOB, InfoLOOB
from counterpoint.losses.objective import Objective
from counterpoint.losses.positive_cosine import PositiveCosine


@pytest.mark.parametrize("make", [InfoLOOB, CLOOB, lambda **k: CLOOB("all", **k)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_finite_where_all_embeddings_are_equal_or_opposite(make, dtype):
    same = F.normalize(torch.ones(6, 4), dim=1).to(dtype)
    for text in (same, -same, torch.cat([same[:3], -same[3:]])):
        image, text = same.clone().requires_grad_(), text.clone().requires_grad_()
        features = {"image": image, "text": text, "logit_scale": torch.tensor([100.0])}
        (value,) = make(scale="logit_scale")(features, {}).values()
        assert value.dtype == torch.float32
        for tensor in (value, *torch.autograd.grad(value, [image, text])):
            assert tensor.isfinite().all()


def test_a_margin_is_subtracted():
    image, text = torch.eye(3), torch.tensor([[1.0, 0, 0], [0, 0.5, 0], [0, 0, -0.75]])
    objective = Objective({"infoloob": InfoLOOB(), "margin": PositiveCosine()}, {"margin": 0.1})
    total, report = objective({"image": image, "text": text}, {})
    assert total.item() == pytest.approx(report["infoloob"].item() - 0.1 * 0.25)
