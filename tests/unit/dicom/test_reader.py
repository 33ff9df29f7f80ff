"""MONAI's LoadImaged and our list of cases, with DICOM."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
from monai.data import PydicomReader
from monai.transforms import LoadImage, LoadImaged

from scripts.data import read_images
from scripts.dicom import DICOM_READER, DicomReader
from scripts.dicom.series import series_name
from scripts.errors import InputError
from tests import dicom_phantom as phantom
from tests.commands import ROOT, command


def cases(place: Path, **changed: object) -> list[dict]:
    about = {"spatial_dims": 3, "in_channels": 1, "reader": DICOM_READER, **changed}
    return read_images(place, **about).cases  # type: ignore[arg-type]


def test_the_name_in_the_config_is_the_reader() -> None:
    loader = LoadImaged("image", reader=DICOM_READER)
    assert type(loader._loader.readers[-1]) is DicomReader


def test_monai_reads_a_plain_series_alike(tmp_path: Path) -> None:
    """Its PydicomReader has rows first unless told otherwise, and takes the slices in order of position."""
    images, _ = phantom.make_odd("oblique")
    folder = phantom.write(images, tmp_path)
    ours = LoadImage(reader=DICOM_READER)(folder)
    theirs = LoadImage(reader=PydicomReader(swap_ij=True, affine_lps_to_ras=True))(folder)
    assert ours.shape == theirs.shape == (7, 6, 8)
    if (ours.affine[:3, 2] @ theirs.affine[:3, 2]) < 0:
        theirs = theirs.flip(-1)
        start = theirs.affine[:3, 3] + 7 * theirs.affine[:3, 2]
        assert np.allclose(ours.affine[:3, 3], start, atol=1e-4)
    else:
        assert np.allclose(ours.affine, theirs.affine, atol=1e-4)
    assert np.array_equal(ours, theirs)


def test_every_series_is_a_case(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    images, volume = phantom.make_odd("plain")
    others, other_volume = phantom.make_odd("missing", seed=1)
    phantom.write([*images, *others, phantom.secondary_capture(images[0])], tmp_path)
    with caplog.at_level(logging.INFO):
        found = cases(tmp_path)
    truths = {
        series_name(images[0].SeriesInstanceUID): volume,
        series_name(others[0].SeriesInstanceUID): other_volume,
    }
    assert [case["case"] for case in found] == sorted(truths)
    loader = LoadImaged("image", reader=DICOM_READER)
    for case in found:
        image = loader(case)["image"]
        planes = [0, 1, 2, 4, 5, 8, 9, 10] if image.shape[2] == 11 else slice(None)
        assert np.array_equal(image[..., planes], truths[case["case"]])
        assert Path(image.meta["filename_or_obj"]).name == case["case"]
    assert "2 series: series_" in caplog.text
    assert "left out: Secondary Capture Image Storage (1)" in caplog.text
    assert "3 slices are missing and are interpolated" in caplog.text


def test_nothing_about_the_patient_in_the_meta_data(tmp_path: Path) -> None:
    images, _ = phantom.make_odd("plain")
    image = LoadImage(reader=DICOM_READER)(phantom.write(images, tmp_path))
    kept = set(image.meta) - {"filename_or_obj"}
    assert kept == {
        *("affine", "original_affine", "spatial_shape", "space", "original_channel_dim", "series_digest"),
        "padding_share",
    }


def test_another_reader_does_not_take_what_is_refused(tmp_path: Path) -> None:
    """MONAI's own PydicomReader would read a folder of two series as one volume."""
    images, _ = phantom.make_odd("plain")
    others, _ = phantom.make_odd("plain", seed=1)
    phantom.write([*images, *others], tmp_path)
    with pytest.raises(InputError, match="holds 2 series"):
        LoadImage(reader=DICOM_READER)(tmp_path)


@pytest.mark.long
def test_pydicom_2_and_no_highdicom_are_enough_to_import(tmp_path: Path) -> None:
    """MONAI Label's environment: nothing that it lacks is imported before it is used."""
    hidden = "for name in ('pydicom.pixels', 'highdicom'): sys.modules[name] = None"
    code = f"import sys, pydicom\n{hidden}\nimport scripts.data, scripts.dicom"
    done = command("-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_several_paths_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="2 images are given for one case"):
        DicomReader().read([tmp_path, tmp_path])


def test_which_paths_it_reads(tmp_path: Path) -> None:
    reader = DicomReader()
    assert reader.verify_suffix([tmp_path])
    assert reader.verify_suffix("study.ZIP")
    assert reader.verify_suffix("study/series_0123456789ab")
    assert not reader.verify_suffix("scan.nii.gz")


def test_a_bad_series_is_left_out_and_the_others_are_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images, _ = phantom.make_odd("plain")
    others, _ = phantom.make_odd("plain", seed=1)
    others[3].pop("PixelSpacing")
    phantom.write([*images, *others], tmp_path)
    found = read_images(tmp_path, spatial_dims=3, in_channels=1, reader=DICOM_READER)
    bad = series_name(others[0].SeriesInstanceUID)
    assert [case["case"] for case in found.cases] == [series_name(images[0].SeriesInstanceUID)]
    assert f"{bad}: found no usable PixelSpacing (instance number 4)" in caplog.text
    with pytest.raises(InputError, match=f"1 of 2 images were not segmented: {bad}"):
        found.finish()


def test_what_a_network_cannot_take(tmp_path: Path) -> None:
    images, _ = phantom.make_odd("plain")
    phantom.write(images, tmp_path / "series")
    phantom.write(images[:1], tmp_path / "single")
    for place, changed, sentence in (
        ("single", {}, "a single slice"),
        ("series", {"in_channels": 2}, "one channel"),
        ("series", {"spatial_dims": 2}, "3 dimensions"),
        ("series", {"section": "testing"}, "section is 'testing' and the images are DICOM"),
        ("nowhere", {}, "is not there: hand a folder"),
    ):
        with pytest.raises(InputError, match=sentence):
            cases(tmp_path / place, **changed)


def test_dicom_without_its_config_says_what_to_add(tmp_path: Path) -> None:
    images, _ = phantom.make_odd("plain")
    phantom.write(images, tmp_path, names="{}.dcm")
    with pytest.raises(InputError, match=r"unknown suffix '\.dcm'.*or add configs/dicom\.json"):
        cases(tmp_path, reader="scripts.data.ImageReader")


def test_a_source_that_goes_after_the_check(tmp_path: Path) -> None:
    images, _ = phantom.make_odd("plain")
    (case,) = cases(phantom.write(images, tmp_path / "study"))
    shutil.rmtree(tmp_path / "study")
    with pytest.raises(InputError, match="is not there: hand a folder"):
        LoadImaged("image", reader=DICOM_READER)(case)
