"""The objective: a named, weighted sum of terms.

In: features and batch. Out: the scalar to optimise and a report of raw values by term. What is
reported adds up, with the weights, to what is optimised.
"""

import math
from collections.abc import Callable, Collection, Mapping
from typing import cast

import torch
from torch import Tensor, nn

from .base import Term
from .components.features import MODEL_SCALARS, Tensors, in_stream, of_stream, stream_of
from .components.similarity import Cosine, Metric
from .distributed import ahead
from .distributed.collectives import equal_rows, world
from .scalars import Scalar
from .weight_schedules import Weight


class Objective(nn.Module):
    """Weighted sum of terms over one set of features.

    Args:
        terms: the losses by name.
        weights: weight by term name, a number or a function of the fraction of the run done
            (`weight_schedules.Ramp`); 1 where not named.
        logit_scale_init: multiplicative logit scale the model starts from (CLIP 1/0.07, SigLIP 10).
        logit_bias_init: logit bias the model starts from; None: the model has no bias.
        scalars: learned numbers by name (`scalars.Temperature`), which terms may share.
        streams: stream of the data by term name; the main one where not named. A term is left out
            of steps that take no batch of its stream.
        logit_scale_bounds: lowest and highest value of the model's scale, kept after each step.

    Attributes:
        progress: fraction of the run done, 0 to 1, set before each step. Terms read it as the
            feature `progress` (0-dimensional, on the CPU).
        batch_rows: of every rank's batch by stream ("": the main one), set before each step;
            without a number ranks may have any.

    Raises:
        ValueError: no terms, a weight or stream for an unknown term, or an object that is no term.
    """

    def __init__(
        self,
        terms: dict[str, Term],
        weights: dict[str, float | Weight] | None = None,
        logit_scale_init: float = 1 / 0.07,
        logit_bias_init: float | None = None,
        scalars: dict[str, Scalar] | None = None,
        streams: dict[str, str] | None = None,
        logit_scale_bounds: tuple[float, float] = (1.0, 100.0),
    ):
        super().__init__()
        if not terms:
            raise ValueError("objective.terms is empty: name at least one term")
        for key, named in {"weights": weights, "streams": streams}.items():
            if unknown := sorted(set(named or {}) - set(terms)):
                raise ValueError(
                    f"objective.{key} names {unknown}, which are no terms; "
                    f"the terms are {sorted(terms)}"
                )
        for name, term in terms.items():
            if not isinstance(term, Term):
                raise ValueError(
                    f"objective.terms.{name} is a {type(term).__name__}, which is no loss term: "
                    "derive it from counterpoint.losses.base.Term"
                )
        lowest, highest = logit_scale_bounds
        if not 0 < lowest <= logit_scale_init <= highest:
            raise ValueError(
                f"objective.logit_scale_init is {logit_scale_init:g}, outside of "
                f"objective.logit_scale_bounds [{lowest:g}, {highest:g}]: change one of them (all "
                "are multiplicative and above 0)"
            )
        self.terms = nn.ModuleDict(terms)  # type: ignore[arg-type] - a dict is invariant
        self.scalars = nn.ModuleDict(scalars or {})
        self.weights: dict[str, float | Weight] = dict.fromkeys(terms, 1.0) | (weights or {})
        self.progress = 0.0
        self.streams = streams or {}
        self.batch_rows: Mapping[str, int] = {}
        self.logit_scale_init = logit_scale_init
        self.logit_bias_init = logit_bias_init
        self.logit_scale_bounds = logit_scale_bounds

    @property
    def needs(self) -> frozenset[str]:
        """The features and batch entries that the terms read, `STREAM/...` those of a stream."""
        shared = {*MODEL_SCALARS, *self.scalars, "progress"}
        return frozenset(
            need if need in shared else in_stream(need, self.streams.get(name, ""))
            for name, term in self.named_terms.items()
            for need in term.needs
        )

    def needs_of(self, batch: Tensors) -> frozenset[str]:
        """Returns `needs` without those of streams that a step takes no batch of."""
        if not self.streams:
            return self.needs
        there = {stream_of(entry) for entry in batch}
        return frozenset(need for need in self.needs if stream_of(need) in there)

    def forward(self, features: Tensors, batch: Tensors) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns (weighted sum, detached raw values `TERM` or `TERM/PART`).

        Both are this rank's share: their mean over ranks is the value of the global batch.
        """
        shared = self._shared(features)
        parts: list[Tensor] = []
        report: dict[str, Tensor] = {}
        present = self._present(batch)
        for name, term in present.items():
            own_features, own_batch = self._inputs(name, features, batch, shared)
            with equal_rows(self._rows_of(name)):
                values = term(own_features, own_batch)
            if not isinstance(values, Mapping):
                raise ValueError(
                    f"objective.terms.{name}: {type(term).__name__} returns a "
                    f"{type(values).__name__}; its forward has to return a dict of named scalars, "
                    'such as {"loss": value}'
                )
            weight = self.weight(name)
            parts += [weight * value for value in values.values()]
            for part, value in values.items():
                report[name if len(values) == 1 else f"{name}/{part}"] = value.detach()
        # Terms may have scales of their own, or be left out of this step: data-parallel training
        # wants a gradient for each parameter, if only zero.
        absent = [term for name, term in self.named_terms.items() if name not in present]
        idle = [parameter for term in absent for parameter in term.parameters()]
        parts += [0.0 * value.sum() for value in (*shared.values(), *idle)]
        ahead.forget()
        return torch.stack(parts).sum(), report

    def send_ahead(self, name: str, feature: Tensor) -> Tensor:
        """Starts to gather a feature that a term will compare with those of other ranks.

        To be called as soon as its tower has made it; returns the feature as `forward` is to be
        given it. While it travels the other tower runs, and as its gradients come home the other
        tower's backward pass. Ranks that may have any number of rows, rings, lifted and divided
        features travel when the term asks for them.
        """
        world_size, rows = world()[1], self.batch_rows.get(stream_of(name))
        if world_size == 1 or rows is None or len(feature) % rows:
            return feature
        is_sent = any(
            name == in_stream(sent, self.streams.get(term_name, ""))
            for term_name, term in self.named_terms.items()
            for sent in term.ahead
        )
        return ahead.send(feature, world_size) if is_sent else feature

    def per_sample(self, features: Tensors, batch: Tensors) -> Tensor | None:
        """Returns the weighted loss of each of this rank's samples [b], of the terms that have it.

        For the log, without gradients and further streams; None when no term has parts by sample.
        """
        parts: list[Tensor] = []
        with torch.no_grad(), equal_rows(self.batch_rows.get("")):
            shared = self._shared(features)
            for name, term in self._present(batch).items():
                if self.streams.get(name):
                    continue
                rows = term.per_sample(*self._inputs(name, features, batch, shared))
                if rows is not None:
                    parts.append(self.weight(name) * rows)
        return torch.stack(parts).sum(0) if parts else None

    def sampled(self, features: Tensors, batch: Tensors, seed: int) -> Tensor:
        """Returns this rank's share of a loss whose squared gradient estimates curvature.

        Its mean over draws is the diagonal of the Gauss-Newton matrix of the weighted sum: every
        term with labels drawn from its own softmax, by the root of its weight.

        Raises:
            ValueError: a term has no such form (`check_sampled`), or a negative weight.
        """
        parts: list[Tensor] = []
        shared = self._shared(features)
        for number, (name, term) in enumerate(self._present(batch).items()):
            if (weight := self.weight(name)) < 0:
                raise ValueError(f"objective.weights.{name} is {weight}: curvature needs >= 0")
            with equal_rows(self._rows_of(name)):
                own_features, own_batch = self._inputs(name, features, batch, shared)
                sampled = term.sampled(own_features, own_batch, seed + number)
            parts.append(math.sqrt(weight) * sampled)
        return torch.stack(parts).sum()

    def check_sampled(self) -> None:
        """Refuses terms that `sampled` cannot have.

        Raises:
            ValueError: a term has no softmax to draw labels from.
        """
        for name, term in self.named_terms.items():
            if not term.can_sample:
                raise ValueError(
                    f"objective.terms.{name} is a {type(term).__name__}, which has no softmax to "
                    "draw labels from (InfoNCE has): use another optimiser"
                )

    def check_reads_weight(self, weighted: Collection[str]) -> None:
        """Refuses terms that would not see the batch's `weight`.

        Args:
            weighted: the streams whose batches have one ("": the main one).

        Raises:
            ValueError: a term does not read it.
        """
        for name, term in self.named_terms.items():
            if self.streams.get(name, "") in weighted and not term.reads_weight:
                raise ValueError(
                    f"objective.terms.{name} is a {type(term).__name__}, which does not read the "
                    "weights that data.keep_weights (LossWeights) gives to batches: let samples "
                    "come by weight instead (Redrawn or RepeatWeights), or leave the term out"
                )

    def weight(self, name: str) -> float:
        """Returns the present weight of a term."""
        weight = self.weights[name]
        return weight(self.progress) if callable(weight) else weight

    @torch.no_grad()
    def metric(self, gather: Callable[[Tensor], Tensor] = Tensor.detach) -> Metric:
        """Returns what evaluation ranks by: the similarity of the first term that has one.

        Args:
            gather: returns the whole of a scalar that is sharded over ranks (collective).
        """
        similarities = (term.ranking_similarity() for term in self.named_terms.values())
        similarity = next((s for s in similarities if s is not None), Cosine())
        scalars = {name: gather(scalar()) for name, scalar in self.scalars.items()}
        return Metric(similarity, scalars)

    def averages(self) -> list[tuple[nn.Module, nn.Module]]:
        """Returns (online module, its moving average) of all terms, wrapped ones too."""
        terms = (module for module in self.modules() if isinstance(module, Term))
        return [pair for term in terms for pair in term.averages()]

    def bounds(self) -> list[tuple[nn.Parameter, float, float]]:
        """Returns (parameter, lowest, highest) of all scalars, shared ones and those of terms."""
        scalars = (module for module in self.modules() if isinstance(module, Scalar))
        return [bound for scalar in scalars for bound in scalar.bounds()]

    @property
    def named_terms(self) -> dict[str, Term]:
        """The terms by name, for type checkers: `nn.ModuleDict` knows modules only."""
        return cast("dict[str, Term]", dict(self.terms))

    def _shared(self, features: Tensors) -> dict[str, Tensor]:
        """Returns the scalars that terms of all streams read."""
        shared = {name: features[name] for name in MODEL_SCALARS if name in features}
        return shared | {name: scalar() for name, scalar in self.scalars.items()}

    def _present(self, batch: Tensors) -> dict[str, Term]:
        """Returns the terms whose stream the step takes a batch of."""
        if not self.streams:
            return self.named_terms
        there = {stream_of(entry) for entry in batch}
        terms = self.named_terms.items()
        return {name: term for name, term in terms if self.streams.get(name, "") in there}

    def _inputs(
        self, term: str, features: Tensors, batch: Tensors, shared: Tensors
    ) -> tuple[Tensors, Tensors]:
        """Returns the features and the batch that a term reads."""
        stream, progress = self.streams.get(term, ""), torch.tensor(self.progress)
        own = of_stream(features, stream)
        return {**own, **shared, "progress": progress}, of_stream(batch, stream)

    def _rows_of(self, term: str) -> int | None:
        return self.batch_rows.get(self.streams.get(term, ""))
