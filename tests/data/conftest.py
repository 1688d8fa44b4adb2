"""Small shards made by hand, the same way for every test of `data`."""

import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from PIL import Image

from counterpoint.data.shards.index import index_shards

# The same examples every time, however slow the machine is.
settings.register_profile(
    "data", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("data")

Members = list[tuple[str, bytes]]


def image(seed: int, height: int = 20, width: int = 24, form: str = "PNG", **save) -> bytes:
    """A smooth random image: three colour waves."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(rng.uniform(0.05, 0.4) * x + rng.uniform(0.05, 0.4) * y) for _ in range(3)]
    pixels = (127.5 + 127.5 * np.stack(waves, -1)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form, **save)
    return buffer.getvalue()


def pairs(first: int, count: int) -> Members:
    """Members of `count` good samples in img2dataset's layout."""
    members: Members = []
    for number in range(first, first + count):
        key = f"{number:09d}"
        fields = {"key": key, "caption": f"caption {number}"}
        members += [
            (f"{key}.png", image(number)),
            (f"{key}.txt", f"image {number}".encode()),
            (f"{key}.json", json.dumps(fields).encode()),
        ]
    return members


def write_tar(path: Path, members: Members, form: int = tarfile.PAX_FORMAT) -> str:
    with tarfile.open(path, "w", format=form) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return str(path)


@pytest.fixture
def make_image() -> Callable[..., bytes]:
    return image


@pytest.fixture
def make_pairs() -> Callable[[int, int], Members]:
    return pairs


@pytest.fixture
def make_tar() -> Callable[..., str]:
    return write_tar


@pytest.fixture
def shards(tmp_path: Path) -> list[str]:
    """Three good shards of 7, 5 and 9 samples."""
    counts, first, paths = (7, 5, 9), 0, []
    for number, count in enumerate(counts):
        paths.append(write_tar(tmp_path / f"{number:05d}.tar", pairs(first, count)))
        first += count
    return paths


@pytest.fixture
def broken(make_tar, make_pairs, make_image, tmp_path):
    """Five shards with one cause each, next to good samples, and what is wrong where."""
    members = [make_pairs(6 * number, 6) for number in range(5)]
    members[0][3] = (members[0][3][0], make_image(1)[:100])  # ordinal 1
    members[1][7] = (members[1][7][0], b"\xff")  # ordinal 2
    del members[2][10]  # the text of ordinal 3
    del members[2][0]  # the image of ordinal 0
    paths = [make_tar(tmp_path / f"{number}.tar", m) for number, m in enumerate(members)]
    manifest = index_shards(paths, tmp_path / "m.parquet")
    os.unlink(paths[3])
    content = Path(paths[4]).read_bytes()
    Path(paths[4]).write_bytes(content[: content.index(b"000000027.txt")])
    for number in range(5):
        if os.path.exists(f"{paths[number]}.index"):
            os.unlink(f"{paths[number]}.index")
    bad = {(0, 1): "bad_image", (1, 2): "bad_text", (2, 0): "no_image", (2, 3): "no_caption"}
    bad |= {(3, ordinal): "shard_missing" for ordinal in range(6)}
    bad |= {(4, ordinal): "shard_truncated" for ordinal in range(3, 6)}
    return manifest, bad
