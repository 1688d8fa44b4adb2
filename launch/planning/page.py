"""An estimate as text for people and as values for programs.

In: an estimate with its advice. Out: lines, or plain JSON.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from ...data.workers import MOST
from .devices import GIB
from .estimate import Cluster, Estimate, PhaseEstimate, cores, fed_seconds, images_a_pair

NUM_SHOWN = 4  # parts of a step on its line
FELT = 1.02  # times the hours from which the loader's own are shown


def lines(plan: Mapping[str, Any]) -> Iterator[str]:
    """Yields what is printed of `values`."""
    parameters = plan["parameters"]
    yield (
        f"{plan['name']} on {plan['devices']} x {plan['device']} ({plan['nodes']} nodes), "
        f"{plan['strategy']}, {plan['precision']}: computed, not measured"
    )
    yield (
        f"parameters  {parameters['total'] / 1e6:.1f} M, {parameters['trainable'] / 1e6:.1f} M of "
        "them trained"
    )
    for phase in plan["phases"]:
        yield (
            f"phase       {phase['name']}: {phase['steps']:,} steps of {phase['batch']:,} pairs, "
            f"{phase['rows']:,} a device"
        )
        yield from _phase_lines(phase)
    yield (
        f"saves       {plan['checkpoint_bytes'] / 1e9:.2f} GB, {plan['checkpoint_seconds']:.1f} s "
        "each"
    )
    cost = "" if plan["cost"] is None else f", {plan['cost']:,.0f} at {plan['price']:g} a GPU hour"
    yield f"run         {_length(plan['hours'], plan['gpu_hours'])}{cost}"
    if plan["fed_hours"] > FELT * plan["hours"]:
        gpu_hours = plan["fed_hours"] * plan["devices"]
        yield (
            f"            {_length(plan['fed_hours'], gpu_hours)} with "
            f"data.num_workers {plan['num_workers']}, if each has a core"
        )
    yield from (f"warning     {sentence}" for sentence in plan["warnings"])
    yield from (f"assumed     {sentence}" for sentence in plan["assumed"])


def _length(hours: float, gpu_hours: float) -> str:
    if hours < 1:
        return f"{60 * hours:.1f} minutes"
    return f"{hours:,.1f} hours, {gpu_hours:,.0f} GPU hours"


def _phase_lines(phase: Mapping[str, Any]) -> Iterator[str]:
    again = phase["hardware_flops_per_pair"] / phase["flops_per_pair"] - 1
    more = f", {again:.0%} more with recomputation" if again > 0.005 else ""
    yield f"  compute   {phase['flops_per_pair'] / 1e9:.1f} GFLOP a pair{more}"
    memory = phase["memory"]
    named = ", ".join(f"{part} {size / GIB:.2f}" for part, size in memory.items())
    yield (
        f"  memory    {sum(memory.values()) / GIB:.1f} GiB of {phase['memory_there'] / GIB:.0f}: "
        f"{named}"
    )
    for each in phase["collectives"]:
        yield (
            f"  network   {each['purpose']}: {each['calls']:,} x {each['kind']}, "
            f"{each['bytes'] / 1e6:,.1f} MB, {1e3 * each['seconds']:.1f} ms"
        )
    seconds = sorted(phase["seconds"].items(), key=lambda item: -item[1])
    parts = ", ".join(f"{part} {1e3 * spent:.1f}" for part, spent in seconds[:NUM_SHOWN])
    yield (
        f"  step      {1e3 * phase['step_seconds']:.1f} ms, most of it {parts}; "
        f"{phase['launches']:,} launches"
    )
    yield (
        f"  speed     {phase['pairs_per_second']:,.0f} pairs/s, {phase['pairs_per_device']:,.0f} a "
        f"device; MFU {phase['mfu']:.0%}"
    )
    yield (
        f"  loader    {phase['images_per_second']:,.0f} images/s a device: {phase['cores']} cores"
    )


def values(
    config: Mapping[str, Any],
    estimate: Estimate,
    cluster: Cluster,
    warnings: list[str],
    named: Mapping[str, Any],
    price: float | None,
) -> dict[str, Any]:
    """Returns all numbers as plain values; `named` are the device's name and the precision."""
    hours, num_workers = estimate.seconds / 3600, config["data"]["num_workers"]
    num_workers = MOST if num_workers == "auto" else num_workers
    return {
        "name": config["name"],
        **named,
        "devices": cluster.count,
        "nodes": cluster.nodes,
        "strategy": config["trainer"].get("strategy") or "auto",
        "parameters": estimate.parameters,
        "phases": [_phase(phase, estimate, cluster) for phase in estimate.phases],
        "checkpoint_bytes": estimate.checkpoint_bytes,
        "checkpoint_seconds": estimate.checkpoint_seconds,
        "hours": hours,
        "fed_hours": fed_seconds(estimate, num_workers) / 3600,
        "num_workers": num_workers,
        "gpu_hours": hours * cluster.count,
        "price": price,
        "cost": None if price is None else hours * cluster.count * price,
        "warnings": warnings,
        "assumed": estimate.notes,
    }


def _phase(phase: PhaseEstimate, estimate: Estimate, cluster: Cluster) -> dict[str, Any]:
    rate, count = phase.batch / phase.step, phase.count
    is_one_node = cluster.nodes == 1
    return {
        "name": phase.name,
        "steps": phase.steps,
        "batch": phase.batch,
        "rows": phase.rows,
        "flops_per_pair": count.model_flops / phase.rows,
        "hardware_flops_per_pair": count.flops / phase.rows,
        "memory": phase.memory,
        "memory_there": cluster.device.memory * GIB,
        "collectives": [
            {
                **vars(each),
                "seconds": each.seconds(cluster.count, cluster.device, is_one_node),
            }
            for each in phase.collectives
        ],
        "seconds": phase.seconds,
        "hidden_seconds": phase.hidden,
        "step_seconds": phase.step,
        "launches": count.launches,
        "pairs_per_second": rate,
        "pairs_per_device": rate / cluster.count,
        "mfu": count.model_flops / phase.step / estimate.peak_flops,
        "images_per_second": rate / cluster.count * images_a_pair(phase),
        "cores": cores(phase, estimate.images_per_core),
    }
