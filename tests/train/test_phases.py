"""Phases: lengths, learning rates and sample counts as functions of the step."""

import math

import pytest

from counterpoint.models.image import TimmTower
from counterpoint.models.reducers.base import Reduction
from counterpoint.models.reducers.patches import RandomPatches, Resize
from counterpoint.models.reducers.tokens import Truncate
from counterpoint.models.text.clip import ClipTextTower
from counterpoint.models.two_tower import TwoTower
from counterpoint.train.phases import Phase, Phases, prepare_reducers


def test_lengths_round_up_to_whole_steps():
    phases = Phases({"a": Phase(100, 32, 1.0), "b": Phase(10, 5, 1.0)})
    assert phases.lengths == [(4, 32), (2, 5)]
    assert phases.total_steps == 6
    assert [phases.samples_before(s) for s in range(8)] == [0, 32, 64, 96, 128, 133, 138, 138]
    assert [phases.at(s)[0] for s in range(7)] == ["a", "a", "a", "a", "b", "b", "b"]
    assert phases.at(4)[2] == 0


def test_rate_warms_up_then_follows_the_cosine():
    phase = Phase(1000, 10, 2.0, warmup_samples=200, final_fraction=0.1)
    assert phase.rate(0) == 2.0 / 20
    assert phase.rate(19) == 2.0
    assert phase.rate(20) == 2.0
    middle = 2.0 * (0.1 + 0.9 * 0.5)
    assert math.isclose(phase.rate(60), middle)
    rates = [phase.rate(s) for s in range(20, 100)]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] > 0.2


def test_constant_stays():
    phase = Phase(1000, 10, 2.0, schedule="constant")
    assert {phase.rate(s) for s in range(100)} == {2.0}


def test_constant_cools_down_at_the_end():
    phase = Phase(1000, 10, 2.0, schedule="constant", cooldown_samples=200, final_fraction=0.1)
    assert {phase.rate(s) for s in range(81)} == {2.0}
    assert phase.rate(90) == pytest.approx(2.0 * (0.1 + 0.9 / 2))


def test_the_peak_follows_the_batch():
    assert Phase(1000, 40, 2.0).peak == 2.0
    assert Phase(1000, 40, 2.0, rate_batch=10).peak == 8.0
    root = Phase(1000, 40, 2.0, 200, rate_batch=10, rate_scaling="sqrt")
    assert root.peak == 4.0 and root.rate(5) == 4.0 and root.rate(0) == 4.0 / 5


def test_rsqrt_falls_with_its_timescale():
    phase = Phase(1000, 10, 2.0, 100, "rsqrt", cooldown_samples=100, timescale_samples=300)
    assert phase.rate(4) == 2.0 * 5 / 10 and phase.rate(10) == 2.0
    assert phase.rate(40) == pytest.approx(2.0 / math.sqrt(2))
    assert phase.rate(95) == pytest.approx(2.0 * math.sqrt(30 / 115) / 2)


@pytest.mark.parametrize(
    ("phase", "message"),
    [
        (Phase(0, 8, 1.0), "phases.x.samples is 0"),
        (Phase(8, 0, 1.0), "phases.x.batch_size is 0"),
        (Phase(8, 8, -1.0), "phases.x.learning_rate is -1.0"),
        (Phase(8, 8, 1.0, rate_scaling="sqrt"), "rate_scaling is sqrt without rate_batch"),
        (Phase(8, 8, 1.0, rate_batch=0), "phases.x.rate_batch is 0"),
        (Phase(8, 8, 1.0, warmup_samples=9), "phases.x.warmup_samples is 9"),
        (Phase(8, 8, 1.0, cooldown_samples=4), "a cosine falls all the way"),
        (Phase(8, 8, 1.0, 5, "constant", cooldown_samples=4), "between 0 and the 3 samples"),
        (Phase(8, 8, 1.0, 0, "rsqrt"), "timescale_samples is 0 with schedule: rsqrt"),
        (Phase(8, 8, 1.0, timescale_samples=4), "timescale_samples is 4 with schedule: cosine"),
    ],
)
def test_values_out_of_range_are_named(phase, message):
    with pytest.raises(ValueError, match=message):
        Phases({"x": phase})


def test_no_phase_is_refused():
    with pytest.raises(ValueError, match="phases is empty"):
        Phases({})


def test_reducers_are_functions_of_the_step():
    patches, tokens = RandomPatches(0.5), Truncate(8)
    phases = Phases(
        {
            "masked": Phase(32, 8, 1.0, image_reducer=patches, text_reducer=tokens),
            "tune": Phase(16, 8, 1.0),
        }
    )
    assert phases.reduction(3, seed=7) == Reduction(7, 3, patches, tokens)
    assert phases.reduction(4, seed=7) == Reduction(7, 4, None, None)


def model(trunk, **arguments):
    image = TimmTower(trunk, image_size=32, model_args=arguments)
    text = ClipTextTower(width=16, depth=1, num_heads=2, context_length=12, vocab_size=50)
    return TwoTower(image, text, embed_dim=8)


def test_reducers_that_do_not_fit_the_model_are_refused_before_the_run():
    small = {"patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
    vit = model("vit_tiny_patch16_224", **small)
    before = [(name, p.shape) for name, p in vit.named_parameters()]
    for reducer in (RandomPatches(0.9), Resize(16), Resize(8, then=RandomPatches(0.5))):
        prepare_reducers(Phases({"a": Phase(8, 8, 1.0, image_reducer=reducer)}), vit)
    assert [(name, p.shape) for name, p in vit.named_parameters()] == before
    for net, reducer, message in (
        (vit, Resize(20), r"phases.b.image_reducer: images of 20 x 20 .* use a size of 16"),
        (vit, Resize(48), r"phases.b.image_reducer: Resize has size=48 .* 32 x 32"),
        (model("resnet18"), RandomPatches(), "phases.b.image_reducer: the image tower is a ResNet"),
    ):
        phases = Phases({"a": Phase(8, 8, 1.0), "b": Phase(8, 8, 1.0, image_reducer=reducer)})
        with pytest.raises(ValueError, match=message):
            prepare_reducers(phases, net)


def test_phases_behind_earlier_stages_count_their_steps_on():
    phases = {"a": Phase(80, 8, 1e-3, warmup_samples=16), "b": Phase(20, 4, 1e-4)}
    alone, later = Phases(phases), Phases(phases, [(3, 16), (2, 4)])
    assert later.first_step == 5 and later.own_steps == 15 and later.total_steps == 20
    assert later.lengths == [(3, 16), (2, 4), (10, 8), (5, 4)]
    assert [later.samples_before(step) for step in (0, 4, 5, 20)] == [0, 52, 56, 156]
    for step in range(15):
        assert later.at(step + 5) == alone.at(step)
        assert later.learning_rate(step + 5) == alone.learning_rate(step)
        assert later.progress(step + 5) == alone.progress(step) == step / 15
