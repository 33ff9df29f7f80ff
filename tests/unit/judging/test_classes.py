"""Scores against numbers counted by hand, MONAI's metrics and distances by brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.metrics import (
    compute_average_surface_distance,
    compute_confusion_matrix_metric,
    compute_dice,
    compute_hausdorff_distance,
    compute_iou,
    compute_roc_auc,
    compute_surface_dice,
    get_confusion_matrix,
)
from monai.networks import one_hot
from scipy import ndimage

from scripts.errors import InputError
from scripts.judging import (
    SCORES,
    Case,
    class_scores,
    confusion,
    mean_dice,
    overlap_scores,
    ranking,
    roc_auc,
    surface_scores,
)
from scripts.labels import IGNORE_LABEL

OVERLAP = SCORES[:5]

# MONAI's distances are single precision.
FLOAT_TOLERANCE = 1e-5

# Ten pixels, three classes; counted by hand below.
TRUTH = np.array([[0, 0, 0, 1, 1], [1, 1, 2, 2, 2]])
PRED = np.array([[0, 0, 1, 1, 1], [1, 2, 2, 2, 0]])
COUNTS = [[2, 1, 0], [0, 3, 1], [1, 0, 2]]


def draw_maps(shape: tuple[int, ...], n_classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A truth of blobs and a prediction that is often right."""
    rng = np.random.default_rng(seed)
    truth = np.digitize(ndimage.gaussian_filter(rng.random(shape), 1.5), [0.45, 0.52][: n_classes - 1])
    pred = np.where(rng.random(shape) < 0.2, rng.integers(0, n_classes, shape), truth)
    return pred, truth


def assert_equal_or_nan(found: float, expected: float) -> None:
    assert found == pytest.approx(expected, rel=FLOAT_TOLERANCE, abs=FLOAT_TOLERANCE, nan_ok=True)


# One case


def test_confusion_counts_every_pair_by_hand():
    assert confusion(Case("a", PRED, TRUTH), 3).tolist() == COUNTS
    assert confusion(Case("a", PRED.astype(np.uint8), TRUTH.astype(np.float32)), 3).tolist() == COUNTS


@pytest.mark.parametrize("masked", [False, True])
def test_confusion_of_a_large_case_is_that_of_all_its_voxels(masked):
    pred, truth = draw_maps((3, 400, 401), 4, seed=1)  # which is counted part by part
    mask = np.random.default_rng(2).random(truth.shape) < 0.7 if masked else None
    expected = np.zeros((4, 4), int)
    counted = np.ones(truth.shape, bool) if mask is None else mask
    np.add.at(expected, (truth[counted], pred[counted]), 1)
    assert np.array_equal(confusion(Case("a", pred, truth, mask), 4), expected)


@pytest.mark.parametrize("position", ["pred", "truth"])
@pytest.mark.parametrize("value", [3, 255, -1])
def test_class_beyond_the_declared_ones_is_refused(position, value):
    maps = {"pred": PRED.copy(), "truth": TRUTH.copy()}
    maps[position][0, 0] = value
    with pytest.raises(
        InputError, match=rf"{position} of a holds classes from .*{value}.*: give indices from 0 to 2"
    ):
        confusion(Case("a", **maps), n_classes=3)


def test_overlap_counted_by_hand():
    scores = overlap_scores(np.array(COUNTS))
    expected = {
        "dice": [4 / 6, 6 / 8, 4 / 6],
        "iou": [2 / 4, 3 / 5, 2 / 4],
        "precision": [2 / 3, 3 / 4, 2 / 3],
        "recall": [2 / 3, 3 / 4, 2 / 3],
        "error": [2 / 10, 2 / 10, 2 / 10],
    }
    assert set(scores) == set(OVERLAP)
    for name, values in expected.items():
        np.testing.assert_allclose(scores[name], values)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([(9, 12), (6, 7, 8)]), st.sampled_from([2, 3]))
