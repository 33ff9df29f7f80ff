"""The random patch against MONAI's crops, scipy's splines and interpolation, and places computed by hand."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from monai.transforms import CenterSpatialCrop, Compose, SpatialPad
from scipy import ndimage
from scipy.interpolate import CubicSpline

from scripts.errors import InputError
from scripts.labels import IGNORE_LABEL
from scripts.transforms.spatial import (
    SMALLEST_VOLUME,
    CountClassesd,
    RandSpatialPatchd,
    SpatialParameters,
    class_counts,
    control_positions,
    crop,
    fold,
    interpolate,
    resample,
    spline_matrix,
)

# Positions are single precision: an intensity in [0, 1] is off by the error of its position in voxels.
POSITION_TOLERANCE = 5e-5
# A drawn mean or standard deviation lies this many of its own standard errors from the true one, at most.
STANDARD_ERRORS = 5
# Labels of voxels this close to the middle between two voxels may fall to either.
TIE = 1e-3

SIZES = st.one_of(
    st.tuples(*[st.tuples(st.integers(1, 9), st.integers(1, 9))] * 2),
    st.tuples(*[st.tuples(st.integers(1, 7), st.integers(1, 7))] * 3),
)


def make_case(shape: tuple[int, ...], seed: int = 0, classes: int = 4) -> dict[str, torch.Tensor]:
    """Noise with a class index for every voxel: any voxel that lands in the wrong place shows."""
    rng = np.random.default_rng(seed)
    return {
        "image": torch.from_numpy(rng.random((1, *shape), dtype=np.float32)),
        "label": torch.from_numpy(rng.integers(0, classes, (1, *shape)).astype(np.float32)),
    }


def make_transform(patch_size: tuple[int, ...], seed: int = 0, **arguments) -> RandSpatialPatchd:
    transform = RandSpatialPatchd(["image", "label"], ["bilinear", "nearest"], patch_size, **arguments)
    transform.set_random_state(seed)
    return transform


def cut(volume: np.ndarray, start: tuple[int, ...], size: tuple[int, ...], outside: float) -> np.ndarray:
    """A crop, voxel by voxel."""
    patch = np.full(size, outside, volume.dtype)
    for index in product(*map(range, size)):
        source = tuple(s + i for s, i in zip(start, index, strict=True))
        if all(0 <= s < n for s, n in zip(source, volume.shape, strict=True)):
            patch[index] = volume[source]
    return patch


def draw(transform: RandSpatialPatchd, shape: tuple[int, ...], times: int, spacing=None, label=None) -> list:
    spacing = np.ones(len(shape)) if spacing is None else np.array(spacing)
    return [transform.randomize(label, shape, spacing) for _ in range(times)]


def label_start(transform: RandSpatialPatchd, parameters: SpatialParameters) -> np.ndarray:
    """First source voxel of the label's patch, of parameters without deformation."""
    return parameters.centre - (np.array(transform.patch_size) - 1) / 2 + np.array(transform.margins)


