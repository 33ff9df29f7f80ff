"""Two decoders on one encoder: one finds where objects are, the other how far inside of them a pixel lies.

Follows Mahbod et al., 2022, "A dual decoder U-Net-based model for nuclei instance segmentation in
hematoxylin and eosin-stained histological images": a plain U-Net whose two decoders see the same
skips, the mask as one logit and the distance without an activation, held to the cross entropy and Dice
of the mask and to the squared error of the distance.

Where it departs: the paper's further U-Net, which classifies nuclei, is left out. The distance is normalised
in each object to 1 at most, our choice. `configs/network/dual_decoder.json` has instance norms without
weights, the paper none. Dropout is where `UNet` has it. Inference reads one map of logits here as everywhere:
of the classes background, interior and border, whose probabilities say both. The object is what is not
background, and the share of the interior in it is the distance.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.layers.factories import Conv
from torch import Tensor

from scripts.errors import InputError
from scripts.networks.blocks import Axes, Layers, Stage
from scripts.networks.heads import MAIN_HEAD
from scripts.networks.unet import Assembly, Decoder, Level, Part

#: Distances are cut to this much above 0 and below 1, where logarithms are too steep for half precision.
LEAST_DISTANCE = 0.02

#: Classes of what inference reads: background, interior and border.
CLASSES = 3


class DualDecoder(Assembly):
    """Two decoders of one form that share nothing but the features they get. Arguments are `Decoder`'s.

    Attributes:
        out_channels: channels of the highest map of either decoder, the outputs.
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
        self.mask, self.distance = (
            Decoder(layers, in_channels, strides, levels, up, merge) for _ in range(2)
        )
        self.out_channels = (self.mask.out_channels[-1], self.distance.out_channels[-1])

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Map the encoder's features, high to low resolution, to the highest map of either decoder."""
        return [self.mask(features)[-1], self.distance(features)[-1]]


class DistanceHeads(Stage):
    """A logit of the mask and a distance, and the logits of the classes that say both.

    "main" are logits of background, interior and border: their softmax is `1 - p`, `p d` and `p (1 - d)` for
    the mask's probability p and the distance d. In training "mask" and "distance", which learn, are there as
    well.

    Args:
        layers: what layers are made of.
        in_channels: channels of the maps of the mask and of the distance.
        out_channels: channels of the logits, 3.

    Raises:
        InputError: another number of classes, or of maps.
    """

    def __init__(self, layers: Layers, in_channels: Sequence[int], out_channels: int) -> None:
        super().__init__(out_channels)
        if out_channels != CLASSES or len(in_channels) != 2:
            raise InputError(
                f"out_channels is {out_channels}, of {len(in_channels)} maps: heads of distances give three "
                "classes of the two maps of a DualDecoder; give labels background, interior and border"
            )
        self.least = LEAST_DISTANCE
        head = Conv[Conv.CONV, layers.spatial_dims]
        self.mask, self.distance = (head(channels, 1, 1) for channels in in_channels)

    def forward(self, maps: list[Tensor]) -> Tensor | dict[str, Tensor]:
        """Logits of the classes, `(B, 3, *size)`; while training of all heads, by name."""
        mask, distance = self.mask(maps[0]), self.distance(maps[1])
        inside = distance.float().clamp(self.least, 1 - self.least)
        logit = mask.float()
        interior, border = logit + inside.log(), logit + (1 - inside).log()
        main = torch.cat((torch.zeros_like(logit), interior, border), dim=1)
        if not torch.jit.is_scripting() and self.training:
            return self.all_heads(main, mask, distance)
        return main

    @torch.jit.unused
    def all_heads(self, main: Tensor, mask: Tensor, distance: Tensor) -> dict[str, Tensor]:
        """The outputs by their names."""
        return {MAIN_HEAD: main, "mask": mask, "distance": distance}
