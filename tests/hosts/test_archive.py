"""A real archive: Orthanc with its DICOMweb plugin, on loopback.

`apt-get install --no-install-recommends orthanc orthanc-dicomweb` installs it on Debian.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from dicomweb_client import DICOMwebClient
from pydicom import Dataset, dcmread
from typer.testing import CliRunner

from bundle.__main__ import app
from scripts.errors import InputError
from tests.commands import SHARED_DATA, bundle_run, command, config_files
from tests.hosts.server import free_port

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
STARTS_IN = 30  # seconds
USER, PASSWORD = "integrator", "secret"

pytestmark = [
    pytest.mark.data,
    pytest.mark.skipif(not (shutil.which("Orthanc") and PLUGIN.is_file()), reason="Orthanc is not installed"),
]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., str]]:
    """Starts an archive with more settings of Orthanc, and gives its DICOMweb root."""
    running = []

    def start(**settings: Any) -> str:
        folder = tmp_path_factory.mktemp("orthanc")
        port = free_port()
        config = {
            "StorageDirectory": str(folder / "storage"),
            "IndexDirectory": str(folder / "storage"),
            "Plugins": [str(PLUGIN)],
            "DicomServerEnabled": False,
            "HttpPort": port,
            "RemoteAccessAllowed": False,
            **settings,
        }
        (folder / "orthanc.json").write_text(json.dumps(config))
        log = (folder / "log").open("wb")
        process = subprocess.Popen(["Orthanc", str(folder / "orthanc.json")], stdout=log, stderr=log)
        running.append(process)
        deadline = time.monotonic() + STARTS_IN
        while time.monotonic() < deadline and process.poll() is None:
            try:
                requests.get(f"http://127.0.0.1:{port}/system", timeout=5)
                return f"http://127.0.0.1:{port}/dicom-web"
            except requests.ConnectionError:
                time.sleep(0.2)
        pytest.fail(f"Orthanc did not start; its log ends:\n{(folder / 'log').read_text()[-2000:]}")

    yield start
    for process in running:
        process.terminate()
        process.wait(timeout=30)


@pytest.fixture(scope="module")
def source() -> list[Path]:
    folder = SHARED_DATA / "mr_dicom_study" / "13_HCropVolume"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent")
    return sorted(folder.glob("*.dcm"))


def workbench(*arguments: object) -> str:
    """What a command of the workbench says: its error, or else its output."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, InputError), result.exception
    return str(result.exception or result.output)


@pytest.fixture(scope="module")
def segmented(
    start: Callable[..., str], source: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, Path]:
    """An archive with the series and what was made of it, the series as fetched, and what was stored."""
    url, folder = start(), tmp_path_factory.mktemp("segmented")
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
    start: Callable[..., str], source: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = start(AuthenticationEnabled=True, RegisteredUsers={USER: PASSWORD})
    monkeypatch.setenv("HOME", str(tmp_path))
    assert f"answers 401 for {source[0]}; it asks who you are" in workbench("store", url, source[0])
    (tmp_path / ".netrc").write_text(f"machine 127.0.0.1 login {USER} password {PASSWORD}")
    (tmp_path / ".netrc").chmod(0o600)
    assert f"1 file(s) in {url}" in workbench("store", url, source[0])
