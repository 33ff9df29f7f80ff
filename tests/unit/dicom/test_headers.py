"""Before the work it is known whether a segmentation can be written, and what it will say of the patient."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom import Dataset

from scripts.data import read_images
from scripts.dicom import DICOM_READER, SeriesFinder, read_segmentation, save, try_headers
from scripts.dicom.silence import silence_pydicom
from scripts.errors import Fault, InputError
from tests import dicom_phantom as phantom
from tests.unit.dicom.test_segmentation import LABELS, files, label_map, saver


def series(number: int = 4, modality: str = "CT") -> list[Dataset]:
    return phantom.series(phantom.draw((5, 4, number)), phantom.positions(number), modality=modality)


def written(images: list[Dataset], folder: Path) -> tuple[Dataset, Dataset, tuple[str, ...]]:
    """Segmentation and report of random labels, which are read back; and what was told before."""
    with silence_pydicom():
        study = phantom.write(images, folder / "study")
    found = SeriesFinder().open(study)
    told = try_headers(found)
    pred = label_map(found)
    saver(folder / "out")({"pred": pred})
    seg, report, _ = files(folder)
    assert np.array_equal(read_segmentation(seg, study, LABELS), found.slices_of(pred[0].numpy()).T)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pydicom.dcmread(seg), pydicom.dcmread(report), told


#: Names in their character sets, and what they say: the examples of PS3.5 annexes H to K; one whose character
#: has the byte of an equals sign, and one the byte of a backslash.
NAMES = {
    "latin": ("ISO_IR 100", b"Buc^J\xe9r\xf4me", "Buc^Jérôme"),
    "cyrillic": ("ISO_IR 144", b"\xbb\xee\xda\x63\xd5\xdc\xd1\xe3\xe0\xd3", "Люкcембург"),
    "unicode": ("ISO_IR 192", "Wang^XiaoDong=王^小东".encode(), "Wang^XiaoDong=王^小东"),
    "japanese": (
        "\\ISO 2022 IR 87",
        b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B=\x1b$B$d$^$@\x1b(B^\x1b$B$?$m$&\x1b(B",
        "Yamada^Tarou=山田^太郎=やまだ^たろう",
    ),
    "equals": ("\\ISO 2022 IR 87", b"Haru=\x1b$B=U\x1b(B", "Haru=春"),
    "kana": (
        "ISO 2022 IR 13\\ISO 2022 IR 87",
        b"\xd4\xcf\xc0\xde^\xc0\xdb\xb3=\x1b$B;3ED\x1b(J^\x1b$BB@O:\x1b(J",
        "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎",
    ),
    "korean": (
        "\\ISO 2022 IR 149",
        b"Hong^Gildong=\x1b$)C\xfb\xf3^\x1b$)C\xd1\xce\xd4\xd7=\x1b$)C\xc8\xab^\x1b$)C\xb1\xe6\xb5\xbf",
        "Hong^Gildong=洪^吉洞=홍^길동",
    ),
    "chinese": ("GB18030", b"Wang^XiaoDong=\xcd\xf5^\xd0\xa1\xb6\xab=", "Wang^XiaoDong=王^小东"),
    "gbk": ("GBK", b"Wang^XiaoDong=\xcd\xf5^\xd0\xa1\xb6\xab=", "Wang^XiaoDong=王^小东"),
    "backslash": ("GBK", b"Cheng=\xd5\x5c", "Cheng=誠"),
    "extended": (
        "\\ISO 2022 IR 58",
        b"Wang^XiaoDong=\x1b$)A\xcd\xf5^\x1b$)A\xd0\xa1\xb6\xab",
        "Wang^XiaoDong=王^小东",
    ),
    "ascii": ("", b"Nobody", "Nobody"),
}


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_the_same_in_unicode(name: str, tmp_path: Path) -> None:
    declared, stored, truth = NAMES[name]
    images = series()
    for image in images:
        phantom.plant(image, "SpecificCharacterSet", declared.encode())
        phantom.plant(image, "PatientName", stored)
        phantom.plant(image, "PatientID", stored[:4])
    *made, told = written(images, tmp_path)
    for each in made:
        assert str(each.PatientName).rstrip("=") == truth
        assert each.SpecificCharacterSet == "ISO_IR 192"
    assert told == ()


@pytest.mark.parametrize(
    ("keyword", "stored", "truth"),
    [
        ("StudyTime", "12:30:00", "123000"),
        ("StudyTime", "12:30", "1230"),
        ("StudyTime", "12:30:00.25", "123000.25"),
        ("StudyTime", "123000.12345678", "123000.123456"),
        ("StudyTime", "235960", "235960"),
        ("StudyTime", "25:00:00", None),
        ("StudyTime", "noon", None),
        ("StudyDate", "1993.08.22", "19930822"),
        ("StudyDate", "1993-08-22", "19930822"),
        ("StudyDate", "19930231", None),
        ("PatientBirthDate", "1941.02.03", "19410203"),
        ("PatientBirthDate", "about 1941", None),
        ("PatientBirthDate", "", ""),
        ("PatientSex", "f", "F"),
        ("PatientSex", "unknown", None),
        ("StudyID", "1\\2", None),
        ("AccessionNumber", "M\xfcller", None),
        ("PatientName", "M\xfcller", None),
    ],
)
def test_old_forms_are_mended_and_others_left_empty(
    keyword: str, stored: str, truth: str | None, tmp_path: Path
) -> None:
    """Bytes beyond ASCII without a character set may be anything, so nobody guesses."""
    images = series()
    for image in images:
        phantom.plant(image, keyword, stored.encode("latin-1"))
    *made, told = written(images, tmp_path)
    assert [str(each[keyword].value or "") for each in made] == [truth or ""] * 2
    left = f"{keyword} cannot be read and is left empty in the segmentation"
    assert told == ((left,) if truth is None else ())
    assert (left in files(tmp_path)[2].read_text(encoding="utf-8")) == (truth is None)


def every(**values: Any) -> Callable[[list[Dataset]], None]:
    """Give the attributes to all images; None takes them out."""
    return lambda images: [change(image, values) for image in images] and None


def third(**values: Any) -> Callable[[list[Dataset]], None]:
    return lambda images: change(images[2], values)


def change(image: Dataset, values: dict[str, Any]) -> None:
    for keyword, value in values.items():
        if value is None:
            image.pop(keyword, None)
        else:
            phantom.plant(image, keyword, value.encode())


REFUSED = {
    "no_frame": (every(FrameOfReferenceUID=None), "no usable FrameOfReferenceUID .instance number 1."),
    "no_frame_in_one": (third(FrameOfReferenceUID=None), "no usable FrameOfReferenceUID .instance number 3."),
    "empty_frame": (every(FrameOfReferenceUID=""), "no usable FrameOfReferenceUID"),
    "text_for_frame": (every(FrameOfReferenceUID="anonymous"), "no usable FrameOfReferenceUID"),
    "no_study": (every(StudyInstanceUID=None), "no usable StudyInstanceUID"),
    "no_modality": (every(Modality=None), "no Modality, or another than CT"),
    "other_modality": (every(Modality="OT"), "no Modality, or another than CT"),
    "one_other_modality": (third(Modality="MR"), "another than CT .instance number 3."),
    "one_uid": (every(SOPInstanceUID="1.2.3"), "one SOPInstanceUID for several .* numbers 1 and 2."),
    "two_of_one_uid": (
        lambda images: setattr(images[3], "SOPInstanceUID", images[1].SOPInstanceUID),
        "one SOPInstanceUID for several images .instance numbers 2 and 4.",
    ),
    "no_instance": (third(SOPInstanceUID=None), "no usable SOPInstanceUID"),
    "identifier": (every(PatientID="\xfc"), "a PatientID that SpecificCharacterSet does not decode"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_a_segmentation_cannot_refer_to_is_said_before_the_work(what: str, tmp_path: Path) -> None:
    """And can be segmented all the same, without DICOM coming out."""
    spoil, sentence = REFUSED[what]
    images = series()
    spoil(images)
    with silence_pydicom():
        phantom.write(images, tmp_path)
    about: Any = {"spatial_dims": 3, "in_channels": 1, "reader": DICOM_READER}
    with pytest.raises(InputError, match=sentence) as caught:
        read_images(tmp_path, to_dicom=True, **about)
    assert "NIfTI: leave out configs/dicom.json and add --reader scripts.dicom.DicomReader" in str(
        caught.value
    )
    assert len(read_images(tmp_path, **about).cases) == 1


def without_thickness(images: list[Dataset]) -> None:
    images[0].SliceThickness = ""
    for image in images[1:]:
        image.pop("SliceThickness")


def rounded_directions(images: list[Dataset]) -> None:
    """As two programs write the same turn: a billionth apart."""
    for index, image in enumerate(images):
        image.ImageOrientationPatient = [1, f"{index}e-9", 0, f"-{index}e-9", 1, 0]


def nothing_of_the_patient(images: list[Dataset]) -> None:
    for image in images:
        for keyword in (*(each.keyword for each in image.group_dataset(0x10)), "StudyID", "StudyTime"):
            image.pop(keyword)
        for keyword in ("AccessionNumber", "StudyDate", "ReferringPhysicianName"):
            image.pop(keyword)


WRITTEN = {
    "thickness": without_thickness,
    "directions": rounded_directions,
    "nothing": nothing_of_the_patient,
    "leading_zeros": every(StudyInstanceUID="1.2.003.04"),
    "lossy": every(
        LossyImageCompression="01",
        LossyImageCompressionRatio="12.5",
        LossyImageCompressionMethod="ISO_10918_1",
    ),
}


@pytest.mark.parametrize("what", WRITTEN)
def test_what_the_writing_can_do_without(what: str, tmp_path: Path) -> None:
    images = series()
    WRITTEN[what](images)
    seg, _, told = written(images, tmp_path)
    assert told == ()
    (measures,) = seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence
    assert measures.SliceThickness == (2.0 if what == "thickness" else 1.5)
    assert measures.SpacingBetweenSlices == 2.0
    if what == "lossy":
        assert (seg.LossyImageCompression, seg.LossyImageCompressionRatio) == ("01", 12.5)


def test_frames_that_say_by_themselves_how_they_lie(tmp_path: Path) -> None:
    """Orientation and spacing in the functional groups of each frame, where most scanners put them."""
    images, _ = phantom.make_odd("oblique")
    whole = phantom.multi_frame(images)
    shared = whole.SharedFunctionalGroupsSequence[0]
    for frame in whole.PerFrameFunctionalGroupsSequence:
        frame.PlaneOrientationSequence = shared.PlaneOrientationSequence
        frame.PixelMeasuresSequence = shared.PixelMeasuresSequence
    whole.SharedFunctionalGroupsSequence = [Dataset()]
    written([whole], tmp_path)


@pytest.mark.parametrize("modality", ["CT", "MR", "PT"])
def test_modalities(modality: str, tmp_path: Path) -> None:
    _, report, told = written(series(modality=modality), tmp_path)
    assert told == ()
    codes = {
        str(item.ConceptCodeSequence[0].CodeMeaning)
        for item in report.ContentSequence
        if "ConceptCodeSequence" in item
    }
    assert any({"CT": "CT", "MR": "MRI", "PT": "PET"}[modality] in code for code in codes), codes


def test_what_nobody_thought_of_is_said_before_the_work_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever highdicom refuses, without its text, which may name the patient."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AttributeError(phantom.NAME)

    monkeypatch.setattr(save, "make_report", refuse)
    found = SeriesFinder().open(phantom.write(series(), tmp_path))
    with pytest.raises(Fault, match=r"cannot refer to \(AttributeError\)") as caught:
        try_headers(found)
    assert phantom.NAME not in str(caught.value)


def test_the_number_of_an_instance_is_a_number(tmp_path: Path) -> None:
    images = series()
    for image in images:
        image.pop("FrameOfReferenceUID")
        phantom.plant(image, "InstanceNumber", phantom.NAME.encode())
    with silence_pydicom():
        phantom.write(images, tmp_path)
    with pytest.raises(Fault, match="instance number 0") as caught:
        try_headers(SeriesFinder().open(tmp_path))
    assert phantom.NAME not in str(caught.value)
