"""A run on random pairs that sit in memory, with any strategy, for tests of several processes."""

import sys

import lightning.pytorch as pl
import torch
from tiny_tower import tiny_vit
from torch.nn import functional as F
from torch.utils.data import DataLoader

from counterpoint.losses.infonce import InfoNCE
from counterpoint.losses.objective import Objective
from counterpoint.models.chunks import trimmed
from counterpoint.models.text.clip import ClipTextTower
from counterpoint.models.two_tower import TwoTower
from counterpoint.train.module import ContrastiveModule
from counterpoint.train.optim.adamw import AdamW
from counterpoint.train.phases import Phase, Phases
from counterpoint.train.strategies.choose import choose_strategy

B, CONTEXT = 16, 12


def batches(num_steps):
    """The global batches of a run."""
    g = torch.Generator().manual_seed(4)
    global_batches = []
    for _ in range(num_steps):
        length = torch.randint(2, CONTEXT + 1, (B,), generator=g)
        global_batches.append(
            {
                "image": torch.randint(0, 256, (B, 3, 16, 16), dtype=torch.uint8, generator=g),
                "text": torch.randint(1, 50, (B, CONTEXT), generator=g),
                "text_length": length,
                "key": torch.randint(0, 1 << 62, (B,), generator=g),
            }
        )
    return global_batches


class Recorded(ContrastiveModule):
    """Keeps the loss, the gradient's norm and pieces of each step."""

    def training_step(self, batch, batch_idx):
        loss = self.forward_loss(batch)
        self.losses.append(loss.item())
        return loss

    def forward_loss(self, batch):
        return super().training_step(batch, 0)

    def configure_gradient_clipping(self, *args, **kwargs):
        self.tensors.begin()
        named = self.named_parameters()
        pieces = {n: piece for n, p in named for piece in self.tensors.pieces([p])}
        self.pieces.append({name: piece.clone() for name, piece in pieces.items()})
        super().configure_gradient_clipping(*args, **kwargs)
        self.norms.append(self.grad_norm.item())


def module(
    num_steps,
    dtype=torch.float32,
    dropout=0.0,
    reducer=None,
    rate=1e-3,
    kind=Recorded,
    objective=None,
    scale=7.0,
    text=None,
    **parts,
):
    """A tiny model with its objective; equal arguments give equal weights."""
    torch.manual_seed(3)
    image = tiny_vit(2, 16, dropout)
    text = text() if text else ClipTextTower(16, 2, 2, CONTEXT, vocab_size=50, dropout=dropout)
    model = TwoTower(image, text, 8, logit_scale_init=scale, **parts)
    phases = Phases(
        {"train": Phase(num_steps * B, B, rate, schedule="constant", image_reducer=reducer)}
    )
    made = kind(model, objective or Objective({"infonce": InfoNCE()}), phases, AdamW(), seed=0)
    made.losses, made.norms, made.pieces = [], [], []
    return made.to(dtype)


def replay(model, data, reduction):
    """Embeddings of both sides: each part draws its masks once, in the order of the model."""
    kept = None
    if reduction is not None and reduction.image is not None:
        kept = reduction.image.keep(
            model.image.grid(data["image"]), data["key"], "image", reduction
        ).kept.tensor_split(model.chunks)
    images = data["image"].tensor_split(model.chunks)
    image = [model.project_image(p, kept and kept[i]) for i, p in enumerate(images)]
    num_parts = max(model.chunks, model.text_parts)
    captions = trimmed(data["text"], data["text_length"], num_parts, model.context_length)
    text = [model.project_text(*part) for part in captions.parts]
    sides = torch.cat(image), torch.cat(text)[captions.index]
    return [F.normalize(side.to(model.logit_scale.dtype), dim=-1) for side in sides]


def forget_groups():
    """Each call of the pool makes process groups anew; DeepSpeed remembers those it saw first.

    It numbers modules and parameters too, from the process's first on, and compares ranks' numbers.
    """
    if "deepspeed" not in sys.modules:
        return
    from deepspeed.comm import comm
    from deepspeed.runtime.zero.parameter_offload import DeepSpeedZeRoOffload
    from deepspeed.runtime.zero.partition_parameters import Init
    from deepspeed.utils import groups

    Init.param_id = 0
    DeepSpeedZeRoOffload._register_deepspeed_module.__defaults__[0][0] = 0
    comm.cdb = None
    for name, value in vars(groups).items():
        if isinstance(value, torch.distributed.ProcessGroup):
            setattr(groups, name, None)


def train(made, world_size, name, callbacks=(), entries=None, data=None, ckpt_path=None, **options):
    """Trains on this rank's rows of the batches (of `data`, if given); returns the trainer.

    To resume, `data` has all steps of the run, those to come first: Lightning counts them.
    """
    forget_groups()
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    mine = [
        {key: value.tensor_split(world_size)[rank] for key, value in batch.items()}
        for batch in data or batches(made.phases.total_steps)
    ]
    for entry, values in (entries or {}).items():
        for batch, value in zip(mine, values, strict=True):
            batch[entry] = torch.full_like(batch["key"], value)
    trainer = pl.Trainer(
        strategy=choose_strategy(name),
        max_steps=len(mine),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=list(callbacks),
        **{"accelerator": "cpu", "devices": world_size} | options,
    )
    trainer.fit(made, DataLoader(mine, batch_size=None), ckpt_path=ckpt_path, weights_only=True)
    return trainer