def make_field(displacements: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """(dims, *size), of (dims, *control points)."""
    weights = [spline_matrix(p, n) for p, n in zip(displacements.shape[1:], size, strict=True)]
    return np.moveaxis(interpolate(np.moveaxis(displacements, 0, -1), weights).numpy(), -1, 0)


def source_coordinates(size: tuple[int, ...], parameters: SpatialParameters, spacing) -> torch.Tensor:
    """Where every voxel of a deformed patch comes from, (dims, *size), in voxels."""
    points = parameters.displacements.shape[1:]
    positions = control_positions([n - 1 for n in size], points, parameters, np.array(spacing))
    return torch.from_numpy(make_field(np.moveaxis(positions, -1, 0), size))


# Without deformation


@settings(max_examples=60, deadline=None)
@given(SIZES, st.integers(0, 2**32 - 1))
def test_is_a_random_crop(sizes, seed):
    shape, patch = tuple(n for n, _ in sizes), tuple(p for _, p in sizes)
    case = make_case(shape, seed)
    start = tuple(
        label_start(make_transform(patch), draw(make_transform(patch, seed), shape, 1)[0]).astype(int)
    )
    out = make_transform(patch, seed)(case)
    np.testing.assert_array_equal(out["image"][0], cut(case["image"][0].numpy(), start, patch, 0))
    np.testing.assert_array_equal(out["label"][0], cut(case["label"][0].numpy(), start, patch, IGNORE_LABEL))
    for first, n, p in zip(start, shape, patch, strict=True):
        assert 0 <= first <= n - p if p <= n else first == -((p - n) // 2)


@pytest.mark.parametrize(
    ("shape", "patch"),
    [((8, 9), (4, 5)), ((5, 8), (9, 4)), ((6, 6), (9, 9)), ((5, 6, 9), (8, 9, 5)), ((7, 8, 9), (3, 4, 5))],
)
def test_centred_patch_equals_monai(shape, patch):
    case = make_case(shape)
    centre = np.array(
        [(n - p) // 2 if n >= p else -((p - n) // 2) for n, p in zip(shape, patch, strict=True)]
    )
    parameters = SpatialParameters(centre + (np.array(patch) - 1) / 2, np.eye(len(shape)))
    out = make_transform(patch).apply(case, parameters, np.ones(len(shape)))
    crop = CenterSpatialCrop(patch)
    image = Compose([SpatialPad(patch, mode="constant"), crop])(case["image"])
    label = Compose([SpatialPad(patch, mode="constant", value=IGNORE_LABEL), crop])(case["label"])
    np.testing.assert_array_equal(out["image"], image)
    np.testing.assert_array_equal(out["label"], label)


@pytest.mark.parametrize(
    ("shape", "patch", "label_size", "start", "flips"),
    [
        ((9, 12), (4, 6), (4, 6), (3, 5), (1, 1)),
        ((9, 12), (5, 6), (2, 5), (-2, 8), (-1, 1)),
        ((5, 6, 7), (4, 5, 6), (4, 5, 6), (1, 0, -3), (1, -1, -1)),
        ((5, 6, 7), (8, 5, 3), (5, 4, 2), (-2, 4, 5), (-1, -1, -1)),
        ((5, 5), (4, 4), (4, 4), (-9, 9), (1, -1)),
    ],
    ids=["crop", "odd margins", "flipped", "beyond every side", "nothing of the scan"],
)
def test_copied_patch_equals_the_resampled(shape, patch, label_size, start, flips):
    """A field of zeros is resampled; without a field the same patch is copied."""
    dims, case = len(shape), make_case(shape)
    transform = make_transform(patch, label_size=label_size)
    centre, matrix = np.array(start) + (np.array(patch) - 1) / 2, np.diag(np.array(flips, float))
    copied = transform.apply(case, SpatialParameters(centre, matrix), np.ones(dims))
    still = SpatialParameters(centre, matrix, np.zeros((dims, *[3] * dims)))
    resampled = transform.apply(case, still, np.ones(dims))
    np.testing.assert_array_equal(copied["label"], resampled["label"])
    np.testing.assert_allclose(copied["image"], resampled["image"], atol=POSITION_TOLERANCE)
    whole = np.flip(cut(case["image"][0].numpy(), start, patch, 0), [a for a in range(dims) if flips[a] < 0])
    np.testing.assert_array_equal(copied["image"][0], whole)


@settings(max_examples=60, deadline=None)
@given(SIZES, st.data())
def test_crop_equals_a_crop_voxel_by_voxel(sizes, data):
    shape, size = tuple(n for n, _ in sizes), tuple(p for _, p in sizes)
    start = data.draw(st.tuples(*[st.integers(-12, 12)] * len(shape)))
    volume = np.random.default_rng(0).integers(1, 200, shape).astype(np.uint8)
    found = crop(torch.from_numpy(volume)[None], start, size, -7.0)
    assert found.dtype == torch.float32
    np.testing.assert_array_equal(found[0], cut(volume.astype(np.float32), start, size, -7))


def test_every_start_is_drawn_equally_often():
    transform, times = make_transform((3, 8)), 3000
    starts = np.array([label_start(transform, p) for p in draw(transform, (6, 8), times)])
    counts = np.bincount(starts[:, 0].astype(int), minlength=4)
    assert (starts[:, 1] == 0).all()
    assert len(counts) == 4
    assert (np.abs(counts - times / 4) < STANDARD_ERRORS * np.sqrt(times * 0.25 * 0.75)).all()


def test_one_slice_fills_one_slice_of_a_thicker_patch():
    case = make_case((5, 5, 1))
    out = make_transform((5, 5, 4))(case)
    inside = (out["label"][0] != IGNORE_LABEL).sum(dim=(0, 1))
    assert inside.tolist() == [0, 25, 0, 0]
    assert out["image"][..., [0, 2, 3]].abs().max() < POSITION_TOLERANCE


def test_keeps_other_keys_channels_and_the_case():
    case = make_case((6, 7))
    case["image"] = torch.cat([case["image"], 1 - case["image"]])
    before = {key: value.clone() for key, value in case.items()}
    out = make_transform((6, 7), affine_prob=1, rotate_range=1.0)({**case, "case": "one"})
    assert out["case"] == "one"
    assert out["image"].shape == (2, 6, 7)
    assert out["image"].is_contiguous()
    inside = torch.nn.functional.max_pool2d((out["label"] == IGNORE_LABEL).float(), 3, 1, 1) == 0
    np.testing.assert_allclose(out["image"].sum(0)[inside[0]], 1, atol=1e-4)
    for key, value in before.items():
        assert torch.equal(case[key], value)


# Known points in known fields


def track(source: tuple[int, ...], parameters: SpatialParameters, size, spacing, shape) -> tuple[int, ...]:
    """Where one bright voxel of the source lands, by the image and by the label."""
    image = torch.zeros(1, *shape)
    image[(0, *source)] = 1
    points = 3 if parameters.displacements is None else parameters.displacements.shape[1:]
    transform = make_transform(size, elastic_points=points)
    out = transform.apply({"image": image, "label": image}, parameters, np.array(spacing))
    place = np.unravel_index(int(out["image"].argmax()), size)
    assert out["image"][(0, *place)] > 1 - 1e-4
    assert out["label"][(0, *place)] == 1
    return tuple(int(i) for i in place)


QUARTER_TURN = np.array([[0.0, -1.0], [1.0, 0.0]])


@pytest.mark.parametrize(
    ("parameters", "spacing", "source", "place"),
    [
        # The offset of the source from the centre (5, 5) is the matrix times that of the patch from (5, 5).
        (SpatialParameters(np.array([5, 5]), QUARTER_TURN), (1, 1), (6, 8), (8, 4)),
        (SpatialParameters(np.array([5, 5]), np.eye(2) / 2), (1, 1), (6, 3), (7, 1)),
        # The patch is centred three voxels further along axis 0 and one back along axis 1.
        (SpatialParameters(np.array([8, 4]), np.eye(2)), (1, 1), (8, 8), (5, 9)),
        # 1 x 3 mm: a quarter turn takes three voxels of 1 mm to one of 3 mm.
        (SpatialParameters(np.array([5, 5]), QUARTER_TURN), (1, 3), (5, 6), (8, 5)),
        # The same vector everywhere, of 2 and -6 mm: 2 voxels and -2 voxels.
        (
            SpatialParameters(
                np.array([5, 5]), np.eye(2), np.stack([np.full((3, 3), 2.0), np.full((3, 3), -6.0)])
            ),
            (1, 3),
            (6, 3),
            (4, 5),
        ),
    ],
    ids=["quarter turn", "scale 2", "translation", "quarter turn in mm", "displacement in mm"],
)
def test_known_point_moves_to_its_computed_place_2d(parameters, spacing, source, place):
    assert track(source, parameters, (11, 11), spacing, (11, 11)) == place


@pytest.mark.parametrize(
    ("matrix", "displacement", "spacing", "source", "place"),
    [
        # about axis 2: (a, b, c) of the patch comes from (-b, a, c)
        ([[0, -1, 0], [1, 0, 0], [0, 0, 1]], (0, 0, 0), (1, 1, 1), (3, 5, 6), (5, 5, 6)),
        (np.eye(3) / 2, (0, 0, 0), (1, 1, 1), (3, 4, 5), (2, 4, 6)),
        (np.eye(3), (1, -2, 5), (1, 2, 5), (4, 4, 4), (3, 5, 3)),
        # about axis 0, in 1 x 1 x 2 mm: 2 mm along axis 1 become one voxel along axis 2
        ([[1, 0, 0], [0, 0, -1], [0, 1, 0]], (0, 0, 0), (1, 1, 2), (4, 4, 5), (4, 6, 4)),
    ],
    ids=["quarter turn", "scale 2", "displacement in mm", "quarter turn in mm"],
)
def test_known_point_moves_to_its_computed_place_3d(matrix, displacement, spacing, source, place):
    vectors = np.tile(np.array(displacement, float)[:, None, None, None], (1, 2, 3, 4))
    parameters = SpatialParameters(np.array([4, 4, 4]), np.array(matrix, float), vectors)
    assert track(source, parameters, (9, 9, 9), spacing, (9, 9, 9)) == place


def test_one_control_point_moves_its_corner_alone():
    displacements = np.zeros((2, 2, 2))
    displacements[1, 0, 0] = 4
    moved = source_coordinates((9, 9), SpatialParameters(np.array([4, 4]), np.eye(2), displacements), (1, 2))
    rest = torch.stack(torch.meshgrid(torch.arange(9.0), torch.arange(9.0), indexing="ij"))
    weight = (1 - torch.arange(9) / 8)[:, None] * (1 - torch.arange(9) / 8)  # two points: a straight line
    torch.testing.assert_close(moved[0], rest[0])
    torch.testing.assert_close(moved[1], rest[1] + 2 * weight)


def test_a_deviation_for_each_axis_leaves_slices_apart():
    """Drawn within the slices alone, a deformed patch of one slice holds voxels of that slice."""
    slices, inside = torch.arange(6.0).expand(1, 20, 20, 6), torch.zeros(1, 20, 20, 6)
    inside[:, 2:-2, 2:-2] = 1  # at the end of the image it is mixed with what lies outside
    transform = make_transform(
        (12, 12, 1), elastic_prob=1.0, elastic_std=[2.0, 2.0, 0.0], affine_prob=1.0, rotate_range=[0, 0, 1.0]
    )
    for _ in range(10):
        patch = transform({"image": slices, "label": inside})
        known = patch["image"][patch["label"] == 1]
        assert known.numel() > 20
        torch.testing.assert_close(known, known[0].round().expand_as(known), atol=1e-4, rtol=0)
    moved = draw(transform, (20, 20, 6), 1)[0].displacements
    assert not moved[2].any()
    assert moved[:2].all()


def test_drawn_rotation_is_a_quarter_turn_of_numpy():
    transform = make_transform((6, 6))
    case = make_case((6, 6))
    parameters = SpatialParameters(np.array([2.5, 2.5]), transform._rotation([np.pi / 2]))
    out = transform.apply(case, parameters, np.ones(2))
    np.testing.assert_array_equal(out["label"][0], np.rot90(case["label"][0], -1))
    np.testing.assert_allclose(out["image"][0], np.rot90(case["image"][0], -1), atol=POSITION_TOLERANCE)


@pytest.mark.parametrize(("angle_of", "plane"), [(0, (1, 2)), (1, (2, 0)), (2, (0, 1))])
def test_drawn_rotation_in_3d_turns_about_its_axis(angle_of, plane):
    transform = make_transform((5, 5, 5))
    case = make_case((5, 5, 5))
    angles = [np.pi / 2 if axis == angle_of else 0 for axis in range(3)]
    out = transform.apply(
        case, SpatialParameters(np.array([2, 2, 2]), transform._rotation(angles)), np.ones(3)
    )
    np.testing.assert_array_equal(out["label"][0], np.rot90(case["label"][0], -1, plane))


# The field


def reference_field(
    displacements: np.ndarray, size: tuple[int, ...], extent: tuple[float, ...] | None = None
) -> np.ndarray:
    """Splines through the vectors themselves, evaluated at every voxel, axis by axis.

    The points span ``extent`` voxels around the centre; None: from the first voxel to the last.
    """
    field = displacements.astype(float)
    for axis, voxels in enumerate(size, start=1):
        length = voxels - 1 if extent is None else extent[axis - 1]
        places = (voxels - 1 - length) / 2 + length * np.linspace(0, 1, field.shape[axis])
        field = CubicSpline(places, field, axis=axis, bc_type="natural")(np.arange(voxels))
    return field


@pytest.mark.parametrize(
    ("points", "size"), [((3, 3), (9, 14)), ((2, 5), (6, 7)), ((3, 4, 2), (5, 8, 6)), ((4, 4, 4), (7, 5, 6))]
)
def test_field_is_scipys_spline_along_each_axis(points, size):
    displacements = np.random.default_rng(1).normal(0, 10, (len(size), *points))
    field = make_field(displacements, size)
    np.testing.assert_allclose(field, reference_field(displacements, size), atol=1e-4)


@pytest.mark.parametrize(("points", "steps"), [((3, 3), (4, 7)), ((2, 4, 3), (5, 2, 3))])
def test_field_passes_through_its_control_points(points, steps):
    displacements = np.random.default_rng(2).normal(0, 4, (len(points), *points))
    size = tuple((p - 1) * s + 1 for p, s in zip(points, steps, strict=True))
    field = make_field(displacements, size)
    at_points = field[(slice(None), *(slice(None, None, step) for step in steps))]
    np.testing.assert_allclose(at_points, displacements, atol=1e-5)


@pytest.mark.parametrize("points", [2, 3, 7])
def test_spline_weights_add_to_one_and_meet_in_the_middle(points):
    np.testing.assert_allclose(spline_matrix(points, 20).sum(1), 1, atol=1e-6)
    straight = spline_matrix(points, 1) @ np.arange(points)
    np.testing.assert_allclose(straight, (points - 1) / 2, atol=1e-6)


@pytest.mark.parametrize(
    ("size", "spacing", "points", "extent"),
    [
        # 131 and 115 voxels from border to border: 4.1 and 3.6 times 32
        ((132, 132, 116), 32, (6, 6, 5), (160, 160, 128)),
        ((9, 12), 4, (3, 4), (8, 12)),
        ((33, 1), (16.5, 5), (3, 2), (33, 5)),
        ((5, 5), (100, 2), (2, 3), (100, 4)),
    ],
)
def test_grid_by_spacing_is_counted_by_hand(size, spacing, points, extent):
    transform = make_transform(size, elastic_spacing=spacing)
    assert transform.elastic_points == points
    assert transform.extent == extent


@pytest.mark.parametrize("size", [(9, 12), (6, 8, 13)])
def test_field_by_spacing_is_scipys_spline_through_points_so_far_apart(size):
    """The points lie around the patch's centre, and beyond its border where they do not meet it."""
    step, rng = 4.0, np.random.default_rng(3)
    transform = make_transform(size, elastic_spacing=step)
    displacements = rng.normal(0, 2, (len(size), *transform.elastic_points))
    extent = tuple(step * (points - 1) for points in transform.elastic_points)
    assert all(0 <= e - (n - 1) < step for e, n in zip(extent, size, strict=True))
    field = reference_field(displacements, size, extent)
    parameters = SpatialParameters((np.array(size) - 1) / 2, np.eye(len(size)), displacements)
    places = control_positions(transform.extent, transform.elastic_points, parameters, np.ones(len(size)))
    found = np.moveaxis(interpolate(places, transform.weights).numpy(), -1, 0)
    np.testing.assert_allclose(found - np.indices(size), field, atol=1e-4)


def test_points_and_spacing_of_one_grid_give_one_patch():
    case, arguments = make_case((20, 20)), {"elastic_prob": 1, "elastic_std": 1.0}
    one, other = (
        make_transform((9, 13), **grid, **arguments)(case)
        for grid in ({"elastic_points": (3, 4)}, {"elastic_spacing": 4})
    )
    assert torch.equal(one["image"], other["image"])


# Without folds


def volumes(transform: RandSpatialPatchd, parameters: SpatialParameters, spacing) -> np.ndarray:
    """What each voxel takes of the source, relative to the affine part, by differences between voxels."""
    size = transform.patch_size
    moved = np.stack(np.meshgrid(*[np.arange(n) - (n - 1) / 2 for n in size], indexing="ij"))
    sides = np.reshape(spacing, (-1, *[1] * len(size)))
    moved = np.einsum("ij,j...->i...", parameters.matrix, moved * sides)
    positions = (moved + reference_field(parameters.displacements, size, transform.extent)) / sides
    slopes = np.array([np.gradient(axis) for axis in positions])  # (dims, dims, *size)
    # by the first row, as np.linalg.det takes ten times as long
    minors = np.array([slopes[1, 1], -slopes[1, 0]]) if len(size) == 2 else np.cross(*slopes[1:], axis=0)
    return (slopes[0] * minors).sum(0) / np.linalg.det(parameters.matrix)


def shrink(dims: int, slope: float, axes: int, matrix, spacing=1.0) -> float:
    """The factor for displacements that grow by ``slope`` a voxel along each of the first axes."""
    points = (2,) * dims
    transform = make_transform((11,) * dims, elastic_points=2)
    vectors = np.zeros((dims, *points))
    for axis in range(axes):
        vectors[axis] = (np.indices(points)[axis] - 0.5) * 10 * slope
    steps = np.array(matrix, float) * spacing
    return transform._unfolded(np.tensordot(steps, vectors, 1), steps)


@pytest.mark.parametrize("spacing", [1.0, np.array([0.5, 3.0])])
@pytest.mark.parametrize("matrix", [np.eye(2), [[-1, 0], [0, 1]], [[0, -2.5], [2.5, 0]]])
def test_factor_by_hand_2d(matrix, spacing):
    """Pulled together along one axis, a voxel keeps 1 - f s of its volume; flips and turns change nothing."""
    assert shrink(2, -2.0, 1, matrix, spacing) == pytest.approx(0.45, abs=1 / 256)  # 1 - 2 f = 0.1
    assert shrink(2, -1.2, 2, matrix, spacing) == pytest.approx((1 - 0.1**0.5) / 1.2, abs=1 / 256)
    assert shrink(2, -0.89, 1, matrix, spacing) == 1
    assert shrink(2, 5.0, 2, matrix, spacing) == 1  # apart: larger volumes


def test_factor_by_hand_3d():
    turn = [[0, -1, 0], [1, 0, 0], [0, 0, -1.2]]
    assert shrink(3, -2.0, 1, turn) == pytest.approx(0.45, abs=1 / 256)
    assert shrink(3, -2.0, 3, turn) == pytest.approx((1 - 0.1 ** (1 / 3)) / 2, abs=1 / 256)
    assert shrink(3, -0.5, 3, turn) == 1  # 1/8
    assert shrink(3, -0.6, 3, turn) < 1  # 0.064


@pytest.mark.parametrize(
    ("size", "grid", "std", "spacing"),
    [
        ((24, 30), {"elastic_points": (3, 6)}, 2.0, (1, 1)),
        ((20, 16, 9), {"elastic_spacing": 7}, 2.0, (0.8, 1, 2.5)),
    ],
)
def test_no_voxel_is_folded_and_what_would_not_fold_is_as_drawn(size, grid, std, spacing):
    arguments = {
        **{"affine_prob": 0.5, "rotate_range": 1.0, "scale_range": (0.6, 1.5), "flip_axes": (0, 1)},
        **{"elastic_prob": 1, "elastic_std": std},
    }
    transform, free = (make_transform(size, 7, **grid, **arguments) for _ in range(2))
    free._unfolded = lambda *_: 1.0
    folded = unchanged = 0
    for kept, drawn in zip(*(draw(t, size, 40, spacing) for t in (transform, free)), strict=True):
        assert volumes(free, kept, spacing).min() > 0
        smallest = volumes(free, drawn, spacing).min()
        folded += smallest <= 0
        ratio = kept.displacements / drawn.displacements
        np.testing.assert_allclose(ratio, ratio.max())
        assert (ratio.max() < 1) or (smallest > 0)
        if smallest > 1.5 * SMALLEST_VOLUME:
            np.testing.assert_array_equal(kept.displacements, drawn.displacements)
            unchanged += 1
    assert folded > 5
    assert unchanged > 2


# Image and label, in one resampling


def reference_patch(case, parameters: SpatialParameters, transform, spacing) -> tuple[np.ndarray, ...]:
    """Image, label, and which label voxels no rounding can change, by scipy in double precision."""
    patch, dims = transform.patch_size, len(transform.patch_size)
    offsets = np.stack(np.meshgrid(*[np.arange(n) - (n - 1) / 2 for n in patch], indexing="ij"))
    moved = np.einsum("ij,j...->i...", parameters.matrix, offsets * np.reshape(spacing, (-1, *[1] * dims)))
    if parameters.displacements is not None:
        moved += reference_field(parameters.displacements, patch)
    positions = moved / np.reshape(spacing, (-1, *[1] * dims)) + parameters.centre.reshape(-1, *[1] * dims)
    image = np.stack(
        [
            ndimage.map_coordinates(c.numpy().astype(float), positions, order=1, mode="grid-constant")
            for c in case["image"]
        ]
    )
    inner = positions[(slice(None), *transform.window)]
    label = ndimage.map_coordinates(
        case["label"][0].numpy().astype(float),
        inner,
        order=0,
        mode="grid-constant",
        cval=transform.ignore_label,
    )
    return image, label, (np.abs(inner % 1 - 0.5) > TIE).all(0)


def compare(case, parameters: SpatialParameters, transform, spacing) -> None:
    out = transform.apply(case, parameters, np.array(spacing))
    image, label, clear = reference_patch(case, parameters, transform, spacing)
    assert clear.mean() > 0.95
    for patch in out.values():
        assert type(patch) is torch.Tensor
        assert patch.dtype == torch.float32
    np.testing.assert_allclose(out["image"], image, atol=POSITION_TOLERANCE)
    np.testing.assert_array_equal(out["label"][0].numpy()[clear], label[clear])


EVERYTHING = {
    "affine_prob": 1,
    "scale_range": (0.7, 1.4),
    "translate_range": 3.0,
    "elastic_prob": 1,
    "elastic_std": 2.0,
    "foreground_prob": 0.5,
    "units": "mm",
}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("shape", "patch", "label_size", "points", "spacing"),
    [
        ((90, 70), (41, 32), None, 3, (1, 1)),
        ((50, 64), (60, 48), (36, 31), (5, 2), (0.5, 2)),
        ((40, 36, 30), (17, 14, 12), None, 4, (1, 1, 1)),
        ((24, 20, 9), (16, 18, 12), (10, 11, 6), (3, 4, 2), (0.8, 1, 3)),
    ],
)
def test_equals_a_slow_reference(shape, patch, label_size, points, spacing, seed):
    """Everything at once, as drawn, inside the scan and beyond it; two channels, labels of whole numbers."""
    dims, case = len(shape), make_case(shape, seed)
    case["image"] = torch.cat([case["image"], make_case(shape, seed + 10)["image"]])
    case["label"] = case["label"].to([torch.uint8, torch.int32, torch.int64, torch.float64][seed])
    transform = make_transform(
        patch,
        seed,
        label_size=label_size,
        elastic_points=points,
        rotate_range=0.6,
        flip_axes=range(dims),
        **EVERYTHING,
    )
    parameters = transform.randomize(case["label"], shape, np.array(spacing))
    compare(case, parameters, transform, spacing)


# Beyond the scan, and weights


@pytest.mark.parametrize(("shape", "patch"), [((9, 7), (5, 5)), ((4, 9), (9, 30)), ((6, 5, 4), (9, 3, 11))])
@pytest.mark.parametrize("moved", [False, True])
def test_mirrored_image_is_the_image_of_a_mirrored_scan(shape, patch, moved):
    """As if numpy had mirrored the scan beforehand; the label knows all the same where the scan ends."""
    margin = 40
    case = make_case(shape)
    mirrored = np.pad(case["image"].numpy(), [(0, 0), *[(margin, margin)] * len(shape)], mode="reflect")
    centre, spacing = (np.array(shape) - 1) / 2 + 2, np.ones(len(shape))
    displacements = np.random.default_rng(0).normal(0, 1, (len(shape), *[3] * len(shape))) if moved else None
    centre = centre + (0.3 if moved else (np.array(patch) - np.array(shape)) % 2 / 2)
    parameters = SpatialParameters(centre, np.eye(len(shape)), displacements)
    beyond = SpatialParameters(centre + margin, np.eye(len(shape)), displacements)
    arguments = {"elastic_prob": 1, "elastic_std": 1} if moved else {}
    taken = make_transform(patch, outside="mirror", **arguments).apply(case, parameters, spacing)
    plain = make_transform(patch, **arguments).apply(case, parameters, spacing)
    whole = {"image": torch.from_numpy(mirrored), "label": torch.from_numpy(mirrored)}
    expected = make_transform(patch, **arguments).apply(whole, beyond, spacing)
    np.testing.assert_allclose(taken["image"], expected["image"], atol=POSITION_TOLERANCE)
    assert (plain["image"] - taken["image"]).abs().max() > 0.1  # which shows zeros
    np.testing.assert_array_equal(taken["label"], plain["label"])
    assert (taken["label"] == IGNORE_LABEL).any()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 7), st.integers(0, 30), st.integers(0, 30))
