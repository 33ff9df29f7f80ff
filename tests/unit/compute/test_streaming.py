"""From disk to disk the result is that of configs/inference.json, in less memory than the volume takes."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import (
    AsDiscreted,
    CropForegroundd,
    NormalizeIntensity,
    NormalizeIntensityd,
    Orientation,
    Orientationd,
    Spacing,
    Spacingd,
)

from scripts.compute import streaming
from scripts.compute.inferers import SlidingWindowSlabInferer
from scripts.compute.streaming import NetworkView, VolumeSegmenter, find_geometry
from scripts.data.cases import InferenceCases
from scripts.data.volumes import open_volume
from scripts.errors import InputError
from scripts.networks import UNet
from scripts.transforms import ClassesToInstancesd, ClassesToLabelsd
from tests.commands import ROOT, input_error, run

#: Values on disk of the three classes.
LABELS = {"background": 0, "left": 3, "right": 200}

#: Interpolation in single precision, axis by axis, against double precision, all axes at once; of intensities
#: from 0 to 1000.
TOLERANCE = 1e-2

#: An oblique grid: 20 degrees about one axis, then 10 about another.
TURN = nib.eulerangles.euler2mat(np.deg2rad(20), np.deg2rad(10), 0)

needs_zarr = pytest.mark.skipif(not find_spec("zarr"), reason="zarr is not installed")


def make_affine(spacing, axcodes="RAS", turn=TURN):
    """Oblique, with the axes of the file in any order and direction."""
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag(spacing)
    affine[:3, 3] = (-30, 20, 5)
    ornt = nib.orientations.axcodes2ornt(axcodes)
    return affine @ nib.orientations.inv_ornt_aff(ornt, (30, 30, 30))


def smooth(shape, seed=0):
    """Structures of a few voxels, which a network can tell from each other, from 0 to 1000."""
    noise = torch.rand((1, 1, *(-(-n // 4) for n in shape)), generator=torch.Generator().manual_seed(seed))
    return (1000 * torch.nn.functional.interpolate(noise, size=tuple(shape), mode="trilinear"))[0, 0].numpy()


def write_nifti(path, values, affine, dtype=np.int16, scaling=None):
    image = nib.Nifti1Image(values.astype(dtype), affine)
    if scaling:
        image.header.set_slope_inter(*scaling)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)
    return path


def geometry(spacing):
    return [
        Orientationd("image", axcodes="RAS", labels=None),
        Spacingd("image", pixdim=spacing, mode="bilinear"),
    ]


GRIDS = [
    ("RAS", (1, 1, 1), (1, 1, 1)),
    ("LIP", (1, 1, 1), (1, 1, 1)),
    ("PIR", (0.8, 1.5, 2.2), (1, 1, 1)),
    ("SLA", (2, 2, 2), (1.3, 0.7, 3)),
    ("ALS", (1.0004, 1, 0.9997), (1, 1, 1)),  # MONAI calls this the same spacing
]


@pytest.mark.parametrize(("axcodes", "spacing", "wanted"), GRIDS)
def test_view_is_what_monai_makes_of_the_volume(tmp_path, axcodes, spacing, wanted):
    values, affine = smooth((17, 20, 14)), make_affine(spacing, axcodes)
    path = write_nifti(tmp_path / "a.nii", values, affine, np.uint16, scaling=(0.5, -7))
    loaded = nib.Nifti1Image.from_filename(path)
    image = MetaTensor(torch.from_numpy(loaded.get_fdata(dtype=np.float32))[None], affine=loaded.affine)
    expected = Spacing(wanted, mode="bilinear")(Orientation("RAS", labels=None)(image))
    volume = open_volume(path, 1)
    where = find_geometry(volume, geometry(wanted))
    view = NetworkView(volume, where, 0)
    assert view.shape == tuple(expected.shape)
    box = tuple(slice(n // 3, n - 1) for n in expected.shape[1:])
    part = view[(slice(0, 1), *box)]
    torch.testing.assert_close(part, expected[(slice(None), *box)].as_tensor(), atol=TOLERANCE, rtol=0)
    scored = NetworkView(volume, where, 1)[(slice(0, 1), *box)]
    normalised = NormalizeIntensity(channel_wise=True)(expected)[(slice(None), *box)]
    torch.testing.assert_close(scored, normalised.as_tensor(), atol=TOLERANCE / 100, rtol=0)


def test_pieces_and_blocks_do_not_show(tmp_path, monkeypatch):
    volume = open_volume(
        write_nifti(tmp_path / "a.nii", smooth((17, 20, 14)), make_affine((1, 2, 3), "PIR")), 1
    )
    where = find_geometry(volume, geometry((1.5, 1.5, 1.5)))
    box = tuple(slice(0, n) for n in (1, *where.shape))
    whole = NetworkView(volume, where, 1)[box]
    monkeypatch.setattr(streaming, "PIECE_VOXELS", 700)
    monkeypatch.setattr(streaming, "BLOCK_ROWS", 4)
    torch.testing.assert_close(NetworkView(volume, where, 1)[box], whole)


def test_channels_are_normalised_by_themselves(tmp_path):
    values = np.stack([smooth((9, 8, 7)), 5 + 10 * smooth((9, 8, 7), 1), np.full((9, 8, 7), 3)], axis=-1)
    volume = open_volume(write_nifti(tmp_path / "a.nii", values, np.eye(4), np.float32), 3)
    view = NetworkView(volume, find_geometry(volume, []), 1)
    expected = NormalizeIntensity(channel_wise=True)(
        torch.from_numpy(values.astype(np.float32)).movedim(3, 0)
    )
    torch.testing.assert_close(view[tuple(slice(0, n) for n in (3, 9, 8, 7))], expected, atol=1e-4, rtol=0)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A network that tells dark, middle and bright apart: its classes change from voxel to voxel."""
    torch.manual_seed(0)
    network = UNet(3, 1, 3, [4, 8])
    path = tmp_path_factory.mktemp("model") / "model.pt"
    torch.save(network.state_dict(), path)
    return path


