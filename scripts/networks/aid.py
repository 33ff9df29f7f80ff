"""A U-Net with small Us inserted in it.

After Tashk et al., 2022, "AID-U-Net: an innovative deep convolutional architecture for semantic segmentation
of biomedical images", of which we know that a direct path is joined by sub-contracting and sub-expansive
paths. This is our reading of it: (n, m) are the down-steps of the direct path and of the Us that lie in it,
one behind the block of each level but the deepest, in encoder and decoder; each keeps the channels of its
level and is added to what it was made from. Widths are ours too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from scripts.errors import require_within
from scripts.networks.blocks import Concatenate, Layers, MaxPool, PlainBlock, TransposedUp
from scripts.networks.unet import Assembly, Decoder, Encoder, Level, Part


class InsertedU(Assembly):
    """A plain block, and a small U behind it that is added.

    Args:
        layers: what layers are made of.
        in_channels: channels of the input.
        out_channels: channels that each convolution of the block gives, one entry per convolution.
        kernel_size: odd kernel size of every convolution, one entry per axis.
        stride: stride of the block's first convolution, one entry per axis.
        depth: down-steps of the small U, all by 2.

    Raises:
        InputError: ``depth`` below 1.
    """

    def __init__(
        self,
        layers: Layers,
        in_channels: int,
        out_channels: Sequence[int],
        kernel_size: Sequence[int],
        stride: Sequence[int],
        depth: int = 1,
    ) -> None:
        channels = out_channels[-1]
        super().__init__(channels)
        require_within("depth", depth, 1)
        self.block = PlainBlock(layers, in_channels, out_channels, kernel_size, stride)
        unit, two = (1,) * layers.spatial_dims, (2,) * layers.spatial_dims
        levels = [Level((channels,), step, tuple(kernel_size), PlainBlock) for step in [unit] + [two] * depth]
        self.encoder = Encoder(layers, channels, levels, MaxPool, 0.0)
        self.decoder = Decoder(
            *(layers, self.encoder.out_channels, self.encoder.strides, levels[:-1]), TransposedUp, Concatenate
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, in_channels, H, W[, D])` to `(B, out_channels[-1], H', W'[, D'])`."""
        x = self.block(x)
        return x + self.decoder(self.encoder(x))[-1]


class AIDEncoder(Encoder):
    """An encoder whose deepest level is plain. Arguments are those of `Encoder`."""

    def __init__(
        self, layers: Layers, in_channels: int, levels: Sequence[Level], down: Part | None, dropout: float
    ) -> None:
        *others, deepest = levels
        super().__init__(layers, in_channels, [*others, replace(deepest, block=PlainBlock)], down, dropout)
