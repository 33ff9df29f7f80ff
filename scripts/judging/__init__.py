"""Cases to be judged and what judges them: classes (overlap, distances), instances and membranes.

`files` reads cases from label files, `tables` sums scores up and writes them, `handlers` judge what an engine
evaluates.
"""

from scripts.judging.case import Case, case_of, objects_of
from scripts.judging.case_metric import MEASURES, CaseMetric, is_better
from scripts.judging.classes import (
    SCORES,
    SurfaceScores,
    class_scores,
    confusion,
    mean_dice,
    overlap_scores,
    ranking,
    roc_auc,
    surface_scores,
)
from scripts.judging.instances import (
    INSTANCE_SCORES,
    IOU_THRESHOLDS,
    CellErrors,
    Contingency,
    InstanceCounts,
    cell_errors,
    contingency,
    instance_counts,
    instance_scores,
)
from scripts.judging.membranes import (
    MEMBRANE_SCORES,
    THRESHOLDS,
    Warping,
    best_membrane_scores,
    cells_apart,
    membrane_curves,
    membrane_scores,
    section,
    thinned,
    v_info,
    v_rand,
    warp,
    warping_error,
)

__all__ = [
    "INSTANCE_SCORES",
    "IOU_THRESHOLDS",
    "MEASURES",
    "MEMBRANE_SCORES",
    "SCORES",
    "THRESHOLDS",
    "Case",
    "CaseMetric",
    "CellErrors",
    "Contingency",
    "InstanceCounts",
    "SurfaceScores",
    "Warping",
    "best_membrane_scores",
    "case_of",
    "cell_errors",
    "cells_apart",
    "class_scores",
    "confusion",
    "contingency",
    "instance_counts",
    "instance_scores",
    "is_better",
    "mean_dice",
    "membrane_curves",
    "membrane_scores",
    "objects_of",
    "overlap_scores",
    "ranking",
    "roc_auc",
    "section",
    "surface_scores",
    "thinned",
    "v_info",
    "v_rand",
    "warp",
    "warping_error",
]
