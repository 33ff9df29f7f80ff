"""A network that works at half the resolution and loses none of it: squares of pixels become channels.

Follows W. Shi et al., 2016, "Real-time single image and video super-resolution using an efficient sub-pixel
convolutional neural network": the logits of all pixels of a square come out as channels of one place and are
put where they belong. Here the image goes in the same way, a channel for each pixel of a square of 2 x 2 (in
3D of a cube). What lies between has a quarter of the places (in 3D an eighth), and with the same kernels sees
twice as far. The paper has no U-Net between the two; that is ours.
"""

from __future__ import annotations

from collections.abc import Sequence

from monai.networks.layers.factories import Conv
from torch import Tensor

from scripts.errors import require_within
from scripts.networks.blocks import Layers, Stage
from scripts.networks.unet import Assembly, Encoder, Level, Part


def fold(x: Tensor, factor: int) -> Tensor:
    """Make channels of the voxels of each cube.

    Args:
        x: `(B, C, H, W[, D])`, sizes that are multiples of the factor.
        factor: edge of a cube.

    Returns:
        `(B, C * factor^axes, H / factor, W / factor[, D / factor])`.
    """
    split, places, within = [x.shape[0], x.shape[1]], [0], [1]
    for axis, size in enumerate(x.shape[2:]):
        split += [size // factor, factor]
        places += [2 + 2 * axis]
        within += [3 + 2 * axis]
    order = places[:1] + within + places[1:]
    return x.reshape(split).permute(order).flatten(1, len(within))


def unfold(x: Tensor, factor: int) -> Tensor:
    """Put channels back to where `fold` took them from."""
    axes, cube = x.dim() - 2, 1
    for _ in range(axes):
        cube *= factor
    split, order, size = [x.shape[0], x.shape[1] // cube], [0, 1], [x.shape[0], x.shape[1] // cube]
    for axis in range(axes):
        split += [factor]
        order += [2 + axes + axis, 2 + axis]
        size += [x.shape[2 + axis] * factor]
    split += list(x.shape[2:])
    return x.reshape(split).permute(order).reshape(size)


class FoldedEncoder(Assembly):
    """An encoder of the folded image. Arguments are those of `Encoder`, and:

    Args:
        factor: edge of the cubes of voxels that become channels, 1 or more.
    """

    def __init__(
        self,
        layers: Layers,
        in_channels: int,
        levels: Sequence[Level],
        down: Part | None,
        dropout: float,
        factor: int = 2,
    ) -> None:
        super().__init__(())
        require_within("factor", factor, 1)
        self.factor = factor
        self.folded = Encoder(layers, in_channels * factor**layers.spatial_dims, levels, down, dropout)
        self.out_channels = self.folded.out_channels
        self.strides = self.folded.strides

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map an image, `(B, in_channels, H, W[, D])`, to each level's features, high to low resolution."""
        return self.folded(fold(x, self.factor))


class UnfoldedHeads(Stage):
    """A 1x1 convolution on the highest map, to the logits of all voxels of a cube, put into their places.

    Args:
        layers: what layers are made of.
        in_channels: channels of the decoder's maps, from low to high resolution.
        out_channels: channels of the logits.
        factor: as of `FoldedEncoder`.
    """

    def __init__(
        self, layers: Layers, in_channels: Sequence[int], out_channels: int, factor: int = 2
    ) -> None:
        super().__init__(out_channels)
        require_within("factor", factor, 1)
        self.factor = factor
        head = Conv[Conv.CONV, layers.spatial_dims]
        self.main = head(in_channels[-1], out_channels * factor**layers.spatial_dims, 1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Logits of the image, `(B, out_channels, H, W[, D])`."""
        return unfold(self.main(maps[-1]), self.factor)