def test_overlap_equals_monai(seed, shape, n_classes):
    pred, truth = draw_maps(shape, n_classes, seed)
    scores = overlap_scores(confusion(Case("a", pred, truth), n_classes))
    pred_hot, true_hot = (one_hot(torch.from_numpy(m)[None, None], n_classes) for m in (pred, truth))
    matrix = get_confusion_matrix(pred_hot, true_hot)
    expected = {
        "dice": compute_dice(pred_hot, true_hot, ignore_empty=False)[0],
        "iou": compute_iou(pred_hot, true_hot, ignore_empty=False)[0],
        "precision": compute_confusion_matrix_metric("precision", matrix)[0],
        "recall": compute_confusion_matrix_metric("sensitivity", matrix)[0],
        "error": 1 - compute_confusion_matrix_metric("accuracy", matrix)[0],
    }
    present = (true_hot.sum((2, 3)) if len(shape) == 2 else true_hot.sum((2, 3, 4)))[0] > 0
    for name, values in expected.items():
        for index in range(n_classes):
            if present[index] and not torch.isnan(values[index]):
                assert_equal_or_nan(scores[name][index], float(values[index]))


def surface(mask: np.ndarray) -> np.ndarray:
    """Voxels of a mask with a face neighbour outside it, the outside of the picture included."""
    padded = np.pad(mask, 1)
    return mask & ~ndimage.binary_erosion(padded)[(slice(1, -1),) * mask.ndim]


def distances(a: np.ndarray, b: np.ndarray, spacing: tuple[float, ...]) -> tuple[list[float], list[float]]:
    """From every surface voxel of one mask to the nearest of the other, both ways, by brute force."""
    one, two = (np.argwhere(surface(mask)) * spacing for mask in (a, b))
    table = np.sqrt(((one[:, None] - two[None]) ** 2).sum(-1))
    return list(table.min(1)), list(table.min(0))


@pytest.mark.parametrize(
    ("shape", "spacing"), [((16, 20), (1.0, 1.0)), ((16, 20), (0.5, 3.0)), ((10, 12, 8), (1.0, 0.7, 2.5))]
)
@pytest.mark.parametrize("seed", [1, 2])
def test_distances_equal_brute_force(shape, spacing, seed):
    pred, truth = draw_maps(shape, 3, seed)
    tolerance = 1.1
    rows = class_scores(Case("a", pred, truth, spacing=spacing), 3, tolerance)
    for index, row in enumerate(rows, start=1):
        there, back = distances(pred == index, truth == index, spacing)
        assert_equal_or_nan(row["hd95"], max(np.percentile(there, 95), np.percentile(back, 95)))
        within = sum(d <= tolerance for d in there + back) / (len(there) + len(back))
        assert_equal_or_nan(row["surface_dice"], within)
        assert_equal_or_nan(row["assd"], np.mean(there + back))


def monai_surface_scores(
    pred: np.ndarray, truth: np.ndarray, spacing: tuple[float, ...], tolerance: float
) -> tuple[float, float, float]:
    found, true = (torch.from_numpy(mask)[None, None] for mask in (pred, truth))
    return (
        float(compute_hausdorff_distance(found, true, True, percentile=95, spacing=spacing)),
        float(compute_average_surface_distance(found, true, True, symmetric=True, spacing=spacing)),
        float(compute_surface_dice(found, true, [tolerance], include_background=True, spacing=spacing)),
    )


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10_000),
    st.sampled_from([(25, 33), (11, 14, 9), (1, 12), (6, 1, 13)]),
    st.sampled_from([1.0, 0.1, 2.5]),
    st.booleans(),
    st.sampled_from([0.0, 0.3, 1.0, 4.0]),
    st.sampled_from([0.0, 0.01, 0.3, 1.0]),
)
def test_surface_scores_equal_monai(seed, shape, side, anisotropic, tolerance, noise):
    """Blobs cut by the picture's edge; as prediction the same moved or others, with specks or all noise."""
    rng = np.random.default_rng(seed)
    truth = ndimage.gaussian_filter(rng.random(shape), 1.5) > 0.5
    pred = np.roll(truth, 2, axis=-1) if seed % 2 else ndimage.gaussian_filter(rng.random(shape), 1.0) > 0.5
    pred = np.where(rng.random(shape) < noise, rng.random(shape) < 0.5, pred)
    truth[(0,) * truth.ndim] = pred[(-1,) * pred.ndim] = True  # neither is empty
    spacing = tuple(side * np.array([1.0, 0.7, 3.0])[: len(shape)]) if anisotropic else (side,) * len(shape)
    found = surface_scores(pred, truth, spacing, tolerance)
    for value, expected in zip(found, monai_surface_scores(pred, truth, spacing, tolerance), strict=True):
        assert_equal_or_nan(value, expected)


