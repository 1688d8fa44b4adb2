"""Between log steps no step waits for the device: neither in whole runs nor in any loss."""

import pytest
import torch
from null_gpu.device import Counts, imagine_ranks, prepare
from null_gpu.jobs import fit
from term_case import all_cases

from counterpoint.losses.captioning.captioning import Captioning
from counterpoint.losses.distributed.collectives import equal_rows
from counterpoint.losses.kernels import products_triton
from counterpoint.train.batch_transfer import lengths_on_host

# 0-based, of a run that logs every eighth. DDP takes the time of its first ten and waits for it.
STEPS = (12, 15)
# Strategy, processes, options; launches, gathers and mebibytes that a step may take.
CASES = [
    ("auto", 1, {}, 450, 0, 55),
    pytest.param("ddp", 2, {}, 550, 2, 55, marks=pytest.mark.soak),
    pytest.param("fsdp2", 2, {}, 550, 6, 50, marks=pytest.mark.soak),
    ("ddp", 2, {"ema.decay": 0.9}, 600, 2, 60),
    ("fsdp2", 2, {"ema.decay": 0.9}, 600, 6, 55),
]
# Drawn clusters are as many on a rank as the draw says, which is made on the device.
WAITING = {"clusters/sharded_part"}
# How many samples a mask names, a device that computes nothing cannot say; NVRTC, by which torch
# makes the kernel of `ndtri`, and cuSOLVER do not work without a driver.
UNKNOWN = {"present/stored_teacher", "refine/rafa", "primary_components"}
ROWS, RANKS = 8, 2


@pytest.mark.parametrize(
    ("strategy", "world_size", "options", "launches", "gathers", "mebibytes"), CASES
)
def test_no_step_waits(
    null_gpu, run_file, tmp_path, strategy, world_size, options, launches, gathers, mebibytes
):
    options = {"trainer.strategy": strategy, "trainer.precision": "bf16-mixed"} | options
    for counted in null_gpu(world_size, fit, run_file, tmp_path / "run", options, STEPS):
        assert 300 < counted.a_step["launch"] <= launches
        assert counted.a_step["all_gather calls"] <= gathers
        assert counted.peak_bytes <= mebibytes * 2**20
        assert "\n".join(counted.waits) == ""
        assert counted.a_step["wait"] == 0
        # The batch's entries are copied beside the kernels.
        assert counted.a_step.get("copy:HtoD:pinned:side", 0) >= 6


def test_a_read_in_the_step_is_found(null_gpu, run_file, tmp_path):
    """The count sees what it is there for."""
    (counted,) = null_gpu(1, fit, run_file, tmp_path / "run", {}, STEPS, True)
    assert [place for place in counted.waits if "training_step" in place]
    assert counted.a_step["wait"] >= 1


def waits_of_terms(rank, world_size, messages):
    """Places in which a term waits for the device, forward and backward, as one of two ranks."""
    prepare()
    # Triton compiles products for every odd size, a second each; whole runs launch them above.
    products_triton._launch = lambda *_: None
    imagine_ranks(RANKS)
    torch.distributed.init_process_group()
    counts, found = Counts(), {}
    for name, case in all_cases().items():
        if name in UNKNOWN or name.split("/")[0] in UNKNOWN:
            continue
        term = case.make().float().cuda()
        features, batch = case.inputs(torch.Generator().manual_seed(0), ROWS)
        features = {
            k: t.float().cuda().requires_grad_() if t.is_floating_point() else t.cuda()
            for k, t in features.items()
        }
        if "progress" in features:  # a number of the host's
            features["progress"] = features["progress"].detach().cpu()
        batch = {k: (t.float() if t.is_floating_point() else t).cuda() for k, t in batch.items()}
        batch |= lengths_on_host(case.inputs(torch.Generator().manual_seed(0), ROWS)[1])
        if isinstance(term, Captioning):
            term._checked |= {
                k for k in batch if k.startswith("text")
            }  # once, of a value that this device has never written
        for _ in range(2):  # the first call may make what is kept
            with equal_rows(ROWS), counts.waits() as places:
                sum(term(features, batch).values()).backward()
        found[name] = sorted(places)
    return found


def test_no_loss_waits(null_gpu):
    (found,) = null_gpu(1, waits_of_terms)
    assert len(found) > 40
    assert {name for name, places in found.items() if places} == WAITING, found
