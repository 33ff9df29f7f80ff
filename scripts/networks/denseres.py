"""A U-Net with dense blocks where it is deepest and residual atrous convolutions on its skips.

After Kiran, Raza, Ijaz and Khan, 2022, "DenseRes-Unet: segmentation of overlapped/clustered nuclei from
multi organ histopathology images", of which we know the idea alone. Ours to guess: how many layers a dense
block has and how wide they are, the dilations, that the sum of a skip's step and its 1x1 convolution is
activated. Its distance map is that of `scripts.networks.dual`, and not part of this network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from monai.networks.layers.factories import Conv
from torch import Tensor, nn

from scripts.errors import InputError
from scripts.networks.blocks import Concatenate, Layers, Stage
from scripts.networks.dense import DenseBlock
from scripts.networks.unet import Encoder, Level, Part

#: Layers of a dense block; each adds the block's channels, divided by so many.
DENSE_LAYERS = 4

#: Levels with dense blocks, the deepest.
DENSE_LEVELS = 2


class JoinedDenseBlock(Stage):
    """A dense block and a 1x1 convolution to the channels of its level.

    Args:
        layers: what layers are made of.
        in_channels: channels of the input.
        out_channels: the last entry counts.
        kernel_size: odd kernel size of every convolution, one entry per axis.
        stride: 1 along each axis.
    """

    def __init__(
        self,
        layers: Layers,
        in_channels: int,
        out_channels: Sequence[int],
        kernel_size: Sequence[int],
        stride: Sequence[int],
    ) -> None:
        super().__init__(out_channels[-1])
        growth = max(out_channels[-1] // DENSE_LAYERS, 1)
        self.dense = DenseBlock(layers, in_channels, [growth] * DENSE_LAYERS, kernel_size, stride)
        self.join = layers.convolution(self.dense.out_channels, out_channels[-1], 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, in_channels, H, W[, D])` to `(B, out_channels[-1], H, W[, D])`."""
        return self.join(self.dense(x))


class DenseDeepEncoder(Encoder):
    """An encoder with dense blocks on its two deepest levels. Arguments are those of `Encoder`."""

    def __init__(
        self, layers: Layers, in_channels: int, levels: Sequence[Level], down: Part | None, dropout: float
    ) -> None:
        deep = [replace(level, block=JoinedDenseBlock) for level in levels[-DENSE_LEVELS:]]
        super().__init__(layers, in_channels, [*levels[:-DENSE_LEVELS], *deep], down, dropout)


class AtrousStep(nn.Module):
    """An atrous convolution with a 1x1 convolution around it.

    Args:
        layers: what layers are made of.
        channels: of input and output.
        dilation: voxels from one place of the kernel to the next.
    """

    def __init__(self, layers: Layers, channels: int, dilation: int) -> None:
        super().__init__()
        convolution = Conv[Conv.CONV, layers.spatial_dims]
        self.convolution = layers.convolution(channels, channels, 3, act=False)
        self.convolution[0] = convolution(channels, channels, 3, padding=dilation, dilation=dilation)
        self.shortcut = layers.convolution(channels, channels, 1, act=False)
        self.act = layers.activation(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, channels, H, W[, D])` to the same shape."""
        return self.act(self.convolution(x) + self.shortcut(x))


class AtrousResidualMerge(Concatenate):
    """Have the skip pass atrous convolutions, each with a 1x1 shortcut, then put it beside the other map.

    Args:
        layers: what layers are made of.
        skip_channels: channels of the skip.
        up_channels: channels of the map from below, enlarged.
        below_channels: its channels before the up-step.
        dilations: of the convolutions, one after the other.

    Raises:
        InputError: padding "valid", with which the skip would shrink.
    """

    def __init__(
        self,
        layers: Layers,
        skip_channels: int,
        up_channels: int,
        below_channels: int,
        dilations: Sequence[int] = (1, 2, 4),
    ) -> None:
        super().__init__(layers, skip_channels, up_channels, below_channels)
        if layers.padding == "valid":
            raise InputError('padding is "valid": use "same" with an AtrousResidualMerge')
        self.steps = nn.Sequential(*(AtrousStep(layers, skip_channels, dilation) for dilation in dilations))

    def forward(self, skip: Tensor, up: Tensor, below: Tensor) -> Tensor:
        """Merge maps to `(B, out_channels, *size)`, see `Concatenate`."""
        return torch.cat((self.steps(skip), up), dim=1)
