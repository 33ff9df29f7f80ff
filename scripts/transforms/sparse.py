"""What sparse labels say of the voxels that nobody annotated.

Scribbles lie on an object and close around it. Of what is annotated then half is foreground, of the image
perhaps a hundredth, and nothing is known of whatever lies further away: a network may call all of that
foreground, and loss and validation do not see it.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import MapTransform
from scipy.ndimage import distance_transform_edt

from scripts.labels import IGNORE_LABEL
from scripts.transforms.labels import like


def far_from_foreground(
    foreground: np.ndarray, annotated: np.ndarray, spacing: Sequence[float] | None = None
) -> np.ndarray:
    """Where an object that somebody pointed at cannot reach.

    That is further from all foreground than any annotated voxel is, by more than the width of what is
    annotated as foreground. Strokes in the background close around the objects, so no object goes on beyond
    them. A box may cut one, which then goes on for about its width. Where whole slices are annotated hardly a
    voxel lies further away than some of theirs.

    Args:
        foreground: (*spatial), True where an object is annotated.
        annotated: (*spatial), True where anything is.
        spacing: size of a voxel, one number an axis; None: 1 each.

    Returns:
        (*spatial), True where a voxel is not annotated and lies so far; nowhere, where no foreground or no
        background is annotated.
    """
    if not foreground.any() or foreground[annotated].all():
        return np.zeros(foreground.shape, dtype=bool)
    away = distance_transform_edt(~foreground, sampling=spacing)
    width = 2 * distance_transform_edt(foreground, sampling=spacing).max()
    return (away > away[annotated].max() + width) & ~annotated


class FarBackgroundd(MapTransform):
    """Call background what nobody annotated and what lies far from all that is annotated as foreground.

    It holds where each object of a case is annotated at least in part, with background around it, see
    `far_from_foreground`. For trainings: scores of an evaluation do not go by it.

    Args:
        keys: class maps, (1, *spatial), IGNORE_LABEL where nobody annotated.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replace IGNORE_LABEL by 0 there."""
        out = dict(data)
        for key in self.keys:
            out[key] = like(np.where(far(out[key]), 0, np.asarray(out[key][0])), out[key])
        return out


def far(label: torch.Tensor) -> np.ndarray:
    """`far_from_foreground` for a class map, (1, *spatial), with IGNORE_LABEL where nobody annotated."""
    classes = np.asarray(label[0].cpu())
    annotated = classes != IGNORE_LABEL
    spacing = label.pixdim[: classes.ndim].tolist() if isinstance(label, MetaTensor) else None
    return far_from_foreground((classes > 0) & annotated, annotated, spacing)
