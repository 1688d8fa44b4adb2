"""Three small sources and a run on their mixture."""

from pathlib import Path

from tiny import config, write_config, write_shards

from counterpoint.data.shards.index import index_shards

SHARES = {"a": 0.7, "b": 0.2, "c": 0.1}


def write_sources(folder: Path) -> list[str]:
    """Writes the shards of each source; returns one manifest a source."""
    manifests = []
    for number, name in enumerate(SHARES):
        paths = write_shards(folder / name, num_shards=2 + number, per_shard=9 + number)
        manifests.append(str(folder / f"{name}.parquet"))
        index_shards([str(path) for path in paths], manifests[-1], source=name)
    return manifests


def run_file(folder: Path, manifests: list[str], steps: int, **data) -> list[str]:
    """A run whose steps record their keys; returns the arguments of `fit`."""
    folder.mkdir()
    values = config(Path("unused"), steps=steps)
    sources = {name: {"share": share} for name, share in SHARES.items()}
    values["data"] |= {"manifest": manifests, "sources": sources, "max_error_rate": 1.0, **data}
    keys = {"class_path": "recorder.Keys", "init_args": {"path": str(folder / "keys.txt")}}
    values["trainer"] |= {"callbacks": [keys]}
    path = write_config(folder, values)
    return ["--config", str(path), "--run_dir", str(folder / "run")]
