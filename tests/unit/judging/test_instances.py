"""Scores of instances against numbers counted by hand, MONAI's panoptic quality and brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.metrics.panoptic_quality import compute_panoptic_quality
from PIL import Image
from scipy import ndimage
from scipy.optimize import linear_sum_assignment

from scripts.errors import InputError
from scripts.judging import (
    INSTANCE_SCORES,
    IOU_THRESHOLDS,
    Case,
    InstanceCounts,
    cell_errors,
    contingency,
    instance_counts,
    instance_scores,
)
from tests.commands import SHARED_DATA

DATA = SHARED_DATA / "dsb2018_nuclei"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the shared data set dsb2018_nuclei is absent")

# Three objects of 4, 5 and 2 pixels; found with 3 of 4, 5 of 6 and 1 of 5 in common: IoU 3/4, 5/6, 1/5.
TRUTH = np.array([[1, 1, 1, 1, 0, 2, 2, 2, 2, 2, 0, 0, 3, 3, 0, 0, 0, 0]])
PRED = np.array([[7, 7, 7, 0, 0, 8, 8, 8, 8, 8, 8, 0, 0, 9, 9, 9, 9, 0]])


def draw_instances(shape: tuple[int, ...], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Blobs, and the same a little moved, with some merged, cut or lost."""
    rng = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(rng.random(shape), 1.2)
    truth, _ = ndimage.label(field > np.quantile(field, 0.6))
    pred = np.roll(truth, int(rng.integers(0, 2)), axis=0)
    pred = np.where(rng.random(shape) < rng.choice([0.0, 0.1, 0.3]), 0, pred)
    numbers = np.arange(truth.max() + 1)
    numbers[rng.random(len(numbers)) < 0.2] = rng.integers(0, truth.max() + 1)
    pred = numbers[pred]
    pred[shape[0] // 2 :] += truth.max() * (pred[shape[0] // 2 :] > 0) * int(rng.integers(0, 2))
    return pred, truth


def masks_of(numbered: np.ndarray) -> list[np.ndarray]:
    return [numbered == number for number in np.unique(numbered) if number]


def test_scores_counted_by_hand():
    assert instance_counts(Case("a", PRED, TRUTH)) == InstanceCounts(
        true_positives=(2, 2, 2, 2, 2, 1, 1, 0, 0, 0),  # 3/4 is not above 0.75
        predicted=3,
        true=3,
        iou_sum=pytest.approx(19 / 12),
        jaccard_sum=pytest.approx(19 / 12),  # the third is covered by half, not more
    )
    expected = {
        "ap50": 2 / 4,
        "ap75": 1 / 5,
        "ap": (5 * 2 / 4 + 2 * 1 / 5) / 10,
        "precision50": 2 / 3,
        "recall50": 2 / 3,
        "f1_50": 2 / 3,
        "pq": 19 / 36,
        "sq": 19 / 24,
        "rq": 2 / 3,
        "seg": 19 / 36,
    }
    scores = instance_scores(Case("a", PRED, TRUTH))
    assert tuple(scores) == INSTANCE_SCORES
    assert scores == pytest.approx(expected)


def test_counts_of_what_is_missed_and_invented():
    counts = instance_counts(Case("a", PRED[:, 5:], TRUTH[:, :13]))
    assert (counts.predicted, counts.true) == (2, 3)
    assert counts.false_positives[0] == 2 - counts.true_positives[0]
    assert counts.false_negatives[0] == 3 - counts.true_positives[0]


@pytest.mark.parametrize(("size", "matched"), [(6, True), (5, False), (4, False)])
def test_an_iou_that_equals_the_threshold_is_no_match(size, matched):
    truth, pred = np.zeros((1, 10), int), np.zeros((1, 10), int)
    truth[0], pred[0, :size] = 1, 1  # IoU size / 10, of the true object the same share is covered
    counts = instance_counts(Case("a", pred, truth))
    assert counts.true_positives[0] == matched
    assert counts.true_positives[2] == 0  # 6 / 10 does not exceed 0.6
    assert counts.jaccard_sum == pytest.approx(size / 10 if matched else 0)


def test_thresholds():
    assert IOU_THRESHOLDS == (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)


def test_contingency_by_hand():
    table = contingency(PRED, TRUTH)
    assert table.pred_sizes.tolist() == [3, 6, 4]
    assert table.true_sizes.tolist() == [4, 5, 2]
    pairs = zip(table.pred_index.tolist(), table.true_index.tolist(), table.shared.tolist(), strict=True)
    assert sorted(pairs) == [(0, 0, 3), (1, 1, 5), (2, 2, 1)]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([(14, 17), (7, 9, 8)]))
