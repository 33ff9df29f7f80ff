"""The pre-activation residual U-Net that was made for roads.

After
- Z. Zhang, Q. Liu and Y. Wang, 2018, "Road extraction by deep residual U-Net" (arXiv 1711.10684): seven
  levels of 64, 128, 256 and 512 channels and back, units of norm, ReLU, convolution, twice, with a shortcut,
  none of norm and ReLU before the very first convolution, strides in a unit's first convolution.

Its 7.8 million parameters are the 3x3 kernels and the head, 7,780,096 for colour pictures and one output.
Ours to guess: the shortcut where channels or size change, a 1x1 convolution without norm (K. He et al.,
2016, "Identity mappings in deep residual networks"), and the up-step, which has no parameters: linear
interpolation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from monai.networks.layers.factories import Conv
from torch import nn

from scripts.networks.blocks import Layers, ResidualBlock
from scripts.networks.unet import Encoder, Level, Part


class PreActivationBlock(ResidualBlock):
    """A residual block with norm and activation before each convolution, and nothing after the sum.

    Arguments are those of `PlainBlock`.
    """

    def __init__(
        self,
        layers: Layers,
        in_channels: int,
        out_channels: Sequence[int],
        kernel_size: Sequence[int],
        stride: Sequence[int],
    ) -> None:
        super().__init__(layers, in_channels, out_channels, kernel_size, stride)
        self.act = nn.Identity()

    def make_unit(
        self,
        layers: Layers,
        in_channels: int,
        out_channels: int,
        kernel_size: Sequence[int],
        stride: Sequence[int],
        is_first: bool,
        is_last: bool,
    ) -> nn.Sequential:
        """Norm, activation and convolution."""
        return layers.preactivated(in_channels, out_channels, kernel_size, stride)

    def make_shortcut(self, layers: Layers, in_channels: int, stride: Sequence[int]) -> nn.Module:
        """The way around the convolutions."""
        if in_channels == self.out_channels and max(stride) == 1:
            return nn.Identity()
        convolution = Conv[Conv.CONV, layers.spatial_dims]
        return convolution(in_channels, self.out_channels, 1, stride=tuple(stride), bias=False)


class FirstPreActivationBlock(PreActivationBlock):
    """The block of the highest level, which begins with its convolution: it sees the image."""

    def make_unit(
        self,
        layers: Layers,
        in_channels: int,
        out_channels: int,
        kernel_size: Sequence[int],
        stride: Sequence[int],
        is_first: bool,
        is_last: bool,
    ) -> nn.Sequential:
        """Norm, activation and convolution; the first unit has the convolution alone."""
        unit = super().make_unit(
            layers, in_channels, out_channels, kernel_size, stride, is_first=is_first, is_last=is_last
        )
        return nn.Sequential(unit[-1]) if is_first else unit


class PreActivationEncoder(Encoder):
    """An encoder whose highest level begins with a convolution. Arguments are those of `Encoder`."""

    def __init__(
        self, layers: Layers, in_channels: int, levels: Sequence[Level], down: Part | None, dropout: float
    ) -> None:
        top = replace(levels[0], block=FirstPreActivationBlock)
        super().__init__(layers, in_channels, [top, *levels[1:]], down, dropout)
