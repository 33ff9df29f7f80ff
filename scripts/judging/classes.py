"""How well a class map agrees with the truth, case by case and over all cases.

Overlap is counted from one confusion matrix. The distances between two surfaces are taken once and serve all
surface scores, with MONAI's definitions: a voxel of the surface is one with a face neighbour outside the mask
or outside the picture, and counts once whatever its area.

Conventions where a class is missing: absent from prediction and truth, the case says nothing about the class
and all its scores are NaN; absent from one of the two, overlap and surface Dice are 0 and the distances NaN.
Summaries leave NaN out and say how many cases were counted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.ndimage import binary_erosion, find_objects
from scipy.spatial import cKDTree

from scripts.errors import InputError

#: The scores of a case, in the order of the tables.
SCORES = ("dice", "iou", "precision", "recall", "error", "hd95", "assd", "surface_dice")


def confusion(pred: np.ndarray, truth: np.ndarray, n_classes: int) -> np.ndarray:
    """Voxels of every pair of classes.

    Args:
        pred: class indices 0 to n_classes - 1, any shape.
        truth: the same shape.
        n_classes: number of classes, background included.

    Returns:
        (n_classes, n_classes), rows the truth, columns the prediction.

    Raises:
        InputError: a class index beyond n_classes - 1.
    """
    for name, classes in (("pred", pred), ("truth", truth)):
        if classes.size and not 0 <= classes.min() <= classes.max() < n_classes:
            raise InputError(
                f"{name} holds classes from {classes.min()} to {classes.max()}: "
                f"give indices from 0 to {n_classes - 1}"
            )
    pairs = truth.astype(np.int64).ravel() * n_classes + pred.astype(np.int64).ravel()
    return np.bincount(pairs, minlength=n_classes**2).reshape(n_classes, n_classes)


def overlap_scores(counts: np.ndarray) -> dict[str, np.ndarray]:
    """Dice, IoU, precision, recall and error of every class; error is the share of all voxels wrong about it.

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


def mean_foreground_dice(pred: np.ndarray, truth: np.ndarray, n_classes: int) -> float:
    """Mean Dice over the foreground classes present in prediction or truth; 1 where both are background."""
    dice = overlap_scores(confusion(pred, truth, n_classes))["dice"][1:]
    return 1.0 if np.isnan(dice).all() else float(np.nanmean(dice))


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
    pred_mask: np.ndarray, truth_mask: np.ndarray, spacing: Sequence[float], tolerance: float
) -> SurfaceScores:
    """Distances between the surfaces of two masks, equal to those of MONAI's metrics.

    Args:
        pred_mask: boolean, (*spatial).
        truth_mask: boolean, (*spatial).
        spacing: size of a voxel, one number an axis; distances are in its unit.
        tolerance: distance within which surfaces agree, 0 or more.

    Returns:
        The three scores; where one or both masks are empty, what the conventions above say.

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
    if not (found.any() and true.any()):
        return SurfaceScores(math.nan, math.nan, 0.0 if found.any() or true.any() else math.nan)
    (box,) = find_objects((found | true).view(np.uint8))
    found, true = found[box], true[box]
    found, true = found & ~binary_erosion(found), true & ~binary_erosion(true)
    there, back = _distances(found, true, sides), _distances(true, found, sides)
    both = np.concatenate([there, back])
    return SurfaceScores(
        hd95=float(max(np.percentile(there, 95), np.percentile(back, 95))),
        assd=float(both.mean(dtype=float)),
        surface_dice=float((both <= np.float32(tolerance)).mean()),
    )


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


def case_scores(
    pred: np.ndarray, truth: np.ndarray, n_classes: int, spacing: Sequence[float], tolerance: float
) -> list[dict[str, float]]:
    """All scores of one case.

    Args:
        pred: class indices, (*spatial).
        truth: class indices, (*spatial).
        n_classes: number of classes, background included.
        spacing: size of a voxel, one number an axis; distances are in its unit.
        tolerance: distance within which surfaces agree for the surface Dice.

    Returns:
        One dictionary of SCORES for each foreground class.
    """
    overlap = overlap_scores(confusion(pred, truth, n_classes))
    rows = []
    for index in range(1, n_classes):
        row = {name: float(values[index]) for name, values in overlap.items()}
        row |= surface_scores(pred == index, truth == index, spacing, tolerance)._asdict()
        rows.append(row)
    return rows


def summarize(rows: Sequence[dict]) -> list[dict]:
    """Mean, standard deviation, median, minimum, maximum and number of cases of every score of every class.

    Args:
        rows: dictionaries with "case", "class" and SCORES.

    Returns:
        One dictionary for each class and score, and for the mean over each case's classes (class "mean").
    """
    classes = list(dict.fromkeys(row["class"] for row in rows))
    cases = list(dict.fromkeys(row["case"] for row in rows))
    summary = []
    for name in SCORES:
        table = {(row["case"], row["class"]): row[name] for row in rows}
        columns = {c: [table.get((case, c), np.nan) for case in cases] for c in classes}
        means = [
            [value for value in values if not np.isnan(value)]
            for values in zip(*columns.values(), strict=True)
        ]
        columns["mean"] = [float(np.mean(values)) if values else np.nan for values in means]
        for label, values in columns.items():
            counted = np.array([value for value in values if not np.isnan(value)])
            summary.append(
                {
                    "class": label,
                    "score": name,
                    "mean": float(counted.mean()) if len(counted) else None,
                    "std": float(counted.std(ddof=1)) if len(counted) > 1 else None,
                    "median": float(np.median(counted)) if len(counted) else None,
                    "min": float(counted.min()) if len(counted) else None,
                    "max": float(counted.max()) if len(counted) else None,
                    "cases": len(counted),
                }
            )
    return summary


def format_summary(summary: Sequence[dict]) -> str:
    """A plain table of the means, one line for each class."""
    classes = list(dict.fromkeys(entry["class"] for entry in summary))
    width = max(len("class"), *(len(name) for name in classes))
    lines = [f"{'class':<{width}}  " + "  ".join(f"{name:>12}" for name in SCORES)]
    for label in classes:
        values = {entry["score"]: entry["mean"] for entry in summary if entry["class"] == label}
        cells = ["-" if values[name] is None else f"{values[name]:.4f}" for name in SCORES]
        lines.append(f"{label:<{width}}  " + "  ".join(f"{cell:>12}" for cell in cells))
    return "\n".join(lines)
