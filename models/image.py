"""Image towers: uint8 pixels in, one pooled vector an image out.

Pixels travel to the device as uint8; the stem here turns them into normalised floats. Where a token
reducer keeps some patches only, the others are dropped as pixels, before anything is computed.
"""

from collections.abc import Sequence
from typing import Any

import timm
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from timm.layers.patch_embed import PatchEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from .layers import Tower, repeated_layers

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
# Arguments of timm.create_model that name weights begin with one of these.
WEIGHTS = ("pretrained", "checkpoint_path")


class PixelStem(nn.Module):
    """Normalises uint8 pixels channel by channel; mean and std are in units of [0, 1]."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        shape = (1, len(mean), 1, 1)
        self.register_buffer("mean", torch.tensor(mean).view(shape) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(std).view(shape) * 255, persistent=False)

    def forward(self, image: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 h w"]:
        """Returns (pixels - mean) / std in the buffers' dtype."""
        # Loaders hand over channels last. In one layout, sums run in one order.
        pixels = image.to(self.mean.dtype, memory_format=torch.contiguous_format)
        return (pixels - self.mean) / self.std


class ImageTower(Tower):
    """What an image tower must offer: `forward(uint8 [n, 3, h, w], keep=None) -> [n, width]`.

    `keep` [n, k] are rising indices of the patches that it sees, of those that `grid` counts. After
    `learn_mask_token` it also takes `hidden` [n, k]: which of them the mask token stands for.

    Attributes:
        image_size: side of the square input in pixels.
        has_class_token: whether the first token that enters the layers is a class token; the
            patches are the last ones.
    """

    image_size: int
    has_class_token: bool = False

    def load_pretrained(self) -> str:
        """Loads the weights that the configuration asks for; once, when a run starts from nothing.

        Returns:
            What was loaded; "" if nothing is asked for.
        """
        return ""

    def learn_mask_token(self) -> None:
        """Adds the parameter `mask_token`, if the tower has none yet.

        Raises:
            ValueError: the tower has no tokens that could be replaced.
        """
        raise ValueError(f"{type(self).__name__} has no mask token; remove MaskTokens")

    def grid(self, image: UInt8[Tensor, "n 3 h w"]) -> tuple[int, int]:
        """Rows and columns of the patches of these images, for token reducers.

        Raises:
            ValueError: the tower has no patches that could be left out.
        """
        raise ValueError(f"{type(self).__name__} takes no image_reducer; remove it from the phases")