def arguments(folder, output, checkpoint, **more):
    return {
        "dataset_dir": str(folder),
        "output_dir": str(output),
        "checkpoint": str(checkpoint),
        "labels": LABELS,
        "channels": [4, 8],
        "patch_size": [24, 24, 16],
        "amp": False,
        "runtime": "torch",
        **more,
    }


def test_result_is_that_of_ordinary_inference(tmp_path, checkpoint):
    """Exactly where the voxels stay where they are, and nearly everywhere where they are interpolated."""
    folder = tmp_path / "images"
    for index, (axcodes, spacing, wanted) in enumerate(GRIDS):
        scale = np.divide(spacing, wanted)  # to one spacing for all
        write_nifti(folder / f"case{index}.nii", smooth((25, 30, 22), index), make_affine(scale, axcodes))
    keywords = arguments(folder, tmp_path / "whole", checkpoint, output_ext=".nii")
    run("inference", **keywords)
    run("inference", "large_volume", **{**keywords, "output_dir": str(tmp_path / "slabs")})
    for index in range(len(GRIDS)):
        whole, slabs = (
            nib.Nifti1Image.from_filename(tmp_path / kind / f"case{index}_seg.nii")
            for kind in ("whole", "slabs")
        )
        expected, found = np.asarray(whole.dataobj), np.asarray(slabs.dataobj)
        assert set(np.unique(expected)) == set(LABELS.values())
        assert found.dtype == expected.dtype == np.uint8
        np.testing.assert_allclose(slabs.affine, whole.affine, atol=1e-5)
        assert (found == expected).mean() >= (1 if index in (0, 1, 4) else 0.999)


@needs_zarr
def test_zarr_array_gives_what_the_file_gives(tmp_path, checkpoint):
    import zarr

    values = smooth((25, 18, 22)).astype(np.int16)
    write_nifti(tmp_path / "images/a.nii", values, make_affine((1.2, 1, 0.8), "LPS"))
    array = zarr.create_array(
        tmp_path / "images/b.zarr", shape=values.shape, chunks=(8, 8, 8), dtype=values.dtype
    )
    array[:] = values
    array.attrs["affine"] = open_volume(tmp_path / "images/a.nii", 1).affine.tolist()
    run("inference", "large_volume", **arguments(tmp_path / "images", tmp_path / "out", checkpoint))
    first, second = (nib.Nifti1Image.from_filename(tmp_path / f"out/{name}_seg.nii") for name in "ab")
    np.testing.assert_array_equal(first.dataobj, second.dataobj)
    np.testing.assert_allclose(first.affine, second.affine, atol=1e-5)
    assert open_volume(tmp_path / "images/b.zarr", 1).shape == (25, 18, 22)


