"""The U-Net: encoder, decoder and heads, in two and three dimensions.

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

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from scripts.errors import InputError, require_one_of, require_within
from scripts.networks.blocks import (
    Axes,
    Concatenate,
    Layer,
    Layers,
    MaxPool,
    Padding,
    PlainBlock,
    Stage,
    TransposedUp,
)
from scripts.networks.heads import Heads
from scripts.networks.sizes import Sizes, require_multiple

# The 2015 paper has "drop-out layers at the end of the contracting path": here, in the two deepest levels.
DROPOUT_LEVELS = 2

Part = Callable[..., Stage]  # a class of `scripts.networks.blocks`, or like one


@dataclass(frozen=True)
class Level:
    """One resolution of a network.

    Attributes:
        channels: channels of each convolution of its block.
        stride: stride against the level above, or of the highest level against the image; one entry per axis.
        kernel_size: of its convolutions, one entry per axis.
        block: class of its block.
    """

    channels: Axes
    stride: Axes
    kernel_size: Axes
    block: Part

    def make_block(self, layers: Layers, in_channels: int, stride: Axes) -> Stage:
        """The block of this level.

        Args:
            layers: what layers are made of.
            in_channels: channels of its input.
            stride: of its first convolution, one entry per axis.
        """
        return self.block(
            layers=layers,
            in_channels=in_channels,
            out_channels=self.channels,
            kernel_size=self.kernel_size,
            stride=stride,
        )


class Assembly(Stage):
    """A stage made of stages, each of which draws its own weights; what is no `Stage` keeps those it has."""

    def draw_weights(self) -> None:
        """Have every stage draw its weights."""
        draw_weights(self)


class EncoderLevel(Assembly):
    """One resolution of the encoder: down-step, block, dropout.

    Args:
        down: the down-step, or None where the block's first convolution carries the stride.
        block: the convolutions.
        stride: of the level, whoever carries it, one entry per axis.
        dropout: probability of dropping an activation, or None for a level without dropout.
    """

    def __init__(self, down: Stage | None, block: Stage, stride: Axes, dropout: float | None) -> None:
        super().__init__(block.out_channels)
        self.stride = stride
        self.down = nn.Identity() if down is None else down
        self.block = block
        self.dropout = nn.Identity() if dropout is None else nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map the features of the level above, `(B, C, H, W[, D])`, to those of this one."""
        if not (torch.jit.is_scripting() or torch.jit.is_tracing() or torch.compiler.is_compiling()):
            self.check(x)
        return self.dropout(self.block(self.down(x)))

    @torch.jit.unused
    def check(self, x: Tensor) -> None:
        """Refuse what the stride does not divide: with valid padding skips would lie askew.

        Raises:
            IllegalLength: such a length.
        """
        require_multiple(x, self.stride)


class Encoder(Assembly):
    """Contracting path.

    Args:
        layers: what layers are made of.
        in_channels: channels of the image.
        levels: from high to low resolution.
        down: class of the down-steps, or None where the first convolution of a level carries its stride.
        dropout: probability of dropping an activation at the end of the two deepest levels.

    Attributes:
        out_channels: channels of each level, from high to low resolution.
        strides: stride of each level against the one above, one entry per axis.
    """

    def __init__(
        self, layers: Layers, in_channels: int, levels: Sequence[Level], down: Part | None, dropout: float
    ) -> None:
        super().__init__(())
        self.strides = tuple(level.stride for level in levels)
        self.levels = nn.ModuleList()
        unit = (1,) * layers.spatial_dims
        channels = in_channels
        for index, level in enumerate(levels):
            drops = index >= len(levels) - DROPOUT_LEVELS
            step = None
            if down is not None and level.stride != unit:
                step = down(layers=layers, in_channels=channels, stride=level.stride)
                channels = step.out_channels
            block = level.make_block(layers, channels, level.stride if step is None else unit)
            self.levels.append(EncoderLevel(step, block, level.stride, dropout if drops else None))
            channels = block.out_channels
        self.out_channels = tuple(level.out_channels for level in self.levels)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map an image, `(B, in_channels, H, W[, D])`, to each level's features, high to low resolution."""
        features: list[Tensor] = []
        for level in self.levels:
            x = level(x)
            features.append(x)
        return features


