"""Where `counterpoint curate` runs its tasks, and what stores it is given."""

import pytest

from counterpoint.data.curate.engine import Processes
from counterpoint.launch.commands.curation.curate import engine_of, named_stores


def test_the_options_name_the_engine():
    with engine_of(3, None, None) as engine:
        assert isinstance(engine, Processes)
        assert engine.num_workers == 3
    with pytest.raises(ValueError, match="cannot be given together"):
        engine_of(3, "auto", None)
    with pytest.raises(ValueError, match="for a Ray cluster; name it with --ray"):
        engine_of(None, None, 2.0)


def test_stores_have_names_of_their_own(tmp_path):
    for name in "ab":
        (tmp_path / name / "web").mkdir(parents=True)
        (tmp_path / name / "web" / "00000.safetensors").touch()
    words = [f"clip={tmp_path}/a", f"dino={tmp_path}/b"]
    assert {k: v.folder.name for k, v in named_stores(words).items()} == {"clip": "a", "dino": "b"}
    with pytest.raises(ValueError, match="'clip' is given already"):
        named_stores([*words, f"clip={tmp_path}/b"])
    with pytest.raises(ValueError, match="write NAME=FOLDER"):
        named_stores([str(tmp_path / "a")])
