"""DCSAU-Net: large kernels on the highest level, split attention below.

Follows Xu, Ma, He and Duan, 2023, "DCSAU-Net: a deeper and more compact split-attention U-Net for medical
image segmentation": primary feature conservation (7x7 and depthwise 7x7, the norm after the activation), then
compact split attention, two bottlenecks a level, bilinear up-steps without weights.

Where it departs: the up-steps place voxels by their centres, not corners to corners, so that an image gives
the same in tiles of any size. The norm within the attention, on maps that are averaged to one voxel, takes
what it kept where a batch in training is a single image, of which there are no statistics; where the network
has no batch norm it is a group norm over all channels. Dropout is where `UNet` has it. Three dimensions are
ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from monai.networks.layers import get_norm_layer
from monai.networks.layers.factories import Conv, Pool
from torch import Tensor, nn

from scripts.errors import InputError
from scripts.networks.blocks import Axes, Layers, Stage
from scripts.networks.unet import Decoder, Encoder, Level, Part

#: Parts of a split, each of which sees its own half of the channels.
SPLITS = 2

#: A bottleneck gives so many times the channels that it has within.
EXPANSION = 4

#: Channels within the attention, at least.
LEAST_WITHIN = 32


class PrimaryFeatures(Stage):
    """A 7x7 convolution, a depthwise one around which there is a shortcut, and a 1x1 convolution.

    Args:
        layers: what layers are made of.
        in_channels: channels of the input.
        out_channels: the last entry counts.
        kernel_size: unused: kernels are 7 voxels along each axis.
        stride: of the first convolution, one entry per axis.
    """

    def __init__(
        self,
        layers: Layers,
        in_channels: int,
        out_channels: Sequence[int],
        kernel_size: Sequence[int],
        stride: Sequence[int],
    ) -> None:
        channels = out_channels[-1]
        super().__init__(channels)
        convolution = Conv[Conv.CONV, layers.spatial_dims]
        steps = tuple(stride)
        self.first = self._unit(layers, convolution(in_channels, channels, 7, stride=steps, padding=3))
        self.depthwise = self._unit(layers, convolution(channels, channels, 7, padding=3, groups=channels))
        self.pointwise = self._unit(layers, convolution(channels, channels, 1))

    def _unit(self, layers: Layers, convolution: nn.Module) -> nn.Sequential:
        """A convolution, an activation and, after it, a norm."""
        unit = nn.Sequential(convolution, layers.activation(self.out_channels))
        if layers.norm is not None:
            unit.add_module("norm", get_norm_layer(layers.norm, layers.spatial_dims, self.out_channels))
        return unit

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, in_channels, H, W[, D])` to `(B, out_channels, H', W'[, D'])`."""
        x = self.first(x)
        return self.pointwise(x + self.depthwise(x))


class PooledBatchNorm(nn.modules.batchnorm._BatchNorm):
    """A batch norm of maps of one voxel; what it kept counts where a batch holds one, of no statistics."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `(B, C, 1, 1[, 1])`."""
        counts = self.training and x.shape[0] > 1
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, counts, 0.1, self.eps
        )


