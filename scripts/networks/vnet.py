"""V-Net: 5x5x5 convolutions, residuals that change no channel, strided convolutions for down-steps.

Follows
- Milletari, Navab and Ahmadi, 2016, "V-Net: fully convolutional neural networks for volumetric medical image
  segmentation", section 2 and figure 2.

Numbers of convolutions are those of the network that the authors released (1, 1, 2, 3, 3; the figure of the
paper has another order), as is PReLU with a slope for each channel. Ours to say: an image of several channels
is repeated in turn up to the width of the first level, and cut there; the order of skip and map from below;
two dimensions; weights drawn as everywhere here; dropout, which the paper has not.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.layers.factories import Conv
from torch import Tensor, nn

from scripts.errors import InputError
from scripts.networks.blocks import Layers, Stage, TransposedUp, centre_crop


class VNetBlock(Stage):
    """Convolutions of one width and a residual around them: `act(convolutions(x) + x)`.

    A stride is a convolution of its own before the residual, with the stride as kernel. Fewer channels than
    asked for are repeated to their number; more stay: the residual of the decoder is the concatenation.

    Args:
        layers: what layers are made of.
        in_channels: channels of the input.
        out_channels: channels of each convolution, all the same; one entry per convolution.
        kernel_size: odd kernel size of every convolution, one entry per axis.
        stride: of the down-step in front, one entry per axis.

    Raises:
        InputError: convolutions of several widths.
    """

    def __init__(
        self,
        layers: Layers,
        in_channels: int,
        out_channels: Sequence[int],
        kernel_size: Sequence[int],
        stride: Sequence[int],
    ) -> None:
        if len(set(out_channels)) > 1:
            raise InputError(
                f"channels of a level are {list(out_channels)}: a V-Net adds a level's input to its output, "
                "so give the level one number, and convs_per_level"
            )
        reduces = max(stride) > 1
        width = out_channels[0] if reduces else max(in_channels, out_channels[0])
        super().__init__(width)
        self.down: nn.Module = nn.Identity()
        if reduces:
            convolution = Conv[Conv.CONV, layers.spatial_dims]
            steps = tuple(stride)
            self.down = nn.Sequential(
                convolution(in_channels, width, steps, stride=steps), layers.activation(width)
            )
        self.repeats = 1 if reduces else -(-width // in_channels)
        last = len(out_channels) - 1
        self.convolutions = nn.Sequential()
        for index in range(len(out_channels)):
            before = in_channels if index == 0 and not reduces else width
            self.convolutions.append(layers.convolution(before, width, kernel_size, act=index < last))
        self.act = layers.activation(width)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, in_channels, H, W[, D])` to `(B, out_channels, H', W'[, D'])`."""
        x = self.down(x)
        y = self.convolutions(x)
        if self.repeats > 1:
            x = torch.cat([x] * self.repeats, dim=1)[:, : y.shape[1]]
        return self.act(y + centre_crop(x, list(y.shape[2:])))


class VNetUp(TransposedUp):
    """A transposed convolution whose kernel is its stride, and the activation. Arguments: `TransposedUp`."""

    def __init__(self, layers: Layers, in_channels: int, out_channels: int, stride: Sequence[int]) -> None:
        super().__init__(layers, in_channels, out_channels, stride)
        self.act = layers.activation(self.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, in_channels, H, W[, D])` to `(B, out_channels, H * stride, ...)`."""
        return self.act(self.convolution(x))


class VNetHead(Stage):
    """A 5x5x5 convolution to the classes, the activation, and a 1x1x1 convolution to the logits.

    Args:
        layers: what layers are made of.
        in_channels: channels of the decoder's maps, from low to high resolution; the highest is read.
        out_channels: channels of the logits.
        kernel_size: odd, of the first convolution.
    """

    def __init__(
        self, layers: Layers, in_channels: Sequence[int], out_channels: int, kernel_size: int = 5
    ) -> None:
        super().__init__(out_channels)
        self.main = nn.Sequential(
            layers.convolution(in_channels[-1], out_channels, kernel_size),
            Conv[Conv.CONV, layers.spatial_dims](out_channels, out_channels, 1),
        )

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Logits of the highest map, `(B, out_channels, *size)`."""
        return self.main(maps[-1])
