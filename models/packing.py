"""Captions without any padding: all tokens in one row, and attention that knows where each begins.

In: padded token ids, and lengths that the host knows. Out: the tokens alone, and causal attention
between those of a caption. One call of a tower for all lengths, where parts make several.

Only flash attention computes it (GPUs, 16 bits); everywhere else captions are trimmed in parts.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int32, Int64
from torch import Tensor

HALF = (torch.bfloat16, torch.float16)
LARGEST_HEAD, HEAD_MULTIPLE = 256, 8  # of flash attention, numbers a head


@dataclass(frozen=True)
class Packed:
    """Captions, one behind the other.

    Attributes:
        ids: of tokens.
        positions: of each token in its caption.
        index: of each token in the padded ids, row by row.
        starts: first token of each caption, and the number of all tokens.
        ends: the token at each caption's end, which is pooled.
        lengths: tokens of each caption, on the host; `ends` may come earlier.
    """

    ids: Int64[Tensor, " tokens"]
    positions: Int64[Tensor, " tokens"]
    index: Int64[Tensor, " tokens"]
    starts: Int32[Tensor, " n+1"]
    ends: Int64[Tensor, " n"]
    lengths: np.ndarray

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def longest(self) -> int:
        """Tokens of the longest caption."""
        return int(self.lengths.max())

    def padded(
        self, states: Float[Tensor, "tokens width"], length: int
    ) -> Float[Tensor, "n length width"]:
        """Returns rows of one length, with zeros behind each caption."""
        rows = torch.arange(len(self), device=states.device).repeat_interleave(
            self.starts.diff(), output_size=len(states)
        )
        zeros = states.new_zeros(len(self) * length, states.shape[1])
        return zeros.index_copy(0, rows * length + self.positions, states).unflatten(
            0, (-1, length)
        )


def pack(
    text: Int64[Tensor, "n t"],
    length: Int64[Tensor, " n"],
    num_parts: int,
    known: np.ndarray | None = None,
) -> list[Packed]:
    """Returns captions in parts of equally many, in their order; see `chunks.trimmed`."""
    lengths = length.cpu().numpy() if known is None else known
    lengths = lengths.clip(1, text.shape[1])
    ends = lengths.cumsum()
    starts = ends - lengths
    num_tokens = int(ends[-1])
    positions = np.arange(num_tokens) - starts.repeat(lengths)
    index = positions + (np.arange(len(lengths)) * text.shape[1]).repeat(lengths)
    device = text.device
    columns = send(torch.from_numpy(np.stack([positions, index])), device)
    ids = text.flatten().index_select(0, columns[1])
    parts = []
    for rows in np.array_split(np.arange(len(lengths)), max(1, min(num_parts, len(lengths)))):
        first, last = int(starts[rows[0]]), int(ends[rows[-1]])
        offsets = np.append(starts[rows], last) - first
        begins = send(torch.from_numpy(offsets.astype(np.int32)), device)
        parts.append(
            Packed(
                ids[first:last],
                columns[0, first:last],
                columns[1, first:last],
                begins,
                begins[:-1] + length[rows[0] : rows[-1] + 1] - 1,
                lengths[rows],
            )
        )
    return parts


def can_attend(device_type: str, dtype: torch.dtype, head_width: int) -> bool:
    """Whether `attend` computes there, in that precision."""
    if device_type != "cuda" or dtype not in HALF:
        return False
    if head_width % HEAD_MULTIPLE or head_width > LARGEST_HEAD:
        return False
    if not torch.cuda.is_available():  # a plan
        return True
    is_nvidia, has_kernel = torch.version.hip is None, torch.cuda.get_device_capability() >= (8, 0)
    return is_nvidia and has_kernel and torch.backends.cuda.flash_sdp_enabled()


def attend(
    query: Float[Tensor, "tokens heads d"],
    key: Float[Tensor, "tokens heads d"],
    value: Float[Tensor, "tokens heads d"],
    starts: Int32[Tensor, " n+1"],
    longest: int,
    dropout: float = 0.0,
) -> Float[Tensor, "tokens heads d"]:
    """Causal attention inside of each caption.

    Dao, "FlashAttention-2" (2023). The operation that torch's own `varlen_attn` calls: that one is
    not in torch 2.9, has no dropout, and takes a detour through Python for each call.
    """
    return torch.ops.aten._flash_attention_forward(
        query, key, value, starts, starts, longest, longest, dropout, True, False
    )[0]


def send(values: Tensor, device: torch.device) -> Tensor:
    """Copies a few numbers to the device without waiting for it."""
    if device.type == "cuda":
        values = values.pin_memory()
    return values.to(device, non_blocking=True)