def test_fold_is_numpys_reflection(length, before, after):
    expected = np.pad(np.arange(length), (before, after), mode="reflect")
    np.testing.assert_array_equal(fold(torch.arange(-before, length + after), length), expected)


@pytest.mark.parametrize("elastic_prob", [0, 1])
def test_weights_move_with_the_image_and_are_as_large_as_the_label(elastic_prob):
    """Interpolated as the image is; zero beyond the scan, also where the image is mirrored."""
    case = make_case((12, 10))
    case["weight"] = case["image"] + 1
    transform = RandSpatialPatchd(
        ["image", "label", "weight"],
        ["bilinear", "nearest", "weight"],
        (40, 40),
        label_size=(36, 28),
        elastic_prob=elastic_prob,
        elastic_std=1.0,
        outside="mirror",
    ).set_random_state(3)
    out = transform(case)
    assert out["weight"].shape == out["label"].shape == (1, 36, 28)
    image, weight = out["image"][0, 2:38, 6:34], out["weight"][0]
    inside = ndimage.binary_erosion(out["label"][0] != IGNORE_LABEL, np.ones((3, 3)))
    outside = ndimage.binary_erosion(out["label"][0] == IGNORE_LABEL, np.ones((3, 3)))
    assert inside.any()
    assert outside.any()
    np.testing.assert_allclose(weight[inside], image[inside] + 1, atol=POSITION_TOLERANCE)
    assert (weight[outside] == 0).all()


