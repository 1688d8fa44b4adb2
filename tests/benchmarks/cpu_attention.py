"""One training step with torch's fused CPU attention against plain matrix products.

Run: `cd tests && OMP_NUM_THREADS=1 ../.venv/bin/python -m benchmarks.cpu_attention`. Prints medians
of paired rounds and their ratio; the two take turns, so that a noisy machine disturbs both alike.
"""

import statistics
import time

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from counterpoint.losses.infonce import InfoNCE
from counterpoint.losses.objective import Objective
from counterpoint.models.image import TimmTower
from counterpoint.models.text import ClipTextTower
from counterpoint.models.two_tower import TwoTower
from counterpoint.train.optim import AdamW

BATCH, ROUNDS = 128, 9
BACKENDS = {"fused": SDPBackend.FLASH_ATTENTION, "products": SDPBackend.MATH}


def main() -> None:
    """Measures the emoji model's step in bf16 and fp32."""
    torch.manual_seed(0)
    sizes = {"embed_dim": 128, "depth": 4, "num_heads": 4, "patch_size": 12}
    image = TimmTower("vit_tiny_patch16_224", 72, model_args=sizes)
    model = TwoTower(image, ClipTextTower(128, 3, 2, 20), 128)
    objective = Objective({"infonce": InfoNCE()})
    optimizer = AdamW().build(model)
    batch = {
        "image": torch.randint(0, 256, (BATCH, 3, 72, 72), dtype=torch.uint8),
        "text": torch.randint(1, 49000, (BATCH, 20)),
        "text_length": torch.randint(3, 21, (BATCH,)),
    }

    def step(backend: SDPBackend, dtype: torch.dtype) -> float:
        start = time.perf_counter()
        with sdpa_kernel(backend), torch.autocast("cpu", dtype, dtype == torch.bfloat16):
            loss, _ = objective(model(batch, objective.needs), batch)
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return time.perf_counter() - start

    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread(s), batch {BATCH}")
    for dtype in (torch.bfloat16, torch.float32):
        for backend in BACKENDS.values():
            step(backend, dtype)
        rounds = [[step(b, dtype) for b in BACKENDS.values()] for _ in range(ROUNDS)]
        fused, products = (statistics.median(column) for column in zip(*rounds, strict=True))
        ratio = statistics.median(a / b for a, b in rounds)
        print(
            f"{dtype!s:15}  fused {fused * 1e3:6.0f} ms  products {products * 1e3:6.0f} ms  "
            f"fused/products {ratio:.2f}"
        )


if __name__ == "__main__":
    main()
