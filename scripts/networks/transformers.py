"""A transformer at the lowest resolution of a U-Net, and the encoder that TransUNet puts before it.

Follows Chen et al., 2021, "TransUNet: transformers make strong encoders for medical image segmentation",
arXiv 2102.04306, in its encoder-only form: a ResNet-50 without its last stage, with standardised weights and
group norm (`HybridEncoder`), tokens of 768 channels on the grid at a sixteenth of the resolution, 12 layers
(`TransformerBottleneck`), and a decoder of convolutions without bias (`UnbiasedBlock`) after bilinear
up-steps with aligned corners (`AlignedUp`).

Departs: the pooling is padded, where the authors pad its result; weights are drawn, as those of ImageNet-21k
are no longer offered by their owners; in 3D all of it has an axis more, the authors have another network.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from monai.networks.layers.factories import Conv, Pool
from torch import Tensor, nn

from scripts.errors import InputError, require_within
from scripts.networks.blocks import Axes, Layers, LinearUp, PlainBlock, Stage
from scripts.networks.sizes import require_multiple

#: Groups of the norms of the encoder, or the largest divisor of both.
GROUPS = 32

#: Added to variances: of standardised weights, of norms.
WEIGHT_EPSILON, EPSILON = 1e-5, 1e-6


class TransformerBottleneck(Stage):
    """Transformer layers over all voxels of the deepest map, whose places are learnt, then a convolution.

    Images of another size than `img_size` get its places by linear interpolation.

    Args:
        layers: what layers are made of.
        in_channels: channels of the input.
        img_size: of the images it is trained with, one number per axis.
        reduction: by how much the deepest map is smaller than the image.
        hidden_size: channels of the tokens, a multiple of ``num_heads``.
        mlp_dim: channels inside the perceptrons.
        num_layers: number of layers.
        num_heads: of the attention.
        out_channels: channels of the output; None for those of the input.
        dropout: of tokens, and in the layers.

    Raises:
        InputError: `img_size` that `reduction` does not divide, or `hidden_size` that `num_heads` does not.
    """

    def __init__(
        self,
        layers: Layers,
        in_channels: int,
        img_size: Sequence[int],
        reduction: int = 16,
        hidden_size: int = 768,
        mlp_dim: int = 3072,
        num_layers: int = 12,
        num_heads: int = 12,
        out_channels: int | None = None,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(out_channels or in_channels)
        require_within("dropout", dropout, 0, 1)
        if any(length % reduction for length in img_size) or len(img_size) != layers.spatial_dims:
            raise InputError(
                f"img_size (patch_size) is {list(img_size)}: use multiples of {reduction}, "
                f"{layers.spatial_dims} of them"
            )
        if hidden_size % num_heads:
            raise InputError(f"hidden_size is {hidden_size}: use a multiple of num_heads, {num_heads}")
        convolution = Conv[Conv.CONV, layers.spatial_dims]
        self.enter = convolution(in_channels, hidden_size, 1)
        grid = [length // reduction for length in img_size]
        self.places = nn.Parameter(torch.zeros(1, hidden_size, *grid))
        nn.init.trunc_normal_(self.places, std=0.02)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.Sequential(
            *(
                nn.TransformerEncoderLayer(
                    hidden_size,
                    num_heads,
                    mlp_dim,
                    dropout,
                    activation="gelu",
                    layer_norm_eps=EPSILON,
                    batch_first=True,
                    norm_first=True,
                )
                for _ in range(num_layers)
            )
        )
        self.norm = nn.LayerNorm(hidden_size, EPSILON)
        self.leave = UnbiasedBlock(
            layers, hidden_size, [self.out_channels], (3,) * layers.spatial_dims, (1,) * layers.spatial_dims
        )
        self.mode = "bilinear" if layers.spatial_dims == 2 else "trilinear"

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, in_channels, H, W[, D])` to `(B, out_channels, H, W[, D])`."""
        x = self.enter(x)
        places: Tensor = self.places
        if torch.compiler.is_exporting() or x.shape[2:] != places.shape[2:]:
            places = F.interpolate(places, size=x.shape[2:], mode=self.mode, align_corners=False)
        tokens = self.dropout((x + places).flatten(2).transpose(1, 2))  # (B, L, hidden)
        tokens = self.norm(self.layers(tokens))
        return self.leave(tokens.transpose(1, 2).reshape(x.shape))


class UnbiasedBlock(PlainBlock):
    """A plain block without biases, as a norm follows each convolution; arguments as of `PlainBlock`."""

    def __init__(
        self,
        layers: Layers,
        in_channels: int,
        out_channels: Sequence[int],
        kernel_size: Sequence[int],
        stride: Sequence[int],
    ) -> None:
        super().__init__(layers, in_channels, out_channels, kernel_size, stride)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d):
                module.register_parameter("bias", None)


