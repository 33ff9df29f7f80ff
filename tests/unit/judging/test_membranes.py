"""Scores of membranes against numbers counted by hand, scikit-image and brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage
from scipy.stats import entropy
from skimage.measure import label
from skimage.metrics import adapted_rand_error, variation_of_information

from scripts.errors import InputError
from scripts.judging import (
    MEMBRANE_SCORES,
    THRESHOLDS,
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
from tests.commands import SHARED_DATA

DATA = SHARED_DATA / "isbi2012_em"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the shared data set isbi2012_em is absent")

# Five pixels count; the fourth of the truth's cells' is in no region of the proposal.
TRUTH = np.array([[1, 1, 1, 2, 2, 0]])
LABELS = np.array([[5, 5, 6, 6, 0, 9]])


def draw_cells(shape: tuple[int, int], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A probability of cell and a truth that resembles it."""
    rng = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(rng.random(shape), 1.0)
    truth = field > np.quantile(field, 0.35)
    noisy = field + rng.normal(0, field.std() * rng.choice([0.2, 0.6]), shape)
    low, high = noisy.min(), noisy.max()
    return (noisy - low) / (high - low), truth


def two_cells(membrane: list[int], rows: int = 7, columns: int = 9) -> np.ndarray:
    """Cells parted by membrane in some columns."""
    cells = np.ones((rows, columns), dtype=bool)
    cells[:, membrane] = False
    return cells


# Regions


def test_v_rand_counted_by_hand():
    # shared: 2, 1, 1 and the pixel alone; proposal: 2, 2 and alone; truth: 3, 2
    assert v_rand(LABELS, TRUTH) == pytest.approx(2 * (4 + 1 + 1 + 1) / ((4 + 4 + 1) + (9 + 4)))


def test_v_info_counted_by_hand():
    def information(*sizes: int) -> float:
        return -sum(size / 5 * math.log(size / 5) for size in sizes)

    s, t, both = information(2, 2, 1), information(3, 2), information(2, 1, 1, 1)
    assert v_info(LABELS, TRUTH) == pytest.approx(2 * (s + t - both) / (s + t))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000))
def test_regions_equal_scikit_image_and_brute_force(seed):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 4, (9, 8))
    labels = np.where(rng.random(truth.shape) < 0.3, rng.integers(0, 5, truth.shape), 3 * truth)
    alone = labels.copy()  # each pixel without a region in one of its own
    alone[labels == 0] = 100 + np.arange((labels == 0).sum())
    inside = truth > 0
    same_found, same_true = (np.equal.outer(m[inside], m[inside]) for m in (alone, truth))
    expected = 2 * (same_found & same_true).sum() / (same_found.sum() + same_true.sum())
    assert v_rand(labels, truth) == pytest.approx(expected)
    # scikit-image leaves out a pixel's pair with itself
    n, pairs = inside.sum(), same_found.sum() + same_true.sum()
    both = (1 - adapted_rand_error(truth, alone)[0]) * (pairs / 2 - n) + n
    assert v_rand(labels, truth) == pytest.approx(2 * both / pairs)

    variation = variation_of_information(truth, alone, ignore_labels=(0,)).sum()  # bits
    apart = sum(entropy(np.unique(m[inside], return_counts=True)[1], base=2) for m in (alone, truth))
    assert v_info(labels, truth) == pytest.approx(1 - variation / apart)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_regions_identity_and_numbers(seed):
    probability, truth = draw_cells((14, 15), seed)
    true, found = label(truth, connectivity=1), label(probability > 0.5, connectivity=1)
    for score in (v_rand, v_info):
        assert score(true, true) == pytest.approx(1)
        renumbered = np.random.default_rng(seed).permutation(found.max() + 1)
        renumbered = np.where(found > 0, renumbered[found] + 1, 0)
        assert score(renumbered, true) == pytest.approx(score(found, true))
        assert 0 <= score(found, true) <= 1
        filled = found + 1  # without pixels in no region the order does not matter
        assert score(filled, true + 1) == pytest.approx(score(true + 1, filled))


