"""Weight maps against equation 2 written out: by hand, and with a full distance transform for each cell."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from scipy.ndimage import distance_transform_edt
from skimage.segmentation import find_boundaries

from scripts.errors import InputError
from scripts.labels import IGNORE_LABEL
from scripts.transforms import BorderWeightsd, border_weight_map, class_weight_map

# What the border term may be off, for w0 up to 10.
TOLERANCE = 1e-5

# Two cells side by side with two pixels between them, a third that touches the second.
SEVEN = np.array(
    [
        [0, 0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 2, 2, 2],
        [1, 1, 0, 0, 2, 2, 2],
        [1, 1, 0, 0, 3, 3, 3],
        [0, 0, 0, 0, 3, 3, 3],
        [0, 0, 0, 0, 0, 0, 0],
    ]
)


def reference(
    instances: np.ndarray,
    spacing: tuple[float, ...] | None = None,
    w0: float = 10.0,
    sigma: float = 5.0,
    distance_to: str = "border",
) -> np.ndarray:
    """Equation 2's border term as it reads: the distances to all cells' borders, sorted."""
    cells = [cell for cell in np.unique(instances) if cell > 0]
    if len(cells) < 2:
        return np.zeros(instances.shape)
    masks = [instances == cell for cell in cells]
    if distance_to == "border":
        masks = [find_boundaries(mask, connectivity=1, mode="inner") for mask in masks]
    stack = np.stack([distance_transform_edt(~mask, sampling=spacing) for mask in masks])
    stack.sort(axis=0)
    return w0 * np.exp(-((stack[0] + stack[1]) ** 2) / (2 * sigma**2))


def draw_cells(shape: tuple[int, ...], count: int, radius: float, seed: int) -> np.ndarray:
    """Discs or balls at random places with random ids; they may touch, and the later covers the earlier."""
    rng = np.random.default_rng(seed)
    instances = np.zeros(shape, dtype=np.int32)
    grid = np.indices(shape)
    for cell in rng.permutation(3 * count)[:count] + 1:
        centre = [rng.uniform(0, n) for n in shape]
        size = rng.uniform(0.6, radius)
        inside = sum((g - c) ** 2 for g, c in zip(grid, centre, strict=True)) <= size**2
        instances[inside] = cell
    return instances


# Border term


@pytest.mark.parametrize("distance_to", ["border", "cell"])
def test_seven_by_seven_by_hand(distance_to):
    found = border_weight_map(SEVEN, w0=10.0, sigma=2.0, distance_to=distance_to)
    sums = {  # d1 + d2, counted
        (3, 2): 1 + 2,  # cell 1 left, cell 2 right
        (3, 3): 1 + math.sqrt(2),  # cell 2 right, cell 3 one right and one down
        (3, 1): 0 + 3,  # in cell 1: cell 2 is three to the right
        (3, 0): (1 if distance_to == "border" else 0) + 4,  # around it is cell 1, or the image ends
        (2, 5): 0 + 2,  # in cell 2: cell 3 is two rows down
        (3, 5): 0 + 1,
        (4, 5): 0 + 1,  # in cell 3
        (0, 6): 2 + 4,  # cell 2 two rows down, cell 3 four
        (6, 6): 1 + 3,
        (0, 0): 2 + math.sqrt(4**2 + 2**2),  # cell 1 two rows down, cell 2 four right and two down
        (6, 2): math.sqrt(1 + 2**2) + math.sqrt(2**2 + 1),  # cell 1 ends in row 4, cell 3 in row 5
    }
    assert found.dtype == np.float32
    assert found.shape == SEVEN.shape
    for place, total in sums.items():
        assert found[place] == pytest.approx(10 * math.exp(-(total**2) / 8), abs=TOLERANCE)
    assert found[3, 2] == pytest.approx(3.2465, abs=1e-4)  # 10 exp(-9 / 8)
    assert found[3, 5] == pytest.approx(8.8250, abs=1e-4)  # 10 exp(-1 / 8)


@pytest.mark.parametrize(
    ("distance_to", "weight"),
    [("border", 10 * math.exp(-(11**2) / 50)), ("cell", 10 * math.exp(-(7**2) / 50))],  # 0.89 and 3.75
)
@pytest.mark.parametrize("dims", [2, 3])
def test_four_pixels_behind_the_rim_of_a_gap_of_two(dims, distance_to, weight):
    instances = np.zeros((40, *[21] * (dims - 1)), dtype=int)
    instances[:20], instances[22:] = 1, 2
    middle = (10,) * (dims - 1)
    found = border_weight_map(instances, distance_to=distance_to)[(slice(None), *middle)]
    assert found[15] == pytest.approx(weight, abs=TOLERANCE)  # the rim is 19, the other 22
    assert found[19] == pytest.approx(10 * math.exp(-(3**2) / 50), abs=TOLERANCE)
    np.testing.assert_allclose(found[[20, 21]], found[19], atol=TOLERANCE)  # 1 + 2 as 0 + 3


def test_distances_to_borders_by_hand_in_voxels_of_unequal_sides():
    """Below the cell of 5 x 5 lies another; from its middle the nearer rim is to the side."""
    instances = np.zeros((9, 7), dtype=int)
    instances[1:6, 1:6], instances[7, 3] = 1, 2
    found = border_weight_map(instances, spacing=(3.0, 1.0), sigma=6.0)
    assert found[3, 3] == pytest.approx(10 * math.exp(-((2 + 12) ** 2) / 72), abs=TOLERANCE)
    assert found[4, 2] == pytest.approx(10 * math.exp(-((1 + math.hypot(9, 1)) ** 2) / 72), abs=TOLERANCE)
    assert found[8, 3] == pytest.approx(10 * math.exp(-((3 + 9) ** 2) / 72), abs=TOLERANCE)


def test_distances_are_in_the_unit_of_the_spacing():
    row = np.array([[1, 0, 0, 2]])
    (found,) = border_weight_map(row, spacing=(7.0, 0.5), sigma=1.5)
    np.testing.assert_allclose(found, 10 * math.exp(-(1.5**2) / 4.5), rtol=1e-6)  # 1.5 mm apart everywhere
    np.testing.assert_array_equal(
        border_weight_map(SEVEN, (2.0, 2.0), sigma=6.0), border_weight_map(SEVEN, sigma=3.0)
    )


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10_000),
    st.sampled_from([(40, 47), (90, 31), (14, 17, 20)]),
    st.integers(2, 12),
    st.sampled_from([0.7, 2.0, 5.0]),
    st.sampled_from([0.0, 0.3, 1.0, 10.0]),
    st.booleans(),
    st.sampled_from(["border", "cell"]),
)
def test_equals_the_definition(seed, shape, count, sigma, w0, anisotropic, distance_to):
    instances = draw_cells(shape, count, min(shape) / 4, seed)
    spacing = (0.5, 2.0, 1.3)[: len(shape)] if anisotropic else None
    found = border_weight_map(instances, spacing, w0, sigma, distance_to)
    expected = reference(instances, spacing, w0, sigma, distance_to)
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


def test_reach_follows_w0():
    """Far from two cells a large w0 still counts what a small one may leave out."""
    instances = np.zeros((9, 90), dtype=int)
    instances[4, 30], instances[4, 58] = 1, 2
    assert border_weight_map(instances, w0=10.0)[4, 30] < TOLERANCE
    strong = border_weight_map(instances, w0=1e4)
    assert strong[4, 30] == pytest.approx(1e4 * math.exp(-(28**2) / 50))
    np.testing.assert_allclose(strong, reference(instances, w0=1e4), rtol=1e-5, atol=TOLERANCE)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(["border", "cell"]))
def test_symmetries(seed, distance_to):
    """Renumbering, transposing, flipping change nothing but the place, nor do cells that go on beyond it."""

    def weigh(cells):
        return border_weight_map(cells, distance_to=distance_to)

    instances = draw_cells((24, 33), 5, 5, seed)
    found = weigh(instances)
    numbers = np.random.default_rng(seed).permutation(40) + 1
    renumbered = np.where(instances > 0, numbers[instances], 0)
    np.testing.assert_array_equal(weigh(renumbered), found)
    np.testing.assert_array_equal(weigh(instances.T).T, found)
    np.testing.assert_array_equal(weigh(instances[::-1])[::-1], found)
    np.testing.assert_array_equal(weigh(np.pad(instances, 6, mode="edge"))[6:-6, 6:-6], found)


@pytest.mark.parametrize("shape", [(8, 9), (5, 6, 7)])
def test_fewer_than_two_cells_have_no_border(shape):
    instances = np.zeros(shape, dtype=int)
    assert not border_weight_map(instances).any()
    instances[2:4, 2:4] = 17
    assert not border_weight_map(instances).any()
    assert not border_weight_map(np.full(shape, 17)).any()
    assert not border_weight_map(np.zeros(shape, dtype=bool)).any()


def test_touching_cells_weigh_w0_at_most():
    instances = np.ones((6, 20), dtype=int)
    instances[:, 10:] = 2
    offsets = np.array([*range(10, 0, -1), *range(1, 11)])  # to the first column of the other cell
    for distance_to, sums in (("cell", offsets), ("border", 2 * offsets - 1)):
        found = border_weight_map(instances, distance_to=distance_to)
        np.testing.assert_allclose(found, 10 * np.exp(-(sums**2) / 50)[None].repeat(6, 0), atol=TOLERANCE)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.uint16, np.float32, np.float64])
def test_every_type_of_id_counts_alike(dtype):
    np.testing.assert_array_equal(border_weight_map(SEVEN.astype(dtype)), border_weight_map(SEVEN))


@pytest.mark.parametrize("background", [True, False])
def test_ids_may_be_far_larger_than_the_image(background):
    """As ids that encode colours or hashes are."""
    instances = SEVEN if background else SEVEN + 1
    huge = np.where(instances > 0, instances * 10**12 + 5, 0)
    np.testing.assert_array_equal(border_weight_map(huge), border_weight_map(instances))


def test_cell_255_is_a_cell_and_what_is_handed_in_stays():
    instances = np.where(SEVEN == 2, IGNORE_LABEL, SEVEN)
    before = instances.copy()
    np.testing.assert_array_equal(border_weight_map(instances), border_weight_map(SEVEN))
    np.testing.assert_array_equal(instances, before)


def grid_of_cells(pitch: int) -> np.ndarray:
    instances = np.zeros((240, 240), dtype=np.int32)
    starts = range(0, 240, pitch)
    for cell, (i, j) in enumerate(((i, j) for i in starts for j in starts), start=1):
        instances[i : i + pitch // 2, j : j + pitch // 2] = cell
    return instances


def test_memory_does_not_grow_with_the_number_of_cells():
    peaks = {}
    for pitch in (60, 10):  # 16 and 576 cells
        instances = grid_of_cells(pitch)
        tracemalloc.start()
        border_weight_map(instances, sigma=2.0)
        peaks[int(instances.max())] = tracemalloc.get_traced_memory()[1] / instances.size
        tracemalloc.stop()
    assert set(peaks) == {16, 576}
    # bytes a pixel: 8 for the two maps, the rest for what is at work; a stack of all cells would take 4 * 576
    assert peaks[576] < 30
    assert peaks[576] < 1.2 * peaks[16]


# Class term


def test_class_weights_by_hand():
    classes = np.array([[0, 0, 0, 0, 1, 2], [0, 0, 2, 2, 2, IGNORE_LABEL]])
    found = class_weight_map(classes)  # 11 annotated pixels of 3 classes: 6, 1 and 4
    expected = [[11 / 18] * 4 + [11 / 3, 11 / 12], [11 / 18] * 2 + [11 / 12] * 3 + [0]]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert found.dtype == np.float32


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([(9, 12), (4, 5, 6)]))
def test_class_weights_balance_and_mean_one(seed, shape):
    rng = np.random.default_rng(seed)
    classes = rng.choice([0, 1, 4, 254, IGNORE_LABEL], shape, p=[0.6, 0.2, 0.1, 0.05, 0.05])
    weights = class_weight_map(classes.astype(np.float32))
    known = classes != IGNORE_LABEL
    assert weights[known].mean() == pytest.approx(1, rel=1e-5)
    assert not weights[~known].any()
    sums = [weights[classes == index].sum() for index in np.unique(classes[known])]
    np.testing.assert_allclose(sums, sums[0], rtol=1e-5)


def test_one_class_alone_weighs_one_and_none_nothing():
    assert (class_weight_map(np.zeros((3, 4), dtype=bool)) == 1).all()
    assert not class_weight_map(np.full((3, 4), IGNORE_LABEL)).any()


@pytest.mark.parametrize("value", [-1, 0.5, 256, math.nan])
def test_what_is_no_class_is_refused(value):
    with pytest.raises(InputError, match=rf"^classes holds the value {value}: give "):
        class_weight_map(np.array([[0, 1, value]]))


# Errors of the border term


@pytest.mark.parametrize("value", [-3, 0.5, math.nan, math.inf])
def test_ids_that_are_no_whole_numbers_are_refused(value):
    instances = SEVEN.astype(type(value))
    instances[0, 0] = value
    with pytest.raises(InputError, match=rf"^instances holds the value {value}.*: give whole numbers from 0"):
        border_weight_map(instances)


@pytest.mark.parametrize("mask", [SEVEN > 0, (SEVEN > 0) * 255, (SEVEN > 0).astype(np.float32)])
def test_mask_without_instances_is_refused(mask):
    with pytest.raises(InputError, match=r"^instances holds 2 separate cells under one id: "):
        border_weight_map(mask)


def test_one_cell_joined_at_a_corner_is_one():
    assert not border_weight_map(np.eye(5, dtype=int)).any()


def test_one_of_many_cells_may_lie_in_pieces():
    instances = SEVEN.copy()
    instances[0, 0] = 2
    np.testing.assert_allclose(border_weight_map(instances), reference(instances), atol=TOLERANCE)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"w0": -1}, "w0 is -1: give a number, 0 or more"),
        ({"w0": math.inf}, "w0 is inf: give a number, 0 or more"),
        ({"sigma": -1.0}, "sigma is -1.0: give a number above 0"),
        ({"sigma": math.nan}, "sigma is nan: give a number above 0"),
        ({"distance_to": "rim"}, "distance_to is 'rim': give 'border' or 'cell'"),
        ({"spacing": (1.0,)}, r"spacing is \[1.0\]: give 2 numbers above 0, one for each axis"),
        ({"spacing": (1.0, 0)}, r"spacing is \[1.0, 0.0\]: give 2 numbers above 0"),
    ],
)
def test_arguments_out_of_range_are_refused(keywords, message):
    with pytest.raises(InputError, match=f"^{message}"):
        border_weight_map(SEVEN, **keywords)


# Transform


def tracked(values: np.ndarray) -> MetaTensor:
    affine = torch.diag(torch.tensor([0.5, 3.0, 4.0, 1.0], dtype=torch.float64))
    return MetaTensor(torch.from_numpy(values)[None], affine=affine, meta={"filename_or_obj": "cells_7.png"})


@pytest.mark.parametrize("distance_to", ["border", "cell"])
@pytest.mark.parametrize("units", ["pixel", "mm"])
def test_transform_adds_both_terms(units, distance_to):
    instances = tracked(SEVEN.astype(np.float32))
    data = {"label": instances, "image": torch.ones(1, 7, 7)}
    out = BorderWeightsd("label", units=units, w0=3.0, sigma=2.0, distance_to=distance_to)(data)
    spacing = (0.5, 3.0) if units == "mm" else None
    cells = int((SEVEN > 0).sum())
    balance = np.where(SEVEN > 0, 49 / (2 * cells), 49 / (2 * (49 - cells)))
    expected = balance + reference(SEVEN, spacing, 3.0, 2.0, distance_to)
    assert out["weight"].shape == (1, 7, 7)
    assert out["weight"].dtype == torch.float32
    np.testing.assert_allclose(out["weight"][0], expected, atol=TOLERANCE)
    assert out["weight"].meta["filename_or_obj"] == "cells_7.png"
    torch.testing.assert_close(out["weight"].affine, instances.affine)
    assert out["label"] is instances
    assert out["image"] is data["image"]
    assert set(data) == {"label", "image"}


def test_transform_takes_plain_tensors_in_3d_and_several_keys():
    one, two = (draw_cells((8, 9, 10), 3, 3, seed) for seed in (1, 2))
    data = {"a": torch.from_numpy(one)[None], "b": torch.from_numpy(two)[None]}
    out = BorderWeightsd(["a", "b"], ["weight_a", "weight_b"], units="mm")(data)
    for instances, key in ((one, "weight_a"), (two, "weight_b")):
        expected = class_weight_map(instances > 0) + reference(instances)
        assert type(out[key]) is torch.Tensor
        np.testing.assert_allclose(out[key][0], expected, atol=TOLERANCE)


def test_class_map_is_balanced_and_its_ignored_pixels_weigh_nothing():
    classes = np.where(SEVEN == 3, 2, SEVEN > 0)
    classes[:, 3] = IGNORE_LABEL
    data = {"cells": tracked(SEVEN), "label": tracked(classes)}
    weight = BorderWeightsd("cells", label_key="label")(data)["weight"][0].numpy()
    known = classes != IGNORE_LABEL
    assert not weight[~known].any()
    expected = class_weight_map(classes) + reference(SEVEN)
    np.testing.assert_allclose(weight[known], expected[known], atol=TOLERANCE)
    assert np.unique(class_weight_map(classes)[known]).size == 3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (SEVEN - 2, r"^cells_7\.png holds the value -2: give whole numbers"),
        (SEVEN / 2, r"^cells_7\.png holds the value 0\.5: give whole numbers"),
        ((SEVEN > 0) * 1, r"^cells_7\.png holds 2 separate cells under one id"),
    ],
)
def test_transform_names_the_file(values, message):
    with pytest.raises(InputError, match=message):
        BorderWeightsd("label")({"label": tracked(values)})


def test_transform_refuses_what_does_not_fit():
    with pytest.raises(InputError, match=r"^units is 'cm': give 'pixel' or 'mm'"):
        BorderWeightsd("label", units="cm")
    with pytest.raises(InputError, match=r"^distance_to is 'rim': give"):
        BorderWeightsd("label", distance_to="rim")
    with pytest.raises(InputError, match=r"^weight_key is \['weight'\]: give one name for each of the keys"):
        BorderWeightsd(["a", "b"])
    transform = BorderWeightsd("cells", label_key="label")
    with pytest.raises(InputError, match=r"^label has \[7, 6\] pixels and cells \[7, 7\]: give"):
        transform({"cells": tracked(SEVEN), "label": tracked(SEVEN[:, 1:])})
