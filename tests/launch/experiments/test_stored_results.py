"""Results in docs/ are those of the configurations that ship, or the page says which are not."""

import pytest

from counterpoint.launch.commands.sweep import read_sweep
from counterpoint.launch.config.identity import Identity
from counterpoint.launch.experiments.catalogue.records import current, read_groups
from counterpoint.launch.experiments.catalogue.texts import read_catalogue
from counterpoint.launch.run.provenance import ROOT


@pytest.mark.soak
def test_results_of_an_older_configuration_are_named():
    groups = read_groups(ROOT / "docs" / "results")
    stored = {run: current(records)[0]["identity"] for run, records in groups.items()}
    changed = {
        f"{pair.sweep}/{pair.run}"
        for file in sorted((ROOT / "configs" / "sweep").glob("*.yaml"))
        for pair in read_sweep(file)
        if (trained := stored.get(f"{pair.sweep}/{pair.run}"))
        and not pair.trained.agrees(Identity.from_json(trained))
    }
    assert changed == set(read_catalogue(ROOT / "docs" / "methods").older)
