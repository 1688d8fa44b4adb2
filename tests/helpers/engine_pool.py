"""A small pool that is curated on several engines, and the bytes that come out."""

from pathlib import Path

import numpy as np

from counterpoint.data.curate.runner import Curation
from counterpoint.data.curate.table import Table

from . import engine_tasks as tasks
from .score_table import make_table

TESTS = Path(__file__).resolve().parents[1]
N, SHARDS = 600, 12


def make_pool(folder):
    rng = np.random.default_rng(0)
    columns = {
        "width": rng.integers(50, 900, N).tolist(),
        "height": rng.integers(1, 40, N).tolist(),
    }
    return make_table(folder / "table", columns, [N // SHARDS] * SHARDS)


def curate(folder, out, engine, killed=None):
    """Runs a filter with a reduce and one on groups; each may kill a worker once."""
    filters = {
        "mean": tasks.AboveMean(killed and folder / f"{killed}-map"),
        "widest": tasks.WidestOfHeight(killed and folder / f"{killed}-groups"),
    }
    return Curation(Table(folder / "table"), filters, {}, folder / out, engine).run()


def content(folder):
    """Returns the bytes of every file by its name."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
