"""U-Net++: decoders of every depth nested in one another, which share an encoder.

Follows Zhou, Siddiquee, Tajbakhsh and Liang, 2018, "UNet++: a nested U-Net architecture for medical image
segmentation", and its longer form of 2020, "UNet++: redesigning skip connections to exploit multiscale
features in image segmentation": node x(i, j) on level i (0 is the highest resolution) takes all nodes before
it on its level and the enlarged one from below,
`x(i, j) = H([x(i, 0), ..., x(i, j - 1), up(x(i + 1, j - 1))])`. The heads on x(0, 1) to x(0, d) are those of
networks of depth 1 to d, so that at inference a trained network can be cut to any of these.

Where it departs: in the accurate mode the mean is taken of the heads' logits, not of their probabilities.
Dropout is where `UNet` has it, at the end of the two deepest levels of the encoder.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.layers.factories import Conv
from torch import Tensor, nn

from scripts.errors import InputError, require_one_of, require_within
from scripts.networks.blocks import Axes, Layers, Stage
from scripts.networks.heads import MAIN_HEAD
from scripts.networks.unet import Assembly, DecoderLevel, Encoder, Level, Part


class NestedEncoder(Encoder):
    """An encoder that stops early at inference. Arguments are those of `Encoder`, and one more.

    Args:
        depth: the network's depth at inference, 1 to the number of down-steps; None for all of it. In
            training it has no effect. It is for `NestedDecoder` and `NestedHeads`, which use what they get.

    Raises:
        InputError: ``depth`` beyond the network, or below 1.
    """

    def __init__(
        self,
        layers: Layers,
        in_channels: int,
        levels: Sequence[Level],
        down: Part | None,
        dropout: float,
        depth: int | None = None,
    ) -> None:
        super().__init__(layers, in_channels, levels, down, dropout)
        self.depth = len(levels) - 1 if depth is None else depth
        require_within("depth", self.depth, 1, len(levels) - 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map an image, `(B, in_channels, H, W[, D])`, to the features of the levels that count."""
        features: list[Tensor] = []
        for index, level in enumerate(self.levels):
            if self.training or index <= self.depth:
                x = level(x)
                features.append(x)
        return features


class NestedDecoder(Assembly):
    """Nodes x(i, j) with j of 1 or more, i + j at most the depth. Arguments are those of `Decoder`.

    Attributes:
        out_channels: channels of x(0, 1), x(0, 2) and so on, the order of the outputs, all of the highest
            resolution.

    Raises:
        InputError: the highest level has a stride: the maps would be smaller than the image.
    """

    def __init__(
        self,
        layers: Layers,
        in_channels: Sequence[int],
        strides: Sequence[Axes],
        levels: Sequence[Level],
        up: Part,
        merge: Part,
    ) -> None:
        super().__init__(())
        unit = (1,) * layers.spatial_dims
        if strides[0] != unit:
            raise InputError(
                f"the encoder's highest level has the stride {strides[0]}: a nested decoder takes an encoder "
                "that begins at the resolution of the image"
            )
        rows = [[channels] for channels in in_channels]  # channels of x(i, 0), x(i, 1), ...
        self.nodes = nn.ModuleList()
        self.places: list[int] = []  # level of each node
        for depth in range(1, len(in_channels)):  # the nodes that it adds, from low to high resolution
            for i in reversed(range(depth)):
                j = depth - i
                below, skips = rows[i + 1][j - 1], sum(rows[i][:j])
                step = up(
                    layers=layers, in_channels=below, out_channels=in_channels[i], stride=strides[i + 1]
                )
                joint = merge(
                    layers=layers, skip_channels=skips, up_channels=step.out_channels, below_channels=below
                )
                block = levels[i].make_block(layers, joint.out_channels, unit)
                self.nodes.append(DecoderLevel(step, joint, block, i))
                self.places.append(i)
                rows[i].append(block.out_channels)
        self.out_channels = tuple(rows[0][1:])

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Map the encoder's features, high to low resolution, to x(0, 1), x(0, 2) and so on.

        Args:
            features: of all levels, or of as many of the highest as count.
        """
        rows = [[x] for x in features]
        for index, node in enumerate(self.nodes):
            i = self.places[index]
            # x(i, j), where j is how many of its level are there
            if i < len(features) and i + len(rows[i]) < len(features):
                rows[i].append(node(torch.cat(rows[i], dim=1), rows[i + 1][-1]))
        return rows[0][1:]


class NestedHeads(Stage):
    """A 1x1 convolution to logits on each of x(0, 1), x(0, 2) and so on.

    "main" is what inference reads, made of them. In training "depth4", "depth3" and so on, which learn, are
    there too.

    Args:
        layers: what layers are made of.
        in_channels: channels of the maps.
        out_channels: channels of the logits.
        mode: "accurate" takes the mean over the heads, "fast" the deepest of the maps that are given, which
            may be fewer than there are heads.
    """

    def __init__(
        self, layers: Layers, in_channels: Sequence[int], out_channels: int, mode: str = "accurate"
    ) -> None:
        super().__init__(out_channels)
        require_one_of("mode", mode, ("accurate", "fast"))
        head = Conv[Conv.CONV, layers.spatial_dims]
        self.averages = mode == "accurate"
        self.heads = nn.ModuleList(head(channels, out_channels, 1) for channels in in_channels)

    def forward(self, maps: list[Tensor]) -> Tensor | dict[str, Tensor]:
        """Logits, `(B, out_channels, *size)`; while training of all heads, by name."""
        if not torch.jit.is_scripting() and self.training:
            return self.all_heads(maps)
        logits: list[Tensor] = []
        for index, head in enumerate(self.heads):
            if index == len(maps) - 1 or (self.averages and index < len(maps)):
                logits.append(head(maps[index]))
        return torch.stack(logits).mean(0)

    @torch.jit.unused
    def all_heads(self, maps: list[Tensor]) -> dict[str, Tensor]:
        """Logits of every head by its name, the main one and then from the deepest to the shallowest."""
        logits = [head(x) for head, x in zip(self.heads, maps, strict=True)]
        main = torch.stack(logits).mean(0) if self.averages else logits[-1]
        named = {f"depth{depth}": logits[depth - 1] for depth in range(len(logits), 0, -1)}
        return {MAIN_HEAD: main, **named}
