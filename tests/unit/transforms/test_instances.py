"""Instance maps, what a network learns of them, and back."""

from __future__ import annotations

import warnings
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from monai.data import MetaTensor
from skimage.measure import label as connected_components

from scripts.errors import InputError
from scripts.judging import Case, instance_scores
from scripts.labels import IGNORE_LABEL, UNKNOWN_OBJECT
from scripts.transforms import (
    ClassesToInstancesd,
    ComponentsToInstancesd,
    FindObjectsd,
    InstancesFromDistancesd,
    InstancesToClassesd,
    InstancesToDistancesd,
    SeparateInstancesd,
    WatershedInstancesd,
)
from scripts.transforms.instances import FOUND

AFFINE = torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0], dtype=torch.float64))


def tracked(values: np.ndarray | torch.Tensor) -> MetaTensor:
    return MetaTensor(torch.as_tensor(values), affine=AFFINE, meta={"filename_or_obj": "scan_7.png"})


# Instances to interior and border, and back


def discs(shape: tuple[int, ...], centres: list[tuple[int, ...]], radius: float) -> np.ndarray:
    """Touching discs or balls; a pixel between two belongs to the nearer."""
    grid = np.indices(shape)
    distances = np.stack(
        [np.sqrt(sum((g - c) ** 2 for g, c in zip(grid, cs, strict=True))) for cs in centres]
    )
    return np.where(distances.min(0) <= radius, distances.argmin(0) + 1, 0)


def test_border_is_what_lies_within_thickness_of_another_or_background():
    instances = np.random.default_rng(0).integers(0, 3, (5, 4)).repeat(4, 0).repeat(5, 1)
    for thickness in (1, 2):
        out = InstancesToClassesd("label", thickness)({"label": torch.from_numpy(instances)[None]})["label"][
            0
        ]
        expected = np.zeros_like(instances)
        for i, j in np.ndindex(instances.shape):
            near = instances[
                max(i - thickness, 0) : i + thickness + 1, max(j - thickness, 0) : j + thickness + 1
            ]
            if instances[i, j]:
                expected[i, j] = 1 if (near == instances[i, j]).all() else 2
        np.testing.assert_array_equal(out, expected)
        assert {1, 2} <= set(expected.flat)


@pytest.mark.parametrize(
    ("shape", "centres", "radius"),
    [
        ((40, 70), [(12, 12), (12, 31), (28, 22), (28, 41), (14, 56)], 10),
        ((24, 24, 40), [(11, 11, 9), (11, 11, 24), (13, 13, 36)], 8),
    ],
)
def test_touching_instances_come_back_one_to_one(shape, centres, radius):
    instances = discs(shape, centres, radius)
    numbers = np.array([0, 300, 7, 12, 90, 41])[: len(centres) + 1]  # as they come on disk, with gaps
    data = {"label": tracked(numbers[instances].astype(np.float32)[None])}
    classes = InstancesToClassesd("label")(data)
    assert set(classes["label"].unique().tolist()) == {0, 1, 2}
    found = ClassesToInstancesd("label")(classes)["label"]
    ious = np.zeros((len(centres), int(found.max())))
    for a, b in np.ndindex(ious.shape):
        one, other = instances == a + 1, found[0].numpy() == b + 1
        ious[a, b] = (one & other).sum() / (one | other).sum()
    assert ious.shape == (len(centres), len(centres))
    assert (np.sort(ious.argmax(1)) == np.arange(len(centres))).all()
    assert ious.max(1).min() > 0.9
    for tensor in (classes["label"], found):
        assert tensor.dtype == torch.int32
        assert tensor.meta["filename_or_obj"] == "scan_7.png"
        torch.testing.assert_close(tensor.affine, AFFINE)


@pytest.mark.parametrize(
    ("thickness", "expected"),
    [
        (1, [[1, 1, 2, 2, 1, 1, 0, 1, 1], [1, 1, 2, 2, 1, 1, 0, 1, 1], [0, 0, 0, 0, 0, 0, 0, 0, 0]]),
        (2, [[1, 2, 2, 2, 2, 2, 0, 2, 1], [1, 2, 2, 2, 2, 2, 0, 2, 1], [0, 0, 0, 0, 0, 0, 0, 0, 0]]),
    ],
)
def test_contacts_by_hand(thickness, expected):
    """1 touches 2; between 2 and 7 lies one pixel of background."""
    row = [1, 1, 1, 2, 2, 2, 0, 7, 7]
    instances = torch.tensor([[row, row, [0] * 9]])
    classes = InstancesToClassesd("label", thickness=thickness, contacts=True)({"label": instances})["label"]
    np.testing.assert_array_equal(classes[0], expected)