class DecoderLevel(Assembly):
    """One resolution of the decoder: up-step, merge with the skip, block.

    Args:
        up: the up-step.
        merge: what joins the skip and the level below.
        block: the convolutions.
        level: which resolution, 0 for the highest.
    """

    def __init__(self, up: Stage, merge: Stage, block: Stage, level: int) -> None:
        super().__init__(block.out_channels)
        self.level = level
        self.up = up
        self.merge = merge
        self.block = block

    def forward(self, skip: Tensor, below: Tensor) -> Tensor:
        """Map the skip, `(B, C, H, W[, D])`, and the level below to this level's features."""
        return self.block(self.merge(skip, self.up(below), below))


class Decoder(Assembly):
    """Expanding path, built from what the encoder publishes.

    Where the encoder's highest level has a stride, one more up-step, without a skip, leads to the image.

    Args:
        layers: what layers are made of.
        in_channels: channels of the encoder's levels, from high to low resolution.
        strides: their strides.
        levels: from high to low resolution, one for each of the encoder's but the deepest.
        up: class of the up-steps.
        merge: class of what joins the skip and the level below; or a list with the class of each level.
        image_channels: channels of the step to the image, where there is one; None for those of the highest
            level.

    Attributes:
        out_channels: channels of each map, from low to high resolution, the order of the outputs.
    """

    def __init__(
        self,
        layers: Layers,
        in_channels: Sequence[int],
        strides: Sequence[Axes],
        levels: Sequence[Level],
        up: Part,
        merge: Part | Sequence[Part],
        image_channels: int | None = None,
    ) -> None:
        super().__init__(())
        self.levels = nn.ModuleList()
        unit = (1,) * layers.spatial_dims
        below = in_channels[-1]
        merges = _classes("merge", merge, len(levels), "per level but the deepest")
        rows = list(zip(levels, in_channels, strides[1:], merges, strict=False))
        for level, skip, stride, join in reversed(rows):
            step = up(layers=layers, in_channels=below, out_channels=skip, stride=stride)
            joint = join(
                layers=layers, skip_channels=skip, up_channels=step.out_channels, below_channels=below
            )
            block = level.make_block(layers, joint.out_channels, unit)
            self.levels.append(DecoderLevel(step, joint, block, len(levels) - 1 - len(self.levels)))
            below = block.out_channels
        self.last: nn.Module = nn.Identity()
        if strides[0] != unit:
            top = levels[0]
            if image_channels is not None:
                top = replace(top, channels=(image_channels,) * len(top.channels))
            step = up(layers=layers, in_channels=below, out_channels=top.channels[-1], stride=strides[0])
            block = top.make_block(layers, step.out_channels, unit)
            self.last = nn.Sequential(step, block)
            below = block.out_channels
        self.out_channels = (*(level.out_channels for level in self.levels[:-1]), below)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Map the encoder's features, high to low resolution, to the decoder's, low to high resolution."""
        x = features[-1]
        outputs: list[Tensor] = []
        for index, level in enumerate(self.levels):
            x = level(features[-2 - index], x)
            outputs.append(x)
        outputs[-1] = self.last(x)
        return outputs


class UNet(nn.Module):
    """U-Net for two or three spatial dimensions: parts that publish what they give, and their assembly.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        out_channels: channels of the logits.
        channels: one entry per level, from high to low resolution, two levels or more; each entry the
            channels of every convolution of the level, or a list with the channels of each one.
        strides: stride of the down-steps: one number for all, or one entry per down-step (one fewer than
            levels), each a number or one per axis.
        kernel_sizes: odd kernel size: one number for all, or one entry per level, each a number or one per
            axis.
        padding: "same" pads every convolution; "valid" pads none, crops the skips around their centre and
            gives an output smaller than the input (see `scripts.networks.output_size`).
        block: class of the convolutions of a level, such as `PlainBlock` or `ResidualBlock`; or a list with
            the class of each level.
        down: class of the down-steps, such as `MaxPool`; None for a stride in the level's first convolution.
        up: class of the up-steps, such as `TransposedUp` or `InterpolatedUp`.
        merge: class that joins the skip and the level below, such as `Concatenate`; or a list with the class
            of each level but the deepest.
        bottleneck: class of what the deepest features pass before the decoder, made with ``layers`` and
            ``in_channels``; or None.
        convs_per_level: convolutions of each level of encoder and decoder whose channels are one number; or
            a list with those of each level, of which a network of fewer levels takes the first.
        decoder_channels: as ``channels``, for the decoder's levels (one fewer); None gives every convolution
            of a level the level's last number.
        norm: MONAI norm layer, a name or a name and arguments, before each activation; or None.
        act: MONAI activation layer, a name or a name and arguments.
        dropout: probability, 0 to 1, of dropping an activation at the end of the two deepest encoder levels.
            The modules exist whatever the value, for hosts that switch dropout on to measure uncertainty.
        encoder: class that takes the arguments of `Encoder` and publishes ``out_channels`` and ``strides``.
        decoder: class that takes the arguments of `Decoder` and publishes ``out_channels``.
        heads: class that takes the arguments of `Heads`: from the decoder's maps to logits, or to a
            dictionary of logits by name, in which "main" is what inference reads.
        slice_axis: of a volume, the spatial axis across which nothing is seen: each slice is an image of two
            dimensions, and everything in the network is of two, ``strides`` and ``kernel_sizes`` with an
            entry for each of the other two axes. None for a network that sees along all axes.

    Raises:
        InputError: an argument breaks a rule; when called, an image of a size that does not fit.
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
        block: Part | Sequence[Part] = PlainBlock,
        down: Part | None = MaxPool,
        up: Part = TransposedUp,
        merge: Part | Sequence[Part] = Concatenate,
        bottleneck: Part | None = None,
        convs_per_level: int | Sequence[int] = 2,
        decoder_channels: Sequence[int | Sequence[int]] | None = None,
        norm: Layer | None = "instance",
        act: Layer = "relu",
        dropout: float = 0.0,
        encoder: Callable[..., Any] = Encoder,
        decoder: Callable[..., Any] = Decoder,
        heads: Callable[..., Any] = Heads,
        slice_axis: int | None = None,
    ) -> None:
        super().__init__()
        require_one_of("spatial_dims", spatial_dims, (2, 3))
        seen_dims = spatial_dims
        if slice_axis is not None:
            if spatial_dims == 2:
                raise InputError(f"slice_axis is {slice_axis} and spatial_dims 2: volumes alone have slices")
            require_one_of("slice_axis", slice_axis, (0, 1, 2))
            seen_dims = 2
        require_one_of("padding", padding, ("same", "valid"))
        require_within("in_channels", in_channels, 1)
        require_within("out_channels", out_channels, 1)
        require_within("dropout", dropout, 0, 1)
        require_within("the number of levels in channels", len(channels), 2)
        convs = counts("convs_per_level", convs_per_level, len(channels))
        levels = _levels(seen_dims, channels, strides, kernel_sizes, block, convs)
        layers = Layers(seen_dims, padding, norm, act)

        self.spatial_dims = spatial_dims
        self.slice_axis = slice_axis
        self.in_channels = in_channels
        self.encoder = encoder(
            layers=layers, in_channels=in_channels, levels=levels, down=down, dropout=dropout
        )
        features = list(self.encoder.out_channels)
        if len(features) != len(levels):
            raise InputError(
                f"channels {channels!r} has {len(levels)} entries and the encoder {len(features)} levels: "
                "give one for each"
            )
        self.bottleneck: nn.Module = nn.Identity()
        if bottleneck is not None:
            self.bottleneck = bottleneck(layers=layers, in_channels=features[-1])
            features[-1] = self.bottleneck.out_channels
        self.decoder = decoder(
            layers=layers,
            in_channels=features,
            strides=self.encoder.strides,
            levels=_decoder_levels(levels, features, decoder_channels, convs[:-1]),
            up=up,
            merge=merge,
        )
        self.heads = heads(layers=layers, in_channels=self.decoder.out_channels, out_channels=out_channels)
        draw_weights(self)

    def forward(self, x: Tensor) -> Tensor | dict[str, Tensor]:
        """Give the logits of an image.

        Args:
            x: image, `(B, in_channels, H, W[, D])`.

        Returns:
            Logits, `(B, out_channels, H', W'[, D'])`, of the size that `scripts.networks.output_size` tells;
            or, from several heads, a dictionary of logits by the name of the head.
        """
        slices = 0
        if self.slice_axis is not None:
            slices = x.shape[self.slice_axis + 2]
            # (B, slices, C, H, W), a copy, of which torch.export knows that it can be flattened
            x = x.movedim(self.slice_axis + 2, 1).clone(memory_format=torch.contiguous_format)
            x = x.flatten(0, 1)
        features = self.encoder(x)
        features[-1] = self.bottleneck(features[-1])
        logits = self.heads(self.decoder(features))
        if self.slice_axis is None:
            return logits
        if isinstance(logits, Tensor):
            return self.stacked(logits, slices)
        return {name: self.stacked(head, slices) for name, head in logits.items()}

    def stacked(self, maps: Tensor, slices: int) -> Tensor:
        """Maps of slices, `(B * slices, C, H, W)`, as those of volumes, `(B, C, H, W, D)` in their order."""
        axis = self.slice_axis
        assert axis is not None
        return maps.unflatten(0, (-1, slices)).movedim(1, axis + 2)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """`forward`, with one sentence for an image of a size that does not fit."""
        try:
            return super().__call__(*args, **kwargs)
        except (RuntimeError, ValueError) as error:
            if args and isinstance(args[0], Tensor) and not args[0].is_meta:
                Sizes(self).check(args[0].shape[2:], error)
            raise


