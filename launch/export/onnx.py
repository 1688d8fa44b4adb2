"""`--to onnx`: each tower as an ONNX file, in fp32 and fp16, for onnxruntime.

Files: `image.onnx`, `text.onnx`, the same with `.fp16`; `tokenizer.json` for `tokenizers`;
`towers.json`: inputs, outputs, how images are prepared, how similarities become probabilities;
`answer.py`: all of it in thirty lines. Images go in as they are decoded, uint8 [n, height, width,
3]: normalisation is in the file, and numpy and Pillow are enough outside of it.
"""

import copy
import importlib.util
import logging
import shutil
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from ...data.files import write_json
from ...models.two_tower import TwoTower
from ..run.provenance import machine
from .parity import TEXTS, largest, texture
from .source import Source
from .target import Reloaded, Target
from .tokenizer_files import make_tokenizer

SCRIPT = Path(__file__).resolve().parent.parent / "templates" / "onnx_answer.py.txt"
# A file of ONNX may not be larger than 2 GiB; what is above lies in a file beside it.
MAX_BYTES = 1.9e9
# Of embeddings of length one; half precision has 11 bits.
HALF_LIMIT = 2e-2
NUM_TIMED = 30


class ImageGraph(nn.Module):
    """Pixels as they are decoded to an embedding of length one."""

    def __init__(self, model: TwoTower):
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        """Encodes uint8 [n, height, width, 3]: float32 [n, d]."""
        return F.normalize(self.model.project_image(pixels.permute(0, 3, 1, 2)).float(), dim=-1)


class TextGraph(nn.Module):
    """Token ids and which of them are no padding to an embedding of length one."""

    def __init__(self, model: TwoTower):
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Encodes int64 [n, tokens], twice: float32 [n, d]."""
        lengths = attention_mask.sum(dim=1)
        return F.normalize(self.model.project_text(input_ids, lengths).float(), dim=-1)


class Onnx(Target):
    name = "onnx"
    packages: Mapping[str, str] = {
        "onnx": "onnx",
        "onnxscript": "onnxscript",
        "onnxruntime": "onnxruntime",
    }
    needs = ("onnxruntime", "tokenizers", "pillow")
    library = "onnx"

    def write(self, source: Source, path: Path) -> list[str]:
        source.check_cosine("answer.py")
        tokenizer = make_tokenizer(source)
        write_json(path / "towers.json", describe(source))
        tokenizer.save(str(path / "tokenizer.json"))
        shutil.copyfile(SCRIPT, path / "answer.py")
        for suffix, dtype in (("", torch.float32), (".fp16", torch.float16)):
            model = copy.deepcopy(source.model).to(dtype)
            write_image(model, path / f"image{suffix}.onnx")
            write_text(model, path / f"text{suffix}.onnx")
        return []

    def reload(self, source: Source, path: Path) -> Reloaded:
        return _Reloaded(path)

    def program(self, source: Source, path: str) -> str:
        return SCRIPT.read_text(encoding="utf-8")

    def facts(self, source: Source, path: Path) -> list[tuple[str, str]]:
        """Compares fp16 with fp32, and times both on one thread."""
        rows = []
        full, half = _Reloaded(path), _Reloaded(path, ".fp16")
        size = source.model.image_size
        images = [texture(size, size, seed) for seed in range(4)]
        for tower, ours, theirs in (
            ("image", full.encode_images(images), half.encode_images(images)),
            ("text", full.encode_texts(TEXTS), half.encode_texts(TEXTS)),
        ):
            difference = largest(ours, theirs)
            if not difference <= HALF_LIMIT:
                raise ValueError(
                    f"the {tower} tower gives other embeddings in fp16, by up to "
                    f"{difference:.1e}: its numbers leave the range of fp16; export --to another "
                    "layout"
                )
            rows.append((f"Largest difference of fp16, {tower} embeddings", f"{difference:.1e}"))
        cpu = machine()["cpu"]
        for precision, loaded in (("fp32", full), ("fp16", half)):
            for what, milliseconds in loaded.latencies(images[0], TEXTS[0]).items():
                row = f"{milliseconds:.2f} ms (median of {NUM_TIMED}, one thread of {cpu})"
                rows.append((f"One {what}, {precision}", row))
        return rows


class _Reloaded(Reloaded):
    """Runs the program that lies beside the files, without its last lines."""

    def __init__(self, path: Path, suffix: str = ""):
        spec = importlib.util.spec_from_file_location("answer", path / "answer.py")
        assert spec is not None and spec.loader is not None
        self.program: Any = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.program)
        self.image, self.text = (
            session(path / f"{tower}{suffix}.onnx") for tower in ("image", "text")
        )

    def grey_levels(self, images: Sequence[Image.Image]) -> Tensor:
        pixels = np.stack([self.program.prepare(image) for image in images])
        return torch.from_numpy(pixels).permute(0, 3, 1, 2).float()

    def encode_images(self, images: Sequence[Image.Image]) -> Tensor:
        pixels = np.stack([self.program.prepare(image) for image in images])
        return torch.from_numpy(self.image.run(None, {"pixels": pixels})[0])

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        return torch.from_numpy(self.text.run(None, self.program.tokenize(list(texts)))[0])

    def latencies(self, image: Image.Image, text: str) -> dict[str, float]:
        """Times one image and one short text, without their preparation, in milliseconds."""
        pixels = {"pixels": self.program.prepare(image)[None]}
        tokens = self.program.tokenize([text])
        return {"image": _median(self.image, pixels), "text": _median(self.text, tokens)}


def session(file: Path) -> Any:
    """Opens a file for one thread of the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors; fp16 on a CPU makes it warn about casts
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def _median(session: Any, inputs: dict[str, np.ndarray]) -> float:
    times = []
    for _ in range(NUM_TIMED + 3):  # the first ones allocate
        start = time.perf_counter()
        session.run(None, inputs)
        times.append(1e3 * (time.perf_counter() - start))
    return float(np.median(times[3:]))