def test_without_the_border_class_touching_discs_would_be_one():
    """What the border is for: the same map with its border taken as interior merges."""
    instances = discs((24, 44), [(12, 12), (12, 31)], 10)
    classes = InstancesToClassesd("label")({"label": torch.from_numpy(instances)[None]})["label"]
    merged = ClassesToInstancesd("label", border=None)({"label": (classes > 0).int()})["label"]
    assert merged.max() == 1


@pytest.mark.parametrize("shape", [(8, 9), (5, 6, 7)])
def test_background_alone_stays_background(shape):
    empty = torch.zeros(1, *shape)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for make in (InstancesToClassesd, ClassesToInstancesd, SeparateInstancesd):
            assert not make("label")({"label": empty})["label"].any()


def test_one_object_alone_gives_no_warning():
    classes = torch.zeros(1, 12, 12)
    classes[0, 3:9, 3:9] = 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ClassesToInstancesd("label")({"label": classes})["label"].sum() == 36


def test_objects_that_meet_at_a_corner_are_two():
    classes = torch.zeros(1, 10, 10)
    classes[0, 1:5, 1:5] = 1
    classes[0, 5:9, 5:9] = 1
    out = ClassesToInstancesd("label", border=None)({"label": classes})["label"][0]
    assert out[2, 2] != out[6, 6]
    assert out.max() == 2


def test_small_components_go_and_numbers_stay_without_gaps():
    classes = torch.zeros(1, 10, 30)
    classes[0, 1:4, 1:4] = 1  # 9 pixels
    classes[0, 1:4, 10:13] = 1
    classes[0, 4, 10] = 1  # 10 pixels
    classes[0, 1:6, 20:25] = 1  # 25 pixels
    out = ClassesToInstancesd("label", border=None)({"label": classes})["label"]
    assert out[0, 1:4, 1:4].max() == 0
    assert [(out == number).sum().item() for number in (1, 2)] == [10, 25]
    assert out.max() == 2
    every = ClassesToInstancesd("label", border=None, min_size=1)({"label": classes})["label"]
    assert every.max() == 3


def test_instances_grow_over_the_border_and_no_further():
    classes = torch.zeros(1, 15, 15)
    classes[0, 1:14, 1:14] = 2
    classes[0, 6:9, 6:9] = 1
    out = ClassesToInstancesd("label", grow=2, min_size=1)({"label": classes})["label"][0].numpy()
    distances = [
        min(np.hypot(i - a, j - b) for a in range(6, 9) for b in range(6, 9)) for i, j in np.ndindex(15, 15)
    ]
    expected = np.array(distances).reshape(15, 15) <= 2
    np.testing.assert_array_equal(out, expected.astype(int))


def test_border_beyond_a_gap_is_nobodys():
    """An object is one piece, however near another patch of border lies."""
    classes = torch.tensor([[[0, 1, 2, 0, 2, 0, 0, 0], [0, 1, 2, 0, 2, 0, 0, 0]]])
    out = ClassesToInstancesd("label", grow=3, min_size=1)({"label": classes})["label"]
    assert out[0].tolist() == [[0, 1, 1, 0, 0, 0, 0, 0]] * 2


def test_probabilities_are_no_class_map():
    with pytest.raises(InputError, match=r"^label has 3 channels where a class map has one: put AsDiscreted"):
        ClassesToInstancesd("label")({"label": torch.rand(3, 8, 8)})


# Background between touching instances


def separated(ids: np.ndarray, gap: int = 1) -> np.ndarray:
    return SeparateInstancesd("label", gap)({"label": torch.from_numpy(ids.copy())[None]})["label"][0].numpy()


def distance(one: np.ndarray, other: np.ndarray) -> int:
    """Smallest number of steps, diagonal ones included, between the pixels of two masks."""
    a, b = np.argwhere(one), np.argwhere(other)
    return int(abs(a[:, None] - b[None]).max(-1).min())


