"""`counterpoint embed`: a teacher's embeddings of every sample, stored beside the shards.

In: a run file with the teacher, as for training with it. Out: a sidecar with, for each sample, some
augmentations (their parameters, so that training makes the same images again), the numbers that
chose captions, and what the teacher makes of both; of a language model, captions alone. One shard
is one file: start the command again to go on, or several times, on any machine that sees the
folder, to share the work.
Vasu et al., "MobileCLIP" (2024), section 4: dataset reinforcement.
"""

import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser, Namespace
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ...data.dataset import Batch, StepDataset
from ...data.files import check_own, write_json
from ...data.module import PairsDataModule
from ...data.render import uniform
from ...data.shards.manifest import Manifest
from ...data.sidecar import KEY, EvenDraws, check_file_names, write_sidecar
from ...data.urls import base_name
from ...models.teachers.frozen import DTYPES, Frozen, FrozenTowers
from ...models.teachers.language import LanguageTeacher
from ...train.strategies.teacher_placement import place_teacher
from .. import arguments
from ..config import parser as run_config
from ..config.identity import OF_A_STORE, differences, leaves_of
from ..experiments.work_claims import claimed
from ..run.build import build_parts
from ..run.load import checkpoint_of
from ..run.start.teachers import load_teacher

ABOUT = "store.json"
# The teacher that a run of one's own is.
OWN = "run"
# The teacher that the language model of a run's text tower is.
LANGUAGE_MODEL = "language_model"


def main(argv: list[str]) -> int:
    """Writes what is missing of a store; returns 0, or 1 when others still work on parts."""
    chosen, rest = arguments.embed_words(argv)
    chosen.device = chosen.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if chosen.variants < 1 or chosen.batch_size < 1:
        raise ValueError(
            f"--variants {chosen.variants} and --batch_size {chosen.batch_size}: give 1 or more"
        )
    if chosen.run is not None:
        frozen = f"{Frozen.__module__}.{Frozen.__qualname__}"
        teacher = {"class_path": frozen, "init_args": {"source": str(chosen.run)}}
        rest = [*rest, f"--teachers={json.dumps({OWN: teacher})}"]
        chosen.teacher, chosen.views = OWN, chosen.views or ["image", "text"]
    chosen.transform = chosen.transform or ("train" if chosen.run is None else "eval")
    if chosen.transform == "eval" and chosen.variants > 1:
        raise ValueError(
            f"--variants {chosen.variants}: in evaluation nothing is augmented, so that there is "
            "one; leave it out, or give --transform train"
        )
    parser = run_config.make_parser()
    config = run_config.parse(parser, rest)
    if chosen.language_model:
        chosen.teacher, chosen.views = LANGUAGE_MODEL, chosen.views or ["text"]
        config = run_config.parse(parser, [*rest, *words_of_captions(parser, config)])
    if chosen.run is not None:
        # A store that is continued is one checkpoint's.
        checkpoint = checkpoint_of(chosen.run, chosen.checkpoint)
        config.teachers[OWN].init_args.source = str(checkpoint)
    parts = build_parts(parser, config)
    if chosen.teacher not in (parts.teachers or {}):
        known = ", ".join(parts.teachers or {}) or "none"
        raise ValueError(f"the run file has no teacher '{chosen.teacher}'; it has {known}")
    towers, views = load_teacher(parts, chosen.teacher, chosen.views)
    place_teacher(towers, torch.device(chosen.device))
    if not isinstance(parts.data, PairsDataModule):
        raise ValueError(
            "a store has a row for each listed sample: set data.manifest, no webdataset"
        )
    parts.data.check_keep_lists()
    # Shards of texts alone have none.
    parts.data.reads_images = any(view.startswith("image") for view in views)
    if chosen.run is not None:
        # A pool may have other sources than the run, and each of its samples has one row.
        sources = parts.data.sources.items()
        parts.data.sources = {name: replace(source, share=None) for name, source in sources}
    if chosen.transform == "eval":
        look_as_in_evaluation(parts.data)
    has_captions = chosen.language_model and chosen.variants > 1
    kind = CaptionStore if has_captions else EmbeddingStore
    store = kind(chosen, towers, views, parts.data)
    named = configured(run_config.without_defaults(parser, config), chosen.teacher)
    wanted = about(run_config.plain(parser, config), chosen, store)
    # A store without the key is one of augmented images.
    added = {"transform", "eval_transform"} if chosen.transform == "eval" else set()
    store.open(wanted, frozenset(named) | added)
    store.write_all()
    return store.report()


def words_of_captions(parser: ArgumentParser, config: Namespace) -> list[str]:
    """The arguments that make the text tower's language model a teacher, and leave its store out.

    Raises:
        ValueError: the run has no such tower, or the tower no language model.
    """
    text = run_config.plain(parser, config)["model"]["text"]
    arguments = text.get("init_args") or {}
    if not arguments.get("language_model"):
        raise ValueError(
            "--language_model: the run's text tower names no language model; give "
            "model.text the class_path counterpoint.models.text.vector.VectorTower and the "
            "init_args width and language_model (docs/howto/caption_vectors.md)"
        )
    kept = {key: arguments[key] for key in ("language_model", "context_length")}
    path = f"{LanguageTeacher.__module__}.{LanguageTeacher.__qualname__}"
    teachers = {LANGUAGE_MODEL: {"class_path": path, "init_args": kept}}
    own = ("sidecars={}", "same_as=null", "caption_same_as=null")
    return [f"--teachers={json.dumps(teachers)}", *(f"--data.{word}" for word in own)]