def write_image(model: TwoTower, file: Path) -> None:
    """Writes the image tower."""
    pixels = torch.zeros(2, model.image_size, model.image_size, 3, dtype=torch.uint8)
    save(ImageGraph(model), {"pixels": pixels}, {"pixels": {0: "batch"}}, "image_embeds", file)


def write_text(model: TwoTower, file: Path) -> None:
    """Writes the text tower; its texts have any length where it ignores padding."""
    ids = torch.ones(2, model.context_length, dtype=torch.int64)
    axes = {0: "batch", 1: "tokens"} if model.text.ignores_padding else {0: "batch"}
    inputs = {"input_ids": ids, "attention_mask": ids.clone()}
    save(TextGraph(model), inputs, dict.fromkeys(inputs, axes), "text_embeds", file)


def save(
    graph: nn.Module,
    inputs: dict[str, Tensor],
    axes: dict[str, dict[int, str]],
    output: str,
    file: Path,
) -> None:
    """Translates a graph through torch.export.

    Raises:
        ValueError: an operation of it has no counterpart in ONNX.
    """
    num_bytes = sum(p.numel() * p.element_size() for p in graph.parameters())
    try:
        with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings(), _quiet_logs():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                graph.eval(),
                kwargs=inputs,
                dynamic_shapes=axes,
                output_names=[output],
                dynamo=True,
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        reason = " ".join(str(error).partition("Exception summary")[2].split()) or str(error)
        raise ValueError(
            f"torch cannot translate the {file.name.partition('.')[0]} tower to ONNX "
            f"({reason[:200]}); export --to safetensors"
        ) from error
    assert program is not None
    program.save(file, external_data=num_bytes > MAX_BYTES)


class _quiet_logs:
    """Turns off what the exporter logs about operators that are not installed."""

    def __enter__(self) -> None:
        self.level = logging.root.manager.disable
        logging.disable(logging.WARNING)

    def __exit__(self, *error: object) -> None:
        logging.disable(self.level)


def describe(source: Source) -> dict[str, Any]:
    """Returns what a program has to know that has the files alone."""
    transform, model = source.eval_transform, source.model
    similarity = source.run.objective.metric().similarity
    is_sigmoid = model.logit_bias is not None
    return {
        "image": {
            "files": {"fp32": "image.onnx", "fp16": "image.fp16.onnx"},
            "input": {"pixels": "uint8 [batch, size, size, 3], RGB; normalised inside"},
            "output": {"image_embeds": "float32 [batch, embed_dim], of length one"},
            "size": model.image_size,
            "resize": transform.resize,
            "crop": transform.crop,
            "fill": transform.fill,
            "interpolation": transform.interpolation,
        },
        "text": {
            "files": {"fp32": "text.onnx", "fp16": "text.fp16.onnx"},
            "input": {
                "input_ids": "int64 [batch, tokens]",
                "attention_mask": "int64 [batch, tokens]: 1, and 0 for padding at the end",
            },
            "output": {"text_embeds": "float32 [batch, embed_dim], of length one"},
            "tokenizer": "tokenizer.json",
            "context_length": model.context_length,
        },
        "embed_dim": source.embed_dim,
        "similarity": type(similarity).__name__.lower(),
        "logit_scale": float(model.logit_scale.exp()),
        "logit_bias": None if model.logit_bias is None else float(model.logit_bias),
        "probabilities": "sigmoid of each pair" if is_sigmoid else "softmax over the texts",
    }