def test_separation_by_hand():
    """1 touches 2 along a side and has more pixels away from it: 1 gives way. 3 is two steps away."""
    ids = np.array(
        [
            [0, 0, 0, 0, 0, 0, 0],
            [0, 1, 1, 1, 2, 2, 0],
            [0, 1, 1, 1, 2, 2, 0],
            [0, 1, 1, 1, 2, 2, 0],
            [0, 0, 0, 0, 0, 0, 0],
            [0, 0, 3, 3, 0, 0, 0],
            [0, 0, 0, 0, 0, 0, 0],
        ]
    )
    expected = [
        [0, 0, 0, 0, 0, 0, 0],
        [0, 1, 1, 0, 1, 1, 0],
        [0, 1, 1, 0, 1, 1, 0],
        [0, 1, 1, 0, 1, 1, 0],
        [0, 0, 0, 0, 0, 0, 0],
        [0, 0, 1, 1, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0],
    ]
    np.testing.assert_array_equal(separated(ids), expected)
    # Within two steps of others lie two columns and a row of 1, and the whole of 2 and of 3: 2 yields to 3.
    wider = np.array(expected)
    wider[3, 1:6] = 0
    wider[1:4, 2] = 0
    np.testing.assert_array_equal(separated(ids, gap=2), wider)


def test_instances_that_meet_at_a_corner_are_separated():
    ids = np.zeros((7, 7), dtype=int)
    ids[1:4, 1:4], ids[4:6, 4:6] = 5, 70000
    expected = ids > 0
    expected[3, 3] = False  # of the larger one
    np.testing.assert_array_equal(separated(ids), expected)


@settings(deadline=None, max_examples=60)
@given(
    ids=arrays(np.int32, st.sampled_from([(5, 7), (9, 9), (4, 5, 4)]), elements=st.integers(0, 3)),
    repeats=st.integers(1, 4),
    gap=st.integers(1, 3),
    numbers=st.sampled_from([(1, 2, 3), (3, 2, 1), (7, 70000, 2**24)]),
)
def test_separation_keeps_what_it_promises(ids, repeats, gap, numbers):
    for axis in range(ids.ndim if ids.ndim == 2 else 0):
        ids = ids.repeat(repeats, axis)
    ids = np.array([0, *numbers])[ids]
    if len(np.unique(ids[ids > 0])) < 2:
        return
    out = separated(ids, gap)
    assert set(np.unique(out)) <= {0, 1}
    kept = np.where(out, ids, 0)
    assert not out[ids == 0].any()
    for connectivity in (1, ids.ndim):
        pieces, number = connected_components(out, connectivity=connectivity, return_num=True)
        assert all(len(np.unique(ids[pieces == piece + 1])) == 1 for piece in range(number))
    reach = [range(-gap, gap + 1)] * ids.ndim
    padded = np.pad(ids, gap)
    middle = tuple(slice(gap, -gap) for _ in ids.shape)
    near = np.zeros(ids.shape, dtype=bool)  # another instance lies within the gap
    for steps in product(*reach):
        other = np.roll(padded, steps, range(ids.ndim))[middle]
        near |= (other > 0) & (other != ids) & (ids > 0)
    np.testing.assert_array_equal(kept[~near], ids[~near])
    for one, other in ((a, b) for a in numbers for b in numbers if a < b):
        if (kept == one).any() and (kept == other).any():
            assert distance(kept == one, kept == other) > gap


def test_lines_too_thin_to_yield_lose_nothing_to_a_broad_neighbour():
    ids = np.zeros((9, 9), dtype=int)
    ids[1:8, 1], ids[1:8, 2:7], ids[1:8, 7] = 1, 2, 3
    out = separated(ids)
    np.testing.assert_array_equal(out[:, [1, 7]], ids[:, [1, 7]] > 0)
    np.testing.assert_array_equal(out[1:8, 2:7], [[0, 1, 1, 1, 0]] * 7)


def test_of_two_thin_lines_the_one_of_the_lower_id_vanishes():
    ids = np.zeros((5, 5), dtype=int)
    ids[:, 1], ids[:, 2] = 9, 4
    np.testing.assert_array_equal(separated(ids), ids == 9)


