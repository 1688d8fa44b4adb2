"""A callback that records the samples of each step."""

from pathlib import Path

import lightning.pytorch as pl


class Keys(pl.Callback):
    """Appends `step rank key,key,...` before each step is trained."""

    def __init__(self, path: str):
        self.path = Path(path)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        named = {name: rows for name, rows in batch.items() if name.rpartition("/")[2] == "key"}
        keys = ";".join(",".join(map(str, rows.tolist())) for rows in named.values())
        pixels = int(batch["image"].long().sum()) if "image" in batch else 0
        with open(self.path, "a") as file:
            file.write(f"{trainer.global_step} {trainer.global_rank} {keys} {pixels}\n")


def read(path: Path) -> dict[tuple[int, int], set[str]]:
    """Everything recorded for each (step, rank): one entry unless a repetition differed."""
    entries: dict[tuple[int, int], set[str]] = {}
    for line in path.read_text().splitlines():
        step, rank, rest = line.split(" ", 2)
        entries.setdefault((int(step), int(rank)), set()).add(rest)
    return entries
