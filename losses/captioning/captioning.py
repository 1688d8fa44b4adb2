"""Captioning: a decoder writes each caption, looking at all states of its image (SigLIP 2, CapPa).

L = -1/B sum_i 1/n_i sum_t log p(token t of caption i | tokens before t, image i), where a part of
the captions is predicted in parallel: p(token t | image i). Tschannen et al., "Image Captioners Are
Scalable Vision Learners Too" (2023), sections 3 and 4; in SigLIP 2 (Tschannen et al. 2025), section
2.2, beside the sigmoid loss with equal weight, half of the captions in parallel, and beside two
tasks over boxes (`locca`). A mean over tokens for each caption, then over captions, is what the
published code of CapPa computes.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional as F

from ..base import SampleTerm
from ..components.features import Tensors, full_precision, need
from ..distributed.exchange import Local
from ..kernels.keyed_random import mix, shifted
from ..kernels.pairing import Pairing
from ..kernels.reductions import row_sums
from .decoder import CaptionDecoder


class Captioning(SampleTerm):
    """Mean cross-entropy of the tokens of each caption; memory of a tile of logits beside them.

    Which captions are predicted in parallel is a function of (seed, number of the step, key of the
    sample): the same for any number of ranks, and after a resume.

    Args:
        decoder: with the vocabulary of the captions' tokenizer.
        image: view whose states (`IMAGE.tokens`) the decoder looks at.
        text: batch entry with the captions; one that no tower encodes will do.
        parallel: part of the captions that are predicted in parallel (SigLIP 2: 0.5; CapPa: 0.75).
        skip: tokens at the start that are read, if at all, and not predicted: 1 where the tokenizer
            begins every caption with a start token (CLIP's), which would teach nothing.
        seed: of the choice.
        tile_bytes: memory of one block of logits; None: 32 MiB, on a GPU 256 MiB.

    Raises:
        ValueError: `parallel` is no fraction, or `skip` is below 0.
    """

    name = "captioning"
    steps: Tensor

    def __init__(
        self,
        decoder: CaptionDecoder,
        image: str = "image",
        text: str = "text",
        parallel: float = 0.5,
        skip: int = 0,
        seed: int = 0,
        tile_bytes: int | None = None,
    ):
        super().__init__()
        if not 0 <= parallel <= 1 or skip < 0:
            raise ValueError(
                f"Captioning has parallel={parallel:g}, skip={skip}: parallel lies between 0 and "
                "1, skip is 0 or more"
            )
        self.decoder = decoder
        self.image, self.text = image, text
        self.parallel, self.skip = parallel, skip
        self.seed, self.tile_bytes = seed, tile_bytes
        # Captions are in every batch; as a need, a tower would encode them.
        self.needs = (f"{image}.tokens",)
        self.register_buffer("steps", torch.zeros(1, dtype=torch.int64))
        self._checked: set[str] = set()

    def forward(self, features: Tensors, batch: Tensors) -> dict[str, Tensor]:
        # First, so that what is logged of single samples has the choices of the step.
        self.steps += 1
        return super().forward(features, batch)

    @property
    def reads_weight(self) -> bool:
        return True

    def per_sample(self, features: Tensors, batch: Tensors) -> Float[Tensor, "b"]:
        """Mean over each caption's tokens; reads `IMAGE.tokens` [b, n, d], ids and lengths."""
        states = self._states(features)
        text, length = self._entry(self.text, batch)
        self._check_length(f"'{self.text}' has", text.shape[1])
        places = torch.arange(text.shape[1], device=text.device)
        is_target = (places < length[:, None]) & (places >= self.skip)
        predicted = self.decoder(states, text, self._chosen(batch["key"]))
        return self._means(predicted, text, is_target, self._num_targets([self.text], batch))

    def _means(
        self,
        predicted: Float[Tensor, "b t width"],
        text: Int64[Tensor, "b t"],
        is_target: Bool[Tensor, "b t"],
        num_targets: int | None,
    ) -> Float[Tensor, "b"]:
        """Returns each row's mean cross-entropy over the tokens to predict; 0 without any."""
        flat = is_target.flatten()
        if num_targets is None:
            where = flat.nonzero()[:, 0]
        else:
            where = torch.nonzero_static(flat, size=num_targets)[:, 0]
        losses = self._cross_entropies(predicted.flatten(0, 1)[where], text.flatten()[where])
        # Each to its own place: sums over rows of a caption have one order.
        dense = losses.new_zeros(text.numel()).index_copy(0, where, losses).view(text.shape)
        return dense.sum(1) / is_target.sum(1).clamp_min(1)

    def _num_targets(self, entries: Sequence[str], batch: Tensors) -> int | None:
        """Returns how many tokens of entries are predicted, where the host knows their lengths.

        None where nothing has to be waited for, and with loaders of one's own.
        """
        count = 0
        for entry in entries:
            lengths = batch.get(f"{entry}_length.host")
            if lengths is None:
                return None
            longest = batch[entry].shape[1]
            count += int((lengths.clip(max=longest) - self.skip).clip(min=0).sum())
        return count

    def _cross_entropies(
        self, states: Float[Tensor, "n width"], tokens: Int64[Tensor, "n"]
    ) -> Float[Tensor, "n"]:
        rows, outputs = full_precision(states, self.decoder.outputs)
        # Every rank has the whole vocabulary: nothing travels.
        pairing = Pairing(Local(), tile_bytes=self.tile_bytes)
        with torch.autocast(rows.device.type, enabled=False):
            logits = (rows * F.embedding(tokens, outputs)).sum(1)
        return row_sums(rows, outputs, rows.new_ones(1), pairing) - logits

    def _chosen(self, keys: Int64[Tensor, "b"]) -> Bool[Tensor, "b"]:
        bits = mix(mix(self.steps + self.seed) + keys)
        return shifted(bits, 11).double() * 2.0**-53 < self.parallel

    def _states(self, features: Tensors) -> Float[Tensor, "b n d"]:
        states = need(features, f"{self.image}.tokens", self)
        if states.shape[2] != self.decoder.image_width:
            raise ValueError(
                f"'{self.image}.tokens' are {states.shape[2]} wide, and the caption decoder is "
                f"made for {self.decoder.image_width}: set its image_width to {states.shape[2]}"
            )
        return states

    def _entry(self, name: str, batch: Tensors) -> tuple[Int64[Tensor, "b t"], Int64[Tensor, "b"]]:
        """Returns the ids and lengths of a text."""
        fix = "name `text`, or a text of data.texts as text.NAME"
        text, length = (need(batch, name + suffix, self, fix) for suffix in ("", "_length"))
        # Once: reading the value waits for the device.
        if name not in self._checked and text.numel() and not text.is_meta:
            self._checked.add(name)
            if (highest := int(text.max())) >= self.decoder.vocab_size:
                raise ValueError(
                    f"'{name}' has the token {highest}, and the caption decoder a vocabulary of "
                    f"{self.decoder.vocab_size}: set its vocab_size to the tokenizer's"
                )
        return text, length

    def _check_length(self, what: str, length: int) -> None:
        if length > self.decoder.context_length:
            raise ValueError(
                f"{what} {length} tokens a caption, and the caption decoder takes "
                f"{self.decoder.context_length}: set its context_length to {length}"
            )
