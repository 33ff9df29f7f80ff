"""A case to be judged: what was predicted, what is true, and where somebody annotated."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from monai.data import MetaTensor

from scripts.errors import InputError
from scripts.labels import IGNORE_LABEL, UNKNOWN_OBJECT


@dataclass(frozen=True)
class Case:
    """A case, all of it on one grid.

    Attributes:
        id: its name, unique among those that are judged together.
        pred: class indices, object numbers or, for membranes, cells (1 or True), (*spatial).
        truth: the same, (*spatial).
        mask: boolean, (*spatial), True where somebody annotated; None: everywhere. The rest counts nowhere.
        probabilities: (classes, *spatial), in [0, 1], for the scorers that look at them; or None.
        spacing: size of a voxel, one number an axis, the unit of distances; None: 1 each.

    Raises:
        InputError: arrays on several grids.
    """

    id: str
    pred: np.ndarray
    truth: np.ndarray
    mask: np.ndarray | None = None
    probabilities: np.ndarray | None = None
    spacing: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        """Hold the grids against each other."""
        others = {"pred": self.pred, "mask": self.mask}
        if self.probabilities is not None:
            others["probabilities"] = self.probabilities[0]
        for name, array in others.items():
            if array is not None and array.shape != self.truth.shape:
                raise InputError(
                    f"{name} has {list(array.shape)} voxels and truth {list(self.truth.shape)}: "
                    "give both on one grid"
                )

    def share(self) -> float:
        """Of the voxels how many somebody annotated, in [0, 1]."""
        return 1.0 if self.mask is None else float(self.mask.mean())

    def annotated(self) -> tuple[np.ndarray, np.ndarray]:
        """Prediction and truth where somebody annotated, in one order and any shape."""
        return (self.pred, self.truth) if self.mask is None else (self.pred[self.mask], self.truth[self.mask])

    def cleared(self) -> tuple[np.ndarray, np.ndarray]:
        """Prediction and truth, (*spatial), with 0 where nobody annotated."""
        if self.mask is None:
            return self.pred, self.truth
        return self.pred * self.mask, self.truth * self.mask


def case_of(name: str, pred: torch.Tensor, label: torch.Tensor) -> Case:
    """A case of class maps as a pipeline has them.

    Args:
        name: id of the case.
        pred: class indices, (1, *spatial).
        label: class indices, (1, *spatial), IGNORE_LABEL where nobody annotated.
    """
    found, truth = (np.asarray(tensor[0].detach().cpu()) for tensor in (pred, label))
    mask = truth != IGNORE_LABEL
    sides = label.pixdim[: truth.ndim].tolist() if isinstance(label, MetaTensor) else [1.0] * truth.ndim
    return Case(name, found, truth, None if mask.all() else mask, spacing=tuple(sides))


def objects_of(
    name: str,
    pred: np.ndarray,
    truth: np.ndarray,
    spacing: tuple[float, ...] | None = None,
    unknown: int = UNKNOWN_OBJECT,
) -> Case:
    """A case of numbered objects.

    Args:
        name: id of the case.
        pred: object numbers, (*spatial).
        truth: the same, or `unknown`.
        spacing: see `Case`.
        unknown: what the truth has where nobody annotated.
    """
    mask = truth != unknown
    return Case(name, pred, truth * mask, None if mask.all() else mask, spacing=spacing)
