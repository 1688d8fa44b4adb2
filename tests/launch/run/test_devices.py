"""What is known of the machine's device."""

import pytest
import torch

from counterpoint.launch.run.devices import known_peak


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
