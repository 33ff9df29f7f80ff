"""Volumes that cannot be read box by box are refused before anything is computed."""

from __future__ import annotations

from importlib.util import find_spec

import nibabel as nib
import numpy as np
import pytest

from scripts.data.volumes import open_volume, read_volumes
from scripts.errors import Fault, InputError

needs_zarr = pytest.mark.skipif(not find_spec("zarr"), reason="zarr is not installed")


def write_nifti(path, values):
    nib.save(nib.Nifti1Image(values, np.diag([-1, 2, 3, 1])), path)


def box(*starts):
    return tuple(slice(start, start + 3) for start in starts)


@pytest.mark.parametrize("dtype", ["uint8", ">i2", "<f4", "float64"])
def test_box_of_a_file_is_nibabels(tmp_path, dtype):
    values = np.random.default_rng(0).integers(0, 200, (7, 8, 9, 2)).astype(dtype)
    write_nifti(tmp_path / "a.nii", values)
    volume = open_volume(tmp_path / "a.nii", 2)
    assert volume.shape == (7, 8, 9)
    np.testing.assert_array_equal(volume.affine, np.diag([-1, 2, 3, 1]))
    for channel, read in enumerate(volume.read):
        np.testing.assert_array_equal(read(box(4, 0, 5)), values[(*box(4, 0, 5), channel)])


def test_box_of_a_single_channel(tmp_path):
    values = np.arange(7 * 8 * 9, dtype=np.int16).reshape(7, 8, 9)
    write_nifti(tmp_path / "a.nii", values)
    (read,) = open_volume(tmp_path / "a.nii", 1).read
    np.testing.assert_array_equal(read(box(1, 5, 6)), values[box(1, 5, 6)])


@needs_zarr
def test_box_of_an_array_is_zarrs(tmp_path):
    import zarr

    array = zarr.create_array(tmp_path / "a.zarr", shape=(7, 8, 9, 2), chunks=(4, 4, 4, 1), dtype="int16")
    array[:] = values = np.arange(7 * 8 * 9 * 2, dtype=np.int16).reshape(7, 8, 9, 2)
    array.attrs["spacing"] = [1, 2, 3]
    for channel, read in enumerate(open_volume(tmp_path / "a.zarr", 2).read):
        np.testing.assert_array_equal(read(box(4, 0, 5)), values[(*box(4, 0, 5), channel)])


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("a.nii", lambda path: write_nifti(path, np.zeros((4, 5, 6, 2))), r"shape \(4, 5, 6, 2\)"),
        ("a.nii", lambda path: write_nifti(path, np.zeros((4, 5, 6), complex)), "voxels of type complex"),
        ("a.nii", lambda path: path.write_bytes(b"no header"), "a broken volume"),
        ("a.png", lambda path: path.write_bytes(b""), "another kind of file"),
    ],
)
def test_volume_that_cannot_be_segmented_is_refused(tmp_path, name, write, message):
    write(tmp_path / name)
    with pytest.raises(Fault, match=f"{name}: found {message}"):
        open_volume(tmp_path / name, 1)
    with pytest.raises(InputError, match=message):
        read_volumes(tmp_path, in_channels=1)


@needs_zarr
def test_zarr_array_must_say_how_large_its_voxels_are(tmp_path):
    import zarr

    array = zarr.create_array(tmp_path / "a.zarr", shape=(4, 5, 6, 2), dtype="int16")
    with pytest.raises(Fault, match="neither 'affine' nor 'spacing' among the attributes"):
        open_volume(tmp_path / "a.zarr", 2)
    array.attrs["spacing"] = [1, 2, 3]
    np.testing.assert_array_equal(open_volume(tmp_path / "a.zarr", 2).affine, np.diag([1, 2, 3, 1]))


def test_folder_without_volumes_is_refused(tmp_path):
    with pytest.raises(InputError, match="holds no volumes"):
        read_volumes(tmp_path, in_channels=1)
    with pytest.raises(InputError, match="is no folder"):
        read_volumes(tmp_path / "missing", in_channels=1)


def test_ids_of_volumes(tmp_path):
    """The rule of folders of images: `_0000` goes where every name has it, and no other dot or end."""
    for name in ("1.2.840.1_0000", "1.2.840.2_0000"):
        write_nifti(tmp_path / f"{name}.nii", np.zeros((4, 5, 6), np.uint8))
    found = read_volumes(tmp_path, in_channels=1).cases
    assert [case["case"] for case in found] == ["1.2.840.1", "1.2.840.2"]
    write_nifti(tmp_path / "b.nii", np.zeros((4, 5, 6), np.uint8))
    found = read_volumes(tmp_path, in_channels=1).cases
    assert [case["case"] for case in found] == ["1.2.840.1_0000", "1.2.840.2_0000", "b"]
    (tmp_path / "b.zarr").mkdir()
    with pytest.raises(InputError, match=r"b\.nii, .*b\.zarr have the same case id"):
        read_volumes(tmp_path, in_channels=1)


def test_results_beside_their_volumes_are_no_volumes(tmp_path):
    for name in ("a", "a_seg", "b_seg"):
        write_nifti(tmp_path / f"{name}.nii", np.zeros((4, 5, 6), np.uint8))
    found = read_volumes(tmp_path, in_channels=1).cases
    assert [case["case"] for case in found] == ["a", "b_seg"]
