"""Blocks of an image that are hidden, for a network that learns to fill them in (masked autoencoding).

Follows
- He et al., 2022, "Masked autoencoders are scalable vision learners", arXiv 2111.06377: most of an image is
  hidden, and only what was hidden is learnt;
- Wald et al., 2025, "Revisiting MAE pre-training for 3D medical image segmentation", arXiv 2410.23132: with a
  U-Net as it is, whose input is zero in 75 % of the blocks of 16 x 16 x 16 voxels.

A departure: as many blocks of each image are hidden, not as many of many images in the mean.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, Randomizable
from monai.utils import ensure_tuple_rep

from scripts.errors import InputError
from scripts.labels import IGNORE_LABEL
from scripts.transforms.labels import plain


def hidden_blocks(
    shape: Sequence[int],
    block_size: Sequence[int],
    ratio: float,
    draws: np.random.Generator | np.random.RandomState,
) -> torch.Tensor:
    """Which voxels are hidden: blocks of a grid, drawn evenly.

    Args:
        shape: voxels of the image, one number an axis.
        block_size: voxels of a block; those at the far ends are cut.
        ratio: share of the blocks that are hidden, rounded, at least one and not all.
        draws: draws them.

    Returns:
        (1, *shape), bool.
    """
    blocks = [math.ceil(voxels / edge) for voxels, edge in zip(shape, block_size, strict=True)]
    count = math.prod(blocks)
    hidden = np.zeros(count, dtype=bool)
    hidden[draws.permutation(count)[: min(max(round(ratio * count), 1), max(count - 1, 1))]] = True
    hidden = hidden.reshape(blocks)
    for axis, (edge, voxels) in enumerate(zip(block_size, shape, strict=True)):
        hidden = hidden.repeat(edge, axis).take(range(voxels), axis)
    return torch.from_numpy(hidden)[None]


class MaskBlocksd(MapTransform):
    """Hide blocks of an image, always the same, and make what they hid the label.

    The image is 0 in them, its mean once it is normalised. The label has the image's values there, and
    IGNORE_LABEL in all other voxels, and where the label that came along has it, outside the scan.

    Args:
        keys: the image, (channels, *spatial).
        block_size: voxels of a block, one number or one an axis.
        ratio: share of the blocks that are hidden, above 0 and below 1.
        label_key: where the label goes; what lies there tells what is outside the scan.

    Raises:
        InputError: an argument breaks its rule.
    """

    def __init__(
        self,
        keys: KeysCollection,
        block_size: int | Sequence[int] = 16,
        ratio: float = 0.75,
        label_key: Hashable = "label",
    ) -> None:
        super().__init__(keys)
        if not 0 < ratio < 1:
            raise InputError(f"mask_ratio is {ratio}: give a share of the blocks above 0 and below 1")
        if min(np.atleast_1d(block_size)) < 1:
            raise InputError(f"mask_block is {block_size}: give whole numbers above 0")
        self.block_size = block_size
        self.ratio = ratio
        self.label_key = label_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Hide the blocks of a case."""
        return self.apply(data, np.random.default_rng(0))

    def apply(
        self, data: Mapping[Hashable, Any], draws: np.random.Generator | np.random.RandomState
    ) -> dict[Hashable, Any]:
        """Hide blocks that are drawn."""
        out = dict(data)
        for key in self.keys:
            image = plain(data[key])
            shape = image.shape[1:]
            hidden = hidden_blocks(shape, ensure_tuple_rep(self.block_size, len(shape)), self.ratio, draws)
            target = torch.where(hidden, image, float(IGNORE_LABEL))
            if self.label_key in data:
                label = plain(data[self.label_key])
                if label.shape[1:] != shape:
                    raise InputError(
                        f"{self.label_key} has {tuple(label.shape[1:])} voxels where {key} has "
                        f"{tuple(shape)}: hidden blocks are for networks that predict all that they see, "
                        "without valid convolutions"
                    )
                target = torch.where(label == IGNORE_LABEL, label, target)
            out[self.label_key] = target
            out[key] = torch.where(hidden, 0.0, image)
        return out


class RandMaskBlocksd(Randomizable, MaskBlocksd):
    """`MaskBlocksd` with other blocks at each draw."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Draw blocks and hide them."""
        return self.apply(data, self.R)
