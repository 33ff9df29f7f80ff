"""No identifier of a patient in a log, a message, a file name, a report or a temporary file.

A text is planted in every text attribute, public and private, nested and of the file's own header, in the
preamble, and in the names of files and folders inside the study; UIDs have a part of their own. Everything
that is said at the level DEBUG by whoever speaks, and every file, is searched for them.
"""

from __future__ import annotations

import gzip
import logging
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pydicom
import pytest
import torch
from pydicom import Dataset
from pydicom.uid import generate_uid

from scripts.dicom import DICOM_READER, read_segmentation
from scripts.dicom.series import series_name
from scripts.dicom.silence import silence_pydicom
from scripts.errors import InputError
from tests import dicom_phantom as phantom
from tests.commands import input_error, run, written
from tests.unit.bundle.ship import test_archive as archives
from tests.unit.dicom.test_headers import REFUSED
from tests.unit.dicom.test_series import BAD
from tests.unit.dicom.test_silence import READ, TEXT_VRS

pytestmark = pytest.mark.workflow

TEXT, UID = "Zzyzx7Nobody", "739174826"
PREFIX = f"1.2.826.0.1.3680043.8.498.{UID}."

#: What the two DICOM files say of patient and study: what every object of a study must say (PS3.3 C.7).
FILED_UNDER = {"PatientName", "PatientID", "ReferringPhysicianName", "AccessionNumber", "StudyID"}

#: And how they refer to the images.
REFERRING = {"StudyInstanceUID", "SeriesInstanceUID", "ReferencedSOPInstanceUID"}

EVERY_TEXT = [
    tag
    for tag, (kind, *_, keyword) in pydicom.datadict.DicomDictionary.items()
    if tag >> 16 > 2 and keyword not in READ and TEXT_VRS & set(kind.split(" or "))
]

#: Those of patient, study and request.
SOME_TEXTS = [tag for tag in EVERY_TEXT if tag >> 16 in (0x0008, 0x0010, 0x0020, 0x0032, 0x0040)]

LABELS = {"background": 0, "bright": 1}
CODES = {"category": ["85756007", "SCT", "Tissue"], "type": ["85756007", "SCT", "Tissue"]}


def marked(tags: list[int], number: int = 5) -> list[Dataset]:
    """A series of which every text names the patient, and every UID can be known."""
    where = phantom.positions(number)
    images = phantom.series(phantom.draw((18, 17, number)), where, study_uid=PREFIX + "1", modality="CT")
    series = generate_uid(PREFIX)
    for image in images:
        for tag in tags:
            phantom.plant(image, tag, TEXT.encode())
        image.PatientID = TEXT
        private = image.private_block(0x0099, TEXT, create=True)
        private.add_new(1, "LO", TEXT)
        inner = Dataset()
        inner.PatientID, inner.IssuerOfPatientID, inner.TypeOfPatientID = TEXT, TEXT, "TEXT"
        image.OtherPatientIDsSequence = [inner]
        private.add_new(2, "SQ", [inner])
        image.SeriesInstanceUID = series
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = generate_uid(PREFIX)
        image.file_meta.SourceApplicationEntityTitle = TEXT
        image.file_meta.ImplementationVersionName = TEXT
        image.preamble = TEXT.encode().ljust(128, b"\0")
    return images


def write(images: list[Dataset], folder: Path) -> Path:
    with silence_pydicom():
        return phantom.write(images, folder, names=TEXT + "{:04d}.dcm")


class Watch:
    """What is said and written during a test."""

    def __init__(self, folder: Path, capfd: pytest.CaptureFixture[str], records: Callable[[], str]) -> None:
        self.folder, self.capfd, self.records = folder, capfd, records
        self.texts: list[str] = []

    def said(self, error: BaseException | None = None) -> str:
        """All that was said, and an error with all that led to it."""
        self.texts += self.capfd.readouterr()
        self.texts += [self.records(), "".join(traceback.format_exception(error)) if error else ""]
        return "".join(self.texts)

    def files(self, *folders: Path) -> dict[str, bytes]:
        """Names and contents below folders and the one for temporary files, unpacked."""
        everything = [path for folder in (*folders, self.folder) for path in folder.rglob("*")]
        return {
            str(path): gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
            for path in everything
            if path.is_file()
        }


