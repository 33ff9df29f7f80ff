"""Label maps as DICOM Segmentations (PS3.3 A.51), written and read with highdicom.

Every slice of the series has a frame for every segment, empty ones included, so that nothing has to be
guessed when it is read back. A plane that was never acquired has none.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydicom import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import generate_uid

from scripts.dicom.series import EXTRA, Series, SeriesFinder, series_name
from scripts.dicom.silence import silence_pydicom
from scripts.errors import InputError
from scripts.labels import class_names

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from highdicom import AlgorithmIdentificationSequence
    from highdicom.seg import Segmentation

#: Series number of segmentations; reports have the next.
SERIES_NUMBER = 900

#: Most characters of a long string (PS3.5 6.2).
LONG_STRING = 64

#: A label without codes: CID 7150 and 7166 (PS3.16).
TISSUE = {key: ["85756007", "SCT", "Tissue"] for key in ("category", "type")}

#: Maps of how unsure a segmentation is; DICOM has no code for it.
UNCERTAINTY = {
    "category": ["309825002", "SCT", "Spatial and Relational Concept"],
    "type": ["uncertainty", "99UNET", "Uncertainty"],
}

_EXAMPLE = '["91723000", "SCT", "Anatomical Structure"]', '["5366008", "SCT", "Hippocampus"]'


@dataclass(frozen=True)
class Segment:
    """What a label value means.

    Attributes:
        name: the label.
        value: in the label map.
        number: of the segment, from 1.
        category: Segmented Property Category (CID 7150).
        type: Segmented Property Type.
        modifier: of the type, or None.
        tracking: UID of the finding, in the segmentation and in the report.
    """

    name: str
    value: int
    number: int
    category: Code
    type: Code
    modifier: Code | None
    tracking: str


@dataclass(frozen=True)
class Algorithm:
    """What made a segmentation.

    Attributes:
        name: of the bundle.
        version: of the bundle.
        manufacturer: its authors.
    """

    name: str
    version: str
    manufacturer: str


def require_highdicom() -> None:
    """Refuse to go on without highdicom.

    Raises:
        InputError: it is not installed.
    """
    if not find_spec("highdicom"):
        raise InputError(
            f"DICOM segmentations need highdicom, which is not installed: run pip install -r {EXTRA}"
        )


def tell_missing_codes(labels: Mapping[str, int], codes: Mapping[str, Mapping[str, Sequence[str]]]) -> None:
    """Say in the log which labels have no codes and become a `TISSUE`; arguments as for `make_segments`."""
    names = class_names(dict(labels))[1:]
    missing = [name for name in names if name not in codes]
    others = [name for name in codes if name not in names]
    if missing:
        unused = f" (it has some for {', '.join(others)}, which labels does not name)" if others else ""
        logger.warning(
            "segments has no codes for %s%s: written as tissue (85756007, SCT) under the name of the label; "
            'write what it is beside labels, for example "segments": {"%s": {"category": %s, "type": %s}}',
            ", ".join(missing),
            unused,
            missing[0],
            *_EXAMPLE,
        )


def make_segments(
    labels: Mapping[str, int], codes: Mapping[str, Mapping[str, Sequence[str]]]
) -> list[Segment]:
    """The segments of a task: every label but the first, which is the background, and `ignore`.

    Args:
        labels: name to value.
        codes: for each of these labels `category`, `type` and, where it has one, `modifier`; each is code
            value, coding scheme and meaning. A label without codes is a `TISSUE`.

    Raises:
        InputError: a code is not these three texts, or a name is too long.
    """
    names = class_names(dict(labels))[1:]
    segments = []
    for number, name in enumerate(names, start=1):
        if len(name) > LONG_STRING:
            raise InputError(
                f"labels has {name!r}: the label of a DICOM segment has {LONG_STRING} characters at most; "
                "shorten it"
            )
        own = {key: _code(name, key, code) for key, code in codes.get(name, TISSUE).items()}
        if not {"category", "type"} <= own.keys() <= {"category", "type", "modifier"}:
            raise InputError(
                f"segments has {', '.join(own) or 'nothing'} for {name!r}: a label has category and type, "
                "and perhaps modifier; give these"
            )
        kind = own["category"], own["type"], own.get("modifier")
        segments.append(Segment(name, labels[name], number, *kind, str(generate_uid())))
    return segments


def _code(name: str, key: str, code: Any) -> Code:
    sound = isinstance(code, list | tuple) and len(code) == 3
    if not sound or not all(isinstance(part, str) and 0 < len(part) <= LONG_STRING for part in code):
        raise InputError(
            f"segments has {key!r}: {code!r} for {name!r}; it is a list of code value, scheme and meaning; "
            f"write for example {_EXAMPLE[1]}"
        )
    return Code(*code)


def make_segmentation(
    series: Series,
    headers: Sequence[Dataset],
    slices: np.ndarray,
    segments: Sequence[Segment],
    algorithm: Algorithm,
) -> Segmentation:
    """A segmentation that refers to the images it was made from.

    Args:
        series: the images.
        headers: theirs, see `scripts.dicom.headers`.
        slices: label values, (N, rows, columns), one for each slice of the series.
        segments: what the values mean; any other value is background.
        algorithm: what made them.
    """
    numbers = np.zeros(slices.shape, np.uint8 if len(segments) < 256 else np.uint16)
    for segment in segments:
        numbers[slices == segment.value] = segment.number
    return _with_pixels(series, headers, numbers, segments, algorithm, "BINARY", "Automatic segmentation")


def make_maps(
    series: Series, headers: Sequence[Dataset], maps: Mapping[str, np.ndarray], algorithm: Algorithm
) -> Segmentation:
    """Maps of how unsure a segmentation is, as a segmentation with a fraction for each pixel.

    Args:
        series: the images.
        headers: theirs, see `scripts.dicom.headers`.
        maps: name to values from 0 to 1, (N, rows, columns), one for each slice of the series.
        algorithm: what made them.
    """
    segments = make_segments(
        {"": -1, **dict(zip(maps, range(len(maps)), strict=True))}, dict.fromkeys(maps, UNCERTAINTY)
    )
    fractions = np.stack(list(maps.values()), axis=-1).clip(0, 1).astype(np.float32)
    return _with_pixels(series, headers, fractions, segments, algorithm, "FRACTIONAL", "Uncertainty")


def _with_pixels(
    series: Series,
    headers: Sequence[Dataset],
    pixels: np.ndarray,
    segments: Sequence[Segment],
    algorithm: Algorithm,
    kind: str,
    title: str,
) -> Segmentation:
    """A segmentation of a kind; pixels (N, rows, columns[, segments]) in the order of the series' slices."""
    import highdicom as hd
    from highdicom.seg import Segmentation, SegmentDescription

    if series.multi_frame:  # in the order of the file
        pixels = pixels[np.argsort([each.frame for each in series.slices])]
    descriptions = []
    for segment in segments:
        description = SegmentDescription(
            segment_number=segment.number,
            segment_label=segment.name,
            segmented_property_category=segment.category,
            segmented_property_type=segment.type,
            algorithm_type="AUTOMATIC",
            algorithm_identification=identify(algorithm),
            tracking_uid=segment.tracking,
            tracking_id=segment.name,
        )
        if segment.modifier is not None:  # PS3.3 C.8.20.4.1, inside the item of the type
            item = description.SegmentedPropertyTypeCodeSequence[0]
            item.SegmentedPropertyTypeModifierCodeSequence = [hd.sr.CodedConcept.from_code(segment.modifier)]
        descriptions.append(description)
    return Segmentation(
        source_images=headers,
        pixel_array=pixels,
        segmentation_type=kind,
        segment_descriptions=descriptions,
        series_instance_uid=generate_uid(),
        series_number=SERIES_NUMBER,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        omit_empty_frames=False,
        series_description=title,
        content_label="SEGMENTATION",
        content_description=title,
        manufacturer=algorithm.manufacturer,
        manufacturer_model_name=algorithm.name,
        software_versions=algorithm.version,
        device_serial_number=algorithm.version,  # software has no other (PS3.3 C.7.5.2)
    )


