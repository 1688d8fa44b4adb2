"""Which rank is slower than the others: said when it is, and only then."""

from types import SimpleNamespace
from unittest.mock import patch

import lightning.pytorch as pl
import pytest
import torch
from small_run import module, train

from counterpoint.train.callbacks import metrics, skew
from counterpoint.train.callbacks.metrics import Metrics
from counterpoint.train.callbacks.skew import FORWARD, ROWS, WAIT, Stragglers

STEP = 0.2  # seconds


def rows_of(num_ranks, num_rows, generator, deviation=0.3):
    """Times of equal ranks: noise of a third of a step, skewed as times are."""
    noise = torch.randn(num_rows, num_ranks, generator=generator).mul(deviation).exp()
    return STEP / 2 * noise


@pytest.mark.parametrize("num_ranks", [2, 3, 64])
def test_equal_ranks_are_never_named(num_ranks):
    found = Stragglers([str(rank) for rank in range(num_ranks)])
    for times in rows_of(num_ranks, 2000, torch.Generator().manual_seed(0)):
        assert found.look({WAIT: times, FORWARD: times.flip(0)}, STEP) == []


@pytest.mark.parametrize("kind", [WAIT, FORWARD])
@pytest.mark.parametrize("num_ranks", [2, 64])
def test_a_slow_rank_is_named_once(kind, num_ranks):
    found = Stragglers([f"rank {rank}" for rank in range(num_ranks)])
    sentences = []
    for row, times in enumerate(rows_of(num_ranks, 50, torch.Generator().manual_seed(0), 0.05)):
        times[1] += STEP / 2
        sentences += [(row, text) for text in found.look({kind: times}, STEP)]
    ((row, text),) = sentences
    assert row == ROWS - 1
    assert text.startswith("rank 1 is slower than the others: it ")
    assert ("waits for data" in text) == (kind == WAIT)
    assert ("forward pass" in text) == (kind == FORWARD)


def test_a_slow_node_is_one_sentence_and_is_named_again_after_it_was_well():
    found = Stragglers([f"rank {rank} (node{rank // 8})" for rank in range(32)])
    told = []
    for row in range(4 * ROWS):
        times = torch.full((32,), STEP / 2)
        if row // ROWS != 2:  # well in the third ten rows
            times[8:16] *= 2
            times[11] += 0.01
        told += [(row, text) for text in found.look({WAIT: times}, STEP)]
    assert [row for row, _ in told] == [ROWS - 1, 4 * ROWS - 1]
    assert told[0][1].startswith("rank 11 (node1) is slower")
    assert "so are rank 8 (node1), rank 9 (node1)" in told[0][1] and "rank 16" not in told[0][1]


class Data(pl.Callback):
    """Gives the run a data module that counts nothing."""

    def on_train_start(self, trainer, pl_module):
        trainer.datamodule = pl.LightningDataModule()
        trainer.datamodule.error_counts = dict


def rows_on(rank, world_size):
    """Rows and sentences of a run in which rank 1 needs 3 s for a forward pass and rank 0 one."""
    clock, rows, said = SimpleNamespace(now=0.0), [], []
    clock.monotonic = lambda: clock.now
    made = module(ROWS + 2)

    def forward(*_):
        clock.now += 1.0 + 2.0 * rank

    made.model.register_forward_hook(forward)
    made.objective.register_forward_hook(lambda *_: setattr(clock, "now", clock.now + 50.0))
    with (
        patch.object(metrics, "time", clock),
        patch.object(skew, "time", clock),
        patch("counterpoint.train.module.time", clock),
        patch.object(metrics, "log_row", lambda trainer, values, step: rows.append(values)),
        patch.object(metrics, "log_line", lambda text, file: said.append(text)),
        patch.object(metrics, "log_beside_bar", lambda *_: None),
        patch.object(skew, "SHARE", 0.01),
    ):
        train(
            made,
            world_size,
            "ddp" if world_size > 1 else "auto",
            [Data(), Metrics(peak_tflops=1.0)],
            log_every_n_steps=1,
        )
    return rows, said


def test_a_run_logs_the_slowest_rank(gloo):
    (rows, said), (others, silent) = gloo(2, rows_on)
    assert len(rows) == len(others) == ROWS + 2
    for row in rows:
        assert row["forward_seconds"] == pytest.approx(2.0)
        assert row["forward_seconds_max"] == pytest.approx(3.0)
        assert row["forward_seconds_max_rank"] == 1
        assert row["data_wait_max"] == row["data_wait"] == 0.0
    assert silent == [] and len(said) == 1
    assert "rank 1 (" in said[0] and "takes 3 s for the forward pass" in said[0]


def test_one_process_has_no_skew():
    ((row, *_), said) = rows_on(0, 1)
    assert "forward_seconds" in row and "forward_seconds_max" not in row and said == []