@pytest.mark.parametrize("side", [0.1, 0.3, 0.7])
def test_whole_voxels_lie_within_their_length(side):
    """Three steps of 0.1 are 0.30000000000000004 in double precision, and count as 0.3."""
    truth, pred = np.zeros((30, 3), dtype=bool), np.zeros((30, 3), dtype=bool)
    for steps in (3, 7, 11):
        truth[5], pred[:] = True, False
        pred[5 + steps] = True
        tolerance = round(steps * side, 1)
        assert surface_scores(pred, truth, (side, 1.0), tolerance).surface_dice == 1
        assert surface_scores(pred, truth, (side, 1.0), 0.99 * tolerance).surface_dice == 0


def test_surface_scores_counted_by_hand():
    """Two columns of ten pixels; five pixels of the prediction's lie three to the right of the truth's."""
    truth, pred = np.zeros((10, 8), dtype=bool), np.zeros((10, 8), dtype=bool)
    truth[:, 2] = pred[:5, 2] = pred[5:, 5] = True
    found = surface_scores(pred, truth, (2.0, 1.0), 2.0)
    # back: five of 0, then the nearer of 2, 4, 6, 8, 10 up the column and 3 across
    there, back = [0] * 5 + [3] * 5, [0] * 5 + [2, 3, 3, 3, 3]
    assert found.hd95 == 3
    assert found.assd == pytest.approx(sum(there + back) / 20)
    assert found.surface_dice == (5 + 6) / 20


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_surface_scores_are_symmetric_and_scale(seed):
    pred, truth = (mask == 1 for mask in draw_maps((14, 17), 2, seed))
    here = surface_scores(pred, truth, (1.0, 2.0), 1.0)
    np.testing.assert_allclose(surface_scores(truth, pred, (1.0, 2.0), 1.0), here, rtol=FLOAT_TOLERANCE)
    doubled = surface_scores(pred, truth, (2.0, 4.0), 2.0)
    expected = (2 * here.hd95, 2 * here.assd, here.surface_dice)
    np.testing.assert_allclose(doubled, expected, rtol=FLOAT_TOLERANCE)
    assert surface_scores(truth, truth, (1.0, 2.0), 0.0) == (0, 0, 1)


@pytest.mark.parametrize("shape", [(4, 5), (3, 4, 5)])
def test_surface_scores_of_empty_masks(shape):
    empty, filled = np.zeros(shape, dtype=bool), np.ones(shape, dtype=bool)
    spacing = (1.0,) * len(shape)
    for pred, truth in ((empty, filled), (filled, empty)):
        found = surface_scores(pred, truth, spacing, 1.0)
        assert math.isnan(found.hd95)
        assert math.isnan(found.assd)
        assert found.surface_dice == 0
    assert all(math.isnan(value) for value in surface_scores(empty, empty, spacing, 1.0))
    assert surface_scores(filled, filled, spacing, 1.0) == (0, 0, 1)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"truth_mask": np.ones((3, 5), dtype=bool)},
            r"pred_mask has \[3, 4\] voxels and truth_mask \[3, 5\]",
        ),
        ({"spacing": (1.0,)}, r"spacing is \(1\.0,\): give 2 numbers above 0"),
        ({"spacing": (1.0, 0.0)}, r"spacing is \(1\.0, 0\.0\): give 2 numbers above 0"),
        ({"tolerance": -1.0}, r"tolerance is -1\.0: give a distance of 0 or more"),
        ({"tolerance": math.nan}, "tolerance is nan: give a distance of 0 or more"),
    ],
)
def test_surface_scores_refuse_what_does_not_fit(changed, message):
    masks = dict.fromkeys(("pred_mask", "truth_mask"), np.ones((3, 4), dtype=bool))
    with pytest.raises(InputError, match=f"^{message}"):
        surface_scores(**(masks | {"spacing": (1.0, 1.0), "tolerance": 1.0} | changed))


