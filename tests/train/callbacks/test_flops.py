"""FLOPs of the towers against torch's counter over a real training step on real tensors."""

import math

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from counterpoint.models.image import ImageTower, TimmTower
from counterpoint.models.reducers.base import Reduction
from counterpoint.models.reducers.patches import RandomPatches, Resize
from counterpoint.models.reducers.tokens import Truncate
from counterpoint.models.shared import SharedImageTower, SharedTextTower
from counterpoint.models.text.clip import ClipTextTower
from counterpoint.models.two_tower import TwoTower
from counterpoint.train.callbacks import flops
from counterpoint.train.callbacks.flops import FlopMeter, measure_peak, on_meta

N, CONTEXT = 12, 24
SIZES = {"patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 2}
VITS = {
    "class token": {},
    "average": {"global_pool": "avg", "class_token": False},
    "attention pool": {"global_pool": "map", "class_token": False},
    "registers": {"reg_tokens": 4, "init_values": 0.1},
}
REDUCTIONS = {
    "all": (None, None),
    "flip": (RandomPatches(0.5), None),
    "clipa": (Resize(24), Truncate(8)),
}


def vit(kind="class token"):
    return TimmTower("vit_tiny_patch16_224", 48, model_args=SIZES | VITS[kind])


def two_tower(image, **more):
    return TwoTower(image, ClipTextTower(64, 2, 2, CONTEXT, vocab_size=50), 32, **more)


def batch():
    g = torch.Generator().manual_seed(0)
    return {
        "image": torch.randint(0, 256, (N, 3, 48, 48), dtype=torch.uint8, generator=g),
        "text": torch.randint(1, 50, (N, CONTEXT), generator=g),
        "text_length": torch.randint(3, CONTEXT + 1, (N,), generator=g),
        "key": torch.randint(0, 1 << 62, (N,), generator=g),
    }


def step(model, reduction=None, needs=("image", "text")):
    """A training step without matrix products of its own."""
    features = model(batch(), needs, reduction)
    sum(features[name].sum() for name in needs).backward()


def by_torch(model, *args):
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        step(model, *args)
    return counter.get_total_flops()


def by_us(model, *args):
    meter = FlopMeter([model])
    meter.listening = True
    step(model, *args)
    meter.listening = False
    step(model, *args)  # evaluation does not count
    return meter.take()


# Every tower without a reduction, and every reduction with one tower.
PAIRED = [
    pytest.param(
        kind, name, marks=[] if name == "all" or kind == "class token" else pytest.mark.soak
    )
    for kind in VITS
    for name in REDUCTIONS
]


@pytest.mark.parametrize(("kind", "reduction"), PAIRED)
def test_a_step_costs_what_torch_counts(kind, reduction):
    model = two_tower(vit(kind))
    reduction = Reduction(0, 3, *REDUCTIONS[reduction])
    want = by_torch(model, reduction)
    flops, hardware = by_us(model, reduction)
    assert flops == hardware == pytest.approx(want, rel=0.01)


def test_what_is_left_out_costs_nothing():
    model = two_tower(vit(), text_parts=0)
    all_tokens, _ = by_us(model)
    flip, _ = by_us(model, Reduction(0, 3, *REDUCTIONS["flip"]))
    trimmed, _ = by_us(two_tower(vit()))
    assert flip < 0.75 * all_tokens and trimmed < 0.95 * all_tokens


def test_recomputation_is_of_the_hardware_not_of_the_model():
    want = by_torch(two_tower(vit()))
    model = two_tower(vit(), chunks=4)
    flops, hardware = by_us(model)
    assert flops == pytest.approx(want, rel=0.01)
    assert hardware == pytest.approx(by_torch(model), rel=0.01)
    assert hardware > 1.3 * flops


def test_frozen_towers_and_further_views():
    model = two_tower(vit())
    for part in (model.image, model.image_projection):
        part.requires_grad_(False)
    assert by_us(model)[0] == pytest.approx(by_torch(model), rel=0.01)
    assert by_us(model, None, ("text",))[0] == pytest.approx(by_torch(model, None, ("text",)))


def test_shared_transformers_and_other_networks():
    image = SharedImageTower(48, 8, 64, 2, 2)
    shared = TwoTower(image, SharedTextTower(64, CONTEXT, vocab_size=50), 32)
    assert by_us(shared)[0] == pytest.approx(by_torch(shared), rel=0.01)
    net = two_tower(TimmTower("resnet18", 48))
    assert by_us(net)[0] == pytest.approx(by_torch(net), rel=0.01)


def test_the_copy_has_no_memory_and_the_model_stays():
    model = two_tower(vit())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    twin = on_meta(model)
    assert {p.device.type for p in twin.parameters()} == {"meta"}
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    by_us(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Device:
    """A clock, and products that take as long on it as on a device of this speed."""

    def __init__(self, speed, first=0.0):
        self.now, self.speed, self.first = 0.0, speed, first
        self.sizes = []

    def perf_counter(self):
        return self.now

    def product(self, a, b):
        self.sizes.append(len(a))
        is_new = self.sizes.count(len(a)) == 1
        taken = 1e-5 + 2 * len(a) ** 3 / self.speed * (1.7 if is_new else 1)
        self.now += taken + (self.first if len(self.sizes) == 1 else 0)
        return taken


@pytest.mark.parametrize("speed", [2e9, 4e9, 2e10, 3e11, 1e13, 8e14])
def test_a_peak_takes_less_than_half_a_second_on_any_device(monkeypatch, speed):
    device = Device(speed)
    monkeypatch.setattr(flops.time, "perf_counter", device.perf_counter)
    monkeypatch.setattr(flops, "product_seconds", device.product)
    monkeypatch.setitem(flops.LARGEST, "cpu", flops.LARGEST["cuda"])
    monkeypatch.setattr(flops, "random_matrices", lambda size, *rest: (range(size), range(size)))
    peak = measure_peak(torch.device("cpu"), "bf16-mixed")
    assert 0.1 < device.now < 0.5
    assert 0.9 * speed < peak / torch.get_num_threads() <= speed
    assert (max(device.sizes) < 512) == (speed < 1e10) and device.sizes[:2] == [64, 64]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "64-true"])
