"""The parts that `scripts.networks.UNet` is assembled from: blocks, down-steps, up-steps and merges.

A variant of the network is a class handed in, not a flag. A new class derives from `Stage`, says in
`out_channels` what it gives, and takes the arguments of its neighbours here, by keyword; it may add arguments
of its own with defaults. JSON hands it in with
`{"_target_": "scripts.networks.blocks.ResidualBlock", "_mode_": "callable"}`. Which sizes a network takes and
how far it sees is found by trying (`scripts.networks.sizes`): no part has to say it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from monai.networks.layers import get_act_layer, get_norm_layer
from monai.networks.layers.factories import Conv, Pool
from monai.utils import ensure_tuple_rep
from torch import Tensor, nn

from scripts.errors import InputError

Axes = tuple[int, ...]  # one entry per spatial axis
Padding = str  # "same" or "valid"
Layer = str | tuple  # a MONAI layer: its name, or its name and a dictionary of arguments


@dataclass(frozen=True)
class Layers:
    """What the parts of one network make their layers of.

    Attributes:
        spatial_dims: 2 or 3.
        padding: "same", or "valid" for convolutions that pad nothing.
        norm: MONAI norm layer, or None.
        act: MONAI activation layer.
    """

    spatial_dims: int
    padding: Padding = "same"
    norm: Layer | None = None
    act: Layer = "relu"

    def convolution(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int] = 3,
        stride: int | Sequence[int] = 1,
        act: bool = True,
        bias: bool = True,
    ) -> nn.Sequential:
        """Convolution, then norm, then activation; norm where there is one.

        Args:
            in_channels: channels of the input.
            out_channels: channels of the output.
            kernel_size: odd, one number or one per axis.
            stride: one number or one per axis.
            act: False leaves the activation out.
            bias: whether the convolution has a bias.

        Raises:
            InputError: an even kernel, which has no centre.
        """
        kernel = ensure_tuple_rep(kernel_size, self.spatial_dims)
        if any(k % 2 == 0 for k in kernel):
            raise InputError(f"kernel_size is {kernel_size!r}: use odd numbers, such as 1, 3 or 5")
        margin = tuple(k // 2 if self.padding == "same" else 0 for k in kernel)
        steps = ensure_tuple_rep(stride, self.spatial_dims)
        convolution = Conv[Conv.CONV, self.spatial_dims]
        unit = nn.Sequential(
            convolution(in_channels, out_channels, kernel, stride=steps, padding=margin, bias=bias)
        )
        if self.norm is not None:
            unit.add_module("norm", get_norm_layer(self.norm, self.spatial_dims, out_channels))
        if act:
            unit.add_module("act", self.activation(out_channels))
        return unit

    def preactivated(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
    ) -> nn.Sequential:
        """Norm, where there is one, activation, then a convolution; arguments are those of `convolution`."""
        unit = nn.Sequential()
        if self.norm is not None:
            unit.append(get_norm_layer(self.norm, self.spatial_dims, in_channels))
        unit.append(self.activation(in_channels))
        unit.append(self.convolution(in_channels, out_channels, kernel_size, stride)[0])
        return unit

    def activation(self, channels: int) -> nn.Module:
        """The activation of a map.

        Args:
            channels: of the map; PReLU without arguments learns a slope for each (He et al., 2015, "Delving
                deep into rectifiers", section 2.1).
        """
        if isinstance(self.act, str) and self.act.lower() == "prelu":
            return nn.PReLU(channels)
        return get_act_layer(self.act)


class Stage(nn.Module):
    """A part of a network that publishes what the next part has to know about it.

    Args:
        out_channels: channels of the output, an attribute for the next part to read; of a part that gives
            several maps the channels of each.
    """

    def __init__(self, out_channels: int | Sequence[int]) -> None:
        super().__init__()
        self.out_channels: Any = out_channels

    def draw_weights(self) -> None:
        """Draw the weights of every convolution; a part with weights of its own, trained ones say, overrides.

        From N(0, sqrt(2/N)), biases 0. N is the number of incoming nodes of one output neuron (Ronneberger et
        al., 2015, section 3): input channels times kernel voxels, divided by the stride in a transposed
        convolution, where only so many reach one output.
        """
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
                incoming = module.in_channels // module.groups * math.prod(module.kernel_size)
                if module.transposed:
                    incoming //= math.prod(module.stride)
                nn.init.normal_(module.weight, 0.0, math.sqrt(2 / incoming))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


def centre_crop(x: Tensor, size: list[int]) -> Tensor:
    """Cut the centre out of a feature map.

    Args:
        x: feature map, `(B, C, H, W[, D])`.
        size: spatial size of the result; where an odd number of voxels goes, one more goes at the end.

    Returns:
        `(B, C, *size)`. By negative padding: `torch.export` can follow its sizes, and not those of a view.
    """
    cuts: list[int] = []
    for axis in range(len(size) - 1, -1, -1):
        start = (x.shape[axis + 2] - size[axis]) // 2
        cuts += [-start, size[axis] - x.shape[axis + 2] + start]
    return nn.functional.pad(x, cuts)


class PlainBlock(Stage):
    """Convolution, norm and activation, repeated.

    Args:
        layers: what layers are made of.
        in_channels: channels of the input.
        out_channels: channels that each convolution gives, one entry per convolution.
        kernel_size: odd kernel size of every convolution, one entry per axis.
        stride: stride of the first convolution, one entry per axis.
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
        self.convolutions = nn.Sequential()
        last = len(out_channels) - 1
        for index, channels in enumerate(out_channels):
            step = stride if index == 0 else (1,) * layers.spatial_dims
            unit = self.make_unit(
                layers, in_channels, channels, kernel_size, step, is_first=index == 0, is_last=index == last
            )
            self.convolutions.append(unit)
            in_channels = channels

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
        """One convolution of the block with its norm and activation."""
        return layers.convolution(in_channels, out_channels, kernel_size, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, in_channels, H, W[, D])` to `(B, out_channels[-1], H', W'[, D'])`."""
        return self.convolutions(x)


class ResidualBlock(PlainBlock):
    """A plain block with a shortcut around it: `act(convolutions(x) + shortcut(x))`.

    The shortcut is the identity, or a 1x1 convolution and norm where channels or size change (He, Zhang, Ren
    and Sun, 2016, "Deep residual learning for image recognition", section 3.3, option B). With "valid"
    padding it is cropped around the centre. Arguments are those of `PlainBlock`.
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
        # Voxels that one convolution takes from each side of an axis.
        self.margin = tuple(k // 2 if layers.padding == "valid" else 0 for k in kernel_size)
        self.act = layers.activation(self.out_channels)
        self.shortcut = self.make_shortcut(layers, in_channels, stride)

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
        """One convolution with its norm and activation; the activation of the last comes after the sum."""
        return layers.convolution(in_channels, out_channels, kernel_size, stride, act=not is_last)

    def make_shortcut(self, layers: Layers, in_channels: int, stride: Sequence[int]) -> nn.Module:
        """The way around the convolutions."""
        if in_channels == self.out_channels and max(stride) == 1:
            return nn.Identity()
        return layers.convolution(in_channels, self.out_channels, 1, stride, act=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, in_channels, H, W[, D])` to `(B, out_channels[-1], H', W'[, D'])`."""
        y = self.convolutions(x)
        # What the first convolution loses goes before the stride, so that both paths see the same voxels.
        shape = x.shape[2:]
        x = centre_crop(x, [shape[axis] - 2 * margin for axis, margin in enumerate(self.margin)])
        return self.act(y + centre_crop(self.shortcut(x), list(y.shape[2:])))


class MaxPool(Stage):
    """Reduce by max pooling with kernel = stride (Ronneberger et al., 2015, section 2).

    Args:
        layers: what layers are made of.
        in_channels: channels of the input, and of the output.
        stride: factor per axis.
    """

    def __init__(self, layers: Layers, in_channels: int, stride: Sequence[int]) -> None:
        super().__init__(in_channels)
        self.pool = Pool[Pool.MAX, layers.spatial_dims](tuple(stride), tuple(stride))

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, in_channels, H, W[, D])` to `(B, in_channels, H / stride, ...)`."""
        return self.pool(x)


class TransposedUp(Stage):
    """Enlarge by a transposed convolution whose kernel is its stride, so that no two outputs overlap.

    Args:
        layers: what layers are made of.
        in_channels: channels that come from the level below.
        out_channels: channels of the level that is entered, those of its skip: half of ``in_channels`` in the
            network of Ronneberger et al., 2015.
        stride: factor per axis.
        keep_channels: give ``in_channels`` instead (Cicek et al., 2016).
        bias: whether the convolution has a bias.
    """

    def __init__(
        self,
        layers: Layers,
        in_channels: int,
        out_channels: int,
        stride: Sequence[int],
        keep_channels: bool = False,
        bias: bool = True,
    ) -> None:
        channels = in_channels if keep_channels else out_channels
        super().__init__(channels)
        steps = tuple(stride)
        convolution = Conv[Conv.CONVTRANS, layers.spatial_dims]
        self.convolution = convolution(in_channels, channels, steps, stride=steps, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, in_channels, H, W[, D])` to `(B, out_channels, H * stride, ...)`."""
        return self.convolution(x)


def _linear(layers: Layers, stride: Sequence[int]) -> nn.Upsample:
    """Linear interpolation to a map that is larger by a stride."""
    return nn.Upsample(
        scale_factor=tuple(float(s) for s in stride),
        mode="bilinear" if layers.spatial_dims == 2 else "trilinear",
        align_corners=False,
    )


class InterpolatedUp(Stage):
    """Enlarge by linear interpolation, after a 1x1 convolution to the channels of the level that is entered.

    Both are linear and the weights of the interpolation sum to one, so their order changes nothing but the
    cost, which is lowest with the convolution on the smaller map.

    Args:
        layers: what layers are made of.
        in_channels: channels that come from the level below.
        out_channels: channels of the level that is entered.
        stride: factor per axis.
    """

    def __init__(self, layers: Layers, in_channels: int, out_channels: int, stride: Sequence[int]) -> None:
        super().__init__(out_channels)
        self.convolution = Conv[Conv.CONV, layers.spatial_dims](in_channels, out_channels, 1)
        self.interpolation = _linear(layers, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, in_channels, H, W[, D])` to `(B, out_channels, H * stride, ...)`."""
        return self.interpolation(self.convolution(x))


class LinearUp(Stage):
    """Enlarge by linear interpolation alone; all channels of the level below go on.

    Args:
        layers: what layers are made of.
        in_channels: channels that come from the level below, and of the output.
        out_channels: channels of the level that is entered, which change nothing here.
        stride: factor per axis.
    """

    def __init__(self, layers: Layers, in_channels: int, out_channels: int, stride: Sequence[int]) -> None:
        super().__init__(in_channels)
        self.interpolation = _linear(layers, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, in_channels, H, W[, D])` to `(B, in_channels, H * stride, ...)`."""
        return self.interpolation(x)


class NearestUp(Stage):
    """Enlarge by repeating each voxel, then a convolution of 3 voxels with norm and activation.

    Args:
        layers: what layers are made of.
        in_channels: channels that come from the level below.
        out_channels: channels of the level that is entered.
        stride: factor per axis.
    """

    def __init__(self, layers: Layers, in_channels: int, out_channels: int, stride: Sequence[int]) -> None:
        super().__init__(out_channels)
        self.enlarge = nn.Upsample(scale_factor=tuple(float(s) for s in stride), mode="nearest")
        self.convolution = layers.convolution(in_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, in_channels, H, W[, D])` to `(B, out_channels, H * stride, ...)`."""
        return self.convolution(self.enlarge(x))


class Concatenate(Stage):
    """Put the skip and the map from below beside each other in the channels, the skip first.

    Args:
        layers: with padding "valid" the skip is cropped around its centre; with "same" nothing is cropped.
        skip_channels: channels of the skip.
        up_channels: channels of the map from below, enlarged.
        below_channels: its channels before the up-step.
    """

    def __init__(self, layers: Layers, skip_channels: int, up_channels: int, below_channels: int) -> None:
        super().__init__(skip_channels + up_channels)
        self.crops = layers.padding == "valid"

    def forward(self, skip: Tensor, up: Tensor, below: Tensor) -> Tensor:
        """Merge maps to `(B, out_channels, *size)`.

        Args:
            skip: `(B, skip_channels, ...)`.
            up: `(B, up_channels, *size)`.
            below: the coarser map before the up-step, for merges that look at it.
        """
        return self.join(skip, up)

    def join(self, skip: Tensor, up: Tensor) -> Tensor:
        """Put two maps beside each other."""
        if self.crops:
            skip = centre_crop(skip, list(up.shape[2:]))
        return torch.cat((skip, up), dim=1)
