"""Class prompts in an ensemble, and their embeddings on the disk for the next evaluation.

In: the prompts of each class. Out: each class's mean feature. A file's path holds hashes of the
weights, of what computes with them, and of the prompts' token ids: none that is stale is found.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from ...data.files import whole_file
from ...losses.distributed.collectives import world
from ..distributed import gather_objects

# Prompts whose features are held at a time: memory does not grow with the number of classes.
CHUNK_PROMPTS = 1 << 14
MEANS = "means"
Prompts = Sequence[Sequence[str]]


class PromptCache:
    """Means of prompts' features, one file for the prompts of a task.

    Args:
        folder: where files go, in a folder of these weights.
        model: whose weights count.
        about: what else decides what the model computes (its configuration, the precision).
    """

    def __init__(self, folder: Path, model: nn.Module, about: str):
        self.folder = folder / weights_digest(model, about)

    def path(self, key: str) -> Path:
        """The file of one task's prompts."""
        return self.folder / f"{key}.safetensors"

    def read(self, key: str) -> Tensor | None:
        """Returns what is stored, if every rank can read it (collective); None: nothing is."""
        try:
            means = safetensors.torch.load_file(self.path(key))[MEANS]
        except (OSError, KeyError, safetensors.SafetensorError):
            means = None
        is_there = gather_objects(means is not None)
        return means if all(is_there) else None

    def write(self, key: str, means: Tensor) -> None:
        """Stores means [classes, d]; the first rank does."""
        if world()[0] == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            with whole_file(self.path(key)) as part:
                safetensors.torch.save_file({MEANS: means.cpu().contiguous()}, part)


def weights_digest(model: nn.Module, about: str) -> str:
    """Returns a hash of all parameters and buffers, by name, type and value."""
    digest = hashlib.sha256(about.encode())
    for name, value in sorted(model.state_dict().items()):
        value = value.detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def prompts_digest(
    prompts: Prompts, tokenize: Callable[[Sequence[str]], tuple[Tensor, Tensor]], about: str
) -> str:
    """Returns a hash of the token ids of all prompts and of how many each class has."""
    digest = hashlib.sha256(about.encode())
    for chunk in chunks(prompts):
        digest.update(repr([len(texts) for texts in chunk]).encode())
        for part in tokenize([text for texts in chunk for text in texts]):
            digest.update(part.contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]


def chunks(prompts: Prompts) -> Iterator[Prompts]:
    """Cuts a list of classes so that a piece has at most `CHUNK_PROMPTS` prompts, or one class."""
    start = 0
    while start < len(prompts):
        end, num_prompts = start, 0
        while end < len(prompts) and (
            end == start or num_prompts + len(prompts[end]) <= CHUNK_PROMPTS
        ):
            num_prompts += len(prompts[end])
            end += 1
        yield prompts[start:end]
        start = end
