"""What is sent while towers compute: the order of calls on one of two ranks."""

from itertools import groupby

import pytest
import torch
from null_gpu.device import Counts, imagine_ranks, prepare
from tiny_tower import tiny_vit

from counterpoint.losses.distributed.ahead import Sent
from counterpoint.losses.infonce import InfoNCE
from counterpoint.losses.objective import Objective
from counterpoint.models.text.clip import ClipTextTower
from counterpoint.models.two_tower import TwoTower

ROWS = 8
WAITS = "wait for images", "wait for gradients"
ORDER = [
    "image forward",
    "nccl:all_gather",
    "text forward",
    WAITS[0],
    "nccl:all_gather",  # of column sums' gradients
    "nccl:reduce_scatter",
    "text backward",
    WAITS[1],
    "image backward",
]


def calls_of_a_step(rank, world_size, messages, is_ahead):
    """Kernels and collectives, with marks of both towers and of what is waited for."""
    prepare()
    imagine_ranks(2)
    torch.distributed.init_process_group()
    text = ClipTextTower(16, 2, 2, context_length=16)
    model = TwoTower(tiny_vit(), text, 16, text_parts=0).cuda()
    objective = Objective({"infonce": InfoNCE()})
    objective.batch_rows = {"": ROWS}
    counts = Counts()
    # The stream waits for events, of which the null GPU's are over at once.
    for method, name in zip(("gathered", "gradient"), WAITS, strict=True):
        real = getattr(Sent, method)
        setattr(Sent, method, lambda self, r=real, n=name: (counts.mark(n), r(self))[1])
    for name, projection in (("image", model.image_projection), ("text", model.text_projection)):
        tower = getattr(model, name)
        tower.register_forward_pre_hook(lambda *_, n=name: counts.mark(f"{n} forward"))
        projection.register_full_backward_hook(lambda *_, n=name: counts.mark(f"{n} backward"))
    batch = {
        "image": torch.zeros(ROWS, 3, 16, 16, dtype=torch.uint8),
        "text": torch.zeros(ROWS, 16, dtype=torch.int64),
        "text_length": torch.full((ROWS,), 16),
    }
    batch = {name: value.cuda() for name, value in batch.items()}
    for _ in range(2):  # the first makes communicators
        with counts.order() as names:
            features = model(batch, on_feature=objective.send_ahead if is_ahead else None)
            objective(features, {})[0].backward()
    return names


def is_beside(names, at):
    """Whether a collective runs in a stream of its own, which first waits for what it sends."""
    return "cudaStreamWaitEvent" in names[at - 3 : at]


def test_images_travel_while_the_text_tower_runs(null_gpu):
    (names,) = null_gpu(1, calls_of_a_step, True)
    steps = [name for name, _ in groupby(name for name in names if name in ORDER)]
    assert steps == ORDER
    gather, scatter = names.index("nccl:all_gather"), names.index("nccl:reduce_scatter")
    assert is_beside(names, gather) and is_beside(names, scatter)
    for first, last in (("text forward", WAITS[0]), ("text backward", WAITS[1])):
        meanwhile = names[names.index(first) : names.index(last)]
        assert sum(name.startswith(("kernel:", "gemm:")) for name in meanwhile) > 20


@pytest.mark.soak
def test_an_exchange_that_waits_is_told_apart(null_gpu):
    (names,) = null_gpu(1, calls_of_a_step, False)
    gather, scatter = names.index("nccl:all_gather"), names.index("nccl:reduce_scatter")
    assert names.index("text forward") < gather
    assert not is_beside(names, gather) and not is_beside(names, scatter)