def look_as_in_evaluation(data: PairsDataModule) -> None:
    """Gives every view of the data's images the transform of evaluation."""
    data.train_transform = data.eval_transform
    data.same_as = data.caption_same_as = None
    data.views = {
        name: replace(view, transform=data.eval_transform, same_as=None)
        for name, view in data.views.items()
    }


class EmbeddingStore:
    """The sidecar that is written.

    Args:
        chosen: options of the command.
        towers: the teacher.
        views: what it sees, such as `image` and `text.theirs`, and in which form.
        data: samples and how they are augmented.
    """

    def __init__(self, chosen: Any, towers: FrozenTowers, views: list[str], data: PairsDataModule):
        self.out, self.variants, self.batch_size = chosen.out, chosen.variants, chosen.batch_size
        self.dtype, self.device = DTYPES[chosen.precision], chosen.device
        self.towers, self.views, self.data = towers, views, data
        self.dataset: StepDataset = data.train_dataset()
        # A store is for all epochs: of weights that are drawn anew, too.
        self.dataset.loader = self.dataset.loader.listed()
        self.counts = self.dataset.loader.counts.at(0)

    @property
    def manifest(self) -> Manifest:
        """The manifest of the shards that are embedded."""
        return self.data.manifest

    def open(self, wanted: dict[str, Any], chosen: frozenset[str]) -> None:
        """Makes the folder and prints how large the store will be.

        Args:
            wanted: what is stored; see `about`.
            chosen: names of what is not at its default in the run file.
        """
        check_file_names(self.manifest)
        path = self.out / ABOUT
        check_own(self.out, ABOUT)
        if path.exists():
            stored = json.loads(path.read_text(encoding="utf-8"))
            changed = differences(stored, wanted, OF_A_STORE, new_chosen=chosen)
            if names := ", ".join(each.name for each in changed):
                raise ValueError(f"{self.out} holds a store of other {names}; choose another --out")
        missing = sum(int(self.counts[shard]) for shard in self.missing())
        if not missing:
            return
        size = missing * self.bytes_per_sample()
        self.out.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.out).free
        print(
            f"{self.out}: {missing:,} samples x {self.variants} variants to store, about "
            f"{size / 1e6:,.1f} MB ({free / 1e6:,.0f} MB free)",
            flush=True,
        )
        if size > free:
            raise ValueError(
                f"the store needs {size / 1e9:,.1f} GB, and the disk of {self.out} has "
                f"{free / 1e9:,.1f} GB free: use fewer --variants or another disk"
            )
        write_json(path, wanted)

    def bytes_per_sample(self) -> int:
        """Size of one sample's row, by looking at one."""
        shard = int(self.counts.argmax())
        columns = self.columns_of(*self.dataset.loader.load([(0, shard, 0)]))
        row = sum(column.element_size() * column[0].numel() for column in columns.values())
        return (row + torch.float64.itemsize) * self.variants

    def missing(self) -> list[int]:
        """Shards that have samples and no file."""
        return [s for s, n in enumerate(self.counts.tolist()) if n and not self.path(s).exists()]

    def path(self, shard: int) -> Path:
        """The file of a shard."""
        source, name = self.names(shard)
        return self.out / source / f"{name.removesuffix('.tar')}.safetensors"

    def names(self, shard: int) -> tuple[str, str]:
        """Source and file name of a shard."""
        source = self.manifest.sources[self.manifest.source_ids[shard]]
        return source, base_name(self.manifest.urls[shard])

    def write_all(self) -> None:
        """Writes the missing shards that no other process works on."""
        for shard in self.missing():
            with claimed(self.path(shard).with_suffix(".claim")) as ours:
                if ours and not self.path(shard).exists():
                    rows = self.rows(shard)
                    write_sidecar(self.out, *self.names(shard), rows)
                    print(f"{self.path(shard)}: {len(rows[KEY])} rows", flush=True)

    def rows(self, shard: int) -> dict[str, Tensor]:
        """Embeds a shard: `key` [n] and columns [n, variants, ...], of usable samples."""
        variants = [self.embedded(shard, variant) for variant in range(self.variants)]
        keys, first = variants[0][KEY].unique(return_inverse=True)
        rows = torch.full((len(keys),), len(first)).scatter_reduce(
            0, first, torch.arange(len(first)), "amin"
        )
        columns = {KEY: keys}
        for column in variants[0].keys() - {KEY}:
            stacked = torch.stack([variant[column][rows] for variant in variants], 1)
            columns[column] = stacked if self.variants > 1 else stacked[:, 0]
            if not columns[column].isfinite().all():
                raise ValueError(
                    f"the teacher's '{column}' is not finite in {self.path(shard)}: use "
                    "--precision bfloat16 or float32"
                )
        return columns

    def embedded(self, shard: int, variant: int) -> dict[str, Tensor]:
        """One variant of all usable samples of a shard, in their order."""
        parts: list[dict[str, Tensor]] = []
        for batch in self.batches(shard, variant):
            good = batch["status"] == 0  # Others are replacements of samples that cannot be used.
            columns = self.columns_of(batch)
            parts.append({name: column[good] for name, column in columns.items()})
        joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        draws = [self.draw(variant, key) for key in joined[KEY].tolist()]
        return joined | {"text.draw": torch.tensor(draws, dtype=torch.float64)}

    def draw(self, variant: int, key: int) -> float:
        """What the loader draws for the main caption in this epoch."""
        return uniform(self.data.seed, variant, "text", key)

    def batches(self, shard: int, variant: int) -> Iterator[Batch]:
        """The batches of a shard, made by as many processes as in training."""
        places = ShardBatches(self.dataset, shard, variant, self.batch_size)
        processes = min(self.data.workers(), len(places))
        yield from DataLoader(places, batch_size=None, num_workers=processes)

    def columns_of(self, batch: Batch, texts: dict[str, list[str]] | None = None) -> Batch:
        """What is stored of a batch."""
        if texts is not None:
            batch = batch | self.dataset.tokenized(texts)
        on_device = {name: value.to(self.device) for name, value in batch.items()}
        features = self.towers(on_device, self.views)
        columns = {view: features[view].to("cpu", self.dtype) for view in self.views}
        for view, values in columns.items():
            # What a sample lacks has no embedding: a cosine with it is 0.
            if (present := batch.get(f"{view.removesuffix('.raw')}.present")) is not None:
                columns[view] = values.masked_fill(~present[:, None], 0)
        seen = {view.removesuffix(".raw") for view in self.views}
        columns |= {n: batch[n] for v in seen if (n := f"{v}.augmentation") in batch}
        return columns | {KEY: batch["key"]}

    def report(self) -> int:
        """Prints what is there; returns 1 while shards are missing."""
        from safetensors import safe_open

        num_rows = 0
        for shard in range(len(self.counts)):
            if self.path(shard).exists():
                with safe_open(str(self.path(shard)), framework="pt") as file:
                    num_rows += file.get_slice(KEY).get_shape()[0]
        missing = self.missing()
        if missing:
            print(f"{self.out}: shards not done: {len(missing)}; others work on them")
            return 1
        num_samples = int(self.counts.sum())
        others = " (the others cannot be read, or repeat a key)" * (num_rows < num_samples)
        print(f"{self.out}: complete, {num_rows:,} of {num_samples:,} samples have a row{others}")
        return 0


