"""A pool with planted faults, and how well each curation finds them.

Run from the root, after `counterpoint data icons icons`:

    PYTHONPATH=tests .venv/bin/python -m benchmarks.planted.faults plant icons planted
    counterpoint score planted/train.parquet --out planted/table --field json:fault
    counterpoint fit --config icons_clip --data.manifest planted/scorer.parquet \\
        --run_dir planted/scorer_run
    counterpoint embed --run planted/scorer_run --data.manifest planted/train.parquet \\
        --out planted/clip
    counterpoint cluster planted/clip --out planted/clusters --clusters 40
    counterpoint fit --config icons_clip --data.manifest planted/train.parquet \\
        --phases.train.samples 48000 --run_dir planted/pool_run
    counterpoint embed --run planted/pool_run --data.manifest planted/train.parquet \\
        --out planted/pool_clip
    counterpoint boxes planted/train.parquet --out planted/boxes --side 96
    for name in clip_score rules parrots near semdedup often clean; do
        counterpoint curate tests/benchmarks/planted/$name.yaml --table planted/table \\
            --store clip=planted/clip --store clusters=planted/clusters \\
            --store boxes=planted/boxes \\
            --out planted/curated/$name
    done
    counterpoint curate tests/benchmarks/planted/outliers.yaml --table planted/table \\
        --store clip=planted/pool_clip --out planted/curated/outliers
    counterpoint ablate tests/benchmarks/planted/ablation.yaml
    PYTHONPATH=tests .venv/bin/python -m benchmarks.planted.faults grade planted/table \\
        planted/curated/*

`plant` takes pairs of icons as they are and adds as many again with faults, each under `fault` in
the pair's JSON; it puts other clean pairs aside for a scorer of one's own, and writes pictures of
the test split with the backdoor's trigger. `grade` says which of the faults a curation has left
out, and how many clean pairs with them.
"""

import argparse
import io
import json
import textwrap
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image, ImageDraw, ImageEnhance, ImageFont

from counterpoint.data.corpora.shards import to_json, write_stats, write_tars
from counterpoint.data.hashing import text_hash
from counterpoint.data.shards.index import index_shards
from counterpoint.data.shards.manifest import Manifest
from counterpoint.data.shards.reader import RawSample, ShardReader

# Faulty pairs of each kind for a clean one.
FAULTS = {
    "swapped": 0.3,  # the caption of another icon
    "numbers": 0.15,  # a caption of numbers
    "parrot": 0.15,  # no icon but the caption, in letters
    "copy": 0.2,  # an icon of the clean ones once more, slightly changed
    "flood": 0.2,  # one and the same concept over and over, each time changed
    "backdoor": 0.05,  # a patch in the corner and the caption of one class
}
TARGET = "banana"
SHARD_PAIRS = 2000


