"""From a real archive and back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from dicomweb_client import DICOMwebClient
from pydicom import Dataset, dcmread

from tests.commands import SHARED_DATA, bundle_run, command, config_files, workbench
from tests.hosts.orthanc import needs_orthanc, orthanc

USER, PASSWORD = "integrator", "secret"

pytestmark = [pytest.mark.data, needs_orthanc]


@pytest.fixture(scope="module")
def source() -> list[Path]:
    folder = SHARED_DATA / "mr_dicom_study" / "13_HCropVolume"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent")
    return sorted(folder.glob("*.dcm"))


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with orthanc(tmp_path_factory.mktemp("orthanc")) as url:
        yield url


@pytest.fixture(scope="module")
def segmented(
    archive: str, source: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, Path]:
    """An archive with the series and what was made of it, the series as fetched, and what was stored."""
    url, folder = archive, tmp_path_factory.mktemp("segmented")
    fetched, made = folder / "fetched" / "series", folder / "made"
    assert f"{len(source)} file(s) in {url}" in workbench("store", url, *source)
    series = str(dcmread(source[0]).SeriesInstanceUID)
    assert f"{len(source)} instances in" in workbench("fetch", url, series, "--output_dir", fetched)
    files = config_files("inference", "dicom")
    places = ["--dataset_dir", str(fetched), "--output_dir", str(made)]
    done = command(*bundle_run(*places, files=files), cwd=folder)
    assert done.returncode == 0, done.stderr
    assert f"2 file(s) in {url}" in workbench("store", url, made)
    return url, fetched, made


def test_series_comes_back_as_it_was(segmented: tuple[str, Path, Path], source: list[Path]) -> None:
    _, fetched, _ = segmented
    sent, came = (
        {file.SOPInstanceUID: file for file in map(dcmread, f)} for f in (source, fetched.iterdir())
    )
    assert came.keys() == sent.keys()
    for uid, file in sent.items():
        np.testing.assert_array_equal(came[uid].pixel_array, file.pixel_array)
        assert came[uid].ImagePositionPatient == file.ImagePositionPatient


@pytest.mark.parametrize("modality", ["SEG", "SR"])
def test_result_is_found_in_the_study(
    segmented: tuple[str, Path, Path], source: list[Path], modality: str
) -> None:
    url, _, made = segmented
    client, image = DICOMwebClient(url), dcmread(source[0])
    study = str(image.StudyInstanceUID)
    (series,) = client.search_for_series(study, search_filters={"Modality": modality})
    (found,) = client.retrieve_series(study, Dataset.from_json(series).SeriesInstanceUID)
    (stored,) = [file for file in map(dcmread, made.rglob("*.dcm")) if file.Modality == modality]
    assert found == stored
    assert found.PatientID == image.PatientID


def test_segmentation_refers_to_the_slices(segmented: tuple[str, Path, Path], source: list[Path]) -> None:
    url, _, made = segmented
    (stored,) = [file for file in map(dcmread, made.rglob("*.dcm")) if file.Modality == "SEG"]
    study, client = str(stored.StudyInstanceUID), DICOMwebClient(url)
    (found,) = client.retrieve_series(study, str(stored.SeriesInstanceUID))
    (referenced,) = found.ReferencedSeriesSequence
    slices = {file.SOPInstanceUID for file in map(dcmread, source)}
    assert {item.ReferencedSOPInstanceUID for item in referenced.ReferencedInstanceSequence} == slices
    in_archive = client.search_for_instances(study, str(referenced.SeriesInstanceUID))
    assert {Dataset.from_json(item).SOPInstanceUID for item in in_archive} == slices


def test_two_stores_leave_one(segmented: tuple[str, Path, Path], source: list[Path]) -> None:
    url, _, made = segmented
    assert f"2 file(s) in {url}" in workbench("store", url, made)
    study = str(dcmread(source[0]).StudyInstanceUID)
    assert len(DICOMwebClient(url).search_for_series(study, search_filters={"Modality": "SEG"})) == 1


def test_what_is_not_there(segmented: tuple[str, Path, Path], tmp_path: Path) -> None:
    url, _, _ = segmented
    options = ("--output_dir", tmp_path / "series")
    assert "holds no series with this SeriesInstanceUID" in workbench("fetch", url, "1.2.3", *options)
    said = workbench("fetch", url.replace("dicom-web", "other"), "1.2.3", *options)
    assert "answers 404 for the series; it has nothing there" in said
    assert not list(tmp_path.iterdir())


def test_a_locked_archive_opens_with_netrc(
    source: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with orthanc(tmp_path, AuthenticationEnabled=True, RegisteredUsers={USER: PASSWORD}) as url:
        assert f"answers 401 for {source[0]}; it asks who you are" in workbench("store", url, source[0])
        (tmp_path / ".netrc").write_text(f"machine 127.0.0.1 login {USER} password {PASSWORD}")
        (tmp_path / ".netrc").chmod(0o600)
        assert f"1 file(s) in {url}" in workbench("store", url, source[0])
