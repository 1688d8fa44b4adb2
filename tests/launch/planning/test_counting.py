"""Counts on `meta` against a real step of the same model on the CPU."""

import math

import pytest
import tiny_tower
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from counterpoint.launch.planning import meta
from counterpoint.launch.planning.counting import count_step
from counterpoint.launch.planning.devices import load_device
from counterpoint.models.image import TimmTower
from counterpoint.models.reducers.base import Reduction
from counterpoint.models.text.clip import ClipTextTower
from counterpoint.models.two_tower import TwoTower
from counterpoint.train.batch_transfer import lengths_on_host
from counterpoint.train.callbacks.flops import on_meta

N, CONTEXT = 24, 24
NEEDS = frozenset(("image", "text"))


@pytest.fixture(autouse=True)
def fused_attention():
    """As a run in fp32 chooses it; a run in bf16 in this process leaves another choice."""
    before = torch.backends.cuda.flash_sdp_enabled()
    torch.backends.cuda.enable_flash_sdp(True)
    yield
    torch.backends.cuda.enable_flash_sdp(before)


def two_tower(image=None, **more):
    image = image or tiny_tower.tiny_vit(2, 16, 0.0)
    return TwoTower(image, ClipTextTower(32, 2, 2, CONTEXT, vocab_size=50), 16, **more)


def batch(size):
    g = torch.Generator().manual_seed(0)
    length = meta.caption_lengths(N, 8.0, CONTEXT)
    made = {
        "image": torch.randint(0, 256, (N, 3, size, size), dtype=torch.uint8, generator=g),
        "text": torch.randint(1, 50, (N, CONTEXT), generator=g),
        "text_length": length,
    }
    return made, {k: v.to("meta") for k, v in made.items()} | lengths_on_host(
        {"text_length": length}
    )


def counted(model, size, precision="32-true", kind="cpu"):
    _, without_memory = batch(size)
    reduction, device = Reduction(0, 0), load_device("h100" if kind == "cuda" else "cpu")
    return count_step(on_meta(model), without_memory, NEEDS, reduction, device, precision)


def kept_in_memory(model, made):
    """Bytes that a real step holds between its two passes, by the storages that autograd keeps."""
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    own |= {t.untyped_storage().data_ptr() for t in made.values()}
    kept, alive = {}, []

    def pack(tensor):
        alive.append(tensor)
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        features = model(made)
    assert features["image"].requires_grad
    return sum(kept.values())


@pytest.mark.parametrize("chunks", [1, 3])
def test_products_are_those_of_a_real_step(chunks):
    model = two_tower(chunks=chunks)
    made, _ = batch(16)
    with FlopCounterMode(display=False) as counter:
        features = model(made)
        (features["image"].sum() + features["text"].sum()).backward()
    count = counted(model, 16)
    # Torch counts the fused kernel's own recomputation of its products, which ours does not.
    assert count.flops == pytest.approx(counter.get_total_flops(), rel=0.03)
    assert (count.model_flops < 0.8 * count.flops) == (chunks > 1)


@pytest.mark.parametrize("image", [None, "resnet18"])
def test_what_is_kept_is_what_autograd_keeps(image):
    model = two_tower(image and TimmTower(image, 64), text_parts=2)
    made, _ = batch(64 if image else 16)
    real = kept_in_memory(model, made)
    count = counted(model, 64 if image else 16)
    assert count.kept == pytest.approx(real, rel=0.05)
    assert count.kept < count.activations < 1.6 * count.kept
    assert count.activations <= count.peak


def test_chunks_need_memory_for_a_part_and_are_called_as_often():
    whole, parts = counted(two_tower(), 16), counted(two_tower(chunks=4), 16)
    assert parts.activations < 0.5 * whole.activations
    assert set(whole.calls.values()) == {1, 4} and set(parts.calls.values()) == {4}
    assert parts.model_flops < parts.flops == pytest.approx(4 / 3 * parts.model_flops, rel=0.01)


def test_autocast_is_imitated():
    """On the CPU a real autocast and ours keep the same (there norms stay in 16 bits)."""
    model = two_tower(text_parts=1)
    made, _ = batch(16)
    autocast = torch.autocast("cpu", torch.bfloat16, cache_enabled=False)
    with autocast, sdpa_kernel(SDPBackend.MATH):
        real = kept_in_memory(model, made)
    mixed = counted(model, 16, "bf16-mixed")
    assert mixed.kept == pytest.approx(real, rel=0.06)
    assert mixed.kept < 0.9 * counted(model, 16).kept
    kinds = counted(model, 16, "bf16-mixed", "cuda").seconds
    assert kinds["bf16 products"] > 0 and kinds["casts"] > 0 and "fp32 products" not in kinds
    assert "bf16 products" not in counted(model, 16, kind="cuda").seconds


def test_a_tower_that_looks_at_its_data_is_refused():
    class Curious(TimmTower):
        def forward(self, image, keep=None):
            return super().forward(image) * float(image.sum())

    with pytest.raises(ValueError, match="looks at its data"):
        counted(
            two_tower(
                Curious(
                    "vit_tiny_patch16_224",
                    16,
                    model_args={"patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2},
                )
            ),
            16,
        )


def test_captions_are_as_long_as_they_are_said_to_be():
    lengths = meta.caption_lengths(4096, 12.4, 77).double()
    assert lengths.mean().item() == pytest.approx(12.4, rel=0.02)
    assert lengths.min() >= 3 and lengths.max() > 60
    assert lengths.log().std().item() == pytest.approx(meta.SPREAD, rel=0.1)
    assert math.isclose(meta.caption_lengths(5, 3.0, 2).double().mean().item(), 2.0)
