"""One transformer for both modalities (AlignCLIP): images and captions differ in embeddings only.

In: uint8 pixels, or token ids. Out: one pooled vector each, of the same width. The image's side
owns the transformer, its last norm and the projection; the caption's side borrows them. Eslami and
de Melo, "Mitigate the Gap" (2024), section 3.1.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64, UInt8
from timm.models.vision_transformer import Block, init_weights_vit_jax
from torch import Tensor, nn
from torch.nn import functional as F

from .image import OPENAI_MEAN, OPENAI_STD, ImageTower, PixelStem
from .text.base import Ids, Lengths, TextTower, at_end


class SharedImageTower(ImageTower):
    """A plain ViT with a class token, whose blocks captions go through, too.

    Args:
        image_size: side of the square input in pixels.
        patch_size: side of a patch in pixels.
        width, depth, num_heads: of the transformer.
        mlp_ratio: hidden width of the MLPs as a multiple of `width`.
        mean, std: pixel statistics in units of [0, 1] (default: OpenAI CLIP's).

    Raises:
        ValueError: images do not divide into patches, or the width into heads.
    """

    has_class_token = True

    def __init__(
        self,
        image_size: int = 224,
        patch_size: int = 16,
        width: int = 512,
        depth: int = 12,
        num_heads: int = 8,
        mlp_ratio: float = 4.0,
        mean: tuple[float, float, float] = OPENAI_MEAN,
        std: tuple[float, float, float] = OPENAI_STD,
    ):
        super().__init__()
        if image_size % patch_size or width % num_heads:
            raise ValueError(
                f"image_size {image_size} must divide by patch_size {patch_size}, and width "
                f"{width} by num_heads {num_heads}"
            )
        self.image_size, self.patch_size, self.width = image_size, patch_size, width
        self.stem = PixelStem(mean, std)
        self.patches = nn.Linear(3 * patch_size**2, width)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        num_patches = (image_size // patch_size) ** 2
        self.positions = nn.Parameter(torch.empty(1 + num_patches, width))
        self.blocks = nn.ModuleList(
            Block(width, num_heads, mlp_ratio, qkv_bias=True) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        for name, module in self.named_modules():
            init_weights_vit_jax(module, name)
        nn.init.normal_(self.positions, std=0.02)

    def layers(self) -> Sequence[nn.Module]:
        # The captions' tower, which borrows the blocks, has none of its own.
        return list(self.blocks)

    def grid(self, image: UInt8[Tensor, "n 3 h w"]) -> tuple[int, int]:
        """Rows and columns of the patches, for token reducers.

        Raises:
            ValueError: the images are not of the size that the positions are for.
        """
        if image.shape[-2:] != (self.image_size, self.image_size):
            raise ValueError(
                f"images of {image.shape[-2]} x {image.shape[-1]} pixels: a SharedImageTower "
                f"takes {self.image_size} x {self.image_size} only; remove the reducer's resize"
            )
        side = self.image_size // self.patch_size
        return side, side

    def forward(
        self, image: UInt8[Tensor, "n 3 h w"], keep: Int64[Tensor, "n k"] | None = None
    ) -> Float[Tensor, "n width"]:
        """Returns the state of each image's class token.

        Args:
            image: pixels.
            keep: rising indices of the patches to encode; None: all.
        """
        return self.states(image, keep)[1]

    def states(  # type: ignore[override] - the tower's own inputs
        self, image: UInt8[Tensor, "n 3 h w"], keep: Int64[Tensor, "n k"] | None = None
    ) -> tuple[Float[Tensor, "n tokens width"], Float[Tensor, "n width"]]:
        self.grid(image)
        x = F.unfold(self.stem(image), self.patch_size, stride=self.patch_size).mT
        positions = self.positions[1:].expand(len(x), -1, -1)
        if keep is not None:
            samples = torch.arange(len(x), device=x.device)[:, None]
            x, positions = x[samples, keep], positions[samples, keep]
        first = (self.class_token + self.positions[0]).expand(len(x), -1, -1)
        x = torch.cat([first, self.patches(x) + positions], dim=1)
        states = self.encoded(x, is_causal=False)
        return states, states[:, 0]

    def encoded(
        self, x: Float[Tensor, "n tokens width"], is_causal: bool
    ) -> Float[Tensor, "n tokens width"]:
        """The transformer and its norm."""
        for block in self.blocks:
            x = block(x, is_causal=is_causal)
        return self.norm(x)


class SharedTextTower(TextTower):
    """Captions through the transformer and the projection of a `SharedImageTower`.

    Own are the token embedding and the positions. Attention is causal, and the state at the
    end-of-text token is the caption's: padding after it changes nothing.

    Args:
        width: of the transformer.
        context_length: longest caption in tokens, start and end included.
        vocab_size: number of token ids (CLIP's BPE has 49,408).
    """

    ignores_padding = True

    def __init__(self, width: int = 512, context_length: int = 77, vocab_size: int = 49408):
        super().__init__()
        self.width, self.context_length = width, context_length
        self.tokens = nn.Embedding(vocab_size, width)
        self.positions = nn.Parameter(torch.empty(context_length, width))
        nn.init.normal_(self.tokens.weight, std=0.02)
        nn.init.normal_(self.positions, std=0.01)
        # Borrowed, not owned: parameters are registered once, with the image's tower.
        self._lender: tuple[SharedImageTower, ...] = ()

    def borrow(self, model: nn.Module) -> None:
        """Takes over the transformer and the projection of the image's side.

        Raises:
            ValueError: the image tower is of another kind or width.
        """
        image = model.image
        if not isinstance(image, SharedImageTower) or image.width != self.width:
            raise ValueError(
                f"the text tower borrows the image tower's transformer of width {self.width}, and "
                f"model.image is a {type(image).__name__} of width {getattr(image, 'width', 0)}: "
                "use counterpoint.models.shared.SharedImageTower with the same width"
            )
        self._lender = (image,)
        model.text_projection = model.image_projection

    def forward(self, text: Ids, text_length: Lengths) -> Float[Tensor, "n width"]:
        """Returns the state at position `text_length - 1` (the end of text) of each caption."""
        return self.states(text, text_length)[1]

    def states(  # type: ignore[override] - the tower's own inputs
        self, text: Ids, text_length: Lengths
    ) -> tuple[Float[Tensor, "n tokens width"], Float[Tensor, "n width"]]:
        assert self._lender, "TwoTower lets the text tower borrow"
        x = self.tokens(text) + self.positions[: text.shape[1]]
        states = self._lender[0].encoded(x, is_causal=True)
        return states, at_end(states, text_length)
