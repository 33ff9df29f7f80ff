"""Inference on DICOM as users run it: the same labels as for NIfTI, at the same place, and nobody named."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import highdicom as hd
import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch
from monai.bundle import ConfigParser
from scipy import ndimage

from scripts.dicom import DICOM_READER, Series, SeriesFinder, read_segmentation
from scripts.dicom.series import series_name
from tests import dicom_phantom as phantom
from tests.commands import (
    ROOT,
    SHARED_DATA,
    bundle_run,
    command,
    config_files,
    input_error,
    last_line,
    read_array,
    run,
    written,
)

pytestmark = pytest.mark.workflow

LABELS = {"background": 0, "anterior": 1, "posterior": 2}
TINY: dict[str, Any] = {"patch_size": [16, 16, 16], "channels": [4, 8, 8, 8], "runtime": "torch"}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a network that nobody trained: its labels follow the noise of the images."""
    parser = ConfigParser()
    parser.read_config(config_files("inference"))
    parser.update({"channels": TINY["channels"]})
    torch.manual_seed(3)
    file = tmp_path_factory.mktemp("weights") / "model.pt"
    torch.save(parser.get_parsed_content("network_def").state_dict(), file)
    return file


def smooth(shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    """Blobs of some voxels, (x, y, z), 0 to 1000."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.5)
    return np.rint(1000 * (noise - noise.min()) / np.ptp(noise)).astype(np.int16)


def images(name: str, seed: int = 0) -> list[pydicom.Dataset]:
    """A series with an oddity, large enough for the network."""
    about = {
        "plain": {},
        "oblique": {"directions": phantom.OBLIQUE},
        "tilted": {"tilt": 18.0},
        "missing": {"gaps": [2.0] * 5 + [4.0] + [2.0] * 6 + [6.0] + [2.0] * 3},
        "uneven": {"gaps": [2.0, 2.5, 3.0, 2.2] * 4},
    }[name]
    directions = about.get("directions", phantom.AXIAL)
    where = phantom.positions(17, directions, about.get("gaps", 2.0), about.get("tilt", 0.0))
    return phantom.series(smooth((26, 22, 17), seed), where, directions, modality="MR")


def segment(place: Path, output: Path, weights: Path, *overlays: str, **overrides: Any) -> None:
    run(
        *("inference", *overlays),
        **{**TINY, **overrides},
        dataset_dir=str(place),
        output_dir=str(output),
        checkpoint=str(weights),
    )


def as_nifti(series: Series, folder: Path) -> Path:
    """What the reader gives, as a file whose header holds the affine in double precision."""
    folder.mkdir()
    nib.save(nib.Nifti2Image(series.read(), series.affine), folder / f"{series.name}.nii.gz")
    return folder


def by_position(seg: Path, truth: np.ndarray, series: Series) -> int:
    """Compare the frames with label values, (x, y, slice), by position and segment; how many there are."""
    found = hd.seg.segread(seg)
    values = [LABELS[found.get_segment_description(n).segment_label] for n in found.segment_numbers]
    for frame, group in zip(found.pixel_array, found.PerFrameFunctionalGroupsSequence, strict=True):
        place = np.array(group.PlanePositionSequence[0].ImagePositionPatient, dtype=float)
        index = int(np.argmin([np.linalg.norm(each.position - place) for each in series.slices]))
        assert np.allclose(series.slices[index].position, place)
        value = values[group.SegmentIdentificationSequence[0].ReferencedSegmentNumber - 1]
        assert np.array_equal(frame.T, truth[..., index] == value)
    return int(found.NumberOfFrames)


def validate(*files: Path) -> None:
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy is not installed; it is in the Debian package dicom3tools")
    for file in files:
        done = subprocess.run(["dciodvfy", file], capture_output=True, text=True, check=False)
        assert [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("Error")] == []


def test_a_task_without_codes_is_written_as_tissue(weights: Path, tmp_path: Path) -> None:
    study = phantom.write(images("plain"), tmp_path / "study")
    segment(study, tmp_path / "out", weights, "dicom", segments={})
    (file,) = (tmp_path / "out").glob("*_seg.dcm")
    types = [s.SegmentedPropertyTypeCodeSequence[0].CodeValue for s in pydicom.dcmread(file).SegmentSequence]
    assert types == ["85756007", "85756007"]
    validate(file)


@pytest.mark.parametrize("name", ["plain", "oblique", "tilted", "missing", "uneven", "multi"])
def test_the_same_labels_as_for_nifti(name: str, weights: Path, tmp_path: Path) -> None:
    made = [phantom.multi_frame(images("oblique"))] if name == "multi" else images(name)
    study = phantom.write(made, tmp_path / "study")
    series = SeriesFinder().open(study)
    segment(study, tmp_path / "dicom", weights, "dicom")
    segment(as_nifti(series, tmp_path / "nifti"), tmp_path / "from_nifti", weights)
    (case,) = SeriesFinder().look(study).series
    endings = ("report.dcm", "report.json", "seg.dcm")
    assert written(tmp_path / "dicom") == [f"{case}_{ending}" for ending in endings]

    truth = read_array(tmp_path / f"from_nifti/{case}_seg.nii.gz")
    at_slices = series.slices_of(truth).T
    assert len(np.unique(at_slices)) > 1, "a map of one label would agree with anything"
    seg = tmp_path / f"dicom/{case}_seg.dcm"
    assert np.array_equal(read_segmentation(seg, study, LABELS), at_slices)
    assert by_position(seg, at_slices, series) == 2 * 17
    told = json.loads((tmp_path / f"dicom/{case}_report.json").read_text(encoding="utf-8"))
    if name not in ("missing", "uneven"):
        millilitres = {n: (truth == v).sum() * 0.8 * 1.3 * 2 / 1000 for n, v in LABELS.items() if v}
        found = {part["name"]: part["volume_ml"] for part in told["segments"]}
        assert found == pytest.approx(millilitres, rel=1e-6)
    validate(seg, tmp_path / f"dicom/{case}_report.dcm")


@pytest.mark.parametrize("name", ["oblique", "missing", "multi"])
def test_maps_of_uncertainty_lie_on_the_images(name: str, weights: Path, tmp_path: Path) -> None:
    made = [phantom.multi_frame(images("oblique"))] if name == "multi" else images(name)
    study = phantom.write(made, tmp_path / "study")
    series = SeriesFinder().open(study)
    overlays = ("inferer/orientations",)
    segment(study, tmp_path / "dicom", weights, *overlays, "dicom", save_spread=True)
    segment(
        as_nifti(series, tmp_path / "nifti"), tmp_path / "nifti_out", weights, *overlays, save_spread=True
    )
    (case,) = SeriesFinder().look(study).series
    endings = ("report.dcm", "report.json", "seg.dcm", "spread.dcm")
    assert written(tmp_path / "dicom") == sorted([*(f"{case}_{ending}" for ending in endings), "review.csv"])
    file = tmp_path / f"dicom/{case}_spread.dcm"
    found = hd.seg.segread(file)
    assert found.segmentation_type == hd.seg.SegmentationTypeValues.FRACTIONAL
    labels = [found.get_segment_description(n).segment_label for n in found.segment_numbers]
    assert labels == ["predictive entropy", "mutual information"]
    maps = [read_array(tmp_path / f"nifti_out/{case}_{kind}.nii.gz") for kind in ("spread", "mutual")]
    for frame, group in zip(found.pixel_array, found.PerFrameFunctionalGroupsSequence, strict=True):
        place = np.array(group.PlanePositionSequence[0].ImagePositionPatient, dtype=float)
        index = int(np.argmin([np.linalg.norm(each.position - place) for each in series.slices]))
        number = group.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        expected = series.slices_of(maps[number - 1])[index]
        assert np.abs(frame / found.MaximumFractionalValue - expected).max() <= 0.5 / 255 + 1e-4
    validate(file)


def test_the_reader_alone_writes_nifti(weights: Path, tmp_path: Path) -> None:
    """The config of NIfTI with another reader and nothing else."""
    study = phantom.write(images("oblique"), tmp_path / "study")
    series = SeriesFinder().open(study)
    (case,) = SeriesFinder().look(study).series
    segment(study, tmp_path / "dicom", weights, reader=DICOM_READER)
    segment(as_nifti(series, tmp_path / "nifti"), tmp_path / "from_nifti", weights)
    made, same = (nib.load(tmp_path / part / f"{case}_seg.nii.gz") for part in ("dicom", "from_nifti"))
    assert np.array_equal(made.dataobj, same.dataobj)
    assert np.allclose(made.affine, series.affine, atol=1e-5)


def test_a_study_with_everything_in_it(weights: Path, tmp_path: Path) -> None:
    """By the command: two series, one that is no volume, what is no image, names all over the folders."""
    study = tmp_path / "study"
    good, packed, bad = images("plain"), images("tilted", seed=1), images("plain", seed=2)
    bad[3].pop("PixelSpacing")
    inner, names = study / phantom.NAME, f"{phantom.NAME}_{{:04d}}.dcm"
    phantom.write([*good, phantom.secondary_capture(good[0]), phantom.localizer(good[0])], inner, names=names)
    phantom.write(bad, inner / phantom.IDENTIFIER, names=names)
    phantom.pack(phantom.write(packed, tmp_path / "packed"), study / "more.zip", inside=phantom.NAME)
    (inner / f"{phantom.NAME}.txt").write_text(phantom.NAME)
    done = command(
        *bundle_run(
            *(f"--{key}={value}" for key, value in TINY.items()),
            *("--dataset_dir", "study", "--output_dir", "out", "--checkpoint", str(weights)),
            files=config_files("inference", "dicom"),
        ),
        cwd=tmp_path,
    )
    names_of = [series_name(part[0].SeriesInstanceUID) for part in (good, packed, bad)]
    assert done.returncode == 1, done.stderr
    assert last_line(done).startswith(f"error: 1 of 3 images were not segmented: {names_of[2]};")
    said = done.stdout + done.stderr
    assert "Traceback" not in said
    for sentence in (
        "3 series",
        "left out: MR Image Storage, localizer (1), Secondary Capture Image Storage (1), files that are not",
        f"{names_of[2]}: found no usable PixelSpacing (instance number 4)",
    ):
        assert sentence in said
    endings = ("report.dcm", "report.json", "seg.dcm")
    assert written(tmp_path / "out") == sorted(f"{n}_{end}" for n in names_of[:2] for end in endings)
    told = "".join(file.read_text(encoding="utf-8") for file in (tmp_path / "out").glob("*.json"))
    content = "".join(
        str(pydicom.dcmread(file).ContentSequence) for file in (tmp_path / "out").glob("*_report.dcm")
    )
    everything = said + told + content + "".join(written(tmp_path / "out"))
    assert [text for text in phantom.IDENTITY if text in everything] == []
    for part, name in zip((good, packed), names_of[:2], strict=True):
        seg = tmp_path / f"out/{name}_seg.dcm"
        assert pydicom.dcmread(seg).PatientID == phantom.IDENTIFIER
        series = SeriesFinder().open(study / name)
        assert [each.instance for each in series.slices] == [image.SOPInstanceUID for image in part]
        by_position(seg, read_segmentation(seg, study, LABELS), series)


@pytest.mark.long
def test_a_full_disk_by_the_command(weights: Path, tmp_path: Path) -> None:
    """No file may grow beyond 4 kB: one sentence, and no file."""
    phantom.write(images("plain"), tmp_path / "study")
    done = command(
        *bundle_run(
            *(f"--{key}={value}" for key, value in TINY.items()),
            *("--dataset_dir", "study", "--output_dir", "out", "--checkpoint", str(weights)),
            files=config_files("inference", "dicom"),
        ),
        cwd=tmp_path,
        launcher=("bash", "-c", 'ulimit -f 4; exec "$0" "$@"', sys.executable),
    )
    assert done.returncode != 0
    assert "_seg.dcm could not be written, as the disk of" in last_line(done)
    assert last_line(done).startswith("error: ")
    assert "Traceback" not in done.stderr
    assert written(tmp_path / "out") == []


@pytest.mark.data
def test_a_real_series(tmp_path: Path) -> None:
    """With the weights that the bundle ships, as DICOM and as NIfTI."""
    study = SHARED_DATA / "mr_dicom_study/13_HCropVolume"
    if not study.is_dir():
        pytest.skip("shared data set mr_dicom_study is not here")
    series = SeriesFinder().open(study)
    assert series.shape == (35, 51, 32)
    expected = [pydicom.dcmread(study / f"{index}.dcm").pixel_array.T for index in range(1, 33)]
    assert np.array_equal(series.read(), np.stack(expected, -1))  # names sort as 1, 10, 11, ...
    assert np.array_equal(series.affine, np.array([[-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 1, 1], [0, 0, 0, 1]]))
    own = {"patch_size": [32, 48, 32], "channels": [16, 32, 64, 128]}
    weights = ROOT / "models/model.pt"
    segment(study, tmp_path / "dicom", weights, "dicom", **own)
    segment(as_nifti(series, tmp_path / "nifti"), tmp_path / "from_nifti", weights, **own)
    (case,) = SeriesFinder().look(study).series
    truth = read_array(tmp_path / f"from_nifti/{case}_seg.nii.gz")
    seg = tmp_path / f"dicom/{case}_seg.dcm"
    assert np.array_equal(read_segmentation(seg, study, LABELS), truth)
    assert by_position(seg, truth, series) == 64
    told = json.loads((tmp_path / f"dicom/{case}_report.json").read_text(encoding="utf-8"))
    for part in told["segments"]:
        assert part["volume_ml"] == (truth == part["value"]).sum() / 1000
        assert 0.5 < part["volume_ml"] < 4  # half of a hippocampus
    source = pydicom.dcmread(study / "1.dcm")
    for file in (tmp_path / "dicom").glob("*.json"):
        assert str(source.PatientID) not in file.read_text(encoding="utf-8") + file.name
    validate(seg, tmp_path / f"dicom/{case}_report.dcm")


def test_two_of_three_series_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Told before the work, which is done for the third: one label, a Japanese name, an old time, padding.

    The network says "bright" wherever a voxel is above the mean of its image.
    """
    layer = torch.nn.Conv3d(1, 2, 1)
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.zero_()
        layer.weight[1] = 4.0
    torch.save(layer.state_dict(), tmp_path / "threshold.pt")
    stored = np.full((24, 20, 12), -700, np.int16) + phantom.draw((24, 20, 12), high=40)
    bright = np.zeros(stored.shape, bool)
    bright[8:15, 6:12, 3:9] = True
    stored[bright] += 900
    stored[:6] = -2000
    where, about = phantom.positions(12, gaps=1.0), {"spacing": (1.0, 1.0), "modality": "CT"}
    good, no_frame, no_modality = (
        phantom.series(stored, where, rescale=[(1.0, 0.0)] * 12, **about) for _ in range(3)
    )
    for image in good:
        image.add_new("PixelPaddingValue", "SS", -2000)
        phantom.plant(image, "SpecificCharacterSet", b"\\ISO 2022 IR 87")
        phantom.plant(image, "PatientName", b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B")
        phantom.plant(image, "StudyTime", b"12:30:00")
    for image in no_frame:
        del image.FrameOfReferenceUID
    for image in no_modality:
        image.Modality = "OT"
    study = phantom.write([*good, *no_frame, *no_modality], tmp_path / "study")
    codes = {
        "category": ["49755003", "SCT", "Morphologically Abnormal Structure"],
        "type": ["52988006", "SCT", "Lesion"],
    }
    labels = {"background": 0, "bright": 1}
    network = {"_target_": "torch.nn.Conv3d", "in_channels": 1, "out_channels": 2, "kernel_size": 1}
    with pytest.raises(RuntimeError) as caught:
        run(
            *("inference", "dicom"),
            **{"network_def": network, "labels": labels, "segments": {"bright": codes}, "amp": False},
            **{"patch_size": [16, 16, 16], "runtime": "torch", "checkpoint": str(tmp_path / "threshold.pt")},
            **{"dataset_dir": str(study), "output_dir": str(tmp_path / "out")},
        )
    said = "".join(capsys.readouterr())
    case, *bad = (series_name(part[0].SeriesInstanceUID) for part in (good, no_frame, no_modality))
    assert input_error(caught.value).startswith(
        f"2 of 3 images were not segmented: {', '.join(sorted(bad))}; the others are done"
    )
    assert written(tmp_path / "out") == [f"{case}_{end}" for end in ("report.dcm", "report.json", "seg.dcm")]
    seg = tmp_path / f"out/{case}_seg.dcm"
    assert np.array_equal(read_segmentation(seg, study / case, labels), bright)
    (part,) = json.loads((tmp_path / f"out/{case}_report.json").read_text(encoding="utf-8"))["segments"]
    assert part["volume_ml"] == pytest.approx(bright.sum() / 1000)
    header = pydicom.dcmread(seg)
    assert (str(header.PatientName), header.StudyTime) == ("Yamada^Tarou=山田^太郎", "123000")
    validate(seg, tmp_path / f"out/{case}_report.dcm")
    for sentence in (
        f"{bad[0]}: found no usable FrameOfReferenceUID",
        f"{bad[1]}: found no Modality, or another than CT",
        f"{case}: 25.0% of the pixels are padding",
    ):
        assert sentence in said
