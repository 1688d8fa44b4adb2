"""What a training step of a ViT-B/32 launches, sends and holds on a GPU, counted without one.

Run: `cd tests && ../.venv/bin/python -m benchmarks.null_gpu_step` (a C compiler is needed). Rank 0
of 64 with 512 pairs, bf16-mixed, AdamW; see `helpers/null_gpu`. Printed as Markdown.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

from null_gpu.build import missing
from null_gpu.pool import NullGpuPool
from null_gpu.steps import Setting, step

SETTINGS = {
    "one GPU": Setting(world_size=1, strategy="auto"),
    "`ddp`": Setting(),
    "`ddp`, compiled": Setting(compile="inductor"),
    "`fsdp2`": Setting(strategy="fsdp2"),
    "`fsdp2`, `chunks: 8`": Setting(strategy="fsdp2", chunks=8),
}


def main() -> None:
    """Counts all settings, and prints a table."""
    if (reason := missing()) is not None:
        raise SystemExit(reason)
    pool = NullGpuPool()
    print("| | launches | host ms | waits | gathered MB | scattered MB | reduced MB | peak GiB |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name, setting in SETTINGS.items():
        (counted,) = pool(1, step, setting)
        found = counted.a_step
        sent = (found[f"{kind} bytes"] for kind in ("all_gather", "reduce_scatter", "all_reduce"))
        print(
            f"| {name} | {found['launch']:,.0f} | {found['host ms']:.0f} | {found['wait']:.0f} | "
            + " | ".join(f"{size / 1e6:,.0f}" for size in sent)
            + f" | {counted.peak_bytes / 2**30:.1f} |",
            flush=True,
        )
    pool.close()


if __name__ == "__main__":
    main()
