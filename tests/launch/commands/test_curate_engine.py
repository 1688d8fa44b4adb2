"""Where `counterpoint curate` runs its tasks."""

import pytest

from counterpoint.data.curate.engine import Processes
from counterpoint.launch.commands.curation.curate import engine_of


def test_the_options_name_the_engine():
    with engine_of(3, None, None) as engine:
        assert isinstance(engine, Processes)
        assert engine.num_workers == 3
    with pytest.raises(ValueError, match="cannot be given together"):
        engine_of(3, "auto", None)
    with pytest.raises(ValueError, match="for a Ray cluster; name it with --ray"):
        engine_of(None, None, 2.0)
