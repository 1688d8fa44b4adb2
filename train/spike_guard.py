"""The spike guard: decides from loss and gradient norm whether a step counts.

In: the global batch's loss and gradient norm, the same on every rank. Out: go on, skip the step, or
rewind the run, the same on every rank. Decisions are tensors, so that no step waits for them;
`check` reads the counters at log steps.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from itertools import count
from typing import Literal

import torch
from torch import Tensor

from .checks import at_least
from .grad_clip.base import remember
from .strategies.sharded_tensors import Tensors

NORMAL = 1.4826  # standard deviation of a normal distribution in units of its median deviation


class Action(IntEnum):
    """What happens with a step."""

    GO_ON = 0
    SKIP = 1
    REWIND = 2


@dataclass(frozen=True)
class Decision:
    """An Action on the device, as its number `code` [] int64."""

    code: Tensor

    @property
    def skip(self) -> Tensor:
        """Whether weights and optimizer stay unchanged [] bool; true before a rewind as well."""
        return self.code > Action.GO_ON

    def action(self) -> Action:
        """Returns the action; waits for the device."""
        return Action(int(self.code))


@dataclass(frozen=True)
class Spikes:
    """When a finite step counts as a spike.

    Loss and log of the gradient's norm are compared with the median of the last `window` good
    steps, in units of their median deviation: neither is moved by the spikes themselves.

    Attributes:
        window: good steps remembered.
        warmup: good steps before any step can be a spike.
        z: distance above the median from which a value is a spike, in standard deviations.
        floor: least standard deviation (loss in nats, norm as a logarithm).
        patience: spikes in a row until `then`.
        then: `accept`: the window starts anew, at the new level. `rewind`: the run goes back to
            the last checkpoint before the row and skips the samples since; it also does so
            instead of ending after too many non-finite steps.
        margin: least number of good steps between that checkpoint and the row.
        max_rewinds: number of rewinds after which the run ends instead.
    """

    window: int = 128
    warmup: int = 32
    z: float = 8.0
    floor: float = 0.02
    patience: int = 10
    then: Literal["accept", "rewind"] = "accept"
    margin: int = 10
    max_rewinds: int = 3

    def __post_init__(self) -> None:
        if not 2 <= self.warmup <= self.window:
            raise ValueError(
                f"guard.spikes.warmup is {self.warmup}: it must lie between 2 and the window's "
                f"{self.window} steps"
            )
        if self.z <= 0 or self.floor <= 0 or self.patience < 1:
            raise ValueError("guard.spikes: z and floor must be > 0 and patience >= 1")
        if self.margin < 0 or self.max_rewinds < 1:
            raise ValueError("guard.spikes: margin must be >= 0 and max_rewinds >= 1")


class SpikeGuard:
    """Skips steps that are not finite, and spikes where they are defined.

    Args:
        max_nonfinite: non-finite steps in a row that are tolerated (a gradient scaler needs a
            dozen to find its scale).
        spikes: definition of a spike; None: only non-finite steps are skipped.

    Attributes:
        state: counters and windows of fixed size, saved in checkpoints.
    """

    def __init__(self, max_nonfinite: int = 50, spikes: Spikes | None = None):
        at_least("guard.max_nonfinite", max_nonfinite, 0)
        self.max_nonfinite, self.spikes = max_nonfinite, spikes
        counters = (
            *("nonfinite", "nonfinite_in_row", "spikes", "spikes_in_row"),
            *("new_levels", "good"),
        )
        self.state = {name: torch.zeros((), dtype=torch.int64) for name in counters}
        if spikes:
            self.state |= {name: torch.zeros(spikes.window) for name in ("loss", "log_norm")}
        if self.rewinds:
            names = ("rewinds", "left_out_in_row", "row_begin", "row_end")
            self.state |= {name: torch.zeros((), dtype=torch.int64) for name in names}

    @property
    def rewinds(self) -> bool:
        """Whether a row of spikes makes the run go back to a checkpoint."""
        return self.spikes is not None and self.spikes.then == "rewind"

    @torch.no_grad()
    def decide(self, loss: Tensor | None, norm: Tensor, step: int = 0) -> Decision:
        """Decides about a step.

        Args:
            loss: of the global batch [] (see `mean_over_ranks`); None: spikes are not detected.
            norm: of the gradient before clipping [].
            step: its number (0-based).
        """
        self.state = {key: value.to(norm.device) for key, value in self.state.items()}
        state, bad = self.state, ~norm.isfinite()
        if loss is not None:
            bad = bad | ~loss.isfinite()
        state["nonfinite"].add_(bad)
        state["nonfinite_in_row"].add_(1).mul_(bad)
        spike = rewind = torch.zeros_like(bad)
        if self.spikes:
            assert loss is not None
            spike, rewind = self._find_spike(self.spikes, loss.float(), norm.float(), bad)
        if self.rewinds:
            rewind = self._mark_row(bad | spike, rewind, step)
        return Decision((bad | spike).long() + rewind.long())

    def _mark_row(self, left_out: Tensor, spikes: Tensor, step: int) -> Tensor:
        """Records the row of steps that the run has to skip; only the first such row."""
        state = self.state
        state["left_out_in_row"].add_(1).mul_(left_out)
        rewind = (spikes | (state["nonfinite_in_row"] > self.max_nonfinite)) & (
            state["row_end"] == 0
        )
        begin = step + 1 - state["left_out_in_row"]
        state["row_begin"].copy_(torch.where(rewind, begin, state["row_begin"]))
        state["row_end"].copy_(torch.where(rewind, step + 1, state["row_end"]))
        return rewind

    def row_to_skip(self) -> tuple[int, int] | None:
        """Returns the steps that a rewind skips as [first, last + 1); waits for the device."""
        if not self.rewinds or not int(self.state["row_end"]):
            return None
        return int(self.state["row_begin"]), int(self.state["row_end"])

    def _find_spike(
        self, spikes: Spikes, loss: Tensor, norm: Tensor, bad: Tensor
    ) -> tuple[Tensor, Tensor]:
        state, log_norm = self.state, norm.clamp(min=1e-30).log()
        count, good = state["good"].clamp(max=spikes.window), state["good"].clone()
        far = is_far(loss, state["loss"], count, spikes) | is_far(
            log_norm, state["log_norm"], count, spikes
        )
        spike = far & ~bad & (good >= spikes.warmup)
        state["spikes"].add_(spike)
        state["spikes_in_row"].copy_(
            torch.where(bad, state["spikes_in_row"], (state["spikes_in_row"] + 1) * spike)
        )
        rewind = state["spikes_in_row"] >= spikes.patience
        keep = ~(bad | spike)
        remember(state["loss"], good, torch.where(keep, loss, torch.nan))
        remember(state["log_norm"], state["good"], torch.where(keep, log_norm, torch.nan))
        if not self.rewinds:
            state["new_levels"].add_(rewind)
            state["good"].mul_(~rewind)
            state["spikes_in_row"].mul_(~rewind)
        return spike, rewind

    def check(self) -> None:
        """Checks the counters; waits for the device, so it is called at log steps."""
        in_row = int(self.state["nonfinite_in_row"])
        if in_row > self.max_nonfinite and not self.rewinds:
            raise ValueError(
                f"the last {in_row} steps had no finite gradient (guard.max_nonfinite is "
                f"{self.max_nonfinite}); lower the learning rate, train in bf16, or look at the "
                "batches of these steps"
            )

    def report(self) -> dict[str, Tensor]:
        """Returns totals to log []."""
        names = ["nonfinite", *(["spikes", "new_levels"] if self.spikes else [])]
        names += ["rewinds"] if self.rewinds else []
        return {f"guard/{name}": self.state[name] for name in names}

    def reset(self) -> None:
        """Empties the windows of losses and norms, for a new phase; the totals stay."""
        for name in ("good", "spikes_in_row", "left_out_in_row"):
            if name in self.state:
                self.state[name].zero_()

    def state_dict(self) -> dict[str, Tensor]:
        """Returns the state for a checkpoint."""
        return dict(self.state)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restores entries of equal shape; windows of another size start anew."""
        fits = {k for k, v in state.items() if k in self.state and v.shape == self.state[k].shape}
        for key in fits:
            self.state[key].copy_(state[key])
        if fits != self.state.keys():
            self.reset()


