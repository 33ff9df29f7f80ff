"""The measures as a MONAI metric, so that a config can choose the best epoch by one of them."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from monai.metrics import CumulativeIterationMetric

from scripts.errors import InputError
from scripts.judging.case import case_of, objects_of
from scripts.judging.classes import mean_dice
from scripts.judging.instances import INSTANCE_SCORES, instance_scores
from scripts.judging.membranes import MEMBRANE_SCORES, membrane_scores, section
from scripts.labels import IGNORE_LABEL, UNKNOWN_OBJECT
from scripts.process import rank_and_size
from scripts.transforms.sparse import far

logger = logging.getLogger(__name__)

#: Names that CaseMetric takes.
MEASURES = ("dice", *INSTANCE_SCORES, *MEMBRANE_SCORES)


def is_better(score: float, best: float) -> bool:
    """Whether a validation is the best so far: its score is not lower, or no scores can be compared (NaN).

    Of equals the last is the best: of objects none may be found for a while. Where no epoch can be judged
    each is better than those before it, so that the last weights are kept.

    Args:
        score: of this validation.
        best: of the best one before it.
    """
    return not score < best


#: A larger share of the predicted foreground where none can be is warned of.
MUCH = 0.1


class CaseMetric(CumulativeIterationMetric):
    """Mean over the cases of one measure; over those of all processes where there are several.

    It is NaN where no case shows anything but background: what a network finds there is wrong, and says
    nothing of what it should find.

    Where labels of classes are sparse, "dice" takes for background what `scripts.transforms.sparse` does: a
    network that paints foreground all over an image is not the best one, though no annotated voxel says so.
    The log says on what share of the voxels the score stands.

    It goes into MONAI's IgniteMetricHandler as `metric_fn`. The engine takes the highest value for the
    best with `is_better` as its `metric_cmp_fn`; an error needs another one.

    Args:
        measure: "dice", the mean over the foreground classes, for class maps; one of INSTANCE_SCORES, for
            object numbers; or of MEMBRANE_SCORES, in 2D, for a label of cells (1) and membranes (0) and a
            prediction like it or the cells' probability. Labels of classes and of cells are IGNORE_LABEL
            where nobody annotated, numbered objects UNKNOWN_OBJECT.

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
        """`_row` for each of the predictions and labels, (B, 1, *spatial): (B, 6)."""
        if y is None or y_pred.shape[1] != 1 or y.shape[1] != 1:
            found = [None if maps is None else list(maps.shape) for maps in (y_pred, y)]
            raise InputError(f"prediction and label have the shapes {found}: give one channel each")
        rows = [self._row(*case) for case in zip(y_pred, y, strict=True)]
        return torch.tensor(rows, device=y_pred.device)  # where the processes exchange them

    def _row(self, pred: torch.Tensor, label: torch.Tensor) -> list[float]:
        """The score of a case, whether its label has foreground, of its voxels the share that is annotated
        and that taken for background, and how many are predicted as foreground, in all and there."""
        unknown = label == (UNKNOWN_OBJECT if self.measure in INSTANCE_SCORES else IGNORE_LABEL)
        sparse = bool(unknown.any())
        beyond = far(label) if sparse and self.measure == "dice" else np.zeros(label.shape[1:], dtype=bool)
        row = [self._score(pred, label, beyond), float(self._shows(label))]
        if not sparse:
            return [*row, 1.0, 0.0, 0.0, 0.0]
        found = np.asarray(pred[0].detach().cpu()) > 0
        shares = [1 - float(unknown.float().mean()), float(beyond.mean())]
        return [*row, *shares, float(found.sum()), float((found & beyond).sum())]

    def _shows(self, label: torch.Tensor) -> bool:
        """Whether a label has foreground."""
        shown = label > 0 if self.measure in INSTANCE_SCORES else (label > 0) & (label != IGNORE_LABEL)
        return bool(shown.any())

    def _score(self, pred: torch.Tensor, label: torch.Tensor, beyond: np.ndarray) -> float:
        """The measure of a case; for "dice" what lies beyond all foreground, (*spatial), is background."""
        if self.measure in INSTANCE_SCORES:
            found, true = (np.asarray(maps[0].detach().cpu()) for maps in (pred, label))
            return instance_scores(objects_of("", found, true))[self.measure]
        case = case_of("", pred, label)
        if self.measure == "dice":
            mask = None if case.mask is None else case.mask | beyond
            return mean_dice(replace(case, truth=case.truth * (case.truth != IGNORE_LABEL), mask=mask))
        cells = section(case.id, case.pred, case.truth, case.mask)
        return membrane_scores(cells, measures=[self.measure])[self.measure]

    def aggregate(self) -> torch.Tensor:
        """The mean over the cases that say something; NaN if none does, or none has foreground."""
        found = self.get_buffer()
        if not isinstance(found, torch.Tensor):
            return torch.tensor(math.nan)
        if not found[:, 1].any():
            if rank_and_size()[0] == 0:
                logger.warning("no case shows anything but background: %s is undefined", self.measure)
            return torch.tensor(math.nan)
        if rank_and_size()[0] == 0:
            self._tell(*found[:, 2:].double().T)
        return torch.nanmean(found[:, 0])

    def _tell(
        self, annotated: torch.Tensor, taken: torch.Tensor, found: torch.Tensor, beyond: torch.Tensor
    ) -> None:
        """Say on what a score stands, and warn of what it does not see; of each case see `_row`."""
        if (annotated == 1).all():
            return
        told = f"{float(annotated.mean()):.2%} of the voxels, which are annotated"
        if taken.any():
            told += (
                f", and {float(taken.mean()):.1%}, which are taken for background, as they lie far from all "
                "foreground"
            )
        logger.info("%s stands on %s", self.measure, told)
        share = float(beyond.sum() / found.sum().clamp(min=1))
        if share > MUCH:
            logger.warning(
                "(warning) %.0f%% of what is predicted as foreground lies where none can be: further from "
                "every annotated object than anything else that is annotated",
                100 * share,
            )