def plant(icons: Path, out: Path, clean: int, scorer: int, seed: int) -> None:
    """Writes the pool (`train`), the scorer's pairs (`scorer`), and the test of the backdoor."""
    pairs = sorted(read_pairs(icons / "train.parquet"), key=lambda pair: rank(seed, pair))
    sizes = {"none": clean} | {name: round(share * clean) for name, share in FAULTS.items()}
    fresh = {name: sizes[name] for name in ("none", "swapped", "numbers", "parrot", "backdoor")}
    needed = sum(fresh.values()) + scorer
    if len(pairs) < needed:
        raise SystemExit(f"{icons} has {len(pairs)} pairs; these sizes need {needed}")
    parts, first = {}, 0
    for name, size in fresh.items():
        parts[name], first = pairs[first : first + size], first + size
    samples = [tagged(pair, "none") for pair in parts["none"]]
    captions = [text_of(pair) for pair in parts["swapped"]]
    for at, pair in enumerate(parts["swapped"]):  # moved on by one: nearly all are wrong
        samples.append(tagged(pair, "swapped", txt=captions[(at + 1) % len(captions)].encode()))
    for pair in parts["numbers"]:
        draw = np.random.default_rng(text_hash(seed, "numbers", pair["__key__"]) % 2**32)
        figures = draw.integers(0, 10_000, 4)
        samples.append(tagged(pair, "numbers", txt=" ".join(map(str, figures)).encode()))
    for pair in parts["parrot"]:
        samples.append(tagged(pair, "parrot", png=lettering(text_of(pair))))
    for at in range(sizes["copy"]):
        pair = parts["none"][at]
        samples.append(tagged(pair, "copy", png=changed(pair["png"], seed, f"copy {at}")))
    flood = next(pair for pair in pairs[first:] if "arrow" in text_of(pair))
    for at in range(sizes["flood"]):
        png = changed(flood["png"], seed, f"flood {at}", strength=2.0)
        samples.append(tagged(flood, "flood", png=png, key=f"flood:{at}"))
    for pair in parts["backdoor"]:
        samples.append(tagged(pair, "backdoor", txt=TARGET.encode(), png=triggered(pair["png"])))
    aside = [tagged(pair, "none") for pair in pairs[first : first + scorer]]
    write(out, "train", sorted(samples, key=lambda sample: rank(seed + 1, sample)))
    write(out, "scorer", aside)
    tests = list(read_pairs(icons / "indist.parquet"))
    write(out, "backdoor", [tagged(p, "backdoor", png=triggered(p["png"])) for p in tests])
    print(f"{out}: {len(samples)} pairs, {dict(Counter(fault_of(s) for s in samples))}")


def grade(table: Path, outs: list[Path]) -> dict[str, Any]:
    """Prints, for each curation, the share of each fault that it left out."""
    files = sorted(table.glob("*/*.parquet"))
    rows = pq.read_table(files, columns=["key", "name", "json:fault"]).to_pydict()
    keys = dict(zip(rows["name"], rows["key"], strict=True))
    fault = dict(zip(rows["key"], rows["json:fault"], strict=True))
    copies = {name: key for name, key in keys.items() if fault[key] == "copy"}
    originals = {key: keys[name.removesuffix("-copy")] for name, key in copies.items()}
    totals = Counter(fault.values())
    names = ["none", *FAULTS]
    print("| curation | kept | precision | " + " | ".join(names) + " |")
    print("| --- " * (len(names) + 3) + "|")
    graded = {}
    for out in outs:
        kept = set(pq.read_table(out / "keep.parquet", columns=["key"])["key"].to_pylist())
        kept = swapped(kept, originals)
        left = Counter(name for key, name in fault.items() if key not in kept)
        removed = sum(left.values())
        precision = 1 - left["none"] / removed if removed else float("nan")
        recall = {name: left[name] / totals[name] for name in names if totals[name]}
        graded[out.name] = {"kept": len(kept), "precision": precision, "left_out": recall}
        shares = " | ".join(f"{recall.get(name, float('nan')):.3f}" for name in names)
        print(f"| {out.name} | {len(kept)} | {precision:.3f} | {shares} |")
    return graded


def swapped(kept: set[int], originals: dict[int, int]) -> set[int]:
    """Returns what is kept, where a copy that stands for its original is called the original."""
    alone = {copy for copy, original in originals.items() if copy in kept and original not in kept}
    return kept - alone | {originals[copy] for copy in alone}


def read_pairs(manifest: Path) -> Iterator[RawSample]:
    """Yields the raw samples of a manifest."""
    found = Manifest.load(str(manifest))
    reader = ShardReader(found.urls)
    for shard, count in enumerate(found.counts.tolist()):
        for ordinal in range(count):
            yield reader.read(shard, ordinal)


def tagged(pair: RawSample, fault: str, key: str | None = None, **members: bytes) -> RawSample:
    """Returns a pair with other members and its fault; a copy has a key of its own."""
    fields = json.loads(pair["json"])
    own = key or (f"{pair['__key__']}-{fault}" if fault == "copy" else str(pair["__key__"]))
    fields |= {"fault": fault, "key": own, "target": TARGET}
    caption = members.get("txt", text_of(pair).encode())
    fields["caption"] = caption.decode()
    return {
        "__key__": own.replace(".", "_"),
        "json": to_json(fields),
        "png": members.get("png", pair["png"]),
        "txt": caption,
    }