def test_shifted_box_has_the_distance_of_its_shift():
    truth, pred = np.zeros((20, 20), int), np.zeros((20, 20), int)
    truth[5:9, 5:15] = 1
    pred[8:12, 5:15] = 1
    (row,) = class_scores(Case("a", pred, truth, spacing=(2.0, 1.0)), 2, 1.0)
    assert row["hd95"] == pytest.approx(6)  # three voxels of 2 mm
    assert row["dice"] == pytest.approx(2 * 10 / 80)
    assert row["iou"] == pytest.approx(10 / 70)
    assert row["error"] == pytest.approx(60 / 400)
    # Each box has 24 surface voxels; the ten of the shared row lie on the other, the rest 2 mm away.
    assert row["surface_dice"] == pytest.approx((10 + 10) / 48)
    # Of the truth: ten at 0, ten at 6 (the far row), two each at 4 and 2; of the prediction the same.
    assert row["assd"] == pytest.approx((10 * 0 + 10 * 6 + 2 * 4 + 2 * 2) / 24)


def test_perfect_case():
    rows = class_scores(Case("a", TRUTH, TRUTH), 3, 1.0)
    assert rows == [dict(zip(SCORES, (1, 1, 1, 1, 0, 0, 0, 1), strict=True))] * 2


def test_absent_classes_follow_the_conventions():
    truth, pred = np.zeros((4, 4), int), np.zeros((4, 4), int)
    truth[0, :2] = 1  # class 1 is missed, class 2 invented, class 3 in neither
    pred[3, :3] = 2
    missed, invented, neither = class_scores(Case("a", pred, truth), 4, 1.0)
    for row, wrong in ((missed, 2), (invented, 3)):
        assert [row[name] for name in ("dice", "iou", "precision", "recall", "surface_dice")] == [0] * 5
        assert row["error"] == wrong / 16
        assert math.isnan(row["hd95"])
        assert math.isnan(row["assd"])
    assert all(math.isnan(neither[name]) for name in SCORES)


@pytest.mark.parametrize(
    ("pred", "truth", "expected"),
    [
        (PRED, TRUTH, (6 / 8 + 4 / 6) / 2),
        (TRUTH * 0, TRUTH * 0, math.nan),
        (TRUTH * 0, TRUTH, 0),
        (TRUTH, TRUTH * 0, 0),
        (np.minimum(TRUTH, 1), np.minimum(TRUTH, 1), 1),  # the class that neither has is left out
        (np.minimum(PRED, 1), np.minimum(TRUTH, 1), 2 * 6 / (7 + 7)),
    ],
)
def test_mean_dice(pred, truth, expected):
    assert mean_dice(Case("a", pred, truth)) == pytest.approx(expected, nan_ok=True)


# What nobody annotated


def test_voxels_that_nobody_annotated_count_nowhere():
    """Ten of a hundred pixels are annotated, five of them wrong."""
    truth, pred = np.full((10, 10), IGNORE_LABEL), np.zeros((10, 10), int)
    truth[4], pred[4, :5] = 1, 1
    (row,) = class_scores(Case("a", pred, truth, truth != IGNORE_LABEL), 2, 1.0)
    assert (row["error"], row["dice"], row["recall"], row["precision"]) == (0.5, 2 / 3, 0.5, 1)
    assert mean_dice(Case("a", pred, truth, truth != IGNORE_LABEL)) == 2 / 3


def strip(end: int) -> np.ndarray:
    """A picture whose left part, as far as a column, is of class 1."""
    return (np.indices((12, 40))[1] < end).astype(int)


def test_the_rim_of_what_is_annotated_is_no_surface():
    """In a strip the only surface lies 6 pixels off."""
    mask = np.zeros((12, 40), dtype=bool)
    mask[4:8, 5:35] = True
    found = surface_scores(strip(26) == 1, strip(20) == 1, (1.0, 1.0), 1.0, mask)
    assert found == (6, 6, 0)
    assert surface_scores(strip(20) == 1, strip(20) == 1, (1.0, 1.0), 1.0, mask) == (0, 0, 1)
    assert all(np.isnan(surface_scores(strip(40) == 1, strip(36) == 1, (1.0, 1.0), 1.0, mask)))  # no surface
    one = surface_scores(strip(40) == 1, strip(20) == 1, (1.0, 1.0), 1.0, mask)
    assert (math.isnan(one.hd95), one.surface_dice) == (True, 0)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([(9, 12), (6, 7, 8)]))
