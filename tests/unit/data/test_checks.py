"""Every way a file can be wrong is found and named; sound files pass."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import tifffile
from PIL import Image

from scripts.data.checks import (
    MAX_ROWS,
    Problem,
    check_case,
    check_cases,
    check_image,
    format_table,
    inspect_cases,
    log_problems,
    require_sound,
)
from scripts.data.reader import read_dims
from scripts.errors import InputError
from tests.commands import SHARED_DATA

LABELS = {"background": 0, "anterior": 1, "posterior": 2}
DATA = SHARED_DATA
BAD = DATA / "bad_inputs"
needs_bad = pytest.mark.skipif(not BAD.is_dir(), reason="the shared data set bad_inputs is absent")


def write(path: Path, array: Any, affine: Any = None) -> str:
    """Write `(x, y, z)` as NIfTI, or `(width, height[, channel])` as a picture."""
    array = np.asarray(array)
    if path.name.endswith((".nii", ".nii.gz")):
        nib.save(nib.Nifti1Image(array, np.eye(4) if affine is None else affine), path)
    else:
        Image.fromarray(array.swapaxes(0, 1)).save(path)
    return str(path)


def volume(folder: Path, name: str = "image.nii.gz", shape: tuple[int, ...] = (4, 5, 6)) -> str:
    return write(folder / name, np.arange(np.prod(shape), dtype=np.float32).reshape(shape))


def label(folder: Path, array: Any = None, name: str = "label.nii.gz", affine: Any = None) -> str:
    if array is None:
        array = np.zeros((4, 5, 6), np.uint8)
        array[1:3, 2, 2], array[1:3, 2, 3] = 1, 2
    return write(folder / name, array, affine)


def check(image: Any, label: Any = None, dims: int = 3, **kwargs: Any) -> list[Problem]:
    case = {"image": image, "label": label, "case": "c"}
    settings: dict[str, Any] = {"spatial_dims": dims, "in_channels": 1, "labels": LABELS}
    return check_case(case, **(settings | kwargs))


def only(problems: list[Problem]) -> str:
    """The sentence of the one problem there is."""
    assert len(problems) == 1, [problem.sentence() for problem in problems]
    return problems[0].sentence()


def image_only(path: Path | str, dims: int = 3, in_channels: int = 1) -> str:
    return only(check_image({"image": str(path), "case": "c"}, spatial_dims=dims, in_channels=in_channels))


def test_a_sound_case_has_no_problems_and_the_right_facts(tmp_path: Path) -> None:
    affine = np.array([[0, 2.0, 0, 0], [-1, 0, 0, 0], [0, 0, 3, 0], [0, 0, 0, 1]])  # x and y swapped
    image = write(tmp_path / "i.nii.gz", np.ones((4, 5, 6), np.int16), affine)
    truth = label(tmp_path, affine=affine)
    case = {"image": image, "label": truth, "case": "c"}
    [(problems, facts)] = inspect_cases([case], spatial_dims=3, in_channels=1, labels=LABELS)
    canonical = nib.as_closest_canonical(nib.Nifti1Image.from_filename(image))
    assert problems == []
    assert facts is not None
    assert facts.shape == canonical.shape == (5, 4, 6)
    assert facts.spacing == pytest.approx(canonical.header.get_zooms()) == (2, 1, 3)
    assert facts.voxels == {0: 116, 1: 2, 2: 2}


def test_sound_variants_pass(tmp_path: Path) -> None:
    truth = label(tmp_path)
    as_float = label(
        tmp_path, nib.Nifti1Image.from_filename(truth).get_fdata().astype(np.float32), "float.nii.gz"
    )
    shifted = np.eye(4)
    shifted[0, 3] = 0.05  # half the tolerance
    channels = [volume(tmp_path, f"i_000{channel}.nii.gz") for channel in range(2)]
    assert check(volume(tmp_path), as_float) == []
    assert check(volume(tmp_path, "plain.nii"), truth) == []
    assert (
        check(
            volume(tmp_path),
            label(tmp_path, nib.Nifti1Image.from_filename(truth).dataobj, "s.nii.gz", shifted),
        )
        == []
    )
    assert check(volume(tmp_path, "4d.nii.gz", (4, 5, 6, 2)), truth, in_channels=2) == []
    assert check(channels, truth, in_channels=2) == []


@pytest.mark.parametrize(("name", "dtype"), [("i.png", np.uint8), ("i.tif", np.uint16), ("i.bmp", np.uint8)])
def test_grey_pictures_and_palette_labels_pass(tmp_path: Path, name: str, dtype: type) -> None:
    image = write(tmp_path / name, np.arange(20, dtype=dtype).reshape(4, 5))
    truth = Image.fromarray(np.eye(5, 4, dtype=np.uint8), mode="L").convert("P")
    truth.putdata(np.eye(5, 4, dtype=np.uint8).ravel())
    truth.save(tmp_path / "label.png")
    assert check(image, str(tmp_path / "label.png"), dims=2) == []


def test_missing_files(tmp_path: Path) -> None:
    assert "found no such file" in only(check(str(tmp_path / "none.nii.gz"), label(tmp_path)))
    assert "none.nii.gz: found no such file" in only(check(volume(tmp_path), str(tmp_path / "none.nii.gz")))
    assert "found an image without a label" in only(check(volume(tmp_path)))
    assert "found a label without an image" in only(check(None, label(tmp_path)))
    assert "found a folder" in image_only(tmp_path)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "empty.nii.gz").touch()
    (tmp_path / "lfs.nii.gz").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    (tmp_path / "text.nii.gz").write_text("this is no image")
    (tmp_path / "zeros.nii").write_bytes(bytes(400))
    (tmp_path / "scan.mha").write_bytes(b"ObjectType = Image")
    assert "found an empty file (0 bytes)" in image_only(tmp_path / "empty.nii.gz")
    assert "found a Git LFS pointer" in image_only(tmp_path / "lfs.nii.gz")
    assert "truncated or corrupt .nii.gz file (Not a gzipped file" in image_only(tmp_path / "text.nii.gz")
    assert "found voxels that begin at byte 0" in image_only(tmp_path / "zeros.nii")
    assert "found the unknown suffix '.mha'" in image_only(tmp_path / "scan.mha")


@pytest.mark.parametrize("share", [0.02, 0.5, 0.98])
@pytest.mark.parametrize("name", ["i.nii.gz", "i.nii", "i.png", "i.tif", "i.bmp", "i.jpg"])
def test_a_file_cut_off_anywhere_is_found(tmp_path: Path, name: str, share: float) -> None:
    rng = np.random.default_rng(0)
    flat = name.endswith((".png", ".tif", ".bmp", ".jpg"))
    array = rng.integers(0, 255, (40, 50) if flat else (20, 20, 20)).astype(np.uint8)
    path = Path(write(tmp_path / name, array))
    assert check_image({"image": path, "case": "c"}, spatial_dims=array.ndim, in_channels=1) == []
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    assert "truncated or corrupt" in image_only(path, array.ndim)


def test_a_gzip_that_lacks_only_its_checksum_is_found(tmp_path: Path) -> None:
    path = Path(volume(tmp_path, shape=(20, 20, 20)))
    path.write_bytes(path.read_bytes()[:-4])
    assert nib.Nifti1Image.from_filename(path).get_fdata().shape == (
        20,
        20,
        20,
    )  # a reader that stops at the last voxel sees nothing
    assert "truncated or corrupt .nii.gz" in image_only(path)


def test_a_png_that_lacks_only_its_end_is_found(tmp_path: Path) -> None:
    path = Path(write(tmp_path / "i.png", np.ones((4, 5), np.uint8)))
    path.write_bytes(path.read_bytes()[:-12])  # the IEND chunk
    Image.open(path).load()  # a reader that stops at the last pixel sees nothing
    assert "truncated or corrupt .png" in image_only(path, 2)


def test_a_gzip_with_a_changed_byte_is_found(tmp_path: Path) -> None:
    path = Path(volume(tmp_path))
    content = bytearray(gzip.decompress(path.read_bytes()))
    packed = bytearray(gzip.compress(bytes(content), compresslevel=0))
    packed[-20] ^= 1  # a voxel, as level 0 stores plain bytes
    path.write_bytes(packed)
    assert "CRC check failed" in image_only(path)


def test_wrong_dimensions_and_channels(tmp_path: Path) -> None:
    series = volume(tmp_path, "4d.nii.gz", (4, 5, 6, 3))
    assert "4 dimensions (4, 5, 6, 3); a 3D image with 1 channel(s)" in image_only(series)
    assert "4 dimensions" in image_only(series, in_channels=2)
    assert "one channel (4, 5, 6); in_channels=2" in image_only(volume(tmp_path), in_channels=2)
    assert "a single slice (4, 5, 1)" in image_only(volume(tmp_path, "flat.nii.gz", (4, 5, 1)))
    said = image_only(volume(tmp_path), dims=2)
    assert "3 dimensions (4, 5, 6); a 2D image" in said
    assert said.endswith("save its slices as PNG, or work in 3D.")
    assert "found a 2D picture" in image_only(write(tmp_path / "i.png", np.ones((4, 5), np.uint8)))
    three = [volume(tmp_path, f"{channel}.nii.gz") for channel in range(3)]
    assert "3 channel files; in_channels=2" in only(check(three, label(tmp_path), in_channels=2))
    pair = [three[0], volume(tmp_path, "odd.nii.gz", (4, 5, 7))]
    assert "(4, 5, 7) where the first channel has (4, 5, 6)" in only(
        check(pair, label(tmp_path), in_channels=2)
    )


@pytest.mark.parametrize(
    ("mode", "in_channels", "found"),
    [
        ("RGB", 1, "a colour picture (RGB)"),
        ("RGBA", 1, "a colour picture with alpha (RGBA)"),
        ("LA", 1, "a grey picture with alpha (LA)"),
        ("P", 1, "a palette picture (P)"),
        ("L", 3, "a grey picture (uint8)"),
        ("P", 3, "a palette picture (P)"),
    ],
)
def test_colour_and_grey_are_told_apart(tmp_path: Path, mode: str, in_channels: int, found: str) -> None:
    colours = np.random.default_rng(0).integers(0, 255, (5, 4, 3)).astype(np.uint8)
    Image.fromarray(colours).convert(mode).save(tmp_path / "i.png")
    assert f"found {found}; " in image_only(tmp_path / "i.png", 2, in_channels)


def test_the_fix_for_grey_stored_as_colour_works(tmp_path: Path) -> None:
    grey = np.arange(20, dtype=np.uint8).reshape(5, 4)
    path = tmp_path / "i.png"
    Image.fromarray(grey).convert("RGBA").save(path)
    sentence = image_only(path, 2)
    assert "(RGBA) with R = G = B" in sentence
    assert "Image.open(file).convert('L').save(file)" in sentence
    Image.open(path).convert("L").save(path)
    assert check_image({"image": path, "case": "c"}, spatial_dims=2, in_channels=1) == []
    assert np.array_equal(np.asarray(Image.open(path)), grey)


def test_a_stack_of_pages_is_refused(tmp_path: Path) -> None:
    page = Image.fromarray(np.ones((5, 4), np.uint8))
    page.save(tmp_path / "i.tif", save_all=True, append_images=[page, page])
    assert "found 3 pages" in image_only(tmp_path / "i.tif", 2)


def test_non_finite_voxels_are_counted(tmp_path: Path) -> None:
    array = np.ones((4, 5, 6), np.float32)
    array[0, 0, :3], array[1, 1, :2] = np.nan, -np.inf
    assert "found 3 NaN and 2 infinite voxels" in image_only(write(tmp_path / "i.nii.gz", array))


@pytest.mark.parametrize("scale", [1e200, 1e36, 1e-40, 1e-300])
def test_intensities_that_float32_loses_are_refused(scale: float, tmp_path: Path) -> None:
    array = np.random.default_rng(0).random((4, 5, 6)) * scale
    said = image_only(write(tmp_path / "i.nii.gz", array))
    assert "found intensities up to" in said
    assert "between 1e-30 and 1e+30" in said


@pytest.mark.parametrize("scale", [1e29, 1e-29, 0.0])
def test_intensities_of_any_other_unit_are_read(scale: float, tmp_path: Path) -> None:
    array = np.random.default_rng(0).random((4, 5, 6)) * scale
    case = {"image": write(tmp_path / "i.nii.gz", array), "case": "c"}
    problems = check_image(case, spatial_dims=3, in_channels=1)
    assert not [problem for problem in problems if problem.severity == "error"]


def test_grids_that_differ(tmp_path: Path) -> None:
    image = volume(tmp_path)
    truth = np.asarray(nib.Nifti1Image.from_filename(label(tmp_path)).dataobj)
    assert "shape (4, 5, 5) where the image has (4, 5, 6)" in only(
        check(image, label(tmp_path, truth[..., :5], "short.nii.gz"))
    )
    shifted = np.eye(4)
    shifted[:2, 3] = 3, 4  # 5 mm by Pythagoras
    assert "up to 5 mm away from that of the image" in only(
        check(image, label(tmp_path, truth, "shift.nii.gz", shifted))
    )
    flipped = np.diag([-1.0, 1, 1, 1])  # from x = 0 to x = -3, beside 0 to 3
    found = only(check(image, label(tmp_path, truth, "flip.nii.gz", flipped)))
    assert "up to 3 mm away" in found
    assert "copy the affine" not in found


def test_a_singular_affine_is_found(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.ones((4, 5, 6), np.uint8), None)
    image.header["sform_code"] = 1
    image.header["srow_x"] = [1, 0, 0, 0]
    image.header["srow_y"] = [1, 0, 0, 0]
    image.header["srow_z"] = [0, 0, 1, 0]
    nib.save(image, tmp_path / "i.nii.gz")
    assert "an affine that is not invertible" in image_only(tmp_path / "i.nii.gz")


def test_label_values(tmp_path: Path) -> None:
    image = volume(tmp_path)
    truth = np.asarray(nib.Nifti1Image.from_filename(label(tmp_path)).dataobj).astype(np.float32)

    def found(value: float, **kwargs: Any) -> list[Problem]:
        changed = truth.copy()
        changed[0, 0, 0] = value
        return check(image, label(tmp_path, changed, "changed.nii.gz"), **kwargs)

    assert "1 different fractional values such as 0.5" in only(found(0.5))
    assert "1 NaN voxels" in only(found(np.nan))
    assert "negative values -1" in only(found(-1))
    assert "label values 7 that are not declared" in only(found(7))
    assert found(7, labels=LABELS | {"ignore": 7}) == []
    assert found(7, labels=None) == []
    assert found(7, instances=True) == []


def test_all_problems_of_a_case_are_found_at_once(tmp_path: Path) -> None:
    array = np.ones((4, 5, 6), np.float32)
    array[0, 0, 0] = np.nan
    truth = np.zeros((4, 5, 7), np.int16)
    truth[0, 0, :2] = -3, 9
    problems = check(write(tmp_path / "i.nii.gz", array), label(tmp_path, truth))
    keys = ["1 NaN", "shape (4, 5, 7)", "negative values -3", "label values 9"]
    assert len(problems) == len(keys)
    assert all(key in problem.found for key, problem in zip(keys, problems, strict=True))


def test_an_empty_label_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    empty = label(tmp_path, np.zeros((4, 5, 6), np.uint8))
    problems = check(volume(tmp_path), empty)
    assert [problem.severity for problem in problems] == ["warning"]
    require_sound(problems)
    assert "found an empty label (nothing but background)" in caplog.text
    ignored = label(tmp_path, np.full((4, 5, 6), 9, np.uint8), "ignored.nii.gz")
    for settings in ({"labels": LABELS | {"ignore": 9}}, {"labels": {"ignore": 9}, "instances": True}):
        [problem] = check(volume(tmp_path), ignored, **settings)
        assert problem.severity == "error"
        assert "the value 9 everywhere, which is that of" in problem.found


def test_labels_that_are_pictures(tmp_path: Path) -> None:
    image = write(tmp_path / "i.png", np.ones((4, 5), np.uint8))
    mask = np.zeros((4, 5), np.uint8)
    mask[1:3, 1:3] = 255
    masked = write(tmp_path / "mask.png", mask)
    assert "0 and 255, a mask, not an instance map" in only(check(image, masked, 2, instances=True))
    assert check(image, masked, 2, labels={"background": 0, "cell": 255}) == []
    jpeg = write(tmp_path / "mask.jpg", mask)
    assert "a label stored as JPEG" in only(check(image, jpeg, 2))
    colour = write(tmp_path / "colour.png", np.stack([mask, mask, 0 * mask], axis=2))
    assert "a colour picture (RGB); a label has one channel" in only(check(image, colour, 2))
    turned = write(tmp_path / "turned.png", mask.T)
    assert "shape (5, 4) where the image has (4, 5)" in check(image, turned, 2, labels=None)[0].found


def test_a_label_that_is_white_is_zero_is_read_as_stored(tmp_path: Path) -> None:
    mask = np.zeros((4, 5), np.uint8)
    mask[1:3, 1:3] = 255
    for number in (mask, mask.astype(np.uint16)):
        tifffile.imwrite(tmp_path / "label.tif", number.T, photometric="miniswhite")
        image = write(tmp_path / "i.png", np.ones((4, 5), np.uint8))
        case = {"image": image, "label": str(tmp_path / "label.tif"), "case": "c"}
        [(problems, facts)] = inspect_cases([case], spatial_dims=2, in_channels=1, labels=None)
        assert facts is not None
        assert facts.voxels == {0: 16, 255: 4}
        assert "found a label that is WhiteIsZero" in only(problems)
        assert problems[0].severity == "warning"


def test_jpeg_is_no_label_under_any_name(tmp_path: Path) -> None:
    image, mask = write(tmp_path / "i.png", np.ones((16, 16), np.uint8)), Image.new("L", (16, 16), 1)
    mask.save(tmp_path / "mask.png", format="JPEG")
    mask.save(tmp_path / "mask.tif", compression="jpeg")
    for name in ("mask.png", "mask.tif"):
        assert "a label stored as JPEG" in only(check(image, str(tmp_path / name), 2))


def test_five_channels_and_colour_of_16_bits(tmp_path: Path) -> None:
    for channels in (3, 5):
        values = np.arange(16 * 16 * channels, dtype=np.uint16).reshape(16, 16, channels)
        tifffile.imwrite(
            tmp_path / "i.tif",
            values,
            photometric="rgb" if channels == 3 else "minisblack",
            planarconfig="contig",
        )
        assert read_dims(tmp_path / "i.tif") == (2, channels)
        sound = check_image({"image": tmp_path / "i.tif", "case": "c"}, spatial_dims=2, in_channels=channels)
        assert sound == []
        assert "save one of its channels" in image_only(tmp_path / "i.tif", 2)


def test_many_problems_make_one_table(tmp_path: Path) -> None:
    sound, truth = volume(tmp_path), label(tmp_path)
    cases = [{"image": sound, "label": truth, "case": "good"}]
    cases += [{"image": str(tmp_path / f"{n}.nii.gz"), "label": truth, "case": f"c{n}"} for n in range(25)]
    problems = check_cases(cases, spatial_dims=3, in_channels=1, labels=LABELS)
    assert [problem.case for problem in problems] == [f"c{n}" for n in range(25)]
    with pytest.raises(InputError, match=r"^25 problems in the data") as raised:
        require_sound(problems)
    lines = str(raised.value).splitlines()
    assert len(lines) == 1 + 2 + MAX_ROWS + 1
    assert lines[-1] == "and 5 more"
    with pytest.raises(InputError) as raised:
        require_sound(problems[:1])
    assert str(raised.value) == problems[0].sentence()
    require_sound([])


def test_a_warning_in_the_log_says_that_it_is_one(caplog: pytest.LogCaptureFixture) -> None:
    log_problems(
        [Problem("a", "a.nii", "NaN", "r", "f"), Problem("b", "b.nii", "metres", "r", "f", "warning")]
    )
    assert caplog.messages == ["a.nii: found NaN; r; f.", "(warning) b.nii: found metres; r; f."]


def test_warnings_that_differ_in_numbers_are_one_line(caplog: pytest.LogCaptureFixture) -> None:
    found = {name: f"{number} mm away" for name, number in (("a", 3.5), ("b", 12), ("c", 0.25))}
    others = Problem("d", "d.nii", "metres", "r", "f", "warning")
    log_problems(
        [*(Problem(name, f"{name}.nii", text, "r", "f", "warning") for name, text in found.items()), others]
    )
    assert caplog.messages == [
        "(warning) a.nii: found 3.5 mm away; r; f. So it is with 2 more: b, c",
        "(warning) d.nii: found metres; r; f.",
    ]


def test_the_table_is_aligned() -> None:
    problems = [
        Problem("a", "x/y/z.png", "NaN", "r", "f"),
        Problem("long", "z.png", "no", "r", "g", "warning"),
    ]
    assert format_table(problems).splitlines() == [
        "case | file    | found        | fix",
        "---- | ------- | ------------ | ---",
        "a    | y/z.png | NaN          | f",
        "long | z.png   | (warning) no | g",
    ]


@needs_bad
@pytest.mark.data
@pytest.mark.parametrize(
    ("file", "dims", "found"),
    [
        ("hippocampus_planted/imagesTr/.DS_Store", 3, "the unknown suffix"),
        ("git_lfs_pointer/liver_0.nii.gz", 3, "a Git LFS pointer"),
        ("nonfinite/mtr_inf.nii.gz", 3, "633 infinite voxels"),
        ("nonfinite/fmri_tsnr_nan.nii.gz", 3, "408 NaN voxels"),
        ("wrong_dims/dmri_4d.nii.gz", 3, "4 dimensions (40, 42, 5, 7)"),
        ("wrong_pixels/stained_rgba.png", 2, "a colour picture with alpha (RGBA); a grey image"),
        ("wrong_pixels/grey_stored_as_rgba.png", 2, "a colour picture with alpha (RGBA) with R = G = B"),
    ],
)
def test_real_bad_images(file: str, dims: int, found: str) -> None:
    assert f"{Path(file).name}: found {found}" in image_only(BAD / file, dims)


@needs_bad
@pytest.mark.data
@pytest.mark.parametrize(
    ("image", "label", "dims", "instances", "found"),
    [
        ("hippocampus_planted/imagesTr/hippocampus_118.nii.gz", None, 3, False, "an image without a label"),
        (None, "hippocampus_planted/labelsTr/hippocampus_010.nii.gz", 3, False, "a label without an image"),
        (
            "hippocampus_planted/imagesTr/hippocampus_011.nii.gz",
            "hippocampus_planted/labelsTr/hippocampus_281.nii.gz",
            3,
            False,
            "shape (512, 512, 94)",
        ),
        ("soft_label/mt1.nii.gz", "soft_label/mt1_gmseg.nii.gz", 3, False, "203 different fractional values"),
        (
            "wrong_dims/t2_60x55x52.nii.gz",
            "wrong_dims/mt1_seg_40x40x5.nii.gz",
            3,
            False,
            "shape (40, 40, 5) where the image has (60, 55, 52)",
        ),
        (
            "wrong_pixels/em_256_16bit.png",
            "wrong_pixels/mask_0_255_one_nucleus.png",
            2,
            True,
            "only the values 0 and 255, a mask, not an instance map",
        ),
    ],
)
def test_real_bad_pairs(image: str | None, label: str | None, dims: int, instances: bool, found: str) -> None:
    problems = check(image and str(BAD / image), label and str(BAD / label), dims, instances=instances)
    assert f"{Path(label or image or '').name}: found {found}" in only(problems)


@needs_bad
@pytest.mark.data
@pytest.mark.parametrize("name", ["hippocampus_003", "hippocampus_011", "hippocampus_210"])
def test_real_odd_but_sound_pairs(name: str) -> None:
    folder = BAD / "hippocampus_planted"
    assert check(str(folder / f"imagesTr/{name}.nii.gz"), str(folder / f"labelsTr/{name}.nii.gz")) == []


@needs_bad
@pytest.mark.data
def test_a_real_16_bit_image_is_sound() -> None:
    case = {"image": str(BAD / "wrong_pixels/em_256_16bit.png"), "case": "em"}
    assert check_image(case, spatial_dims=2, in_channels=1) == []