def draw_weights(network: nn.Module) -> None:
    """Have each part draw its weights; what is no `Stage` keeps those that it has."""
    for part in network.children():
        if isinstance(part, Stage):
            part.draw_weights()
        elif isinstance(part, (nn.ModuleList, nn.Sequential)):
            draw_weights(part)


def _levels(
    spatial_dims: int,
    channels: Sequence[int | Sequence[int]],
    strides: int | Sequence[int | Sequence[int]],
    kernel_sizes: int | Sequence[int | Sequence[int]],
    block: Part | Sequence[Part],
    convs: Sequence[int],
) -> list[Level]:
    """The encoder's levels, from the arguments of `UNet`."""
    count = len(channels)
    widths = _per_convolution("channels", channels, convs)
    kernels = _per_level("kernel_sizes", kernel_sizes, count, spatial_dims)
    if any(k % 2 == 0 for kernel in kernels for k in kernel):
        raise InputError(
            f"kernel_sizes {kernel_sizes!r} holds an even number: use odd ones, such as 1, 3 or 5"
        )
    steps = [(1,) * spatial_dims, *_per_level("strides", strides, count - 1, spatial_dims)]
    blocks = _classes("block", block, count, "per level")
    return [Level(*level) for level in zip(widths, steps, kernels, blocks, strict=True)]


