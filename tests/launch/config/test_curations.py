"""Mistakes in the file of a curation."""

import pytest

from counterpoint.launch.config.curations import load_curation


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("filters:\n  size: basic\n  copies: exact_duplicates\n  size: basic\n", "filters.size"),
        ("filters: {size: basic}\nfilters: {copies: exact_duplicates}\n", "filters"),
    ],
)
def test_a_name_that_comes_twice_is_refused(tmp_path, text, name):
    file = tmp_path / "twice.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=rf"twice\.yaml: {name} comes twice"):
        load_curation(file)
    file.write_text("filters:\n  size: basic\n  copies: exact_duplicates\n")
    assert list(load_curation(file)) == ["size", "copies"]


def test_an_empty_file_gets_the_advice_of_a_curation(tmp_path):
    (tmp_path / "empty.yaml").touch()
    with pytest.raises(ValueError, match="holds no keys: write lines such as `filters: "):
        load_curation(tmp_path / "empty.yaml")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("mine.yaml", "a packaged curation: there are basic, clip_cid, .*, wfpp$"),
        ("curations/icons.yaml", "a packaged curation: there are basic, .*, wfpp$"),
        ("basic.yml", r"did you mean basic\? there are \d+$"),
        ("metaclp", r"did you mean metaclip or .*\? there are \d+$"),
    ],
)
def test_a_path_is_not_guessed_at_and_no_help_is_named_that_there_is_not(name, said):
    with pytest.raises(ValueError, match=said):
        load_curation(name)
