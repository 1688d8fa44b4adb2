"""Configurations are found by path first, then by the names the package brings along."""

import pytest

from counterpoint.launch.config import packaged as paths


@pytest.fixture
def packaged(tmp_path, monkeypatch):
    """A package with two runs and a suite, and an empty folder to work in."""
    configs = tmp_path / "package"
    for name in ("run/emoji_clip.yaml", "run/other.yaml", "suite/emoji.yaml"):
        (configs / name).parent.mkdir(parents=True, exist_ok=True)
        (configs / name).write_text("packaged: true\n")
    monkeypatch.setattr(paths, "CONFIGS", configs)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return configs


def test_a_name_finds_the_packaged_file_of_its_kind(packaged):
    assert paths.find("emoji_clip") == packaged / "run" / "emoji_clip.yaml"
    assert paths.find("emoji_clip.yaml") == packaged / "run" / "emoji_clip.yaml"
    assert paths.find("emoji", kind="suite") == packaged / "suite" / "emoji.yaml"


def test_an_existing_file_wins_but_a_folder_does_not(packaged, tmp_path):
    here = tmp_path / "here"
    (here / "emoji").mkdir()
    assert paths.find("emoji", kind="suite") == packaged / "suite" / "emoji.yaml"
    (here / "emoji_clip.yaml").write_text("mine: true\n")
    found = paths.find("emoji_clip.yaml")
    assert found.resolve() == here / "emoji_clip.yaml"


@pytest.mark.parametrize("wrong", ["emoji_clop", "configs/run/emoji_clip.yml"])
def test_a_mistake_names_what_there_is_and_what_is_close(packaged, wrong):
    with pytest.raises(ValueError, match="did you mean emoji_clip") as caught:
        paths.find(wrong)
    assert f"'{wrong}'" in str(caught.value)
    assert "emoji_clip, other" in str(caught.value)


def test_a_mistake_close_to_nothing_gets_no_guess(packaged):
    with pytest.raises(ValueError, match="packaged suite") as caught:
        paths.find("zzz", kind="suite")
    assert "did you mean" not in str(caught.value)


def test_a_file_in_a_folder_is_found_by_its_stem(packaged):
    (packaged / "run" / "emoji").mkdir()
    inner = packaged / "run" / "emoji" / "emoji_siglip.yaml"
    inner.write_text("packaged: true\n")
    assert paths.find("emoji_siglip") == paths.find("emoji_siglip.yaml") == inner
    assert list(paths.packaged_files()) == ["emoji_clip", "emoji_siglip", "other"]


def test_a_kind_without_files_has_keys(packaged):
    with pytest.raises(ValueError, match="'none' is no file; write its keys below `guard:`"):
        paths.find_packaged("none", "guard")


@pytest.mark.parametrize(
    "kind",
    sorted({path.relative_to(paths.CONFIGS).parts[0] for path in paths.CONFIGS.rglob("*.yaml")}),
)
def test_no_two_packaged_files_of_a_kind_share_a_name(kind):
    files = list((paths.CONFIGS / kind).rglob("*.yaml"))
    assert len(files) == len(paths.packaged_files(kind))


def test_the_real_package_has_the_run_the_readme_names():
    assert paths.find("emoji_clip").is_file()