@pytest.mark.parametrize(("shape", "patch"), [((90, 80), (20, 15)), ((40, 30, 36), (8, 10, 9))])
def test_field_that_overshoots_its_control_points_finds_its_source(shape, patch):
    """The weights of the voxel where a spline leaves its points the furthest, as signs of the vectors."""
    dims = len(shape)
    transform = make_transform(patch, elastic_points=5)
    signs = np.ones([1] * dims)
    for axis, weights in enumerate(transform.weights):
        worst = weights[np.abs(weights).sum(1).argmax()]
        signs = signs * np.sign(worst).reshape([-1 if a == axis else 1 for a in range(dims)])
    displacements = np.stack([signs * 5.0] * dims)
    assert np.abs(reference_field(displacements, patch)).max() > 6
    centre = np.array(shape) / 2 + 0.3
    for sign in (1, -1):
        compare(
            make_case(shape),
            SpatialParameters(centre, np.eye(dims), displacements * sign),
            transform,
            [1] * dims,
        )


@pytest.mark.parametrize("elastic_prob", [0, 1])
def test_takes_no_more_of_the_scan_than_the_patch_needs(elastic_prob):
    """The scan is one voxel repeated 8e12 times: nothing of its size can be made."""
    case = {
        "image": torch.full((1, 1, 1, 1), 3, dtype=torch.uint8).expand(1, *[20000] * 3),
        "label": torch.full((1, 1, 1, 1), 2.0).expand(1, *[20000] * 3),
    }
    out = make_transform((6, 7, 8), elastic_prob=elastic_prob, elastic_std=2.0)(case)
    torch.testing.assert_close(out["image"], torch.full((1, 6, 7, 8), 3.0))
    assert torch.equal(out["label"], torch.full((1, 6, 7, 8), 2.0))


