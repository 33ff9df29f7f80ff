"""The U-Net: encoder, decoder and head, in two and three dimensions.

Follows
- Ronneberger, Fischer and Brox, 2015, "U-Net: convolutional networks for biomedical image segmentation":
  the shape of the network (section 2, figure 1), dropout at the end of the contracting path and the drawing
  of the weights (section 3);
- Cicek, Abdulkadir, Lienkamp, Brox and Ronneberger, 2016, "3D U-Net: learning dense volumetric segmentation
  from sparse annotation": three dimensions, batch norm before each ReLU, channels doubled before each pooling
  (section 2).

`configs/network/unet2015.json` and `configs/network/unet3d2016.json` are these two networks. The defaults
depart from them: padded convolutions, instance norm, no dropout.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import accumulate
from operator import mul
from typing import cast

import torch
from monai.networks.layers.factories import Conv, Pool
from torch import Tensor, nn

from scripts.errors import InputError
from scripts.networks.blocks import Concatenate, Layer, Padding, PlainBlock, Stage, TransposedUp

# The 2015 paper has "drop-out layers at the end of the contracting path": here, in the two deepest levels.
DROPOUT_LEVELS = 2

Axes = tuple[int, ...]  # one entry per spatial axis


class EncoderLevel(Stage):
    """One resolution of the encoder: down-step, block, dropout.

    Args:
        pool: max pooling, or the identity where the block's first convolution carries the stride.
        block: the convolutions.
        stride: stride of the down-step, one entry per axis, whoever carries it.
        dropout: probability of dropping an activation, or None for a level without dropout.
    """

    def __init__(self, pool: nn.Module, block: Stage, stride: Axes, dropout: float | None) -> None:
        super().__init__(block.out_channels)
        self.stride = stride
        self.pools = not isinstance(pool, nn.Identity)
        self.pool = pool
        self.block = block
        self.dropout = nn.Identity() if dropout is None else nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map the features of the level above, `(B, C, H, W[, D])`, to those of this one."""
        return self.dropout(self.block(self.pool(x)))

    def output_length(self, length: int, axis: int) -> int:
        """Length of the output along one axis; zero or less where the stride does not divide the input."""
        if length % self.stride[axis]:
            return 0
        return self.block.output_length(length // self.stride[axis] if self.pools else length, axis)


class Encoder(nn.Module):
    """Contracting path. Arguments are those of `UNet`, with one entry per level and one per axis.

    `strides` has an entry for the first level as well, which is one.

    Attributes:
        out_channels: channels of each level, from high to low resolution.
        strides: stride of each level against the one above, one entry per axis.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        channels: Sequence[Sequence[int]],
        strides: Sequence[Axes],
        kernel_sizes: Sequence[Axes],
        padding: Padding,
        block: Callable[..., Stage],
        pool: str,
        norm: Layer | None,
        act: Layer,
        dropout: float,
    ) -> None:
        super().__init__()
        self.out_channels = tuple(level[-1] for level in channels)
        self.strides = tuple(strides)
        self.levels = nn.ModuleList()
        unit = (1,) * spatial_dims
        for index, level_channels in enumerate(channels):
            stride = strides[index]
            pools = pool == "max" and stride != unit
            level_block = block(
                spatial_dims=spatial_dims,
                in_channels=in_channels if index == 0 else self.out_channels[index - 1],
                out_channels=level_channels,
                kernel_size=kernel_sizes[index],
                stride=unit if pools else stride,
                padding=padding,
                norm=norm,
                act=act,
            )
            max_pool = Pool[Pool.MAX, spatial_dims](stride, stride) if pools else nn.Identity()
            drops = index >= len(channels) - DROPOUT_LEVELS
            self.levels.append(EncoderLevel(max_pool, level_block, stride, dropout if drops else None))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map an image, `(B, in_channels, H, W[, D])`, to each level's features, high to low resolution."""
        features: list[Tensor] = []
        for level in self.levels:
            x = level(x)
            features.append(x)
        return features

    def output_lengths(self, length: int, axis: int) -> list[int]:
        """Length of each level's features along one axis; ends with zero or less where one is impossible."""
        lengths: list[int] = []
        for level in self.levels:
            length = cast(Stage, level).output_length(length, axis)
            lengths.append(length)
            if length < 1:
                break
        return lengths


class DecoderLevel(nn.Module):
    """One resolution of the decoder: up-step, merge with the skip, block."""

    def __init__(self, up: Stage, merge: Stage, block: Stage) -> None:
        super().__init__()
        self.up = up
        self.merge = merge
        self.block = block

    def forward(self, skip: Tensor, below: Tensor) -> Tensor:
        """Map the skip, `(B, C, H, W[, D])`, and the level below to this level's features."""
        return self.block(self.merge(skip, self.up(below)))

    def output_length(self, below: int, axis: int) -> int:
        """Length of the output along one axis, from the length of the level below."""
        return self.block.output_length(self.up.output_length(below, axis), axis)


class Decoder(nn.Module):
    """Expanding path, built from the `out_channels` and `strides` that the encoder publishes.

    Other arguments are those of `UNet`, with one entry per level and one per axis.

    Attributes:
        out_channels: channels of each level, from low to high resolution, the order of the outputs.
    """

    def __init__(
        self,
        spatial_dims: int,
        encoder_channels: Sequence[int],
        encoder_strides: Sequence[Axes],
        kernel_sizes: Sequence[Axes],
        padding: Padding,
        block: Callable[..., Stage],
        up: Callable[..., Stage],
        merge: Callable[..., Stage],
        convs_per_level: int,
        norm: Layer | None,
        act: Layer,
    ) -> None:
        super().__init__()
        self.out_channels = tuple(reversed(encoder_channels[:-1]))
        self.levels = nn.ModuleList()
        for index in reversed(range(len(encoder_channels) - 1)):
            skip_channels = encoder_channels[index]
            level_up = up(
                spatial_dims=spatial_dims,
                in_channels=encoder_channels[index + 1],
                skip_channels=skip_channels,
                stride=encoder_strides[index + 1],
            )
            level_merge = merge(
                spatial_dims=spatial_dims,
                skip_channels=skip_channels,
                up_channels=level_up.out_channels,
                padding=padding,
            )
            level_block = block(
                spatial_dims=spatial_dims,
                in_channels=level_merge.out_channels,
                out_channels=(skip_channels,) * convs_per_level,
                kernel_size=kernel_sizes[index],
                stride=(1,) * spatial_dims,
                padding=padding,
                norm=norm,
                act=act,
            )
            self.levels.append(DecoderLevel(level_up, level_merge, level_block))

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Map the encoder's features, high to low resolution, to the decoder's, low to high resolution."""
        x = features[-1]
        outputs: list[Tensor] = []
        for index, level in enumerate(self.levels):
            x = level(features[-2 - index], x)
            outputs.append(x)
        return outputs

    def output_length(self, length: int, axis: int) -> int:
        """Length of the last output along one axis, from that of the deepest features; 0 if impossible."""
        for level in self.levels:
            length = cast(DecoderLevel, level).output_length(length, axis)
            if length < 1:
                return 0
        return length


class UNet(nn.Module):
    """U-Net for two or three spatial dimensions.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        out_channels: channels of the logits.
        channels: one entry per level, from high to low resolution, two levels or more; each entry the
            channels of every convolution of the level, or a list with the channels of each one. In the
            decoder every convolution of a level gives the level's last number.
        strides: stride of the down-steps: one number for all, or one entry per down-step (one fewer than
            levels), each a number or one per axis.
        kernel_sizes: odd kernel size: one number for all, or one entry per level, each a number or one per
            axis.
        padding: "same" pads every convolution; "valid" pads none, crops the skips around their centre and
            gives an output smaller than the input (see `output_size`).
        block: class of the convolutions of a level, such as `PlainBlock` or `ResidualBlock`.
        up: class of the up-steps, such as `TransposedUp` or `InterpolatedUp`.
        merge: class that joins the skip and the level below, such as `Concatenate`.
        pool: "max" for max pooling with kernel = stride; "conv" for a stride in the level's first
            convolution.
        convs_per_level: convolutions of each decoder level, and of each encoder level whose channels are one
            number.
        norm: MONAI norm layer, a name or a name and arguments, before each activation; or None.
        act: MONAI activation layer, a name or a name and arguments.
        dropout: probability, 0 to 1, of dropping an activation at the end of the two deepest encoder levels.
            The modules exist whatever the value, for hosts that switch dropout on to measure uncertainty.
        deep_supervision: number of further 1x1 heads, on the decoder levels below the highest.

    Raises:
        InputError: an argument breaks a rule.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        channels: Sequence[int | Sequence[int]],
        strides: int | Sequence[int | Sequence[int]] = 2,
        kernel_sizes: int | Sequence[int | Sequence[int]] = 3,
        padding: Padding = "same",
        block: Callable[..., Stage] = PlainBlock,
        up: Callable[..., Stage] = TransposedUp,
        merge: Callable[..., Stage] = Concatenate,
        pool: str = "max",
        convs_per_level: int = 2,
        norm: Layer | None = "instance",
        act: Layer = "relu",
        dropout: float = 0.0,
        deep_supervision: int = 0,
    ) -> None:
        super().__init__()
        _require_one_of("spatial_dims", spatial_dims, (2, 3))
        _require_one_of("padding", padding, ("same", "valid"))
        _require_one_of("pool", pool, ("max", "conv"))
        _require_within("in_channels", in_channels, 1)
        _require_within("out_channels", out_channels, 1)
        _require_within("convs_per_level", convs_per_level, 1)
        _require_within("dropout", dropout, 0, 1)
        _require_within("the number of levels in channels", len(channels), 2)
        _require_within("deep_supervision", deep_supervision, 0, len(channels) - 2)
        level_channels = _per_convolution(channels, convs_per_level)
        level_kernels = _per_level("kernel_sizes", kernel_sizes, len(channels), spatial_dims)
        if any(k % 2 == 0 for level in level_kernels for k in level):
            raise InputError(
                f"kernel_sizes {kernel_sizes!r} holds an even number: use odd ones, such as 1, 3 or 5"
            )
        down_steps = _per_level("strides", strides, len(channels) - 1, spatial_dims)

        self.spatial_dims = spatial_dims
        self.padding = padding
        self.encoder = Encoder(
            spatial_dims,
            in_channels,
            level_channels,
            [(1,) * spatial_dims, *down_steps],
            level_kernels,
            padding,
            block,
            pool,
            norm,
            act,
            dropout,
        )
        self.decoder = Decoder(
            spatial_dims,
            self.encoder.out_channels,
            self.encoder.strides,
            level_kernels,
            padding,
            block,
            up,
            merge,
            convs_per_level,
            norm,
            act,
        )
        head = Conv[Conv.CONV, spatial_dims]
        highest_first = self.decoder.out_channels[::-1]
        self.head = head(highest_first[0], out_channels, 1)
        self.deep_heads = nn.ModuleList(
            head(width, out_channels, 1) for width in highest_first[1 : deep_supervision + 1]
        )
        self.apply(draw_weights)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Give the logits of an image.

        Args:
            x: image, `(B, in_channels, H, W[, D])`.

        Returns:
            Logits, `(B, out_channels, H', W'[, D'])` with the size that `output_size` gives. With deep
            supervision and in training mode a list of logits, from high to low resolution.

        Raises:
            InputError: the size of the image is illegal. A scripted, traced or exported network does not
                check.
        """
        if not (torch.jit.is_scripting() or torch.jit.is_tracing() or torch.compiler.is_compiling()):
            self.check_input_size(x.shape[2:])
        outputs = self.decoder(self.encoder(x))
        logits = self.head(outputs[-1])
        if not torch.jit.is_scripting() and self.training and len(self.deep_heads) > 0:
            return [logits, *(head(outputs[-2 - i]) for i, head in enumerate(self.deep_heads))]
        return logits

    def output_size(self, input_size: Sequence[int]) -> Axes:
        """Spatial size of the logits.

        Args:
            input_size: spatial size of the image, in voxels.

        Returns:
            Spatial size of the logits, in voxels; `input_size` with padding "same".

        Raises:
            InputError: the size is illegal.
        """
        self.check_input_size(input_size)
        return tuple(self._output_length(length, axis) for axis, length in enumerate(input_size))

    def reach(self, axis: int) -> int:
        """How many neighbours on each side a voxel of the logits depends on along one axis, norms left out.

        Args:
            axis: spatial axis, counted from 0.

        Returns:
            Voxels of the image; an upper bound, as the position in the grid of the deepest level counts too.
        """
        scales = list(accumulate((stride[axis] for stride in self.encoder.strides), mul))
        reach = scales[-1] - 1
        for index, level in enumerate(self.encoder.levels):
            # a stride in the block's first convolution acts on the scale of the level above
            above = scales[index] if cast(EncoderLevel, level).pools or not index else scales[index - 1]
            reach += cast(EncoderLevel, level).block.reach(axis) * above
        for index, level in enumerate(self.decoder.levels):
            below, own = scales[-1 - index], scales[-2 - index]
            reach += cast(DecoderLevel, level).up.reach(axis) * below
            reach += cast(DecoderLevel, level).block.reach(axis) * own
        return reach

    def margin(self, axis: int) -> int:
        """How many voxels at the rim of a tile differ from the image in one piece, with padding "same".

        Args:
            axis: spatial axis, counted from 0.

        Returns:
            Voxels of the image: `reach`, rounded up to the grid of the deepest level.
        """
        grid = math.prod(stride[axis] for stride in self.encoder.strides)
        return math.ceil(self.reach(axis) / grid) * grid

    def check_input_size(self, input_size: Sequence[int]) -> None:
        """Make sure that an image of this spatial size can pass the network.

        Args:
            input_size: spatial size of the image, in voxels.

        Raises:
            InputError: the size is illegal; the message names the nearest legal sizes of each axis.
        """
        size = tuple(int(length) for length in input_size)
        if len(size) != self.spatial_dims:
            raise InputError(
                f"input size {size} has {len(size)} spatial axes, the network has {self.spatial_dims}: "
                f"hand in a batch with {self.spatial_dims + 2} dimensions, batch and channels first"
            )
        illegal = [axis for axis in range(self.spatial_dims) if self._output_length(size[axis], axis) == 0]
        if illegal:
            nearest = "; ".join(f"axis {axis}: {self._nearest_legal(size[axis], axis)}" for axis in illegal)
            raise InputError(
                f"input size {size} does not fit the network: {self._size_rule()}; "
                f"use a nearest legal size, {nearest}"
            )

    def _size_rule(self) -> str:
        if self.padding == "same":
            factors = tuple(math.prod(axis) for axis in zip(*self.encoder.strides, strict=True))
            return f"the size must be a multiple of {factors}, the product of the strides of each axis"
        steps = ", ".join(str(stride) for stride in self.encoder.strides[1:])
        return (
            f'with padding "valid" what is left before each down-step must be a multiple of its stride '
            f"({steps}) and every convolution must leave a voxel"
        )

    def _nearest_legal(self, length: int, axis: int) -> str:
        below = length - 1
        while below > 0 and self._output_length(below, axis) == 0:
            below -= 1
        above = max(length + 1, 1)
        while self._output_length(above, axis) == 0:
            above += 1
        return f"{below} or {above}" if below > 0 else f"{above}, the smallest"

    def _output_length(self, length: int, axis: int) -> int:
        """Length of the logits along one axis, 0 when the input's is illegal; axes are independent."""
        if length < 1:
            return 0
        deepest = self.encoder.output_lengths(length, axis)[-1]
        return self.decoder.output_length(deepest, axis) if deepest > 0 else 0


