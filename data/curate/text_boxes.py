"""Text in images: where it stands and what it says, found by optical character recognition.

In: the images of a shard. Out: the columns of a sidecar, one row a sample: `boxes` float32 [n, 64]
(16 times left, top, right, bottom, in fractions of the image, the largest first), `area` float32
[n], the share of the image under all boxes, and `text` uint8 [n, 256], what was read (UTF-8, then
zeros). The models come with the package rapidocr.
"""

import functools
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import SampleError
from ..images.decode import EncodedImage
from ..images.masked_text import MAX_BOXES
from ..shards.fields import find_image, sample_key
from ..shards.manifest import Manifest
from ..shards.reader import open_shard
from ..shards.transport import Transport
from ..sidecar import KEY, write_sidecar
from ..urls import base_name

MAX_TEXT = 256  # bytes

# Pixels uint8 [h, w, 3] -> boxes [k, 4] (left, top, right, bottom, in pixels) and their texts.
Spotter = Callable[[np.ndarray], tuple[np.ndarray, list[str]]]


@dataclass(frozen=True)
class TextBoxes:
    """The pass over a pool.

    Args:
        folder: the sidecar's folder.
        manifest: the pool.
        key_fields: JSON field that identifies a sample, by source.
        side: pixels to which the shorter side of an image is enlarged before it is read, at least.
        min_confidence: of what is read, 0 to 1; less certain texts are passed over.
        transport: fetches remote shards.
    """

    folder: Path
    manifest: Manifest
    key_fields: Mapping[str, str]
    side: int = 320
    min_confidence: float = 0.5
    transport: Transport = field(default_factory=Transport)

    def path(self, shard: int) -> Path:
        """The file of a shard."""
        stem = base_name(self.manifest.urls[shard]).removesuffix(".tar")
        return self.folder / self._source(shard) / f"{stem}.safetensors"

    def write(self, shard: int) -> None:
        """Writes the file of a shard."""
        spot = load_spotter(self.side, self.min_confidence)
        name = base_name(self.manifest.urls[shard])
        write_sidecar(self.folder, self._source(shard), name, self.rows(shard, spot))

    def rows(self, shard: int, spot: Spotter) -> dict[str, Tensor]:
        """Returns the columns of a shard's usable samples; of a repeated key the first."""
        source, file = self._source(shard), base_name(self.manifest.urls[shard])
        found: dict[int, tuple[np.ndarray, float, np.ndarray]] = {}
        with open_shard(self.manifest, shard, self.transport) as reader:
            for index in range(int(self.manifest.counts[shard])):
                try:
                    raw = reader.read(0, index)
                    key = sample_key(raw, source, file, self.key_fields[source])
                    pixels = EncodedImage.open(find_image(raw)).pixels().permute(1, 2, 0).numpy()
                except SampleError:
                    continue
                if key not in found:
                    found[key] = encoded(*spot(pixels), pixels.shape[0], pixels.shape[1])
        boxes = np.array([each[0] for each in found.values()], np.float32)
        texts = np.array([each[2] for each in found.values()], np.uint8)
        return {
            KEY: torch.tensor(list(found), dtype=torch.int64),
            "boxes": torch.from_numpy(boxes.reshape(-1, 4 * MAX_BOXES)),
            "area": torch.tensor([each[1] for each in found.values()], dtype=torch.float32),
            "text": torch.from_numpy(texts.reshape(-1, MAX_TEXT)),
        }

    def _source(self, shard: int) -> str:
        return self.manifest.sources[self.manifest.source_ids[shard]]


def encoded(
    boxes: np.ndarray, texts: list[str], height: int, width: int
) -> tuple[np.ndarray, float, np.ndarray]:
    """Returns what is stored of an image: boxes [64], area, text [256].

    Args:
        boxes: left, top, right and bottom in pixels, [k, 4].
        texts: what each says.
        height: of the image, in pixels.
        width: of the image, in pixels.
    """
    limits = np.array([width, height] * 2)
    inside = np.clip(boxes.reshape(-1, 4), 0, limits)
    covered = np.zeros((height, width), dtype=bool)
    for left, top, right, bottom in np.rint(inside).astype(int).tolist():
        covered[top:bottom, left:right] = True
    sizes = (inside[:, 2] - inside[:, 0]) * (inside[:, 3] - inside[:, 1])
    largest = np.argsort(-sizes, kind="stable")[:MAX_BOXES]
    stored = np.zeros((MAX_BOXES, 4))
    stored[: len(largest)] = (inside / limits)[largest]
    # A cut character is left out: decoding ignores what is no character.
    data = " ".join(texts).encode()[:MAX_TEXT].decode(errors="ignore").encode()
    text = np.zeros(MAX_TEXT, dtype=np.uint8)
    text[: len(data)] = np.frombuffer(data, np.uint8)
    return stored.reshape(-1), float(covered.mean()), text


def decoded(texts: np.ndarray) -> list[str]:
    """Returns stored texts, uint8 [n, 256], as they were."""
    return [bytes(row).rstrip(b"\0").decode() for row in texts]


@functools.lru_cache(maxsize=1)
def load_spotter(side: int, min_confidence: float) -> Spotter:
    """Returns the reader of text; each process loads its models once.

    Raises:
        ValueError: the extra `ocr` is not installed.
    """
    try:
        from rapidocr import RapidOCR
    except ImportError:
        raise ValueError(
            "reading text in images needs rapidocr and onnxruntime, which are not installed; run "
            "`pip install -e '.[ocr]'` in Counterpoint's folder"
        ) from None
    settings = {
        "Det.limit_type": "min",
        "Det.limit_side_len": side,
        "Global.text_score": min_confidence,
        "Global.use_cls": False,
        "EngineConfig.onnxruntime.intra_op_num_threads": 1,
    }
    reader = RapidOCR(params=settings)
    logging.getLogger("RapidOCR").setLevel(logging.ERROR)

    def spot(pixels: np.ndarray) -> tuple[np.ndarray, list[str]]:
        found = reader(np.ascontiguousarray(pixels[:, :, ::-1]))
        corners, texts = getattr(found, "boxes", None), getattr(found, "txts", None)
        if corners is None or not texts:
            return np.zeros((0, 4)), []
        corners = np.asarray(corners, dtype=np.float64)
        return np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1), list(texts)

    return spot
