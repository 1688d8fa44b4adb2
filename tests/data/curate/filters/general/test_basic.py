"""Sizes, shapes and lengths, at each limit and one beyond it."""

import pytest
from helpers.filter_run import batch_of, run_filter

from counterpoint.data.curate.filters.general.basic import Basic

AT = {"width": 200, "height": 500, "words": 3, "characters": 6}
BEYOND = [{"width": 199}, {"height": 501}, {"words": 2}, {"words": 5}, {"characters": 5}]


def test_what_is_at_the_limits_stays_and_what_is_beyond_one_goes():
    each = Basic(min_side=200, max_aspect=2.5, min_words=3, min_characters=6, max_words=4)
    rows = [AT, AT | {"words": 4}, {**AT, "width": 500, "height": 200}, *(AT | x for x in BEYOND)]
    columns = {name: [row[name] for row in rows] for name in AT}
    assert run_filter(each, batch_of(columns))["keep"] == [True] * 3 + [False] * len(BEYOND)


def test_limits_that_leave_nothing_are_refused():
    with pytest.raises(ValueError, match=r"max_aspect=0.5 is below 1"):
        Basic(max_aspect=0.5)
    with pytest.raises(ValueError, match="max_words=2 is below min_words=3"):
        Basic(max_words=2)
