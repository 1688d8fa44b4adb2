"""What a step of ViT-B/32 may cost: launches, bytes between ranks, memory."""

import pytest
from null_gpu.jobs import Counted
from null_gpu.steps import Setting, step

# Rank 0 of 64, 512 pairs a rank, in bf16-mixed; layers are not compiled.
DDP, FSDP2 = Setting(), Setting(strategy="fsdp2")
CHUNKED = Setting(strategy="fsdp2", chunks=8)
MB, GIB = 10**6, 2**30


@pytest.mark.soak
@pytest.mark.parametrize(
    ("setting", "launches", "gathered", "scattered", "reduced", "peak"),
    [
        # Texts are gathered, and their gradients scattered: 67 MB. Parameters are 605 MB in fp32.
        pytest.param(DDP, 1850, 68 * MB, 68 * MB, 606 * MB, 12.8 * GIB, id="ddp"),
        # Layers in bf16 once a step, the rest in fp32.
        pytest.param(FSDP2, 1750, 440 * MB, 683 * MB, MB, 10.6 * GIB, id="fsdp2"),
        pytest.param(CHUNKED, 17300, 440 * MB, 683 * MB, MB, 2.0 * GIB, id="fsdp2-8-chunks"),
    ],
)
def test_a_step_of_vit_b32(null_gpu, setting, launches, gathered, scattered, reduced, peak):
    (counted,) = null_gpu(1, step, setting)
    assert isinstance(counted, Counted)
    assert "\n".join(counted.waits) == ""
    found, names = counted.a_step, ("all_gather", "reduce_scatter", "all_reduce")
    assert found["launch"] <= launches and counted.peak_bytes <= peak
    for name, most in zip(names, (gathered, scattered, reduced), strict=True):
        assert 0 < found[f"{name} bytes"] <= most, name
    assert found["broadcast calls"] == 0
    assert found["copy:DtoD"] <= 80  # the 300 gradients are not copied to buckets