class AlignedUp(LinearUp):
    """`LinearUp` with aligned corners: the outermost voxels stay where they are."""

    def __init__(self, layers: Layers, in_channels: int, out_channels: int, stride: Sequence[int]) -> None:
        super().__init__(layers, in_channels, out_channels, stride)
        self.interpolation.align_corners = True


class _Standardised:
    """A convolution whose weights have mean 0 and variance 1 in each filter (Qiao et al., 2019).

    It pads by itself: what replaces convolutions that pad reads their weights as they are.
    """

    def forward(self: Any, x: Tensor) -> Tensor:
        """Map `(B, C, H, W[, D])` to a size that the stride alone changes."""
        axes = tuple(range(1, self.weight.ndim))
        variance, mean = torch.var_mean(self.weight, axes, correction=0, keepdim=True)
        weight = (self.weight - mean) / (variance + WEIGHT_EPSILON).sqrt()
        margins = [k // 2 for k in reversed(self.kernel_size) for _ in range(2)]
        return self._conv_forward(F.pad(x, margins) if max(margins) else x, weight, None)


class Standardised2d(_Standardised, nn.Conv2d):
    """`_Standardised` in two dimensions."""


class Standardised3d(_Standardised, nn.Conv3d):
    """`_Standardised` in three dimensions."""


def standardised(dims: int, inside: int, outside: int, kernel: int, stride: int = 1) -> nn.Module:
    """A standardised convolution without bias."""
    made = Standardised2d if dims == 2 else Standardised3d
    return made(inside, outside, kernel, stride=stride, bias=False)


def group_norm(channels: int, groups: int = GROUPS) -> nn.GroupNorm:
    """A group norm of so many groups, or of the largest number of them that divides the channels."""
    return nn.GroupNorm(math.gcd(groups, channels), channels, EPSILON)


class HybridUnit(nn.Module):
    """Three standardised convolutions of 1, 3 and 1 with group norm, and a shortcut around them.

    Args:
        dims: 2 or 3.
        in_channels: channels of the input.
        out_channels: channels of the output; inside there are a quarter.
        stride: of the middle convolution.
    """

    def __init__(self, dims: int, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        inner = out_channels // 4
        self.steps = nn.Sequential(
            standardised(dims, in_channels, inner, 1),
            group_norm(inner),
            nn.ReLU(),
            standardised(dims, inner, inner, 3, stride),
            group_norm(inner),
            nn.ReLU(),
            standardised(dims, inner, out_channels, 1),
            group_norm(out_channels),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                standardised(dims, in_channels, out_channels, 1, stride),
                group_norm(out_channels, out_channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, in_channels, H, W[, D])` to `(B, out_channels, H / stride, ...)`."""
        return F.relu(self.steps(x) + self.shortcut(x))


class HybridEncoder(Stage):
    """TransUNet's ResNet-50: four levels at a half to a sixteenth of the image's resolution.

    Args:
        layers: what layers are made of; group norm and ReLU whatever it says.
        in_channels: channels of the image.
        levels: of 64, 256, 512 and 1024 channels.
        down: has no part in it.
        dropout: probability of dropping an activation at the end of the deepest level.
        blocks: of each level but the highest.

    Attributes:
        strides: 2 for each level.

    Raises:
        InputError: another number of levels, or channels that 4 does not divide.
    """

    def __init__(
        self,
        layers: Layers,
        in_channels: int,
        levels: Sequence[Any],
        down: Any,
        dropout: float,
        blocks: Sequence[int] = (3, 4, 9),
    ) -> None:
        channels = [level.channels[-1] for level in levels]
        if len(channels) != len(blocks) + 1 or any(width % 4 for width in channels):
            raise InputError(
                f"channels is {channels}: give {len(blocks) + 1} multiples of 4, one more than blocks has"
            )
        super().__init__(tuple(channels))
        dims = layers.spatial_dims
        self.strides: tuple[Axes, ...] = ((2,) * dims,) * len(channels)
        self.reduction = (2 ** len(channels),) * dims
        self.levels = nn.ModuleList(
            [
                nn.Sequential(
                    standardised(dims, in_channels, channels[0], 7, 2), group_norm(channels[0]), nn.ReLU()
                )
            ]
        )
        for index, count in enumerate(blocks):
            level = (
                nn.Sequential(Pool[Pool.MAX, dims](3, stride=2, padding=1)) if index == 0 else nn.Sequential()
            )
            for unit in range(count):
                before = channels[index] if unit == 0 else channels[index + 1]
                stride = 2 if unit == 0 and index > 0 else 1
                level.append(HybridUnit(dims, before, channels[index + 1], stride))
            self.levels.append(level)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map an image, `(B, in_channels, H, W[, D])`, to each level's features, high to low resolution."""
        if not (torch.jit.is_scripting() or torch.jit.is_tracing() or torch.compiler.is_compiling()):
            require_multiple(x, self.reduction)
        features: list[Tensor] = []
        for level in self.levels:
            x = level(x)
            features.append(x)
        features[-1] = self.dropout(x)
        return features
