"""An ablation of two subsets of a tiny pool, with a suite of six coloured images."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import tiny
import yaml
from PIL import Image

from counterpoint.data.shards.index import index_shards

PER_SHARD, SHARDS = 17, 3
POOL = PER_SHARD * SHARDS


def write_pool(folder: Path) -> None:
    """Writes shards with their manifest, images of the suite, the suite and the run file."""
    for name in ("red", "green"):
        (folder / "images" / name).mkdir(parents=True)
        for i in range(3):
            colour = (90 * i + 20, 0, 0) if name == "red" else (0, 90 * i + 20, 0)
            Image.new("RGB", (20, 20), colour).save(folder / "images" / name / f"{i}.png")
    (folder / "suite.yaml").write_text(tiny.COLOURS)
    shards = tiny.write_shards(folder / "pairs", SHARDS, PER_SHARD)
    index_shards([str(path) for path in shards], str(folder / "train.parquet"))
    config = tiny.config(folder / "train.parquet", steps=4)
    config["data"]["num_workers"] = 0
    config["evaluation"] = {"suite": str(folder / "suite.yaml"), "every_n_steps": 2}
    (folder / "run.yaml").write_text(yaml.safe_dump(config))


def write_keep_list(path: Path, rows, **columns) -> str:
    """Writes a keep-list of (shard, index)."""
    shard, index = zip(*rows, strict=True)
    table = {"shard": [f"{s:05d}.tar" for s in shard], "index": list(index)}
    pq.write_table(pa.table(table | columns), path)
    return str(path)


def content(folder: Path, **changes) -> dict:
    """Returns an ablation of the pool: 24 samples, and 12 of these."""
    some = [(s, i) for s in range(SHARDS) for i in range(8)]
    return {
        "name": "tiny",
        "config": str(folder / "run.yaml"),
        "samples": 24,
        "seeds": [0],
        "curations": {
            "some": {"keep_list": write_keep_list(folder / "some.parquet", some)},
            "fewer": {"keep_list": write_keep_list(folder / "fewer.parquet", some[:12])},
        },
    } | changes


def write(folder: Path, **changes) -> Path:
    """Writes the ablation's file."""
    path = folder / "ablation.yaml"
    path.write_text(yaml.safe_dump(content(folder, **changes), sort_keys=False))
    return path