def _decoder_levels(
    levels: Sequence[Level],
    features: Sequence[int],
    channels: Sequence[int | Sequence[int]] | None,
    convs: Sequence[int],
) -> list[Level]:
    """The decoder's levels: those of the encoder but the deepest, with widths of their own."""
    given = list(features[:-1]) if channels is None else list(channels)
    if len(given) != len(levels) - 1:
        raise InputError(
            f"decoder_channels {channels!r} has {len(given)} entries: give {len(levels) - 1}, one per level "
            "but the deepest"
        )
    widths = _per_convolution("decoder_channels", given, convs)
    return [replace(level, channels=width) for level, width in zip(levels, widths, strict=False)]


def counts(name: str, value: int | Sequence[int], levels: int) -> list[int]:
    """A number for each level, from one number for all or a list.

    Args:
        name: of the argument.
        value: one number, or a list from high to low resolution; of one for more levels the first count.
        levels: number of levels.

    Raises:
        InputError: fewer entries than levels, or one below 1.
    """
    numbers = [value] * levels if isinstance(value, int) else list(value)
    if len(numbers) < levels:
        raise InputError(
            f"{name} {value!r} has {len(numbers)} entries: give {levels} or more, one per level, or one "
            "number"
        )
    for number in numbers:
        require_within(name, number, 1)
    return numbers[:levels]


def _classes(name: str, value: Part | Sequence[Part], count: int, each: str) -> list[Part]:
    """A class for each level, from one class for all or a list."""
    classes = [value] * count if callable(value) else list(value)
    if len(classes) != count:
        raise InputError(f"{name} has {len(classes)} entries: give {count}, one {each}, or one class")
    return classes


def _per_convolution(name: str, channels: Sequence[int | Sequence[int]], convs: Sequence[int]) -> list[Axes]:
    levels = [
        (level,) * count if isinstance(level, int) else tuple(level)
        for level, count in zip(channels, convs, strict=True)
    ]
    if any(not level or min(level) < 1 for level in levels):
        raise InputError(
            f"{name} {channels!r} holds an empty level or a number below 1: give each level channels"
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