def test_what_is_outside_the_true_cells_does_not_count():
    truth = label(two_cells([4]), connectivity=1)
    other = np.where(truth == 0, 7, truth)
    assert v_rand(other, truth) == v_info(other, truth) == 1


def test_one_region_each():
    one, two = np.ones((3, 4), int), np.array([[1, 2]] * 6).reshape(3, 4)
    assert v_info(one, one) == v_rand(one, one) == 1
    assert v_info(two, one) == v_info(one, two) == 0
    assert v_rand(one, two) == pytest.approx(2 * (36 + 36) / (144 + 72))


def test_truth_without_cells_says_nothing():
    assert math.isnan(v_rand(LABELS, TRUTH * 0))
    assert math.isnan(v_info(LABELS, TRUTH * 0))


@pytest.mark.parametrize("membrane", [[4], [2, 3, 4, 5, 6], [3, 4, 5, 6], [5]])
def test_grown_cells_meet_in_a_line(membrane):
    grown = thinned(two_cells(membrane))
    assert ((grown == 0).sum(axis=1) == 1).all()
    assert set(np.unique(grown)) == {0, 1, 2}
    if len(membrane) % 2:
        assert (grown[:, membrane[len(membrane) // 2]] == 0).all()


def test_picture_without_cells_is_one_region():
    assert (thinned(np.zeros((3, 4), dtype=bool)) == 1).all()
    nothing = membrane_scores(section("a", np.zeros((7, 9)), two_cells([4])))
    assert nothing["v_info"] == 0
    assert nothing["v_rand"] == pytest.approx(2 * 2 * 28**2 / (56**2 + 2 * 28**2))


def test_numbers_that_touch_are_parted():
    labels = np.array([[1, 1, 2, 2], [1, 1, 0, 2], [3, 3, 3, 2]])
    expected = np.array([[1, 0, 1, 1], [0, 0, 0, 1], [1, 1, 0, 1]], dtype=bool)
    assert cells_apart(labels).tolist() == expected.tolist()
    assert label(cells_apart(labels), connectivity=1).max() == 3
    binary = np.array([[0, 255, 255], [255, 0, 255]])
    assert cells_apart(binary).tolist() == (binary > 0).tolist()


# Warping


def test_shifted_membrane_costs_nothing():
    for proposal, truth in (([4], [3]), ([3, 4, 5], [5, 6]), ([2], [2, 3, 4, 5, 6])):
        result = warp(two_cells(proposal), two_cells(truth))
        assert result.warped.tolist() == two_cells(proposal).tolist()
        assert result[1:] == (0, 0, 0)
        assert warping_error(two_cells(proposal), two_cells(truth)) == 0


def test_membrane_that_does_not_touch_the_true_one_is_both_errors():
    result = warp(two_cells([6]), two_cells([3]))
    assert (result.splits, result.mergers, result.others) == (1, 7, 0)


def test_gap_in_a_membrane_is_a_merger_of_its_pixels():
    proposal = two_cells([4])
    proposal[2:4, 4] = True
    result = warp(proposal, two_cells([4]))
    assert (result.splits, result.mergers, result.others) == (0, 2, 0)
    assert warping_error(proposal, two_cells([4])) == 2 / 63
    assert warping_error(two_cells([]), two_cells([4])) == 7 / 63  # no membrane at all


def test_membrane_across_a_cell_is_a_split_of_one_pixel():
    result = warp(two_cells([4]), two_cells([]))
    assert (result.splits, result.mergers, result.others) == (1, 0, 0)
    assert result.warped[:, 4].sum() == 1  # the membrane grows from the rim until one pixel is left
    assert warping_error(two_cells([4]), two_cells([])) == 1 / 63
    both = two_cells([2, 6])
    assert warping_error(both, two_cells([4, 5])) == pytest.approx(1 / 63)  # one moved, one too many


def test_holes_and_objects_are_no_splits_or_mergers():
    hole, lone = two_cells([]), ~two_cells([])
    hole[3, 4], lone[3, 4] = False, True
    for proposal, truth in ((hole, ~lone | lone), (~hole | hole, hole)):
        result = warp(proposal, truth)
        assert (result.splits, result.mergers, result.others) == (0, 0, 1)
    truth = np.zeros((9, 9), dtype=bool)
    truth[:4, :4] = True
    added = truth.copy()
    added[6, 6] = True
    assert warp(added, truth)[1:] == warp(truth, added)[1:] == (0, 0, 1)


def test_ring_that_is_cut_once_is_no_split():
    ring = np.zeros((11, 11), dtype=bool)
    ring[1:-1, 1:-1] = True
    ring[4:7, 4:7] = False
    cut = ring.copy()
    cut[5, 7:10] = False
    result = warp(cut, ring)
    assert (result.splits, result.mergers, result.others) == (0, 0, 1)
    cut[5, 1:4] = False  # once more: now it falls apart
    result = warp(cut, ring)
    assert result.splits + result.others == 2
    assert result.mergers == 0


def count(cells: np.ndarray) -> tuple[int, int]:
    """Cells and membranes of a picture within membrane."""
    padded = np.pad(cells, 1)
    return int(label(padded, connectivity=1).max()), int(label(~padded, connectivity=2).max())


def warp_slowly(cells: np.ndarray, truth: np.ndarray, confidence: np.ndarray) -> np.ndarray:
    """Sweeps over all that differs, flipping what leaves the numbers of cells and membranes as they are."""
    warped, before = truth.copy(), None
    while before is None or (before != warped).any():
        before = warped.copy()
        wrong = [(-confidence[y, x], x, y) for y, x in np.argwhere(warped != cells)]
        for _, x, y in sorted(wrong):
            flipped = warped.copy()
            flipped[y, x] ^= True
            if count(flipped) == count(warped):
                warped = flipped
    return warped


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.booleans())
def test_warping_equals_brute_force(seed, sure):
    probability, truth = draw_cells((9, 10), seed)
    cells = probability > 0.5
    confidence = np.abs(probability - 0.5) if sure else np.zeros(truth.shape)
    result = warp(cells, truth, confidence if sure else None)
    assert result.warped.tolist() == warp_slowly(cells, truth, confidence).tolist()
    assert result.splits + result.mergers + result.others == (result.warped != cells).sum()
    assert count(result.warped) == count(truth)


@pytest.mark.parametrize("seed", range(5))
def test_probabilities_as_far_from_the_threshold_are_as_sure(seed):
    """Although 0.5 - 0.3 is not 0.7 - 0.5 in double precision."""
    rng = np.random.default_rng(seed)
    cells, truth = rng.random((2, 12, 12)) < 0.6
    binary, probable = (
        membrane_curves(section("a", found, truth), [0.5], ["warping_error"])
        for found in (cells, np.where(cells, 0.7, 0.3))
    )
    assert binary == probable


def kinds_slowly(warped: np.ndarray, cells: np.ndarray) -> tuple[int, int]:
    """Splits and mergers of what differs, by the words of the docstring; small pictures, so no radius."""
    padded = np.pad(warped, 1)
    splits = mergers = 0
    for y, x in np.argwhere(warped != cells) + 1:
        box = np.s_[y - 1 : y + 2, x - 1 : x + 2]
        without = padded.copy()
        without[y, x] = False
        around = [set(label(m, connectivity=1)[box].ravel()) - {0} for m in (without, padded)]
        if padded[y, x]:
            splits += len(around[0]) > 1
        else:
            mergers += len(around[1]) > 1
    return splits, mergers


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_kinds_of_errors_equal_brute_force(seed):
    probability, truth = draw_cells((14, 15), seed)
    cells = probability > 0.5
    result = warp(cells, truth)
    assert (result.splits, result.mergers) == kinds_slowly(result.warped, cells)


def test_warping_leaves_its_arguments_alone():
    probability, truth = draw_cells((20, 21), 3)
    cells, kept = probability > 0.4, truth.copy()
    warp(cells, truth)
    assert (truth == kept).all()
    assert warp(truth, truth)[1:] == (0, 0, 0)


# Sections


def test_scores_counted_by_hand():
    """Two cells of 7 x 4 pixels; the proposal's membrane is three wide and surest in the middle."""
    truth = two_cells([4])
    probability = np.full(truth.shape, 0.95)
    probability[:, 3:6], probability[:, 4] = 0.45, 0.15
    probability[0, 4] = 0.25
    found = membrane_curves(section("a", probability, truth))
    assert tuple(found) == MEMBRANE_SCORES
    # 0.1: no membrane; 0.2: a gap of a pixel; 0.3, 0.4: as the truth; from 0.5 on three columns
    merged = 2 * (28**2 + 28**2) / (56**2 + 2 * 28**2)
    np.testing.assert_allclose(found["v_rand"], [merged, merged] + [1] * 7)
    np.testing.assert_allclose(found["v_info"], [0, 0] + [1] * 7)
    wide = 2 * (2 * 21**2 + 14) / (2 * 21**2 + 14 + 2 * 28**2)
    np.testing.assert_allclose(found["rand_error"], 1 - np.array([merged, merged, 1, 1] + [wide] * 5))
    errors = [7 / (63 + 56), 1 / (57 + 56), 0, 0] + [14 / (42 + 56)] * 5
    np.testing.assert_allclose(found["pixel_error"], errors)
    np.testing.assert_allclose(found["warping_error"], [7 / 63, 1 / 63] + [0] * 7)
    assert membrane_scores(section("a", probability, truth)) == {
        "v_rand": 1,
        "v_info": 1,
        "rand_error": 0,
        "pixel_error": 0,
        "warping_error": 0,
        "threshold": 0.3,
    }


def test_width_of_membranes_does_not_count():
    truth, wide = two_cells([4]), two_cells([2, 3, 4, 5, 6])
    scores = membrane_scores(section("a", wide, truth))
    assert scores["v_rand"] == scores["v_info"] == 1
    assert scores["warping_error"] == 0
    assert scores["rand_error"] > 0
    assert scores["pixel_error"] == pytest.approx(28 / (28 + 56))


def test_pixel_at_the_threshold_is_membrane():
    curves = membrane_curves(section("a", np.full((2, 3), 0.5), np.ones((2, 3))), (0.4, 0.5), ["pixel_error"])
    assert curves["pixel_error"].tolist() == [0, 1]


@pytest.mark.parametrize("seed", range(6))
def test_surest_pixels_are_warped_first(seed):
    probability, truth = draw_cells((40, 40), seed)
    curve = membrane_curves(section("a", probability, truth), measures=["warping_error"])["warping_error"]
    for threshold, error in zip(THRESHOLDS, curve, strict=True):
        assert error == warping_error(probability > threshold, truth, np.abs(probability - threshold))


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000))
def test_scores_are_the_best_over_the_thresholds(seed):
    probability, truth = draw_cells((20, 17), seed)
    curves = membrane_curves(section("a", probability, truth))
    scores = membrane_scores(section("a", probability, truth))
    assert set(scores) == {*MEMBRANE_SCORES, "threshold"}
    for name in MEMBRANE_SCORES:
        best = max if name.startswith("v_") else min
        assert scores[name] == best(curves[name])
        np.testing.assert_array_equal(
            membrane_curves(section("a", probability, truth), measures=[name])[name], curves[name]
        )
    index = THRESHOLDS.index(scores["threshold"])
    assert curves["v_rand"][index] == scores["v_rand"]
    cells = probability > scores["threshold"]
    assert v_rand(thinned(cells), label(truth, connectivity=1)) == scores["v_rand"]
    perfect = membrane_scores(section("a", truth, truth))
    assert [perfect[name] for name in MEMBRANE_SCORES] == pytest.approx([1, 1, 0, 0, 0])


