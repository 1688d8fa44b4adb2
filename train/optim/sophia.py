"""Sophia-G: momentum divided by an estimate of curvature, clipped element by element.

m <- b1 m + (1 - b1) g; every k steps h <- b2 h + (1 - b2) g'^2; w <- w - lr sign(m) min(|m| / (rho
h), 1), decay first. g' is the gradient of the loss with labels drawn from the model's own softmax
over the pairs, scaled so that the mean of g'^2 is the diagonal of the Gauss-Newton matrix
(`losses.kernels.label_sampling`). Liu et al., "Sophia: A Scalable Stochastic Second-order Optimizer
for Language Model Pre-training" (2023), algorithm 3; there the factor (tokens of a batch) is
outside of h.
"""

from collections.abc import Iterable
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from ...losses.objective import Objective
from ..seeds import step_seed
from ..strategies.sharded_tensors import local
from .adamw import AdamW
from .param_groups import USUAL, Groups


class SophiaG(AdamW):
    """Sophia-G for objectives with a softmax over pairs; single processes, DDP and FSDP2.

    Args:
        betas: of the momentum, of the curvature.
        rho: scale of the curvature; the larger, the fewer elements are clipped. The fraction that
            is not (`unclipped` in the metrics) should lie between 0.1 and 0.5.
        every: steps from one estimate of the curvature to the next; each costs about one more
            step's forward and backward pass.
        weight_decay, scalar_rate, groups: as of AdamW.
    """

    own_backward = True

    def __init__(
        self,
        betas: tuple[float, float] = (0.965, 0.99),
        rho: float = 0.04,
        every: int = 10,
        weight_decay: float = 0.2,
        scalar_rate: float = 1.0,
        groups: Groups = USUAL,
    ):
        if rho <= 0 or every < 1:
            raise ValueError(f"optim.rho is {rho} and optim.every {every}: give > 0 and >= 1")
        super().__init__(betas, 0.0, weight_decay, scalar_rate, groups)
        self.rho, self.every = rho, every

    def build(
        self, model: nn.Module, objective: nn.Module | None = None, fused: bool = True
    ) -> torch.optim.Optimizer:
        """Checks that labels can be drawn for every term; see `AdamW.build`."""
        if isinstance(objective, Objective):
            objective.check_sampled()
        return super().build(model, objective, fused)

    def make(
        self, groups: list[dict[str, Any]], named: dict[str, nn.Parameter], fused: bool
    ) -> torch.optim.Optimizer:
        return Sophia(groups, self.betas, self.rho)

    def callbacks(self) -> list[pl.Callback]:
        return [EstimateCurvature(self)]


class EstimateCurvature(pl.Callback):
    """Estimates the curvature on the step's batch every so often, by a backward pass of its own."""

    def __init__(self, optim: SophiaG):
        self.optim = optim

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: dict[str, Tensor],
        batch_idx: int,
    ) -> None:
        module: Any = pl_module  # a ContrastiveModule, which imports the optimizers
        step = trainer.global_step - 1
        if (step + 1) % self.optim.every or bool(module.decision.skip):
            return
        optimizer = trainer.optimizers[0]
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for parameter in parameters:
            parameter.grad = None
        with trainer.precision_plugin.forward_context():
            features = module.features(batch, step)
            # The same draw on all ranks; there is room for the seeds of several terms above it.
            seed = step_seed(module.seed, step, -1) >> 2
            loss = module.objective.sampled(features, batch, seed)
        loss.backward()
        module.tensors.release(module)
        module.tensors.average_gradients(parameters)
        norm = module.tensors.norms([parameters])[0]
        if bool(norm.isfinite()):
            update_curvature(optimizer, parameters, self.optim.betas[1])
            module.report["unclipped"] = unclipped_fraction(optimizer, parameters, self.optim.rho)
            if module.logs_itself:
                module.log("unclipped", module.report["unclipped"], sync_dist=True)
        for parameter in parameters:
            parameter.grad = None


class Sophia(torch.optim.Optimizer):
    """Sophia's step. Until `update_curvature` has added an estimate, all elements are clipped."""

    def __init__(self, params: Any, betas: tuple[float, float], rho: float):
        super().__init__(params, {"lr": 0.0, "betas": betas, "rho": rho, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["exp_avg"] = torch.zeros_like(parameter)
                    state["hessian"] = torch.zeros_like(parameter)
                momentum = state["exp_avg"].lerp_(parameter.grad, 1 - group["betas"][0])
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                ratio = momentum / (group["rho"] * state["hessian"]).clamp(min=1e-15)
                parameter.add_(ratio.clamp_(-1.0, 1.0), alpha=-group["lr"])
        return loss


@torch.no_grad()
def update_curvature(
    optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter], beta: float
) -> None:
    """Updates the curvature with the squared gradients."""
    for parameter in parameters:
        if parameter.grad is not None and (state := optimizer.state.get(parameter)):
            state["hessian"].mul_(beta).addcmul_(parameter.grad, parameter.grad, value=1 - beta)


@torch.no_grad()
def unclipped_fraction(
    optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter], rho: float
) -> Tensor:
    """Returns the fraction of this rank's elements that the next step would not clip []."""
    states = [state for p in parameters if (state := optimizer.state.get(p))]
    counts = [
        (local(state["exp_avg"]).abs() < rho * local(state["hessian"])).sum() for state in states
    ]
    num_elements = sum(local(state["exp_avg"]).numel() for state in states)
    return torch.stack(counts).sum() / max(num_elements, 1)
