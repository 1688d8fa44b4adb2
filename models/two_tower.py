"""The two-tower model: a batch in, named features out.

Features are `image` and `text` (normalised), `image.raw` and `text.raw` (after projection, before
normalisation), `image.pooled` and `text.pooled` (the towers' output, before projection),
`image.tokens` and `text.tokens` (the towers' last states, [n, tokens, width], those of captions
padded to the context length), `image.hidden` (int64 [n, k]: for which of them a mask token stands,
counted from the last), `logit_scale` (multiplicative) and `logit_bias`. Further views
(`image.strong_1`, `text.negative`) are batch entries of the same name, encoded by the tower of
their first word; those of a further stream have its name before them (`sentences/text`).
`tokens/computed` and `tokens/real` are positions a caption, with and without padding.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Literal, cast

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from . import chunks as parts
from .image import ImageTower
from .packing import Packed
from .reducers.base import Patches, Reduction
from .text.base import Ids, Lengths, TextTower

# From a tower's width to the shared space: one layer, with a bias, two layers with GELU, nothing.
Projection = Literal["linear", "affine", "mlp", "wide_mlp", "none"]
# Of a view, what its tower makes on the way to the normalised embedding.
FORMS = (".raw", ".pooled", ".tokens", ".hidden")
Form = Literal["", ".raw", ".pooled", ".tokens"]


class TwoTower(nn.Module):
    """An image tower and a text tower, each with a projection into one space.

    `logit_scale` (stored as its logarithm) and `logit_bias` are 1-D, so that sharded strategies can
    hold them.

    Args:
        image: image tower: `forward(uint8 pixels) -> [n, width]`, with `width` and `image_size`.
        text: text tower: `forward(ids, lengths) -> [n, width]`, with `width`, `context_length`.
        embed_dim: length of the shared embedding.
        logit_scale_init: multiplicative scale at the start (comes from the objective).
        logit_bias_init: bias at the start; None: no bias (comes from the objective).
        logit_scale_bounds: the scale's lowest and highest value (come from the objective).
        chunks: parts that each view of the local batch is encoded in, and recomputed in the
            backward pass: memory of one part for a third more time. 1: nothing is recomputed.
        text_parts: parts that captions, sorted by length, are encoded in, each without the columns
            that are padding in all of it; at least `chunks` are made. 0: with all padding. Towers
            that look at padding take captions as they come, in `chunks` parts; those that take
            packed captions where it computes, without any padding, in `chunks` parts.
        image_projection: from the image tower's vector to the embedding: `linear` without a bias,
            `affine` with one; two layers with GELU between, of which `mlp` has no biases and an
            inner width halfway, and `wide_mlp` a bias in the first and twice the embedding's width
            (both are open_clip's); `none`.
        text_projection: from the text tower's vector, likewise.

    Attributes:
        computes_on: type of device and of what products read, as if it computed there; None: where
            its inputs are, under the autocast that is on.

    Raises:
        ValueError: chunks or text_parts is out of range, a tower has no width, or one without a
            projection has another width than `embed_dim`.
    """

    def __init__(
        self,
        image: ImageTower,
        text: TextTower,
        embed_dim: int = 512,
        logit_scale_init: float = 1 / 0.07,
        logit_bias_init: float | None = None,
        logit_scale_bounds: tuple[float, float] = (1.0, 100.0),
        chunks: int = 1,
        text_parts: int = 4,
        image_projection: Projection = "linear",
        text_projection: Projection = "linear",
    ):
        super().__init__()
        if chunks < 1 or text_parts < 0:
            raise ValueError(
                f"model.chunks is {chunks} and model.text_parts is {text_parts}: chunks must be at "
                "least 1, text_parts at least 0"
            )
        self.chunks = chunks
        self.text_parts = text_parts
        self.computes_on: tuple[str, torch.dtype] | None = None
        self.image = image
        self.text = text
        self.image_projection = _projection(image, embed_dim, image_projection)
        self.text_projection = _projection(text, embed_dim, text_projection)
        self.logit_scale_bounds = logit_scale_bounds
        self.logit_scale = nn.Parameter(torch.full((1,), math.log(logit_scale_init)))
        self.logit_bias = (
            None if logit_bias_init is None else nn.Parameter(torch.full((1,), logit_bias_init))
        )
        self.text.borrow(self)

    @property
    def image_size(self) -> int:
        """Side of the square input in pixels."""
        return cast(int, self.image.image_size)

    @property
    def context_length(self) -> int:
        """Longest caption in tokens."""
        return cast(int, self.text.context_length)

    @property
    def most_calls(self) -> int:
        """Most parts of a view, and so most calls of a layer for it."""
        return max(self.chunks, self.text_parts)

    def layers(self) -> list[nn.Module]:
        """Returns the layers of both towers."""
        return [*self.image.layers(), *self.text.layers()]

    def components(self) -> tuple[nn.Module, ...]:
        """Returns the modules that compute features: towers and projections."""
        return self.image, self.text, self.image_projection, self.text_projection

    def forward(
        self,
        batch: Mapping[str, Tensor],
        needs: Iterable[str] = ("image", "text"),
        reduction: Reduction | None = None,
        chunks: int | None = None,
        on_feature: Callable[[str, Tensor], Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Computes the union of what is needed, each view once.

        Args:
            batch: `image*` are uint8 [n, 3, h, w]; `text*` int64 [n, tokens] with `text*_length`
                (and `text*_length.host`, the same as an array, or the device is waited for); or
                what stands in their place (`TextTower.stored`).
            needs: names of features; names the model does not make are left to others.
            reduction: which tokens are left out, by the batch's `key`; None: none are.
            chunks: parts that each view is encoded in. None: the model's `chunks`; without
                gradients one, since ranks may have unequal batches in evaluation and must call
                the towers equally often.
            on_feature: called with the name of each normalised feature and the feature, as soon as
                there is one, images' first; returns what stands for it.
        """
        chunks = chunks or (self.chunks if torch.is_grad_enabled() else 1)
        features = {"logit_scale": self.logit_scale.exp()}
        if self.logit_bias is not None:
            features["logit_bias"] = self.logit_bias
        needs = set(needs)
        views = dict.fromkeys(view_of(name) for name in sorted(needs, key=_main_first))
        tokens: list[tuple[int, Tensor]] = []
        for view in views:
            tower = view.rpartition("/")[2].split(".")[0]
            has_tokens = f"{view}.tokens" in needs
            if tower == "image":
                encode = self._image_states if has_tokens else self._image_vectors
                made, patches = self._encode_images(encode, view, batch, reduction, chunks)
                if f"{view}.hidden" in needs:
                    features[f"{view}.hidden"] = _hidden(patches, view)
            elif tower == "text":
                captions, length = self._captions(view, batch, reduction, chunks)
                encode = self._text_states if has_tokens else self._text_vectors
                made = captions.restored(parts.encode(encode, captions.parts, chunks > 1))
                if length is not None:
                    tokens.append((captions.computed, length))
            else:
                continue
            raw = made[".raw"]
            features |= {
                view + form: value
                for form, value in made.items()
                if form == ".raw" or view + form in needs
            }
            unit = F.normalize(raw.float() if raw.dtype.itemsize < 4 else raw, dim=-1)
            features[view] = unit if on_feature is None else on_feature(view, unit)
        return features | _per_caption(tokens)

    def _encode_images(
        self,
        encode: Callable[..., dict[str, Tensor]],
        view: str,
        batch: Mapping[str, Tensor],
        reduction: Reduction | None,
        chunks: int,
    ) -> tuple[dict[str, Tensor], Patches | None]:
        image, patches = batch[view], None
        # Drawn for the whole batch: what is kept does not depend on the parts.
        if reduction is not None and reduction.image is not None:
            image = reduction.image.pixels(image)
            grid = self.image.grid(image)  # type: ignore[operator] - see ImageTower
            patches = reduction.image.keep(grid, batch[_key_of(view)], view, reduction)
        given = () if patches is None else (patches.kept, patches.hidden)
        return parts.encode(encode, parts.split((image, *given), chunks), chunks > 1), patches

    def _captions(
        self, view: str, batch: Mapping[str, Tensor], reduction: Reduction | None, chunks: int
    ) -> tuple[parts.Captions, Int64[Tensor, " n"] | None]:
        if self.text.stored is not None:
            stream, slash, entry = view.rpartition("/")
            own = self.text.stored + entry.removeprefix("text")
            stored = batch.get(f"{stream}{slash}{own}")
            if stored is not None:
                return parts.Captions(parts.split((stored,), chunks), None, 0), None
        text, length = batch[view], batch[f"{view}_length"]
        # Reducers only shorten captions, so that lengths known before are long enough.
        known = cast("np.ndarray | None", batch.get(f"{view}_length.host"))
        if reduction is not None and reduction.text is not None:
            keys = batch[_key_of(view)]
            text, length = reduction.text.tokens(text, length, keys, view, reduction)
        if not (self.text_parts and self.text.ignores_padding):
            return parts.whole(text, length, chunks), length
        if self.text.takes_packed(*(self.computes_on or self._computes_on(text.device.type))):
            return parts.packed(text, length, chunks, self.context_length, known), length
        num_parts = max(chunks, self.text_parts) if torch.is_grad_enabled() else chunks
        return parts.trimmed(text, length, num_parts, self.context_length, known), length

    def _computes_on(self, device_type: str) -> tuple[str, torch.dtype]:
        if device_type != "meta" and torch.is_autocast_enabled(device_type):
            return device_type, torch.get_autocast_dtype(device_type)
        return device_type, next(self.text.parameters(), self.logit_scale).dtype

    def project_image(
        self,
        image: UInt8[Tensor, "n 3 h w"],
        kept: Int64[Tensor, "n k"] | None = None,
        hidden: Bool[Tensor, "n k"] | None = None,
    ) -> Float[Tensor, "n d"]:
        """Image embeddings before normalisation; see `reducers.base.Patches`."""
        return self._image_vectors(image, kept, hidden)[".raw"]

    def project_text(self, text: Ids, text_length: Lengths) -> Float[Tensor, "n d"]:
        """Text embeddings before normalisation."""
        return self._text_vectors(text, text_length)[".raw"]

    def _image_vectors(self, image: Tensor, *patches: Tensor | None) -> dict[str, Tensor]:
        # Not every tower knows patches, and not every one that does has a mask token.
        pooled = self.image(image, *(indices for indices in patches if indices is not None))
        pooled = _pooled(self.image, pooled, len(image))
        return {".pooled": pooled, ".raw": self.image_projection(pooled)}

    def _image_states(self, image: Tensor, *patches: Tensor | None) -> dict[str, Tensor]:
        given = (indices for indices in patches if indices is not None)
        states, pooled = self.image.states(image, *given)
        pooled = _pooled(self.image, pooled, len(image))
        return {".tokens": states, ".pooled": pooled, ".raw": self.image_projection(pooled)}

    def _text_vectors(self, text: Ids | Packed, *text_length: Lengths) -> dict[str, Tensor]:
        pooled = _pooled(self.text, self.text(text, *text_length), len(text))
        return {".pooled": pooled, ".raw": self.text_projection(pooled)}

    def _text_states(self, text: Ids | Packed, *text_length: Lengths) -> dict[str, Tensor]:
        states, pooled = self.text.states(text, *text_length)
        pooled = _pooled(self.text, pooled, len(text))
        if isinstance(text, Packed):
            states = text.padded(states, self.context_length)
        else:  # parts of a batch are trimmed to lengths of their own
            states = F.pad(states, (0, 0, 0, self.context_length - states.shape[1]))
        return {".tokens": states, ".pooled": pooled, ".raw": self.text_projection(pooled)}

    def encode_image(
        self, image: UInt8[Tensor, "n 3 h w"], form: Form = ""
    ) -> Float[Tensor, "n *d"]:
        """Image embeddings: normalised in float32 (or float64), or in another form as it is."""
        name = f"image{form}"
        return self({"image": image}, (name,))[name]

    def encode_text(
        self, text: Ids, text_length: Lengths, form: Form = ""
    ) -> Float[Tensor, "n *d"]:
        """Text embeddings: normalised in float32 (or float64), or in another form as it is."""
        name = f"text{form}"
        return self({"text": text, "text_length": text_length}, (name,))[name]

    def bounds(self) -> list[tuple[nn.Parameter, float, float]]:
        """Returns the stored scale's bounds, which are those of its exponential, in logarithms."""
        lowest, highest = self.logit_scale_bounds
        return [(self.logit_scale, math.log(lowest), math.log(highest))]


def view_of(feature: str) -> str:
    """Returns the view that a feature is made of: `image.strong_1` of `image.strong_1.pooled`."""
    for form in FORMS:
        feature = feature.removesuffix(form)
    return feature


def _main_first(name: str) -> tuple[str, str]:
    stream, _, view = name.rpartition("/")
    return stream, view


def _key_of(view: str) -> str:
    """Returns the entry with the samples' keys, of the view's stream."""
    stream, slash, _ = view.rpartition("/")
    return f"{stream}{slash}key"


def _hidden(patches: Patches | None, view: str) -> Int64[Tensor, "n k"]:
    if patches is None or patches.hidden is None:
        raise ValueError(
            f"a term reads which patches of '{view}' are hidden, and none are: give the phase an "
            "image_reducer that hides some, such as "
            f"counterpoint.models.reducers.on_views.OnViews with views [{view}] around MaskTokens "
            "around RandomPatches"
        )
    hidden = patches.hidden
    # As many of each image, which only the reducer knows without looking at the device.
    places = torch.nonzero_static(hidden, size=len(hidden) * patches.num_hidden)[:, 1]
    return places.view(len(hidden), patches.num_hidden) - hidden.shape[1]


def _per_caption(tokens: list[tuple[int, Int64[Tensor, " n"]]]) -> dict[str, Tensor]:
    """Token positions a caption: those computed, and those that are not padding."""
    if not tokens:
        return {}
    lengths = torch.cat([length for _, length in tokens]).float()
    computed = sum(positions for positions, _ in tokens) / len(lengths)
    return {"tokens/computed": torch.full_like(lengths[0], computed), "tokens/real": lengths.mean()}


def _projection(tower: ImageTower | TextTower, embed_dim: int, kind: Projection) -> nn.Module:
    if not hasattr(tower, "width"):
        raise ValueError(
            f"{type(tower).__name__} has no width: set self.width in its __init__ to the length of "
            "the vectors that its forward returns"
        )
    width = cast(int, tower.width)
    if kind == "none":
        if width != embed_dim:
            raise ValueError(
                f"{type(tower).__name__} has no projection and vectors of length {width}, and "
                f"embed_dim is {embed_dim}: set model.embed_dim to {width}, or the projection to "
                "linear"
            )
        return nn.Identity()
    if kind == "mlp":
        inner = (width + embed_dim) // 2
        return nn.Sequential(_linear(width, inner), nn.GELU(), _linear(inner, embed_dim))
    if kind == "wide_mlp":
        inner = 2 * embed_dim
        return nn.Sequential(_linear(width, inner, True), nn.GELU(), _linear(inner, embed_dim))
    return _linear(width, embed_dim, bias=kind == "affine")


def _linear(width: int, length: int, bias: bool = False) -> nn.Linear:
    linear = nn.Linear(width, length, bias=bias)
    nn.init.normal_(linear.weight, std=width**-0.5)
    if bias:
        nn.init.zeros_(linear.bias)
    return linear


def _pooled(
    tower: ImageTower | TextTower, states: Float[Tensor, "n width"], count: int
) -> Float[Tensor, "n width"]:
    # Shapes only, so that the host waits for nothing.
    if states.shape != (count, tower.width):
        raise ValueError(
            f"{type(tower).__name__} returned {list(states.shape)} for {count} inputs, and its "
            f"width is {tower.width}: return one vector of that length for each"
        )
    return states