def output_size(network: nn.Module, input_size: Sequence[int]) -> Axes:
    """Spatial size of a network's logits.

    Args:
        network: any network; one without an `output_size` method, such as MONAI's, keeps its input's size.
        input_size: spatial size of the image, in voxels.

    Returns:
        Spatial size of the logits, in voxels.

    Raises:
        InputError: the size is illegal for the network.
    """
    if hasattr(network, "output_size"):
        return cast(UNet, network).output_size(input_size)
    return tuple(input_size)


def covering_size(network: nn.Module, spatial: Sequence[int], legal: Sequence[int]) -> Axes:
    """The smallest input whose logits are as large as an image, or larger.

    Args:
        network: any network; see `output_size`.
        spatial: spatial size of the image, in voxels.
        legal: any input size that is legal for the network.

    Returns:
        Spatial size of the input, in voxels; axes are independent.
    """
    covering = []
    for axis, length in enumerate(spatial):
        candidate = int(length)
        while True:
            try:
                if output_size(network, [*legal[:axis], candidate, *legal[axis + 1 :]])[axis] >= length:
                    break
            except InputError:
                pass
            candidate += 1
        covering.append(candidate)
    return tuple(covering)


def draw_weights(module: nn.Module) -> None:
    """Draw the weights of a convolution from N(0, sqrt(2/N)) and set its biases to zero.

    N is the number of incoming nodes of one output neuron (Ronneberger et al., 2015, section 3): input
    channels times kernel voxels, divided by the stride in a transposed convolution, where only so many reach
    one output.

    Args:
        module: a module; anything but a convolution is left alone.
    """
    if not isinstance(module, (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
        return
    incoming = module.in_channels // module.groups * math.prod(module.kernel_size)
    if module.transposed:
        incoming //= math.prod(module.stride)
    nn.init.normal_(module.weight, 0.0, math.sqrt(2 / incoming))
    if module.bias is not None:
        nn.init.zeros_(module.bias)


def _require_one_of(name: str, value: object, allowed: tuple) -> None:
    if value not in allowed:
        raise InputError(f"{name} is {value!r}: use {' or '.join(repr(choice) for choice in allowed)}")


def _require_within(name: str, value: float, low: float, high: float = math.inf) -> None:
    if not low <= value <= high:
        limits = f"{low} or more" if high == math.inf else f"{low} to {high}"
        raise InputError(f"{name} is {value!r}: use {limits}")


def _per_convolution(channels: Sequence[int | Sequence[int]], convs_per_level: int) -> list[Axes]:
    levels = [(level,) * convs_per_level if isinstance(level, int) else tuple(level) for level in channels]
    if any(not level or min(level) < 1 for level in levels):
        raise InputError(
            f"channels {channels!r} holds an empty level or a number below 1: give each level channels"
        )
    return levels


def _per_level(
    name: str, value: int | Sequence[int | Sequence[int]], count: int, spatial_dims: int
) -> list[Axes]:
    entries = [value] * count if isinstance(value, int) else list(value)
    if len(entries) != count:
        what = "down-step, one fewer than levels" if name == "strides" else "level"
        raise InputError(
            f"{name} {value!r} has {len(entries)} entries: give {count}, one per {what}, or one number"
        )
    levels = [(entry,) * spatial_dims if isinstance(entry, int) else tuple(entry) for entry in entries]
    if any(len(level) != spatial_dims or min(level) < 1 for level in levels):
        raise InputError(
            f"{name} {value!r} holds an entry that is neither a number nor {spatial_dims}, one per axis, "
            "of 1 or more: correct that entry"
        )
    return levels