@pytest.mark.parametrize(("shape", "sigma"), [((48, 48), 3), ((40, 36, 32), 5)])
def test_image_and_label_move_together(shape, sigma):
    noise = np.random.default_rng(4).random(shape)
    smooth = ndimage.gaussian_filter(noise, sigma)
    image = torch.from_numpy(smooth / smooth.max()).float()[None]
    level = float(image.median())
    transform = make_transform(
        shape, affine_prob=1, rotate_range=0.5, scale_range=(0.8, 1.2), elastic_prob=1, elastic_std=2.0
    )
    out = transform({"image": image, "label": (image > level).float()})
    label = out["label"][0].numpy()
    annotated = label != IGNORE_LABEL
    thresholded = out["image"][0].numpy() > level
    differ = annotated & (thresholded != (label == 1))
    foreground = label == 1
    # three voxels on either side of the border, and what touches the outside
    edge = ndimage.maximum_filter(foreground, 7) & ~ndimage.minimum_filter(foreground, 7)
    edge |= ndimage.maximum_filter(~annotated, 3)
    assert (~edge).mean() > 0.1
    assert not (differ & ~edge).any()
    assert differ.sum() < 0.05 * annotated.sum()
    still = np.mean((image[0].numpy() > level) != (label == 1))
    assert still > 0.1  # the patch did move: the label no longer fits the image where it was


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([(12, 15), (7, 8, 9)]))
def test_labels_stay_declared_and_intensities_in_range(seed, patch):
    case = make_case(tuple(n - 2 for n in patch), seed, classes=3)
    out = make_transform(
        patch, seed, affine_prob=1, rotate_range=3, scale_range=(0.5, 2), elastic_prob=1, elastic_std=3.0
    )(case)
    assert set(out["label"].unique().tolist()) <= {0, 1, 2, IGNORE_LABEL}
    assert out["image"].min() >= -POSITION_TOLERANCE
    assert out["image"].max() <= 1 + POSITION_TOLERANCE


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-9, 9), min_size=2, max_size=2))
def test_ignored_are_exactly_the_voxels_outside(shift):
    """A label without background: what lies outside must not teach any."""
    shape = (8, 8)
    case = {"image": torch.ones(1, *shape), "label": torch.ones(1, *shape)}
    centre = np.array([3.5, 3.5]) + shift
    out = make_transform(shape).apply(case, SpatialParameters(centre, np.eye(2)), np.ones(2))
    outside, tie = np.zeros(shape, bool), np.zeros(shape, bool)
    for index in np.ndindex(shape):
        position = np.array(index) + shift
        outside[index] = ((position < -0.5) | (position > 7.5)).any()
        tie[index] = (np.abs(np.abs(position - 3.5) - 4) < TIE).any()
    found = out["label"][0].numpy()
    assert set(np.unique(found)) <= {1, IGNORE_LABEL}
    np.testing.assert_array_equal((found == IGNORE_LABEL)[~tie], outside[~tie])
    far = np.array(
        [[(np.abs(np.array([i, j]) + shift - 3.5) > 4.6).any() for j in range(8)] for i in range(8)]
    )
    assert not out["image"][0].numpy()[far].any()


