"""From a patch-sized network to a whole image."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import torch
import torch.nn.functional as F
from monai.inferers import Inferer

from scripts.errors import InputError
from scripts.networks import output_size


class OverlapTileInferer(Inferer):
    """Overlap-tile strategy for networks with valid convolutions: mirrored context, outputs that abut.

    Source: Ronneberger, Fischer, Brox, MICCAI 2015, figure 2 and section 2: the tile that is predicted needs a
    larger tile as input, and context missing at the image's border is made by mirroring.

    Args:
        tile_size: voxels of the input tile, one number an axis; must be legal for the network.

    Raises:
        InputError: the network predicts nothing for this tile.
    """

    def __init__(self, tile_size: Sequence[int]) -> None:
        super().__init__()
        self.tile_size = tuple(int(n) for n in tile_size)

    def __call__(self, inputs: torch.Tensor, network: torch.nn.Module) -> torch.Tensor:
        """Predict a whole image.

        Args:
            inputs: (B, in_channels, *spatial).
            network: takes (B, in_channels, *tile_size), gives (B, out_channels, *output size).

        Returns:
            Logits, (B, out_channels, *spatial).
        """
        steps = output_size(network, self.tile_size)
        margins = [(tile - step) // 2 for tile, step in zip(self.tile_size, steps, strict=True)]
        spatial = inputs.shape[2:]
        tiles = [-(-n // step) for n, step in zip(spatial, steps, strict=True)]
        padded = _mirror(
            inputs,
            [(m, count * step - n + m) for m, count, step, n in zip(margins, tiles, steps, spatial, strict=True)],
        )
        output: torch.Tensor | None = None
        for position in product(*(range(count) for count in tiles)):
            starts = [index * step for index, step in zip(position, steps, strict=True)]
            source = tuple(slice(s, s + tile) for s, tile in zip(starts, self.tile_size, strict=True))
            target = tuple(slice(s, min(s + step, n)) for s, step, n in zip(starts, steps, spatial, strict=True))
            logits = network(padded[(..., *source)])
            if output is None:
                output = logits.new_empty((*logits.shape[:2], *spatial))
            kept = tuple(slice(0, part.stop - part.start) for part in target)
            output[(..., *target)] = logits[(..., *kept)]
        if output is None:
            raise InputError(f"image of {list(spatial)} voxels: every axis must have at least one; check the file")
        return output


def _mirror(image: torch.Tensor, margins: Sequence[tuple[int, int]]) -> torch.Tensor:
    """Mirror an image at its borders, again and again where the margin is wider than the image.

    Args:
        image: (B, C, *spatial).
        margins: voxels to add before and after, one pair an axis.
    """
    dims = len(margins)
    remaining = [list(pair) for pair in margins]
    while any(value > 0 for pair in remaining for value in pair):
        pads: list[int] = []
        for axis in reversed(range(dims)):  # F.pad wants the last axis first
            room = image.shape[2 + axis] - 1
            step = [min(value, room) for value in remaining[axis]]
            if room == 0:
                image = torch.cat([image] * (1 + sum(remaining[axis])), dim=2 + axis)
                remaining[axis] = [0, 0]
                step = [0, 0]
            remaining[axis] = [value - done for value, done in zip(remaining[axis], step, strict=True)]
            pads += step
        image = F.pad(image, pads, mode="reflect")
    return image
