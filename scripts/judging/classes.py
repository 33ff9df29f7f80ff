"""How well a class map agrees with the truth, case by case.

Overlap is counted from one confusion matrix. The distances between two surfaces are taken once and serve all
surface scores, with MONAI's definitions: a voxel of the surface is one with a face neighbour outside the mask
or outside the picture, and counts once whatever its area.

What nobody annotated counts nowhere: not among the voxels, and not in surfaces. A voxel is of the surface
where it and a face neighbour outside the mask are both annotated, or where it lies at the picture's edge; the
rim of what is annotated makes no surface. Where everything is annotated the scores are MONAI's.

Conventions where a class is missing: absent from prediction and truth, the case says nothing about the class
and all its scores are NaN; absent from one of the two, overlap and surface Dice are 0 and the distances NaN.
The surface scores go by the surfaces: a mask that fills all that is annotated has none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.ndimage import binary_erosion, find_objects
from scipy.spatial import cKDTree

from scripts.errors import InputError
from scripts.judging.case import Case

#: The scores of a case, in the order of the tables.
SCORES = ("dice", "iou", "precision", "recall", "error", "hd95", "assd", "surface_dice")

#: Steps in which probabilities are counted for `roc_auc`.
LEVELS = 1 << 16

#: Voxels whose pairs of classes are counted at a time, about: as integers they stay in the processor's cache.
_COUNTED_AT_ONCE = 1 << 16


def confusion(case: Case, n_classes: int) -> np.ndarray:
    """Annotated voxels of every pair of classes.

    Args:
        case: class indices 0 to n_classes - 1.
        n_classes: number of classes, background included.

    Returns:
        (n_classes, n_classes), rows the truth, columns the prediction.

    Raises:
        InputError: a class index beyond n_classes - 1.
    """
    pred, truth = case.annotated()
    for name, classes in (("pred", pred), ("truth", truth)):
        if classes.size and not 0 <= classes.min() <= classes.max() < n_classes:
            raise InputError(
                f"{name} of {case.id} holds classes from {classes.min()} to {classes.max()}: "
                f"give indices from 0 to {n_classes - 1}"
            )
    counts = np.zeros(n_classes**2, dtype=np.int64)
    parts = min(max(truth.size // _COUNTED_AT_ONCE, 1), max(len(truth), 1))
    for part, true in zip(np.array_split(pred, parts), np.array_split(truth, parts), strict=True):
        pairs = true.astype(np.int64) * n_classes + part.astype(np.int64)
        counts += np.bincount(pairs.ravel(), minlength=n_classes**2)
    return counts.reshape(n_classes, n_classes)


def overlap_scores(counts: np.ndarray) -> dict[str, np.ndarray]:
    """Dice, IoU, precision, recall and error of every class; error is the share of the voxels wrong about it.

    Args:
        counts: the confusion matrix, rows the truth.

    Returns:
        One array of n_classes values in [0, 1] for each score; NaN where a class is in neither map.
    """
    hit = np.diag(counts).astype(float)
    predicted, true = counts.sum(0).astype(float), counts.sum(1).astype(float)
    absent = (predicted + true) == 0
    with np.errstate(divide="ignore", invalid="ignore"):
        scores = {
            "dice": 2 * hit / (predicted + true),
            "iou": hit / (predicted + true - hit),
            "precision": np.where(predicted > 0, hit / predicted, 0.0),
            "recall": np.where(true > 0, hit / true, 0.0),
            "error": (predicted + true - 2 * hit) / max(counts.sum(), 1),
        }
    return {name: np.where(absent, np.nan, values) for name, values in scores.items()}


def ranking(case: Case) -> np.ndarray:
    """Annotated voxels at each step of the probability of every class.

    Args:
        case: with probabilities.

    Returns:
        (classes, 2, LEVELS), whole numbers: of voxels of other classes, and of those of the class. Those of
        several cases add up.
    """
    assert case.probabilities is not None
    _, truth = case.annotated()
    counts = []
    for index, probability in enumerate(case.probabilities):
        known = probability if case.mask is None else probability[case.mask]
        steps = (known.clip(0, 1) * (LEVELS - 1)).round().astype(np.int64)
        places = steps + LEVELS * (truth == index)
        counts.append(np.bincount(places.ravel(), minlength=2 * LEVELS).reshape(2, LEVELS))
    return np.stack(counts)


def roc_auc(counts: np.ndarray) -> float:
    """Area under the receiver operating characteristic: how often a voxel of the class has more than another.

    Equal probabilities count half (Hanley and McNeil, 1982, Radiology 143:29). Voxels whose probabilities
    are less than 1 / LEVELS apart are taken for equal.

    Args:
        counts: (2, LEVELS), of `ranking`.

    Returns:
        A number in [0, 1]; NaN where all voxels are of the class, or none is.
    """
    others, own = counts.astype(float)
    pairs = others.sum() * own.sum()
    below = np.cumsum(others) - others / 2
    return float((own * below).sum() / pairs) if pairs else math.nan


def mean_dice(case: Case) -> float:
    """Mean Dice over the foreground classes in prediction or truth; NaN where there is none."""
    n_classes = 1 + max(int(classes.max(initial=0)) for classes in case.annotated())
    dice = overlap_scores(confusion(case, n_classes))["dice"][1:]
    return math.nan if np.isnan(dice).all() else float(np.nanmean(dice))


class SurfaceScores(NamedTuple):
    """How far the surfaces of two masks are apart.

    Attributes:
        hd95: 95 % Hausdorff distance: of the two directions' 95th percentiles the larger one.
        assd: average symmetric surface distance: the mean over the voxels of both surfaces.
        surface_dice: share of the voxels of both surfaces within the tolerance of the other, in [0, 1].
    """

    hd95: float
    assd: float
    surface_dice: float


def surface_scores(
    pred_mask: np.ndarray,
    truth_mask: np.ndarray,
    spacing: Sequence[float],
    tolerance: float,
    annotated: np.ndarray | None = None,
) -> SurfaceScores:
    """Distances between the surfaces of two masks, equal to those of MONAI's metrics.

    Args:
        pred_mask: boolean, (*spatial).
        truth_mask: boolean, (*spatial).
        spacing: size of a voxel, one number an axis; distances are in its unit.
        tolerance: distance within which surfaces agree, 0 or more.
        annotated: boolean, (*spatial), where somebody annotated; None: everywhere.

    Returns:
        The three scores; where one or both surfaces are empty, what the conventions above say.

    Raises:
        InputError: masks of two shapes; ``spacing`` or ``tolerance`` out of range.
    """
    found, true = np.asarray(pred_mask, dtype=bool), np.asarray(truth_mask, dtype=bool)
    if found.shape != true.shape:
        raise InputError(
            f"pred_mask has {list(found.shape)} voxels and truth_mask {list(true.shape)}: "
            "give both on one grid"
        )
    sides = np.asarray(spacing, dtype=float)
    if sides.shape != (found.ndim,) or not (np.isfinite(sides) & (sides > 0)).all():
        raise InputError(f"spacing is {spacing}: give {found.ndim} numbers above 0, one for each axis")
    if not 0 <= tolerance < math.inf:
        raise InputError(f"tolerance is {tolerance}: give a distance of 0 or more")
    if annotated is not None:
        found, true = found & annotated, true & annotated
    if found.any() and true.any():
        (box,) = find_objects((found | true).view(np.uint8))
        box = tuple(slice(max(side.start - 1, 0), side.stop + 1) for side in box)  # neighbours included
        known = None if annotated is None else annotated[box]
        found, true = _surface(found[box], known), _surface(true[box], known)
    if not (found.any() and true.any()):
        return SurfaceScores(math.nan, math.nan, 0.0 if found.any() or true.any() else math.nan)
    there, back = _distances(found, true, sides), _distances(true, found, sides)
    both = np.concatenate([there, back])
    return SurfaceScores(
        hd95=float(max(np.percentile(there, 95), np.percentile(back, 95))),
        assd=float(both.mean(dtype=float)),
        surface_dice=float((both <= np.float32(tolerance)).mean()),
    )


def _surface(mask: np.ndarray, annotated: np.ndarray | None) -> np.ndarray:
    """Voxels of a mask at the picture's edge, or with a face neighbour that is annotated and not of it."""
    return mask & ~binary_erosion(mask if annotated is None else mask | ~annotated)


