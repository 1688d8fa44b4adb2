"""The recorder of GPU memory, in a whole run with its key.

(The profiler of kernels talks to the driver itself, and ends a process on the null GPU.)
"""

import pickle

import pytest
from null_gpu.jobs import fit


@pytest.mark.parametrize("world_size", [1])
def test_memory_of_some_steps_has_its_stacks(null_gpu, run_file, tmp_path, world_size):
    options = {"trace.memory_steps": [2, 3]}
    null_gpu(world_size, fit, run_file, tmp_path / "run", options, (12, 15))
    names = sorted(path.name for path in (tmp_path / "run" / "trace").iterdir())
    assert names == ["memory-2-3-rank-0.pickle"]
    recorded = pickle.loads((tmp_path / "run" / "trace" / names[0]).read_bytes())
    stacks = [event["frames"] for events in recorded["device_traces"] for event in events]
    assert any("training_step" in frame["name"] for frames in stacks for frame in frames)
