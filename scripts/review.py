"""How good a segmentation is likely to be, and how far the truth may lie beyond it, without the truth.

Of each class a few numbers are taken from its probabilities, of which a regression makes a predicted Dice.
Its interval, and the margin, come from cases that the regression was not learnt on: a new case of the same
kind lies within them as often as was asked for (split conformal prediction, V. Vovk et al., "Algorithmic
Learning in a Random World", 2005). The margin needs the segmentation alone: L. Mossina, C. Friedrich,
"Conformal Prediction for Image Segmentation Using Morphological Prediction Sets", 2025 (arXiv 2503.05618).
`python -m bundle calibrate` learns all of it, and the id `review` holds it.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from scipy import ndimage
from skimage.measure import label as components

from scripts.calibration import is_number
from scripts.errors import InputError, few
from scripts.judging.reliability import NEAR
from scripts.labels import class_names
from scripts.transforms.versions import BEYOND, LOOK, LOW, LOWEST, UNLIKE, with_told
from scripts.uncertainty import predictive_entropy
from scripts.unlike import describe, judge, require_fingerprint

#: What a predicted Dice is made of: see `features`.
FEATURES = ("expected_dice", "border_entropy", "largest_piece", "log_voxels", "log_ratio")

#: Content of the id `review`, and of each of its classes.
COVERAGE, COVERED, CLASSES, FINGERPRINT = "coverage", "covered", "classes", "fingerprint"
OF_A_CLASS = ("intercept", "weights", "ranges", "half_width", "margin", "look_below")

#: How far beyond the range of the cases learnt from features may lie, as a share of that range, where there
#: is no fingerprint.
FAR = 0.5


def features(probabilities: np.ndarray) -> list[dict[str, float]]:
    """What the probabilities of a case say of how good its segmentation is.

    Args:
        probabilities: (classes, *spatial), float32.

    Returns:
        FEATURES of each class: the Dice that the probabilities expect of the most probable class; the mean
        entropy up to NEAR voxels from its surface; the share of its largest connected part; the logarithm of
        its voxels; that of the expected over the found voxels.
    """
    best = probabilities.argmax(0)
    entropy = predictive_entropy(torch.from_numpy(probabilities))[0].numpy()
    boxes = dict(enumerate(ndimage.find_objects(best + 1)))
    found = []
    for index, chance in enumerate(probabilities):
        box = boxes.get(index)
        expected = float(chance.sum(dtype=np.float64))
        if box is None:
            empty = dict.fromkeys(FEATURES, 0.0)
            found.append({**empty, "log_ratio": math.log1p(expected)})
            continue
        box = tuple(slice(max(side.start - NEAR, 0), side.stop + NEAR) for side in box)
        mask = best[box] == index
        grown = ndimage.binary_dilation(mask, iterations=NEAR)
        surface = grown & ~ndimage.binary_erosion(mask, iterations=NEAR)
        voxels = int(mask.sum())
        sizes = np.bincount(components(mask).ravel())[1:]
        found.append(
            {
                "expected_dice": 2 * float(chance[box][mask].sum(dtype=np.float64)) / (voxels + expected),
                "border_entropy": float(entropy[box][surface].mean()),
                "largest_piece": float(sizes.max() / voxels),
                "log_voxels": math.log1p(voxels),
                "log_ratio": math.log1p(expected) - math.log1p(voxels),
            }
        )
    return found


def margin_needed(mask: np.ndarray, truth: np.ndarray, covered: float) -> float:
    """By how many voxels a mask has to grow to cover so much of the truth; infinite where there is no mask.

    Args:
        mask: boolean, (*spatial).
        truth: the same.
        covered: share of the voxels of the truth.
    """
    if not truth.any():
        return 0.0
    if not mask.any():
        return math.inf
    away = ndimage.distance_transform_edt(~mask)[truth]
    return float(math.ceil(np.quantile(away, covered, method="higher")))


def conformal_quantile(scores: Sequence[float], coverage: float) -> float | None:
    """What a further score of the same kind does not exceed, as often as asked for; None of too few scores.

    Args:
        scores: of cases that nothing was learnt from.
        coverage: how often, 0 to 1.

    Returns:
        The score of rank ceil((n + 1) coverage); None where that is above n, or the score is infinite.
    """
    rank = math.ceil((len(scores) + 1) * coverage - 1e-9)
    if rank > len(scores) or not math.isfinite(found := sorted(scores)[rank - 1]):
        return None
    return float(found)


def predicted_dice(found: Mapping[str, float], learnt: Mapping[str, Any]) -> float:
    """The Dice that features speak for, 0 to 1.

    Args:
        found: see `features`; what lies beyond the cases learnt from counts as their end.
        learnt: "intercept", and by feature "weights" and "ranges", the lowest and highest of those cases.
    """
    within = {name: float(np.clip(found[name], *ends)) for name, ends in learnt["ranges"].items()}
    value = learnt["intercept"] + sum(weight * within[name] for name, weight in learnt["weights"].items())
    return float(np.clip(value, 0, 1))


def is_unlike(found: Mapping[str, float], learnt: Mapping[str, Any]) -> bool:
    """Whether a feature lies far beyond those of the cases learnt from, see FAR."""
    return any(
        not low - FAR * (high - low) <= found[name] <= high + FAR * (high - low)
        for name, (low, high) in learnt["ranges"].items()
    )


def require_review(review: Any, labels: Mapping[str, int]) -> None:
    """Refuse a `review` that was not learnt, or for other classes.

    Args:
        review: value of the id.
        labels: name to value, the background first.

    Raises:
        InputError: it is something else.
    """
    fix = "give what python -m bundle calibrate wrote for these weights, or null"
    parts = (COVERAGE, COVERED, CLASSES)
    if (
        not isinstance(review, Mapping)
        or set(review) - {FINGERPRINT} != set(parts)
        or not isinstance(review[CLASSES], Mapping)
    ):
        raise InputError(f"review has not {', '.join(parts)}: {fix}")
    if review.get(FINGERPRINT) is not None:
        require_fingerprint(review[FINGERPRINT])
    names = class_names(dict(labels))[1:]
    if set(review[CLASSES]) - set(names):
        raise InputError(
            f"review names the classes {few(list(map(str, review[CLASSES])))}, and labels {few(names)}: {fix}"
        )
    for name, learnt in review[CLASSES].items():
        if not isinstance(learnt, Mapping) or set(learnt) != set(OF_A_CLASS):
            raise InputError(f"review::{CLASSES}::{name} has not {', '.join(OF_A_CLASS)}: {fix}")
        weights = learnt["weights"]
        numbers = [learnt[key] for key in ("intercept", "half_width", "look_below")]
        ranges = learnt["ranges"]
        for key in ("weights", "ranges"):
            if not isinstance(learnt[key], Mapping) or set(learnt[key]) != set(FEATURES):
                raise InputError(f"review::{CLASSES}::{name}::{key} has not {', '.join(FEATURES)}: {fix}")
        numbers += [end for ends in ranges.values() for end in (ends if isinstance(ends, list) else [None])]
        margin = [] if learnt["margin"] is None else [learnt["margin"]]
        if not all(map(is_number, [*numbers, *margin, *weights.values()])):
            raise InputError(f"review::{CLASSES}::{name} holds what is no number: {fix}")


class Reviewd(MapTransform):
    """Put into the table how good a segmentation is likely to be, class by class.

    Columns: of each class the predicted Dice, the ends of its interval, and the margin in voxels; the lowest
    predicted Dice of all; why it needs a look: UNLIKE the cases learnt from, for which no interval holds, or
    LOW, as in the tenth of cases that were predicted worst. With a fingerprint what is unlike, in sentences,
    and how far it lies beyond: see `scripts.unlike`.

    Args:
        keys: calibrated probabilities, (classes, *spatial), on the grid of the file.
        review: see `require_review`.
        labels: name to value, the background first.
        image_key: of the image, after the preprocessing, which a fingerprint needs.

    Raises:
        InputError: see `require_review`.
    """

    def __init__(
        self,
        keys: KeysCollection,
        review: Mapping[str, Any],
        labels: Mapping[str, int],
        image_key: str = "image",
    ) -> None:
        super().__init__(keys)
        require_review(review, labels)
        self.image_key = image_key
        self.fingerprint = review.get(FINGERPRINT)
        self.classes = review[CLASSES]
        self.names = class_names(dict(labels))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        for key in self.keys:
            out = with_told(out, self.told(out[key], out))
        return out

    def told(self, prediction: torch.Tensor, case: Mapping[Hashable, Any]) -> dict[str, Any]:
        """The columns of a case."""
        probabilities = np.asarray(torch.as_tensor(prediction).cpu(), dtype=np.float32)
        columns: dict[str, Any] = {}
        predicted: dict[str, float] = {}
        seen = features(probabilities)
        found = dict(zip(self.names, seen, strict=True))
        for name, learnt in self.classes.items():
            dice = predicted[name] = predicted_dice(found[name], learnt)
            low, high = np.clip([dice - learnt["half_width"], dice + learnt["half_width"]], 0, 1)
            columns |= {
                f"{name} dice": dice,
                f"{name} dice low": float(low),
                f"{name} dice high": float(high),
            }
            columns[f"{name} margin"] = learnt["margin"]
        look = LOW if any(dice < self.classes[name]["look_below"] for name, dice in predicted.items()) else ""
        if self.fingerprint is not None:
            of_case = describe(case[self.image_key], MetaTensor(prediction), self.names, seen)
            columns[BEYOND], unlike = judge(of_case, self.fingerprint)
            columns[UNLIKE] = "; ".join(unlike)
        else:
            unlike = [name for name, learnt in self.classes.items() if is_unlike(found[name], learnt)]
        look = UNLIKE if unlike else look
        rounded = {
            key: round(value, 4) if isinstance(value, float) else value for key, value in columns.items()
        }
        lowest = {LOWEST: round(min(predicted.values()), 4)} if predicted else {}
        return {
            LOOK: look,
            **{key: rounded.pop(key) for key in (UNLIKE, BEYOND) if key in rounded},
            **lowest,
            **rounded,
        }
