"""Where an image lies, its segmentation lies: headers of every kind, from file to file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from tests.commands import input_error, run
from tests.unit.data.test_reader import patch

pytestmark = pytest.mark.workflow

SHAPE = (12, 10, 8)

#: A network of one convolution that says class 1 where a voxel is above the mean of its image.
THRESHOLD: dict[str, Any] = {
    "labels": {"background": 0, "bright": 1},
    "patch_size": [16, 16, 16],
    "amp": False,
    "runtime": "torch",
    "network_def": {"_target_": "torch.nn.Conv3d", "in_channels": 1, "out_channels": 2, "kernel_size": 1},
}
PLACE = ("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y")


def bright(seed: int) -> np.ndarray:
    """Noise with a bright block, nowhere near the middle."""
    values = np.random.default_rng(seed).normal(size=SHAPE).astype(np.float32)
    values[2:5, 6:9, 1:4] += 100
    return values


def image(
    seed: int, sform: np.ndarray | None, s: int, qform: np.ndarray | None, q: int, maker=nib.Nifti1Image
):
    made = maker(bright(seed), None)
    made.set_sform(np.eye(4) if sform is None else sform, s)
    made.set_qform(np.eye(4) if qform is None else qform, q)
    return made


def place(rotation: tuple[float, ...] = (0, 0, 0), axes: tuple[int, ...] = (1, 2, 3)) -> np.ndarray:
    """An affine of 1 mm whose axes run along these of the patient, negative: the other way, then rotated."""
    affine = np.eye(4)
    affine[:3, :3] = np.stack([np.sign(axis) * np.eye(3)[abs(axis) - 1] for axis in axes], axis=1)
    affine[:3, :3] = Rotation.from_rotvec(rotation).as_matrix() @ affine[:3, :3]
    affine[:3, 3] = 30, -20, 10
    return affine


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    made = {
        "q_against_s": image(0, np.eye(4), 2, place(), 1),
        "oblique_q": image(1, None, 0, place((0.1, -0.2, 0.3)), 1),
        "negative_qfac": image(2, None, 0, place((0.1, 0, 0), (1, 2, -3)), 1),
        "permuted_s": image(3, place((0, 0.05, 0), (-3, 1, 2)), 4, None, 0),
        "lps_both": image(4, place(axes=(-1, -2, 3)), 1, place(axes=(-1, -2, 3)), 3),
        "second_version": image(5, place((0.1, 0.2, 0)), 2, place((0.1, 0.2, 0)), 1, nib.Nifti2Image),
    }
    for name, one in made.items():
        nib.save(one, folder / f"{name}.nii")
    for name, fields in {
        "both_codes_0": {"codes": [0, 0]},
        "microns_and_seconds": {"codes": [1, 1], "units": [3 + 8]},
        "pixdim_lies": {"pixdim": [1, 2, 2, 5], "codes": [0, 1]},
        "pixdim_of_zero": {"pixdim": [0, 0, 0, 0], "codes": [0, 1]},
        "no_slices": {"pixdim": [1, 1, 1, 0], "codes": [1, 0]},
    }.items():
        nib.save(nib.Nifti1Image(bright(6), np.eye(4)), folder / f"{name}.nii")
        patch(folder / f"{name}.nii", **fields)
    series = nib.Nifti1Image(bright(7)[..., None], place((0, 0, 0.2)))
    nib.save(series, folder / "one_volume.nii")
    return folder


def header(path: Path) -> Any:
    """As it lies in the file, nothing mended."""
    content = path.read_bytes()
    maker = nib.Nifti2Header if nib.Nifti2Header.may_contain_header(content) else nib.Nifti1Header
    return maker(content[: maker.sizeof_hdr], check=False)


@pytest.mark.parametrize("config", ["inference", "large_volume"])
def test_every_header_comes_back(
    config: str, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = torch.nn.Conv3d(1, 2, 1)
    with torch.no_grad():
        network.weight[:], network.bias[:] = torch.tensor([0.0, 4.0]).view(2, 1, 1, 1, 1), 0
    torch.save(network.state_dict(), tmp_path / "threshold.pt")
    output = tmp_path / "out"
    places = {
        "dataset_dir": str(images),
        "output_dir": str(output),
        "checkpoint": str(tmp_path / "threshold.pt"),
    }
    overlays = [] if config == "inference" else [config]
    extra = {"save_probabilities": True, "output_ext": ".nii"} if config == "inference" else {}
    with pytest.raises(RuntimeError) as raised:
        run("inference", *overlays, **{**THRESHOLD, **places, **extra})
    assert "1 of 12 images were not segmented: no_slices" in input_error(raised.value)
    log = capsys.readouterr().out
    assert "no_slices.nii: found a voxel of 1 x 1 x 0 (pixdim)" in log
    assert "q_against_s.nii: found a qform that lies up to 37.4 mm away from its sform" in log
    assert "pixdim_lies.nii: found a voxel of 2 x 2 x 5 mm (pixdim) and an sform with one of 1 x 1 x 1" in log
    assert "microns_and_seconds.nii: found lengths in micrometre" in log
    assert log.count(": found ") == 4
    for path in sorted(images.iterdir()):
        if path.stem == "no_slices":
            continue
        given, seg = header(path), nib.load(output / f"{path.stem}_seg.nii")
        files = [output / f"{path.stem}_seg.nii"]
        if config == "inference":
            files.append(output / f"{path.stem}_prob.nii.gz")
        values = np.squeeze(np.asarray(nib.load(path).dataobj))
        assert np.array_equal(np.asarray(seg.dataobj), values > values.mean()), path.stem
        assert np.array_equal(seg.affine, nib.load(path).affine), path.stem
        for file in files:
            found = nib.load(file).header if file.suffix == ".gz" else header(file)
            assert type(found) is type(given)
            for name in (*PLACE, "srow_z", "qform_code", "sform_code"):
                assert np.array_equal(found[name], given[name]), (file.name, name)
            assert found["xyzt_units"] == given["xyzt_units"] & 7
            expected = [1, 1, 1, 1] if path.stem == "pixdim_of_zero" else given["pixdim"][:4]
            assert np.array_equal(found["pixdim"][:4], expected), file.name