class TimmTower(ImageTower):
    """Any timm model that pools its features as image tower.

    Args:
        name: timm's model name, for example `vit_base_patch16_224`.
        image_size: side of the square input in pixels; models with a fixed one are made for it.
        mean, std: pixel statistics in units of [0, 1] (default: OpenAI CLIP's).
        model_args: further keyword arguments of the timm model (`embed_dim`, `depth`, ...).
        pretrained: the weights that a run starts from: true, those that timm publishes under this
            name (downloaded, unless they are in its cache); a path, those of this file. Resuming,
            evaluating and exporting a run take its own weights and ask for neither.

    Raises:
        ValueError: timm has no such model, or `model_args` names weights.
    """

    def __init__(
        self,
        name: str,
        image_size: int = 224,
        mean: tuple[float, float, float] = OPENAI_MEAN,
        std: tuple[float, float, float] = OPENAI_STD,
        model_args: dict[str, Any] | None = None,
        pretrained: bool | str = False,
    ):
        super().__init__()
        if not timm.is_model(name):
            close = ", ".join(timm.list_models(f"*{name.split('_')[0]}*")[:5])
            raise ValueError(f"timm has no model '{name}'; names that look like it: {close}")
        model_args = model_args or {}
        if weights := [key for key in model_args if key.startswith(WEIGHTS)]:
            raise ValueError(
                f"model_args has {weights[0]}, which would be loaded again at each resume and "
                "evaluation; name the weights to start from with `pretrained` beside `name`"
            )
        self.trunk = _trunk(name, image_size, model_args)
        self.has_class_token = bool(getattr(self.trunk, "has_class_token", False))
        self.pretrained = pretrained
        self.name, self.model_args = name, model_args
        self.stem = PixelStem(mean, std)
        self.image_size = image_size
        # Of what comes out: some convolutional networks have a wider layer behind the pooling.
        self.width: int = self.trunk.head_hidden_size  # type: ignore[assignment]
        self.mask_token: nn.Parameter | None = None

    def layers(self) -> Sequence[nn.Module]:
        return repeated_layers(self.trunk)

    def load_pretrained(self) -> str:
        """Replaces all weights of timm's model by the published ones, or by those of a file.

        Raises:
            ValueError: they are not to be had, or are those of another model.
        """
        if self.pretrained is False:
            return ""
        name, size, model_args = self.name, self.image_size, self.model_args
        # A file is one of tensors, whatever format timm's own weights of this name have.
        overlay = {"file": self.pretrained, "custom_load": False}
        source = {} if self.pretrained is True else {"pretrained_cfg_overlay": overlay}
        try:
            trunk = _trunk(name, size, {**model_args, **source, "pretrained": True})
        except Exception as error:  # of the network, of the hub, of timm, of torch
            reason = " ".join(str(error).split())[:200]
            fix = (
                "without a network, fetch them elsewhere and give the file's path in the place of "
                "true"
                if self.pretrained is True
                else "give a file of weights of this model, with its sizes"
            )
            raise ValueError(
                f"model.image.init_args.pretrained: {self.pretrained}: the weights of {name} "
                f"cannot be loaded ({type(error).__name__}: {reason}); {fix}, or start from random "
                "weights with false"
            ) from error
        self.trunk.load_state_dict(trunk.state_dict())
        origin = "published by timm" if self.pretrained is True else f"from {self.pretrained}"
        return f"image tower: weights of {name} {origin}"

    def learn_mask_token(self) -> None:
        """Adds the parameter `mask_token` [width], zero at first, if the tower has none yet.

        Raises:
            ValueError: timm's model is no plain ViT.
        """
        if (trunk := self._vit()) is None:
            raise ValueError(
                f"the image tower is a {type(self.trunk).__name__}, which has no tokens to replace "
                "by a mask token; remove MaskTokens from the phases, or use a vit_* model"
            )
        if self.mask_token is None:
            self.mask_token = nn.Parameter(torch.zeros(trunk.embed_dim))

    def grid(self, image: UInt8[Tensor, "n 3 h w"]) -> tuple[int, int]:
        """Rows and columns of the patches of these images.

        Raises:
            ValueError: timm's model is no plain ViT, or the images do not divide into patches.
        """
        trunk = self._vit()
        if trunk is None:
            raise ValueError(
                f"the image tower is a {type(self.trunk).__name__}, and image_reducer needs a "
                "plain timm VisionTransformer; remove it from the phases, or use a vit_* model"
            )
        (height, width), (rows, columns) = image.shape[-2:], trunk.patch_embed.patch_size
        if height % rows or width % columns:
            raise ValueError(
                f"images of {height} x {width} pixels do not divide into the image tower's "
                f"patches of {rows} x {columns}; use a size of {height // rows * rows}"
            )
        return height // rows, width // columns

    def forward(
        self,
        image: UInt8[Tensor, "n 3 h w"],
        keep: Int64[Tensor, "n k"] | None = None,
        hidden: Bool[Tensor, "n k"] | None = None,
    ) -> Float[Tensor, "n width"]:
        """Returns the pooled vector of each image, before projection and normalisation.

        A ViT takes images of any size that divides into its patches: its positions are resampled
        and none of its parameters changes shape.

        Args:
            image: pixels.
            keep: rising indices of the patches to encode; None: all. Li et al. (FLIP, 2023).
            hidden: which of these the mask token replaces; None: none.
        """
        if not self._embeds_itself(image, keep):
            pooled = self.trunk(self.stem(image))
        else:
            tokens, trunk = self.tokens(image, keep, hidden)
            pooled = trunk.forward_head(trunk.norm(trunk.blocks(tokens)))
        # Every step has a gradient for every parameter, if only zero: data-parallel training waits.
        return pooled if self.mask_token is None else pooled + 0.0 * self.mask_token.sum()

    def states(  # type: ignore[override] - the tower's own inputs
        self,
        image: UInt8[Tensor, "n 3 h w"],
        keep: Int64[Tensor, "n k"] | None = None,
        hidden: Bool[Tensor, "n k"] | None = None,
    ) -> tuple[Float[Tensor, "n tokens d"], Float[Tensor, "n width"]]:
        """Returns the last states, class and register tokens first, and the pooled vectors.

        Of a convolutional network, the places of its last map, row by row.
        """
        network: Any = self.trunk
        if not self._embeds_itself(image, keep):
            states = network.forward_features(self.stem(image))
        else:
            tokens, trunk = self.tokens(image, keep, hidden)
            states = trunk.norm(trunk.blocks(tokens))
        pooled = network.forward_head(states)
        if self.mask_token is not None:
            pooled = pooled + 0.0 * self.mask_token.sum()
        if states.ndim == 4:
            is_channels_last = getattr(network, "output_fmt", "NCHW") == "NHWC"
            states = states.flatten(1, 2) if is_channels_last else states.flatten(2).mT
        return states, pooled

    def tokens(
        self,
        image: UInt8[Tensor, "n 3 h w"],
        keep: Int64[Tensor, "n k"] | None = None,
        hidden: Bool[Tensor, "n k"] | None = None,
    ) -> tuple[Float[Tensor, "n t d"], VisionTransformer]:
        """Returns what enters the first block, and the ViT.

        What timm computes, except that patches are chosen before they are normalised.

        Raises:
            ValueError: see `grid`.
        """
        grid, trunk, num_images = self.grid(image), self._vit(), len(image)
        assert trunk is not None
        patches = image.unflatten(-1, (grid[1], -1)).unflatten(-3, (grid[0], -1))
        patches = patches.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)  # [n, patches, 3, p, p]
        if keep is not None:
            patches = patches[torch.arange(num_images, device=image.device)[:, None], keep]
        embed = trunk.patch_embed
        pixels = self.stem(patches.flatten(0, 1)).flatten(1).unflatten(0, (num_images, -1))
        x = embed.norm(F.linear(pixels, embed.proj.weight.flatten(1), embed.proj.bias))
        if hidden is not None:
            assert self.mask_token is not None
            x = torch.where(hidden[:, :, None], self.mask_token, x)
        prefix: list[Tensor] = [p for p in (trunk.cls_token, trunk.reg_token) if p is not None]
        if trunk.pos_embed is not None:
            num_positions = 0 if trunk.no_embed_class else trunk.num_prefix_tokens
            positions = trunk.pos_embed[0]
            if num_positions:
                prefix = [torch.cat(prefix, dim=1) + positions[:num_positions]]
            places = resampled(positions[num_positions:], embed.grid_size, grid)
            x = x + (places if keep is None else F.embedding(keep, places))
        x = torch.cat([*(p.expand(num_images, -1, -1) for p in prefix), x], dim=1)
        return trunk.norm_pre(trunk.patch_drop(trunk.pos_drop(x))), trunk

    def _embeds_itself(self, image: Tensor, keep: Tensor | None) -> bool:
        """Whether patches are embedded by `tokens`, not by timm.

        They are where some are left out, or images have another size. And on GPUs: a product of
        patches is what a convolution of them makes, in fewer kernels.
        """
        if (trunk := self._vit()) is None:
            return keep is not None
        if keep is not None or image.shape[-2:] != (self.image_size, self.image_size):
            return True
        sides = trunk.patch_embed.patch_size
        return image.is_cuda and not any(self.image_size % side for side in sides)

    def _vit(self) -> VisionTransformer | None:
        """The trunk, if its forward is the one that is repeated here."""
        if type(self.trunk) is VisionTransformer and type(self.trunk.patch_embed) is PatchEmbed:
            return self.trunk
        return None


