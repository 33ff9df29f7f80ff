"""From a patch-sized network to a whole image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any, cast

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer

from scripts.errors import InputError
from scripts.networks import output_size


class OverlapTileInferer(Inferer):
    """Overlap-tile strategy for networks with valid convolutions: mirrored context, outputs that abut.

    Source: Ronneberger, Fischer, Brox, MICCAI 2015, figure 2 and section 2: the tile that is predicted needs
    a larger tile as input, and context missing at the image's border is made by mirroring.

    Args:
        tile_size: voxels of the input tile, one number an axis; must be legal for the network.

    Raises:
        InputError: the tile is illegal for the network, or the image has no voxels.
    """

    def __init__(self, tile_size: Sequence[int]) -> None:
        super().__init__()
        self.tile_size = tuple(int(n) for n in tile_size)

    def __call__(
        self, inputs: torch.Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Predict a whole image.

        Args:
            inputs: (B, in_channels, *spatial).
            network: takes (B, in_channels, *tile_size), gives (B, out_channels, *output size).
            *args: further positional arguments of the network.
            **kwargs: further keyword arguments of the network.

        Returns:
            Logits, (B, out_channels, *spatial), with the meta data of ``inputs``.
        """
        image = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        steps = output_size(cast(torch.nn.Module, network), self.tile_size)
        margins = [(tile - step) // 2 for tile, step in zip(self.tile_size, steps, strict=True)]
        spatial = image.shape[2:]
        if 0 in spatial:
            raise InputError(f"image of {list(spatial)} voxels: give every axis at least one")
        tiles = [-(-n // step) for n, step in zip(spatial, steps, strict=True)]
        padded = _mirror(
            image,
            [
                (m, count * step - n + m)
                for m, count, step, n in zip(margins, tiles, steps, spatial, strict=True)
            ],
        )
        every = slice(None)
        output = image.new_empty(0)
        for position in product(*(range(count) for count in tiles)):
            starts = [index * step for index, step in zip(position, steps, strict=True)]
            source = tuple(slice(s, s + tile) for s, tile in zip(starts, self.tile_size, strict=True))
            target = tuple(
                slice(s, min(s + step, n)) for s, step, n in zip(starts, steps, spatial, strict=True)
            )
            logits = network(padded[(every, every, *source)], *args, **kwargs)
            if not output.numel():
                output = logits.new_empty((*logits.shape[:2], *spatial))
            kept = tuple(slice(0, part.stop - part.start) for part in target)
            output[(every, every, *target)] = logits[(every, every, *kept)]
        return MetaTensor(output).copy_meta_from(inputs, copy_attr=False) if image is not inputs else output


def _mirror(image: torch.Tensor, margins: Sequence[tuple[int, int]]) -> torch.Tensor:
    """Mirror an image at its borders, again and again where the margin is wider than the image.

    Args:
        image: (B, C, *spatial).
        margins: voxels to add before and after, one pair an axis.
    """
    for axis, (before, after) in enumerate(margins, start=2):
        last = image.shape[axis] - 1
        positions = torch.arange(-before, last + 1 + after, device=image.device)
        # A mirrored axis runs 0 .. last .. 0 .. last: the distance from the nearest repetition of 0.
        folded = last - (positions % max(2 * last, 1) - last).abs()
        image = image.index_select(axis, folded)
    return image