def test_bad_volumes_are_reported_and_the_others_done(tmp_path, checkpoint, capfd):
    folder = tmp_path / "images"
    values = smooth((18, 19, 20))
    write_nifti(folder / "good.nii", values, np.eye(4))
    write_nifti(folder / "packed.nii.gz", values, np.eye(4))
    cut = write_nifti(folder / "cut.nii", values, np.eye(4))
    cut.write_bytes(cut.read_bytes()[:-1])
    values[3, 4, 5] = np.nan
    write_nifti(folder / "nan.nii", values, np.eye(4), np.float32)
    sheared = np.eye(4)
    sheared[0, 1] = 0.5
    write_nifti(folder / "sheared.nii", values, sheared)
    with pytest.raises((InputError, RuntimeError)) as error:
        run("inference", "large_volume", **arguments(folder, tmp_path / "out", checkpoint))
    assert input_error(error.value).startswith(
        "4 of 5 images were not segmented: cut, nan, packed, sheared; the others are done"
    )
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["good_seg.nii"]
    log = capfd.readouterr().out
    for message in (
        "packed.nii.gz: found a compressed file; only an uncompressed one can be read piece by piece; "
        "uncompress it with 'gunzip --keep packed.nii.gz' and put packed.nii in its place",
        "cut.nii: found a truncated file",
        "nan.nii: found NaN or infinite voxels",
        "sheared.nii: found an affine with shear",
    ):
        assert message in log


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("inferer", None, "inferer is a NoneType, which needs the whole volume"),
        ("geometry", [CropForegroundd("image", "image")], "geometry holds a CropForegroundd"),
        (
            "normalise",
            [NormalizeIntensityd("image", nonzero=True)],
            "normalise holds a NormalizeIntensityd that",
        ),
        ("to_labels", [ClassesToInstancesd("pred")], "to_labels holds a ClassesToInstancesd"),
        ("to_labels", [], r"to_labels holds \[\]: give one AsDiscreted with argmax alone, and one Classes"),
        ("to_labels", [AsDiscreted("pred", argmax=True)], r"to_labels holds \['AsDiscreted'\]: give"),
        (
            "to_labels",
            [AsDiscreted("pred", threshold=0.5), ClassesToLabelsd("pred", LABELS)],
            r"to_labels holds \['AsDiscreted', 'ClassesToLabelsd'\]: give",
        ),
        (
            "to_labels",
            [AsDiscreted("pred", argmax=True, to_onehot=3), ClassesToLabelsd("pred", LABELS)],
            r"to_labels holds \['AsDiscreted', 'ClassesToLabelsd'\]: give",
        ),
        ("to_labels", [ClassesToLabelsd("pred", LABELS)] * 2, "to_labels holds"),
    ],
)
def test_part_that_needs_the_whole_volume_is_refused(tmp_path, part, value, message):
    parts = {
        "network": torch.nn.Identity(),
        "inferer": SlidingWindowSlabInferer(8),
        "cases": InferenceCases([]),
        "geometry": [],
        "normalise": [],
        "to_labels": [ClassesToLabelsd("pred", LABELS)],
        "handlers": [],
        "in_channels": 2,
        "output_dir": tmp_path,
    }
    with pytest.raises(InputError, match=message):
        VolumeSegmenter(**{**parts, part: value})


BUDGETED = """
import json, resource, sys, torch
from scripts.compute.memory import resident_bytes
from scripts.compute.inferers import SlidingWindowSlabInferer
from scripts.networks import UNet
from scripts.process import set_up
from scripts.data.volumes import read_volumes
from scripts.compute.streaming import VolumeSegmenter
from scripts.transforms import ClassesToLabelsd
from monai.transforms import NormalizeIntensityd, Orientationd, Spacingd

def status(key):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(key))

folder, output, labels = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
set_up(0)
network = UNet(3, 1, 3, [2, 4])
headroom = 250e6
budget = resident_bytes() + headroom
limit = int(status("VmData") + headroom)
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
cases = read_volumes(folder, in_channels=1)
VolumeSegmenter(
    network,
    SlidingWindowSlabInferer(128, overlap=0.25, memory_gb=budget / 1e9),
    cases,
    [Orientationd("image", axcodes="RAS", labels=None), Spacingd("image", pixdim=(3, 3, 3))],
    [NormalizeIntensityd("image", channel_wise=True)],
    [ClassesToLabelsd("pred", labels)],
    [], 1, output,
).run()
cases.finish()
print("fits" if status("VmHWM") <= budget else "exceeds")
"""


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="limits and peaks are Linux's")
def test_volume_larger_than_memory(tmp_path):
    """A sparse file whose voxels take 266 MB as float32, and 532 MB as Spacingd's float64, in 250 MB."""
    (tmp_path / "images").mkdir()
    shape = (360, 440, 420)
    header = nib.Nifti1Image(np.broadcast_to(np.uint8(0), shape), np.diag([-1, 1, 1, 1])).header
    header.set_data_offset(352)
    with (tmp_path / "images/large.nii").open("wb") as file:
        header.write_to(file)
        file.truncate(352 + 360 * 440 * 420)
        for plane in range(200, 300):  # something to see
            file.seek(352 + (plane * 440 + 300) * 360)
            file.write(bytes([200] * 360 * 50))
    done = subprocess.run(
        [sys.executable, "-c", BUDGETED, str(tmp_path / "images"), str(tmp_path), json.dumps(LABELS)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == ["fits"], done.stderr
    found = np.asarray(nib.Nifti1Image.from_filename(tmp_path / "large_seg.nii").dataobj)
    assert found.shape == shape
    assert (found[:, 310:340, 210:290:10] != found[0, 0, 0]).mean() > 0.5
