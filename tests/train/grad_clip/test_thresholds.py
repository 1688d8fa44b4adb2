"""Thresholds against loops written from the formulas, in float64."""

import math

import numpy as np
import pytest
import torch

from counterpoint.train.grad_clip.autoclip import AutoClip
from counterpoint.train.grad_clip.fixed import Norm
from counterpoint.train.grad_clip.zclip import ZClip

NAN, INF = math.nan, math.inf


def limits(clipper, norms):
    return [clipper.limit(torch.tensor(norm)).item() for norm in norms]


def stream(steps=400, seed=0, spread=0.1, spikes=True):
    """Norms around 2 with a spike every 37 steps."""
    rng = np.random.default_rng(seed)
    norms = 2 * (1 + spread * rng.standard_normal(steps))
    if spikes:
        norms[30::37] *= rng.uniform(2, 6, len(norms[30::37]))
    return [float(norm) for norm in norms.astype(np.float32)]


def zclip(norms, mode, z=2.5, alpha=0.97, warmup=25, scale=1.0):
    """The published method: no recovery, no fixed limit."""
    buffer, mean, var, found = [], 0.0, 0.0, []
    for norm in norms:
        if len(buffer) < warmup:
            buffer.append(norm)
            if len(buffer) == warmup:
                mean = sum(buffer) / warmup
                var = sum((x - mean) ** 2 for x in buffer) / warmup
            found.append(INF)
            continue
        std = math.sqrt(var)
        distance = (norm - mean) / (std + 1e-6)
        limit = INF
        if distance > z:
            adaptive = scale * (mean + z * z * std / distance)
            limit = {"adaptive": adaptive, "mean": mean, "percentile": mean + z * std}[mode]
        value = min(norm, limit)
        mean = alpha * mean + (1 - alpha) * value
        var = alpha * var + (1 - alpha) * (value - mean) ** 2
        found.append(limit)
    return found


@pytest.mark.parametrize("mode", ["adaptive", "mean", "percentile"])
def test_zclip_follows_the_formulas(mode):
    norms = stream()
    want = zclip(norms, mode)
    assert sum(limit < INF for limit in want) >= 10
    np.testing.assert_allclose(limits(ZClip(mode), norms), want, rtol=1e-5)


def test_zclip_with_other_constants_and_a_fixed_limit():
    norms = stream(seed=3)
    want = zclip(norms, "adaptive", z=2.0, alpha=0.9, warmup=10, scale=0.7)
    got = ZClip(z=2.0, alpha=0.9, warmup=10, scale=0.7, max_norm=1.9)
    # The fixed limit is applied, but the statistics see the limit by statistics.
    np.testing.assert_allclose(limits(got, norms), np.minimum(want, 1.9), rtol=1e-5)


@pytest.mark.parametrize("factor", [1.5, 3.0, 10.0])
@pytest.mark.parametrize("mode", ["adaptive", "mean", "percentile"])
def test_zclip_recovers_from_a_lasting_rise(mode, factor):
    before, after = stream(200, spikes=False), stream(1000, seed=5, spikes=False)
    norms = before + [norm * factor for norm in after]
    found = np.array(limits(ZClip(mode), norms))
    late = found[300:] < np.array(norms)[300:]
    assert late.mean() < 0.1
    if factor > 1.5 and mode == "adaptive":
        assert min(zclip(norms, mode)[300:]) < INF
        published = np.array(zclip(norms, mode)) < np.array(norms)
        assert published[300:].all()  # what the guard is for


def test_autoclip_is_the_percentile_of_the_last_norms():
    norms, window = stream(300, spread=0.5), 64
    for percentile in (0.0, 10.0, 37.5, 100.0):
        want = [
            np.percentile(np.array(norms[max(0, i + 1 - window) : i + 1]), percentile)
            for i in range(len(norms))
        ]
        got = limits(AutoClip(percentile, window), norms)
        np.testing.assert_allclose(got, want, rtol=1e-6)


CLIPPERS = {
    "norm": lambda: Norm(1.5),
    "autoclip": lambda: AutoClip(30.0, window=32),
    "adaptive": lambda: ZClip("adaptive", warmup=8),
    "mean": lambda: ZClip("mean", warmup=8),
    "percentile": lambda: ZClip("percentile", warmup=8, max_norm=5.0),
}


@pytest.mark.parametrize("name", CLIPPERS)
def test_norms_that_are_not_finite_leave_no_trace(name):
    norms = stream(120)
    dirty = [x for norm in norms for x in (norm, NAN, INF)]
    clean = limits(CLIPPERS[name](), norms)
    clipper = CLIPPERS[name]()
    assert limits(clipper, dirty)[::3] == clean
    assert all(value.isfinite().all() for value in clipper.state_dict().values())


@pytest.mark.parametrize("cut", [3, 60])
@pytest.mark.parametrize("name", CLIPPERS)
def test_a_resumed_clipper_goes_on_as_if_nothing_had_happened(name, cut, tmp_path):
    norms = stream(120)
    whole = limits(CLIPPERS[name](), norms)
    first, second = CLIPPERS[name](), CLIPPERS[name]()
    limits(first, norms[:cut])
    torch.save(first.state_dict(), tmp_path / "state")
    second.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    assert limits(second, norms[cut:]) == whole[cut:]


@pytest.mark.parametrize("name", CLIPPERS)
def test_reset_forgets(name):
    clipper = CLIPPERS[name]()
    fresh = limits(CLIPPERS[name](), stream(50, seed=2))
    limits(clipper, stream(70, seed=1))
    clipper.reset()
    assert limits(clipper, stream(50, seed=2)) == fresh


def test_the_state_of_another_clipper_is_refused():
    with pytest.raises(ValueError, match="another clipper"):
        ZClip().load_state_dict(AutoClip().state_dict())
    with pytest.raises(ValueError, match="another clipper"):
        AutoClip(window=5).load_state_dict(AutoClip(window=6).state_dict())


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: Norm(0.0), "max_norm"),
        (lambda: AutoClip(101.0), "percentile"),
        (lambda: AutoClip(window=0), "window"),
        (lambda: ZClip(alpha=1.0), "alpha"),
        (lambda: ZClip(z=0.0), "z is"),
        (lambda: ZClip(warmup=1), "warmup"),
        (lambda: ZClip(max_norm=-1.0), "max_norm"),
    ],
)
def test_values_out_of_range_are_refused(make, key):
    with pytest.raises(ValueError, match=key):
        make()
