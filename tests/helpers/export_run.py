"""A run folder that can be exported, with random weights and nothing of its training."""

from pathlib import Path

import torch
import yaml
from torch import nn

from counterpoint.launch.run.load import build_slots

STEP = 3
SIZES = {"patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
IMAGE = {
    "class_path": "counterpoint.models.image.TimmTower",
    "init_args": {
        "name": "vit_tiny_patch16_224",
        "image_size": 24,
        "mean": [0.5, 0.4, 0.6],
        "std": [0.25, 0.3, 0.2],
        "model_args": SIZES | {"class_token": False, "global_pool": "avg"},
    },
}
TEXT = {
    "class_path": "counterpoint.models.text.clip.ClipTextTower",
    "init_args": {"width": 16, "depth": 1, "num_heads": 2, "context_length": 12},
}
INFONCE = {"infonce": {"class_path": "counterpoint.losses.infonce.InfoNCE"}}


def config(image=None, text=None, objective=None, **data):
    """A run's configuration, as far as exporting reads it; `data` are keys of its data."""
    return {
        "name": "small",
        "seed": 0,
        "data": {"manifest": "/elsewhere/pairs.parquet", "caption": ["txt"], **data},
        "model": {"embed_dim": 8, "image": image or IMAGE, "text": text or TEXT},
        "objective": {"terms": INFONCE, **(objective or {})},
        "phases": {"train": {"samples": 480, "batch_size": 12, "learning_rate": 1e-3}},
    }


def write_run(folder: Path, values: dict, average: float | None = None) -> Path:
    """Writes a run folder; with `average`, its moving average is that multiple of the weights."""
    torch.manual_seed(1)
    parts = build_slots(values, "the test's configuration")
    model = parts.model
    with torch.no_grad():
        for parameter in model.parameters():  # weights that are zero at first would hide mistakes
            if parameter.ndim and not parameter.any():
                nn.init.normal_(parameter, std=0.02)
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    if average is not None:
        state |= {f"ema.{name}": average * value for name, value in state.items()}
    scalars = parts.objective.scalars.state_dict()
    state |= {f"objective.scalars.{name}": value for name, value in scalars.items()}
    (folder / "checkpoints").mkdir(parents=True)
    torch.save({"state_dict": state}, folder / f"checkpoints/step-{STEP:08d}.ckpt")
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    return folder