def test_one_cell_alone_stays_as_it_is_and_keeps_its_meta_data():
    ids = np.zeros((1, 6, 6), dtype=np.float32)
    ids[0, 1:4, 2:6] = 70000
    label = tracked(ids)
    out = SeparateInstancesd("label")({"label": label})["label"]
    assert out.dtype == torch.int32
    np.testing.assert_array_equal(out, ids > 0)
    assert out.meta["filename_or_obj"] == "scan_7.png"
    torch.testing.assert_close(out.affine, AFFINE)
    assert label.max() == 70000


def test_what_separation_refuses():
    binary = torch.zeros(1, 6, 6)
    binary[0, 0], binary[0, 3] = 1, 1
    with pytest.raises(InputError, match=r"^scan_7\.png holds 2 separate cells under one id"):
        SeparateInstancesd("label")({"label": tracked(binary)})
    with pytest.raises(InputError, match=r"^label holds the value 0\.5: give whole numbers"):
        SeparateInstancesd("label")({"label": binary / 2})
    with pytest.raises(InputError, match=r"^gap is 0: give 1 pixel or more"):
        SeparateInstancesd("label", gap=0)


# Watershed


def instances_of(probabilities: np.ndarray, **parameters: float) -> np.ndarray:
    data = {"pred": torch.from_numpy(np.asarray(probabilities, dtype=np.float32))}
    return WatershedInstancesd("pred", **parameters)(data)["pred"][0].numpy()


def two_classes(interior: np.ndarray) -> np.ndarray:
    return np.stack([1 - interior, interior])


def test_watershed_by_hand():
    """A row: two cores of a three-class network, the rim between them split where it is least interior."""
    interior = np.array([0.0, 0.3, 0.8, 0.9, 0.4, 0.1, 0.3, 0.7, 0.2, 0.0])
    border = np.array([0.1, 0.5, 0.2, 0.1, 0.6, 0.8, 0.6, 0.2, 0.2, 0.1])
    probabilities = np.stack([1 - interior - border, interior, border])[:, None]
    found = instances_of(probabilities, seed_threshold=0.5, min_size=1)
    # 0.1, the last to be flooded, has 0.4 and 0.3 beside it; 0.4 was there first
    np.testing.assert_array_equal(found, [[0, 1, 1, 1, 1, 1, 2, 2, 0, 0]])
    # (threshold, seed_threshold): what changes
    for thresholds, expected in {
        (0.3, 0.5): [0, 1, 1, 1, 1, 1, 2, 2, 2, 0],  # 0.4 counts as foreground
        (0.5, 0.75): [0, 1, 1, 1, 1, 1, 1, 1, 0, 0],  # 0.7 is no core any more
        (0.5, 0.85): [0, 1, 1, 1, 1, 1, 1, 1, 0, 0],
        (0.5, 0.95): [0] * 10,
        (0.92, 0.5): [0, 0, 1, 1, 1, 0, 0, 0, 0, 0],  # only a sum of 1.0 is; 0.9 is not
    }.items():
        made = instances_of(probabilities, threshold=thresholds[0], seed_threshold=thresholds[1], min_size=1)
        np.testing.assert_array_equal(made, [expected], err_msg=str(thresholds))
    with_line = instances_of(probabilities, seed_threshold=0.5, min_size=1, line=True)
    np.testing.assert_array_equal(with_line, [[0, 1, 1, 1, 1, 0, 2, 2, 0, 0]])


@pytest.mark.parametrize(
    ("shape", "centres", "radius"),
    [((40, 60), [(20, 20), (20, 38)], 11), ((26, 26, 40), [(13, 13, 12), (13, 13, 26)], 9)],
)
def test_overlapping_discs_are_cut_at_their_neck(shape, centres, radius):
    truth = discs(shape, centres, radius)
    probabilities = two_classes(0.9 * (truth > 0))
    assert instances_of(probabilities, neck=0).max() == 1
    found = instances_of(probabilities, neck=1)
    assert found.max() == 2
    assert (np.sort([(found[truth == n] == m).mean() for n in (1, 2) for m in (1, 2)])[2:] > 0.95).all()
    np.testing.assert_array_equal(found > 0, truth > 0)
    # the neck is thinner by 11 - sqrt(11^2 - 9^2) = 4.7 and 9 - sqrt(9^2 - 7^2) = 3.3 pixels
    assert instances_of(probabilities, neck=6).max() == 1


