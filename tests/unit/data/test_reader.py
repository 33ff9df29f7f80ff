"""One reader for all: what a file holds, and what MONAI's LoadImaged makes of it."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from monai.transforms import Compose, EnsureChannelFirstd, LoadImage, LoadImaged
from PIL import Image

from scripts.data.nifti import read_nifti
from scripts.data.reader import read_dims, read_file, read_spacing
from scripts.errors import Fault

AFFINE = np.array([[0.0, -2.0, 0, 5], [1.5, 0, 0, -7], [0, 0, 4.0, 11], [0, 0, 0, 1]])
WHERE = {
    "vox_offset": (108, "f"),
    "pixdim": (76, "f"),
    "codes": (252, "h"),
    "quatern": (256, "f"),
    "srow": (280, "f"),
    "units": (123, "B"),
}


def patch(path: Path, **fields: list) -> Path:
    """Change fields of an uncompressed NIfTI-1 header byte by byte."""
    raw = bytearray(path.read_bytes())
    for name, values in fields.items():
        start, letter = WHERE[name]
        struct.pack_into(f"<{len(values)}{letter}", raw, start, *values)
    path.write_bytes(bytes(raw))
    return path


def write(path: Path, shape: tuple[int, ...] = (4, 5, 6), affine: np.ndarray = AFFINE) -> Path:
    nib.save(nib.Nifti1Image(np.arange(np.prod(shape), dtype=np.int16).reshape(shape), affine), path)
    return path


def load(*paths: Path):
    image = [str(path) for path in paths] if len(paths) > 1 else str(paths[0])
    steps = [LoadImaged("image", reader="scripts.data.ImageReader"), EnsureChannelFirstd("image")]
    return Compose(steps)({"image": image})["image"]


@pytest.mark.parametrize("maker", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_values_and_affine(tmp_path: Path, maker: type, name: str, order: str) -> None:
    values = np.random.default_rng(0).normal(size=(4, 5, 6)).astype(f"{order}f4")
    image = maker(values, AFFINE, header=maker.header_class(endianness=order))
    image.header.set_slope_inter(2, -1)
    nib.save(image, tmp_path / name)
    scaled = nib.load(tmp_path / name).get_fdata()
    read = load(tmp_path / name)
    assert np.array_equal(read[0].numpy(), scaled.astype(np.float32))
    assert np.allclose(read.affine, AFFINE)
    assert np.array_equal(read_file(tmp_path / name).values, scaled)


@pytest.mark.parametrize(
    ("pixdim", "codes", "edges"),
    [([1, 2, 2, 5], [1, 1], (1, 1, 1)), ([1, 2, 2, 5], [1, 0], (2, 2, 5)), ([1, 2, 2, 5], [0, 0], (2, 2, 5))],
)
def test_one_affine_whatever_pixdim_says(tmp_path: Path, pixdim: list, codes: list, edges: tuple) -> None:
    path = patch(write(tmp_path / "a.nii", affine=np.eye(4)), pixdim=pixdim, codes=codes)
    assert np.allclose(np.linalg.norm(load(path).affine[:3, :3], axis=0), edges)
    assert np.allclose(load(path).affine, nib.load(path).affine)
    assert read_spacing(path) == list(edges)


def test_the_name_does_not_say_whether_a_file_is_packed(tmp_path: Path) -> None:
    plain = write(tmp_path / "a.nii")
    (tmp_path / "packed.nii").write_bytes(gzip.compress(plain.read_bytes()))
    assert np.array_equal(read_nifti(tmp_path / "packed.nii").values, read_nifti(plain).values)


@pytest.mark.parametrize(
    ("shape", "dims", "read"),
    [
        ((4, 5, 6), (3, 1), (1, 4, 5, 6)),
        ((4, 5, 6, 1), (3, 1), (1, 4, 5, 6)),
        ((4, 5, 6, 2), (3, 2), (2, 4, 5, 6)),
        ((4, 5, 6, 1, 2), (3, 2), (2, 4, 5, 6)),
        ((4, 5), (2, 1), (1, 4, 5)),
        ((4, 5, 1), (2, 1), (1, 4, 5)),
        ((4, 5, 1, 3), (2, 3), (3, 4, 5)),
    ],
)
def test_axes_of_one_voxel_are_left_out(tmp_path: Path, shape: tuple, dims: tuple, read: tuple) -> None:
    path = write(tmp_path / "a.nii.gz", shape)
    assert read_dims(path) == dims
    assert load(path).shape == read
    expected = np.arange(np.prod(shape)).reshape(*read[1:], read[0])
    assert np.array_equal(np.moveaxis(load(path).numpy(), 0, -1), expected)


def test_files_are_channels(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{n}.nii") for n in range(2)]
    assert load(*paths).shape == (2, 4, 5, 6)
    pictures = [tmp_path / f"{n}.png" for n in range(3)]
    for n, path in enumerate(pictures):
        Image.fromarray(np.full((3, 2), n, np.uint8)).save(path)
    assert np.array_equal(load(*pictures)[:, 0, 0], [0, 1, 2])
    found = r"2.nii: found shape \(4, 5, 7\) where the first channel has \(4, 5, 6\)"
    with pytest.raises(Fault, match=found):
        LoadImage("scripts.data.ImageReader")([*paths, write(tmp_path / "2.nii", (4, 5, 7))])


def test_a_file_that_is_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(Fault, match=r"a.nii: found no such file"):
        LoadImage("scripts.data.ImageReader")(tmp_path / "a.nii")


def test_a_size_that_no_file_has_takes_no_memory(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii")
    raw = bytearray(path.read_bytes())
    struct.pack_into("<4h", raw, 40, 3, 32767, 32767, 32767)
    path.write_bytes(bytes(raw))
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(bytes(raw)))
    for name in ("a.nii", "b.nii.gz"):
        with pytest.raises(Fault, match="truncated or corrupt"):
            read_file(tmp_path / name)
