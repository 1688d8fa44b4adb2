"""A frozen language model that turns captions into vectors (LLM2CLIP).

In: token ids of its own tokenizer. Out: a vector a caption, without gradient. It is no module:
checkpoints do not hold it, strategies do not shard it and optimizers do not see it. Its weights are
read at the first use and stay on the device of the ids. Huang et al., "LLM2CLIP" (2024).
"""

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ..chunks import trimmed
from .base import Ids, Lengths, at_end, is_token

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class LanguageModel:
    """An encoder or decoder of transformers, with what makes one vector of its last states.

    Args:
        source: folder written by `save_pretrained` of model and tokenizer, or a name to download.
        pooling: the `mean` over the caption's tokens, or the `last` token's state.
        skip: first tokens that the mean leaves out, such as a start token (LLM2CLIP: 1).
        attention: the model's `own`, or `bidirectional`: every token sees all others, in a decoder,
            too, as models made with LLM2Vec expect (LLM2CLIP's are).
        precision: of the weights and the computation.
        tokens_per_call: positions of a call at most, padding included, unless one caption is
            longer; captions are sorted by length first, so that there is little padding.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        source: str,
        pooling: Literal["mean", "last"] = "mean",
        skip: int = 0,
        attention: Literal["own", "bidirectional"] = "own",
        precision: Literal["float32", "bfloat16", "float16"] = "bfloat16",
        tokens_per_call: int = 16384,
    ):
        if skip < 0 or tokens_per_call < 1:
            raise ValueError(
                f"skip={skip} must be 0 or more, and tokens_per_call={tokens_per_call} 1 or more"
            )
        self.source, self.pooling, self.skip = source, pooling, skip
        self.attention, self.dtype = attention, DTYPES[precision]
        self.tokens_per_call = tokens_per_call

    def __deepcopy__(self, memo: Any) -> "LanguageModel":
        # A moving average of the tower around it reads with the same one.
        return self

    @cached_property
    def network(self) -> Any:
        """The model with its weights, read at the first use.

        Raises:
            ValueError: it is not at hand.
        """
        from transformers import AutoModel

        model: Any = self._read(AutoModel, dtype=self.dtype)
        if getattr(model.config, "is_encoder_decoder", False):
            model = model.get_encoder()
        model.config.use_cache = False
        return model.eval().requires_grad_(False)

    @cached_property
    def width(self) -> int:
        """Length of the vectors."""
        from transformers import AutoConfig

        return int(self._read(AutoConfig).get_text_config().hidden_size)

    def tokenize(self, texts: Sequence[str], length: int) -> Tensor:
        """Returns the ids [n, length] that the model reads, padded on the right."""
        from transformers import AutoTokenizer

        tokenizer = self._read(AutoTokenizer)
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        tokenizer.padding_side = "right"
        settings = {"padding": "max_length", "truncation": True, "max_length": length}
        return tokenizer(list(texts), return_tensors="pt", **settings)["input_ids"]

    @torch.no_grad()
    def __call__(self, text: Ids, text_length: Lengths) -> Float[Tensor, "n width"]:
        """Returns the vector of each caption, in float32, as it is (not of length one)."""
        if text.is_meta:  # where costs are counted; its own are not, and its weights stay
            return torch.empty(len(text), self.width, device="meta")
        self.network.to(text.device)
        lengths = text_length.clamp(min=1)
        num_positions = len(text) * int(lengths.max())
        parts = math.ceil(num_positions / self.tokens_per_call)
        captions = trimmed(text, lengths, parts, text.shape[1])
        vectors = [self._pooled(*part) for part in captions.parts]  # type: ignore[arg-type]
        return captions.restored({"": torch.cat(vectors)})[""]

    def _pooled(self, text: Ids, text_length: Lengths) -> Float[Tensor, "n width"]:
        counts = is_token(text, text_length)
        mask: Tensor = counts.long()
        if self.attention == "bidirectional":  # four axes are taken as they are
            mask = counts[:, None, None, :].expand(-1, 1, text.shape[1], -1)
        with torch.autocast(text.device.type, enabled=False):
            states = self.network(input_ids=text, attention_mask=mask).last_hidden_state.float()
        if self.pooling == "last":
            return at_end(states, text_length)
        # At least the last token, of captions that are no longer than what is left out.
        first = torch.minimum(text_length - 1, torch.full_like(text_length, self.skip))
        counts = counts & (torch.arange(text.shape[1], device=text.device) >= first[:, None])
        return (states * counts[:, :, None]).sum(1) / counts.sum(1, keepdim=True)

    def _read(self, kind: Any, **settings: Any) -> Any:
        try:
            return kind.from_pretrained(self.source, trust_remote_code=False, **settings)
        except (OSError, ValueError, KeyError, ImportError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(
                f"the language model '{self.source}' cannot be read ({reason}); give "
                "language_model.source a folder to which model and tokenizer were saved "
                "(save_pretrained), or a name that can be downloaded from here"
            ) from error
