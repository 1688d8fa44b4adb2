"""Collapsed embeddings show in the metrics, on any number of ranks, and healthy ones do not."""

from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from learning_toy import two_towers
from scenes import BATCH, Scenes
from torch.utils.data import DataLoader

from counterpoint.launch.run.collapse import collapse
from counterpoint.losses.components.similarity import SquaredDistance
from counterpoint.losses.infonce import InfoNCE
from counterpoint.losses.objective import Objective
from counterpoint.losses.positive_cosine import PositiveCosine
from counterpoint.losses.siglip import SigLIP
from counterpoint.train.callbacks.metrics import Metrics, MetricsFile, read_rows
from counterpoint.train.callbacks.spread import moments_of
from counterpoint.train.module import ContrastiveModule
from counterpoint.train.optim.adamw import AdamW
from counterpoint.train.phases import Phase
from counterpoint.train.strategies.choose import choose_strategy

STEPS = 30


def contrastive():
    return Objective({"infonce": InfoNCE()})


def sigmoid():
    return Objective({"siglip": SigLIP()}, logit_scale_init=10.0, logit_bias_init=-10.0)


def euclidean():
    similarity = SquaredDistance()
    return Objective({"infonce": InfoNCE(similarity=similarity)}, logit_scale_init=1.0)


def attraction():
    """Pairs attract and nothing repels."""
    return Objective({"attraction": PositiveCosine()})


class Data(pl.LightningDataModule):
    """Batches in memory."""

    def __init__(self, batches):
        super().__init__()
        self.batches = batches

    def train_dataloader(self):
        return DataLoader(self.batches, batch_size=None)

    def error_counts(self):
        return {}


class Kept(ContrastiveModule):
    """Keeps the last step's features."""

    def features(self, *args, **kwargs):
        self.kept = super().features(*args, **kwargs)
        return self.kept


def rows_of_run(rank, world_size, make, folder):
    """The rows of a run, and this rank's features of its last step."""
    objective, scenes = make(), Scenes(seed=0)
    model = two_towers(objective)
    whole = [scenes.batch(objective.needs) for _ in range(STEPS)]
    # Ranks of unequal numbers of rows.
    sizes = [BATCH] if world_size == 1 else [24, BATCH - 24]
    mine = [{k: v.split(sizes)[rank] for k, v in batch.items()} for batch in whole]
    phase = Phase(STEPS * BATCH, BATCH, 2e-2, warmup_samples=5 * BATCH)
    module = Kept(model, objective, {"train": phase}, AdamW(weight_decay=0.1))
    file = Path(folder) / "metrics.jsonl"
    trainer = pl.Trainer(
        strategy=choose_strategy("ddp"),
        devices=world_size,
        accelerator="cpu",
        max_steps=STEPS,
        log_every_n_steps=10,
        logger=[MetricsFile(file, None)],
        callbacks=[Metrics(peak_tflops=1.0)],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.fit(module, datamodule=Data(mine))
    kept = {name: value.detach() for name, value in module.kept.items() if value.ndim == 2}
    return (read_rows(file) if rank == 0 else []), kept


def mean_cosine(rows):
    """Of all pairs of different rows, one by one."""
    rows = torch.nn.functional.normalize(rows.double(), dim=1)
    return float((rows @ rows.T)[~torch.eye(len(rows), dtype=torch.bool)].mean())


def relative_variance(rows):
    rows = rows.double()
    return float(rows.var(dim=0).sum() / rows.square().sum(1).mean())


@pytest.mark.parametrize("world_size", (1, 2))
@pytest.mark.parametrize("make", (contrastive, sigmoid, euclidean, attraction))
def test_a_run_tells_whether_it_has_collapsed(gloo, make, world_size, tmp_path):
    results = gloo(world_size, rows_of_run, make, str(tmp_path))
    rows = results[0][0]
    features = {k: torch.cat([kept[k] for _, kept in results]) for k in results[0][1]}
    assert len(rows) == STEPS / 10
    for side in ("image", "text"):
        want = pytest.approx(mean_cosine(features[side]), abs=1e-6)
        assert rows[-1][f"mean_cosine/{side}"] == want
        spread = rows[-1].get(f"spread/{side}")
        is_raw = make is euclidean
        assert spread == (
            pytest.approx(relative_variance(features[f"{side}.raw"])) if is_raw else None
        )
    said = collapse(rows)
    if make is attraction:
        assert "different images are nearly equal (mean cosine 0.999" in said
        assert "different texts are nearly equal" in said
    else:
        assert said == ""


def test_of_several_views_the_main_one_counts():
    rows = {name: torch.randn(4, 3) for name in ("image.raw", "image", "image.a", "other/text")}
    measured = moments_of(rows | {"text.b": rows["image.a"], "teacher.t.text": rows["image"]}, "")
    assert measured.keys() == {"mean_cosine/image", "mean_cosine/text"}
    torch.testing.assert_close(measured["mean_cosine/image"][2:], rows["image"].double().sum(0))
    torch.testing.assert_close(measured["mean_cosine/text"][2:], rows["image.a"].double().sum(0))