def identify(algorithm: Algorithm) -> AlgorithmIdentificationSequence:
    """Algorithm Identification (PS3.3 10.16)."""
    import highdicom as hd

    family = hd.sr.CodedConcept("123110", "DCM", "Artificial Intelligence")
    return hd.AlgorithmIdentificationSequence(algorithm.name, family, algorithm.version)


def read_segmentation(path: str | Path, source: str | Path, labels: Mapping[str, int]) -> np.ndarray:
    """Read a segmentation at the slices of the series that it was made on.

    Args:
        path: a DICOM Segmentation.
        source: the series, see `SeriesFinder.open`; of a folder with several series the one referred to.
        labels: name to value, the background first; a segment is known by its label.

    Returns:
        Label values, (x, y, N), in the order of the series' slices.

    Raises:
        InputError: it is no segmentation, has a segment that `labels` does not name or does not say one label
            for each pixel; the source is gone or another one.
        Fault: the slices of the source do not make a volume.
    """
    require_highdicom()
    from highdicom.seg import segread

    with silence_pydicom():
        try:
            segmentation = segread(Path(path))
            uids = segmentation.get_source_image_uids()
            names = {
                number: segmentation.get_segment_description(number).segment_label
                for number in segmentation.segment_numbers
            }
        except Exception as error:  # whatever a broken file makes pydicom raise
            raise InputError(
                f"{path} is no DICOM Segmentation that can be read ({type(error).__name__}): hand one, whole"
            ) from None
        unknown = sorted(set(names.values()) - set(labels))
        if unknown:
            number = next(number for number, name in names.items() if name == unknown[0])
            raise InputError(
                f"{path} has a segment, number {number}, whose label is none of {', '.join(labels)}: add it "
                "and its value to labels"
            )
        series = _source(Path(path), Path(source), segmentation, {str(uid) for *_, uid in uids})
        options: dict[str, Any] = {"combine_segments": True, "assert_missing_frames_are_empty": True}
        instances = [each.instance for each in series.slices]
        try:
            if series.multi_frame:
                frames = [each.frame + 1 for each in series.slices]
                numbers = segmentation.get_pixels_by_source_frame(instances[0], frames, **options)
            else:
                numbers = segmentation.get_pixels_by_source_instance(instances, **options)
        except Exception as error:  # segments that overlap, images that share a UID, other frames
            raise InputError(
                f"{path} does not say one label for each pixel of the images in {source} "
                f"({type(error).__name__}): it must refer to each of them by a UID of its own, and its "
                "segments must not overlap; segment the images again"
            ) from None
    values = np.full(numbers.shape, next(iter(labels.values())), np.int32)
    for number, name in names.items():
        values[numbers == number] = labels[name]
    return values.T  # (N, rows, columns) to (x, y, N)


def _source(path: Path, source: Path, segmentation: Any, instances: set[str]) -> Series:
    """The series that a segmentation refers to."""
    if not source.exists() and not source.parent.exists():
        raise InputError(f"{source}, the source of {path}, is not there: put it back or hand where it is")
    finder = SeriesFinder()
    referred = segmentation.get("ReferencedSeriesSequence", [Dataset()])[0].get("SeriesInstanceUID", "")
    names = [series_name(uid) for uid in (str(referred), *sorted(instances))]
    inside = next((name for name in names if source.exists() and name in finder.look(source).series), None)
    series = finder.open(source / inside if inside else source)
    gone = len(instances - {each.instance for each in series.slices})
    if gone:
        raise InputError(
            f"{path} refers to {len(instances)} images, {gone} of which are not in {source}: hand the series "
            "that it was made on, whole"
        )
    return series
