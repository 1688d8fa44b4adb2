"""`counterpoint init` copies every part and one run, and never overwrites."""

import pytest
import yaml

from counterpoint.launch import cli, init
from counterpoint.launch.paths import CONFIGS


def files(folder):
    return {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}


def test_every_part_and_one_run_are_copied_unchanged(tmp_path, capsys):
    assert cli.main(["init", str(tmp_path / "mine")]) == 0
    target = tmp_path / "mine" / "configs"
    runs = {path for path in files(CONFIGS) if path.parts[0] == "run"}
    parts = {path for path in files(CONFIGS) - runs if path.suffix == ".yaml"}
    copied = files(target)
    assert {path.name for path in runs & copied} == {"emoji_clip.yaml"}
    assert copied - runs == parts and len(parts) >= 4
    assert all((target / path).read_bytes() == (CONFIGS / path).read_bytes() for path in copied)
    printed = capsys.readouterr().out
    assert f"cd {tmp_path / 'mine'}" in printed
    assert "counterpoint fit --config configs/run/emoji_clip.yaml" in printed


def test_the_run_finds_its_parts_at_its_new_place(tmp_path):
    init.copy_configs(tmp_path, "emoji_clip")
    run = tmp_path / "configs" / "run" / "emoji_clip.yaml"
    named = [v for v in yaml.safe_load(run.read_text()).values() if str(v).endswith(".yaml")]
    assert len(named) >= 4
    assert all((run.parent / path).is_file() for path in named)


def test_nothing_is_overwritten_and_nothing_half_done(tmp_path, capsys):
    mine = tmp_path / "configs" / "run" / "emoji_clip.yaml"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine: true\n")
    assert cli.main(["init", str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert str(mine) in message and "overwrites nothing" in message
    assert message.count("\n") == 1
    assert files(tmp_path) == {mine.relative_to(tmp_path)}
    assert mine.read_text() == "mine: true\n"


def test_a_run_that_is_not_there_and_a_folder_that_is_a_file(tmp_path):
    with pytest.raises(ValueError, match="did you mean emoji_clip"):
        init.copy_configs(tmp_path, "emoji_clop")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="name a folder"):
        init.copy_configs(tmp_path / "file", "emoji_clip")
