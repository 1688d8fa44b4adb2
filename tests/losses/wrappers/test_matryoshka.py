"""The wrapper of nested widths: parts of the log, features that are not cut, mistakes."""

import pytest
import torch
from torch.nn import functional as F

from counterpoint.losses.base import Term
from counterpoint.losses.components.similarity import Arc
from counterpoint.losses.distillation.soft_contrastive import SoftContrastive
from counterpoint.losses.infonce import InfoNCE
from counterpoint.losses.objective import Objective
from counterpoint.losses.wrappers.masked import Masked
from counterpoint.losses.wrappers.matryoshka import Matryoshka


def features():
    g = torch.Generator().manual_seed(1)
    made = {n: F.normalize(torch.randn(6, 8, generator=g), dim=1) for n in ("image", "text")}
    return made | {"logit_scale": torch.tensor([5.0])}


class Widths(Term):
    """Reports what it is given."""

    needs = ("image.strong_1", "text.raw", "ema.image", "teacher.big.image")

    def forward(self, features, batch):
        return {name: torch.tensor(float(features[name].shape[1])) for name in self.needs}


def test_a_teacher_is_not_cut_and_raw_features_are_not_normalised():
    g = torch.Generator().manual_seed(1)
    given = {name: torch.randn(3, 8, generator=g) for name in Widths.needs}
    values = Matryoshka(Widths(), [2, 8])(given, {})
    assert [values[f"{name}_2"].item() for name in Widths.needs] == [2, 2, 2, 8]
    assert [values[f"{name}_8"].item() for name in Widths.needs] == [8, 8, 8, 8]
    assert Matryoshka(Widths(), [2]).per_sample(given, {}) is None


def test_the_averages_scale_is_not_cut():
    given = features()
    given |= {f"ema.{name}": value for name, value in features().items()}
    values = Matryoshka(SoftContrastive(["ema"]), [4, 8])(given, {})
    alone = SoftContrastive(["ema"])(given, {})
    torch.testing.assert_close(values["soft_contrastive_8"], alone["soft_contrastive"])


def test_evaluation_ranks_as_the_wrapped_term_does():
    term = Matryoshka(Masked(InfoNCE(Arc()), "teacher.present"), [4])
    assert isinstance(Objective({"a": term}).metric().similarity, Arc)


def test_losses_by_sample_are_the_parts_of_the_loss():
    term = Matryoshka(InfoNCE(Arc()), [2, 5, 8], weights=[1.0, 0.5, 2.0])
    objective = Objective({"nested": term}, weights={"nested": 0.5})
    total, report = objective(features(), {})
    assert list(report) == [f"nested/infonce_{width}" for width in (2, 5, 8)]
    torch.testing.assert_close(objective.per_sample(features(), {}).mean(), total)
    assert isinstance(objective.metric().similarity, Arc)


def test_widths_that_cannot_work_are_refused():
    for widths in ([], [0, 4], [8, 4], [4, 4]):
        with pytest.raises(ValueError, match="are not growing numbers"):
            Matryoshka(InfoNCE(), widths)
    with pytest.raises(ValueError, match="are not one number for each"):
        Matryoshka(InfoNCE(), [2, 4], weights=[1.0])
    with pytest.raises(ValueError, match="'image' has 8 dimensions, fewer than 16"):
        Matryoshka(InfoNCE(), [8, 16])(features(), {})
