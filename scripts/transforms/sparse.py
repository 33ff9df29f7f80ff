"""What sparse labels say of the voxels that nobody annotated.

Scribbles lie on an object and close around it. Of what is annotated then half is foreground, of the image
perhaps a hundredth, and nothing is known of whatever lies further away: a network may call all of that
foreground, and loss and validation do not see it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import MapTransform
from scipy.ndimage import distance_transform_edt

from scripts.labels import IGNORE_LABEL
from scripts.transforms.labels import like

#: What is so many times nearer to annotated background than to foreground is taken for background.
NEARER = 1.5

#: Of what is taken for background so many times as many voxels as are annotated are learnt.
TAKEN = 3


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
    return _out_of_reach(
        distance_transform_edt(~foreground, sampling=spacing), foreground, annotated, spacing
    )


def _out_of_reach(
    away: np.ndarray, foreground: np.ndarray, annotated: np.ndarray, spacing: Sequence[float] | None
) -> np.ndarray:
    """`far_from_foreground` by the distances to the foreground."""
    width = 2 * distance_transform_edt(foreground, sampling=spacing).max()
    return (away > away[annotated].max() + width) & ~annotated


def likely_background(
    foreground: np.ndarray, annotated: np.ndarray, spacing: Sequence[float] | None = None
) -> np.ndarray:
    """`far_from_foreground`, and what lies beyond annotated background.

    That is clearly nearer to annotated background than to foreground, and further from all foreground than
    this background is: the rim of an object is nearer to its own stroke than the strokes around it are.
    Arguments are those of `far_from_foreground`. For strokes around objects; between whole slices the ends of
    an object may lie nearer to background.
    """
    background = annotated & ~foreground
    if not foreground.any() or not background.any():
        return np.zeros(foreground.shape, dtype=bool)
    to_foreground = distance_transform_edt(~foreground, sampling=spacing)
    to_background, nearest = distance_transform_edt(~background, sampling=spacing, return_indices=True)
    beyond = to_foreground > to_foreground[tuple(nearest)]
    near = (NEARER * to_background < to_foreground) & beyond & ~annotated
    return near | _out_of_reach(to_foreground, foreground, annotated, spacing)


class FarBackgroundd(MapTransform):
    """Call background what nobody annotated and what lies away from all that is annotated as foreground.

    TAKEN times as many voxels as are annotated, drawn evenly, always the same: all of them would leave the
    annotated ones no weight. It holds where each object of a case is annotated at least in part, with
    background around it, see `likely_background`. For trainings: scores of an evaluation do not go by it.

    Args:
        keys: class maps, (1, *spatial), IGNORE_LABEL where nobody annotated.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replace IGNORE_LABEL by 0 there."""
        out = dict(data)
        for key in self.keys:
            classes = np.asarray(out[key][0]).copy()
            away = np.flatnonzero(_of_label(likely_background, out[key]))
            annotated = int((classes != IGNORE_LABEL).sum())
            drawn = np.random.default_rng(0).permutation(away)[: TAKEN * annotated]
            np.put(classes, drawn, 0)
            out[key] = like(classes, out[key])
        return out


def far(label: torch.Tensor) -> np.ndarray:
    """`far_from_foreground` for a class map, (1, *spatial), with IGNORE_LABEL where nobody annotated."""
    return _of_label(far_from_foreground, label)


def _of_label(rule: Callable[..., np.ndarray], label: torch.Tensor) -> np.ndarray:
    classes = np.asarray(label[0].cpu())
    annotated = classes != IGNORE_LABEL
    spacing = label.pixdim[: classes.ndim].tolist() if isinstance(label, MetaTensor) else None
    return rule((classes > 0) & annotated, annotated, spacing)
