"""Layers that read every position of a map, in networks built for one size of images."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from anytime.support.units import ImageSize, image_size


class Grid(nn.Module):
    """The cells of an h x w grid side by side: `[B, C, H, W]` to `[B, C h w]`.

    A map of another size is averaged over the cells of the grid first, so that the layer after it takes images of any size.
    """

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.size = (height, width)

    def forward(self, h: Tensor) -> Tensor:
        same = tuple(h.shape[2:]) == self.size
        return (h if same else F.adaptive_avg_pool2d(h, self.size)).flatten(1)

    def extra_repr(self) -> str:
        return f"{self.size[0]}, {self.size[1]}"


def nominal_size(in_channels: int, given: ImageSize | None, default: int, smallest: int = 1) -> tuple[int, int]:
    """(height, width) of the images that a network is built for.

    Args:
        in_channels: C of the network.
        given: (channels, height, width), or the side of square images; None: the default.
        default: Side of square images.
        smallest: Height and width that the network needs.

    Raises:
        ValueError: It has other channels, or is too small.
    """
    if given is None or isinstance(given, int):
        given = (in_channels, *(2 * (default if given is None else given,)))
    channels, height, width = image_size(given)
    if channels != in_channels:
        raise ValueError(f"input_size must be (channels, height, width) with in_channels={in_channels}, got {tuple(given)}")
    if min(height, width) < smallest:
        raise ValueError(f"input_size must be at least {smallest}x{smallest} pixels, got {height}x{width}")
    return height, width