def test_sections_without_cells_or_membranes():
    probability, truth = draw_cells((8, 9), 1)
    assert all(
        math.isnan(value) for value in membrane_scores(section("a", probability, truth & False)).values()
    )
    assert math.isnan(warping_error(truth, truth & False))
    everywhere = membrane_scores(section("a", truth | True, truth | True))
    assert [everywhere[name] for name in MEMBRANE_SCORES] == [1, 1, 0, 0, 0]
    nowhere = membrane_scores(section("a", truth & False, truth | True))
    assert nowhere["pixel_error"] == 1
    assert nowhere["rand_error"] == pytest.approx(1 - 2 * 72 / (72 + 72**2))  # a region for each pixel


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"truth": np.ones((3, 5))}, r"shape \[3, 4\] and truth \[3, 5\]: give both as \(H, W\)"),
        ({"cells": np.full((3, 4), 255)}, r"cell_probability holds 255: give numbers from 0 to 1"),
        ({"cells": np.full((3, 4), np.nan)}, "cell_probability holds nan: give numbers from 0"),
        ({"truth": np.full((3, 4), 255)}, r"truth holds 255: give 0 for membrane and 1 for cell"),
        ({"thresholds": ()}, r"thresholds are \(\): give one or more numbers"),
        ({"thresholds": (0.5, 1.0)}, r"thresholds are \(0\.5, 1\.0\): give one or more numbers from 0"),
        ({"measures": ("dice",)}, r"measures name 'dice': give some of v_rand"),
    ],
)
def test_what_is_no_section_is_refused(changed, message):
    changed = dict(changed)
    maps = {"cells": np.ones((3, 4)), "truth": np.ones((3, 4))}
    given = {name: changed.pop(name, array) for name, array in maps.items()}
    with pytest.raises(InputError, match=message):
        membrane_scores(section("a", **given), **changed)
    with pytest.raises(InputError, match="give both as"):
        section("a", np.ones((3, 4, 5)), np.ones((3, 4, 5)))


