"""How well numbered objects agree with the truth: average precision, panoptic quality, SEG.

All scores come from one table: how many voxels each predicted object shares with each true one.

Sources:

- average precision of an image as in the 2018 Data Science Bowl (Caicedo et al. 2019, Nat. Methods 16:1247)
  and StarDist (Schmidt et al. 2018, MICCAI): TP / (TP + FP + FN), not the area under a curve;
- panoptic quality: Kirillov et al. 2019, "Panoptic Segmentation", CVPR, eq. 1 and 2, of one class;
- SEG: Maška et al. 2014, Bioinformatics 30:1609 (Cell Tracking Challenge).

A predicted and a true object match where their IoU is above the threshold, as in the Bowl and in panoptic
quality; StarDist takes an IoU that equals it, too. From 0.5 up no object has two matches.

Conventions: nothing in prediction and truth, the case says nothing and all scores are NaN; nothing in one of
the two, all scores are 0. The Cell Tracking Challenge has no SEG for an image without true cells; here it is
0 where something was predicted. Of an object the voxels that somebody annotated count, and a predicted one of
which most voxels lie where nobody did counts nowhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from scripts.errors import InputError
from scripts.judging.case import Case
from scripts.labels import whole_numbers

#: IoU above which objects match: 0.5, 0.55, ..., 0.95.
IOU_THRESHOLDS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))

#: The scores of a case, in the order of the tables. "ap" is the mean over IOU_THRESHOLDS.
INSTANCE_SCORES = ("ap50", "ap75", "ap", "precision50", "recall50", "f1_50", "pq", "sq", "rq", "seg")


class Contingency(NamedTuple):
    """Voxels that the objects of two maps share; background (0) is left out.

    Attributes:
        pred_ids: numbers of the predicted objects, ascending, (P,).
        true_ids: numbers of the true objects, ascending, (T,).
        pred_sizes: voxels of each predicted object, (P,).
        true_sizes: voxels of each true object, (T,).
        pred_index: of each pair that shares voxels the predicted object, (pairs,).
        true_index: of each pair the true object, (pairs,).
        shared: voxels that each pair shares, (pairs,).
    """

    pred_ids: np.ndarray
    true_ids: np.ndarray
    pred_sizes: np.ndarray
    true_sizes: np.ndarray
    pred_index: np.ndarray
    true_index: np.ndarray
    shared: np.ndarray


def contingency(pred: np.ndarray, truth: np.ndarray) -> Contingency:
    """The table from which all scores of instances and regions follow.

    Args:
        pred: object numbers, 0 background, (*spatial) or any other shape.
        truth: the same shape.

    Returns:
        Sizes of the objects in the order of their numbers, and the pairs that share voxels.

    Raises:
        InputError: maps of two shapes, fractions, or negative numbers.
    """
    pred, truth = whole_numbers(pred, "pred"), whole_numbers(truth, "truth")
    if pred.shape != truth.shape:
        raise InputError(
            f"pred has {list(pred.shape)} voxels and truth {list(truth.shape)}: give both on one grid"
        )
    pred_ids, pred_sizes = np.unique(pred[pred > 0], return_counts=True)
    true_ids, true_sizes = np.unique(truth[truth > 0], return_counts=True)
    both = (pred > 0) & (truth > 0)
    pairs = np.searchsorted(true_ids, truth[both]) * len(pred_ids) + np.searchsorted(pred_ids, pred[both])
    pairs, shared = np.unique(pairs, return_counts=True)
    true_index, pred_index = np.divmod(pairs, max(len(pred_ids), 1))
    return Contingency(pred_ids, true_ids, pred_sizes, true_sizes, pred_index, true_index, shared)


def judged_objects(case: Case) -> Contingency:
    """The table of a case, without what nobody annotated.

    A predicted object is left out where more than half of it lies there: neither hit nor false alarm.

    Args:
        case: object numbers, 0 background, 2D or 3D.

    Raises:
        InputError: fractions or negative numbers.
    """
    if case.mask is None:
        return contingency(case.pred, case.truth)
    pred, truth = case.annotated()
    ids, place, sizes = np.unique(case.pred, return_inverse=True, return_counts=True)
    known = np.bincount(place.reshape(case.pred.shape)[case.mask], minlength=len(ids))
    beyond = ids[2 * known < sizes]
    return contingency(np.where(np.isin(pred, beyond), 0, pred), truth)


@dataclass(frozen=True)
class InstanceCounts:
    """What the scores follow from; counts of cases add up to those of a data set.

    Attributes:
        true_positives: matched objects for each of IOU_THRESHOLDS.
        predicted: objects of the prediction.
        true: objects of the truth.
        iou_sum: sum of the IoU of the matches at 0.5.
        jaccard_sum: sum over the true objects of SEG's Jaccard index.
    """

    true_positives: tuple[int, ...] = (0,) * len(IOU_THRESHOLDS)
    predicted: int = 0
    true: int = 0
    iou_sum: float = 0.0
    jaccard_sum: float = 0.0

    def __add__(self, other: InstanceCounts) -> InstanceCounts:
        """The counts of both; `sum(counts, InstanceCounts())` are those of a data set."""
        return InstanceCounts(
            tuple(a + b for a, b in zip(self.true_positives, other.true_positives, strict=True)),
            self.predicted + other.predicted,
            self.true + other.true,
            self.iou_sum + other.iou_sum,
            self.jaccard_sum + other.jaccard_sum,
        )

    @property
    def false_positives(self) -> tuple[int, ...]:
        """Predicted objects without a match for each of IOU_THRESHOLDS."""
        return tuple(self.predicted - hits for hits in self.true_positives)

    @property
    def false_negatives(self) -> tuple[int, ...]:
        """True objects without a match for each of IOU_THRESHOLDS."""
        return tuple(self.true - hits for hits in self.true_positives)

    def scores(self) -> dict[str, float]:
        """INSTANCE_SCORES, each in [0, 1], or NaN and 0 by the conventions of the module."""
        if not (self.predicted and self.true):
            return dict.fromkeys(INSTANCE_SCORES, 0.0 if self.predicted or self.true else math.nan)
        both = self.predicted + self.true
        precision = [hits / (both - hits) for hits in self.true_positives]  # TP / (TP + FP + FN)
        hits = self.true_positives[0]
        f1 = 2 * hits / both
        sq = self.iou_sum / hits if hits else 0.0
        return {
            "ap50": precision[0],
            "ap75": precision[IOU_THRESHOLDS.index(0.75)],
            "ap": sum(precision) / len(precision),
            "precision50": hits / self.predicted,
            "recall50": hits / self.true,
            "f1_50": f1,
            "pq": sq * f1,
            "sq": sq,
            "rq": f1,  # recognition quality is the F1 score at 0.5
            "seg": self.jaccard_sum / self.true,
        }


def instance_counts(case: Case) -> InstanceCounts:
    """Matches of one case.

    Args:
        case: object numbers, 0 background, 2D or 3D.

    Returns:
        The counts; `scores()` of one case's or of the sum of many.

    Raises:
        InputError: fractions or negative numbers.
    """
    table = judged_objects(case)
    true_sizes = table.true_sizes[table.true_index]  # of each pair
    iou = table.shared / (table.pred_sizes[table.pred_index] + true_sizes - table.shared)
    return InstanceCounts(
        tuple(int((iou > threshold).sum()) for threshold in IOU_THRESHOLDS),
        len(table.pred_sizes),
        len(table.true_sizes),
        float(iou[iou > IOU_THRESHOLDS[0]].sum()),
        float(iou[2 * table.shared > true_sizes].sum()),  # covers more than half: at most one for each
    )


def instance_scores(case: Case) -> dict[str, float]:
    """INSTANCE_SCORES of one case; see `instance_counts`."""
    return instance_counts(case).scores()


@dataclass(frozen=True)
class CellErrors:
    """Ids of the cells that a prediction got wrong, in ascending order.

    Attributes:
        merged: predicted cells that cover more than half of each of two or more true cells.
        split: true cells that hold more than half of each of two or more predicted cells.
        missed: true cells that no predicted cell covers by more than half, and that are not split.
        invented: predicted cells that no true cell holds by more than half, and that are not merged.
    """

    merged: tuple[int, ...]
    split: tuple[int, ...]
    missed: tuple[int, ...]
    invented: tuple[int, ...]

    def __str__(self) -> str:
        return ", ".join(f"{len(ids)} {name}" for name, ids in vars(self).items())


def cell_errors(case: Case) -> CellErrors:
    """Which cells are merged, split, missed or invented; truth and prediction exchanged, so are the names.

    Args:
        case: object numbers, 0 background.

    Raises:
        InputError: fractions or negative numbers.
    """
    table = judged_objects(case)
    predicted, true = len(table.pred_ids), len(table.true_ids)
    covers = 2 * table.shared > table.true_sizes[table.true_index]  # more than half of the true cell
    lies = 2 * table.shared > table.pred_sizes[table.pred_index]  # more than half of the predicted cell
    covering, lying = (np.bincount(table.pred_index[pairs], minlength=predicted) for pairs in (covers, lies))
    covered, holding = (np.bincount(table.true_index[pairs], minlength=true) for pairs in (covers, lies))
    return CellErrors(
        merged=tuple(table.pred_ids[covering > 1].tolist()),
        split=tuple(table.true_ids[holding > 1].tolist()),
        missed=tuple(table.true_ids[(covered == 0) & (holding < 2)].tolist()),
        invented=tuple(table.pred_ids[(lying == 0) & (covering < 2)].tolist()),
    )
