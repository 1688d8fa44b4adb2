"""What is known of the machine's device."""

import pytest
import torch

from counterpoint.launch.run.devices import check_rings, known_peak
from counterpoint.losses.distributed.exchange import AllGather, Ring
from counterpoint.losses.infonce import InfoNCE
from counterpoint.losses.objective import Objective
from counterpoint.train.phases import Phase, Phases


@pytest.mark.parametrize(
    ("name", "precision", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16-mixed", 989),
        ("NVIDIA H200", "16-mixed", 989),
        ("NVIDIA A100-SXM4-80GB", "bf16-true", 312),
        ("NVIDIA A100-SXM4-80GB", "32-true", 19.5),
        ("NVIDIA B200", "bf16-mixed", 2250),
        ("NVIDIA H100 PCIe", "bf16-mixed", None),  # slower than its namesake
        ("NVIDIA H200", "64-true", None),
        (None, "bf16-mixed", None),
    ],
)
def test_peaks_by_name(monkeypatch, name, precision, peak):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: name is not None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: name)
    found = known_peak(precision)
    assert (found and found[0]) == peak
    if found is not None:
        assert found[1].startswith("configs/device/") and name in found[1]


@pytest.mark.parametrize(
    ("exchange", "batch_size", "ranks", "is_told"),
    [
        (Ring(), 512 * 64, 512, True),
        (Ring(), 8 * 2048, 8, False),
        (Ring(), 8 * 2047, 8, True),
        (Ring(), 4 * 16, 4, False),
        (AllGather(), 512 * 64, 512, False),
    ],
)
def test_a_ring_of_small_blocks_is_told(exchange, batch_size, ranks, is_told):
    objective = Objective({"clip": InfoNCE(exchange=exchange)})
    large = Phase(4 * batch_size, 4 * batch_size, 1e-3)
    phases = Phases({"large": large, "small": Phase(batch_size, batch_size, 1e-3)})
    hint = check_rings(objective, phases, ranks)
    assert (hint is not None) == is_told
    if hint is not None:
        assert hint.startswith("objective.terms.clip passes blocks of ") and "AllGather" in hint
