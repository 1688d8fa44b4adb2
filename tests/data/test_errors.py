"""Counting, adding up ranks, the budget."""

import pickle

import pytest
import torch

from counterpoint.data.errors import CAUSES, ErrorLedger, SampleError


def batch(status, source=None, shard=None):
    zeros = [0] * len(status)
    columns = {"status": status, "source": source or zeros, "shard": shard or zeros}
    return {name: torch.tensor(column) for name, column in columns.items()}


BAD_IMAGE, NO_CAPTION = CAUSES.index("bad_image"), CAUSES.index("no_caption")


def test_ranks_add_up_and_deltas_are_counted_once():
    ranks = [ErrorLedger(["a", "b"], 0.5) for _ in range(2)]
    ranks[0].update(batch([0, BAD_IMAGE, 0, NO_CAPTION], [0, 1, 0, 1], [3, 4, 3, 5]))
    ranks[1].update(batch([BAD_IMAGE, 0, 0, 0], [1, 0, 0, 0], [4, 0, 0, 0]))
    for _ in range(2):
        deltas = [pickle.loads(pickle.dumps(rank.take_delta())) for rank in ranks]
        for rank in ranks:
            for delta in deltas:
                rank.merge(delta)
    for rank in ranks:
        assert rank.samples == 8
        assert rank.summary() == {
            "samples/a": 5,
            "samples/b": 3,
            "errors/bad_image/b": 2,
            "errors/no_caption/b": 1,
        }
        assert rank.table() == [
            {"cause": "bad_image", "source": "b", "shard": "4", "samples": 2},
            {"cause": "no_caption", "source": "b", "shard": "5", "samples": 1},
        ]
    restored = ErrorLedger(["a", "b"], 0.5)
    restored.load_state_dict(ranks[0].state_dict())
    assert (restored.samples, restored.summary()) == (8, ranks[1].summary())


def test_the_state_holds_nothing_but_plain_values():
    ledger = ErrorLedger(["a"], 0.5)
    ledger.update(batch([BAD_IMAGE]))
    ledger.merge(ledger.take_delta())
    state = ledger.state_dict()
    assert state == {"samples": [[0, 1]], "errors": [[BAD_IMAGE, 0, 0, 1]]}


@pytest.mark.parametrize(
    ("bad", "samples", "stops"),
    [(10, 1000, False), (11, 1000, True), (999, 999, False), (0, 5000, False)],
)
def test_the_budget(bad, samples, stops):
    ledger = ErrorLedger(["a"], max_error_rate=0.01, min_samples=1000)
    status = [BAD_IMAGE] * bad + [0] * (samples - bad)
    ledger.update(batch(status, shard=[7] * samples))
    ledger.check()  # nothing is judged before it is merged
    ledger.merge(ledger.take_delta())
    if not stops:
        ledger.check()
        return
    expected = r"11 of 1000 .* \(11 bad_image\).* data.max_error_rate=0.01 .* shards 7 \(11\)"
    with pytest.raises(ValueError, match=expected):
        ledger.check()


def test_shards_are_named_without_signatures():
    urls = ["0.tar", "https://a.org/1.tar?signature=secret"]
    ledger = ErrorLedger(["a"], 0.1, min_samples=1, urls=urls)
    ledger.update(batch([BAD_IMAGE], shard=[1]))
    ledger.merge(ledger.take_delta())
    assert ledger.table()[0]["shard"] == "https://a.org/1.tar"
    with pytest.raises(ValueError, match=r"most are in the shards https://a\.org/1\.tar \(1\):"):
        ledger.check()


def test_a_budget_that_is_no_fraction_is_refused():
    with pytest.raises(ValueError, match="not 5"):
        ErrorLedger([], max_error_rate=5)


def test_sample_errors_survive_pickling():
    error = pickle.loads(pickle.dumps(SampleError("bad_text", "why")))
    assert (error.cause, CAUSES[error.code], str(error)) == (
        "bad_text",
        "bad_text",
        "bad_text: why",
    )