@needs_data
@pytest.mark.data
def test_section_against_itself_and_its_neighbour():
    first, second = (np.asarray(Image.open(DATA / f"labels/{name}.png")) > 0 for name in ("00", "01"))
    scores = membrane_scores(section("a", first, first))
    assert [scores[name] for name in MEMBRANE_SCORES] == pytest.approx([1, 1, 0, 0, 0])
    scores = membrane_scores(section("a", second, first))
    assert 0.3 < scores["v_info"] < 0.95
    assert 0 < scores["warping_error"] < 0.05


@pytest.mark.parametrize("seed", range(4))
def test_what_is_drawn_where_nobody_annotated_changes_no_score(seed):
    probability, truth = draw_cells((20, 17), seed)
    rng = np.random.default_rng(seed)
    mask = np.ones(truth.shape, dtype=bool)
    mask[6:9], mask[:, 12:14] = False, False
    scores = membrane_scores(section("a", probability, truth, mask))
    noise = np.where(mask, probability, rng.random(truth.shape))
    others = np.where(mask, truth, rng.integers(0, 256, truth.shape))
    assert membrane_scores(section("a", noise, others, mask)) == scores
    everything = np.ones(truth.shape, dtype=bool)
    expected = membrane_scores(section("a", probability, truth))
    assert membrane_scores(section("a", probability, truth, everything)) == expected


def test_half_a_picture_is_scored_as_if_it_were_the_whole():
    """Of two halves that a column parts, which nobody annotated; the other half is wrong."""
    probability, truth = draw_cells((20, 17), 5)
    alone = membrane_scores(section("a", probability, truth))
    mask = np.ones((20, 36), dtype=bool)
    mask[:, 17:] = False
    wide = [np.pad(maps, ((0, 0), (0, 19)), constant_values=1) for maps in (probability, truth)]
    assert membrane_scores(section("a", *wide, mask)) == pytest.approx(alone)