def test_what_is_drawn_where_nobody_annotated_changes_no_score(seed, shape):
    pred, truth = draw_maps(shape, 3, seed)
    rng = np.random.default_rng(seed)
    mask = ndimage.gaussian_filter(rng.random(shape), 1.0) > 0.45
    others = [np.where(mask, classes, rng.integers(0, 3, shape)) for classes in (pred, truth)]
    here, there = (class_scores(Case("a", *maps, mask), 3, 1.0) for maps in ((pred, truth), others))
    for one, other in zip(here, there, strict=True):
        assert one == pytest.approx(other, nan_ok=True)
    everything = np.ones(shape, dtype=bool)
    for one, other in zip(
        class_scores(Case("a", pred, truth), 3, 1.0),
        class_scores(Case("a", pred, truth, everything), 3, 1.0),
        strict=True,
    ):
        assert one == pytest.approx(other, nan_ok=True)


@pytest.mark.parametrize("shape", [(8, 9), (5, 6, 4)])
@pytest.mark.parametrize("seed", range(4))
def test_surfaces_with_a_mask_by_brute_force(shape, seed):
    """A voxel is of the surface where it leaves the picture, or meets an annotated one that is not of it."""
    rng = np.random.default_rng(seed)
    found, true = (rng.random(shape) < 0.6 for _ in range(2))
    mask = rng.random(shape) < 0.8

    def points(cells):
        kept = []
        for place in np.argwhere(cells & mask):
            for axis in range(len(shape)):
                for step in (-1, 1):
                    beside = place.copy()
                    beside[axis] += step
                    inside = 0 <= beside[axis] < shape[axis]
                    if not inside or (mask[tuple(beside)] and not cells[tuple(beside)]):
                        kept.append(tuple(place))
        return np.array(sorted(set(kept)))

    table = np.linalg.norm(points(found)[:, None] - points(true)[None], axis=-1)
    both = [*table.min(1), *table.min(0)]
    scores = surface_scores(found, true, (1.0,) * len(shape), 1.0, mask)
    assert_equal_or_nan(scores.assd, np.mean(both))
    assert_equal_or_nan(scores.surface_dice, np.mean(np.array(both) <= 1))
    expected = max(np.percentile(table.min(1), 95), np.percentile(table.min(0), 95))
    assert_equal_or_nan(scores.hd95, expected)


def test_arrays_of_a_case_lie_on_one_grid():
    with pytest.raises(
        InputError, match=r"pred has \[2, 5\] voxels and truth \[2, 4\]: give both on one grid"
    ):
        Case("a", PRED, TRUTH[:, :4])
    with pytest.raises(InputError, match="mask has"):
        Case("a", PRED, TRUTH, TRUTH[0] > 0)
    with pytest.raises(InputError, match="probabilities has"):
        Case("a", PRED, TRUTH, probabilities=np.zeros((3, 2, 4)))


def test_the_area_under_the_curve_is_that_of_monai_and_adds_up() -> None:
    generator = np.random.default_rng(3)
    cases = []
    for seed in range(3):
        truth = generator.integers(0, 3, (9, 8, 4 + seed))
        probabilities = generator.random((3, *truth.shape)) + 0.5 * (
            truth == np.arange(3)[:, None, None, None]
        )
        probabilities = (probabilities / probabilities.sum(0)).round(2)  # with equal ones
        mask = generator.random(truth.shape) > 0.2
        cases.append(Case(str(seed), truth, truth, mask, probabilities))
    for judged in (cases[:1], cases):
        counts = sum(map(ranking, judged))
        for index in range(3):
            true = np.concatenate([(case.truth == index)[case.mask] for case in judged])
            found = np.concatenate([case.probabilities[index][case.mask] for case in judged])
            expected = compute_roc_auc(torch.from_numpy(found), torch.from_numpy(true))
            assert roc_auc(counts[index]) == pytest.approx(expected, abs=1e-9)
    nothing = Case("n", truth, np.zeros_like(truth), None, probabilities)
    assert np.isnan([roc_auc(counts) for counts in ranking(nothing)]).all()
