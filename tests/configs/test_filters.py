"""Every packaged filter and curation builds, and names what it needs in its comment."""

from pathlib import Path

import pytest

from counterpoint.data.curate.base import KEEP, WEIGHT
from counterpoint.launch.config.curations import load_curation

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
FILTERS = sorted(path.stem for path in (CONFIGS / "filter").glob("*.yaml"))
CURATIONS = sorted(path.stem for path in (CONFIGS / "curation").glob("*.yaml"))


@pytest.mark.parametrize("name", FILTERS)
def test_filter(tmp_path, name):
    file = tmp_path / "curation.yaml"
    file.write_text(f"filters: {{it: {name}}}\n")
    (each,) = load_curation(file).values()
    assert all(isinstance(column, str) for column in (*each.reads, *each.writes))
    assert (CONFIGS / "filter" / f"{name}.yaml").read_text().startswith("# ")


@pytest.mark.parametrize("name", CURATIONS)
def test_curation(name):
    filters = load_curation(name)
    assert {column for each in filters.values() for column in each.writes} & {KEEP, WEIGHT}


def test_every_filter_has_a_config():
    modules = {path.stem for path in (CONFIGS.parent / "data/curate/filters").rglob("*.py")}
    assert modules - {"__init__"} <= set(FILTERS) and len(FILTERS) > 9
