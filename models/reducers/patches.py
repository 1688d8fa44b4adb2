"""Image reducers: fewer patches (random, one of each window, one block), or smaller images.

In: the grid of patches and sample keys. Out: rising indices of the kept patches, as many for every
sample, so that the tower's sequences are really shorter.
"""

import math

import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.nn import functional as F

from .base import Grid, ImageReducer, Keys, Patches, Reduction, WrappedReducer


class RandomPatches(ImageReducer):
    """Keeps `int(patches * (1 - drop))` patches, every subset of that size equally likely.

    Li et al., "Scaling Language-Image Pre-training via Masking" (FLIP, 2023), section 3.

    Args:
        drop: fraction of the patches left out.

    Raises:
        ValueError: `drop` is outside 0 .. 1.
    """

    def __init__(self, drop: float = 0.5):
        self.drop = _checked_drop(type(self).__name__, drop)

    def keep(self, grid: Grid, keys: Keys, view: str, reduction: Reduction) -> Patches:
        """Keeps the patches with the lowest random numbers."""
        num_patches = grid[0] * grid[1]
        num_kept = max(1, int(num_patches * (1 - self.drop)))
        # Stable, so that equal numbers too are ordered alike on every device.
        order = reduction.draw(keys, view, num_patches).argsort(dim=1, stable=True)
        return Patches(order[:, :num_kept].sort(dim=1).values)


class GridPatches(ImageReducer):
    """Keeps one patch, chosen at random, of each window of the grid.

    Windows at the right and lower edge are smaller where the grid does not divide. Li et al., "An
    Inverse Scaling Law for CLIP Training" (CLIPA, 2023), section 3 ("grid mask").

    Args:
        window: side of a window in patches.

    Raises:
        ValueError: `window` is below 1.
    """

    def __init__(self, window: int = 2):
        if window < 1:
            raise ValueError(f"GridPatches has window={window}; give 2 to keep a quarter")
        self.window = window

    def keep(self, grid: Grid, keys: Keys, view: str, reduction: Reduction) -> Patches:
        """Keeps patch number `draw mod size` of each window."""
        starts = [torch.arange(0, n, self.window, device=keys.device) for n in grid]
        tops, lefts = (x.flatten() for x in torch.meshgrid(*starts, indexing="ij"))
        heights = (grid[0] - tops).clamp(max=self.window)
        widths = (grid[1] - lefts).clamp(max=self.window)
        chosen = reduction.draw(keys, view, len(tops)) % (heights * widths)
        rows, columns = tops + chosen // widths, lefts + chosen % widths
        return Patches((rows * grid[1] + columns).sort(dim=1).values)


class BlockPatches(ImageReducer):
    """Keeps one contiguous block of the grid's shape; all positions are equally likely.

    Both sides are scaled by sqrt(1 - drop) and rounded. Li et al., "An Inverse Scaling Law for CLIP
    Training" (CLIPA, 2023), section 3 ("block mask").

    Args:
        drop: fraction of the patches left out.

    Raises:
        ValueError: `drop` is outside 0 .. 1.
    """

    def __init__(self, drop: float = 0.75):
        self.drop = _checked_drop(type(self).__name__, drop)

    def keep(self, grid: Grid, keys: Keys, view: str, reduction: Reduction) -> Patches:
        height, width = (max(1, round(n * math.sqrt(1 - self.drop))) for n in grid)
        down, right = reduction.draw(keys, view, 2).unbind(1)
        top, left = down % (grid[0] - height + 1), right % (grid[1] - width + 1)
        rows = torch.arange(height, device=keys.device)[:, None]
        block = rows * grid[1] + torch.arange(width, device=keys.device)
        return Patches((top * grid[1] + left)[:, None] + block.flatten())


class Resize(WrappedReducer):
    """Makes the images smaller (bicubic, antialiased); the tower resamples its positions.

    The reduction that costs CLIPA least accuracy; also the resolution of a phase. Li et al., "An
    Inverse Scaling Law for CLIP Training" (CLIPA, 2023), section 3.

    Args:
        size: side in pixels, a multiple of the tower's patches.
        then: applied to the smaller images.

    Raises:
        ValueError: `size` is below 1.
    """

    def __init__(self, size: int, then: ImageReducer | None = None):
        if size < 1:
            raise ValueError(f"Resize has size={size}; give a side in pixels")
        super().__init__(then or ImageReducer())
        self.size = size

    def pixels(self, image: UInt8[Tensor, "n 3 h w"]) -> UInt8[Tensor, "n 3 s s"]:
        size = (self.size, self.size)
        if min(image.shape[-2:]) < self.size:
            raise ValueError(
                f"Resize has size={self.size} and images are {image.shape[-2]} x "
                f"{image.shape[-1]}; set the model's image_size to the largest size of all phases"
            )
        if image.shape[-2:] == size:
            smaller = image
        elif image.is_cuda:
            # There is no kernel for uint8. The CPU's also rounds between its two passes, so that
            # pixels may differ by a grey level, next to hard edges by a few.
            smaller = F.interpolate(image.float(), size, mode="bicubic", antialias=True)
            smaller = smaller.round_().clamp_(0, 255).to(torch.uint8)
        else:
            smaller = F.interpolate(image, size, mode="bicubic", antialias=True)
        return super().pixels(smaller)


def _checked_drop(name: str, drop: float) -> float:
    if not 0 <= drop < 1:
        raise ValueError(
            f"{name} has drop={drop}; give a fraction of the patches, 0 or more, below 1"
        )
    return drop