def is_far(value: Tensor, window: Tensor, count: Tensor, spikes: Spikes) -> Tensor:
    """Whether `value` [] is a spike against the first `count` values of `window`."""
    middle = _median(window, count)
    deviation = NORMAL * _median((window - middle).abs(), count)
    return value - middle > spikes.z * deviation.clamp(min=spikes.floor)


def _median(values: Tensor, count: Tensor) -> Tensor:
    """Returns the lower median of the first `count` [] values."""
    filled = torch.arange(len(values), device=values.device) < count
    return torch.where(filled, values, torch.inf).sort().values[(count.clamp(min=1) - 1) // 2]


def update_rms(
    optimizer: torch.optim.Optimizer, parameter: torch.nn.Parameter, tensors: Tensors
) -> Tensor | None:
    """sqrt(mean(g^2 / v)) of a parameter: how far gradients outgrow their second moment [].

    Of the patch embedding, values beyond 2 come 1 to 8 steps before a loss spike (Wortsman et al.
    2023, section 3.4). Call it after a step, at log steps; None: no second moment, no gradient.
    """
    gradient = parameter.grad
    state = {} if gradient is None else optimizer.state.get(parameter, {})
    if gradient is None or "exp_avg_sq" not in state or "step" not in state:
        return None
    group = next(g for g in optimizer.param_groups if any(p is parameter for p in g["params"]))
    if "betas" not in group:
        return None
    eps = group["eps"]
    debias = 1 - group["betas"][1] ** state["step"]
    second = (state["exp_avg_sq"] / debias).clamp(min=eps**2)
    return tensors.value((gradient.square() / second).mean()).sqrt()


def check_turns(turns: Mapping[str, int] | None, guard: SpikeGuard, log_every: int) -> None:
    """Refuses what looks at the losses of all steps as those of one stream.

    Args:
        turns: steps of each stream; see `PairsDataModule`.
        guard: of the run.
        log_every: steps from one row of the log to the next.

    Raises:
        ValueError: the guard looks for spikes, or a stream would never come into the log.
    """
    cycle = [name for name, steps in (turns or {}).items() for _ in range(steps)]
    if cycle and guard.spikes:
        raise ValueError(
            "guard.spikes compares the losses of steps, which with data.turns are those of "
            "different streams: leave guard.spikes or data.turns out"
        )
    logged = {cycle[(row * log_every - 1) % len(cycle)] for row in range(1, len(cycle) + 1)}
    if unseen := [name for name in turns or () if name not in logged]:
        fit = next(n for n in count(log_every + 1) if math.gcd(n, len(cycle)) == 1)
        raise ValueError(
            f"with trainer.log_every_n_steps={log_every} and the {len(cycle)} steps of data.turns "
            f"no row of the log would have the losses of '{unseen[0]}': set it to {fit}"
        )
