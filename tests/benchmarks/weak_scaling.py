"""What a rank sends in a step when there are more of them, each with the same number of pairs.

Run: `cd tests && ../.venv/bin/python -m benchmarks.weak_scaling`. Nothing is measured: bytes are
counted on torch's fake process group and times are those of `counterpoint plan` for the H100, eight
in a node. Printed as Markdown, for docs/scaling.md.
"""

from collections.abc import Iterator
from typing import Any

from counterpoint.launch.config import parser as run_config
from counterpoint.launch.planning.devices import load_device
from counterpoint.launch.planning.estimate import Cluster, PhaseEstimate, estimate

ROWS, PER_NODE = 512, 8
WORLDS = 8, 64, 512
STRATEGIES = "ddp", "fsdp2"


def planned(world_size: int, strategy: str, *more: str) -> PhaseEstimate:
    """Returns the plan of `clip_400m` with 512 pairs a rank."""
    words = ["clip_400m", f"--trainer.strategy={strategy}", "--trainer.precision=bf16-mixed", *more]
    words.append(f"--phases.train.batch_size={ROWS * world_size}")
    parser = run_config.make_parser()
    config: dict[str, Any] = run_config.plain(parser, run_config.parse(parser, words))
    cluster = Cluster(load_device("h100"), world_size, world_size // PER_NODE)
    return estimate(config, cluster).phases[0]


def closed_forms(
    rows: int, world_size: int, width: int, parameters: int
) -> dict[tuple[str, str], float]:
    """Returns bytes of a step of softmax with all-gather under DDP, by purpose and collective."""
    total = rows * world_size
    return {
        ("exchange", "all-gather"): 4 * total * width + 4 * total,
        ("exchange", "reduce-scatter"): 4 * total * width,
        ("exchange", "all-reduce"): 2 * 4 * total + 4,
        ("gradients", "all-reduce"): 4 * parameters,
    }


def megabytes(phase: PhaseEstimate) -> dict[tuple[str, str], float]:
    """Returns what is counted, likewise."""
    return {(each.purpose, each.kind): each.bytes / 1e6 for each in phase.collectives}


def byte_table(phases: dict[int, PhaseEstimate]) -> Iterator[str]:
    """Yields the table of bytes under one strategy."""
    names = list(megabytes(phases[WORLDS[0]]))
    heads = [f"{purpose}: {kind}, MB" for purpose, kind in names]
    yield f"| GPUs | global batch | {' | '.join(heads)} |"
    yield "| ---: | ---: |" + " ---: |" * len(names)
    for world_size, phase in phases.items():
        cells = [f"{megabytes(phase)[name]:,.1f}" for name in names]
        yield f"| {world_size} | {phase.batch:,} | {' | '.join(cells)} |"


def time_table(found: dict[str, dict[int, PhaseEstimate]]) -> Iterator[str]:
    """Yields the table of times, and of the speed of a GPU against that in one node."""
    yield (
        "| Strategy | GPUs | step, ms | exchange, ms | hidden, ms | pairs/s | of one node's speed |"
    )
    yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    for strategy, phases in found.items():
        for world_size, phase in phases.items():
            speed = phases[WORLDS[0]].step / phase.step
            waited = 1e3 * phase.seconds.get("exchange", 0.0)
            yield (
                f"| `{strategy}` | {world_size} | {1e3 * phase.step:.1f} | {waited:.1f} | "
                f"{1e3 * phase.hidden:.1f} | {phase.batch / phase.step:,.0f} | {speed:.0%} |"
            )


def main() -> None:
    """Prints the tables."""
    found = {s: {w: planned(w, s) for w in WORLDS} for s in STRATEGIES}
    for strategy, phases in found.items():
        print(f"`{strategy}`:\n", *byte_table(phases), "", sep="\n")
    print(*time_table(found), sep="\n")


if __name__ == "__main__":
    main()
