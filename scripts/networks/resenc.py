"""nnU-Net's residual encoders: several residual blocks a level, one convolution a level of the decoder.

Follows
- Isensee et al., 2024, "nnU-Net revisited: a call for rigorous validation in 3D medical image segmentation"
  (arXiv 2404.09556), and its package dynamic_network_architectures 0.4.4, with which parameters and logits
  agree;
- T. He et al., 2019, "Bag of tricks for image classification with convolutional neural networks", section
  4.2: the shortcut of ResNet-D, pooled before its 1x1 convolution.

Departs: weights are drawn from N(0, sqrt(2/N)), those of transposed convolutions too. Ours: dropout.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from monai.networks.layers.factories import Pool
from torch import Tensor, nn

from scripts.networks.blocks import Layers, PlainBlock, ResidualBlock, Stage
from scripts.networks.unet import Assembly, Decoder, Encoder, Level, Part, counts


class PooledResidualBlock(ResidualBlock):
    """A residual block whose shortcut is average pooling by the stride, then, where channels change, a 1x1
    convolution without bias and a norm. It starts as its shortcut: the last norm before the sum gives zero.

    Arguments are those of `PlainBlock`.
    """

    def make_shortcut(self, layers: Layers, in_channels: int, stride: Sequence[int]) -> nn.Module:
        """The way around the convolutions."""
        steps = nn.Sequential()
        if max(stride) > 1:
            steps.append(Pool[Pool.AVG, layers.spatial_dims](tuple(stride), tuple(stride)))
        if in_channels != self.out_channels:
            steps.append(layers.convolution(in_channels, self.out_channels, 1, act=False, bias=False))
        return steps

    def draw_weights(self) -> None:
        """Draw the weights, see `Stage.draw_weights`, and set the last norm to zero."""
        super().draw_weights()
        weight = getattr(getattr(self.convolutions[-1], "norm", None), "weight", None)
        if weight is not None:
            nn.init.zeros_(weight)


class Repeated(Assembly):
    """Blocks of one kind in a row, the first with the stride and the change of channels.

    Args:
        layers: what layers are made of.
        in_channels: channels of the input.
        out_channels: channels of each convolution of a block.
        kernel_size: odd kernel size, one entry per axis.
        stride: of the first block, one entry per axis.
        block: class of the blocks.
        count: number of blocks.
        stem: a convolution with norm and activation in front, to the width of the first convolution.
    """

    def __init__(
        self,
        layers: Layers,
        in_channels: int,
        out_channels: Sequence[int],
        kernel_size: Sequence[int],
        stride: Sequence[int],
        block: Part,
        count: int,
        stem: bool = False,
    ) -> None:
        blocks: list[Stage] = []
        if stem:
            unit = (1,) * layers.spatial_dims
            blocks.append(PlainBlock(layers, in_channels, out_channels[:1], kernel_size, unit))
        for index in range(count):
            blocks.append(
                block(
                    layers=layers,
                    in_channels=blocks[-1].out_channels if blocks else in_channels,
                    out_channels=out_channels,
                    kernel_size=kernel_size,
                    stride=stride if index == 0 else (1,) * layers.spatial_dims,
                )
            )
        super().__init__(blocks[-1].out_channels)
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, in_channels, H, W[, D])` to `(B, out_channels, H', W'[, D'])`."""
        return self.blocks(x)


class ResidualEncoder(Encoder):
    """A stem, one convolution with norm and activation, then levels of several blocks each.

    Args:
        layers: see `Encoder`, as are the others.
        in_channels: channels of the image.
        levels: from high to low resolution.
        down: class of the down-steps, or None for a stride in the first block.
        dropout: see `Encoder`.
        blocks_per_level: blocks of each level, of which a network of fewer levels takes the first, as
            nnU-Net does; or one number.

    Raises:
        InputError: fewer entries than levels, or one below 1.
    """

    def __init__(
        self,
        layers: Layers,
        in_channels: int,
        levels: Sequence[Level],
        down: Part | None,
        dropout: float,
        blocks_per_level: int | Sequence[int] = 1,
    ) -> None:
        blocks = counts("blocks_per_level", blocks_per_level, len(levels))
        super().__init__(
            layers,
            in_channels,
            [
                replace(level, block=partial(Repeated, block=level.block, count=count, stem=index == 0))
                for index, (level, count) in enumerate(zip(levels, blocks, strict=True))
            ],
            down,
            dropout,
        )


class PlainDecoder(Decoder):
    """A decoder of plain convolutions, whatever the encoder's blocks are.

    Args:
        levels: see `Decoder`, as are all others.
        convs: convolutions of each level.
    """

    def __init__(self, levels: Sequence[Level], convs: int = 1, **others: Any) -> None:
        plain = [replace(level, block=PlainBlock, channels=level.channels[-1:] * convs) for level in levels]
        super().__init__(levels=plain, **others)
