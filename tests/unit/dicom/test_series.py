"""Series are found, put in order in the patient's space, and read; what makes no volume is refused."""

from __future__ import annotations

import gc
import os
import re
import warnings
import weakref
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Invertd, Orientationd, Spacingd
from PIL import Image
from pydicom import uid
from pydicom.pixels.decoders import base as decoders

from scripts.dicom.series import Found, Series, SeriesFinder, is_series, series_name
from scripts.errors import Fault, InputError
from tests import dicom_phantom as phantom

#: Positions are written with nine digits.
DIGITS = 1e-5


def opened(folder: Path) -> Series:
    return SeriesFinder().open(folder)


def look(folder: Path) -> Found:
    return SeriesFinder().look(folder)


def write(name: str, folder: Path) -> tuple[Series, np.ndarray]:
    images, volume = phantom.make_odd(name)
    return opened(phantom.write(images, folder)), volume


@pytest.mark.parametrize("name", phantom.odd_series())
def test_slices_come_in_the_order_of_their_positions(name: str, tmp_path: Path) -> None:
    images, volume = phantom.make_odd(name)
    for index, image in enumerate(images):
        image.InstanceNumber = 100 - index
    found = opened(phantom.write(images, tmp_path))
    assert [each.instance for each in found.slices] == [image.SOPInstanceUID for image in images]
    if name != "uneven":  # whose planes lie between slices
        assert np.array_equal(found.slices_of(found.read()).T, volume.astype(np.float32))
    names = [each.source.path.name for each in found.slices]
    assert names != sorted(names)


@pytest.mark.parametrize("name", ["plain", "oblique", "tilted", "tilted_oblique"])
def test_even_slices_are_the_grid(name: str, tmp_path: Path) -> None:
    about = phantom.odd_series()[name]
    directions = about.get("directions", phantom.AXIAL)
    where = phantom.positions(8, directions, tilt=about.get("tilt", 0.0))
    found, volume = write(name, tmp_path)
    assert np.allclose(found.affine, phantom.affine(where, 8, directions), atol=DIGITS)
    assert np.array_equal(found.read(), volume)
    assert found.notes == ()
    assert np.linalg.det(found.affine[:3, :3]) == pytest.approx(0.8 * 1.3 * 2)  # a right-handed grid


@pytest.mark.parametrize("name", ["plain", "oblique", "signed", "unsigned"])
def test_highdicom_reads_the_same(name: str, tmp_path: Path) -> None:
    images, _ = phantom.make_odd(name)
    found = opened(phantom.write(images, tmp_path))
    theirs = hd.get_volume_from_series(images)
    # highdicom has the axes (slice, row, column) and LPS; from there to (x, y, z) and RAS
    turned = np.diag([-1.0, -1, 1, 1]) @ theirs.affine @ np.eye(4)[[2, 1, 0, 3]]
    mine, array = found.affine, theirs.array.transpose(2, 1, 0)
    if np.sign(turned[:3, 2] @ mine[:3, 2]) < 0:
        turned = turned @ np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, -1, array.shape[2] - 1], [0, 0, 0, 1]])
        array = array[..., ::-1]
    assert np.allclose(mine, turned, atol=DIGITS)
    assert np.array_equal(found.read(), array)


