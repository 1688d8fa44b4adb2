"""Text towers of transformers' encoders by configuration: BERT, RoBERTa, XLM-RoBERTa and others."""

import inspect
from typing import Any, Literal

import transformers
from jaxtyping import Float
from torch import Tensor

from .base import EncoderTower, Ids, Lengths, is_token

Pooling = Literal["mean", "first", "pooler"]


class HFTextTower(EncoderTower):
    """An encoder of transformers, built from a configuration (nothing is downloaded).

    Padding is masked, so that it changes nothing. Weights come with `init_from`: from models of
    open_clip and transformers with such a tower.

    Args:
        config: the encoder's configuration, as in its `config.json`, with `model_type`.
        context_length: longest caption in tokens.
        pooling: of the last states: their `mean` over the caption's tokens, the `first` one,
            or what the encoder's own `pooler` makes.

    Raises:
        ValueError: transformers has no encoder of this type, or it takes fewer tokens.
    """

    ignores_padding = True

    def __init__(self, config: dict[str, Any], context_length: int = 77, pooling: Pooling = "mean"):
        super().__init__()
        settings = {name: value for name, value in config.items() if name != "model_type"}
        try:
            self.config = transformers.AutoConfig.for_model(config["model_type"], **settings)
            self.trunk = _encoder(self.config, pooling)
        except (KeyError, ValueError, AttributeError) as error:
            raise ValueError(
                f"transformers has no text encoder of model_type {config.get('model_type')!r} "
                f"with this configuration: {error}"
            ) from error
        self.context_length, self.pooling = context_length, pooling
        self.pad_id = int(self.config.pad_token_id or 0)
        self.width: int = getattr(self.config, "project_dim", None) or self.config.hidden_size

    def states(  # type: ignore[override] - the tower's own inputs
        self, text: Ids, text_length: Lengths
    ) -> tuple[Float[Tensor, "n tokens width"], Float[Tensor, "n width"]]:
        counts = is_token(text, text_length)
        # RoBERTa counts its positions by which tokens are padding.
        output = self.trunk(input_ids=text.where(counts, self.pad_id), attention_mask=counts.long())
        states = output.last_hidden_state
        if self.pooling == "mean":
            return states, (states * counts[:, :, None]).sum(1) / text_length[:, None]
        return states, states[:, 0] if self.pooling == "first" else output.pooler_output


def _encoder(config: Any, pooling: Pooling) -> transformers.PreTrainedModel:
    """The encoder of a configuration, with a pooler only where that is read."""
    kind: Any = transformers.AutoModel._model_mapping.get(type(config), None)
    if kind is None:  # a part of a larger model, which the automatic classes do not know
        kind = getattr(transformers, type(config).__name__.replace("Config", "Model"))
    if "add_pooling_layer" in inspect.signature(kind.__init__).parameters:
        return kind(config, add_pooling_layer=pooling == "pooler")
    model = kind(config)
    return model.encoder if getattr(config, "is_encoder_decoder", False) else model