def test_resample_interpolates_by_hand():
    volume = torch.tensor([[[0.0, 10.0], [20.0, 30.0]]])
    # -1 to 1 are the outer faces of two voxels: voxel x lies at x - 0.5; the last axis comes first
    points = torch.tensor([[[0.25, 0.5], [1.0, -0.25], [-0.5, 0.0]]])  # (1, point, axis)
    # 0.75 * 5 + 0.25 * 25; three quarters of 20; half of 0
    bilinear = resample(volume, points.flip(-1) - 0.5, "bilinear")
    torch.testing.assert_close(bilinear, torch.tensor([[[10.0, 15.0, 0.0]]]))
    far = torch.tensor([[[0.0, 1.4], [-0.6, 0.0]]])
    nearest = resample(volume, far.flip(-1) - 0.5, "nearest", 7.0)
    torch.testing.assert_close(nearest, torch.tensor([[[10.0, 7.0]]]))


# What is drawn


def test_same_seed_same_patch():
    case = make_case((16, 16))
    arguments = {"affine_prob": 0.5, "rotate_range": 1.0, "elastic_prob": 0.5, "elastic_std": 2.0}
    first, again, other = (make_transform((8, 8), seed, **arguments)(case)["image"] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("counted", [False, True])
@pytest.mark.parametrize("layout", ["whole", "transposed"])
def test_draws_in_a_fixed_order(layout, counted):
    """A seed means the same patches for ever: written out with NumPy's generator alone."""
    shape, patch, spacing = (14, 12, 10), (6, 7, 5), np.array([1.0, 2.0, 0.5])
    label = make_case(shape)["label"]
    label[label == 3] = IGNORE_LABEL
    if layout == "transposed":
        label = label.mT.contiguous().mT
    arguments = {
        "affine_prob": 0.7,
        "rotate_range": (0.1, 0.2, 0.3),
        "scale_range": (0.5, 3),
        "translate_range": 4.0,
        "flip_axes": (0, 2),
        "elastic_prob": 0.6,
        "elastic_std": 0.05,
        "foreground_prob": 0.5,
    }
    transform, state = make_transform(patch, 5, **arguments), np.random.RandomState(5)
    counts = CountClassesd("label")({"label": label})["label_counts"] if counted else None
    for _ in range(40):
        start = [state.randint(n - p + 1) for n, p in zip(shape, patch, strict=True)]
        if state.random_sample() < 0.5:
            voxels = np.argwhere(label[0].numpy() == [1, 2][state.randint(2)])
            wanted = voxels[state.randint(len(voxels))] - np.array(patch) // 2
            start = [min(max(w, 0), n - p) for w, n, p in zip(wanted, shape, patch, strict=True)]
        elif counted:  # around what somebody annotated
            known = [np.argwhere(label[0].numpy() == index) for index in range(3)]
            chosen = state.randint(sum(map(len, known)))
            voxels = known[np.searchsorted(np.cumsum([*map(len, known)]), chosen, side="right")]
            wanted = voxels[state.randint(len(voxels))] - np.array(patch) // 2
            start = [min(max(w, 0), n - p) for w, n, p in zip(wanted, shape, patch, strict=True)]
        centre, matrix, displacements = start + (np.array(patch) - 1) / 2, np.eye(3), None
        if state.random_sample() < 0.7:
            angles = [state.uniform(-limit, limit) for limit in (0.1, 0.2, 0.3)]
            matrix = transform._rotation(angles) / np.exp(state.uniform(np.log(0.5), np.log(3)))
            centre = centre + state.uniform(-4, 4, 3) / spacing
        matrix = matrix @ np.diag(
            [-1 if axis != 1 and state.random_sample() < 0.5 else 1 for axis in range(3)]
        )
        if state.random_sample() < 0.6:
            displacements = state.normal(0, 0.05, (3, 3, 3, 3))
        drawn = transform.randomize(label, shape, spacing, counts)
        np.testing.assert_allclose(drawn.centre, centre)
        np.testing.assert_allclose(drawn.matrix, matrix)
        assert (drawn.displacements is None) == (displacements is None)
        if displacements is not None:
            np.testing.assert_array_equal(drawn.displacements, displacements)


@pytest.mark.parametrize("foreground_prob", [0.0, 0.5])
def test_patches_hold_something_annotated(foreground_prob: float) -> None:
    """Ten voxels of 1600 are, and each patch has one of them."""
    case = make_case((40, 40), classes=1)
    case["label"][:] = IGNORE_LABEL
    case["label"][0, 3, 2:12] = 0
    case["label"][0, 3, 2] = 2
    transform = make_transform((8, 8), foreground_prob=foreground_prob)
    counted = CountClassesd("label")(case)
    labels = [transform(counted)["label"] for _ in range(60)]
    assert all((label != IGNORE_LABEL).any() for label in labels)
    shown = sum(bool((label == 2).any()) for label in labels) / 60
    assert (0.2 < shown < 0.7) if foreground_prob == 0 else shown > 0.5
    uncounted = [transform(case)["label"] for _ in range(60)]
    assert foreground_prob or not all((label != IGNORE_LABEL).any() for label in uncounted)


@pytest.mark.parametrize(
    ("shape", "patch", "label_size"),
    [
        ((20, 20), (6, 7), None),
        ((20, 20), (16, 16), (4, 4)),
        ((9, 30), (12, 8), (12, 4)),
        ((8, 8, 8), (9,) * 3, (3,) * 3),
    ],
)
def test_foreground_is_always_in_the_labels_patch(shape, patch, label_size):
    for voxel in [(0,) * len(shape), tuple(n - 1 for n in shape), tuple(n // 2 for n in shape)]:
        case = make_case(shape, classes=1)
        case["label"][(0, *voxel)] = 3
        transform = make_transform(patch, label_size=label_size, foreground_prob=1)
        for _ in range(5):
            assert (transform(case)["label"] == 3).any()


def test_foreground_voxel_is_the_centre_where_the_case_allows():
    case = make_case((20, 20), classes=1)
    case["label"][0, 9, 12] = 1
    out = make_transform((5, 6), foreground_prob=1)(case)
    assert torch.nonzero(out["label"][0] == 1).tolist() == [[2, 3]]


def test_classes_are_drawn_equally_whatever_their_size():
    label = torch.zeros(1, 40, 40)
    label[0, :20] = 1
    label[0, 30, 30] = 2
    label[0, 35:] = IGNORE_LABEL
    transform, times = make_transform((1, 1), foreground_prob=1), 1000
    drawn = [
        int(label[(0, *label_start(transform, p).astype(int))])
        for p in draw(transform, (40, 40), times, label=label)
    ]
    assert set(drawn) == {1, 2}
    assert abs(drawn.count(2) - times / 2) < STANDARD_ERRORS * np.sqrt(times / 4)


def test_foreground_prob_is_the_share_of_centred_patches():
    label = torch.zeros(1, 1000, 1)
    label[0, 500] = 1
    transform, times = make_transform((1, 1), foreground_prob=0.3), 1000
    hits = sum(label_start(transform, p)[0] == 500 for p in draw(transform, (1000, 1), times, label=label))
    assert abs(hits - 0.3 * times) < STANDARD_ERRORS * np.sqrt(times * 0.3 * 0.7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8, torch.int64, torch.bool])
@pytest.mark.parametrize("shape", [(9, 12), (5, 6, 7)])
def test_counts_are_numpys(shape, dtype):
    label = (make_case(shape)["label"] % (2 if dtype == torch.bool else 4)).to(dtype)
    label[0, 3] = 0
    counts = class_counts(label)
    values = label[0].numpy().astype(int)
    assert list(counts) == np.unique(values).tolist()
    for index, found in counts.items():
        assert found.tolist() == [int((part == index).sum()) for part in values]


def test_counts_are_taken_out_of_the_case_whether_they_are_needed_or_not():
    case = CountClassesd("label")(make_case((9, 9)))
    assert set(case) == {"image", "label", "label_counts"}
    for prob in (0, 1):
        assert set(make_transform((4, 4), foreground_prob=prob)(case)) == {"image", "label"}


@pytest.mark.parametrize("change", [lambda label: label[:, 1:], lambda label: label * 0])
def test_label_changed_after_it_was_counted_is_refused(change):
    case = make_case((6, 6), classes=2)
    case["label"][0, 0] = 1
    counted = CountClassesd("label")(case)
    counted["label"] = change(counted["label"])
    with pytest.raises(
        InputError, match=r"^label is not the label that was counted: name CountClassesd right"
    ):
        make_transform((4, 4), foreground_prob=1)({**counted, "image": counted["image"][:, :6]})


def test_class_that_is_no_whole_number_is_refused():
    with pytest.raises(InputError, match=r"^label holds the value 0\.5: give whole numbers"):
        CountClassesd("label")({"label": torch.tensor([[[0.0, 0.5]]])})


def test_case_without_foreground_gives_a_patch():
    case = make_case((9, 9), classes=1)
    case["label"][0, 0] = IGNORE_LABEL
    assert make_transform((4, 4), foreground_prob=1)(case)["label"].shape == (1, 4, 4)


@pytest.mark.parametrize(("patch", "label_size"), [((12, 10), (4, 6)), ((8, 8, 10), (4, 2, 10))])
def test_label_is_the_centre_of_the_patch(patch, label_size):
    case = make_case(tuple(n + 3 for n in patch))
    case["image"] = case["label"] / 4
    arguments = {"affine_prob": 1, "scale_range": (0.7, 1.3), "elastic_prob": 1, "elastic_std": 1.0}
    parameters = draw(make_transform(patch, **arguments), case["image"].shape[1:], 1)[0]
    whole = make_transform(patch).apply(case, parameters, np.ones(len(patch)))
    centre = make_transform(patch, label_size=label_size).apply(case, parameters, np.ones(len(patch)))
    torch.testing.assert_close(centre["label"], CenterSpatialCrop(label_size)(whole["label"]))
    torch.testing.assert_close(centre["image"], whole["image"])


def test_every_voxel_is_taught_to_a_network_that_predicts_less_than_it_sees():
    transform = make_transform((12, 12), label_size=(4, 4))
    taught = np.zeros((13, 13), bool)
    for parameters in draw(transform, (13, 13), 800):
        first = label_start(transform, parameters).astype(int)
        assert (first >= 0).all()
        taught[first[0] : first[0] + 4, first[1] : first[1] + 4] = True
    assert taught.all()


@pytest.mark.parametrize("size", [1.0, 0.01, 4e-5])
def test_edges_give_one_patch_whatever_the_size_of_a_voxel(size):
    """In millimetres 3 of them are beyond a volume of micro-CT; what counts is the shape, 1 x 1 x 2.5."""
    case = make_case((16, 16, 12))
    shape = np.array([1, 1, 2.5])

    def patch(scale, units):
        affine = torch.diag(torch.tensor([*shape * scale, 1.0], dtype=torch.float64))
        spaced = {key: MetaTensor(value, affine=affine) for key, value in case.items()}
        return make_transform((9, 9, 5), **{**EVERYTHING, "units": units})(spaced)

    expected, found = patch(1.0, "mm"), patch(size, "edge")
    if size == 1:
        assert all(torch.equal(found[key], expected[key]) for key in case)
    torch.testing.assert_close(found["image"], expected["image"], atol=1e-4, rtol=0)
    assert (found["label"] != expected["label"]).float().mean() < 0.01


@pytest.mark.parametrize("spacing", [(1, 1, 1), (0.5, 1, 3)])
def test_displacements_have_the_asked_for_deviation_in_their_unit(spacing):
    """Measured where the control points lie, on a grid of as many voxels, from the voxels they come from."""
    transform = make_transform((4, 4, 4), elastic_prob=1, elastic_points=4, elastic_std=0.05, units="mm")
    rest = torch.stack(torch.meshgrid(*[torch.arange(4.0)] * 3, indexing="ij"))
    moved = torch.stack(
        [source_coordinates((4,) * 3, p, spacing) - rest for p in draw(transform, (4,) * 3, 60, spacing)]
    )
    for axis, size in enumerate(spacing):
        values = moved[:, axis] * size  # mm
        assert abs(values.std() - 0.05) < STANDARD_ERRORS * 0.05 / np.sqrt(2 * values.numel())
        assert abs(values.mean()) < STANDARD_ERRORS * 0.05 / np.sqrt(values.numel())


def test_affine_stays_in_its_ranges():
    transform = make_transform(
        (5, 5, 5), affine_prob=1, rotate_range=(0.1, 0.0, 0.0), scale_range=(0.5, 2), translate_range=3.0
    )
    scales, angles, shifts = [], [], []
    for parameters in draw(transform, (5, 5, 5), 400, spacing=(1, 1, 3)):
        scale = np.linalg.det(parameters.matrix) ** (-1 / 3)
        turn = parameters.matrix * scale
        np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-9)
        np.testing.assert_allclose(turn[0], [1, 0, 0], atol=1e-9)
        scales.append(scale)
        angles.append(np.arctan2(turn[2, 1], turn[1, 1]))
        shifts.append(parameters.centre - 2)
    assert 0.5 <= min(scales) < 0.55
    assert 1.8 < max(scales) <= 2
    assert abs(np.mean(np.log(scales))) < STANDARD_ERRORS * np.log(4) / np.sqrt(12 * 400)
    assert 0.09 < max(np.abs(angles)) <= 0.1
    np.testing.assert_allclose(np.abs(shifts).max(0), [3, 3, 1], rtol=0.05)
    assert (np.abs(shifts) <= [3, 3, 1]).all()


def test_affine_prob_is_the_share_of_moved_patches():
    transform, times = make_transform((5, 5), affine_prob=0.25, rotate_range=1.0), 1000
    moved = sum(not np.array_equal(p.matrix, np.eye(2)) for p in draw(transform, (5, 5), times))
    assert abs(moved - times / 4) < STANDARD_ERRORS * np.sqrt(times * 0.25 * 0.75)


@pytest.mark.parametrize(("shape", "axes"), [((6, 7), (0,)), ((6, 7), (0, 1)), ((4, 5, 6), (2,))])
def test_flips_equal_numpys_and_come_in_half_of_the_patches(shape, axes):
    case = make_case(shape)
    transform, times = make_transform(shape, flip_axes=axes), 200
    flipped = dict.fromkeys(axes, 0)
    for _ in range(times):
        out = transform(case)["label"][0].numpy()
        subsets = [
            tuple(a for a, on in zip(axes, on, strict=True) if on) for on in product((0, 1), repeat=len(axes))
        ]
        found = [s for s in subsets if np.array_equal(out, np.flip(case["label"][0].numpy(), s))]
        assert len(found) == 1
        for axis in found[0]:
            flipped[axis] += 1
    for count in flipped.values():
        assert abs(count - times / 2) < STANDARD_ERRORS * np.sqrt(times / 4)


def test_mm_reads_the_voxel_size_and_pixels_do_not():
    case = make_case((16, 16))
    spaced = {
        key: MetaTensor(value, affine=torch.diag(torch.tensor([2.0, 2, 1]))) for key, value in case.items()
    }
    arguments = {"affine_prob": 1, "rotate_range": 0.3, "elastic_prob": 1}
    pixel = {**arguments, "translate_range": 2.0, "elastic_std": 1.5}
    double = {**arguments, "translate_range": 4.0, "elastic_std": 3.0}
    expected = make_transform((9, 9), **pixel)(case)["image"]
    assert torch.equal(make_transform((9, 9), **pixel)(spaced)["image"], expected)
    in_mm = make_transform((9, 9), units="mm", **double)(spaced)["image"]
    torch.testing.assert_close(in_mm, expected, atol=1e-4, rtol=0)
    assert not torch.allclose(
        make_transform((9, 9), units="mm", **pixel)(spaced)["image"], expected, atol=1e-2
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"patch_size": (4,)}, r"patch_size is \[4\]: give 2 or 3"),
        ({"patch_size": (4, 0)}, r"patch_size is \[4, 0\]: give 2 or 3 numbers of 1 or more"),
        ({"modes": ["bilinear", "bicubic"]}, r"modes is .*bicubic.*give 'bilinear', 'nearest' or 'weight'"),
        ({"outside": "reflect"}, "outside is 'reflect': give 'zeros' or 'mirror'"),
        ({"modes": ["bilinear"]}, "modes is .*for each of the keys"),
        ({"units": "cm"}, "units is 'cm': give 'pixel', 'edge' or 'mm'"),
        ({"scale_range": (0, 1)}, "scale_range is .*above 0"),
        ({"scale_range": (2, 1)}, "scale_range is .*smallest and largest"),
        ({"foreground_prob": 1.5}, "foreground_prob is 1.5: give a share"),
        ({"affine_prob": -0.1}, "affine_prob is -0.1: give a share"),
        ({"elastic_prob": 2}, "elastic_prob is 2: give a share"),
        ({"elastic_points": 1}, "elastic_points is 1: give 2 or more"),
        ({"elastic_spacing": 0}, "elastic_spacing is 0: give voxels above 0"),
        (
            {"elastic_points": 3, "elastic_spacing": 32},
            "elastic_points is 3 and elastic_spacing 32: give one of them, and None",
        ),
        ({"label_size": (9, 8)}, r"label_size is \[9, 8\]: give sizes from 1 to patch_size \[8, 8\]"),
        ({"label_size": (8,)}, r"label_size is \[8\]: give sizes"),
        ({"flip_axes": (2,)}, r"flip_axes is \[2\]: give axes from 0 to 1"),
    ],
)
def test_arguments_that_break_a_rule_are_named(arguments, message):
    valid = {"keys": ["image", "label"], "modes": ["bilinear", "nearest"], "patch_size": (8, 8)}
    with pytest.raises(InputError, match=message):
        RandSpatialPatchd(**{**valid, **arguments})


def test_case_with_another_number_of_axes_is_refused():
    with pytest.raises(InputError, match=r"image has the shape \(1, 5, 5, 5\): patch_size \[4, 4\]"):
        make_transform((4, 4))(make_case((5, 5, 5)))


def test_keys_of_two_grids_are_refused():
    case = {**make_case((5, 5)), "label": make_case((5, 6))["label"]}
    with pytest.raises(InputError, match=r"label has \(5, 6\) voxels where image has \(5, 5\): resample"):
        make_transform((4, 4))(case)
