"""The exact softmax loss on two processes against open_clip's local loss with gathered gradients.

Run: `cd tests && ../.venv/bin/python -m benchmarks.pair_losses_ranks`. Each process has half of the
batch and one thread, over gloo. Both losses take turns; a step is value and all gradients, and ends
when both processes are done. The ratio is the median of the rounds' ratios.
"""

import argparse
import os
import socket
import statistics
import time
from multiprocessing import get_context

import torch
import torch.distributed as dist
from open_clip.loss import ClipLoss

from counterpoint.losses.distributed.exchange import AllGather, Ring
from counterpoint.losses.infonce import InfoNCE

from .pair_losses import DIM, features

WHO = ("open_clip", "ours", "ours, ring")


def rounds(rank: int, world_size: int, port: int, size: int, num_rounds: int) -> dict:
    """Returns the seconds of every round by loss, and the values, as one rank sees them."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=world_size)
    rows = slice(rank * size // world_size, (rank + 1) * size // world_size)
    image, text, scale, _ = (t.detach() for t in features(size))
    leaves = [t.clone().requires_grad_() for t in (image[rows], text[rows], scale)]
    theirs = ClipLoss(local_loss=True, gather_with_grad=True, rank=rank, world_size=world_size)
    named = dict(zip(("image", "text", "logit_scale"), leaves, strict=True))
    terms = {"ours": InfoNCE(exchange=AllGather()), "ours, ring": InfoNCE(exchange=Ring())}

    def step(who: str) -> float:
        loss = theirs(*leaves) if who == "open_clip" else terms[who](named, {})["infonce"]
        torch.autograd.grad(loss, leaves)
        return loss.item()

    values = torch.tensor([step(who) for who in WHO])
    dist.all_reduce(values)
    times = {who: [] for who in WHO}
    for _ in range(num_rounds):
        for who in WHO:
            dist.barrier()
            start = time.perf_counter()
            step(who)
            dist.barrier()
            times[who].append(time.perf_counter() - start)
    dist.destroy_process_group()
    return {"times": times, "values": (values / world_size).tolist()}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[4096, 8192, 16384])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ranks", type=int, default=2)
    args = parser.parse_args()
    print(f"torch {torch.__version__}, {args.ranks} processes, one thread each, d = {DIM}, fp32\n")
    print("| global B | open_clip, s | ours, s | x faster | ring, s | x faster |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: |")
    for size in args.sizes:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        with get_context("spawn").Pool(args.ranks) as pool:
            jobs = [(rank, args.ranks, port, size, args.rounds) for rank in range(args.ranks)]
            found = pool.starmap(rounds, jobs, chunksize=1)[0]
        values, times = found["values"], found["times"]
        assert max(values) - min(values) < 1e-4 * max(values), values
        middle = {who: statistics.median(seconds) for who, seconds in times.items()}
        ratios = {
            who: statistics.median(
                a / b for a, b in zip(times["open_clip"], times[who], strict=True)
            )
            for who in WHO
        }
        print(
            f"| {size:,} | {middle['open_clip']:.2f} | {middle['ours']:.2f} | {ratios['ours']:.2f} "
            f"| {middle['ours, ring']:.2f} | {ratios['ours, ring']:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
