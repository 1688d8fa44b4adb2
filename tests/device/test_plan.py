"""The memory that `counterpoint plan` computes, against the peak of torch's allocator on a step."""

import pytest
from null_gpu.steps import Setting, step

from counterpoint.launch.config import parser as run_config
from counterpoint.launch.planning.devices import load_device
from counterpoint.launch.planning.estimate import Cluster, estimate

GIB = 2**30
RANKS = 64


MODELS = {"vit_b32": "ViT-B/32", "vit_b16": "ViT-B/16"}


def planned(model, strategy, chunks):
    """The plan of a step of 512 pairs a rank."""
    words = ["clip_400m", f"--model={model}", f"--model.chunks={chunks}"]
    words += [f"--trainer.strategy={strategy}", "--trainer.precision=bf16-mixed"]
    words += [f"--phases.train.batch_size={512 * RANKS}"]
    parser = run_config.make_parser()
    config = run_config.plain(parser, run_config.parse(parser, words))
    return estimate(config, Cluster(load_device("h100"), RANKS, 8)).phases[0]


@pytest.mark.soak
@pytest.mark.parametrize(
    ("model", "strategy", "chunks"),
    [
        ("vit_b32", "ddp", 1),
        ("vit_b32", "ddp", 4),
        ("vit_b32", "ddp_bf16", 1),
        ("vit_b32", "ddp", 8),
        ("vit_b32", "fsdp2", 1),
        ("vit_b32", "fsdp2", 8),
        ("vit_b16", "ddp", 1),
    ],
)
def test_memory_and_bytes_are_those_of_a_step(null_gpu, model, strategy, chunks):
    (counted,) = null_gpu(1, step, Setting(MODELS[model], strategy=strategy, chunks=chunks))
    phase = planned(model, strategy, chunks)
    memory = {part: size / GIB for part, size in phase.memory.items() if part != "reserved"}
    assert sum(memory.values()) == pytest.approx(counted.peak_bytes / GIB, rel=0.1), memory
    for kind in ("all-gather", "reduce-scatter", "all-reduce"):
        size = sum(each.bytes for each in phase.collectives if each.kind == kind)
        found = counted.a_step[f"{kind.replace('-', '_')} bytes"]
        # The norm of cut gradients is one number more.
        assert size == pytest.approx(found, rel=0.002, abs=1000), kind
