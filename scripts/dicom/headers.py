"""What a segmentation takes from the headers of its images, decided before there is anything to write.

Of the patient and the study that is what every object of a study must say (PS3.3 C.7.1.1, C.7.2.1, C.7.4.1,
types 1 and 2), and nothing else. Texts are decoded by the Specific Character Set of the images and written in
Unicode; dates and times of the time before DICOM get their form of today. What may be empty and cannot be
read is left empty, and told.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from pydicom import Dataset
from pydicom.charset import convert_encodings, decode_bytes, default_encoding
from pydicom.datadict import dictionary_VR
from pydicom.tag import Tag
from pydicom.valuerep import DS, TEXT_VR_DELIMS

from scripts.dicom.series import IMAGE_CLASSES, Series, instance_number
from scripts.errors import Fault

#: What is copied and may be empty, but must be there.
COPIED = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "ReferringPhysicianName"),
    *("AccessionNumber", "StudyID", "StudyDate", "StudyTime"),
)

#: What an image is known by, and must have.
IDENTIFIERS = ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")

#: What a lossy compression leaves behind (PS3.3 C.7.6.1.1.5), and what it looks like.
_LOSSY = {
    "LossyImageCompression": re.compile("01"),
    "LossyImageCompressionRatio": re.compile(r"[0-9.]{1,16}"),
    "LossyImageCompressionMethod": re.compile(r"ISO_[0-9_]{1,12}"),
}

#: ISO 10646 in UTF-8 (PS3.3 C.12.1.1.2).
_UNICODE = "ISO_IR 192"

#: The escape sequence of ISO-IR 58, which pydicom leaves to a codec that does not know it.
_LEFT_BY_PYDICOM = "\x1b$)A"

#: What ends a code extension within a name (PS3.5 6.1.2.5.3).
_NAME_DELIMITERS = {ord("^"), ord("=")}

#: What can be done all the same.
AS_NIFTI = (
    "get the same labels as NIfTI: leave out configs/dicom.json and add --reader scripts.dicom.DicomReader"
)


def source_headers(series: Series) -> tuple[list[Dataset], tuple[str, ...]]:
    """Headers of the images for highdicom: where they lie, what they are known by, and what it copies.

    Returns:
        A data set for each slice in their order, or one for a multi-frame file; and what is left empty, in
        words.

    Raises:
        Fault: a file is gone; the images cannot be told apart or have no frame of reference; Modality is not
            that of their class; the patient's identifier cannot be decoded.
    """
    originals = series.headers([*COPIED, *IDENTIFIERS, *_LOSSY, "SOPClassUID", "Modality", "InstanceNumber"])
    for original in originals:
        _require_identified(series, original)
    _require_told_apart(series, originals)
    study, notes = _study(series, originals[0])
    headers = []
    for original, place in zip(originals, _places(series), strict=True):
        header = Dataset()
        header.update(study)
        header.update(place)
        for keyword in (*IDENTIFIERS, "SOPClassUID"):
            setattr(header, keyword, original[keyword].value)
        headers.append(header)
    return headers, notes


def _places(series: Series) -> list[Dataset]:
    """Where the images lie: of each, or of all frames of a file.

    All have the orientation and the spacing of the first, from which they differ by less than a pixel;
    highdicom wants them to be the same, and shared by all frames.
    """
    first = series.slices[0]
    places, measures, orientation = [], Dataset(), Dataset()
    measures.PixelSpacing = _decimals(reversed(first.spacing))
    measures.SliceThickness = _decimals([series.thickness])[0]
    orientation.ImageOrientationPatient = _decimals(first.directions.ravel())
    for each in sorted(series.slices, key=lambda each: each.frame) if series.multi_frame else series.slices:
        place = Dataset()
        place.ImagePositionPatient = _decimals(each.position)
        places.append(place)
    rows, columns = first.shape
    if series.multi_frame:
        frames, whole, shared = [], Dataset(), Dataset()
        for place in places:
            frame = Dataset()
            frame.PlanePositionSequence = [place]
            frames.append(frame)
        shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [orientation], [measures]
        whole.SharedFunctionalGroupsSequence, whole.PerFrameFunctionalGroupsSequence = [shared], frames
        whole.NumberOfFrames = len(frames)
        places = [whole]
    else:
        for place in places:
            place.update(measures)
            place.update(orientation)
    for place in places:
        place.Rows, place.Columns = rows, columns
    return places


def _decimals(values: Iterable[float]) -> list[Any]:
    """Decimal strings of 16 characters at most (PS3.5 6.2)."""
    return [DS(float(value), auto_format=True) for value in values]


def _unusable(series: Series, found: str, rule: str, fix: str = f"correct it, or {AS_NIFTI}") -> Fault:
    return Fault(found, f"a segmentation refers to its images: {rule}", fix, series.path)


def _require_identified(series: Series, header: Dataset) -> None:
    """Refuse an image without a UID, or of another modality than its class."""
    name = f"(instance number {instance_number(header)})"
    for keyword in IDENTIFIERS:
        if not re.fullmatch(r"[0-9.]{1,64}", str(header.get(keyword) or "")):
            raise _unusable(series, f"no usable {keyword} {name}", "they must have one")
    modality = IMAGE_CLASSES[header.SOPClassUID]
    if header.get("Modality") != modality:
        raise _unusable(
            series, f"no Modality, or another than {modality} {name}", "it must be that of their class"
        )


def _require_told_apart(series: Series, headers: list[Dataset]) -> None:
    """Refuse images that share their UID."""
    first: dict[str, int] = {}
    for header in headers:
        number = instance_number(header)
        if header.SOPInstanceUID in first:
            raise _unusable(
                series,
                "one SOPInstanceUID for several images "
                f"(instance numbers {first[header.SOPInstanceUID]} and {number})",
                "it must be able to tell them apart",
                f"anonymise them again with a UID for each, or {AS_NIFTI}",
            )
        first[header.SOPInstanceUID] = number


def _study(series: Series, header: Dataset) -> tuple[Dataset, tuple[str, ...]]:
    """Patient and study in Unicode, how the images were compressed, and what is left empty."""
    study, notes = Dataset(), []
    study.SpecificCharacterSet = _UNICODE
    for keyword in COPIED:
        text = _text(header, keyword)
        if text is not None:
            text = _MENDED.get(keyword, _single)(text)
        if text is None and keyword == "PatientID":
            raise _unusable(
                series,
                "a PatientID that SpecificCharacterSet does not decode",
                "it is filed under this identifier",
            )
        if text is None:
            notes.append(f"{keyword} cannot be read and is left empty in the segmentation")
        setattr(study, keyword, text or "")
    for keyword, form in _LOSSY.items():
        values = (_text(header, keyword) or "").split("\\")
        if not all(form.fullmatch(value.strip()) for value in values):
            break
        setattr(study, keyword, values)
    return study, tuple(notes)


def _text(header: Dataset, keyword: str) -> str | None:
    """The text of an element; None where its bytes are none in the character set.

    They are decoded whole: a part of a character may look like a delimiter.
    """
    raw = getattr(header.get_item(Tag(keyword)), "value", None) or b""
    declared = convert_encodings(header.get("SpecificCharacterSet"))
    encodings = ["ascii" if each == default_encoding else each for each in declared]
    with suppress(UnicodeError, LookupError, ValueError):
        delimiters = _NAME_DELIMITERS if dictionary_VR(keyword) == "PN" else TEXT_VR_DELIMS
        text = decode_bytes(raw, encodings, delimiters).replace(_LEFT_BY_PYDICOM, "").strip(" \0")
        return text if text.isprintable() and "\N{REPLACEMENT CHARACTER}" not in text else None
    return None


def _single(text: str) -> str | None:
    """A value without another behind it (PS3.5 6.4)."""
    return None if "\\" in text else text


def _date(text: str) -> str | None:
    """YYYYMMDD, also from YYYY.MM.DD (ACR-NEMA 300) and YYYY-MM-DD."""
    parts = re.fullmatch(r"(\d{4})([.-]?)(\d\d)\2(\d\d)", text)
    if parts is None:
        return None if text else ""
    with suppress(ValueError):
        return f"{datetime.date(int(parts[1]), int(parts[3]), int(parts[4])):%Y%m%d}"
    return None


def _time(text: str) -> str | None:
    """HHMMSS.F, also from HH:MM:SS.F (ACR-NEMA 300), of six digits behind the point at most."""
    parts = re.fullmatch(r"([01]\d|2[0-3])(?::?([0-5]\d)(?::?([0-5]\d|60)(\.\d{1,6})?\d*)?)?", text)
    if parts is None:
        return None if text else ""
    return "".join(part or "" for part in parts.groups())


def _sex(text: str) -> str | None:
    return text.upper() if text.upper() in ("F", "M", "O", "") else None


_MENDED: dict[str, Callable[[str], str | None]] = {
    "PatientBirthDate": _date,
    "StudyDate": _date,
    "StudyTime": _time,
    "PatientSex": _sex,
}