class CaptionStore(EmbeddingStore):
    """A store of several captions: those of even draws, so that each is stored as often."""

    def __init__(self, chosen: Any, towers: FrozenTowers, views: list[str], data: PairsDataModule):
        self.even = EvenDraws()
        data.sidecars, data.caption_same_as = {"even": self.even}, "even.draw"
        super().__init__(chosen, towers, views, data)

    def embedded(self, shard: int, variant: int) -> dict[str, Tensor]:
        self.even.value = self.draw(variant, 0)
        return super().embedded(shard, variant)

    def draw(self, variant: int, key: int) -> float:
        return (variant + 0.5) / self.variants


class ShardBatches(Dataset):
    """The samples of a shard in order, under one augmentation.

    Args:
        dataset: loads and tokenizes.
        shard: its number.
        variant: which augmentation; what would be drawn in this epoch.
        batch_size: samples of a batch.
    """

    def __init__(self, dataset: StepDataset, shard: int, variant: int, batch_size: int):
        count = int(dataset.loader.counts.at(0)[shard])
        places = [(variant, shard, i) for i in range(count)]
        self.dataset = dataset
        self.parts = [places[i : i + batch_size] for i in range(0, count, batch_size)]

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, index: int) -> Batch:
        batch, texts = self.dataset.loader.load(self.parts[index])
        return batch | self.dataset.tokenized(texts)


def configured(config: dict[str, Any], teacher: str) -> dict[str, Any]:
    """The leaves of a run's configuration that a store of this teacher depends on."""
    parts = {key: config[key] for key in ("seed", "data") if key in config}
    parts["teachers"] = {"NAME": config["teachers"][teacher]}
    return leaves_of(parts, OF_A_STORE)


def about(resolved: dict[str, Any], chosen: Any, store: EmbeddingStore) -> dict[str, Any]:
    """What makes two stores the same; written beside the rows."""
    scale = float(store.towers.model.logit_scale.exp())
    own = {"eval_transform": resolved["data"].get("eval_transform")}
    return {
        **configured(resolved, chosen.teacher),
        **(own if chosen.transform == "eval" else {}),
        "columns": store.views,
        "variants": chosen.variants,
        "precision": chosen.precision,
        "transform": chosen.transform,
        "image_size": store.data.image_size,
        "fingerprint": store.data.fingerprint,
        "logit_scale": None if math.isnan(scale) else round(scale, 4),
    }
