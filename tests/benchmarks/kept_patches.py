"""Which patches attention keeps of the held-out emoji, and what a run makes of them.

Run from the repository, with `emoji/` made: `PYTHONPATH=tests .venv/bin/python -m
benchmarks.kept_patches RUN_DIR ... [--data FOLDER]`, of runs with a class token. Printed as
Markdown, a row a checkpoint: of each drawing style, the share of patches with foreground (a pixel
that is not white) among all, among the half that the class token of the run's moving average (of
the run itself, if it has none) looks at, and accuracy on the 400 held-out names with all patches,
with that half, with a random half, with that half and all white patches, with the foreground alone.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from counterpoint.data.image_sets import ShardSet
from counterpoint.launch.run.env import prepare
from counterpoint.launch.run.load import LoadedRun, checkpoint_of, load_run, read_average
from counterpoint.models.attention import run_with_attention
from counterpoint.models.image import ImageTower

STYLES = ("openmoji", "twemoji")


def rows_of(folder: Path, loaded: LoadedRun) -> dict[str, tuple[Tensor, list[str]]]:
    """Returns pixels and names of each style."""
    shards, size, found = ShardSet(f"{folder}/heldout/*.tar"), loaded.model.image_size, {}
    for style in STYLES:
        chosen = shards.select({"style": [style]})
        pixels = [loaded.eval_transform(shards.image(i), size) for i in chosen]
        found[style] = torch.stack(pixels), shards.values("txt", chosen)
    return found


def foreground(images: Tensor, patch: int) -> Tensor:
    """Returns which patches [n, patches] have a pixel that is not white."""
    inked = (images < 250).any(1).float()
    return F.max_pool2d(inked[:, None], patch).flatten(1).bool()


@torch.no_grad()
def measured(run_dir: Path, step: int | None, data: Path) -> str:
    """Returns the row of a checkpoint."""
    loaded = load_run(run_dir, step)
    tower, watcher = loaded.model.image, loaded.model.image
    assert isinstance(tower, ImageTower)
    try:
        read_average(checkpoint_of(run_dir, step))
        watcher = load_run(run_dir, step, "ema").model.image
    except ValueError:
        pass
    cells = [run_dir.name, "last" if step is None else str(step)]
    for images, names in rows_of(data, loaded).values():
        _, attention = run_with_attention(watcher, images, lambda x=images: watcher(x))
        looked_at = attention.flatten(1)
        count = looked_at.shape[1]
        best = looked_at.topk(count // 2).indices.sort().values
        g = torch.Generator().manual_seed(0)
        drawn = torch.rand(looked_at.shape, generator=g).topk(count // 2).indices.sort().values
        inked = foreground(images, loaded.model.image_size // attention.shape[1])
        cells += [f"{each.float().mean():.0%}" for each in (inked, inked.gather(1, best))]
        looked = torch.zeros_like(inked).scatter(1, best, True)
        ids, lengths = loaded.tokenizer(names, loaded.model.context_length)
        texts = loaded.model.encode_text(ids, lengths)
        encode = loaded.model.project_image
        ways = [encode(images, kept) for kept in (None, best, drawn)]
        for mask in (looked | ~inked, inked):  # as many of each image as it has: one by one
            rows = (row.nonzero().T for row in mask)
            ways.append(torch.cat([encode(x[None], r) for x, r in zip(images, rows, strict=True)]))
        for found in ways:
            hits = (found @ texts.T).argmax(1) == torch.arange(len(names))
            cells.append(f"{hits.float().mean():.1%}")
    return " | ".join(cells)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--data", type=Path, default=Path("emoji"))
    parser.add_argument("--steps", nargs="+", type=int, default=[None])
    args = parser.parse_args()
    prepare()
    columns = ["foreground", "of the looked at", "all", "looked at", "random"]
    columns += ["looked at and white", "foreground alone"]
    titles = ["Run", "Step", *(f"{style}: {c}" for style in STYLES for c in columns)]
    print(f"| {' | '.join(titles)} |")
    print("|" + " --- |" * len(titles))
    for run in args.runs:
        for step in args.steps:
            print(f"| {measured(run, step, args.data)} |", flush=True)


if __name__ == "__main__":
    main()
