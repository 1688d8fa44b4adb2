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