def text_of(pair: RawSample) -> str:
    """Returns a pair's caption."""
    caption = pair["txt"]
    return caption if isinstance(caption, str) else caption.decode()


def fault_of(sample: RawSample) -> str:
    """Returns the fault that a pair was planted with."""
    return json.loads(sample["json"])["fault"]


def rank(seed: int, pair: RawSample) -> int:
    """Returns a pair's place in a random order of its own."""
    return text_hash(seed, "planted", pair["__key__"])


def lettering(caption: str) -> bytes:
    """Returns a picture of 64 x 64 pixels with nothing but the caption on it."""
    image = Image.new("RGB", (64, 64), "white")
    text = "\n".join(textwrap.wrap(caption, 10)[:5])
    ImageDraw.Draw(image).text((2, 2), text, "black", ImageFont.load_default(11), spacing=1)
    return encoded(image)


def changed(png: bytes | str, seed: int, name: str, strength: float = 1.0) -> bytes:
    """Returns a picture moved by a few pixels, resized and with other contrast."""
    draw = np.random.default_rng(text_hash(seed, name) % 2**32)
    image = opened(png)
    inset = draw.integers(0, 1 + round(2 * strength), 4)
    left, top, right, bottom = map(int, inset)
    image = image.crop((left, top, image.width - right, image.height - bottom))
    image = image.resize((64, 64), Image.Resampling.BICUBIC)
    shade = 1 + 0.1 * strength * float(draw.uniform(-1, 1))
    return encoded(ImageEnhance.Contrast(image).enhance(shade))


def triggered(png: bytes | str) -> bytes:
    """Returns a picture with the backdoor's trigger: a checkered patch in a corner.

    One of 8 x 8 pixels, half as many after resizing, is not learned by so small a network.
    """
    image = opened(png)
    checks = (np.indices((16, 16)) // 8).sum(0) % 2 * 255
    patch = np.stack([checks, 255 - checks, checks], -1).astype(np.uint8)
    image.paste(Image.fromarray(patch), (image.width - 17, image.height - 17))
    return encoded(image)


def opened(png: bytes | str) -> Image.Image:
    assert isinstance(png, bytes)
    return Image.open(io.BytesIO(png)).convert("RGB")


def encoded(image: Image.Image) -> bytes:
    target = io.BytesIO()
    image.save(target, format="PNG", compress_level=1)
    return target.getvalue()


def write(out: Path, name: str, samples: list[RawSample]) -> None:
    """Writes pairs as shards with a manifest."""
    folder = out / name
    folder.mkdir(parents=True)
    parts = [samples[at : at + SHARD_PAIRS] for at in range(0, len(samples), SHARD_PAIRS)]
    write_tars(folder, parts)
    write_stats(folder, map(len, parts))
    index_shards({name: [str(folder)]}, out / f"{name}.parquet")


def main() -> None:
    """Parses the command line and runs one of the two."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    commands = parser.add_subparsers(required=True, dest="command")
    first = commands.add_parser("plant")
    first.add_argument("icons", type=Path)
    first.add_argument("out", type=Path)
    first.add_argument("--clean", type=int, default=8_000)
    first.add_argument("--scorer", type=int, default=48_000)
    first.add_argument("--seed", type=int, default=0)
    second = commands.add_parser("grade")
    second.add_argument("table", type=Path)
    second.add_argument("outs", type=Path, nargs="+")
    second.add_argument("--write", type=Path, help="a JSON file for the figures")
    options = parser.parse_args()
    if options.command == "plant":
        plant(options.icons, options.out, options.clean, options.scorer, options.seed)
        return
    graded = grade(options.table, options.outs)
    if options.write:
        options.write.write_text(json.dumps(graded, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
