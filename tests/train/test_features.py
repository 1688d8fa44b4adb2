"""The moving average follows its formula; features of frozen models carry their names."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import beta as beta_distribution
from torch import nn

from counterpoint.losses.components.heads import MLP
from counterpoint.losses.infonce import InfoNCE
from counterpoint.losses.objective import Objective
from counterpoint.losses.self_supervision.byol import BYOL
from counterpoint.models.image import ImageTower
from counterpoint.models.teachers.frozen import FrozenTowers
from counterpoint.models.text.base import TextTower
from counterpoint.models.two_tower import TwoTower
from counterpoint.train.ema import Ema, EmaConfig
from counterpoint.train.features import check_needs, frozen_features

STEPS = 12


class Pixels(ImageTower):
    """Mean colours, in whatever precision its buffer has."""

    def __init__(self):
        super().__init__()
        self.width, self.image_size = 3, 4
        self.norm = nn.BatchNorm1d(3)
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)

    def forward(self, image):
        return self.norm(image.to(self.frozen.dtype).mean((2, 3)) * self.frozen)


class Words(TextTower):
    """A table of vectors."""

    def __init__(self):
        super().__init__()
        self.width, self.context_length = 4, 5
        self.table = nn.Embedding(9, 4)

    def forward(self, text, text_length):
        return self.table(text[:, 0])


def student():
    torch.manual_seed(0)
    return TwoTower(Pixels(), Words(), 6).double()


def objective():
    torch.manual_seed(1)
    byol = BYOL(MLP([6, 5, 4]), MLP([4, 4]), [("image.raw", "ema.image.raw")])
    return Objective({"infonce": InfoNCE(), "byol": byol}).double()


def batch(step):
    g = torch.Generator().manual_seed(step)
    return {
        "image": torch.randint(0, 256, (6, 3, 4, 4), dtype=torch.uint8, generator=g),
        "text": torch.randint(0, 9, (6, 5), generator=g),
        "text_length": torch.full((6,), 5),
    }


def train(model, terms, ema, first=0, last=STEPS):
    """Steps of gradient descent; returns all online weights after each of them."""
    history = []
    parameters = [p for p in (*model.parameters(), *terms.parameters()) if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    for step in range(first, last):
        data = batch(step)
        needs = terms.needs
        features = model(data, needs) | frozen_features({"ema": ema}, data, needs)
        optimizer.zero_grad()
        terms(features, data)[0].backward()
        optimizer.step()
        assert all(p.grad is None for p in ema.parameters())
        ema.update(model, terms, step, STEPS)
        history.append(weights(model, terms))
    return history


def weights(model, terms):
    projector = {f"target.{n}": v for n, v in terms.terms["byol"].projector.named_parameters()}
    return {n: v.detach().clone() for n, v in model.named_parameters()} | {
        n: v.detach().clone() for n, v in projector.items()
    }


def averages(ema, terms):
    target = {f"target.{n}": v for n, v in terms.terms["byol"].target.named_parameters()}
    return dict(ema.model.named_parameters()) | target


@pytest.mark.parametrize("final", [None, 1.0])
def test_average_is_the_closed_form(final):
    model, terms = student(), objective()
    ema = Ema(model, EmaConfig(0.9, final))
    history = [weights(model, terms), *train(model, terms, ema)]
    decays = [
        0.9 if final is None else 1 - 0.1 * (math.cos(math.pi * k / STEPS) + 1) / 2
        for k in range(STEPS)
    ]
    # How much of each state is left at the end: (1 - d_k) times all later decays.
    parts = [math.prod(decays)]
    parts += [(1 - decays[k]) * math.prod(decays[k + 1 :]) for k in range(STEPS)]
    assert math.isclose(sum(parts), 1)
    for name, average in averages(ema, terms).items():
        want = sum(part * state[name] for part, state in zip(parts, history, strict=True))
        torch.testing.assert_close(average, want, rtol=1e-12, atol=1e-14)
    moved = [n for n, v in history[0].items() if not torch.equal(v, history[-1][n])]
    assert {"image_projection.weight", "text.table.weight", "target.0.weight"} <= set(moved)
    for own, other in zip(ema.model.buffers(), model.buffers(), strict=True):
        assert torch.equal(own, other)


@pytest.mark.parametrize("beta", [0.5, 0.1, 1.0, 3.0])
def test_average_by_a_beta_distribution_is_the_weighted_mean_of_all_states(beta):
    model, terms = student(), objective()
    ema = Ema(model, EmaConfig(beta=beta))
    history = [weights(model, terms), *train(model, terms, ema)]
    places = [(k + 0.5) / (STEPS + 1) for k in range(STEPS + 1)]
    density = beta_distribution(beta, beta).pdf(places)
    for name, average in averages(ema, terms).items():
        rows = torch.stack([state[name] for state in history]).numpy()
        want = torch.from_numpy(np.average(rows, axis=0, weights=density))
        torch.testing.assert_close(average.detach(), want, rtol=1e-12, atol=1e-14)


def test_a_long_average_by_a_beta_distribution_forgets_nothing():
    config, total, mean = EmaConfig(beta=0.5), 20_000, 0.0
    states = np.random.default_rng(0).normal(size=total + 1)
    mean = states[0]
    for step in range(total):
        decay = config.at(step, total)
        mean = decay * mean + (1 - decay) * states[step + 1]
    density = beta_distribution(0.5, 0.5).pdf((np.arange(total + 1) + 0.5) / (total + 1))
    assert mean == pytest.approx(np.average(states, weights=density), rel=1e-9)


@pytest.mark.parametrize("config", [EmaConfig(0.9, 1.0), EmaConfig(beta=0.5)])
def test_average_goes_on_from_what_was_saved(config):
    def parts():
        model, terms = student(), objective()
        return model, terms, Ema(model, config)

    whole, first, second = parts(), parts(), parts()
    train(*whole)
    train(*first, last=5)
    for saved, fresh in zip(first, second, strict=True):
        fresh.load_state_dict(saved.state_dict())
    train(*second, first=5)
    for one, other in zip(whole, second, strict=True):
        for name, value in one.state_dict().items():
            assert torch.equal(value, other.state_dict()[name]), name


def test_a_view_is_computed_once_and_only_if_needed():
    teacher, ema = FrozenTowers(student()), Ema(student(), EmaConfig(0.9))
    calls = []
    teacher.model.image.register_forward_hook(lambda *_: calls.append("image"))
    for towers in (teacher, ema):
        towers.model.text.register_forward_hook(lambda *_: calls.append("text"))
    data = batch(0) | {"image.a": batch(1)["image"]}
    needs = {"teacher.x.image", "teacher.x.image.raw", "ema.image.a.raw", "image", "logit_scale"}
    got = frozen_features({"teacher.x": teacher, "ema": ema}, data, needs)
    assert calls == ["image"]
    assert needs - {"image", "logit_scale"} <= got.keys()
    want = student().eval().project_image(data["image.a"])
    torch.testing.assert_close(got["ema.image.a.raw"], want.detach())
    assert frozen_features({"teacher.x": teacher}, data, {"image", "teacher.xy.image"}) == {}


def test_what_nobody_provides_is_refused_with_the_fix():
    views = ("image", "text", "image.a")

    def check(need, *frozen, stored=()):
        check_needs({need, "image", "key", "logit_scale"}, frozen, views, stored)

    check("ema.image.a.raw", "ema")
    check("teacher.x.logit_scale", "teacher.x")
    check("teacher.image", stored=["teacher.image"])
    check("image.a.raw")
    check("large.image.raw", stored=["large.image.raw"])
    for need in ("image.strong_1", "text.other.raw", "image.patches", "image.logit_scale"):
        with pytest.raises(ValueError, match=f"needs '{need}', but batches have no .*data.views"):
            check(need)
    with pytest.raises(ValueError, match=r"'large.image.raw', .*sidecars.large a column image.raw"):
        check("large.image.raw", stored=["large.image"])
    with pytest.raises(ValueError, match=r"'ema.image', .* ema: \{decay: 0.996\}"):
        check("ema.image", "teacher.x")
    with pytest.raises(ValueError, match=r"teachers: \{y: .*source: RUN_DIR"):
        check("teacher.y.image", "teacher.x", "ema")
    with pytest.raises(ValueError, match="or store them in a sidecar"):
        check("teacher.image", "teacher.x")
    with pytest.raises(ValueError, match=r"batches have no 'image.b': name one of"):
        check("ema.image.b.raw", "ema")


def test_an_average_in_16_bits_is_refused():
    model, terms = student().bfloat16(), objective()
    with pytest.raises(ValueError, match="kept in 16 bits"):
        Ema(model, EmaConfig(0.9)).update(model, terms, 0, STEPS)


def test_decays_lie_between_0_and_1():
    with pytest.raises(ValueError, match=r"ema\.final_decay is 1\.5"):
        EmaConfig(0.9, 1.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"ema\.decay is None and ema\.beta None: give one of them"),
        ({"decay": 0.9, "beta": 0.5}, r"ema\.decay is 0\.9 and ema\.beta 0\.5: give one of them"),
        ({"beta": 0.0}, r"ema\.beta is 0\.0: it must be above 0"),
        ({"beta": 0.5, "final_decay": 1.0}, "there is no final_decay with it"),
    ],
)
def test_an_average_has_a_decay_or_a_beta(options, message):
    with pytest.raises(ValueError, match=message):
        EmaConfig(**options)