def test_counts_equal_brute_force(seed, shape):
    pred, truth = draw_instances(shape, seed)
    found, true = masks_of(pred), masks_of(truth)
    iou = np.array([[(a & b).sum() / (a | b).sum() for b in found] for a in true]).reshape(
        len(true), len(found)
    )
    counts = instance_counts(Case("a", pred, truth))
    for threshold, hits in zip(IOU_THRESHOLDS, counts.true_positives, strict=True):
        rows, columns = linear_sum_assignment(iou > threshold, maximize=True)
        assert hits == (iou > threshold)[rows, columns].sum()
    covers = [
        max((iou[i, j] for j, b in enumerate(found) if (a & b).sum() > a.sum() / 2), default=0.0)
        for i, a in enumerate(true)
    ]
    assert counts.jaccard_sum == pytest.approx(sum(covers))
    assert (counts.predicted, counts.true) == (len(found), len(true))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([(14, 17), (7, 9, 8)]))
def test_panoptic_quality_equals_monai(seed, shape):
    pred, truth = draw_instances(shape, seed)
    counts = instance_counts(Case("a", pred, truth))
    maps = [torch.from_numpy(numbered.copy()) for numbered in (pred, truth)]
    expected = compute_panoptic_quality(*maps, output_confusion_matrix=True).tolist()
    found = (counts.true_positives[0], counts.false_positives[0], counts.false_negatives[0], counts.iou_sum)
    assert found == pytest.approx(expected, rel=1e-5)  # MONAI's are single precision
    scores = counts.scores()
    if counts.true_positives[0]:
        for name in ("pq", "sq", "rq"):
            expected_score = compute_panoptic_quality(*maps, metric_name=name, smooth_numerator=0.0)
            assert scores[name] == pytest.approx(float(expected_score), rel=1e-5)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([(14, 17), (7, 9, 8)]))
def test_identity_numbers_and_symmetry(seed, shape):
    pred, truth = draw_instances(shape, seed)
    assert instance_scores(Case("a", truth, truth)) == dict.fromkeys(INSTANCE_SCORES, 1)
    scores = instance_scores(Case("a", pred, truth))
    rng = np.random.default_rng(seed)
    renumbered = np.concatenate([[0], rng.permutation(5000)[: pred.max()] + 1])[pred]
    assert instance_scores(Case("a", renumbered.astype(np.uint16), truth.astype(float))) == pytest.approx(
        scores, nan_ok=True
    )
    swapped = instance_scores(Case("a", truth, pred))
    for name in ("ap50", "ap75", "ap", "f1_50", "pq", "sq", "rq"):
        assert swapped[name] == pytest.approx(scores[name])
    assert swapped["precision50"] == scores["recall50"]
    assert all(0 <= value <= 1 for value in scores.values())


def test_counts_of_cases_add_up():
    cases = [draw_instances((12, 15), seed) for seed in range(4)]
    together = sum((instance_counts(Case("a", *case)) for case in cases), InstanceCounts())
    beside = [
        np.concatenate([np.where(maps > 0, maps + 1000 * number, 0) for number, maps in enumerate(kind)])
        for kind in zip(*cases, strict=True)
    ]
    assert together.scores() == pytest.approx(instance_scores(Case("a", *beside)))