def test_holes_are_filled_up_to_their_size():
    ring = np.zeros((15, 15))
    ring[2:13, 2:13] = 1
    ring[6:9, 6:9] = 0  # a hole of 9 pixels
    assert (instances_of(two_classes(ring), max_hole=8) == ring).all()
    filled = instances_of(two_classes(ring), max_hole=9)
    assert (filled[2:13, 2:13] == 1).all()
    assert filled.sum() == 121


def test_small_instances_go_and_numbers_stay_without_gaps():
    interior = np.zeros((10, 30))
    interior[1:4, 1:4] = 1  # 9 pixels
    interior[1:4, 10:13] = 1
    interior[4, 10] = 1  # 10 pixels
    interior[1:6, 20:25] = 1  # 25 pixels
    out = instances_of(two_classes(interior), min_size=10)
    assert [(out == number).sum() for number in (1, 2)] == [10, 25]
    assert out.max() == 2
    assert instances_of(two_classes(interior), min_size=9).max() == 3


def test_small_cores_go_to_what_surrounds_them():
    """A speck of sure interior beside a large core is no instance, and leaves no hole in one."""
    interior = np.full((20, 30), 0.6)
    interior[2:18, 2:18] = 0.9
    interior[8:11, 24:27] = 0.9
    probabilities = two_classes(interior)
    assert (instances_of(probabilities, min_size=10) == 1).all()
    assert instances_of(probabilities, min_size=9).max() == 2


def test_cells_between_membranes_are_the_components():
    """Membranes that close need no growing: the cells are those that ClassesToInstancesd finds."""
    interior = np.ones((30, 40))
    interior[10], interior[:, 13], interior[10:, 27] = 0, 0, 0
    expected = connected_components(interior, connectivity=1)
    for neck in (0, 1):
        found = instances_of(two_classes(interior), neck=neck)
        pairs = np.unique(np.stack([found, expected]).reshape(2, -1), axis=1)
        assert pairs.shape[1] == found.max() + 1 == expected.max() + 1


@pytest.mark.parametrize("shape", [(8, 9), (5, 6, 7)])
@pytest.mark.parametrize("neck", [0, 1])
def test_no_foreground_gives_no_instance(shape, neck):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not instances_of(two_classes(np.zeros(shape)), neck=neck).any()
        assert (instances_of(two_classes(np.ones(shape)), neck=neck) == 1).all()


def test_watershed_keeps_the_meta_data_and_its_input():
    before = torch.rand((3, 12, 13), generator=torch.Generator().manual_seed(0)).softmax(0)
    pred = tracked(before.clone())
    out = WatershedInstancesd("pred", min_size=1)({"pred": pred, "other": 1})
    assert out["pred"].shape == (1, 12, 13)
    assert out["pred"].dtype == torch.int32
    assert out["pred"].meta["filename_or_obj"] == "scan_7.png"
    torch.testing.assert_close(out["pred"].affine, AFFINE)
    assert torch.equal(pred.as_tensor(), before)
    half = WatershedInstancesd("pred", min_size=1)({"pred": pred.bfloat16()})["pred"]
    assert half.dtype == torch.int32


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.sampled_from([(12, 17), (7, 8, 9)]),
    classes=st.integers(2, 3),
    neck=st.sampled_from([0, 0.5, 1, 2]),
    min_size=st.integers(0, 12),
)
def test_watershed_keeps_what_it_promises(seed, shape, classes, neck, min_size):
    logits = np.random.default_rng(seed).normal(size=(classes, *shape)).repeat(2, 1).repeat(2, 2)
    probabilities = torch.from_numpy(logits).float().softmax(0).numpy()
    out = instances_of(probabilities, threshold=0.5, seed_threshold=0.4, neck=neck, min_size=min_size)
    mask = 1 - probabilities[0] > 0.5
    assert not out[~mask].any()
    counts = np.bincount(out.ravel())[1:]
    assert (counts >= max(min_size, 1)).all()  # numbered without gaps
    if neck == 0:
        core = mask & (probabilities[1] > 0.4)
        cores = connected_components(core, connectivity=1)
        if min_size == 0:
            assert out.max() == cores.max()
        for core in range(1, cores.max() + 1):
            if (cores == core).sum() >= min_size:
                (number,) = np.unique(out[cores == core])
                assert number > 0
        for number in range(1, out.max() + 1):
            assert connected_components(out == number, connectivity=1).max() == 1
    line = instances_of(
        probabilities, threshold=0.5, seed_threshold=0.4, neck=neck, min_size=min_size, line=True
    )
    for axis in range(line.ndim):
        one, other = (np.take(line, range(s, line.shape[axis] - 1 + s), axis) for s in (0, 1))
        assert ((one == other) | (one == 0) | (other == 0)).all()
    for number in range(1, line.max() + 1):
        assert connected_components(line == number, connectivity=line.ndim).max() == 1


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"threshold": 1.0}, "threshold is 1.0: give a probability from 0 to below 1"),
        ({"seed_threshold": -0.1}, "seed_threshold is -0.1: give"),
        ({"neck": -1}, "neck is -1: give 0 pixels or more"),
        ({"max_hole": -1}, "max_hole is -1: give"),
        ({"min_size": -1}, "min_size is -1: give"),
    ],
)
def test_parameters_out_of_range_are_refused(parameters, message):
    with pytest.raises(InputError, match=f"^{message}"):
        WatershedInstancesd("pred", **parameters)