def test_a_peak_is_measured_on_random_numbers_that_nobody_else_draws(monkeypatch, precision):
    seen = []
    monkeypatch.setattr(flops, "product_seconds", lambda a, b: seen.append((a, b)) or 1.0)
    before = torch.get_rng_state(), torch.get_num_threads()
    monkeypatch.setattr(flops.time, "perf_counter", iter([0.0, 0.0, 1.0]).__next__)
    assert measure_peak(torch.device("cpu"), precision) > 0
    assert torch.equal(torch.get_rng_state(), before[0])
    assert torch.get_num_threads() == before[1]
    kinds = {"32-true": torch.float32, "bf16-mixed": torch.bfloat16, "64-true": torch.float64}
    for a, b in seen:
        assert a.dtype == b.dtype == kinds[precision]
        assert a.double().std() == pytest.approx(1, rel=0.1) and not torch.equal(a, b)


class Curious(ImageTower):
    """A tower whose work depends on its data."""

    width, image_size = 64, 48

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 64)

    def forward(self, image, keep=None):
        pixels = image.float().mean((2, 3))
        return self.layer(pixels if pixels.sum().item() else pixels + 1)


def test_what_cannot_be_counted_is_said_not_guessed(capsys):
    flops, _ = by_us(two_tower(Curious()))
    assert math.isnan(flops)
    assert "FLOPs of Curious are not known" in capsys.readouterr().out


def test_what_cannot_be_counted_is_reported_once_not_for_each_shape(capsys):
    model = two_tower(Curious())
    meter = FlopMeter([model])
    meter.listening = True
    for num_images in (2, 3, 4):
        model.image(torch.zeros(num_images, 3, 48, 48, dtype=torch.uint8))
    assert math.isnan(meter.take()[0])
    assert capsys.readouterr().out.count("FLOPs of Curious are not known") == 1


def test_other_numbers_of_rows_are_not_counted_again(monkeypatch):
    """Parts of captions have another number of rows in almost every step."""
    model, counted, real = two_tower(vit()), [], flops.cost
    monkeypatch.setattr(flops, "cost", lambda call: counted.append(call) or real(call))
    meter = FlopMeter([model])
    meter.listening = True
    hook = next(iter(model.text._forward_pre_hooks.values()))
    twin = hook.args[0]
    sums = []
    for rows in (7, 1, 40):
        inputs = torch.ones(rows, 9, dtype=torch.int64), torch.full((rows,), 9)
        hook(model.text, inputs)
        sums.append(meter.take())
        shapes = tuple(flops.Input(x.shape, x.dtype, False) for x in inputs)
        assert sums[-1][0] == sum(real(flops.Call(twin, shapes, True, False)))
    assert len(counted) == 2 and sums[0] == (7 * sums[1][0], 7 * sums[1][1])
