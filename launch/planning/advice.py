"""Sentences that warn: what will not fit, what will be waited for, and which key to turn.

In: an estimate. Out: sentences, the worst first.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from ...data.workers import MOST
from .devices import GIB
from .estimate import Cluster, Estimate, PhaseEstimate, cores

ROOM = 0.92  # of the memory; the rest is lost to fragments
# Shares of a step from which a part is worth a sentence.
EXCHANGE, SAVING, HOST, GRADIENTS = 0.05, 0.02, 0.1, 0.05


def advice(estimate: Estimate, config: Mapping[str, Any], cluster: Cluster) -> list[str]:
    """Returns what to know before the run starts."""
    sentences = []
    for phase in estimate.phases:
        where = f"phases.{phase.name}: " if len(estimate.phases) > 1 else ""
        found = [
            *_memory(phase, config, cluster),
            *_time(phase, config),
            *_loader(phase, estimate, config),
        ]
        sentences += [where + sentence for sentence in found]
    every = config["checkpoint"]["every_n_steps"]
    step = min(phase.step for phase in estimate.phases)
    if (share := estimate.checkpoint_seconds / (every * step)) > SAVING:
        fewer = math.ceil(every * share / SAVING / 1000) * 1000
        sentences.append(
            f"saving takes {share:.0%} of the time: a checkpoint of "
            f"{estimate.checkpoint_bytes / 1e9:.1f} GB every {every * step:.0f} s; set "
            f"checkpoint.format to distributed, or checkpoint.every_n_steps to {fewer}"
        )
    return sentences


def _memory(phase: PhaseEstimate, config: Mapping[str, Any], cluster: Cluster) -> Iterator[str]:
    memory = phase.memory
    total, room = sum(memory.values()), cluster.device.memory * GIB
    chunks = config["model"]["chunks"]
    if total <= ROOM * room:
        if chunks > 1 and total - memory["activations"] * (1 - chunks) < ROOM * room:
            yield (
                f"it would fit without recomputation ({chunks} chunks): set model.chunks to 1, "
                "which saves a quarter of the computation"
            )
        return
    start = (
        f"it does not fit: {total / GIB:.1f} GiB of {room / GIB:.0f} on a device (as a rule "
        f"{ROOM:.0%} of them can be used)"
    )
    fixed = total - memory["activations"]
    if fixed < ROOM * room:
        needed = memory["activations"] * chunks / (ROOM * room - fixed)
        more = min(phase.rows, 2 ** math.ceil(math.log2(needed)))
        if memory["activations"] * chunks / more + fixed < ROOM * room:
            yield f"{start}; set model.chunks to {more}, for a third more computation"
            return
    if cluster.count > 1 and not str(config["trainer"].get("strategy")).startswith("fsdp2"):
        yield f"{start}; cut the model up over devices (trainer.strategy: fsdp2)"
        return
    yield f"{start}; take more devices, or a smaller phases.{phase.name}.batch_size"


def _time(phase: PhaseEstimate, config: Mapping[str, Any]) -> Iterator[str]:
    step, seconds = phase.step, phase.seconds
    if seconds.get("host", 0.0) > HOST * step:
        fix = (
            "compile the layers (trainer.compile: inductor), "
            if not (config["trainer"].get("compile"))
            else ""
        )
        yield (
            f"the host cannot launch {phase.count.launches:,} kernels as fast as the device runs "
            f"them: it waits {seconds['host'] / step:.0%} of the time; {fix}set model.text_parts "
            "to 2, or take fewer devices or a larger batch"
        )
    exchange = seconds.get("exchange", 0.0)
    sends = [each for each in phase.collectives if each.kind == "send"]
    if exchange > EXCHANGE * step:
        ring = "; take the all-gather instead of the ring" if sends else ""
        yield (
            f"the loss waits {exchange / step:.0%} of the time for other devices' features{ring}; "
            "more pairs a device make it less"
        )
    for part, name in (("gradients", "gradients"), ("parameters", "parameters")):
        if seconds.get(part, 0.0) > GRADIENTS * step:
            fewer = "fewer model.chunks, " if config["model"]["chunks"] > 1 else ""
            yield (
                f"{name} travel longer than there is computation to hide them behind: "
                f"{seconds[part] / step:.0%} of the time; {fewer}more pairs a device make it less"
            )


def _loader(phase: PhaseEstimate, estimate: Estimate, config: Mapping[str, Any]) -> Iterator[str]:
    needed, workers = cores(phase, estimate.images_per_core), config["data"]["num_workers"]
    if workers == "auto":
        if needed > MOST:
            yield (
                f"the loader needs {needed} cores a device, and data.num_workers=auto takes {MOST} "
                f"at most; set it to {needed} if the cores are there, or store smaller images"
            )
    elif needed > max(1, workers):
        yield (
            f"the loader needs {needed} cores a device and data.num_workers is {workers}: at best "
            f"{max(1, workers) / needed:.0%} of the speed; set data.num_workers to {needed} if the "
            "cores are there, or store smaller images"
        )