class SplitAttention(nn.Module):
    """Two convolutions, the second of which sees the first, weighed against each other for each channel.

    Args:
        layers: what layers are made of.
        channels: of input and output; even.
    """

    def __init__(self, layers: Layers, channels: int) -> None:
        super().__init__()
        self.axes = tuple(range(2, 2 + layers.spatial_dims))
        convolution = Conv[Conv.CONV, layers.spatial_dims]
        within = max(channels * SPLITS // 4, LEAST_WITHIN)
        self.first = _normed(layers, channels, SPLITS * channels, 3, SPLITS)
        self.second = _normed(layers, channels, channels, 3, SPLITS)
        name = layers.norm if isinstance(layers.norm, str) else (layers.norm or ("none",))[0]
        pooled = PooledBatchNorm(within) if name.lower() == "batch" else nn.GroupNorm(1, within)
        self.attention = nn.Sequential(
            convolution(channels, within, 1),
            nn.Identity() if layers.norm is None else pooled,
            layers.activation(within),
            convolution(within, SPLITS * channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, C, H, W[, D])` to the same shape."""
        one, other = self.first(x).chunk(2, dim=1)
        other = self.second(one + other)
        means = (one + other).mean(self.axes, keepdim=True)
        weights = self.attention(means)  # (B, 2 C, 1, 1[, 1]), all of one, then all of the other
        share = torch.sigmoid(weights[:, : one.shape[1]] - weights[:, one.shape[1] :])  # a softmax of two
        return share * one + (1 - share) * other


def _normed(
    layers: Layers,
    in_channels: int,
    out_channels: int,
    kernel_size: int = 1,
    groups: int = 1,
    act: bool = True,
) -> nn.Sequential:
    """A convolution without bias, its norm and an activation."""
    convolution = Conv[Conv.CONV, layers.spatial_dims]
    unit = nn.Sequential(
        convolution(
            in_channels, out_channels, kernel_size, padding=kernel_size // 2, groups=groups, bias=False
        )
    )
    if layers.norm is not None:
        unit.add_module("norm", get_norm_layer(layers.norm, layers.spatial_dims, out_channels))
    if act:
        unit.add_module("act", layers.activation(out_channels))
    return unit


def _averages(layers: Layers) -> nn.Sequential:
    """The mean of 3 voxels along each axis; padded apart, as PyTorch's refuses 3D maps below its kernel."""
    pad = nn.ConstantPad2d if layers.spatial_dims == 2 else nn.ConstantPad3d
    return nn.Sequential(pad(1, 0.0), Pool[Pool.AVG, layers.spatial_dims](3, 1))


class SplitBottleneck(nn.Module):
    """Reduce the channels, attend, and enlarge them, with a shortcut around.

    Args:
        layers: what layers are made of.
        in_channels: channels of the input.
        out_channels: channels of the output, a multiple of 8.
        pools: average 3 voxels along each axis after the attention.
    """

    def __init__(self, layers: Layers, in_channels: int, out_channels: int, pools: bool) -> None:
        super().__init__()
        width = out_channels // EXPANSION
        self.path = nn.Sequential(
            _normed(layers, in_channels, width),
            SplitAttention(layers, width),
            _averages(layers) if pools else nn.Identity(),
            _normed(layers, width, out_channels, act=False),
        )
        self.shortcut: nn.Module = nn.Identity()
        if in_channels != out_channels:
            self.shortcut = _normed(layers, in_channels, out_channels, act=False)
        self.act = layers.activation(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, in_channels, H, W[, D])` to `(B, out_channels, H, W[, D])`."""
        return self.act(self.path(x) + self.shortcut(x))


class SplitAttentionBlock(Stage):
    """Bottlenecks with split attention, one after the other.

    Args:
        layers: what layers are made of.
        in_channels: channels of the input.
        out_channels: channels of each bottleneck, multiples of 8.
        kernel_size: unused: kernels are 3 voxels along each axis.
        stride: 1 along each axis.
        pools: the first bottleneck averages 3 voxels along each axis.

    Raises:
        InputError: channels that are no multiple of 8; a stride; padding "valid".
    """

    def __init__(
        self,
        layers: Layers,
        in_channels: int,
        out_channels: Sequence[int],
        kernel_size: Sequence[int],
        stride: Sequence[int],
        pools: bool = True,
    ) -> None:
        super().__init__(out_channels[-1])
        if any(channels % (EXPANSION * SPLITS) for channels in out_channels):
            raise InputError(
                f"a level has the channels {list(out_channels)}: give multiples of {EXPANSION * SPLITS}, as "
                "a quarter of them is split in two"
            )
        if max(stride) > 1 or layers.padding == "valid":
            raise InputError(
                f"split attention gets the stride {tuple(stride)} and padding {layers.padding!r}: give the "
                'network a class for down, and padding "same"'
            )
        self.bottlenecks = nn.Sequential()
        for index, channels in enumerate(out_channels):
            self.bottlenecks.append(SplitBottleneck(layers, in_channels, channels, pools and index == 0))
            in_channels = channels

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, in_channels, H, W[, D])` to `(B, out_channels[-1], H, W[, D])`."""
        return self.bottlenecks(x)


class DCSAUEncoder(Encoder):
    """Primary features on the highest level, split attention below. Arguments are those of `Encoder`."""

    def __init__(
        self, layers: Layers, in_channels: int, levels: Sequence[Level], down: Part | None, dropout: float
    ) -> None:
        highest, second, *others = levels
        changed = [replace(highest, block=PrimaryFeatures), _unpooled(second), *others]
        super().__init__(layers, in_channels, changed, down, dropout)


class DCSAUDecoder(Decoder):
    """A decoder whose highest level does not average. Arguments are those of `Decoder`."""

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
        super().__init__(layers, in_channels, strides, [_unpooled(highest), *others], up, merge)


def _unpooled(level: Level) -> Level:
    """A level of split attention that does not average."""
    return replace(level, block=partial(level.block, pools=False))
