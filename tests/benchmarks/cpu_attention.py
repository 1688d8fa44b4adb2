"""One training step with torch's fused CPU attention against plain matrix products.

Run: `cd tests && OMP_NUM_THREADS=1 ../.venv/bin/python -m benchmarks.cpu_attention`, where bf16 is
emulated with `--types float32`. Prints medians of paired rounds, in processor time, and a ratio;
the two take turns, so that a noisy machine disturbs both alike.
"""

import argparse
import statistics
import time
from dataclasses import dataclass

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from counterpoint.losses.infonce import InfoNCE
from counterpoint.losses.objective import Objective
from counterpoint.models.image import TimmTower
from counterpoint.models.text.clip import ClipTextTower
from counterpoint.models.two_tower import TwoTower
from counterpoint.train.optim.adamw import AdamW

ROUNDS = 9
BACKENDS = {"fused": SDPBackend.FLASH_ATTENTION, "products": SDPBackend.MATH}
TYPES = ("bfloat16", "float32")


@dataclass
class Shape:
    """What goes into one step of the small model."""

    name: str
    batch: int
    side: int
    patch: int
    num_tokens: int


SHAPES = (
    Shape("emoji, 36 patches, 20 tokens", 128, 72, 12, 20),
    Shape("224 px, 196 patches, 77 tokens", 8, 224, 16, 77),
)


def main() -> None:
    """Measures every shape in the types that are asked for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--types", nargs="+", choices=TYPES, default=TYPES)
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread(s), processor time")
    for shape in SHAPES:
        for name in options.types:
            measure(shape, getattr(torch, name))


def measure(shape: Shape, dtype: torch.dtype) -> None:
    """Prints one line."""
    torch.manual_seed(0)
    sizes = {"embed_dim": 128, "depth": 4, "num_heads": 4, "patch_size": shape.patch}
    image = TimmTower("vit_tiny_patch16_224", shape.side, model_args=sizes)
    model = TwoTower(image, ClipTextTower(128, 3, 2, shape.num_tokens), 128)
    objective = Objective({"infonce": InfoNCE()})
    optimizer = AdamW().build(model)
    pixels = (shape.batch, 3, shape.side, shape.side)
    batch = {
        "image": torch.randint(0, 256, pixels, dtype=torch.uint8),
        "text": torch.randint(1, 49000, (shape.batch, shape.num_tokens)),
        "text_length": torch.randint(3, shape.num_tokens + 1, (shape.batch,)),
    }

    def step(backend: SDPBackend) -> float:
        start = time.process_time()
        with sdpa_kernel(backend), torch.autocast("cpu", dtype, dtype == torch.bfloat16):
            loss, _ = objective(model(batch, objective.needs), batch)
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return time.process_time() - start

    for backend in BACKENDS.values():
        step(backend)
    rounds = [[step(backend) for backend in BACKENDS.values()] for _ in range(ROUNDS)]
    fused, products = (statistics.median(column) for column in zip(*rounds, strict=True))
    ratio = statistics.median(a / b for a, b in rounds)
    print(
        f"{shape.name:32} {dtype!s:15}  fused {fused * 1e3:6.0f} ms  "
        f"products {products * 1e3:6.0f} ms  fused/products {ratio:.2f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
