"""Heads of star-convex distances, which are of pictures alone.

What the classes say is in `scripts.transforms.stars`.
"""

from __future__ import annotations

from collections.abc import Sequence

from scripts.errors import InputError
from scripts.networks.blocks import Layers
from scripts.networks.folded import UnfoldedHeads


class StarHeads(UnfoldedHeads):
    """`UnfoldedHeads` of pictures, with the same arguments.

    Raises:
        InputError: volumes.
    """

    def __init__(
        self, layers: Layers, in_channels: Sequence[int], out_channels: int, factor: int = 2
    ) -> None:
        if layers.spatial_dims != 2:
            raise InputError(
                f"spatial_dims is {layers.spatial_dims}: star-convex distances are of pictures; use "
                "configs/network/directions.json or dual_decoder.json for volumes"
            )
        super().__init__(layers, in_channels, out_channels, factor)