def _trunk(name: str, image_size: int, model_args: dict[str, Any]) -> nn.Module:
    """Makes timm's model, for the size of the images if it has to know that."""
    sized: dict[str, Any] = {"img_size": image_size, **model_args}
    try:
        return timm.create_model(name, num_classes=0, **sized)
    except TypeError as error:
        # Signatures do not show it: many constructors only pass their arguments on.
        if "img_size" in model_args or "'img_size'" not in str(error):
            raise
        return timm.create_model(name, num_classes=0, **model_args)


def resampled(
    positions: Float[Tensor, "old d"], old: tuple[int, int], new: tuple[int, int]
) -> Float[Tensor, "new d"]:
    """Position embeddings of one grid at the places of another (bicubic, antialiased).

    What timm's `resample_abs_pos_embed` computes, as a product with the matrix of the resampling:
    its backward is deterministic on GPUs, where that of `interpolate` is not.
    """
    if old == new:
        return positions
    units = torch.eye(len(positions), device=positions.device).view(-1, 1, *old)
    matrix = F.interpolate(units, new, mode="bicubic", antialias=True).flatten(1).T
    # Without memory (device `meta`, where FLOPs are counted) there is no autocast to turn off.
    with torch.autocast("cpu" if positions.is_meta else positions.device.type, enabled=False):
        return matrix.to(positions.dtype) @ positions
