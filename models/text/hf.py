"""Text towers of transformers' encoders by configuration: BERT, XLM-R, NLLB, ModernBERT, others."""

import inspect
from typing import Any, Literal

import torch
import transformers
from jaxtyping import Bool, Float
from torch import Tensor, nn

from .base import EncoderTower, Ids, Lengths, at_end, is_token

Pooling = Literal["mean", "first", "last", "max", "pooler"]
# Learned positions, one an index; what is computed (sines, rotations) has no end.
POSITIONS = ("position_embeddings", "wpe")


class HFTextTower(EncoderTower):
    """An encoder of transformers, built from a configuration (nothing is downloaded).

    Of an encoder-decoder (NLLB, T5) it is the encoder alone. Padding is masked, so that it changes
    nothing. Whole layers are never left out at random (`encoder_layerdrop`): sharded ranks would
    wait for each other's. Weights come with `init_from`: from a folder of the encoder, and from
    models of open_clip and transformers with such a tower.

    Args:
        config: the encoder's configuration, as in its `config.json`, with `model_type`.
        context_length: longest caption in tokens.
        pooling: of the last states: their `mean` or `max` over the caption's tokens, the `first`
            one (BERT's [CLS], NLLB's language), the `last` one (end of text), or what the encoder's
            own `pooler` makes.

    Raises:
        ValueError: transformers has no encoder of this type, or it takes fewer tokens.
    """

    ignores_padding = True

    def __init__(self, config: dict[str, Any], context_length: int = 77, pooling: Pooling = "mean"):
        super().__init__()
        settings = {name: value for name, value in config.items() if name != "model_type"}
        try:
            self.config = transformers.AutoConfig.for_model(config["model_type"], **settings)
            self.trunk = encoder(self.config, pooling == "pooler")
        except (KeyError, ValueError, AttributeError) as error:
            raise ValueError(
                f"transformers has no text encoder of model_type {config.get('model_type')!r} "
                f"with this configuration: {error}"
            ) from error
        if (longest := num_positions(self.trunk)) is not None and context_length > longest:
            raise ValueError(
                f"a {type(self.trunk).__name__} of this configuration takes {longest} tokens, and "
                f"context_length is {context_length}: give it {longest} or fewer, or the "
                "configuration more max_position_embeddings"
            )
        self.context_length = context_length
        self.pooling: Pooling = pooling
        self.pad_id = int(self.config.pad_token_id or 0)
        self.width: int = getattr(self.config, "project_dim", None) or self.config.hidden_size

    def states(  # type: ignore[override] - the tower's own inputs
        self, text: Ids, text_length: Lengths
    ) -> tuple[Float[Tensor, "n tokens width"], Float[Tensor, "n width"]]:
        counts = is_token(text, text_length)
        # RoBERTa counts its positions by which tokens are padding.
        output = self.trunk(input_ids=text.where(counts, self.pad_id), attention_mask=counts.long())
        states = output.last_hidden_state
        if self.pooling == "pooler":
            return states, self._own_pooler(output)
        return states, _pooled(states, counts, text_length, self.pooling)

    def _own_pooler(self, output: Any) -> Float[Tensor, "n width"]:
        vector = getattr(output, "pooler_output", None)
        if vector is None:
            raise ValueError(
                f"a {type(self.trunk).__name__} has no pooler of its own: set "
                "model.text.init_args.pooling to mean, first, last or max"
            )
        return vector


def encoder(config: Any, with_pooler: bool) -> transformers.PreTrainedModel:
    """Returns the encoder of a configuration, with random weights."""
    for name in ("encoder_layerdrop", "layerdrop"):
        if hasattr(config, name):
            setattr(config, name, 0.0)
    kind = model_class(config)
    if "add_pooling_layer" in inspect.signature(kind.__init__).parameters:
        return kind(config, add_pooling_layer=with_pooler)
    model = kind(config)
    return model.encoder if getattr(config, "is_encoder_decoder", False) else model


def model_class(config: Any) -> Any:
    """Returns transformers' class of the bare model of a configuration."""
    kind = transformers.AutoModel._model_mapping.get(type(config), None)
    if kind is None:  # a part of a larger model, which the automatic classes do not know
        kind = getattr(transformers, type(config).__name__.replace("Config", "Model"))
    return kind


def num_positions(trunk: nn.Module) -> int | None:
    """Returns how many tokens there are learned positions for; None: there are none."""
    for name, module in trunk.named_modules():
        if name.endswith(POSITIONS) and isinstance(module, nn.Embedding):
            # Positions of RoBERTa's kind begin behind the padding token's.
            first = 0 if module.padding_idx is None else module.padding_idx + 1
            return module.num_embeddings - first
    return None


def _pooled(
    states: Float[Tensor, "n tokens width"],
    counts: Bool[Tensor, "n tokens"],
    text_length: Lengths,
    pooling: Pooling,
) -> Float[Tensor, "n width"]:
    match pooling:
        case "first":
            return states[:, 0]
        case "last":
            return at_end(states, text_length)
        case "max":
            lowest = torch.finfo(states.dtype).min
            return states.masked_fill(~counts[:, :, None], lowest).amax(1)
    return (states * counts[:, :, None]).sum(1) / text_length[:, None]
