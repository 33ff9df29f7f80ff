"""Calibration errors beside MONAI's, and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.metrics import CalibrationErrorMetric

from scripts.judging.reliability import BINS, MEASURES, Reliability, intervals, near_borders


def voxels(count: int, seed: int, sharp: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of 3 classes, too sure of themselves where sharp is above 1, and truths."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.standard_normal((3, count))
    true, found = (np.exp(scale * logits) for scale in (1.0, sharp))
    drawn = (rng.random(count) > np.cumsum(true / true.sum(0), 0)).sum(0).clip(0, 2)
    return (found / found.sum(0)).astype(np.float32), drawn


@pytest.mark.parametrize(("name", "kind"), [("expected", "ece"), ("maximum", "mce")])
def test_errors_of_a_class_are_those_of_monai(name: str, kind: str) -> None:
    probabilities, truth = voxels(4000, 0)
    one_hot = torch.from_numpy((np.arange(3)[:, None] == truth).astype(np.float32))
    metric = CalibrationErrorMetric(num_bins=BINS, calibration_reduction=name, metric_reduction="none")
    metric(y_pred=torch.from_numpy(probabilities)[None], y=one_hot[None])
    theirs = np.asarray(metric.aggregate())[0]
    ours = Reliability.of(probabilities, truth)
    if kind == "ece":
        assert ours.measures()["classwise"] == pytest.approx(theirs.mean(), abs=1e-6)
    # of the most probable class: one channel, right or wrong
    best = torch.from_numpy(
        np.stack([probabilities.max(0), probabilities.argmax(0) == truth]).astype(np.float32)
    )
    metric = CalibrationErrorMetric(num_bins=BINS, calibration_reduction=name)
    metric(y_pred=best[None, :1], y=best[None, 1:])
    assert ours.measures()[kind] == pytest.approx(float(metric.aggregate()), abs=1e-6)


def test_by_hand() -> None:
    probabilities = np.array([[0.9, 0.9, 0.2, 0.0], [0.1, 0.1, 0.8, 1.0]])
    found = Reliability.of(probabilities, np.array([0, 1, 1, 1])).measures()
    # bins of 0.9 (half right), 0.8 and 1.0 (right)
    assert found["ece"] == pytest.approx((2 * 0.4 + 0.2 + 0) / 4)
    assert found["mce"] == pytest.approx(0.4)
    assert found["brier"] == pytest.approx(2 * (0.01 + 0.81 + 0.04) / 4)
    assert found["nll"] == pytest.approx(-np.log([0.9, 0.1, 0.8, 1.0]).mean())
    assert found.keys() == MEASURES.keys()


def test_sums_of_cases_are_those_of_all_voxels() -> None:
    one, other = voxels(300, 1), voxels(500, 2)
    both = Reliability.of(*one) + Reliability.of(*other)
    together = Reliability.of(np.hstack([one[0], other[0]]), np.hstack([one[1], other[1]]))
    assert both.measures() == pytest.approx(together.measures())


def test_intervals_hold_the_error_and_draw_whole_subjects() -> None:
    cases = [Reliability.of(*voxels(2000, seed)) for seed in range(30)]
    total = sum(cases[1:], cases[0]).measures()
    own = intervals(cases, [str(number) for number in range(30)], 500, 0)
    few = intervals(cases, [str(number % 3) for number in range(30)], 500, 0)
    for name, (low, high) in own.items():
        assert low <= total[name] * 1.02, name
        assert total[name] * 0.98 <= high, name
    assert intervals(cases, ["a"] * 30, 50, 0)["ece"] == pytest.approx((total["ece"],) * 2)
    assert few.keys() == own.keys()


def test_what_probabilities_say_right_has_no_error() -> None:
    exact, over = (Reliability.of(*voxels(200_000, 0, sharp)).measures() for sharp in (1.0, 2.0))
    assert exact["ece"] < 0.005 < 0.05 < over["ece"]
    assert exact["nll"] < over["nll"]
    assert exact["brier"] < over["brier"]


def test_near_borders_are_two_voxels_on_both_sides() -> None:
    classes = np.zeros((3, 12), np.uint8)
    classes[:, 6:] = 1
    assert near_borders(classes)[1].nonzero()[0].tolist() == [4, 5, 6, 7]
