"""The share of a caption's words that stand in the image."""

import numpy as np
import pytest
from helpers.score_table import kept, make_store, make_table

from counterpoint.data.curate.filters.captions.parrot_captions import ParrotCaptions
from counterpoint.data.curate.runner import Curation
from counterpoint.data.curate.stores import Store

# Caption, text in the image, and the rate by hand.
CASES = [
    ("A red STOP sign", "Stop", 1 / 4),
    ("stop stop go", "STOP!", 2 / 3),
    ("open 24 hours", "open 24 hours", 1.0),
    ("a cat", "", 0.0),
    ("—", "text", 0.0),
    ("straße", "STRASSE 5", 1.0),
    ("stopping", "stop", 0.0),
]


@pytest.mark.parametrize("max_rate", [0.0, 0.25, 0.9])
def test_rates(tmp_path, max_rate):
    table = make_table(tmp_path / "table", {"caption": [c for c, _, _ in CASES]}, [4, 3])
    keys = [row * 7919 - 10**6 for row in range(len(CASES))]
    rows = {}
    for key, (_, text, _) in zip(keys, CASES, strict=True):
        data = np.zeros(256, dtype=np.uint8)
        data[: len(text.encode())] = np.frombuffer(text.encode(), np.uint8)
        rows[key] = {"text": data}
    store = Store(make_store(tmp_path / "boxes", table, rows))
    filters = {"parrots": ParrotCaptions(max_rate)}
    Curation(table, filters, {"boxes": store}, tmp_path / "out").run()
    expected = {key for key, (_, _, rate) in zip(keys, CASES, strict=True) if rate <= max_rate}
    assert set(kept(tmp_path / "out")) == expected


def test_a_rate_above_one_is_refused():
    with pytest.raises(ValueError, match="max_rate=2: give a number between 0 and 1"):
        ParrotCaptions(2)
