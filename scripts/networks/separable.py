"""Depthwise separable convolutions: one kernel a channel, then a 1x1 convolution across the channels.

After Howard et al., 2017, "MobileNets: efficient convolutional neural networks for mobile vision
applications", section 3.1: norm and activation follow both. A network for small machines, under its own name:
what the published U-Nets for such machines are made of in detail is not known to us.
"""

from __future__ import annotations

from collections.abc import Sequence

from monai.networks.layers import get_norm_layer
from monai.networks.layers.factories import Conv
from torch import Tensor, nn

from scripts.networks.blocks import Layers, Stage


class DepthwiseSeparableBlock(Stage):
    """Depthwise and pointwise convolutions, each followed by norm and activation, repeated.

    Args:
        layers: what layers are made of.
        in_channels: channels of the input.
        out_channels: channels that each pair gives, one entry per pair.
        kernel_size: odd kernel size of every depthwise convolution, one entry per axis.
        stride: stride of the first one, one entry per axis.
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
        margin = tuple(k // 2 if layers.padding == "same" else 0 for k in kernel_size)
        depthwise = Conv[Conv.CONV, layers.spatial_dims]
        self.convolutions = nn.Sequential()
        for index, channels in enumerate(out_channels):
            step = tuple(stride) if index == 0 else 1
            self.convolutions.append(
                depthwise(
                    in_channels, in_channels, tuple(kernel_size), step, margin, groups=in_channels, bias=False
                )
            )
            if layers.norm is not None:
                self.convolutions.append(get_norm_layer(layers.norm, layers.spatial_dims, in_channels))
            self.convolutions.append(layers.activation(in_channels))
            self.convolutions.append(layers.convolution(in_channels, channels, 1))
            in_channels = channels

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, in_channels, H, W[, D])` to `(B, out_channels[-1], H', W'[, D'])`."""
        return self.convolutions(x)
