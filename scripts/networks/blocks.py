"""The parts that `scripts.networks.UNet` is assembled from: blocks, up-steps and merges.

A variant of the network is a class handed in, not a flag. A new class derives from `Stage`, takes the
arguments of its neighbours here, by keyword, and may add arguments of its own with defaults; JSON hands it in
with `{"_target_": "scripts.networks.blocks.ResidualBlock", "_mode_": "callable"}`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.layers import get_act_layer, get_norm_layer
from monai.networks.layers.factories import Conv
from torch import Tensor, nn

Padding = str  # "same" or "valid"
Layer = str | tuple  # a MONAI layer: its name, or its name and a dictionary of arguments


class Stage(nn.Module):
    """A part of the network that publishes what the next part has to know about it.

    Args:
        out_channels: channels of the output, an attribute for the next part to read.
    """

    def __init__(self, out_channels: int) -> None:
        super().__init__()
        self.out_channels = out_channels

    def output_length(self, length: int, axis: int) -> int:
        """Length of the output along one axis.

        Args:
            length: length of the input along the axis, in voxels.
            axis: spatial axis, counted from 0.

        Returns:
            Length of the output in voxels; zero or less when the input is too short.
        """
        return length

    def reach(self, axis: int) -> int:
        """How many neighbours on each side an output voxel depends on along one axis, norms left out.

        Args:
            axis: spatial axis, counted from 0.

        Returns:
            Voxels of the input.
        """
        return 0


def centre_crop(x: Tensor, size: list[int]) -> Tensor:
    """Cut the centre out of a feature map.

    Args:
        x: feature map, `(B, C, H, W[, D])`.
        size: spatial size of the result; where an odd number of voxels goes, one more goes at the end.

    Returns:
        A view of `x`, `(B, C, *size)`.
    """
    for axis in range(len(size)):
        start = (x.shape[axis + 2] - size[axis]) // 2
        x = x.narrow(axis + 2, start, size[axis])
    return x


def convolution_unit(
    spatial_dims: int,
    in_channels: int,
    out_channels: int,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Padding,
    norm: Layer | None,
    act: Layer | None,
) -> nn.Sequential:
    """Convolution with bias, then norm, then activation; norm and activation only where named."""
    margin = tuple(k // 2 if padding == "same" else 0 for k in kernel_size)
    convolution = Conv[Conv.CONV, spatial_dims]
    unit = nn.Sequential(
        convolution(in_channels, out_channels, tuple(kernel_size), stride=tuple(stride), padding=margin)
    )
    if norm is not None:
        unit.add_module("norm", get_norm_layer(norm, spatial_dims, out_channels))
    if act is not None:
        unit.add_module("act", get_act_layer(act))
    return unit


class PlainBlock(Stage):
    """Convolution, norm and activation, repeated.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the input.
        out_channels: channels that each convolution gives, one entry per convolution.
        kernel_size: odd kernel size of every convolution, one entry per axis.
        stride: stride of the first convolution, one entry per axis.
        padding: "same", or "valid" for convolutions that pad nothing.
        norm: MONAI norm layer, or None.
        act: MONAI activation layer.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: Sequence[int],
        kernel_size: Sequence[int],
        stride: Sequence[int],
        padding: Padding,
        norm: Layer | None,
        act: Layer,
    ) -> None:
        super().__init__(out_channels[-1])
        self.stride = tuple(stride)
        # Voxels that one convolution takes from each side of an axis.
        self.margin = tuple(k // 2 if padding == "valid" else 0 for k in kernel_size)
        self.kernel_size = tuple(kernel_size)
        self.convolutions = nn.Sequential()
        last = len(out_channels) - 1
        for index, channels in enumerate(out_channels):
            self.convolutions.append(
                convolution_unit(
                    spatial_dims,
                    in_channels if index == 0 else out_channels[index - 1],
                    channels,
                    kernel_size,
                    stride if index == 0 else (1,) * spatial_dims,
                    padding,
                    norm,
                    self.act_after(index == last, act),
                )
            )

    def act_after(self, is_last: bool, act: Layer) -> Layer | None:
        """Activation that follows a convolution."""
        return act

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, in_channels, H, W[, D])` to `(B, out_channels[-1], H', W'[, D'])`."""
        return self.convolutions(x)

    def output_length(self, length: int, axis: int) -> int:
        """Length of the output along one axis; see `Stage.output_length`."""
        lost = 2 * self.margin[axis]
        length = (length - lost - 1) // self.stride[axis] + 1
        return length - lost * (len(self.convolutions) - 1)

    def reach(self, axis: int) -> int:
        """Neighbours that an output voxel depends on; see `Stage.reach`."""
        return self.kernel_size[axis] // 2 * (1 + self.stride[axis] * (len(self.convolutions) - 1))


class ResidualBlock(PlainBlock):
    """A plain block with a shortcut around it: `act(convolutions(x) + shortcut(x))`.

    The shortcut is the identity, or a 1x1 convolution and norm where channels or size change (He, Zhang, Ren
    and Sun, 2016, "Deep residual learning for image recognition", section 3.3, option B). With "valid"
    padding it is cropped around the centre. Arguments are those of `PlainBlock`.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: Sequence[int],
        kernel_size: Sequence[int],
        stride: Sequence[int],
        padding: Padding,
        norm: Layer | None,
        act: Layer,
    ) -> None:
        super().__init__(spatial_dims, in_channels, out_channels, kernel_size, stride, padding, norm, act)
        self.act = get_act_layer(act)
        self.shortcut: nn.Module = nn.Identity()
        if in_channels != self.out_channels or max(stride) > 1:
            point = (1,) * spatial_dims
            self.shortcut = convolution_unit(
                spatial_dims, in_channels, self.out_channels, point, stride, padding, norm, None
            )

    def act_after(self, is_last: bool, act: Layer) -> Layer | None:
        """Activation that follows a convolution; the last one comes after the sum."""
        return None if is_last else act

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, in_channels, H, W[, D])` to `(B, out_channels[-1], H', W'[, D'])`."""
        y = self.convolutions(x)
        # What the first convolution loses goes before the stride, so that both paths see the same voxels.
        shape = x.shape[2:]
        x = centre_crop(x, [shape[axis] - 2 * margin for axis, margin in enumerate(self.margin)])
        return self.act(y + centre_crop(self.shortcut(x), list(y.shape[2:])))


class TransposedUp(Stage):
    """Enlarge by a transposed convolution whose kernel is its stride, so that no two outputs overlap.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels that come from the level below.
        skip_channels: channels of the skip that the result meets.
        stride: factor per axis.
        keep_channels: True gives `in_channels` (Cicek et al., 2016), False gives `skip_channels`, half of
            them in the network of Ronneberger et al., 2015.
        bias: whether the convolution has a bias.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        skip_channels: int,
        stride: Sequence[int],
        keep_channels: bool = False,
        bias: bool = True,
    ) -> None:
        super().__init__(in_channels if keep_channels else skip_channels)
        self.stride = tuple(stride)
        convolution = Conv[Conv.CONVTRANS, spatial_dims]
        self.convolution = convolution(
            in_channels, self.out_channels, self.stride, stride=self.stride, bias=bias
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, in_channels, H, W[, D])` to `(B, out_channels, H * stride, ...)`."""
        return self.convolution(x)

    def output_length(self, length: int, axis: int) -> int:
        """Length of the output along one axis; see `Stage.output_length`."""
        return length * self.stride[axis]


class InterpolatedUp(Stage):
    """Enlarge by linear interpolation, after a 1x1 convolution to the channels of the skip.

    Both are linear and the weights of the interpolation sum to one, so their order changes nothing but the
    cost, which is lowest with the convolution on the smaller map.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels that come from the level below.
        skip_channels: channels of the skip that the result meets.
        stride: factor per axis.
    """

    def __init__(
        self, spatial_dims: int, in_channels: int, skip_channels: int, stride: Sequence[int]
    ) -> None:
        super().__init__(skip_channels)
        self.stride = tuple(stride)
        self.convolution = Conv[Conv.CONV, spatial_dims](in_channels, skip_channels, 1)
        self.interpolation = nn.Upsample(
            scale_factor=tuple(float(s) for s in stride),
            mode="bilinear" if spatial_dims == 2 else "trilinear",
            align_corners=False,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, in_channels, H, W[, D])` to `(B, skip_channels, H * stride, ...)`."""
        return self.interpolation(self.convolution(x))

    def output_length(self, length: int, axis: int) -> int:
        """Length of the output along one axis; see `Stage.output_length`."""
        return length * self.stride[axis]

    def reach(self, axis: int) -> int:
        """Neighbours that an output voxel depends on: the next one, of linear interpolation."""
        return 1 if self.stride[axis] > 1 else 0


class Concatenate(Stage):
    """Put the skip and the map from below beside each other in the channels, the skip first.

    Args:
        spatial_dims: 2 or 3.
        skip_channels: channels of the skip.
        up_channels: channels of the map from below.
        padding: with "valid" the skip is cropped around its centre; with "same" nothing is cropped.
    """

    def __init__(self, spatial_dims: int, skip_channels: int, up_channels: int, padding: Padding) -> None:
        super().__init__(skip_channels + up_channels)
        self.crops = padding == "valid"

    def forward(self, skip: Tensor, up: Tensor) -> Tensor:
        """Merge `(B, skip_channels, ...)` and `(B, up_channels, *size)` to `(B, out_channels, *size)`."""
        if self.crops:
            skip = centre_crop(skip, list(up.shape[2:]))
        return torch.cat((skip, up), dim=1)
