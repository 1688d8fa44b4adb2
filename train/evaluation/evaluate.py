"""One evaluation: a suite on a model, by all ranks, without any effect on training.

In: a model, a suite, tokeniser and transform. Out: `{"emoji/heldout/top1": 0.63, ...}`, the same on
every rank and for any number of them.
"""

import hashlib
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...data.image_sets import ImageSet
from ...losses.components.similarity import Metric
from ...losses.distributed.collectives import world
from ..distributed import gather_objects
from .details import Detail
from .encode import Encoder
from .outcomes import Outcomes
from .prompts import PromptCache
from .suite import Suite


def evaluate(
    model: nn.Module,
    suite: Suite,
    tokenizer: Callable[[list[str], int], tuple[Tensor, Tensor]],
    eval_transform: Callable[[Tensor, int, Any], Tensor],
    *,
    device: torch.device | str | None = None,
    precision: Callable[[], AbstractContextManager] = nullcontext,
    batch_size: int = 256,
    num_threads: int = 2,
    metric: Metric | None = None,
    logit_scale: float | None = None,
    outcomes: dict[str, Outcomes] | None = None,
    details: dict[str, Detail] | None = None,
    prompts: PromptCache | None = None,
) -> dict[str, float]:
    """Runs every task; to be called by every rank of the default process group.

    Modules' training flags and the random states of torch, numpy and Python are restored: a run
    that evaluates trains exactly like one that does not.

    Args:
        model: has `encode_image`, `encode_text`, `image_size`, `context_length`.
        suite: from `load_suite`; pass the same object each time to profit from its cache.
        tokenizer: `(texts, context_length) -> (ids [n, L], lengths [n])`.
        eval_transform: `(uint8 [3,H,W], size, rng=None) -> uint8 [3,size,size]`.
        device: where the towers run; None: where the model's parameters are.
        precision: makes the context for the towers, such as
            `trainer.precision_plugin.forward_context`.
        batch_size: images or texts per tower call; part of the result's last digits.
        num_threads: threads that decode images.
        metric: the similarity that ranks (`Objective.metric()`); None: the cosine.
        logit_scale: what multiplies similarities in logits; None: the model's `logit_scale`, 100 if
            it has none.
        outcomes: takes those measures that are means over items, with the outcome of each item.
        details: takes what tasks find beside numbers.
        prompts: embeddings of class prompts on the disk, of these weights.

    Returns:
        `SUITE/TASK/MEASURE`, and `SUITE/TASK_GROUP/MEASURE` for tasks measured by groups.

    Raises:
        ValueError: the data cannot be used; raised on every rank.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is a number of images per tower call, not {batch_size}")
    if device is None:
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
    device = torch.device(device)
    rank, world_size = world()
    encoder = Encoder(
        model=model,
        tokenizer=tokenizer,
        transform=eval_transform,
        device=device,
        precision=precision,
        batch_size=batch_size,
        rank=rank,
        world_size=world_size,
        wanted=prepare(suite),
        cache=suite.cache,
        num_threads=num_threads,
        metric=metric or Metric(),
        prompts=prompts,
        logit_scale=logit_scale or learned_scale(model),
    )
    results: dict[str, float] = {}
    with untouched(model, device):
        for task_name, task in suite.tasks.items():
            for group, measure, value in task.run(encoder):
                name = f"{suite.name}/{task_name}{group and '_' + group}/{measure}"
                if isinstance(value, Detail):
                    if details is not None:
                        details[name] = value
                    continue
                results[name] = float(value)
                if outcomes is not None and isinstance(value, Outcomes):
                    outcomes[name] = value
    return results | suite.averages(results)


def learned_scale(model: nn.Module) -> float:
    """Returns the scale that the model stores as a logarithm; CLIP's 100 if it has none."""
    stored = getattr(model, "logit_scale", None)
    return float(stored.detach().exp()) if isinstance(stored, Tensor) else 100.0


def prepare(suite: Suite) -> dict[ImageSet, np.ndarray]:
    """Checks the tasks, on all ranks alike, and returns the items of each set that they use."""
    wanted: dict[ImageSet, np.ndarray] = {}
    digest, message = hashlib.sha256(), None
    try:
        suite.leave_out_absent()
        for name, task in suite.tasks.items():
            try:
                task.prepare()
            except ValueError as error:
                raise ValueError(f"task '{name}' of suite '{suite.name}': {error}") from error
            for images, items in task.image_sets().items():
                wanted[images] = np.union1d(wanted.get(images, items[:0]), items)
                keys = [images.items[i].get("key") for i in items.tolist()]
                digest.update(repr(keys).encode())
    except ValueError as error:
        if world()[1] == 1:
            raise
        message = str(error)
    # Ranks that disagree about the data would wait for each other for ever.
    answers = gather_objects((message, digest.hexdigest()))
    for text, _ in answers:
        if text is not None:
            raise ValueError(text)
    if len(set(answers)) > 1:
        raise ValueError(
            f"the processes see different data for suite '{suite.name}'; give every node the same "
            "files"
        )
    return wanted


@contextmanager
def untouched(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Sets evaluation mode without gradients; restores training flags and random states.

    `no_grad` and not `inference_mode`: a buffer that a tower makes on its first call (positions,
    masks) would be an inference tensor, and the next training step could not use it.
    """
    flags = [(module, module.training) for module in model.modules()]
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    try:
        model.eval()
        with torch.no_grad():
            yield
    finally:
        # Not model.train(): frozen parts were in evaluation mode before.
        for module, training in flags:
            module.training = training
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.set_rng_state(states[2])
        if cuda is not None:
            torch.cuda.set_rng_state(cuda, device)