@pytest.mark.parametrize("channels", [1, 4])
def test_other_numbers_of_classes_are_refused(channels):
    with pytest.raises(InputError, match=rf"^scan_7\.png has {channels} channels: give the probabilities of"):
        WatershedInstancesd("pred")({"pred": tracked(torch.rand(channels, 8, 8))})


def test_components_of_masks_and_instance_maps():
    """Parts of one value that meet at a corner are two; neighbours of two values stay two."""
    values = [[255, 255, 0, 7], [0, 0, 255, 7], [9, 8, 8, 7]]
    found = ComponentsToInstancesd("label")({"label": torch.tensor([values])})["label"][0].tolist()
    assert found == [[1, 1, 0, 2], [0, 0, 3, 2], [4, 5, 5, 2]]


# Distances, and back


def test_distances_are_those_of_each_instance_alone():
    """By brute force: to the nearest pixel outside, as a share of the instance's largest."""
    ids = np.random.default_rng(3).integers(0, 4, (4, 5)).repeat(3, 0).repeat(4, 1)
    ids[6:, 10:] = 7
    out = InstancesToDistancesd("label", threshold=0.6)({"label": tracked(ids[None])})
    places = np.stack(np.nonzero(np.ones_like(ids)), 1)
    expected = np.zeros(ids.shape)
    for number in set(ids.flat) - {0}:
        others = places[ids.ravel() != number]
        for i, j in places[ids.ravel() == number]:
            expected[i, j] = np.hypot(*(others - (i, j)).T).min()
        expected[ids == number] /= expected[ids == number].max()
    np.testing.assert_allclose(out["distance"][0], expected, rtol=1e-6)
    np.testing.assert_array_equal(out["label"][0], np.where(ids == 0, 0, np.where(expected > 0.6, 1, 2)))
    assert out["distance"].dtype == torch.float32
    assert torch.equal(out["distance"].affine, AFFINE)


def test_distances_of_an_instance_that_fills_the_image():
    out = InstancesToDistancesd("label")({"label": torch.ones(1, 5, 7, dtype=torch.int32)})
    assert out["distance"][0, 2, 3] == 1
    assert out["distance"].min() == pytest.approx(1 / 3)


def from_distances(ids: np.ndarray) -> torch.Tensor:
    """Probabilities of a network that has learnt distances without an error."""
    distance = InstancesToDistancesd("label")({"label": torch.from_numpy(ids)[None]})["distance"][0]
    inside = torch.from_numpy(ids > 0).float()
    return torch.stack([1 - inside, inside * distance, inside * (1 - distance)])


@pytest.mark.parametrize("dims", [2, 3])
def test_touching_discs_come_back_from_their_distances(dims):
    shape, centres = ((40, 60, 20)[:dims], [(12, 14, 9)[:dims], (14, 31, 10)[:dims], (30, 20, 9)[:dims]])
    ids = discs(shape, centres, 9.5)
    assert set(np.unique(ids)) == {0, 1, 2, 3}
    back = np.asarray(InstancesFromDistancesd("pred")({"pred": from_distances(ids)})["pred"][0])
    np.testing.assert_array_equal(back > 0, ids > 0)
    assert back.max() == 3
    for number in (1, 2, 3):  # the line between two discs may move by a pixel
        own = back == np.bincount(back[ids == number]).argmax()
        assert (own & (ids == number)).sum() > 0.95 * (own | (ids == number)).sum()


