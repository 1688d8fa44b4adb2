"""What a run needs and how long it takes, before anything is started.

In: a resolved configuration, a device, how many of them. Out: an `Estimate` of each phase, and of
the run; nothing is measured and no data is read.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...data.order.steps import check_divides
from ...losses.base import PairwiseTerm
from ...models.half_weights import MIXED, HalfWeights
from ...models.two_tower import view_of
from ...train.phases import Phase
from . import meta
from .collectives import FSDP2, Collective, LossCount, of_objective, of_strategy
from .counting import StepCount, count_step
from .devices import GB, MICRO, Device

# Of elementwise kernels, what is left of their time when layers are compiled.
COMPILED = 0.55
# Elements of DeepSpeed's `reduce_bucket_size`, if it is not set.
BUCKET = 5e8
# Images a second that JPEG scaling decodes, against whole decoding (docs/benchmarks.md).
SCALED_DECODING = 1.35
# Bytes of memory traffic of the loss for each pair and term, beside its products: tiles are written
# and read in both passes.
PAIR_BYTES = 28


@dataclass(frozen=True)
class Cluster:
    """Where a run is to train.

    Attributes:
        device: each of them.
        count: devices of the run, a rank each.
        nodes: that they stand in.
    """

    device: Device
    count: int
    nodes: int


@dataclass(frozen=True)
class PhaseEstimate:
    """A step of one phase, on one rank.

    Attributes:
        name: of the phase.
        steps: of it.
        rows: pairs of a rank.
        batch: pairs of all ranks.
        count: of the towers.
        loss: of the objective; a text: why it is not counted.
        collectives: of the whole step.
        memory: bytes by part.
        seconds: of the step by part, those that nothing hides; they add up to the step.
        hidden: seconds of collectives and of the batch's copy behind computation.
    """

    name: str
    steps: int
    rows: int
    batch: int
    count: StepCount
    loss: LossCount | str
    collectives: list[Collective]
    memory: dict[str, float]
    seconds: dict[str, float]
    hidden: float

    @property
    def step(self) -> float:
        """Seconds of a step."""
        return sum(self.seconds.values())


@dataclass(frozen=True)
class Estimate:
    """A whole run.

    Attributes:
        parameters: of the model; `trainable` of them.
        phases: in order.
        peak_flops: of a device at the run's precision, a second.
        checkpoint_bytes, checkpoint_seconds: of one checkpoint, for which training waits.
        images_per_core: that one core decodes a second.
        seconds: of the run.
        notes: what was assumed.
    """

    parameters: dict[str, int]
    phases: list[PhaseEstimate]
    peak_flops: float
    checkpoint_bytes: float
    checkpoint_seconds: float
    images_per_core: float
    seconds: float
    notes: list[str] = field(default_factory=list)


def estimate(config: Mapping[str, Any], cluster: Cluster, mean_tokens: float = 12.4) -> Estimate:
    """Estimates a run.

    Args:
        config: resolved, as plain values.
        cluster: where it is to train.
        mean_tokens: of a caption, start and end included.

    Raises:
        ValueError: the devices do not divide the batch, or a tower cannot be counted.
    """
    device, trainer = cluster.device, config["trainer"]
    precision = settle(str(trainer.get("precision") or "32-true"), device)
    strategy = str(trainer.get("strategy") or "auto")
    for name, phase in config["phases"].items():
        check_divides(phase["batch_size"], cluster.count, f"phases.{name}.")
    parts = meta.build(dict(config), precision)
    state_bytes, is_counted = meta.optimizer_bytes(parts)
    backend = trainer.get("compile")
    is_compiled = backend is not None and (backend != "auto" or device.kind == "cuda")
    setting = _Setting(parts, cluster, precision, strategy, state_bytes, is_compiled, mean_tokens)
    setting.average = 4 if config.get("ema") else 0
    dtype = MIXED.get(precision)
    if device.kind == "cuda" and dtype and not strategy.startswith((*FSDP2, "zero")):
        setting.half_weights = HalfWeights(parts.model, dtype)
    phases = [setting.phase(name, phase) for name, phase in parts.phases.named.items()]
    sizes = [p.numel() for p in parts.model.parameters()]
    trained = [p.numel() for p in parts.model.parameters() if p.requires_grad]
    saved = sum(sizes) * (setting.width + setting.average) + state_bytes
    is_split = config["checkpoint"].get("format") == "distributed"  # written behind the steps
    saving = saved / GB / (cluster.count * device.host if is_split else device.storage)
    num_saves = parts.phases.total_steps / config["checkpoint"]["every_n_steps"]
    notes = assumptions(config, cluster, precision, mean_tokens)
    notes += [] if is_counted else ["the optimizer's states are two numbers a parameter"]
    losses = {phase.loss for phase in phases if isinstance(phase.loss, str)}
    notes += [f"the objective is not counted: {reason}" for reason in sorted(losses)]
    return Estimate(
        {"total": sum(sizes), "trainable": sum(trained)},
        phases,
        device.tflops["fp32" if precision.startswith(("32", "64")) else "bf16"] * 1e12,
        saved,
        saving,
        device.images * (SCALED_DECODING if is_scaled(config["data"]) else 1.0),
        sum(phase.steps * phase.step for phase in phases) + num_saves * saving,
        notes,
    )


def settle(precision: str, device: Device) -> str:
    """Returns what `auto` becomes on the device."""
    if precision != "auto":
        return precision
    return "bf16-mixed" if device.flops("bf16") > device.flops("fp32") else "32-true"


@dataclass
class _Setting:
    """What is the same in all phases."""

    parts: meta.Parts
    cluster: Cluster
    precision: str
    strategy: str
    state_bytes: int
    is_compiled: bool
    mean_tokens: float
    half_weights: HalfWeights | None = None
    average: int = 0  # bytes a parameter of the moving average

    @property
    def width(self) -> int:
        """Bytes of a parameter."""
        return next(self.parts.model.parameters()).element_size()

    @property
    def device(self) -> Device:
        return self.cluster.device

    def phase(self, name: str, phase: Phase) -> PhaseEstimate:
        parts, world_size = self.parts, self.cluster.count
        rows = phase.batch_size // world_size
        batch = meta.batch_of(parts, rows, self.mean_tokens)
        reduction = meta.reduction_of(phase, parts.model, batch)
        needs = parts.objective.needs
        with self._as_gathered():
            count = count_step(
                parts.model, batch, needs, reduction, self.device, self.precision, self.half_weights
            )
        loss = of_objective(parts.small, count.features, batch, rows, world_size)
        collectives = of_strategy(
            self.strategy, parts.model, count.calls, world_size, self.precision, self.cluster.nodes
        )
        if isinstance(loss, LossCount) and world_size > 1:
            collectives = [*loss.collectives, *collectives]
        seconds, hidden = self._seconds(count, loss, collectives, batch, rows)
        memory = self._memory(count, rows, batch)
        return PhaseEstimate(
            name, phase.num_steps, rows, phase.batch_size, count, loss, collectives, memory,
            seconds, hidden,
        )  # fmt: skip

    @contextmanager
    def _as_gathered(self) -> Iterator[None]:
        """FSDP2 gathers layers in the bits that they compute in: autocast has nothing to copy."""
        layers = self.parts.model.layers() if self._gathers_half else []
        for layer in layers:
            layer.to(torch.bfloat16)
        try:
            yield
        finally:
            for layer in layers:
                layer.to(torch.float32)

    @property
    def _gathers_half(self) -> bool:
        is_sharded = self.strategy in FSDP2 and self.cluster.count > 1
        return is_sharded and self.precision == "bf16-mixed"

    @property
    def _num_shards(self) -> int:
        """Ranks over which a strategy cuts what it cuts."""
        return self.cluster.count // (self.cluster.nodes if self.strategy == "hsdp" else 1)

    def _memory(self, count: StepCount, rows: int, batch: Mapping[str, Any]) -> dict[str, float]:
        model, strategy = self.parts.model, self.strategy
        ranks, shards = self.cluster.count, self._num_shards
        whole = float(sum(map(_bytes, model.parameters())))
        trained = float(sum(_bytes(p) for p in model.parameters() if p.requires_grad))
        layers = [float(sum(map(_bytes, layer.parameters()))) for layer in model.layers()]
        rest = whole - sum(layers)
        cuts_weights = strategy.startswith((*FSDP2, "zero3"))
        cuts_gradients = cuts_weights or strategy.startswith("zero2")
        cuts_states = cuts_gradients or strategy.startswith("zero1")
        states = self.state_bytes * (1 + (self.width == 2 and strategy.startswith("zero")))
        states = 0.0 if strategy.endswith("_offload") else states / (shards if cuts_states else 1)
        gathered = rest + 2 * max(layers, default=0.0) if cuts_weights else 0.0
        if strategy in FSDP2:
            stays_whole = model.most_calls > 1
            inside = sum(layers) if stays_whole else 2 * max(layers, default=0.0)
            gathered = rest + inside * (0.5 if self._gathers_half else 1.0)
        # DDP's gradients are its buckets, which stay; one process makes them as activations go.
        gradients = trained / shards if cuts_gradients else trained
        # FSDP2 has whole ones of layers until the last call's backward pass has ended.
        as_they_come = float(count.peak - count.activations)
        if ranks == 1 or strategy in FSDP2:
            gradients = as_they_come + (trained / shards if ranks > 1 else 0.0)
        bucket = BUCKET * self.width if strategy.startswith(("zero1", "zero2")) else 0.0
        loss = self._loss_bytes(count, rows)
        activations = max(count.activations, count.kept + loss) - loss
        memory = {
            "weights": whole / (shards if cuts_weights else 1) + gathered,
            "gradients": gradients,
            "optimizer": states,
            "average": whole / self.width * self.average / (shards if cuts_weights else 1),
            "activations": activations,
            "loss": loss,
            "buckets": min(bucket, trained),
            "batch": _batch_bytes(batch),
            "reserved": self.device.reserved * 2**30,
        }
        return {part: size for part, size in memory.items() if size or part == "gradients"}

    def _loss_bytes(self, count: StepCount, rows: int) -> float:
        """Gathered columns with their gradients, and two tiles, of the term with most of them."""
        total = rows * self.cluster.count
        widths = [x.shape[1] for x in count.features.values() if x.ndim == 2]
        terms = [m for m in self.parts.objective.modules() if isinstance(m, PairwiseTerm)]
        device = torch.device(self.device.kind)
        tiles = [min(term.pairing().bytes_on(device), 4 * rows * total) for term in terms]
        return 2 * 4 * total * max(widths, default=0) + 2 * max(tiles, default=0) if terms else 0.0

    def _seconds(
        self,
        count: StepCount,
        loss: LossCount | str,
        collectives: list[Collective],
        batch: Mapping[str, Any],
        rows: int,
    ) -> tuple[dict[str, float], float]:
        device, ranks = self.device, self.cluster.count
        products = sum(t for kind, t in count.seconds.items() if "products" in kind)
        attention = sum(t for kind, t in count.seconds.items() if "attention" in kind)
        other = sum(count.seconds.values()) - products - attention
        other *= COMPILED if self.is_compiled else 1.0
        seconds = {"products": products, "attention": attention, "elementwise": other}
        if isinstance(loss, LossCount):
            num_pairs = rows * rows * ranks * max(1, len(self.parts.objective.named_terms))
            traffic = num_pairs * PAIR_BYTES / device.memory_rate
            # On GPUs three products of TF32, which has half of bf16's rate (`products_triton`).
            rate = device.flops("bf16") / 6 if device.kind == "cuda" else device.flops("fp32")
            seconds["loss"] = loss.flops / rate + traffic
        trained = sum(_bytes(p) for p in self.parts.model.parameters() if p.requires_grad)
        # Weights and states are read and written, gradients read twice, and scaled.
        shards = self._num_shards if self.strategy.startswith((*FSDP2, "zero")) else 1
        touched = (2 * (trained + self.state_bytes) + 4 * trained) / shards
        seconds["optimizer"] = touched / device.memory_rate
        copied = _batch_bytes(batch) if device.kind == "cuda" else 0.0
        compute = sum(seconds.values())
        is_one_node = self.cluster.nodes == 1
        times = {"copy": copied / (device.host * GB)}
        for each in collectives:
            spent = each.seconds(ranks, device, is_one_node)
            times[each.purpose] = times.get(each.purpose, 0.0) + spent
        # Gradients travel behind the last chunk's backward pass, but for the last bucket; a layer
        # is gathered behind the one before.
        behind = {
            "copy": compute,  # beside the step before
            "gradients": count.backward_seconds / self.parts.model.chunks * 0.95,
            "parameters": compute * 0.95 if self.strategy.startswith((*FSDP2, "zero3")) else 0.0,
        }
        exposed = {p: max(0.0, t - behind.get(p, 0.0)) for p, t in times.items()}
        seconds |= exposed
        if device.kind == "cuda":  # its kernels run beside
            launching = count.launches * device.microseconds["launch"] * MICRO
            seconds["host"] = max(0.0, launching - sum(seconds.values()))
        else:
            seconds["host"] = count.operations * device.microseconds["launch"] * MICRO
        shown = {part: t for part, t in seconds.items() if t}
        return shown, sum(times.values()) - sum(exposed.values())


def assumptions(
    config: Mapping[str, Any], cluster: Cluster, precision: str, mean_tokens: float
) -> list[str]:
    """Returns what was assumed, a sentence each."""
    device = cluster.device
    notes = [
        f"captions have {mean_tokens:g} tokens on average, log-normal (--caption_tokens)",
        f"products reach {device.attained['bf16']:.0%} of the peak in bf16 and "
        f"{device.attained['fp32']:.0%} in fp32, memory {device.attained['bandwidth']:.0%}; "
        f"precision {precision}",
        f"one core decodes {device.images:g} images a second"
        + (
            f", {SCALED_DECODING:g} times as many at reduced scale"
            if is_scaled(config["data"])
            else ""
        )
        + f"; checkpoints are written at "
        f"{device.storage:g} GB/s; evaluation is not counted",
    ]
    if cluster.count > 1:
        between = "inside a node" if cluster.nodes == 1 else f"between {cluster.nodes} nodes"
        notes.append(
            f"{device.link(cluster.nodes == 1) / GB:.0f} GB/s a device {between}; the exchange of "
            "features waits, gradients travel behind the backward pass"
        )
    if teachers := config.get("teachers"):
        notes.append(f"teachers are not counted ({', '.join(teachers)}): neither time nor memory")
    if config.get("ema"):
        notes.append("features of the moving average, if a term reads them, are not counted")
    return notes


def images_a_pair(phase: PhaseEstimate) -> int:
    """Returns how many images the loader makes for a pair."""
    views = {view_of(name) for name in phase.count.features}
    return sum(view.partition(".")[0] == "image" for view in views)


def _batch_bytes(batch: Mapping[str, Any]) -> float:
    return float(sum(_bytes(x) for x in batch.values() if isinstance(x, Tensor) and x.is_meta))


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def is_scaled(data: Mapping[str, Any]) -> bool:
    """Whether the run's training transform decodes JPEGs at the scale that it needs."""
    transform = data.get("train_transform") or {}
    return (transform.get("init_args") or {}).get("decode") == "dct"


def fed_seconds(found: Estimate, num_workers: int) -> float:
    """Returns the seconds of the run if a rank's loader has so many workers, a core each."""
    rate = found.images_per_core * max(1, num_workers)
    waits = (max(0.0, p.rows * images_a_pair(p) / rate - p.step) * p.steps for p in found.phases)
    return found.seconds + sum(waits)


def cores(phase: PhaseEstimate, images_per_core: float) -> int:
    """Returns how many cores a rank's loader needs."""
    images = phase.rows * images_a_pair(phase) / phase.step
    return math.ceil(images / images_per_core)
