"""The LightningModule: one training step, from a batch to an update.

In: the batch (uint8 pixels, token ids). Out: the loss; `report` holds the step's raw values on the
device, for callbacks to log.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from ..data.pairs import Pairs
from ..losses.base import WEIGHT
from ..losses.objective import Objective
from ..models.chunks import check_parts
from ..models.half_weights import MIXED, HalfWeights
from ..models.teachers.frozen import FrozenTowers
from ..models.two_tower import TwoTower
from .batch_transfer import BatchTransfer
from .distributed import mean_over_ranks
from .ema import Ema, parameters_of
from .features import frozen_features, score_patches, stored_features
from .grad_clip.base import Clipper
from .grad_clip.fixed import Unclipped
from .optim.adamw import AdamW
from .optim.compatibility import check_optimizer
from .optim.freeze import freeze
from .optim.param_groups import named_parameters
from .phases import Phase, Phases, connect_data, prepare_reducers
from .seeds import step_seed
from .spike_guard import Decision, SpikeGuard, check_turns, update_rms
from .strategies.base import Sharding
from .strategies.choose import sharding_of
from .strategies.row_shards import gathered, piece_of_rows, put_rows
from .strategies.sharded_tensors import LocalTensors, Tensors
from .strategies.teacher_placement import place_teacher


class Reporter(pl.Callback):
    """Base class of callbacks that log the module's report; without one the module logs it."""


@dataclass(frozen=True)
class RunInfo:
    """The run's entries in checkpoints and metrics.

    Attributes:
        config: the resolved configuration, as plain values.
        fingerprint: of the data; resume compares it.
        sources: names of the data's sources, in the order of the batch's `source`.
        stage: name of the stage of a run of several; "": there are none.
    """

    config: dict[str, Any] = field(default_factory=dict)
    fingerprint: str = ""
    sources: list[str] = field(default_factory=list)
    stage: str = ""