def _distances(one: np.ndarray, other: np.ndarray, sides: np.ndarray) -> np.ndarray:
    """From every voxel of one surface to the nearest of the other, in no order, float32.

    Single precision, as MONAI: three voxels of 0.1 lie within 0.3. The time depends on the surfaces alone,
    not on the volume around them; voxels on both surfaces need no search.
    """
    shared = np.zeros(np.count_nonzero(one & other), dtype=np.float32)
    # a tree cut in the middle of its cells is built in a third of the time and searched as fast
    tree = cKDTree(np.argwhere(other) * sides, leafsize=32, compact_nodes=False, balanced_tree=False)
    searched, _ = tree.query(np.argwhere(one & ~other) * sides, workers=-1)
    return np.concatenate([shared, searched.astype(np.float32)])


def class_scores(case: Case, n_classes: int, tolerance: float) -> list[dict[str, float]]:
    """All scores of one case.

    Args:
        case: class indices.
        n_classes: number of classes, background included.
        tolerance: distance within which surfaces agree for the surface Dice.

    Returns:
        One dictionary of SCORES for each foreground class.

    Raises:
        InputError: what `confusion` and `surface_scores` refuse.
    """
    overlap = overlap_scores(confusion(case, n_classes))
    spacing = case.spacing or (1.0,) * case.truth.ndim
    rows = []
    for index in range(1, n_classes):
        row = {name: float(values[index]) for name, values in overlap.items()}
        masks = case.pred == index, case.truth == index
        rows.append(row | surface_scores(*masks, spacing, tolerance, case.mask)._asdict())
    return rows
