"""Our Triton kernels, compiled for GPUs that are not there: nothing spills, loads are wide."""

import pytest

pytest.importorskip("triton", reason="Triton comes with torch on Linux only")

from triton_aot import CAPABILITIES, kernels

# Shared memory that a program may have, KiB: consumer cards run the narrow block, too.
ROOM = {80: 99, 90: 227, 100: 227}
OFTEN = 90


@pytest.mark.parametrize(
    "capability",
    [pytest.param(c, marks=() if c == OFTEN else pytest.mark.soak) for c in CAPABILITIES],
)
def test_kernels_fit_registers(tmp_path, capability):
    found = kernels(capability, tmp_path)
    assert len(found) == 7
    for name, kernel in found.items():
        assert kernel.spilled == 0 and kernel.registers <= 255, (name, kernel)
        assert kernel.shared <= ROOM[capability] * 1024, (name, kernel)
        assert kernel.loads[128] >= 8, (name, kernel)
        if name.startswith("product"):
            assert kernel.tensor_cores and set(kernel.loads) == {128}, (name, kernel)
        elif name.startswith("sums"):
            assert set(kernel.loads) == {128}, (name, kernel)
