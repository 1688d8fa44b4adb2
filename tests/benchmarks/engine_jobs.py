"""The two jobs of `curation_engines`, on each engine.

In: a folder of parquet files. Out: parquet files in another. `JOBS` names them all.
"""

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

PER_FILE, PER_GROUP, WIDTH, BINS = 100_000, 1_000, 64, 10_000
BUCKETS, WORKERS = 64, 2
STORE_BYTES = 2_000_000_000  # Ray's shared memory; its default is 30% of the machine's
SHARE = 0.3

Table = pa.Table


# The functions that users write: what every engine has to run.
def caption_statistics(captions: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Returns words and different words of captions, int32 [n] each."""
    words = [caption.split() for caption in captions]
    counts = np.array([len(each) for each in words], np.int32)
    return counts, np.array([len(set(each)) for each in words], np.int32)


def histogram(scores: np.ndarray) -> np.ndarray:
    """Returns counts of scores in bins, int64 [BINS]."""
    bins = np.minimum((np.asarray(scores) * BINS).astype(np.int64), BINS - 1)
    return np.bincount(bins, minlength=BINS)


def threshold(counts: np.ndarray) -> float:
    """Returns the lower edge of the bins that hold the best `SHARE`."""
    above = np.cumsum(counts[::-1])
    return (BINS - 1 - int(np.searchsorted(above, SHARE * above[-1]))) / BINS


def mapped(table: Table, least: float) -> Table:
    """Returns key, words, different words, and whether a row stays."""
    words, different = caption_statistics(table["caption"].to_pylist())
    keep = (table["score"].to_numpy() >= least) & (different > 2)
    return pa.table({"key": table["key"], "words": words, "different": different, "keep": keep})


def nearest_earlier(keys: np.ndarray, vectors: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Returns a group's keys, sorted, and each one's highest cosine with an earlier one."""
    order = np.argsort(keys, kind="stable")
    rows = np.frombuffer(vectors, np.float16).reshape(-1, WIDTH)[order].astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    cosines = rows @ rows.T
    cosines[np.triu_indices(len(rows))] = -1
    return keys[order], cosines.max(axis=1)


def of_group(table: Table) -> Table:
    """Applies `nearest_earlier` to a group's rows."""
    keys, nearest = nearest_earlier(table["key"].to_numpy(), joined(table["vector"]))
    return pa.table({"key": keys, "nearest": nearest})


def joined(vectors: pa.ChunkedArray) -> bytes:
    """Returns the bytes of all vectors."""
    return b"".join(vectors.to_pylist())


# Plain pyarrow in a pool of processes; groups are brought together through files.
def through_pool(function: Callable, items: list) -> Iterator:
    """Yields results in the order of the items."""
    with ProcessPoolExecutor(WORKERS, mp_context=get_context("spawn")) as pool:
        yield from pool.map(function, items)


def through_ray(function: Callable, items: list) -> Iterator:
    """As `through_pool`, by tasks of Ray, four a worker under way at most."""
    import ray

    ray.init(
        address="local", num_cpus=WORKERS, object_store_memory=STORE_BYTES, include_dashboard=False
    )
    remote = ray.remote(lambda item: function(item))
    waiting = []
    for item in items:
        waiting.append(remote.remote(item))
        if len(waiting) >= 4 * WORKERS:
            yield ray.get(waiting.pop(0))
    yield from map(ray.get, waiting)
    ray.shutdown()


def histogram_of_file(file: Path) -> np.ndarray:
    return histogram(pq.read_table(file, columns=["score"])["score"].to_numpy())


def map_file(least: float, out: Path, file: Path) -> None:
    pq.write_table(mapped(pq.read_table(file), least), out / file.name)


def map_files(run: Callable, folder: Path, out: Path) -> None:
    """The map job, a file a task."""
    files = sorted(folder.glob("*.parquet"))
    least = threshold(sum(run(histogram_of_file, files)))
    list(run(partial(map_file, least, out), files))


def scatter(out: Path, file: Path) -> np.ndarray:
    """Writes a file's rows, sorted by bucket; returns where each bucket begins."""
    table = pq.read_table(file)
    bucket = table["group"].to_numpy() % BUCKETS
    table = table.take(np.argsort(bucket, kind="stable"))
    with (
        pa.OSFile(str(out / f"{file.stem}.arrow"), "wb") as sink,
        pa.ipc.new_file(sink, table.schema) as writer,
    ):
        writer.write_table(table.combine_chunks())
    return np.concatenate([[0], np.cumsum(np.bincount(bucket, minlength=BUCKETS))])


def group_bucket(starts: dict[Path, np.ndarray], out: Path, bucket: int) -> None:
    """Brings a bucket together and works on its groups."""
    parts = []
    for file, edges in starts.items():
        with pa.memory_map(str(file)) as source:
            table = pa.ipc.open_file(source).read_all()
            parts.append(table.slice(edges[bucket], edges[bucket + 1] - edges[bucket]))
    table = pa.concat_tables(parts)
    table = table.take(np.argsort(table["group"].to_numpy(), kind="stable"))
    edges = np.flatnonzero(np.diff(table["group"].to_numpy(), prepend=-1, append=-1))
    done = [of_group(table.slice(a, b - a)) for a, b in itertools.pairwise(edges)]
    pq.write_table(pa.concat_tables(done).sort_by("key"), out / f"{bucket:03d}.parquet")


def group_files(run: Callable, folder: Path, out: Path) -> None:
    """The group job: rows to buckets, and a bucket a task."""
    files = sorted(folder.glob("*.parquet"))
    between = out / "between"
    between.mkdir()
    starts = dict(
        zip(
            [between / f"{file.stem}.arrow" for file in files],
            run(partial(scatter, between), files),
            strict=True,
        )
    )
    list(run(partial(group_bucket, starts, out), list(range(BUCKETS))))


# Ray Data.
def ray_data(folder: Path):
    import ray

    if not ray.is_initialized():
        ray.init(
            address="local",
            num_cpus=WORKERS,
            object_store_memory=STORE_BYTES,
            include_dashboard=False,
        )
    return ray.data.read_parquet(str(folder))


def map_ray_data(folder: Path, out: Path) -> None:
    counts = (
        ray_data(folder)
        .select_columns(["score"])
        .map_batches(lambda batch: {"counts": histogram(batch["score"])[None]}, batch_size=PER_FILE)
    )
    least = threshold(np.sum([row["counts"] for row in counts.iter_rows()], axis=0))
    kept = ray_data(folder).map_batches(
        partial(mapped, least=least), batch_format="pyarrow", batch_size=PER_FILE
    )
    kept.write_parquet(str(out))


def group_ray_data(folder: Path, out: Path) -> None:
    groups = ray_data(folder).groupby("group")
    groups.map_groups(of_group, batch_format="pyarrow").write_parquet(str(out))


# Daft.
def map_daft(folder: Path, out: Path) -> None:
    import daft
    from daft import DataType, col

    @daft.func.batch(return_dtype=DataType.list(DataType.int64()), batch_size=PER_FILE)
    def count(score):
        counts = histogram(score.to_arrow().to_numpy())
        return [counts.tolist()] + [None] * (len(score) - 1)

    kinds = {"words": DataType.int32(), "different": DataType.int32(), "keep": DataType.bool()}

    def describe(least, caption, score):
        columns = {"key": np.zeros(len(score)), "caption": caption.to_arrow()}
        table = mapped(pa.table({**columns, "score": score.to_arrow()}), least)
        return table.drop_columns("key").to_struct_array().combine_chunks()

    source = daft.read_parquet(str(folder / "*.parquet"))
    counts = source.select(count(col("score")).alias("counts")).where(col("counts").not_null())
    least = threshold(np.sum(counts.to_pydict()["counts"], axis=0))
    options = {"return_dtype": DataType.struct(kinds), "unnest": True, "batch_size": PER_FILE}
    described = daft.func.batch(**options)(partial_named(describe, least))
    source.select(col("key"), described(col("caption"), col("score"))).write_parquet(str(out))


def partial_named(function: Callable, value: object) -> Callable:
    """Binds the first argument; Daft wants a function with a name."""

    def bound(caption, score):
        return function(value, caption, score)

    return bound


def group_daft(folder: Path, out: Path) -> None:
    import daft
    from daft import DataType, col

    pairs = DataType.struct({"key": DataType.int64(), "nearest": DataType.float32()})

    @daft.func.batch(return_dtype=pairs)
    def nearest(key, vector):
        columns = {"key": key.to_arrow(), "vector": vector.to_arrow()}
        return of_group(pa.table(columns)).to_struct_array().combine_chunks()

    rows = daft.read_parquet(str(folder / "*.parquet"))
    found = rows.groupby("group").map_groups(nearest(col("key"), col("vector")).alias("pair"))
    found.select(col("pair").get("key"), col("pair").get("nearest")).write_parquet(str(out))


def on_ray(job: Callable, folder: Path, out: Path) -> None:
    import daft
    import ray

    ray.init(
        address="local", num_cpus=WORKERS, object_store_memory=STORE_BYTES, include_dashboard=False
    )
    daft.set_runner_ray()
    job(folder, out)


# DuckDB: with the same Python function, and in SQL alone.
def duck(out: Path):
    import duckdb

    connection = duckdb.connect(config={"threads": WORKERS, "memory_limit": "4GB"})
    connection.execute(f"SET temp_directory = '{out}/spill'")
    return connection


QUANTILE = f"""
    SELECT least(floor(score * {BINS}), {BINS - 1})::INT AS bin, count(*) AS n
    FROM '{{folder}}/*.parquet' GROUP BY bin"""


def duck_threshold(connection, folder: Path) -> float:
    bins = connection.execute(QUANTILE.format(folder=folder)).fetchnumpy()
    counts = np.zeros(BINS, np.int64)
    counts[bins["bin"]] = bins["n"]
    return threshold(counts)


def map_duckdb(folder: Path, out: Path) -> None:
    connection = duck(out)
    least = duck_threshold(connection, folder)

    def words(captions):
        return pa.array(caption_statistics(captions.to_pylist())[0])

    def different(captions):
        return pa.array(caption_statistics(captions.to_pylist())[1])

    for function in (words, different):
        connection.create_function(
            function.__name__, function, ["VARCHAR"], "INTEGER", type="arrow"
        )
    connection.execute(f"""
        COPY (SELECT key, words, different, score >= {least}::FLOAT AND different > 2 AS keep FROM
        (SELECT key, score, words(caption) AS words, different(caption) AS different
        FROM '{folder}/*.parquet')) TO '{out}/all.parquet'""")


def map_sql(folder: Path, out: Path) -> None:
    connection = duck(out)
    least = duck_threshold(connection, folder)
    connection.execute(f"""
        COPY (SELECT key, len(w)::INT AS words, len(list_distinct(w))::INT AS different,
        score >= {least}::FLOAT AND different > 2 AS keep FROM
        (SELECT key, score, string_split(caption, ' ') AS w
        FROM '{folder}/*.parquet')) TO '{out}/all.parquet'""")


def group_duckdb(folder: Path, out: Path) -> None:
    """DuckDB brings the rows together (ORDER BY); the function runs in this process."""
    connection = duck(out)
    ordered = f"SELECT * FROM '{folder}/*.parquet' ORDER BY \"group\", key"
    reader = connection.execute(ordered).to_arrow_reader(PER_FILE)
    rest, writer = None, None
    for batch in reader:
        table = pa.Table.from_batches([batch])
        table = pa.concat_tables([rest, table]) if rest else table
        groups = table["group"].to_numpy()
        edges = np.flatnonzero(np.diff(groups, prepend=-1))
        for begin, end in itertools.pairwise(edges):
            writer = write(writer, of_group(table.slice(begin, end - begin)), out)
        rest = table.slice(edges[-1])
    write(writer, of_group(rest), out).close()


def write(writer: pq.ParquetWriter | None, table: Table, out: Path) -> pq.ParquetWriter:
    writer = writer or pq.ParquetWriter(out / "all.parquet", table.schema)
    writer.write_table(table)
    return writer


# Polars, streaming.
def map_polars(folder: Path, out: Path) -> None:
    import polars as pl

    rows = pl.scan_parquet(folder / "*.parquet")
    bins = pl.min_horizontal((pl.col("score") * BINS).floor(), BINS - 1).cast(pl.Int64)
    found = rows.group_by(bins.alias("bin")).len().collect(engine="streaming")
    counts = np.zeros(BINS, np.int64)
    counts[found["bin"].to_numpy()] = found["len"].to_numpy()
    least = threshold(counts)
    schema = {"key": pl.Int64, "words": pl.Int32, "different": pl.Int32, "keep": pl.Boolean}
    done = rows.map_batches(
        lambda frame: pl.from_arrow(mapped(frame.to_arrow(), least)),
        schema=schema,
        streamable=True,
    )
    done.sink_parquet(out / "all.parquet", engine="streaming")


def group_polars(folder: Path, out: Path) -> None:
    import polars as pl

    groups = pl.scan_parquet(folder / "*.parquet").group_by("group")
    schema = {"key": pl.Int64, "nearest": pl.Float32}
    done = groups.map_groups(lambda frame: pl.from_arrow(of_group(frame.to_arrow())), schema)
    done.sink_parquet(out / "all.parquet", engine="streaming")


JOBS = {
    "pyarrow in processes": (partial(map_files, through_pool), partial(group_files, through_pool)),
    "tasks of Ray": (partial(map_files, through_ray), partial(group_files, through_ray)),
    "Ray Data": (map_ray_data, group_ray_data),
    "Daft, local": (map_daft, group_daft),
    "Daft on Ray": (partial(on_ray, map_daft), partial(on_ray, group_daft)),
    "DuckDB": (map_duckdb, group_duckdb),
    "DuckDB, SQL alone": (map_sql, None),
    "Polars": (map_polars, group_polars),
}
