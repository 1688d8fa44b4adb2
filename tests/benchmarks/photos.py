"""Shards of JPEG photographs for throughput measurements.

In: the sample photographs that scikit-image, scikit-learn and matplotlib ship. Out: tars of
re-cropped, re-encoded variants in img2dataset's layout, whose size and bit rate are those of web
photographs (about 90 KiB at 512 pixels). Made once and kept.
"""

import importlib.util
import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from counterpoint.data.files import whole_file

PHOTOS = {
    "skimage": (
        "data/astronaut.png data/chelsea.png data/coffee.png data/rocket.jpg data/ihc.png "
        "data/retina.jpg data/hubble_deep_field.jpg data/motorcycle_left.png "
        "data/motorcycle_right.png"
    ),
    "sklearn": "datasets/images/china.jpg datasets/images/flower.jpg",
    "matplotlib": "mpl-data/sample_data/grace_hopper.jpg",
}
WORDS = [
    *("a", "the", "of", "in", "on", "with", "and", "photo", "picture", "small", "large", "red"),
    *("blue", "green", "old", "young", "man", "woman", "cat", "dog", "street", "house", "river"),
    *("mountain", "morning", "night", "light", "shadow", "close", "view", "from", "above", "table"),
    *("wooden", "coffee", "flowers", "temple", "rocket", "launch", "portrait", "museum", "bicycle"),
]
NUM_SHARDS = 8


def sources() -> list[Image.Image]:
    """Returns the photographs that are installed.

    Raises:
        ValueError: scikit-image or scikit-learn is missing.
    """
    photos = []
    for package, names in PHOTOS.items():
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise ValueError(
                f"the photographs of '{package}' are not there: pip install --no-deps --target "
                "FOLDER scikit-image scikit-learn matplotlib, and put FOLDER on PYTHONPATH"
            )
        for name in names.split():
            with Image.open(Path(spec.origin).parent / name) as photo:
                photos.append(photo.convert("RGB"))
    return photos


def variant(photo: Image.Image, short_side: int, rng: np.random.Generator) -> bytes:
    """Returns a JPEG of a random part of a photograph, its shorter side as asked."""
    aspect = np.exp(rng.uniform(np.log(0.67), np.log(1.6)))
    share = rng.uniform(0.6, 1.0)
    width = min(photo.width, photo.height * aspect) * share
    height = width / aspect
    left, top = rng.uniform(0, photo.width - width), rng.uniform(0, photo.height - height)
    scale = short_side / min(width, height)
    size = round(width * scale), round(height * scale)
    box = (left, top, left + width, top + height)
    pixels = np.asarray(photo.resize(size, Image.Resampling.BICUBIC, box=box), dtype=np.float32)
    # Enlarged photographs are smoother than real ones: sensor noise restores the bit rate.
    noise = rng.normal(0, 2.5, pixels.shape[:2])[..., None]
    pixels = pixels * rng.uniform(0.85, 1.15) + noise
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(
        buffer,
        "JPEG",
        quality=int(rng.integers(85, 96)),
        subsampling=2 if rng.random() < 0.9 else 0,
    )
    return buffer.getvalue()


def make_shards(folder: Path, short_side: int, num_samples: int) -> list[str]:
    """Writes the shards unless they are there already.

    Args:
        folder: Where to.
        short_side: Of every picture, in pixels.
        num_samples: In all shards together.

    Returns:
        The paths of the tars.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:05d}.tar" for number in range(NUM_SHARDS)]
    if all(path.exists() for path in paths):
        return [str(path) for path in paths]
    photos = sources()
    rng = np.random.default_rng(short_side)
    for number, path in enumerate(paths):
        with whole_file(path) as part, tarfile.open(part, "w") as tar:
            for row in range(num_samples // NUM_SHARDS):
                key = f"{number:05d}{row:04d}"
                count = 1 + min(60, int(rng.lognormal(2.1, 0.6)))
                caption = " ".join(rng.choice(WORDS, count).tolist())
                photo = photos[int(rng.integers(len(photos)))]
                fields = {
                    "key": key,
                    "caption": caption,
                    "url": f"photo:{key}",
                    "status": "success",
                }
                members = {
                    "jpg": variant(photo, short_side, rng),
                    "txt": caption.encode(),
                    "json": json.dumps(fields).encode(),
                }
                for extension, data in members.items():
                    info = tarfile.TarInfo(f"{key}.{extension}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return [str(path) for path in paths]
