"""What a text tower of stored vectors needs of the other slots, checked when a run starts.

In: the slots of a run. Out: nothing, or one sentence about what cannot work.
"""

from typing import Any

import torch

from ....data.pairs import Pairs
from ....models.text.vector import VectorTower
from .tokenizers import PROBE, PROBE_TOKENS


def check_stored_texts(parts: Any) -> None:
    """Checks that stored vectors come with batches, and that evaluation can read other texts.

    Where a run evaluates, its language model is loaded: now, not at the first evaluation.
    """
    tower, data = parts.model.text, parts.data
    if tower.stored is not None:
        _check_entry(tower.stored, data)
        for name, phase in parts.phases.named.items():
            for key in ("text_reducer", "word_reducer"):
                if getattr(phase, key) is not None:
                    raise ValueError(
                        f"phases.{name}.{key} would change nothing: the text tower reads stored "
                        f"vectors ('{tower.stored}'); remove it"
                    )
    if isinstance(tower, VectorTower) and (tower.stored is None or parts.evaluation.suite):
        model = tower.reader()
        check_width(tower)
        ids, lengths = data.tokenizer(PROBE, PROBE_TOKENS)
        if not torch.equal(
            ids[0, : lengths[0]], model.tokenize(PROBE, PROBE_TOKENS)[0, : lengths[0]]
        ):
            raise ValueError(
                f"data.tokenizer does not read texts as the language model '{model.source}' does: "
                "set it to {class_path: counterpoint.data.text.tokenize.HFTokenizer, init_args: "
                f"{{name: {model.source}}}}}"
            )
        _ = model.network


def check_width(tower: VectorTower) -> None:
    """Refuses a language model whose vectors have another length than the tower reads."""
    width = tower.reader().width
    if width != tower.width:
        raise ValueError(
            f"the language model '{tower.reader().source}' has vectors of length {width}: set "
            f"model.text.init_args.width to {width} (it is {tower.width})"
        )


def _check_entry(stored: str, data: Pairs) -> None:
    name, _, column = stored.partition(".")
    if name not in data.sidecars or column not in data.sidecars[name].columns:
        raise ValueError(
            f"the text tower reads '{stored}', which batches do not have: store it with "
            "counterpoint embed --language_model, and name the store in data.sidecars as "
            f"{{{name}: {{class_path: counterpoint.data.sidecar.Sidecar, init_args: {{folder: "
            f"STORE, columns: {{{column}: text}}, missing: replaced}}}}}}"
        )
    if data.sidecars[name].missing != "replaced":
        raise ValueError(
            f"the text tower reads '{stored}', and samples without a row in the sidecar '{name}' "
            f"would have a caption of zeros: set data.sidecars.{name}.init_args.missing to "
            "replaced"
        )
