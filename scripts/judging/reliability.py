"""Whether probabilities are as high as they are right: calibration errors, Brier score, likelihood.

Voxels are put into bins by a probability. In a bin the mean probability is held against the share that is
right. Sums of bins add up over cases, so that a bootstrap over cases is a product of matrices.

Sources: C. Guo et al., "On Calibration of Modern Neural Networks", ICML 2017 (expected and maximum error
of calibration, of the most probable class); bins and class-wise error as MONAI's
CalibrationErrorMetric has them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from skimage.segmentation import find_boundaries

#: Bins of equal width, as many as MONAI has.
BINS = 20

#: The measures, each lower is better, and what they are called.
MEASURES = {
    "ece": "expected calibration error",
    "classwise": "class-wise calibration error",
    "mce": "maximum calibration error",
    "brier": "Brier score",
    "nll": "negative log-likelihood",
}

#: Voxels up to this far from where two classes meet are near a border.
NEAR = 2

#: Quantities of a bin: voxels, sum of their probabilities, how many are right.
COUNT, SUM, RIGHT = range(3)


@dataclass(frozen=True)
class Reliability:
    """Sums over voxels.

    Attributes:
        bins: (1 + classes, 3, BINS), COUNT, SUM and RIGHT of the most probable class, then of each class.
        sums: (3,), voxels, their Brier scores and negative log-likelihoods.
    """

    bins: np.ndarray
    sums: np.ndarray

    @classmethod
    def of(cls, probabilities: np.ndarray, truth: np.ndarray) -> Reliability:
        """The sums of some voxels.

        Args:
            probabilities: (classes, voxels), adding up to 1.
            truth: class indices, (voxels,).
        """
        found = probabilities.astype(np.float64)
        best = found.argmax(0)
        is_class = np.arange(len(found))[:, None] == truth
        rows = [_binned(found.max(0), best == truth), *map(_binned, found, is_class)]
        true = np.maximum(found[truth, np.arange(len(truth))], np.finfo(np.float32).tiny)
        sums = [len(truth), ((found - is_class) ** 2).sum(), -np.log(true).sum()]
        return cls(np.stack(rows), np.array(sums, dtype=float))

    def __add__(self, other: Reliability) -> Reliability:
        """The sums over the voxels of both."""
        return Reliability(self.bins + other.bins, self.sums + other.sums)

    def measures(self) -> dict[str, float]:
        """The value of each of MEASURES; NaN without voxels."""
        return {name: float(value) for name, value in measures_of(self.bins, self.sums).items()}


def _binned(values: np.ndarray, right: np.ndarray) -> np.ndarray:
    """COUNT, SUM and RIGHT of each bin, (3, BINS)."""
    index = np.minimum((values * BINS).astype(int), BINS - 1)
    return np.stack([np.bincount(index, weight, BINS) for weight in (np.ones(len(values)), values, right)])


def measures_of(bins: np.ndarray, sums: np.ndarray) -> dict[str, np.ndarray]:
    """The measures of sums.

    Args:
        bins: (..., 1 + classes, 3, BINS), see `Reliability`.
        sums: (..., 3).

    Returns:
        Each of MEASURES, (...).
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        apart = np.abs(bins[..., SUM, :] - bins[..., RIGHT, :])
        expected = apart.sum(-1) / bins[..., COUNT, :].sum(-1)
        largest = np.nan_to_num(apart / bins[..., COUNT, :]).max(-1)
        brier, nll = np.moveaxis(sums[..., 1:] / sums[..., :1], -1, 0)
    return {
        "ece": expected[..., 0],
        "classwise": expected[..., 1:].mean(-1),
        "mce": largest[..., 0],
        "brier": brier,
        "nll": nll,
    }


def intervals(
    cases: Sequence[Reliability], subjects: Sequence[str], draws: int, seed: int, covered: float = 0.95
) -> dict[str, tuple[float, float]]:
    """Bootstrap intervals of the measures of all voxels (percentiles); whole subjects are drawn.

    Args:
        cases: at least one.
        subjects: whom each is of.
        draws: how many.
        seed: of the draws.
        covered: by each interval.
    """
    own: dict[str, Reliability] = {}
    for subject, case in zip(subjects, cases, strict=True):
        own[subject] = own[subject] + case if subject in own else case
    held = list(own.values())
    drawn = (
        np.random.default_rng(seed).multinomial(len(held), [1 / len(held)] * len(held), draws).astype(float)
    )
    bins, sums = (
        np.tensordot(drawn, np.stack([getattr(each, name) for each in held]), 1) for name in ("bins", "sums")
    )
    ends = [50 * (1 - covered), 50 * (1 + covered)]
    return {
        name: tuple(map(float, np.nanpercentile(values, ends)))  # type: ignore[misc]
        for name, values in measures_of(bins, sums).items()
    }


def near_borders(classes: np.ndarray) -> np.ndarray:
    """Where two classes are at most NEAR voxels away.

    Of what was found, not of the truth: of voxels that are chosen by the truth even probabilities that mean
    what they say are not as often right as they say.

    Args:
        classes: the most probable class, (*spatial).

    Returns:
        Boolean, (*spatial).
    """
    meets = find_boundaries(classes, connectivity=1, mode="thick")
    return ndimage.binary_dilation(meets, iterations=NEAR - 1)
