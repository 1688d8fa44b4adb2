"""Every packaged filter and curation builds, and names what it needs in its comment."""

from pathlib import Path

import pytest

from counterpoint.data.curate.base import KEEP, WEIGHT
from counterpoint.data.curate.filters.captions.word_frequency import WordFrequency
from counterpoint.data.curate.filters.concepts.pool_entries import PoolEntries
from counterpoint.launch.config.curations import load_curation

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
FILTERS = sorted(path.stem for path in (CONFIGS / "filter").glob("*.yaml"))
CURATIONS = sorted((CONFIGS / "curation").rglob("*.yaml"))
PLANTED = CONFIGS.parent / "tests/benchmarks/planted"
CURATIONS += sorted(
    set(PLANTED.glob("*.yaml")) - {PLANTED / "ablation.yaml", PLANTED / "suite.yaml"}
)


@pytest.mark.parametrize("name", FILTERS)
def test_filter(tmp_path, name):
    file = tmp_path / "curation.yaml"
    file.write_text(f"filters: {{it: {name}}}\n")
    (each,) = load_curation(file).values()
    assert all(isinstance(column, str) for column in (*each.reads, *each.writes))
    assert (CONFIGS / "filter" / f"{name}.yaml").read_text().startswith("# ")


@pytest.mark.parametrize("file", CURATIONS, ids=lambda file: file.stem)
def test_curation(file):
    filters = load_curation(file)
    written = {column for each in filters.values() for column in each.writes}
    lists = any(isinstance(each, PoolEntries | WordFrequency) for each in filters.values())
    assert written & {KEEP, WEIGHT} or lists
    assert file.read_text().startswith("# ")


def test_every_filter_has_a_config():
    modules = {path.stem for path in (CONFIGS.parent / "data/curate/filters").rglob("*.py")}
    assert modules - {"__init__"} <= set(FILTERS) and len(FILTERS) > 9