@pytest.mark.parametrize("shape", [(4, 5), (3, 4, 5)])
def test_empty_maps_follow_the_conventions(shape):
    empty, filled = np.zeros(shape, int), np.ones(shape, int)
    assert all(math.isnan(value) for value in instance_scores(Case("a", empty, empty)).values())
    for pred, truth in ((empty, filled), (filled, empty)):
        assert instance_scores(Case("a", pred, truth)) == dict.fromkeys(INSTANCE_SCORES, 0)
    both = [instance_counts(Case("a", cells, cells)) for cells in (empty, filled)]
    assert (both[0] + both[1]).scores()["pq"] == 1


@pytest.mark.parametrize(
    ("pred", "message"),
    [
        (np.ones((3, 5), int), r"pred has \[3, 5\] voxels and truth \[3, 4\]: give both on one grid"),
        (np.full((3, 4), 0.5), r"pred holds the value 0\.5: give whole numbers from 0"),
        (np.full((3, 4), np.nan), r"pred holds the value nan: give whole numbers from 0"),
        (np.full((3, 4), -2), r"pred holds the value -2: give whole numbers from 0"),
    ],
)
def test_what_is_no_instance_map_is_refused(pred, message):
    with pytest.raises(InputError, match=message):
        instance_scores(Case("a", pred, np.ones((3, 4), int)))


@needs_data
@pytest.mark.data
def test_nuclei_against_themselves():
    label = np.asarray(Image.open(sorted((DATA / "labels").iterdir())[0]))
    assert instance_scores(Case("a", label, label))["ap"] == 1
    lost = np.where(label == label.max(), 0, label)
    n = len(np.unique(label)) - 1
    assert instance_scores(Case("a", lost, label))["ap50"] == pytest.approx((n - 1) / n)


def test_voxels_that_nobody_annotated_belong_to_no_object():
    """What of objects is annotated is compared, and what lies outside is nothing."""
    rng = np.random.default_rng(0)
    for seed in range(4):
        pred, truth = draw_instances((14, 15), seed)
        mask = rng.random(truth.shape) < 0.7
        ids = [i for i in np.unique(pred) if 2 * mask[pred == i].sum() < (pred == i).sum()]
        kept = np.where(np.isin(pred, ids), 0, pred)
        here = instance_counts(Case("a", pred, truth, mask))
        assert here == instance_counts(Case("a", np.where(mask, kept, 0), np.where(mask, truth, 0)))
        numbers = rng.integers(0, 99, mask.shape)
        others = np.where(mask, kept, 1000 + numbers), np.where(mask, truth, numbers)
        assert here == instance_counts(Case("a", *others, mask))
    mask = np.ones(TRUTH.shape, dtype=bool)
    mask[:, 12:] = False  # the third object and what was predicted there
    scores = instance_scores(Case("a", PRED, TRUTH, mask))
    assert scores["ap50"] == 1
    assert scores["sq"] == pytest.approx((3 / 4 + 5 / 6) / 2)


def test_objects_mostly_where_nobody_annotated_are_neither_hits_nor_false_alarms() -> None:
    truth = np.zeros((10, 20), int)
    truth[1:5, 1:5] = 1
    mask = np.ones(truth.shape, dtype=bool)
    mask[:, 10:] = False
    for left, invented in ((9, 0), (8, 0), (5, 1)):  # of 6 columns 5, 4 and 1 lie beyond
        pred = truth.copy()
        pred[6:9, left : left + 6] = 2
        case = Case("a", pred, truth, mask)
        assert instance_counts(case).predicted == 1 + invented
        assert instance_counts(case).true_positives[0] == 1
        assert cell_errors(case).invented == ((2,) if invented else ())
    beyond = truth.copy()
    beyond[1:5, 1:20] = 1  # the object that was found reaches far into it
    assert instance_counts(Case("a", beyond, truth, mask)).true_positives[0] == 0
    assert instance_counts(Case("a", beyond, truth, mask)).predicted == 0
