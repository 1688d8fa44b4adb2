"""LocCa: beside each caption the decoder writes boxes for phrases, and phrases for boxes.

L = L_captioning - sum_tasks 1/B_t sum_i 1/n_i sum_t log p(token t that is written | what is read,
the tokens before t, image i), over the B_t samples that have the texts of the task. Wan et al.,
"LocCa: Visual Pretraining with Location-aware Captioners" (2024), section 3: automatic referring
expressions (`aref`: the phrase of a region is read, its box is written) and grounded captioning
(`gcap`). Each sample goes through the decoder once for each task (SigLIP 2, Tschannen et al. 2025,
section 2.2), token by token but for the captions. A box is a text of four numbers
(`data/text/regions.py`). In the paper a task begins with a word, here with a learned vector.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from ..base import WEIGHT
from ..components.features import Tensors
from ..distributed.collectives import share, total
from .captioning import Captioning
from .decoder import CaptionDecoder

CAPTIONS = "cap"  # the task that `Captioning` is


@dataclass(frozen=True)
class Task:
    """What the decoder reads and what it writes then, one text after the other.

    Attributes:
        write: batch entries whose tokens are predicted, such as [text.box].
        read: batch entries before them, whose tokens are given.
    """

    write: tuple[str, ...]
    read: tuple[str, ...] = ()


class LocCa(Captioning):
    """Captioning, and further tasks of the same decoder, each with a prompt of its own.

    Reported are `cap` and the tasks by name; their sum is the loss. A sample without one of a
    task's texts counts in the other tasks alone.

    Args:
        decoder: with the vocabulary of all texts' tokenizer, for the longest of the tasks.
        tasks: by name, such as {aref: {read: [text.phrase], write: [text.box]}}.
        captioning: of `Captioning`; `skip` holds for every text.

    Raises:
        ValueError: a task has nothing to write, or the name `cap`.
    """

    def __init__(
        self,
        decoder: CaptionDecoder,
        tasks: dict[str, Task],
        **captioning: Any,
    ):
        super().__init__(decoder, **captioning)
        for name, task in tasks.items():
            if not task.write or name == CAPTIONS:
                raise ValueError(
                    f"LocCa has the task {name} with write={list(task.write)}: name a text to be "
                    f"written, such as [text.box], and no task '{CAPTIONS}', which is captioning"
                )
        self.tasks: Mapping[str, Task] = tasks
        width = decoder.prompt.shape[0]
        self.prompts = nn.ParameterDict(
            {name: nn.Parameter(torch.randn(width) * width**-0.5) for name in tasks}
        )

    def forward(self, features: Tensors, batch: Tensors) -> dict[str, Tensor]:
        # First, so that what is logged of single samples has the choices of the step.
        self.steps += 1
        losses = self._by_task(features, batch)
        return {name: share(rows, weights) for name, (rows, weights) in losses.items()}

    def per_sample(self, features: Tensors, batch: Tensors) -> Float[Tensor, "b"]:
        """Sum over tasks; a task that some samples lack counts the more for the others."""
        losses = self._by_task(features, batch)
        every, summed = losses[CAPTIONS][1], losses[CAPTIONS][0]
        for name in self.tasks:
            rows, weights = losses[name]
            all_weight, own_weight = total(torch.stack([every.sum(), weights.sum()])).unbind()
            ratio = torch.where(own_weight > 0, all_weight / own_weight, 0.0)
            summed = summed + rows * (weights > 0) * ratio
        return summed

    def _by_task(
        self, features: Tensors, batch: Tensors
    ) -> dict[str, tuple[Float[Tensor, "b"], Float[Tensor, "b"]]]:
        """Returns each sample's loss and weight in the mean, by task, `cap` first."""
        rows = super().per_sample(features, batch)
        weights = batch.get(WEIGHT, torch.ones_like(rows))
        losses = {CAPTIONS: (rows, weights)}
        states = self._states(features)
        for name, task in self.tasks.items():
            text, is_target, has_texts = self._sequence(name, task, batch)
            in_order = torch.zeros(len(text), dtype=torch.bool, device=text.device)
            predicted = self.decoder(states, text, in_order, self.prompts[name])
            rows = self._means(predicted, text, is_target, self._num_targets(task.write, batch))
            losses[name] = rows, weights * has_texts
        return losses

    def _sequence(
        self, name: str, task: Task, batch: Tensors
    ) -> tuple[Int64[Tensor, "b t"], Bool[Tensor, "b t"], Bool[Tensor, "b"]]:
        """Returns the texts of a task one after the other, without gaps.

        Returns:
            ids: of each sample's sequence.
            is_target: which of them are predicted.
            has_texts: which samples have all texts.
        """
        texts: list[Tensor] = []
        is_text: list[Tensor] = []
        is_target: list[Tensor] = []
        has_texts = torch.ones_like(batch["key"], dtype=torch.bool)
        for number, entry in enumerate((*task.read, *task.write)):
            text, length = self._entry(entry, batch)
            places = torch.arange(text.shape[1], device=text.device)
            texts.append(text)
            is_text.append(places < length[:, None])
            is_written = number >= len(task.read)
            is_target.append(is_text[-1] & (places >= (self.skip if is_written else len(places))))
            # The main caption is always there.
            if (present := batch.get(f"{entry}.present")) is not None:
                has_texts = has_texts & present
        self._check_length(f"the task {name} has", sum(text.shape[1] for text in texts))
        order = torch.cat(is_text, 1).logical_not().byte().argsort(dim=1, stable=True)
        ids, targets = (torch.cat(columns, 1).gather(1, order) for columns in (texts, is_target))
        return ids, targets, has_texts
