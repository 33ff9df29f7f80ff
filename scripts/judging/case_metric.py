"""The measures as a MONAI metric, so that a config can choose the best epoch by one of them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from monai.metrics import CumulativeIterationMetric

from scripts.errors import InputError
from scripts.judging.case import Case, case_of
from scripts.judging.classes import mean_dice
from scripts.judging.instances import INSTANCE_SCORES, instance_scores
from scripts.judging.membranes import MEMBRANE_SCORES, membrane_scores, section

#: Names that CaseMetric takes.
MEASURES = ("dice", *INSTANCE_SCORES, *MEMBRANE_SCORES)


class CaseMetric(CumulativeIterationMetric):
    """Mean over the cases of one measure; over those of all processes where there are several.

    It goes into MONAI's IgniteMetricHandler as `metric_fn`. The engine takes the highest value for the best:
    with an error it needs a `metric_cmp_fn`.

    Args:
        measure: "dice", the mean over the foreground classes, for class maps; one of INSTANCE_SCORES, for
            object numbers; or of MEMBRANE_SCORES, in 2D, for a label of cells (1) and membranes (0) and a
            prediction like it or the cells' probability. Labels of classes and of cells are IGNORE_LABEL
            where nobody annotated.

    Raises:
        InputError: an unknown measure; when called, what the measure's function refuses, and more channels
            than one.
    """

    def __init__(self, measure: str) -> None:
        super().__init__()
        if measure not in MEASURES:
            raise InputError(f"measure is {measure!r}: give one of {', '.join(MEASURES)}")
        self.measure = measure

    def _compute_tensor(
        self, y_pred: torch.Tensor, y: torch.Tensor | None = None, **kwargs: Any
    ) -> torch.Tensor:
        """Scores (B, 1) of predictions and labels (B, 1, *spatial)."""
        if y is None or y_pred.shape[1] != 1 or y.shape[1] != 1:
            found = [None if maps is None else list(maps.shape) for maps in (y_pred, y)]
            raise InputError(f"prediction and label have the shapes {found}: give one channel each")
        scores = [[self._score(*case)] for case in zip(y_pred, y, strict=True)]
        return torch.tensor(scores, device=y_pred.device)  # where the processes exchange them

    def _score(self, pred: torch.Tensor, label: torch.Tensor) -> float:
        if self.measure in INSTANCE_SCORES:
            found, true = (np.asarray(maps[0].detach().cpu()) for maps in (pred, label))
            return instance_scores(Case("", found, true))[self.measure]
        case = case_of("", pred, label)
        if self.measure == "dice":
            return mean_dice(case)
        cells = section(case.id, case.pred, case.truth, case.mask)
        return membrane_scores(cells, measures=[self.measure])[self.measure]

    def aggregate(self) -> torch.Tensor:
        """The mean over the cases that say something; NaN if none does."""
        scores = self.get_buffer()
        return torch.nanmean(scores) if isinstance(scores, torch.Tensor) else torch.tensor(math.nan)
