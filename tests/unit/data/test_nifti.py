"""What a NIfTI header says of the place of its voxels, and what a result takes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from scripts.data.checks import check_image
from scripts.data.nifti import read_nifti, read_nifti_header, write_result
from scripts.data.reader import read_spacing
from tests.unit.data.test_reader import patch

TURN = np.eye(4)
TURN[:3, :3] = Rotation.from_rotvec((0.2, -0.1, 0.3)).as_matrix() @ np.diag([0.5, 0.5, 2.0])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    nib.save(nib.Nifti1Image(np.zeros((4, 5, 6), np.uint8), np.eye(4)), tmp_path / "a.nii")
    return tmp_path / "a.nii"


def found(path: Path) -> list[tuple[str, str]]:
    problems = check_image({"case": "c", "image": str(path)}, spatial_dims=3, in_channels=1)
    return [(problem.severity, problem.sentence()) for problem in problems]


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("codes", [[1, 0], [0, 0]])
@pytest.mark.parametrize("size", [0, NAN, INF, -INF])
def test_sizes_that_are_none_are_refused_where_they_count(file: Path, codes: list, size: float) -> None:
    ((severity, sentence),) = found(patch(file, pixdim=[1, 1, 1, size], codes=codes))
    assert severity == "error"
    assert f"a.nii: found a voxel of 1 x 1 x {size:g} (pixdim)" in sentence
    assert "set_zooms" in sentence


@pytest.mark.parametrize("size", [0, NAN, INF, 1])
def test_they_do_not_matter_beside_an_sform(file: Path, size: float) -> None:
    path = patch(file, pixdim=[1, 1, 1, size], codes=[0, 1])
    assert found(path) == []
    assert read_spacing(path) == [1, 1, 1]
    assert read_nifti_header(path).raw["pixdim"][3] == 1


def test_a_negative_size_is_taken_without_its_sign_as_nibabel_and_fsl_do(file: Path) -> None:
    path = patch(file, pixdim=[1, 1, 1, -3], codes=[1, 0])
    assert found(path) == []
    assert read_spacing(path) == [1, 1, 3]


@pytest.mark.parametrize(("size", "sound"), [(1e-8, True), (1e-12, False), (5e3, True), (1e9, False)])
def test_absurd_sizes(file: Path, size: float, sound: bool) -> None:
    path = patch(file, pixdim=[1, size, size, size], codes=[1, 0])
    assert [severity for severity, _ in found(path)] == ([] if sound else ["error"])
    if not sound:
        assert f"found a voxel of {size:.4g} x {size:.4g} x {size:.4g} mm" in found(path)[0][1]


def test_two_forms_that_disagree_are_a_warning_that_says_how_far(file: Path) -> None:
    image: Any = nib.load(file)
    moved = np.eye(4)
    moved[:3, 3] = 2, -3, 6  # 7 mm
    image.set_qform(moved, 1)
    image.set_sform(np.eye(4), 1)
    nib.save(image, file)
    ((severity, sentence),) = found(file)
    assert severity == "warning"
    assert "a qform that lies up to 7 mm away from its sform; the sform counts here" in sentence
    assert np.array_equal(read_nifti_header(file).affine, np.eye(4))
    patch(file, codes=[1, 0])
    assert found(file) == []
    assert np.array_equal(read_nifti_header(file).affine, moved)
    moved[:3, 3] = 0, 0, 0.09  # less than a tenth of a voxel
    image.set_qform(moved, 1)
    nib.save(image, file)
    assert found(file) == []


@pytest.mark.parametrize(("unit", "name"), [(1, "metre"), (3, "micrometre"), (2, ""), (0, "")])
def test_units(file: Path, unit: int, name: str) -> None:
    said = found(patch(file, units=[unit + 16]))  # and milliseconds
    assert [severity for severity, _ in said] == (["warning"] if name else [])
    assert not name or f"lengths in {name} (xyzt_units); they count as mm" in said[0][1]
    assert read_spacing(file) == [1, 1, 1]


@pytest.mark.parametrize(
    ("stored", "axes", "channels", "written"),
    [
        ((4, 5, 6), 3, 0, (4, 5, 6)),
        ((4, 5, 6, 1), 3, 0, (4, 5, 6)),
        ((4, 5, 6), 3, 2, (4, 5, 6, 2)),
        ((4, 5), 2, 0, (4, 5)),
        ((4, 5, 1), 2, 0, (4, 5, 1)),
        ((4, 5), 2, 3, (4, 5, 1, 3)),
    ],
)
def test_a_result_has_the_axes_of_its_image(
    tmp_path: Path, stored: tuple, axes: int, channels: int, written: tuple
) -> None:
    nib.save(nib.Nifti1Image(np.zeros(stored, np.uint8), TURN), tmp_path / "a.nii.gz")
    header = read_nifti_header(tmp_path / "a.nii.gz")
    values = np.random.default_rng(0).random((*stored[:axes], *[channels] * bool(channels)))
    write_result(tmp_path / "b.nii.gz", values, axes, header.affine, header.form)
    read: Any = nib.load(tmp_path / "b.nii.gz")
    assert read.shape == written
    assert np.array_equal(np.asarray(read.dataobj).ravel(), values.ravel())
    assert np.allclose(read.affine, TURN, atol=1e-6)


@pytest.mark.parametrize(("shear", "code"), [(0.0, 1), (0.5, 0)])
def test_an_image_of_another_format_gives_both_forms_where_they_can_say_it(
    tmp_path: Path, shear: float, code: int
) -> None:
    affine = TURN.copy()
    affine[:3, 2] += shear * affine[:3, 1]
    write_result(tmp_path / "a.nii", np.zeros((4, 5, 6), np.uint8), 3, affine)
    header: Any = nib.load(tmp_path / "a.nii").header
    assert np.allclose(header.get_sform(), affine, atol=1e-6)
    assert (header["sform_code"], header["qform_code"]) == (1, code)
    assert header.get_xyzt_units()[0] == "mm"
    assert not code or np.allclose(header.get_qform(), affine, atol=1e-6)


@pytest.mark.parametrize("begin", [0, 348, -1, NAN, INF])
def test_voxels_that_begin_in_the_header_are_refused(file: Path, begin: float) -> None:
    """nibabel would read them from byte 0, niftilib from 348, and NIfTI-1 has none before 352."""
    ((severity, sentence),) = found(patch(file, vox_offset=[begin]))
    assert severity == "error"
    assert f"a.nii: found voxels that begin at byte {begin:g} (vox_offset)" in sentence


def test_voxels_may_begin_later(file: Path) -> None:
    raw = file.read_bytes()
    values = np.arange(120, dtype=np.uint8)
    file.write_bytes(raw[:352] + bytes(48) + values.tobytes())
    np.testing.assert_array_equal(
        read_nifti(patch(file, vox_offset=[400])).values, values.reshape((4, 5, 6), order="F")
    )
