"""A text encoder of transformers alone, into a text tower.

In: a folder of `save_pretrained` with a BERT, RoBERTa, XLM-R, ModernBERT, NLLB or another text
model, with or without a head on top. Out: a `ForeignModel` of one tower.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..text.hf import model_class, num_positions
from . import transformers
from .archive import read_settings, read_shards
from .base import HF_TEXT, ForeignModel

# What models with an image tower say, or of several towers.
PARTS = ("vision_config", "text_config", "num_channels")
# Of a file's history; nothing is computed from them.
HISTORY = ("architectures", "dtype", "torch_dtype", "transformers_version")
LONGEST = 512


def is_folder(folder: Path) -> bool:
    """Whether a folder holds a model of transformers that reads token ids, and nothing else."""
    path = folder / transformers.CONFIG
    if not path.is_file():
        return False
    settings = read_settings(path)
    if settings.get("model_type") in transformers.FAMILIES:
        return False
    return "vocab_size" in settings and not any(name in settings for name in PARTS)


def read_folder(folder: Path) -> ForeignModel:
    """Reads such a folder; of an encoder-decoder the encoder, and of any model no head.

    Raises:
        ValueError: transformers has no such encoder, or weights of it are missing.
    """
    from transformers import AutoConfig

    tensors = read_shards(folder)
    try:
        config: Any = AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        kind = model_class(config)
        # transformers itself knows the names of older releases, and those below a head.
        with _quietly(), torch.random.fork_rng(devices=[]):
            model, found = kind.from_pretrained(
                None,
                config=config,
                state_dict=tensors,
                dtype=torch.float32,
                output_loading_info=True,
            )
    except (AttributeError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{folder} holds no text encoder that can be read: {reason}") from error
    missing = set(found["missing_keys"])
    if getattr(config, "is_encoder_decoder", False):
        model = model.encoder
        missing = {name.removeprefix("encoder.") for name in missing}
    state = {name: value for name, value in model.state_dict().items() if name not in missing}
    # Encoders are mostly published without the pooler, or with one that was never trained.
    if lost := sorted(
        n for n in model.state_dict() if n in missing and not n.startswith("pooler.")
    ):
        raise ValueError(
            f"{folder} is incomplete: of a {kind.__name__} it has no {', '.join(lost[:3])}"
        )
    settings = config.to_diff_dict() | {"model_type": config.model_type}
    length = min(num_positions(model) or LONGEST, LONGEST)
    arguments = {
        "config": {name: value for name, value in settings.items() if name not in HISTORY},
        "context_length": length,
    }
    # Of a folder without one transformers makes a tokenizer of no words.
    has_tokenizer = any((folder / name).is_file() for name in transformers.TOKENIZERS)
    tokenizer = transformers.tokenizer(folder, config.vocab_size) if has_tokenizer else None
    return ForeignModel(
        f"transformers {kind.__name__}",
        {"text": {"class_path": HF_TEXT, "init_args": arguments}},
        {f"text.trunk.{name}": value for name, value in state.items()},
        None,
        tokenizer,
        length,
    )


@contextmanager
def _quietly() -> Iterator[None]:
    """Without transformers' bars, and its tables of what a head would have."""
    from transformers.utils import logging

    level, shows_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shows_bars:
            logging.enable_progress_bar()