def names_nobody(text: str | bytes) -> bool:
    found = [mark for mark in (TEXT, UID) if (mark.encode() if isinstance(text, bytes) else mark) in text]
    return not found


@pytest.fixture
def watch(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Watch]:
    """Everybody speaks at DEBUG, and temporary files go into a folder of the test."""
    (temporary := tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr(tempfile, "tempdir", None)
    with warnings.catch_warnings(record=True) as warned, caplog.at_level(logging.DEBUG):
        warnings.simplefilter("always")
        yield Watch(temporary, capfd, lambda: caplog.text + "".join(str(each.message) for each in warned))
    tempfile.tempdir = None


def loud(folder: Path) -> str:
    """A configuration of logging in which nobody keeps quiet."""
    file = folder / "logging.conf"
    file.write_text(
        "[loggers]\nkeys=root\n[handlers]\nkeys=all\n[formatters]\nkeys=plain\n"
        "[logger_root]\nlevel=DEBUG\nhandlers=all\n"
        "[handler_all]\nclass=StreamHandler\nlevel=DEBUG\nformatter=plain\nargs=(sys.stdout,)\n"
        "[formatter_plain]\nformat=%(name)s %(message)s\n",
        encoding="utf-8",
    )
    return str(file)


def segment(place: Path, output: Path, *overlays: str, **changed: Any) -> None:
    """With a network that says "bright" wherever a voxel is above the mean."""
    weights = output.parent / "threshold.pt"
    layer = torch.nn.Conv3d(1, 2, 1)
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.zero_()
        layer.weight[1] = 4.0
    torch.save(layer.state_dict(), weights)
    about: dict[str, Any] = {
        "network_def": {"_target_": "torch.nn.Conv3d", "in_channels": 1, "out_channels": 2, "kernel_size": 1},
        **{"labels": LABELS, "segments": {"bright": CODES}, "amp": False, "patch_size": [16, 16, 16]},
        **{"runtime": "torch", "checkpoint": str(weights), "logging_file": loud(output.parent)},
        **{"dataset_dir": str(place), "output_dir": str(output)},
    }
    run("inference", *overlays, **{**about, **changed})


def holders(file: bytes, mark: str) -> set[str]:
    """The attributes of a DICOM file, wherever they are, that hold a text."""
    with silence_pydicom():
        dataset = pydicom.dcmread(pydicom.filebase.DicomBytesIO(file))
        elements = [*dataset.file_meta, *dataset.iterall()]
        return {
            each.keyword or str(each.tag) for each in elements if each.VR != "SQ" and mark in str(each.value)
        }


def test_a_study_of_sound_and_refused_series(watch: Watch, tmp_path: Path) -> None:
    study = tmp_path / "study"
    good, packed = marked(EVERY_TEXT), marked(SOME_TEXTS)
    write(good, study / TEXT)
    phantom.pack(write(packed, tmp_path / "packed"), study / f"{TEXT}.zip", inside=TEXT)
    kinds = {**BAD, **REFUSED}
    for index, (spoil, _) in enumerate(kinds.values()):
        images = marked(SOME_TEXTS)
        spoil(images)
        write(images, study / TEXT / str(index))
    cut = write(marked(SOME_TEXTS), study / TEXT / "cut") / f"{TEXT}0001.dcm"
    cut.write_bytes(cut.read_bytes()[:-30])
    (study / TEXT / f"{TEXT}.txt").write_text(TEXT)
    before = written(study)
    with pytest.raises(RuntimeError) as caught:
        segment(study, tmp_path / "out", "dicom")
    assert input_error(caught.value).startswith(f"{len(kinds) + 1} of {len(kinds) + 3} images were not segm")
    said = watch.said(caught.value)
    assert all(f"series_{digits}" in said for digits in [series_name(good[0].SeriesInstanceUID)[7:]])
    assert sum(line.count(": found ") for line in said.splitlines()) > len(kinds)
    assert names_nobody(said)
    assert written(study) == before
    files = watch.files(tmp_path / "out")
    assert len(files) == 6
    for name, content in files.items():
        assert names_nobody(name)
        if name.endswith(".dcm"):
            assert holders(content, TEXT) == FILED_UNDER
            assert content.count(TEXT.encode()) == len(FILED_UNDER)
            frame = {"FrameOfReferenceUID"} if name.endswith("_seg.dcm") else set()
            assert holders(content, UID) == REFERRING | frame
        else:
            assert names_nobody(content)


def test_a_series_to_nifti(watch: Watch, tmp_path: Path) -> None:
    study = write(marked(SOME_TEXTS), tmp_path / "study")
    segment(study, tmp_path / "out", reader=DICOM_READER, save_probabilities=True)
    files = watch.files(tmp_path / "out")
    assert [Path(name).name[-11:] for name in sorted(files)] == ["prob.nii.gz", "_seg.nii.gz"]
    assert names_nobody(watch.said())
    assert all(names_nobody(name) and names_nobody(content) for name, content in files.items())


def test_segmentations_that_are_read(watch: Watch, tmp_path: Path) -> None:
    """A sound one; one of other images; one whose own texts name the patient; one that is cut."""
    study, other = (
        write(marked(SOME_TEXTS), tmp_path / "study"),
        write(marked(SOME_TEXTS), tmp_path / "other"),
    )
    segment(study, tmp_path / "out", "dicom")
    (seg,) = (tmp_path / "out").glob("*_seg.dcm")
    assert read_segmentation(seg, study, LABELS).any()
    with silence_pydicom():
        named = pydicom.dcmread(seg)
        named.SegmentSequence[0].SegmentLabel = named.ContentLabel = TEXT
        named.save_as(tmp_path / "named.dcm")
    (tmp_path / "cut.dcm").write_bytes(seg.read_bytes()[:-100])
    for file, source in (
        (seg, other),
        (tmp_path / "named.dcm", study),
        (tmp_path / "cut.dcm", study),
        (next(study.iterdir()).rename(tmp_path / "image.dcm"), study),
    ):
        with pytest.raises(InputError) as caught:
            read_segmentation(file, source, LABELS)
        assert names_nobody(watch.said(caught.value))


def test_an_archive(watch: Watch, tmp_path: Path) -> None:
    """Series that come whole or not, files that it takes or not, whatever its answers say."""
    images = marked(SOME_TEXTS)
    for image in images:
        image.SeriesInstanceUID = archives.SERIES
    with silence_pydicom():
        sent = archives.parts(*images)
    named: archives.Answer = (500, {"Warning": TEXT}, f"<html>{TEXT} {UID}</html>".encode())
    for index, retrieved in enumerate((sent, archives.parts(images[0]), archives.cut(sent), named)):
        with archives.archive(archives.serving(retrieved, len(images))) as (url, _):
            assert names_nobody(archives.fetch(url, tmp_path / str(index)))
    fetched = list((tmp_path / "0").iterdir())
    assert len(fetched) == len(images)
    assert all(names_nobody(path.name) for path in fetched)
    assert written(tmp_path) == [f"0/{path.name}" for path in sorted(fetched)]
    refusal = archives.json.dumps(
        {"00081198": {"vr": "SQ", "Value": [{"00081197": {"vr": "US", "Value": [43264]}}]}, TEXT: TEXT}
    ).encode()
    for answer in ((200, {}, b""), (409, {}, refusal), named):
        with archives.archive(lambda *_, answer=answer: answer) as (url, _):
            assert names_nobody(archives.workbench("store", url, tmp_path / "0"))
    assert names_nobody(watch.said())
