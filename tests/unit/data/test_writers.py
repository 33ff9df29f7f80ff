"""What SaveCased writes, read back by nibabel and Pillow."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, SaveImaged
from PIL import Image

from scripts.data import SaveCased, SaveSpreadd
from scripts.data.reader import columns_first, read_file
from scripts.data.writers import writer_for
from scripts.errors import InputError
from scripts.labels import label_type

# oblique, 0.7 x 1 x 2.5 mm, shifted: all twelve numbers matter
AFFINE = np.array([[0.69, 0.1, 0.0, 5.0], [-0.1, 0.99, 0.3, -7.0], [0.0, -0.2, 2.48, 11.0], [0, 0, 0, 1]])


def make_pred(folder, ext: str, values: np.ndarray, dtype=torch.int32) -> MetaTensor:
    """A prediction on the grid of an image that was read from disk, as postprocessing hands it in."""
    source = folder / f"scan{ext}"
    if ext == ".png":
        Image.fromarray(np.zeros(values.shape, np.uint8).T).save(source)
    else:
        nib.save(nib.Nifti1Image(np.zeros(values.shape, np.int16), AFFINE), source)
    load = Compose([LoadImaged("image", reader="scripts.data.ImageReader"), EnsureChannelFirstd("image")])
    image = load({"image": str(source)})["image"]
    return MetaTensor(torch.as_tensor(values)[None].to(dtype), meta=image.meta)


def save(pred: MetaTensor, folder, ext: str):
    SaveCased("pred", output_dir=folder / "out", output_postfix="seg", output_ext=ext)(
        {"case": "1.5/scan", "pred": pred}
    )
    return folder / "out" / f"1.5_scan_seg{ext}"


def make_labels(shape: tuple[int, ...], largest: int) -> np.ndarray:
    labels = np.random.default_rng(0).integers(0, largest + 1, shape)
    labels[(0,) * len(shape)] = largest
    return labels


@pytest.mark.parametrize("ext", [".nii.gz", ".nii"])
@pytest.mark.parametrize("shape", [(4, 5, 6), (4, 5, 1)])
@pytest.mark.parametrize(
    ("largest", "stored"),
    [
        (1, np.uint8),
        (255, np.uint8),
        (256, np.uint16),
        (65535, np.uint16),
        (65536, np.int32),
        (70001, np.int32),
    ],
)
def test_labels_as_nifti(tmp_path, ext, shape, largest, stored):
    labels = make_labels(shape, largest)
    written = nib.load(save(make_pred(tmp_path, ext, labels), tmp_path, ext))
    assert written.get_data_dtype() == stored
    np.testing.assert_array_equal(np.asarray(written.dataobj).reshape(shape), labels)
    np.testing.assert_allclose(written.affine, AFFINE, atol=1e-5)


def test_flat_nifti(tmp_path):
    labels = make_labels((7, 5), 300)
    written = nib.load(save(make_pred(tmp_path, ".nii.gz", labels), tmp_path, ".nii.gz"))
    assert written.get_data_dtype() == np.uint16
    np.testing.assert_array_equal(np.asarray(written.dataobj), labels)
    np.testing.assert_allclose(written.header.get_zooms(), np.linalg.norm(AFFINE[:3, :2], axis=0), atol=1e-5)


@pytest.mark.parametrize(
    ("largest", "stored"), [(1, np.uint8), (255, np.uint8), (256, np.uint16), (65535, np.uint16)]
)
def test_labels_as_png(tmp_path, largest, stored):
    labels = make_labels((9, 4), largest)  # (width, height)
    with Image.open(save(make_pred(tmp_path, ".png", labels), tmp_path, ".png")) as written:
        assert written.size == (9, 4)
        found = np.asarray(written)
    assert found.dtype == stored
    np.testing.assert_array_equal(found.T, labels)


def test_probabilities_of_a_picture_have_its_rows_first(tmp_path):
    """As numpy.asarray(Image.open(...)) has them; the affine says so, and the readers go by it."""
    pred = make_pred(tmp_path, ".png", make_labels((9, 4), 200), torch.float32)  # (width, height)
    for channels in (1, 3):
        several = torch.cat([pred.as_tensor() + n for n in range(channels)])
        path = save(MetaTensor(several, meta=pred.meta), tmp_path, ".nii.gz")
        picture = np.asarray(Image.open(tmp_path / "scan.png"))
        written = nib.load(path)
        found = np.asarray(written.dataobj).reshape(*written.shape[:2], channels)
        assert found.shape[:2] == picture.shape
        np.testing.assert_array_equal(found, np.transpose(several, (2, 1, 0)))
        assert nib.aff2axcodes(written.affine)[:2] == ("A", "R")
        np.testing.assert_array_equal(
            columns_first(read_file(path)).reshape(9, 4, channels), np.moveaxis(several.numpy(), 0, -1)
        )


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64])
@pytest.mark.parametrize("ext", [".png", ".nii.gz"])
def test_type_in_memory_does_not_matter(tmp_path, dtype, ext):
    labels = make_labels((6, 5) if ext == ".png" else (6, 5, 3), 1)
    path = save(make_pred(tmp_path, ext, labels, dtype), tmp_path, ext)
    found = np.asarray(Image.open(path)).T if ext == ".png" else np.asarray(nib.load(path).dataobj)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, labels)


def test_probabilities_stay_floats(tmp_path):
    values = np.random.default_rng(0).random((4, 5, 6)).astype(np.float32)
    pred = make_pred(tmp_path, ".nii.gz", values, torch.float32)
    pred = MetaTensor(torch.cat([pred, 1 - pred]), meta=pred.meta)
    written = nib.load(save(pred, tmp_path, ".nii.gz"))
    assert written.get_data_dtype() == np.float32
    np.testing.assert_array_equal(np.asarray(written.dataobj), np.stack([values, 1 - values], -1))
    np.testing.assert_allclose(written.affine, AFFINE, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 1), (5, 1), (1, 5)])
def test_a_picture_of_one_row_or_column_keeps_its_shape(tmp_path, shape):
    values = make_labels(shape, 3)
    with Image.open(save(make_pred(tmp_path, ".png", values), tmp_path, ".png")) as written:
        np.testing.assert_array_equal(np.asarray(written), values.T)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.full((3, 4), 70000), "int32 data from 70000 to 70000 to save; a .png holds .* set output_ext"),
        (np.full((3, 4), -1), "int32 data from -1 to -1 to save; a .png holds"),
        (
            np.ones((3, 4, 2)),
            r"a volume of \(3, 4, 2\) voxels to save; a .png holds one plane; set output_ext",
        ),
        (np.full((3, 4), 0.5, np.float32), "float32 data from 0.5 to 0.5 to save; a .png holds"),
    ],
)
def test_what_a_png_cannot_hold_is_refused(tmp_path, values, message):
    pred = make_pred(tmp_path, ".png", values, torch.float32 if values.dtype.kind == "f" else torch.int32)
    with pytest.raises(InputError, match=message):
        writer_for(".png")().set_data_array(pred)
    with pytest.raises(InputError, match=message):
        save(pred, tmp_path, ".png")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 0, np.uint8),
        (0, 255, np.uint8),
        (0, 256, np.uint16),
        (0, 65536, np.int32),
        (-1, 3, np.int32),
        (0, 2**31 - 1, np.int32),
        (0, 2**31, np.int64),
    ],
)
def test_smallest_type_that_holds_every_label(low, high, expected):
    assert label_type(np.array([low, high])) is expected


@pytest.mark.parametrize("ext", [".png", ".nii.gz"])
@pytest.mark.parametrize("old", [True, False])
def test_a_failing_backend_leaves_what_was_there(tmp_path, monkeypatch, ext, old):
    pred = make_pred(tmp_path, ext, make_labels((6, 5) if ext == ".png" else (6, 5, 3), 2))
    if old:
        before = save(pred, tmp_path, ext).read_bytes()

    def write_half(*arguments, **_) -> None:
        path = next(a for a in arguments if isinstance(a, str))
        with open(path, "wb") as file:
            file.write(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(nib, "save", write_half)
    monkeypatch.setattr(Image.Image, "save", write_half)
    with pytest.raises(OSError, match="no space left on device"):
        save(pred, tmp_path, ext)
    left = list((tmp_path / "out").iterdir())
    assert [path.name for path in left] == ([f"1.5_scan_seg{ext}"] if old else [])
    assert not old or left[0].read_bytes() == before


def test_a_host_that_hands_no_id_gets_the_name_of_the_file(tmp_path):
    image = make_pred(tmp_path, ".png", make_labels((6, 5), 2))
    save_image = SaveCased("pred", output_dir=tmp_path / "out", output_postfix="seg", output_ext=".png")
    assert isinstance(save_image, SaveImaged)  # which MONAI Label leaves out
    save_image({"image": image, "pred": image})
    assert (tmp_path / "out/scan_seg.png").is_file()


@pytest.mark.parametrize("ext", [".jpg", ".tif", "png", ""])
def test_unknown_suffix_is_refused_before_any_work(ext):
    with pytest.raises(InputError, match=rf"output_ext is '{ext}': give one of .png, .nii, .nii.gz"):
        writer_for(ext)


@pytest.mark.parametrize("ext", [".nii.gz", ".png"])
def test_spread_is_the_entropy_over_that_of_all_alike(tmp_path, ext):
    shape = (2, 2) if ext == ".png" else (2, 2, 1)
    image = make_pred(tmp_path, ext, np.zeros(shape, int))
    voxels = torch.tensor([[1, 0, 0], [1 / 3, 1 / 3, 1 / 3], [0.5, 0.5, 0], [0.9, 0.06, 0.04]])
    pred = MetaTensor(voxels.T.reshape(3, *shape), meta=image.meta)
    case = {"case": "scan", "pred": pred}
    assert SaveSpreadd("pred", tmp_path / "out", ext)(case)["pred"] is pred
    file = tmp_path / "out" / f"scan_spread{ext}"
    expected = np.array([0, 1, np.log(2) / np.log(3), 0])
    expected[3] = -sum(p * np.log(p) for p in (0.9, 0.06, 0.04)) / np.log(3)
    if ext == ".png":
        found = np.asarray(Image.open(file)).T
        assert found.dtype == np.uint8
        expected = np.round(255 * expected)
    else:
        found = np.asarray(nib.load(file).dataobj)
        assert found.dtype == np.float32
    assert np.allclose(found.ravel(), expected, atol=1e-5)