class ContrastiveModule(pl.LightningModule):
    """Model, objective and optimizer, driven by the phases.

    `counterpoint fit` builds it from a run file; docs/python.md shows it in a Trainer of one's own.

    Args:
        model: the two towers.
        objective: the loss.
        phases: of the run by name, in order.
        optim: makes the optimizer; None: AdamW with its defaults.
        seed: of dropout and of all draws in a step.
        grad_clip: limits gradients; None: they are only measured.
        guard: skips steps that are not finite, and spikes.
        teachers: frozen models by name; their features are `teacher.NAME...`, and checkpoints do
            not hold them.
        ema: moving average of the student; its features are `ema...`.
        run: of `counterpoint fit`; None: a Trainer of one's own.

    Attributes:
        report: detached values of the last step; their means over ranks are the global values.
        grad_norm: global norm of the last step's gradient, before clipping.
        decision: of the guard about the last step.
        tensors: the strategy's adapter for gradients and parameters.
        logs_itself: whether the Trainer has no Reporter, so that values go through `self.log`.
        step_ended: end of the last step and its callbacks (monotonic seconds).
        source_loss: at log steps of a mixture, (sum, count) of this rank's losses by source
            [sources, 2]; else None.
    """

    def __init__(
        self,
        model: TwoTower,
        objective: Objective,
        phases: Phases | dict[str, Phase],
        optim: AdamW | None = None,
        seed: int = 0,
        grad_clip: Clipper | None = None,
        guard: SpikeGuard | None = None,
        teachers: Mapping[str, FrozenTowers] | None = None,
        ema: Ema | None = None,
        run: RunInfo | None = None,
    ):
        super().__init__()
        self.optim = optim or AdamW()
        freeze(model, self.optim.groups.frozen)  # before any strategy wraps it
        self.model = model
        self.objective = objective
        self.phases = phases if isinstance(phases, Phases) else Phases(phases)
        self.seed = seed
        self.grad_clip = grad_clip
        self.guard = guard or SpikeGuard()
        self.ema = ema
        self.teachers = dict(teachers or {})  # no submodules: checkpoints do not hold them
        self.run = run or RunInfo()
        self.report: dict[str, Tensor] = {}
        self.grad_norm: Tensor | None = None
        self.decision: Decision | None = None
        self.tensors: Tensors = LocalTensors()
        self.step_ended = 0.0
        self.source_loss: Tensor | None = None
        self.logs_itself = False
        self.half_weights: HalfWeights | None = None
        self._settings: list[dict[str, Any]] = []
        self._batch_transfer = BatchTransfer()

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, **arguments: Any) -> Any:
        """Loads a checkpoint of a module built in Python, given its arguments again.

        Raises:
            ValueError: arguments are missing; a checkpoint holds tensors and plain values only.
        """
        if missing := {"model", "objective", "phases"} - arguments.keys():
            raise ValueError(
                f"a checkpoint holds no objects: give {', '.join(sorted(missing))} as well, or "
                "load a folder of counterpoint fit with "
                "counterpoint.load_model(RUN_DIR)"
            )
        # Lightning's own would cut and shard the model, which needs a trainer.
        module = cls(**arguments)
        checkpoint = torch.load(checkpoint_path, map_location="cpu", weights_only=True)
        module.load_state_dict(checkpoint["state_dict"])
        return module

    def setup(self, stage: str) -> None:
        """Connects the data, unless the run has: a Trainer of one's own needs no further call.

        Raises:
            ValueError: the Trainer is set to clip gradients, or a loss does not read the weights
                that batches have.
        """
        if limit := self.trainer.gradient_clip_val:  # type: ignore[attr-defined]
            is_value = self.trainer.gradient_clip_algorithm == "value"  # type: ignore[attr-defined]
            clipper = "Value" if is_value else "Norm"
            raise ValueError(
                f"the Trainer's gradient_clip_val is {limit}: leave it out and give "
                f"ContrastiveModule grad_clip={clipper}({limit}), of "
                "counterpoint.train.grad_clip.fixed"
            )
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, Pairs):
            return
        if data.steps is None:
            prepare_reducers(self.phases, self.model)
            connect_data(data, self.model, self.phases, self.seed, self.objective.needs)
        self.objective.check_reads_weight(data.weighted)
        check_turns(data.turns, self.guard, self.trainer.log_every_n_steps)  # type: ignore

    def configure_callbacks(self) -> list[pl.Callback]:
        """Adds the optimizer's callbacks, unless the Trainer already has them."""
        attached = {type(callback) for callback in self.trainer.callbacks}  # type: ignore
        return [callback for callback in self.optim.callbacks() if type(callback) not in attached]

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Returns the loss of a batch."""
        self.objective.progress = self.phases.progress(self.global_step)
        features = self.features(batch, self.global_step, self.objective.send_ahead)
        loss, report = self.objective(features, batch)
        self.report = {"loss": loss.detach()} | {f"loss/{k}": v for k, v in report.items()}
        self.report |= {k: v for k, v in features.items() if k.startswith("tokens/")}
        self.source_loss = self._loss_by_source(features, batch)
        return loss

    def features(
        self,
        batch: dict[str, Tensor],
        step: int,
        on_feature: Callable[[str, Tensor], Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Returns the features that the objective needs: of towers, teachers and the batch.

        `on_feature` is of the two-tower model's forward.
        """
        if self.half_weights is not None and torch.is_grad_enabled():
            self.half_weights.refresh()
        needs = self.objective.needs_of(batch)
        reduction = self.phases.reduction(step, self.seed)
        frozen, tower = self.frozen_towers, self.model.image
        reduction, scoring_features = score_patches(reduction, tower, frozen, batch, needs)
        features = self.model(batch, needs, reduction, on_feature=on_feature) | scoring_features
        features |= frozen_features(frozen, batch, needs - scoring_features.keys())
        return features | stored_features(batch, needs, features)

    def transfer_batch_to_device(
        self,
        batch: list[dict[str, Tensor]] | dict[str, Tensor],
        device: torch.device,
        dataloader_idx: int,
    ) -> Any:
        """Copies beside the device's work; see `batch_transfer`."""
        move = partial(super().transfer_batch_to_device, dataloader_idx=dataloader_idx)
        return self._batch_transfer(batch, device, move)

    def configure_model(self) -> None:
        """Shards model, objective and average, as the strategy does.

        The average is sharded like the student, so that it can follow shard by shard.
        """
        # After `freeze`: frozen statistics are allowed.
        check_parts(self.model, self.model.chunks)
        parts: dict[nn.Module, list[nn.Module]]
        parts = {self.model: self.model.layers(), self.objective: []}
        if self.ema is not None:
            parts[self.ema.model] = self.ema.model.layers()
        self.sharding.shard(self, parts, self.model.most_calls)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Builds the optimizer; its learning rate is set before every step."""
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        check_optimizer(self.optim, self.sharding, self.model, self.objective, scaler)
        optimizer = self.optim.build(self.model, self.objective, fused=scaler is None)
        self._settings = [
            {k: v for k, v in group.items() if k not in ("params", "lr")}
            for group in optimizer.param_groups
        ]
        return optimizer

    def on_train_start(self) -> None:
        """Places teachers, and restores settings that a checkpoint has replaced (decay, betas)."""
        for towers in self.frozen_towers.values():
            place_teacher(towers, self.device)
        for group, settings in zip(self._groups(), self._settings, strict=True):
            group.update(settings)
        self.tensors = self.sharding.tensors()
        dtype = MIXED.get(self.trainer.precision)  # type: ignore[attr-defined]
        HalfWeights.remove(self.model)  # of a fit that an error has ended
        self.half_weights = None
        if self.device.type == "cuda" and dtype and type(self.tensors) is LocalTensors:
            self.half_weights = HalfWeights(self.model, dtype)
        self.step_ended = time.monotonic()
        callbacks: list[pl.Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
        self.logs_itself = not any(isinstance(callback, Reporter) for callback in callbacks)

    def on_train_batch_start(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Seeds dropout and sets the learning rate; a new phase resets statistics of clipping.

        All of it is a function of the step.
        """
        step = self.global_step
        if step and self.phases.at(step)[2] == 0:
            self.guard.reset()
            if self.grad_clip is not None:
                self.grad_clip.reset()
        # Loaders of one's own may give ranks any number of rows.
        if isinstance(data := self.trainer.datamodule, Pairs):  # type: ignore[attr-defined]
            self.objective.batch_rows = data.batch_rows(step, self.trainer.world_size)
        torch.manual_seed(step_seed(self.seed, step, self.global_rank))
        for group in self._groups():
            group["lr"] = self.phases.learning_rate(step) * group["rate"]

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,  # of the Trainer; refused by `setup`
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips gradients, and drops them if the guard skips the step.

        Not Lightning's clip_gradients: it refuses fused optimizers in mixed precision even where no
        gradient is scaled, and does nothing under ZeRO.
        """
        clipper = self.grad_clip or Unclipped()
        named = named_parameters(self.model, self.objective)
        trained = {name: p for name, p in named.items() if p.requires_grad}
        if self.objective.streams:
            self.tensors.fill(list(trained.values()))
        self.tensors.begin()
        clipped = clipper.clip(self.tensors, trained)
        self.grad_norm = clipped.norm
        self.report |= clipped.report
        loss = mean_over_ranks(self.report["loss"]) if self.guard.spikes else None
        self.decision = self.guard.decide(loss, self.grad_norm, self.global_step)
        self.tensors.drop(optimizer, list(trained.values()), self.decision.skip)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Updates weights, clamps scalars and updates the average, before any checkpoint."""
        super().optimizer_step(*args, **kwargs)
        for parameter, lowest, highest in (*self.model.bounds(), *self.objective.bounds()):
            self.tensors.bound(parameter, lowest, highest)
        assert self.decision is not None
        if self.ema is not None:
            step, num_steps = self.global_step - self.phases.first_step, self.phases.own_steps
            skip = self.decision.skip
            self.ema.update(self.model, self.objective, step, num_steps, self.tensors, skip)
        if self.logs_itself:
            self._log_report()

    def _log_report(self) -> None:
        """Logs means over ranks through Lightning, under the names of a run's metrics.jsonl."""
        step = self.global_step  # incremented after this hook
        if (step + 1) % self.trainer.log_every_n_steps:  # type: ignore[attr-defined]
            return
        values = self.report | {
            "logit_scale": self.tensors.value(self.model.logit_scale).exp(),
            "lr": torch.tensor(self.phases.learning_rate(step)),
        }
        if self.grad_norm is not None:
            values["grad_norm"] = self.grad_norm
        for name, value in values.items():
            self.log(name, value.float(), prog_bar=name == "loss", sync_dist=True)

    @property
    def frozen_towers(self) -> dict[str, FrozenTowers]:
        """Teachers and average, by the prefix of their features."""
        towers = {f"teacher.{name}": teacher for name, teacher in self.teachers.items()}
        return towers if self.ema is None else towers | {"ema": self.ema}

    @property
    def sharding(self) -> Sharding:
        return sharding_of(self.trainer.strategy)

    def averaged(self) -> list[tuple[nn.Parameter, nn.Parameter]]:
        """Returns pairs of an average's parameter and the one that it follows."""
        ema = self.ema
        return list(parameters_of(ema.followed(self.model, self.objective))) if ema else []

    def update_rms(self) -> Tensor | None:
        """Returns `update_rms` of the image tower's first layer (collective)."""
        first = next((p for p in self.model.image.parameters() if p.ndim == 4), None)
        optimizer = self.trainer.optimizers[0]
        return None if first is None else update_rms(optimizer, first, self.tensors)

    def on_train_batch_end(self, *args: Any) -> None:
        """Runs after all callbacks; the time from here to the next step is data wait."""
        self.step_ended = time.monotonic()

    def on_train_end(self) -> None:
        """Makes layers plain again."""
        HalfWeights.remove(self.model)
        self.half_weights = None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what resume compares, and statistics of gradient clipping and the guard."""
        written = piece_of_rows if self.sharding.saves_pieces else gathered
        put_rows(checkpoint, self, self.trainer.optimizers, written)
        checkpoint["counterpoint"] = {
            "config": self.run.config,
            "fingerprint": self.run.fingerprint,
            "stage": self.run.stage,
            "earlier": [list(length) for length in self.phases.earlier],
            "samples": self.phases.samples_before(self.global_step),
            "grad_clip": {} if self.grad_clip is None else self.grad_clip.state_dict(),
            "guard": self.guard.state_dict(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores these statistics; a clipper that is new to the run starts without."""
        saved = checkpoint.get("counterpoint", {})
        self.guard.load_state_dict(saved.get("guard", {}))
        if self.grad_clip is not None and saved.get("grad_clip"):
            self.grad_clip.load_state_dict(saved["grad_clip"])

    def _loss_by_source(
        self, features: dict[str, Tensor], batch: dict[str, Tensor]
    ) -> Tensor | None:
        """Returns (sum, count) of the samples' losses by source, at log steps of a mixture.

        Both by weight, where samples have one: then their quotients add up to the loss as well.
        """
        step = self.global_step + 1
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if (
            "source" not in batch
            or len(self.run.sources) < 2
            or (step % every and step != self.trainer.max_steps)
        ):
            return None
        losses = self.objective.per_sample(features, batch)
        if losses is None:
            return None
        table = losses.new_zeros(len(self.run.sources), 2)
        weights = batch.get(WEIGHT, torch.ones_like(losses)).to(losses.dtype)
        return table.index_add_(0, batch["source"], torch.stack([losses * weights, weights], 1))

    def _groups(self) -> list[dict[str, Any]]:
        return self.trainer.optimizers[0].param_groups  # DeepSpeed's wrapper passes them on
