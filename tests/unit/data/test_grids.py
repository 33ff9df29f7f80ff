"""Files that cover the same voxels in another order are turned, voxel by voxel; any others are refused."""

from __future__ import annotations

from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from monai.transforms import Compose, EnsureChannelFirstd, LoadImage, LoadImaged, Orientationd
from scipy.spatial.transform import Rotation

from scripts.data import LoadLabeld
from scripts.data.checks import inspect_cases
from scripts.data.grids import Grid, turn_onto, turned
from scripts.errors import Fault
from scripts.judging.files import Pair, read_values

SHAPE = (4, 5, 6)
LABELS = {"background": 0, "organ": 1}
OBLIQUE = np.eye(4)
OBLIQUE[:3, :3] = Rotation.from_rotvec((0.2, -0.3, 0.4)).as_matrix() @ np.diag([0.7, 0.8, 3.0])
OBLIQUE[:3, 3] = 5, -7, 11


def stored(
    values: np.ndarray, affine: np.ndarray, axes: tuple, signs: tuple
) -> tuple[np.ndarray, np.ndarray]:
    """The same voxels in another order: axis n of the file runs along axis axes[n], forwards or back."""
    other = values.transpose(axes)[tuple(slice(None, None, sign) for sign in signs)]
    step = np.eye(4)
    step[:3, :3] = 0
    for axis, (source, sign) in enumerate(zip(axes, signs, strict=True)):
        step[source, axis] = sign
        step[source, 3] = 0 if sign > 0 else values.shape[source] - 1
    return other, affine @ step


def nifti(path: Path, values: np.ndarray, affine: np.ndarray) -> str:
    nib.save(nib.Nifti1Image(values, affine), path)
    return str(path)


@pytest.mark.parametrize("affine", [np.eye(4), OBLIQUE, np.diag([4e-5, 4e-5, 1e-4, 1])])
def test_all_48_ways_to_store_a_volume_are_turned(affine: np.ndarray) -> None:
    values = np.random.default_rng(0).integers(0, 9, SHAPE)
    for axes, signs in product(permutations(range(3)), product((1, -1), repeat=3)):
        other, there = stored(values, affine, axes, signs)
        turn = turn_onto(Grid(other.shape, there), Grid(SHAPE, affine), "image")
        assert np.array_equal(turned(other, turn), values)
        there[0, 3] += 0.2 * np.linalg.norm(affine[:3, 0])
        with pytest.raises(Fault, match="a grid that lies up to"):
            turn_onto(Grid(other.shape, there), Grid(SHAPE, affine), "image")


def test_a_plane_is_turned_in_its_plane() -> None:
    values = np.arange(20).reshape(4, 5)
    affine = np.diag([-0.5, 2.0, 1.0, 1.0])
    affine[0, 3] = 1.5
    turn = turn_onto(Grid((4, 5), affine), Grid((4, 5), np.diag([0.5, 2.0, -1.0, 1.0])), "image")
    assert np.array_equal(turned(values, turn), values[::-1])


def test_a_label_from_right_to_left_is_checked_loaded_and_judged_where_it_lies(tmp_path: Path) -> None:
    """The bright block of the image is that of the label, from the files to the training and the score."""
    block = np.zeros(SHAPE, np.uint8)
    block[0, 1:3, 4] = 1
    values, affine = stored(block, OBLIQUE, (1, 0, 2), (-1, -1, 1))
    image = nifti(tmp_path / "image.nii.gz", 100.0 * block, OBLIQUE)
    label = nifti(tmp_path / "label.nii.gz", values, affine)
    case = {"case": "c", "image": image, "label": label}
    [(problems, facts)] = inspect_cases([case], spatial_dims=3, in_channels=1, labels=LABELS)
    assert problems == []
    assert facts is not None
    assert facts.voxels == {0: 118, 1: 2}
    load = [LoadImaged("image", reader="scripts.data.ImageReader"), EnsureChannelFirstd("image")]
    for geometry in ([], [Orientationd(["image", "label"], axcodes="RAS", labels=None)]):
        loaded = Compose([*load, LoadLabeld("label", LABELS), *geometry])(case)
        assert np.array_equal(loaded["label"], loaded["image"] > 0)
        assert np.allclose(loaded["label"].affine, loaded["image"].affine)
    straight = nifti(tmp_path / "straight.nii.gz", block, OBLIQUE)
    for pred, truth in ((label, straight), (straight, label)):
        judged = read_values(Pair("c", Path(pred), Path(truth)))
        assert np.array_equal(judged.pred, judged.truth)
        assert judged.pred.sum() == 2


def test_channels_that_are_stored_otherwise_are_turned(tmp_path: Path) -> None:
    values = np.arange(120, dtype=np.float32).reshape(SHAPE)
    other, affine = stored(values, OBLIQUE, (2, 0, 1), (1, -1, 1))
    files = [nifti(tmp_path / "a.nii", values, OBLIQUE), nifti(tmp_path / "b.nii", other, affine)]
    image = LoadImage("scripts.data.ImageReader")(files)
    assert np.array_equal(image[0], image[1])
    assert np.array_equal(image[0], values)
