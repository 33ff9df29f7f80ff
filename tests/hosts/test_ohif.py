"""What a reader sees: OHIF, served by MONAI Label, with our segmentation from an archive, in Chromium.

`apt-get install --no-install-recommends chromium` installs it on Debian.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page, sync_playwright
from pydicom import dcmread

from scripts.dicom import read_segmentation
from tests.commands import SHARED_DATA, bundle_run, command, config_files, workbench
from tests.dicom_phantom import positions, series
from tests.hosts.conftest import HIPPOCAMPUS, Report
from tests.hosts.orthanc import needs_orthanc, orthanc
from tests.hosts.server import serving

CHROMIUM = shutil.which("chromium")

#: Milliseconds that the viewer may take.
SHOWS_IN = 60_000

#: Milliseconds after which a slice is drawn.
SETTLES = 5000

#: Where the viewer shows the slice: left, top, width and height of the picture; and its button for segments.
SLICE, SEGMENTS = (290, 52, 825, 780), (1382, 101)

#: More red than green or more green than red, of 255, shows a segment; the slice is grey.
COLOURED = 40

pytestmark = [
    pytest.mark.data,
    needs_orthanc,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
]


@pytest.fixture(scope="module")
def study(environment: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A real volume as a DICOM series of axial slices, and what inference writes about it."""
    folder = tmp_path_factory.mktemp("study")
    file = SHARED_DATA / "msd_task04_hippocampus/imagesTr/hippocampus_006.nii.gz"
    volume = nib.as_closest_canonical(nib.Nifti1Image.from_filename(file)).get_fdata()
    stored = (volume / volume.max() * 1000).astype(np.int16)[::-1, ::-1]  # RAS to rows and columns of LPS
    (folder / "series").mkdir()
    where = positions(stored.shape[2], gaps=1.0)
    for number, image in enumerate(series(stored, where, spacing=(1.0, 1.0))):
        image.SeriesDescription = "T1 MPRAGE"
        image.save_as(folder / f"series/{number:03}.dcm", enforce_file_format=True)
    places = ["--dataset_dir", str(folder / "series"), "--output_dir", str(folder / "made")]
    done = command(*bundle_run(*places, files=config_files("inference", "dicom")), cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "series", folder / "made"


@pytest.fixture(scope="module")
def viewer(dist: Path, study: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """OHIF with the study."""
    slices, made = study
    with orthanc(tmp_path_factory.mktemp("orthanc")) as archive:
        assert "file(s) in" in workbench("store", archive, slices, made)
        folder = tmp_path_factory.mktemp("server")
        with serving([dist / HIPPOCAMPUS], archive, folder) as server, sync_playwright() as playwright:
            options = ["--no-sandbox", "--enable-unsafe-swiftshader"]
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
            page = browser.new_page(viewport={"width": 1400, "height": 840})
            page.set_default_timeout(SHOWS_IN)
            uid = dcmread(next(slices.iterdir())).StudyInstanceUID
            page.goto(f"{server.url}/ohif/viewer?StudyInstanceUIDs={uid}")
            yield page
            browser.close()


def test_segments_lie_over_their_slice(
    study: tuple[Path, Path], viewer: Page, report: Report, tmp_path: Path
) -> None:
    slices, made = study
    (file,) = [file for file in made.rglob("*.dcm") if dcmread(file).Modality == "SEG"]
    labels = read_segmentation(file, slices, {"background": 0, "anterior": 1, "posterior": 2})
    areas = np.stack([(labels == value).sum(axis=(0, 1)) for value in (1, 2)])
    fullest = int(areas.min(axis=0).argmax())
    with report.step("a segmentation of the archive in OHIF", HIPPOCAMPUS) as result:
        viewer.get_by_text("Confirm and Hide").click()
        viewer.get_by_text("SEG", exact=True).first.dblclick()
        viewer.get_by_text("Yes", exact=True).click()  # load it onto the slices
        viewer.mouse.click(*SEGMENTS)
        for name in ("anterior", "posterior"):
            viewer.get_by_text(name, exact=True).wait_for()
        viewer.mouse.move(SLICE[0] + SLICE[2] / 2, SLICE[1] + SLICE[3] / 2)
        for index in range(fullest):
            viewer.mouse.wheel(0, 100)
            viewer.get_by_text(f"({index + 2}/{labels.shape[2]})").wait_for()
        viewer.wait_for_timeout(SETTLES)
        picture = Path(os.environ.get("OHIF_PICTURE", tmp_path / "ohif.png"))
        viewer.screenshot(path=picture)
        result(f"both segments over slice {fullest + 1} of {labels.shape[2]}")
    left, top, width, height = SLICE
    shown = np.asarray(Image.open(picture).convert("RGB"), int)[top : top + height, left : left + width]
    excess = shown[..., 0] - shown[..., 1]
    rows = [np.nonzero(segment)[0] for segment in (excess > COLOURED, excess < -COLOURED)]
    anterior, posterior = areas[:, fullest]
    assert len(rows[0]) / len(rows[1]) == pytest.approx(anterior / posterior, rel=0.1)
    assert len(rows[0]) > 0.05 * width * height
    assert np.median(rows[0]) < np.median(rows[1])  # anterior is above
