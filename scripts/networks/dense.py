"""Fully convolutional DenseNet: blocks in which each convolution sees the maps of all before it.

Follows Jegou, Drozdzal, Vazquez, Romero and Bengio, 2017, "The one hundred layers tiramisu: fully
convolutional DenseNets for semantic segmentation": norm, activation and then the convolution; only the maps
that the block below made are enlarged, by transposed convolutions of 3 with stride 2, cut to the size of the
skip; the last block keeps its input.

Where it departs: dropout is where `UNet` has it, at the end of the two deepest levels of the encoder, and not
after each convolution. Three dimensions are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from monai.networks.layers.factories import Conv
from torch import Tensor, nn

from scripts.errors import InputError
from scripts.networks.blocks import Axes, Layers, MaxPool, Stage, centre_crop
from scripts.networks.unet import Decoder, Encoder, Level, Part


class DenseBlock(Stage):
    """Convolutions that each see the block's input and the maps of all before them.

    Args:
        layers: what layers are made of.
        in_channels: channels of the input.
        out_channels: new channels of each convolution, one entry per convolution: the growth.
        kernel_size: odd kernel size of every convolution, one entry per axis.
        stride: 1 along each axis.
        only_new: give the new maps alone; else the input goes out too, before them.

    Raises:
        InputError: a stride, which no map that goes out beside others can take.
    """

    def __init__(
        self,
        layers: Layers,
        in_channels: int,
        out_channels: Sequence[int],
        kernel_size: Sequence[int],
        stride: Sequence[int],
        only_new: bool = False,
    ) -> None:
        super().__init__(sum(out_channels) + (0 if only_new else in_channels))
        if max(stride) > 1:
            raise InputError(
                f"a dense block gets the stride {tuple(stride)}: give the network a class for down"
            )
        if layers.padding == "valid":
            raise InputError('padding is "valid": use "same" for dense blocks, whose maps are of one size')
        self.only_new = only_new
        self.steps = nn.ModuleList()
        for channels in out_channels:
            self.steps.append(layers.preactivated(in_channels, channels, kernel_size))
            in_channels += channels

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, in_channels, H, W[, D])` to `(B, out_channels, H, W[, D])`."""
        maps = [x]
        for step in self.steps:
            maps.append(step(torch.cat(maps, dim=1)))
        return torch.cat(maps[1:] if self.only_new else maps, dim=1)


class TransitionDown(Stage):
    """Norm, activation, a 1x1 convolution that keeps the channels, and max pooling.

    Args:
        layers: what layers are made of.
        in_channels: channels of the input, and of the output.
        stride: factor per axis.
    """

    def __init__(self, layers: Layers, in_channels: int, stride: Sequence[int]) -> None:
        super().__init__(in_channels)
        self.convolution = layers.preactivated(in_channels, in_channels, 1)
        self.pool = MaxPool(layers, in_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, in_channels, H, W[, D])` to `(B, in_channels, H / stride, ...)`."""
        return self.pool(self.convolution(x))


class TransitionUp(Stage):
    """Enlarge by a transposed convolution whose kernel is one longer than its stride; the end is cut.

    Args:
        layers: what layers are made of.
        in_channels: channels that come from the level below, and of the output.
        out_channels: channels of the level that is entered, which change nothing here.
        stride: factor per axis.
    """

    def __init__(self, layers: Layers, in_channels: int, out_channels: int, stride: Sequence[int]) -> None:
        super().__init__(in_channels)
        self.stride = tuple(stride)
        kernel = tuple(s + 1 if s > 1 else 1 for s in self.stride)
        convolution = Conv[Conv.CONVTRANS, layers.spatial_dims]
        self.convolution = convolution(in_channels, in_channels, kernel, stride=self.stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, in_channels, H, W[, D])` to `(B, in_channels, H * stride, ...)`."""
        size: list[int] = []
        for axis, stride in enumerate(self.stride):
            size.append(x.shape[axis + 2] * stride)
        return centre_crop(self.convolution(x), size)


class DenseEncoder(Encoder):
    """A first convolution and dense levels, of which the deepest gives its new maps alone.

    Args:
        layers: see `Encoder`, as are the others.
        in_channels: channels of the image.
        levels: from high to low resolution, with dense blocks.
        down: class of the down-steps.
        dropout: see `Encoder`.
        stem: channels of the first convolution, a 3x3 without norm and activation.
    """

    def __init__(
        self,
        layers: Layers,
        in_channels: int,
        levels: Sequence[Level],
        down: Part | None,
        dropout: float,
        stem: int = 48,
    ) -> None:
        *others, deepest = levels
        super().__init__(layers, stem, [*others, _only_new(deepest)], down, dropout)
        self.stem = replace(layers, norm=None).convolution(in_channels, stem, 3, act=False)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map an image, `(B, in_channels, H, W[, D])`, to each level's features, high to low resolution."""
        x = self.stem(x)
        features: list[Tensor] = []
        for level in self.levels:
            x = level(x)
            features.append(x)
        return features


class DenseDecoder(Decoder):
    """A decoder whose levels give their new maps alone, but for the highest. Arguments are `Decoder`'s."""

    def __init__(
        self,
        layers: Layers,
        in_channels: Sequence[int],
        strides: Sequence[Axes],
        levels: Sequence[Level],
        up: Part,
        merge: Part,
    ) -> None:
        highest, *others = levels
        super().__init__(layers, in_channels, strides, [highest, *map(_only_new, others)], up, merge)


def _only_new(level: Level) -> Level:
    """A level whose dense block gives its new maps alone."""
    return replace(level, block=partial(level.block, only_new=True))
