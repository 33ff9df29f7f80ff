"""How well a class map agrees with the truth, case by case and over all cases.

Overlap is counted here from one confusion matrix; distances between surfaces are MONAI's.

Conventions where a class is missing: absent from prediction and truth, the case says nothing about the class
and all its scores are NaN; absent from one of the two, overlap and surface Dice are 0 and the distance NaN.
Summaries leave NaN out and say how many cases were counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from monai.metrics import compute_hausdorff_distance, compute_surface_dice

from scripts.errors import InputError

#: The scores of a case, in the order of the tables.
SCORES = ("dice", "iou", "precision", "recall", "error", "hd95", "surface_dice")


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
        row |= {"hd95": float("nan"), "surface_dice": float("nan")}
        found, true = (torch.from_numpy(mask == index)[None, None] for mask in (pred, truth))
        if found.any() and true.any():
            keywords: dict[str, Any] = {"include_background": True, "spacing": list(spacing)}
            row["hd95"] = float(compute_hausdorff_distance(found, true, percentile=95, **keywords))
            row["surface_dice"] = float(compute_surface_dice(found, true, [tolerance], **keywords))
        elif found.any() or true.any():
            row["surface_dice"] = 0.0
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
