"""Nobody is named in a log, a warning, a message or a file name, whatever a header holds."""

from __future__ import annotations

import json
import logging
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import LoadImaged
from pydicom.datadict import dictionary_VR

from scripts.data import read_images
from scripts.dicom import DICOM_READER, SaveSegmentationd
from scripts.dicom.series import _HEADER
from scripts.dicom.silence import silence_pydicom
from scripts.errors import InputError, root_cause
from tests import dicom_phantom as phantom
from tests.commands import CONFIGS, written

CONFIG = json.loads((CONFIGS / "inference.json").read_text(encoding="utf-8"))

#: What is planted: no UID, no number, no date, and too long for most attributes.
PLANTED = f"{phantom.NAME}.{phantom.IDENTIFIER}" + "x" * 70

FREE_VRS = {"LO", "LT", "PN", "SH", "ST", "UC", "UT"}  # any text is a value
TEXT_VRS = FREE_VRS | {"AE", "AS", "CS", "DA", "DS", "DT", "IS", "TM", "UI", "UR"}

#: Attributes that are read as texts.
READ = [
    *(keyword for keyword in _HEADER if dictionary_VR(keyword) in TEXT_VRS),
    *(
        "Modality",
        "SpecificCharacterSet",
        "PhotometricInterpretation",
        "FrameOfReferenceUID",
        "StudyInstanceUID",
    ),
]


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> Iterator[list[str]]:
    """What a test adds to it, and at its end every log and warning, must not name anybody."""
    texts: list[str] = []
    with warnings.catch_warnings(record=True) as warned, caplog.at_level(logging.DEBUG):
        warnings.simplefilter("always")
        yield texts
    texts += [caplog.text, *capfd.readouterr(), *(str(each.message) for each in warned)]
    assert not [text for text in texts if phantom.NAME in text or phantom.IDENTIFIER in text]


def through(place: Path, output: Path) -> list[str]:
    """All that our parts do with a study; what they say of it, and the names of what they write."""
    messages = []
    try:
        cases = read_images(place, spatial_dims=3, in_channels=1, reader=DICOM_READER)
        messages += [problem.sentence() for problem in cases.problems]
        for case in cases.cases:
            image = LoadImaged("image", reader=DICOM_READER)(case)["image"]
            messages += [str(case), str(image.meta)]
            pred = MetaTensor(torch.zeros((1, *image.shape), dtype=torch.int32), meta=image.meta)
            about = CONFIG["labels"], CONFIG["segments"], CONFIGS / "metadata.json"
            SaveSegmentationd("pred", output, *about)({"pred": pred})
    except (InputError, RuntimeError) as error:
        messages += [type(root_cause(error)).__name__, str(error)]
    assert not {"RuntimeError", "ValueError", "KeyError"} & set(messages)
    return messages + (written(output) if output.exists() else [])


def images() -> list[pydicom.Dataset]:
    return phantom.series(phantom.draw((5, 4, 3)), phantom.positions(3))


def write(made: list[pydicom.Dataset], place: Path) -> Path:
    with silence_pydicom():  # which warns in writing, too
        return phantom.write(made, place)


@pytest.mark.parametrize("kinds", [TEXT_VRS, FREE_VRS])
def test_every_text_of_a_header(kinds: set[str], tmp_path: Path, said: list[str]) -> None:
    """In all attributes of PS3.6 but those that say how to read the images, which are spoilt below.

    None of them hinders the segmentation.
    """
    made = images()
    for image in made:
        for tag, (kind, *_, keyword) in pydicom.datadict.DicomDictionary.items():
            if tag >> 16 > 2 and keyword not in READ and kinds & set(kind.split(" or ")):
                phantom.plant(image, tag, PLANTED.encode())
    said += through(write(made, tmp_path / "study"), tmp_path / "out")
    assert any("_seg.dcm" in text for text in said), said


@pytest.mark.parametrize("keyword", READ)
def test_a_text_where_something_else_belongs(keyword: str, tmp_path: Path, said: list[str]) -> None:
    """In one slice, and in all: what is no UID, no number or no position."""
    for name, spoilt in (("one", slice(1, 2)), ("all", slice(None))):
        made = images()
        for image in made[spoilt]:
            phantom.plant(image, keyword, PLANTED.encode())
        said += through(write(made, tmp_path / name), tmp_path / f"{name}_out")
    assert said


def test_a_transfer_syntax_of_an_unknown_name(tmp_path: Path, said: list[str]) -> None:
    made = images()
    for image in made:
        image.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    place = write(made, tmp_path / "study")
    for file in place.iterdir():
        raw, syntax = file.read_bytes(), pydicom.uid.ExplicitVRLittleEndian.encode() + b"\0"
        assert raw.count(syntax) == 1
        file.write_bytes(raw.replace(syntax, phantom.NAME.encode().ljust(len(syntax), b"x")))
    said += through(place, tmp_path / "out")
    assert "the transfer syntax of an unknown name" in "".join(said)


def test_libraries_are_quiet_for_a_while(caplog: pytest.LogCaptureFixture) -> None:
    with silence_pydicom():
        logging.getLogger("highdicom.base").warning("first")
        logging.getLogger("pydicom").error("second")
    logging.getLogger("highdicom.base").warning("third")
    assert [record.message for record in caplog.records] == ["third"]


def test_silence_in_two_threads_ends_with_the_last(caplog: pytest.LogCaptureFixture) -> None:
    """One begins first and ends first: neither speaks in the other, and all is as before afterwards."""
    inside, go_on = threading.Event(), threading.Event()

    def second() -> None:
        with silence_pydicom():
            inside.set()
            go_on.wait(10)
            warnings.warn("cited", UserWarning, stacklevel=1)
            logging.getLogger("pydicom").error("cited")

    levels = [logging.getLogger(name).level for name in ("pydicom", "highdicom")]
    thread = threading.Thread(target=second)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        before = list(warnings.filters)
        with silence_pydicom(), silence_pydicom():
            thread.start()
            assert inside.wait(10)
        go_on.set()
        thread.join()
        warnings.warn("after", UserWarning, stacklevel=1)
        assert warnings.filters == before
    assert [str(each.message) for each in warned] == ["after"]
    assert not caplog.records
    assert [logging.getLogger(name).level for name in ("pydicom", "highdicom")] == levels