def field(affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A linear function of the place in the patient, at the voxels of a grid."""
    voxels = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    return (voxels @ affine[:3, :3].T + affine[:3, 3]) @ [3.0, -5.0, 7.0]


def test_a_tilted_gantry_is_straightened_for_the_network_and_comes_back(tmp_path: Path) -> None:
    """What MONAI makes of the sheared affine has right angles, right values, and an inverse."""
    where = phantom.positions(12, tilt=20.0, gaps=1.5)
    images = phantom.series(phantom.draw((24, 22, 12)), where, spacing=(1.0, 1.0))
    found = opened(phantom.write(images, tmp_path))
    truth = field(found.affine, found.shape)
    image = MetaTensor(truth[None].astype(np.float32), affine=found.affine)
    steps = [Orientationd("image", "RAS", labels=None), Spacingd("image", (1.0,) * 3, padding_mode="zeros")]
    to_network = Compose(steps)
    seen = to_network({"image": image})["image"]
    axes = seen.affine[:3, :3].numpy()
    assert np.allclose(axes.T @ axes, np.eye(3), atol=1e-6)
    covered = to_network({"image": MetaTensor(torch.ones(image.shape), affine=found.affine)})["image"]
    inside = covered[0].numpy() > 0.999
    assert inside.sum() > 1000
    expected = field(seen.affine.numpy(), seen.shape[1:])
    assert np.allclose(seen[0].numpy()[inside], expected[inside], atol=0.05)
    back = Invertd("pred", to_network, "image", nearest_interp=False)({"pred": seen.clone(), "image": seen})[
        "pred"
    ]
    assert back.shape == image.shape
    middle = (slice(6, -6), slice(6, -6), slice(3, -3))
    assert np.allclose(back[0].numpy()[middle], truth[middle], atol=0.05)


def test_missing_slices_leave_a_regular_grid(tmp_path: Path) -> None:
    found, volume = write("missing", tmp_path)
    assert found.planes.tolist() == [0, 1, 2, 4, 5, 8, 9, 10]
    assert found.shape == (7, 6, 11)
    assert found.notes == ("3 slices are missing and are interpolated",)
    where = phantom.positions(8, gaps=phantom.odd_series()["missing"]["gaps"])
    assert np.allclose(found.affine, phantom.affine(where, 11), atol=DIGITS)
    grid = found.read()
    assert np.allclose(grid[..., 3], (volume[..., 2] + volume[..., 3]) / 2)
    assert np.allclose(grid[..., 6], volume[..., 4] * 2 / 3 + volume[..., 5] / 3)
    assert np.array_equal(grid[..., [0, 1, 2, 4, 5, 8, 9, 10]], volume)


@pytest.mark.parametrize("name", ["missing", "missing_tilted", "uneven"])
def test_planes_between_slices_keep_a_linear_field(name: str, tmp_path: Path) -> None:
    images, _ = phantom.make_odd(name)
    directions = phantom.odd_series()[name].get("directions", phantom.AXIAL)
    place = []
    for image in images:
        here = np.array(image.ImagePositionPatient, float)
        place.append(field(phantom.affine(np.array([here, here]), 2, directions), (7, 6, 1)))
    stored = np.concatenate(place, -1)
    scale = 1000 / np.abs(stored).max()
    for index, image in enumerate(images):
        image.RescaleSlope, image.RescaleIntercept = f"{1e-3 / scale:.9g}", "0"
        phantom.set_pixels(image, np.rint(stored[..., index].T * scale * 1000).astype(np.int32))
    found = opened(phantom.write(images, tmp_path))
    assert found.shape[2] > len(images)
    assert np.allclose(found.read(), field(found.affine, found.shape), atol=0.02)


def test_uneven_slices_have_their_ends_on_the_grid(tmp_path: Path) -> None:
    found, _ = write("uneven", tmp_path)
    gaps = np.array(phantom.odd_series()["uneven"]["gaps"])
    step = np.linalg.norm(found.affine[:3, 2])
    assert found.planes[-1] == found.shape[2] - 1
    assert np.allclose(np.diff(found.planes) * step, gaps, atol=DIGITS)
    assert step <= gaps.min() + DIGITS
    assert found.notes == ("slices lie 2 to 3.5 mm apart and are interpolated",)


def test_rounded_positions_are_even(tmp_path: Path) -> None:
    """0.625 mm apart, written with two decimal places."""
    where = np.round(phantom.positions(16, gaps=0.625, start=(0, 0, 0)), 2)
    found = opened(phantom.write(phantom.series(phantom.draw((4, 5, 16)), where), tmp_path))
    assert found.planes.tolist() == list(range(16))
    assert found.notes == ()


def test_volumes_of_slices(tmp_path: Path) -> None:
    """Halfway to both neighbours, at right angles to the image plane whatever the tilt."""
    for name in ("plain", "tilted_oblique"):
        found, _ = write(name, tmp_path / name)
        assert np.allclose(found.slice_volumes, 0.8 * 1.3 * 2)
        voxel = abs(np.linalg.det(found.affine[:3, :3]))
        assert found.slice_volumes.sum() == pytest.approx(voxel * 8)
    found, _ = write("missing", tmp_path / "missing")
    assert np.allclose(found.slice_volumes, 1.04 * np.array([2, 2, 3, 3, 4, 4, 2, 2]))


def test_copies_count_once(tmp_path: Path) -> None:
    images, volume = phantom.make_odd("oblique")
    folder = phantom.write(images, tmp_path)
    phantom.write(images[2:4], folder, names="copy{:04d}.dcm")
    found = opened(folder)
    assert np.array_equal(found.read(), volume)
    assert found.notes == ("2 slices are there twice and count once",)


@pytest.mark.parametrize("multi", [False, True])
def test_other_pixels_at_the_same_position_are_refused(multi: bool, tmp_path: Path) -> None:
    images, _ = phantom.make_odd("plain")
    echo = pydicom.dcmread(phantom.write(images[3:4], tmp_path / "echo") / "IM0000")
    phantom.set_pixels(echo, echo.pixel_array + 1)
    echo.SOPInstanceUID, echo.InstanceNumber = uid.generate_uid(), 99
    both = [*images, echo]
    phantom.write([phantom.multi_frame(both)] if multi else both, tmp_path / "all")
    with pytest.raises(Fault, match="same position that are no copies") as caught:
        opened(tmp_path / "all")
    assert multi or "99" in str(caught.value)


@pytest.mark.parametrize("name", ["plain", "tilted_oblique", "missing", "slopes", "signed"])
def test_frames_of_a_file_are_slices(name: str, tmp_path: Path) -> None:
    """The frames are stored in an order of their own; orientation is shared, the position is each frame's."""
    images, volume = phantom.make_odd(name)
    single = opened(phantom.write(images, tmp_path / "single"))
    multi = opened(phantom.write([phantom.multi_frame(images)], tmp_path / "multi"))
    assert multi.multi_frame
    assert not single.multi_frame
    assert [each.frame for each in multi.slices] != list(range(8))
    assert np.allclose(multi.affine, single.affine)
    assert np.array_equal(multi.read(), single.read())
    assert np.array_equal(multi.slices_of(multi.read()).T, volume.astype(np.float32))


@pytest.mark.parametrize(
    "syntax",
    [uid.RLELossless, uid.JPEGLSLossless, uid.JPEG2000Lossless, uid.DeflatedExplicitVRLittleEndian],
    ids=lambda syntax: syntax.name,
)
@pytest.mark.parametrize("multi", [False, True], ids=["single", "multi"])
def test_compressed_pixels(syntax: uid.UID, multi: bool, tmp_path: Path) -> None:
    volume = phantom.draw((40, 36, 3), low=-1000)
    images = phantom.series(volume, phantom.positions(3), modality="CT")
    images = [phantom.multi_frame(images)] if multi else images
    for image in images:
        if syntax.is_encapsulated:
            image.compress(syntax)
        image.file_meta.TransferSyntaxUID = syntax
    folder = phantom.write(images, tmp_path)
    assert pydicom.dcmread(folder / "IM0000").file_meta.TransferSyntaxUID == syntax
    assert np.array_equal(opened(folder).read(), volume)


@pytest.mark.parametrize(
    ("syntax", "fix"),
    [
        (uid.JPEG2000Lossless, r"run pip install -r requirements-dicom\.txt"),
        (uid.JPEGLosslessSV1, "run pip install pylibjpeg pylibjpeg-libjpeg"),
        (uid.MPEG2MPML, "convert it to Explicit VR Little Endian"),
    ],
    ids=["extra", "licence", "unknown"],
)
def test_a_syntax_that_nothing_decodes(
    syntax: uid.UID, fix: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    images, _ = phantom.make_odd("plain")
    folder = phantom.write(images, tmp_path)
    for file in folder.iterdir():
        image = pydicom.dcmread(file)
        image.file_meta.TransferSyntaxUID = syntax
        image.PixelData = pydicom.encaps.encapsulate([image.PixelData])
        image.save_as(file)
    for decoder, _ in decoders._PIXEL_DATA_DECODERS.values():
        monkeypatch.setattr(decoder, "_available", {})
    with pytest.raises(Fault, match=fix) as caught:
        opened(folder)
    assert syntax.name in str(caught.value)


def test_a_folder_with_everything_in_it(tmp_path: Path) -> None:
    """Two series in one folder, a multi-frame one in a subfolder, and what is no image among them."""
    images, volume = phantom.make_odd("plain")
    others, other_volume = phantom.make_odd("oblique", seed=1)
    folder = phantom.write([*images, *others], tmp_path)
    phantom.write([phantom.multi_frame(images)], folder / "inner")
    phantom.write(
        [
            phantom.secondary_capture(images[0]),
            phantom.secondary_capture(images[0]),
            phantom.localizer(images[0]),
        ],
        folder / "more",
    )
    (folder / "readme.txt").write_text("notes")
    (folder / ".DS_Store").write_text("hidden")
    broken = folder / "cut.dcm"
    broken.write_bytes((folder / "IM0000").read_bytes()[:200])
    found = look(folder)
    assert len(found.series) == 3
    assert dict(found.left_out) == {
        "Secondary Capture Image Storage": 2,
        "MR Image Storage, localizer": 1,
        "broken files": 1,
        "files that are not DICOM": 1,
    }
    assert found.describe().startswith("MR Image Storage, localizer (1), ")
    finder = SeriesFinder()
    for part, truth in ((images, volume), (others, other_volume)):
        name = series_name(part[0].SeriesInstanceUID)
        assert np.array_equal(finder.open(folder / name).read(), truth)
    with pytest.raises(InputError, match=r"holds 3 series.*series_\w{12} or"):
        finder.open(folder)
    with pytest.raises(Fault, match=r"series_000000000000: found no series of this name beside series_"):
        finder.open(folder / "series_000000000000")


def test_a_finder_holds_the_last_place_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process may run for weeks; a place is looked through once for all its series."""
    places = [phantom.write(phantom.make_odd("plain", seed=n)[0], tmp_path / str(n)) for n in range(3)]
    read, dcmread = [], pydicom.dcmread

    def counted(file: Any, **options: Any) -> pydicom.Dataset:
        read.append(file)
        return dcmread(file, **options)

    monkeypatch.setattr(pydicom, "dcmread", counted)
    finder = SeriesFinder()
    first = weakref.ref(finder.look(places[0]))
    finder.open(places[0])
    assert len(read) == 8
    for place in places[1:]:
        finder.open(place)
    assert len(read) == 24
    gc.collect()
    assert first() is None


def test_what_changes_is_looked_at_anew(tmp_path: Path) -> None:
    """Files that come, go, or are written over, in a folder below or in a zip file."""
    images, volume = phantom.make_odd("plain")
    finder, study, below = SeriesFinder(), tmp_path / "study", tmp_path / "study/below"
    phantom.write(images[:6], below)
    assert np.array_equal(finder.open(study).read(), volume[..., :6])
    later(phantom.write(images[6:], below), 1)
    assert np.array_equal(finder.open(study).read(), volume)
    for file in below.iterdir():
        image = pydicom.dcmread(file)
        image.PixelSpacing = [2.0, 2.0]
        image.save_as(file)
        later(file, 2)
    later(below, 1)  # the folder is as it was
    assert finder.open(study).slices[0].spacing == (2.0, 2.0)
    finder.open(study).slices[-1].source.path.unlink()
    later(below, 3)
    assert finder.open(study).shape == (7, 6, 7)
    file = phantom.pack(below, tmp_path / "study.zip")
    assert finder.open(file).shape == (7, 6, 7)
    phantom.write(images[:1], tmp_path / "other")
    later(phantom.pack(tmp_path / "other", file), 4)
    assert finder.open(file).shape == (7, 6, 1)


def later(path: Path, seconds: int) -> None:
    """A time of change that no clock is too coarse for."""
    os.utime(path, ns=(0, 1_700_000_000_000_000_000 + seconds * 10**9))


def test_a_scout_without_the_word_is_refused(tmp_path: Path) -> None:
    images, _ = phantom.make_odd("plain")
    view = phantom.localizer(images[0])
    view.ImageType = ["ORIGINAL", "PRIMARY"]
    with pytest.raises(Fault, match=r"different sizes .*take out .*localizer"):
        opened(phantom.write([*images, view], tmp_path))


def test_names_are_hashes() -> None:
    name = series_name("1.2.840.113619.2.55")
    assert re.fullmatch(r"series_[0-9a-f]{12}", name)
    assert name != series_name("1.2.840.113619.2.56")
    assert is_series(f"/some/where/{name}")
    assert not is_series("series_2024")


def test_zip_files(tmp_path: Path) -> None:
    images, volume = phantom.make_odd("tilted")
    plain = phantom.write(images, tmp_path / "plain")
    file = phantom.pack(plain, tmp_path / "study.zip")
    assert np.array_equal(opened(file).read(), volume)
    assert len(opened(file).headers(["Rows"])) == 8
    (tmp_path / "folder").mkdir()
    file.rename(tmp_path / "folder" / "study.ZIP")
    assert np.array_equal(opened(tmp_path / "folder").read(), volume)


def test_a_zip_file_that_leads_outside_writes_nothing(tmp_path: Path) -> None:
    images, volume = phantom.make_odd("plain")
    plain = phantom.write(images, tmp_path / "a/plain")
    file = phantom.pack(plain, tmp_path / "a/study.zip", inside="../../outside")
    before = sorted(tmp_path.rglob("*"))
    assert np.array_equal(opened(file).read(), volume)
    assert sorted(tmp_path.rglob("*")) == before


def test_zip_files_that_cannot_be_read(tmp_path: Path) -> None:
    images, _ = phantom.make_odd("plain")
    file = phantom.pack(phantom.write(images, tmp_path / "plain"), tmp_path / "study.zip")
    raw = bytearray(file.read_bytes())
    with zipfile.ZipFile(file) as archive:
        start = archive.start_dir
    raw[start + 8] |= 1  # the flag of an encrypted member
    (tmp_path / "locked").mkdir()
    (tmp_path / "locked" / "study.zip").write_bytes(raw)
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "study.zip").write_bytes(file.read_bytes()[:500])
    for name in ("locked", "cut"):
        with pytest.raises(InputError, match=rf"{name} is or holds a zip file that cannot be read"):
            look(tmp_path / name)


def drop(keyword: str) -> Any:
    return lambda images: [image.pop(keyword) for image in images[2:3]]


def give(keyword: str, value: Any) -> Any:
    return lambda images: setattr(images[2], keyword, value)


def send_away(images: Any) -> None:
    for image in images:
        image.ImagePositionPatient = ["1e30", *image.ImagePositionPatient[1:]]


BAD = {
    "no_position": (drop("ImagePositionPatient"), "no usable ImagePositionPatient .instance number 3."),
    "no_orientation": (drop("ImageOrientationPatient"), "no usable ImageOrientationPatient"),
    "no_spacing": (drop("PixelSpacing"), "no usable PixelSpacing"),
    "flat": (give("PixelSpacing", [0, 1]), "no usable PixelSpacing"),
    "skewed": (give("ImageOrientationPatient", [1, 0, 0, 0.5, 1, 0]), "no usable ImageOrientationPatient"),
    "turned": (
        give("ImageOrientationPatient", [0.8, 0.6, 0, -0.6, 0.8, 0]),
        "slices of different orientations",
    ),
    "zoomed": (give("PixelSpacing", [1.3, 0.9]), "slices of different pixel spacings"),
    "no_rows": (drop("Rows"), "a header that is broken"),
    "colour": (give("SamplesPerPixel", 3), "pixels in colour"),
    "part": (give("ConcatenationUID", "1.2.3"), "a part of a concatenation"),
    "table": (give("ModalityLUTSequence", [pydicom.Dataset()]), "a modality lookup table"),
    "beside": (give("ImagePositionPatient", [-15, 15, 44]), "beside the line"),
    "far": (send_away, "a first voxel that lies 1e.30 mm away from the origin"),
    "two_frames": (give("NumberOfFrames", 2), "no usable NumberOfFrames"),
    "infinite": (give("RescaleSlope", "1e999"), "no usable RescaleSlope"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_makes_no_volume_is_refused(what: str, tmp_path: Path) -> None:
    spoil, sentence = BAD[what]
    images, _ = phantom.make_odd("plain")
    spoil(images)
    folder = phantom.write(images, tmp_path)
    with pytest.raises(Fault, match=sentence) as caught:
        opened(folder)
    assert re.match(rf"{folder}/series_\w+: found .*; .*; .*\.$", str(caught.value))
    assert "\n" not in str(caught.value)


def test_a_few_slices_far_apart_are_refused(tmp_path: Path) -> None:
    images = phantom.series(phantom.draw((4, 5, 3)), phantom.positions(3, gaps=[2, 100]))
    folder = phantom.write(images, tmp_path)
    with pytest.raises(Fault, match=r"found 3 slices that lie 2 to 100 mm apart; at least 25%"):
        opened(folder)


def test_pixels_cut_short_are_refused(tmp_path: Path) -> None:
    images, _ = phantom.make_odd("plain")
    folder = phantom.write(images, tmp_path)
    file = folder / "IM0002"
    number = pydicom.dcmread(file).InstanceNumber
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(Fault, match=rf"pixels that cannot be read \(instance number {number}, "):
        opened(folder).read()


def test_files_that_are_gone(tmp_path: Path) -> None:
    images, _ = phantom.make_odd("plain")
    found = opened(phantom.write(images, tmp_path))
    (tmp_path / "IM0001").unlink()
    with pytest.raises(Fault, match=r"pixels that cannot be read .*FileNotFoundError"):
        found.read()
    with pytest.raises(Fault, match="a file that is gone or has changed"):
        found.headers(["Rows"])


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        ("nothing", "is not there: hand a folder, a zip file or"),
        ("empty", r"holds no DICOM images \(no files\): hand"),
        ("text", r"holds no DICOM images \(files that are not DICOM \(1\)\): hand"),
    ],
)
def test_no_images_at_all(what: str, sentence: str, tmp_path: Path) -> None:
    place = tmp_path / "place"
    if what == "empty":
        place.mkdir()
    elif what == "text":
        place.write_text("neither DICOM nor a zip file")
    with pytest.raises(InputError, match=sentence):
        look(place)


def test_a_multi_frame_file_by_itself(tmp_path: Path) -> None:
    images, volume = phantom.make_odd("plain")
    file = phantom.write([phantom.multi_frame(images)], tmp_path) / "IM0000"
    assert np.array_equal(opened(file).read(), volume)


def test_frames_as_highdicom_puts_them_together(tmp_path: Path) -> None:
    """A converter that is not ours: its own functional groups, one item for all frames where they agree."""
    images, volume = phantom.make_odd("tilted_oblique")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = hd.legacy.LegacyConvertedEnhancedMRImage(images, uid.generate_uid(), 4, uid.generate_uid(), 1)
    single = opened(phantom.write(images, tmp_path / "single"))
    multi = opened(phantom.write([whole], tmp_path / "multi"))
    assert np.allclose(multi.affine, single.affine, atol=DIGITS)
    assert np.array_equal(multi.read(), volume)


def test_jpeg_of_eight_bits(tmp_path: Path) -> None:
    """Baseline JPEG, by Pillow in both directions: lossy, so nearly the same."""
    x, y, z = np.meshgrid(np.arange(32), np.arange(24), np.arange(3), indexing="ij")
    volume = (10 + 3 * x + 2 * y + 10 * z).astype(np.uint8)
    images = phantom.series(volume, phantom.positions(3))
    for image in images:
        packed = BytesIO()
        Image.fromarray(image.pixel_array).save(packed, "JPEG", quality=95)
        image.PixelData = pydicom.encaps.encapsulate([packed.getvalue()])
        image.file_meta.TransferSyntaxUID = uid.JPEGBaseline8Bit
    assert np.allclose(opened(phantom.write(images, tmp_path)).read(), volume, atol=3)


def test_messages_name_no_file_inside_and_nobody(tmp_path: Path) -> None:
    images, _ = phantom.make_odd("plain")
    images[1].pop("PixelSpacing")
    phantom.write(images, tmp_path / phantom.NAME, names=phantom.NAME + "{}")
    with pytest.raises(Fault) as caught:
        opened(tmp_path)
    assert not [text for text in phantom.IDENTITY if text in str(caught.value)]


def padded(value: int, limit: int | None = None, dtype: type = np.int16, seed: int = 0) -> Any:
    """CT whose first two columns are padding, and where it is, (x, y, z)."""
    volume = phantom.draw((7, 6, 8), seed, 100, 1000).astype(dtype)
    where = np.zeros(volume.shape, bool)
    where[:2] = True
    volume[where] = np.array(value).astype(dtype)
    if limit is not None:
        volume[0] = np.array(limit).astype(dtype)
    images = phantom.series(volume, phantom.positions(8), modality="CT", rescale=[(2.0, -24.0)] * 8)
    return images, volume, where


PADDING = {
    "signed": (np.int16, -2000, None, "SS"),
    "signed_as_unsigned": (np.int16, 63536, None, "US"),
    "unsigned": (np.uint16, 63536, None, "US"),
    "unsigned_as_signed": (np.uint16, -2000, None, "SS"),
    "zero": (np.uint16, 0, None, "US"),
    "up": (np.int16, -2000, -1900, "SS"),
    "down": (np.int16, -1900, -2000, "SS"),
    "high": (np.uint16, 65000, 65535, "US"),
}


@pytest.mark.parametrize("name", PADDING)
@pytest.mark.parametrize("multi", [False, True], ids=["single", "multi"])
def test_padding_is_no_tissue(name: str, multi: bool, tmp_path: Path) -> None:
    """It gets the lowest intensity of the others, which are as they are without the element."""
    dtype, value, limit, vr = PADDING[name]
    images, volume, where = padded(value, limit, dtype)
    for image in images:
        image.add_new("PixelPaddingValue", vr, value)
        if limit is not None:
            image.add_new("PixelPaddingRangeLimit", vr, limit)
    found, share = opened(phantom.write([phantom.multi_frame(images)] if multi else images, tmp_path)).load()
    truth = volume.astype(np.int64) * 2 - 24
    assert np.array_equal(found[~where], truth[~where])
    assert np.unique(found[where]).tolist() == [truth[~where].min()]
    assert share == where.mean()


def test_padding_in_implicit_vr_and_between_missing_slices(tmp_path: Path) -> None:
    images, _, where = padded(-2000)
    for image in images:
        image.add_new("PixelPaddingValue", "SS", -2000)
        image.file_meta.TransferSyntaxUID = uid.ImplicitVRLittleEndian
    del images[3]
    found, share = opened(phantom.write(images, tmp_path)).load()
    assert found.shape == where.shape
    assert found.min() == found[~where].min() >= 176
    assert share == where.mean()


def test_an_element_that_no_pixel_has_changes_nothing(tmp_path: Path) -> None:
    images, volume = phantom.make_odd("signed")
    for image in images:
        image.add_new("PixelPaddingValue", "SS", -2000)
    found, share = opened(phantom.write(images, tmp_path)).load()
    assert np.array_equal(found, volume)
    assert share == 0


def test_nothing_but_padding_is_refused(tmp_path: Path) -> None:
    images, _, _ = padded(-2000)
    for image in images:
        image.add_new("PixelPaddingValue", "SS", -3000)
        image.add_new("PixelPaddingRangeLimit", "SS", 3000)
    with pytest.raises(Fault, match="found nothing but padding; some pixels must lie outside"):
        opened(phantom.write(images, tmp_path)).load()


@pytest.mark.parametrize("keyword", ["RescaleSlope", "RescaleIntercept", "RescaleSlope and RescaleIntercept"])
@pytest.mark.parametrize("multi", [False, True], ids=["single", "multi"])
def test_slices_of_two_scales_are_refused(keyword: str, multi: bool, tmp_path: Path) -> None:
    images, _ = phantom.make_odd("signed")
    if multi:
        whole = phantom.multi_frame(images)
        for frame in whole.PerFrameFunctionalGroupsSequence[5:]:
            for each in keyword.split(" and "):
                frame.PixelValueTransformationSequence[0].pop(each)
        images = [whole]
    else:
        for image in images[5:]:
            for each in keyword.split(" and "):
                image.pop(each)
    with pytest.raises(Fault, match=rf"no {keyword} in 3 of 8 slices \(instance numbers 6, 7, 8\)"):
        opened(phantom.write(images, tmp_path))


def test_scales_of_all_kinds(tmp_path: Path) -> None:
    """A negative slope; none at all, which CT is told of; a slope of 0, which leaves no image."""
    volume = phantom.draw((5, 4, 3))
    for name, modality, scale, notes in (
        ("negative", "CT", (-1.5, 10.0), ()),
        ("none", "MR", None, ()),
        ("ct", "CT", None, ("CT without RescaleSlope or RescaleIntercept, whose pixels count as",)),
    ):
        rescale = None if scale is None else [scale] * 3
        images = phantom.series(volume, phantom.positions(3), modality=modality, rescale=rescale)
        found = opened(phantom.write(images, tmp_path / name))
        slope, intercept = scale or (1, 0)
        assert np.allclose(found.read(), volume * slope + intercept)
        assert [note[: len(start)] for note, start in zip(found.notes, notes, strict=True)] == list(notes)
    images = phantom.series(volume, phantom.positions(3), modality="PT", rescale=[(0.0, 0.0)] * 3)
    with pytest.raises(Fault, match="no usable RescaleSlope"):
        opened(phantom.write(images, tmp_path / "zero"))


@pytest.mark.parametrize("keyword", ["PatientID", "StudyInstanceUID", "FrameOfReferenceUID"])
def test_one_series_uid_for_two_is_refused(keyword: str, tmp_path: Path) -> None:
    """Slices of two patients, one behind the other, are no volume; an image that does not say is no harm."""
    images, volume = phantom.make_odd("plain")
    images[2].pop(keyword)
    assert np.array_equal(opened(phantom.write(images, tmp_path / "one")).read(), volume)
    for image in images[4:]:
        image[keyword].value = "1.2.3"
    with pytest.raises(Fault, match=rf"images of different {keyword} .*SeriesInstanceUID") as caught:
        opened(phantom.write(images, tmp_path / "two"))
    assert not [text for text in phantom.IDENTITY if text in str(caught.value)]
