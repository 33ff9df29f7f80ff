"""Affines that say where voxels lie, and those that do not."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from scripts.affines import require_sound
from scripts.errors import Fault
from tests.commands import invoke


@pytest.mark.parametrize("size", [1e-8, 1.0, 1e3])
def test_axes_in_a_plane_are_refused_whatever_the_size_of_a_voxel(size: float) -> None:
    require_sound(np.diag([size, size, size, 1.0]))
    flat = np.eye(4)
    flat[:3, 2] = flat[:3, 0] + flat[:3, 1]
    for wrong in (np.diag([size, size, 0, 1.0]), flat * size, np.full((4, 4), np.nan), np.eye(3)):
        with pytest.raises(Fault, match="an affine that is not invertible"):
            require_sound(wrong)


@pytest.mark.parametrize("size", [1e-10, 2e4])
def test_sizes_that_are_none_are_refused(size: float) -> None:
    with pytest.raises(Fault, match="an edge has 1e-09 to 10000 mm"):
        require_sound(np.diag([1, size, 1, 1.0]))


@pytest.mark.parametrize(("axis", "sign"), [(0, 1), (1, -1), (2, 1)])
def test_an_origin_that_swallows_the_voxels_is_refused(axis: int, sign: int) -> None:
    """Beyond 2^53 edges a voxel and its neighbour have one place in double precision."""
    near, far = np.eye(4), np.eye(4)
    near[axis, 3], far[axis, 3] = sign * 1e8, sign * 1e30
    require_sound(near)
    assert far[axis, 3] + 1 == far[axis, 3]
    with pytest.raises(Fault, match=r"a first voxel that lies 1e\+30 mm away from the origin"):
        require_sound(far)


def test_it_is_said_of_files(tmp_path):
    """Read on, such a volume had one voxel along the axis, and all of its voxels got one class."""
    affine = np.diag([-1.0, 1, 1, 1])
    affine[0, 3] = 1e30
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
        nib.save(nib.Nifti1Image(np.ones((4, 5, 6), np.uint8), affine), tmp_path / name / "a.nii.gz")
    folders = (
        "--images",
        tmp_path / "images",
        "--labels",
        tmp_path / "labels",
        "--output_dir",
        tmp_path / "o",
    )
    told = invoke("datalist", *folders)
    assert told.exit_code == 1
    assert "a first voxel that lies 1e+30 mm away from the origin" in told.output
