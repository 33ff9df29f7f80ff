"""An Inception U-Net: blocks of several kernels side by side, and pooling that also cuts the spectrum.

After Punn and Agarwal, 2020, "Inception U-Net architecture for semantic segmentation to identify nuclei in
microscopy cell images": kernels of 1, 3 and 5 voxels and hybrid pooling beside each other in every block,
hybrid pooling for down-steps, and the image, pooled by all strides at once, beside what the deepest block
joins. For 3 channels and 1 class in 2D their code has 3,902,519 parameters with those of pooling. This has 12
fewer: those of the norm on the image, which is left out, as images are normalised before.

Spectral pooling is that of Rippel, Snoek and Adams, 2015, "Spectral representations for convolutional neural
networks": the low frequencies alone, along each spatial axis, computed as a matrix product, which is real and
the same in every runtime.

Ours: pooling to the same size is the largest of 3 voxels an axis beside the map itself; frequencies are cut
so that the mean stays; an even number of voxels keeps one frequency less than it could. Dropout is where
`UNet` has it, and not in every block. Three dimensions are ours.

The spectrum is that of the whole tile: tiles do not give what one piece gives, and exact tiles are refused.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from monai.networks.layers.factories import Conv, Pool
from torch import Tensor, nn

from scripts.errors import InputError
from scripts.networks.blocks import Layers, Stage
from scripts.networks.unet import Encoder, EncoderLevel, Level, Part

#: Kernels that lie beside each other in a block, in voxels along each axis.
KERNELS = (1, 3, 5)


def spectral_matrix(length: int, kept: int, like: Tensor) -> Tensor:
    """What takes an axis to fewer voxels by its low frequencies: the Dirichlet kernel at the new places.

    Args:
        length: voxels of the axis.
        kept: voxels that are left, fewer than ``length``.
        like: a tensor on the device.

    Returns:
        `(kept, length)`, float32; each row sums to 1.
    """
    highest = (kept - 1) // 2
    new = torch.arange(kept, device=like.device, dtype=torch.float32) / kept
    old = torch.arange(length, device=like.device, dtype=torch.float32) / length
    angle = math.pi * (new[:, None] - old)
    below = angle.sin()
    whole = below.abs() < 1e-6  # where all frequencies meet
    ratio = (angle * (2 * highest + 1)).sin() / torch.where(whole, torch.ones_like(below), below)
    return torch.where(whole, torch.full_like(below, 2.0 * highest + 1), ratio) / length


class HybridPool(Stage):
    """The maximum and the low frequencies beside each other, and a 1x1 convolution that joins them.

    Args:
        layers: what layers are made of.
        in_channels: channels of the input, and of the output.
        stride: factor per axis; where it is 1 along all axes, the size stays.
    """

    def __init__(self, layers: Layers, in_channels: int, stride: Sequence[int]) -> None:
        super().__init__(in_channels)
        self.stride = tuple(stride)
        pool = Pool[Pool.MAX, layers.spatial_dims]
        self.pool = pool(3, 1, 1) if max(stride) == 1 else pool(self.stride, self.stride)
        self.act = layers.activation(in_channels)
        self.join = Conv[Conv.CONV, layers.spatial_dims](2 * in_channels, in_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, in_channels, H, W[, D])` to `(B, in_channels, H / stride, ...)`."""
        low = x
        for axis, stride in enumerate(self.stride):
            if stride > 1:
                length = x.shape[axis + 2]
                matrix = spectral_matrix(length, length // stride, x).to(x.dtype)
                low = (low.transpose(axis + 2, -1) @ matrix.t()).transpose(axis + 2, -1)
        return self.join(torch.cat((self.pool(x), self.act(low)), dim=1))


class InceptionBlock(Stage):
    """Convolutions of several kernels and hybrid pooling beside each other, joined by a 1x1 convolution.

    Args:
        layers: what layers are made of.
        in_channels: channels of the input.
        out_channels: the last entry counts.
        kernel_size: unused: kernels are 1, 3 and 5 voxels along each axis.
        stride: 1 along each axis.
        beside: channels of what a derived block joins beside the branches.

    Raises:
        InputError: a stride, or padding "valid", with which the branches would differ in size.
    """

    def __init__(
        self,
        layers: Layers,
        in_channels: int,
        out_channels: Sequence[int],
        kernel_size: Sequence[int],
        stride: Sequence[int],
        beside: int = 0,
    ) -> None:
        channels = out_channels[-1]
        super().__init__(channels)
        if max(stride) > 1 or layers.padding == "valid":
            raise InputError(
                f"an inception block gets the stride {tuple(stride)} and padding {layers.padding!r}: give "
                'the network a class for down, and padding "same"'
            )
        self.branches = nn.ModuleList(layers.convolution(in_channels, channels, k) for k in KERNELS)
        self.pool = HybridPool(layers, in_channels, stride)
        self.join = layers.convolution(len(KERNELS) * channels + in_channels + beside, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, in_channels, H, W[, D])` to `(B, out_channels[-1], H, W[, D])`."""
        maps = [branch(x) for branch in self.branches]
        maps.append(self.pool(x))
        return self.join(torch.cat(maps, dim=1))


class ImageBesideBlock(InceptionBlock):
    """An inception block that gets the pooled image behind its input, and joins it beside the branches.

    Arguments are those of `InceptionBlock`; ``beside`` are the channels of the image.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, in_channels + beside, H, W[, D])` to `(B, out_channels[-1], H, W[, D])`."""
        image = x[:, self.pool.out_channels :]
        x = x[:, : self.pool.out_channels]
        maps = [branch(x) for branch in self.branches]
        maps += [self.pool(x), image]
        return self.join(torch.cat(maps, dim=1))


class InceptionEncoder(Encoder):
    """An encoder whose deepest block joins the pooled image too. Arguments are those of `Encoder`.

    Raises:
        InputError: no class for down.
    """

    def __init__(
        self, layers: Layers, in_channels: int, levels: Sequence[Level], down: Part | None, dropout: float
    ) -> None:
        super().__init__(layers, in_channels, levels, down, dropout)
        if down is None:
            raise InputError("down is None: give an inception encoder a class for down, such as HybridPool")
        unit = (1,) * layers.spatial_dims
        strides = tuple(math.prod(axis) for axis in zip(*self.strides, strict=True))
        self.image = HybridPool(layers, in_channels, strides)
        self.reduce = down(layers=layers, in_channels=self.out_channels[-2], stride=self.strides[-1])
        deepest = replace(levels[-1], block=partial(ImageBesideBlock, beside=in_channels))
        block = deepest.make_block(layers, self.reduce.out_channels, unit)
        self.levels[-1] = EncoderLevel(None, block, unit, dropout)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map an image, `(B, in_channels, H, W[, D])`, to each level's features, high to low resolution."""
        image = x
        features: list[Tensor] = []
        for index, level in enumerate(self.levels):
            if index == len(self.levels) - 1:
                x = torch.cat((self.reduce(x), self.image(image)), dim=1)
            x = level(x)
            features.append(x)
        return features