def test_noise_of_distances_makes_no_seed_and_small_parts_go():
    ids = discs((40, 50), [(20, 20)], 15)
    ids[2:4, 45:48] = 2  # 6 pixels
    pred = from_distances(ids)
    noise = 0.05 * torch.rand(pred.shape[1:], generator=torch.Generator().manual_seed(0))
    pred[1] -= noise * pred[1]
    pred[2] += noise * pred[1]
    back = InstancesFromDistancesd("pred", smoothing=0)({"pred": pred})["pred"][0]
    np.testing.assert_array_equal(back, ids == 1)
    both = InstancesFromDistancesd("pred", smoothing=0, min_size=6)({"pred": pred})["pred"][0]
    assert both.max() == 2
    nothing = torch.tensor([1.0, 0.0, 0.0])[:, None, None].expand(3, 9, 9)
    assert not InstancesFromDistancesd("pred")({"pred": nothing})["pred"].any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"threshold": 1.5}, "threshold is 1.5: use 0 to 1"),
        ({"height": 0}, "height is 0: use a number above 0"),
        ({"smoothing": -1}, "smoothing is -1: use 0 or more"),
    ],
)
def test_distances_with_a_wrong_argument_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        InstancesFromDistancesd("pred", **arguments)


def test_distances_want_three_channels():
    with pytest.raises(
        InputError, match=r"scan_7.png has 2 channels: give the probabilities of background, "
    ):
        InstancesFromDistancesd("pred")({"pred": tracked(np.zeros((2, 4, 4)))})


def test_objects_of_logits_are_those_of_inference() -> None:
    cells = np.zeros((1, 24, 24), np.int32)
    cells[0, 2:10, 2:10], cells[0, 12:22, 4:20] = 7, 3
    logits = torch.nn.functional.one_hot(torch.from_numpy((cells[0] > 0).astype(np.int64)), 3)
    data = {"pred": 9.0 * logits.permute(2, 0, 1).half(), "objects": torch.from_numpy(cells)}
    found = FindObjectsd("pred", [WatershedInstancesd("pred")], "objects")(data)
    assert found["pred"] is data["pred"]
    objects, true = (np.asarray(found[key][0]) for key in FOUND)
    assert instance_scores(Case("a", objects, true))["ap"] == 1
    np.testing.assert_array_equal(true, cells[0])
    with pytest.raises(InputError, match="to_labels is not set, and val_measure judges objects"):
        FindObjectsd("pred", [], "objects")


def test_what_nobody_annotated_takes_no_part_in_borders() -> None:
    """It is no background that an object could have a border with, and no neighbour that it touches."""
    ids = np.zeros((12, 14), np.int32)
    ids[2:10, 2:8], ids[2:10, 8:12] = 1, 2
    cut = ids.copy()
    cut[6:] = UNKNOWN_OBJECT
    for contacts in (False, True):
        transform = InstancesToClassesd("label", contacts=contacts)
        whole, half = (transform({"label": torch.from_numpy(map_)[None]})["label"][0] for map_ in (ids, cut))
        assert (half[6:] == IGNORE_LABEL).all()
        assert torch.equal(half[:6], whole[:6])
    ids[9, :] = UNKNOWN_OBJECT  # an object ends where the next one may begin
    apart = SeparateInstancesd("label")({"label": torch.from_numpy(ids)[None]})["label"][0]
    assert (apart[9] == IGNORE_LABEL).all()
    assert set(apart[:9].ravel().tolist()) == {0, 1}
    out = InstancesToDistancesd("label")({"label": torch.from_numpy(cut)[None]})
    assert (out["distance"][0, 6:] == IGNORE_LABEL).all()
    assert (out["label"][0, 6:] == IGNORE_LABEL).all()
    assert out["distance"][0, 5, 4] == 1  # three pixels from the sides, not one from the cut
    everywhere = torch.full((1, 4, 4), 3, dtype=torch.int32)
    everywhere[0, 0] = UNKNOWN_OBJECT
    assert (InstancesToDistancesd("label")({"label": everywhere})["distance"][0, 1:] > 0).all()
    cells = ComponentsToInstancesd("label", {"background": 0, "ignore": 9})(
        {"label": torch.tensor([[[9, 0, 5, 5, -1]]])}
    )
    assert cells["label"].tolist() == [[[0, 0, 1, 1, 0]]]
