"""Find the image series among DICOM files and put their slices in order in the patient's space.

The files lie in a folder, with its subfolders, or in a zip file, of which nothing is unpacked to disk; names
and order of the files mean nothing. A slice is a file, or a frame of a multi-frame file, which is then a
series of its own and may be handed by itself. Where it lies is what the Image Plane module says (PS3.3
C.7.6.2), or for a frame its functional groups (C.7.6.16.2).

The slices become a grid of voxels, (x, y, z) along rows, columns and the stack. Slices that are evenly spaced
along a line are that grid; a tilted gantry gives it a shear. Where slices are missing or unevenly spaced the
grid is regular nevertheless, and planes between slices are interpolated.

A series is called `series_` and 12 digits made from its UID by a hash; no message names a file inside a study
or anything else that a patient could be known by.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import re
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pydicom
from pydicom import Dataset, uid
from pydicom.errors import InvalidDicomError

from scripts.affines import require_sound
from scripts.dicom.silence import silence_pydicom
from scripts.errors import Fault, InputError, few

#: What is read as images (PS3.4 B.5), and its modality; anything else is left out.
IMAGE_CLASSES = {
    uid.CTImageStorage: "CT",
    uid.EnhancedCTImageStorage: "CT",
    uid.LegacyConvertedEnhancedCTImageStorage: "CT",
    uid.MRImageStorage: "MR",
    uid.EnhancedMRImageStorage: "MR",
    uid.LegacyConvertedEnhancedMRImageStorage: "MR",
    uid.PositronEmissionTomographyImageStorage: "PT",
    uid.EnhancedPETImageStorage: "PT",
    uid.LegacyConvertedEnhancedPETImageStorage: "PT",
}

#: How far a slice may lie from its place on a regular grid, as a fraction of the distance between slices or,
#: sideways, of a pixel.
GRID_TOLERANCE = 0.1

#: How far direction cosines of two slices may differ: a twentieth of a pixel at the end of a row of 512.
DIRECTION_TOLERANCE = 1e-4

#: How far the two directions of a slice may be from unit length and a right angle.
ANGLE_TOLERANCE = 1e-3

#: How far pixel spacings may differ, as a fraction: half a pixel at the end of a row of 512.
SPACING_TOLERANCE = 1e-3

#: Slices no further apart than this are at the same position, in mm.
SAME_POSITION = 0.01

#: Thickness of a single slice that does not say its own, in mm.
LONE_THICKNESS = 1.0

#: The least share of the grid's planes that must have been acquired.
ACQUIRED_SHARE = 0.25

#: Under which the meta data of an image hold `Series.digest`.
SERIES_DIGEST = "series_digest"

#: Under which they hold the share of padding.
PADDING_SHARE = "padding_share"

#: The file to install for what pydicom alone does not do.
EXTRA = "requirements-dicom.txt"

#: What decodes JPEG of more than 8 bits. It is not in EXTRA, because its licence is the GPL.
_JPEG = (uid.JPEGExtended12Bit, uid.JPEGLossless, uid.JPEGLosslessSV1)
_JPEG_DECODER = "pylibjpeg pylibjpeg-libjpeg"

#: From the patient's space of DICOM, to left, posterior and superior, to that of NIfTI, RAS.
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])

_PREFIX, _DIGITS = "series_", 12

#: What all images of a series have in common (PS3.3 A.1.2, C.7.4.1).
_IN_COMMON = ("PatientID", "StudyInstanceUID", "FrameOfReferenceUID")

_HEADER = (
    *("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "ConcatenationUID", *_IN_COMMON),
    *("ImageType", "InstanceNumber"),
    *("Rows", "Columns", "SamplesPerPixel", "PixelSpacing", "SliceThickness", "NumberOfFrames"),
    *("ImagePositionPatient", "ImageOrientationPatient", "RescaleSlope", "RescaleIntercept"),
    *("ModalityLUTSequence", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
)


@dataclass(frozen=True)
class Source:
    """A file on disk, or a member of a zip file."""

    path: Path
    member: str = ""


@dataclass(frozen=True)
class Slice:
    """Where a slice lies and how its pixels become intensities.

    Attributes:
        source: the file.
        instance: its SOP Instance UID, empty where it has none.
        frame: number of the frame in it, from 0.
        number: its Instance Number, or for a frame the frame's, from 1.
        shape: rows and columns.
        position: (3,), centre of the first pixel, in mm, LPS.
        directions: (2, 3), unit vectors along a row and down a column.
        spacing: between the columns and between the rows, in mm.
        thickness: nominal, in mm; 0 where it does not say.
        rescale: slope and intercept (PS3.3 C.11.1, C.7.6.16.2.9), None where it does not say.
    """

    source: Source
    instance: str
    frame: int
    number: int
    shape: tuple[int, int]
    position: np.ndarray
    directions: np.ndarray
    spacing: tuple[float, float]
    thickness: float
    rescale: tuple[float | None, float | None]


@dataclass(frozen=True)
class Series:
    """Slices in the order in which they lie in the patient.

    Attributes:
        path: what the series is opened by.
        slices: in order along the normal of the image plane.
        planes: (N,), where the slices lie on the grid's third axis, whole numbers where they lie on a plane.
        affine: (4, 4), from voxels of the grid to mm, RAS.
        notes: what is odd about it, in words.
    """

    path: Path
    slices: tuple[Slice, ...]
    planes: np.ndarray
    affine: np.ndarray
    notes: tuple[str, ...]

    @property
    def name(self) -> str:
        """`series_` and 12 digits."""
        return self.path.name

    @property
    def digest(self) -> str:
        """A hash of the images' UIDs in their order: another one when an image is gone or exchanged."""
        return hashlib.sha256(" ".join(each.instance for each in self.slices).encode()).hexdigest()

    @property
    def multi_frame(self) -> bool:
        """Whether the slices are frames of one file."""
        return len(self.slices) > 1 and self.slices[0].source == self.slices[1].source

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels of the grid, (x, y, z)."""
        rows, columns = self.slices[0].shape
        return columns, rows, round(self.planes[-1]) + 1

    @property
    def thickness(self) -> float:
        """Of a slice in mm: nominal, or where the images do not say, the step of the grid between slices."""
        step = np.cross(*self.slices[0].directions) @ (_LPS_TO_RAS @ self.affine)[:3, 2]
        return self.slices[0].thickness or float(step)

    @property
    def slice_volumes(self) -> np.ndarray:
        """(N,), what a pixel of each slice stands for, in mm^3: its area, halfway to both neighbours."""
        x, y = self.slices[0].spacing
        if len(self.slices) == 1:
            return np.array([x * y * self.thickness])
        normal = np.cross(*self.slices[0].directions)
        along = np.array([each.position @ normal for each in self.slices])
        gaps = np.diff(along)
        return x * y * (np.append(gaps, gaps[-1]) + np.append(gaps[0], gaps)) / 2

    def read(self) -> np.ndarray:
        """What `load` gives first."""
        return self.load()[0]

    @silence_pydicom()
    def load(self) -> tuple[np.ndarray, float]:
        """Read the pixels. Padding (PS3.3 C.7.5.1.1.2) gets the lowest intensity that is none.

        Returns:
            Intensities on the grid, (x, y, z), float32; and the share of the pixels that are padding, 0 to 1.

        Raises:
            Fault: a file is gone, its pixels cannot be decoded, or all are padding.
        """
        pixels = np.stack([values.T for values in _pixels(self.path, self.slices)], -1)  # (x, y, slice)
        padding = np.isnan(pixels)
        share = float(padding.mean())
        if share == 1:
            raise Fault(
                "nothing but padding",
                "some pixels must lie outside Pixel Padding Value and Pixel Padding Range Limit",
                "correct or take out these two elements",
                self.path,
            )
        if share:
            pixels[padding] = pixels[~padding].min()
        return self._on_grid(pixels), share

    def _on_grid(self, pixels: np.ndarray) -> np.ndarray:
        """Slices, (x, y, N), on the grid, (x, y, z)."""
        depth = self.shape[2]
        if np.array_equal(self.planes, np.arange(depth)):
            return pixels
        planes = np.arange(depth)
        high = np.searchsorted(self.planes, planes).clip(1)  # the first slice at or beyond each plane
        low = high - 1
        weight = ((planes - self.planes[low]) / (self.planes[high] - self.planes[low])).astype(np.float32)
        return pixels[..., low] * (1 - weight) + pixels[..., high] * weight

    def slices_of(self, grid: np.ndarray) -> np.ndarray:
        """A label map on the grid, (x, y, z), at the slices: (N, rows, columns), from the nearest planes."""
        return grid[..., np.rint(self.planes).astype(int)].T

    @silence_pydicom()
    def headers(self, keywords: Sequence[str]) -> list[Dataset]:
        """Some elements of the files, in the order of the slices; one data set for a multi-frame file.

        Raises:
            Fault: a file is gone.
        """
        sources = list(dict.fromkeys(each.source for each in self.slices))
        wanted: Any = {"stop_before_pixels": True, "specific_tags": list(keywords)}
        try:
            return [pydicom.dcmread(file, **wanted) for _, file in _opened(sources)]
        except Exception:  # whatever a broken file makes pydicom raise
            raise gone(self.path) from None


def padding_note(share: float) -> tuple[str, ...]:
    """What is told of a share of padding, in words; nothing of none."""
    if not share:
        return ()
    return (f"{share:.1%} of the pixels are padding and count as the lowest intensity that is none",)


def gone(path: Path) -> Fault:
    """What is said of a series that is not any more what a segmentation was made of."""
    return Fault(
        "a file that is gone or has changed",
        "the images must be there when their segmentation is written",
        "put them back and run again",
        path,
    )


@dataclass(frozen=True)
class Found:
    """The series of a folder or a file.

    Attributes:
        series: for each name what its files are and say, in the order of the names.
        left_out: how many of each kind were left out.
        stamps: when each folder and file was changed, and its size, before it was read.
        holders: the folders and zip files, which change when files come and go.
    """

    series: dict[str, list[tuple[Source, Dataset]]]
    left_out: Counter[str]
    stamps: dict[Path, tuple[int, int]]
    holders: list[Path]

    def changed(self, paths: Iterable[Path]) -> bool:
        """Whether one of these is not any more what it was."""
        return any(_stamp(path) != self.stamps[path] for path in paths)

    def describe(self) -> str:
        """What was left out and how many, in words; empty if nothing was."""
        return ", ".join(f"{kind} ({count})" for kind, count in sorted(self.left_out.items()))


class SeriesFinder:
    """Opens series, and looks through a folder or zip file once for all of them, as long as nothing changes.

    It remembers the headers of the last place alone, so that a process may run for weeks.
    """

    def __init__(self) -> None:
        self._last: tuple[Path, Found] | None = None

    @silence_pydicom()
    def look(self, place: str | Path) -> Found:
        """The series of a folder, with its subfolders and zip files, or of a file.

        Raises:
            InputError: it is not there, is or holds a broken or encrypted zip file, or holds no image series.
        """
        place, last = Path(place), self._last
        if last is None or last[0] != place or last[1].changed(last[1].holders):
            last = self._last = place, _look(place)
        return last[1]

    @silence_pydicom()
    def open(self, path: str | Path) -> Series:
        """A series in order.

        Args:
            path: a folder or a file that holds one series, or with `/series_...` behind it the name of
                the series among several.

        Raises:
            InputError: there are no series, or not one alone.
            Fault: there are others, perhaps as it went since it was listed; the slices do not make a volume.
        """
        path = Path(path)
        if not path.exists() and is_series(path):
            place, name = path.parent, path.name
            found = self.look(place)
            series = found.series
            if name not in series:
                raise Fault(
                    f"no series of this name beside {', '.join(series)}",
                    "its files must be there until it is done",
                    "put them back, or name one of these",
                    path,
                )
        else:
            place, found = path, self.look(path)
            series = found.series
            if len(series) > 1:
                raise InputError(
                    f"{path} holds {len(series)} series, where one is asked for: name one of them, "
                    f"{' or '.join(str(path / name) for name in series)}"
                )
            name = next(iter(series))
        if found.changed({source.path for source, _ in series[name]}):
            self._last = None
            return self.open(path)
        return arrange(place / name, series[name])


def is_series(path: str | Path) -> bool:
    """Whether a path ends in the name of a series."""
    name = Path(path).name
    digits = name.removeprefix(_PREFIX)
    return name.startswith(_PREFIX) and len(digits) == _DIGITS and set(digits) <= set("0123456789abcdef")


def series_name(identifier: str) -> str:
    """The name of a series by its UID."""
    return _PREFIX + hashlib.sha256(identifier.encode()).hexdigest()[:_DIGITS]


def _stamp(path: Path) -> tuple[int, int]:
    """When a file or folder was changed, in ns, and its size in bytes; zeros where it is gone."""
    try:
        about = path.stat()
    except OSError:
        return 0, 0
    return about.st_mtime_ns, about.st_size


def _look(place: Path) -> Found:
    stamps = {path: _stamp(path) for path in (place, *place.rglob("*"))}
    holders = [path for path in stamps if path == place or path.is_dir() or path.suffix.lower() == ".zip"]
    series: defaultdict[str, list[tuple[Source, Dataset]]] = defaultdict(list)
    left_out: Counter[str] = Counter()
    try:
        for source, file in _opened(_sources(place)):
            try:
                header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(_HEADER))
                kind = uid.UID(header.get("SOPClassUID", ""))
                multi = "PerFrameFunctionalGroupsSequence" in header
                identifier = str(header.get("SOPInstanceUID" if multi else "SeriesInstanceUID", ""))
                localizer = "LOCALIZER" in (header.get("ImageType") or ())
            except InvalidDicomError:
                left_out["files that are not DICOM"] += 1
                continue
            except Exception:  # whatever a broken file makes pydicom raise; its text may tell of the patient
                left_out["broken files"] += 1
                continue
            if not kind or not identifier:
                left_out["broken files"] += 1
            elif kind not in IMAGE_CLASSES:
                left_out[kind.name if kind.name != kind else "objects of an unknown class"] += 1
            elif localizer:
                left_out[f"{kind.name}, localizer"] += 1
            else:
                series[series_name(identifier)].append((source, header))
    except (zipfile.BadZipFile, RuntimeError) as error:  # broken; encrypted, or packed in another way
        raise InputError(
            f"{place} is or holds a zip file that cannot be read ({type(error).__name__}): pack it again, "
            "without a password, or unpack it and hand the folder"
        ) from None
    except OSError as error:
        raise InputError(
            f"{place} holds a file that cannot be opened ({type(error).__name__}): make all of them readable"
        ) from None
    found = Found(dict(sorted(series.items())), left_out, stamps, holders)
    if not series:
        raise InputError(
            f"{place} holds no DICOM images ({found.describe() or 'no files'}): hand the folder or zip file "
            "of CT, MR or PET images"
        )
    return found


def _sources(place: Path) -> Iterator[Source]:
    """Every file of a folder or a zip file, in the order of their names, without hidden ones."""
    if not place.exists():
        raise InputError(f"{place} is not there: hand a folder, a zip file or a multi-frame file of DICOM")
    files = sorted(path for path in place.rglob("*") if path.is_file()) if place.is_dir() else [place]
    for file in files:
        if _hidden(file.relative_to(place)):
            continue
        if file.suffix.lower() == ".zip" or (file == place and zipfile.is_zipfile(place)):
            with zipfile.ZipFile(file) as archive:
                for name in sorted(archive.namelist()):
                    if not name.endswith("/") and not _hidden(Path(name)):
                        yield Source(file, name)
        else:
            yield Source(file)


def _hidden(path: Path) -> bool:
    """`.DS_Store`, or below `.git` or the `__MACOSX` of a zip file."""
    return any((part.startswith(".") and part != "..") or part == "__MACOSX" for part in path.parts)


def _opened(sources: Iterable[Source]) -> Iterator[tuple[Source, BinaryIO]]:
    """Open files one after another; members of zip files are read where they are."""
    for (path, packed), members in itertools.groupby(sources, lambda each: (each.path, bool(each.member))):
        with zipfile.ZipFile(path) if packed else nullcontext() as archive:
            for source in members:
                with archive.open(source.member) if archive else path.open("rb") as file:
                    yield source, file  # type: ignore[misc]


def arrange(path: Path, files: Sequence[tuple[Source, Dataset]]) -> Series:
    """Put the slices of a series in order.

    Args:
        path: what the series is opened by.
        files: what its files are and say.

    Raises:
        Fault: the slices do not make a volume, or cannot be decoded here.
    """
    for _, header in files:
        _require_decoder(path, header)
    _require_in_common(path, [header for _, header in files])
    slices = [each for source, header in files for each in _slices(path, source, header)]
    first = slices[0]
    _require_alike(path, slices)
    _require_one_scale(path, slices)
    slices.sort(key=lambda each: float(each.position @ np.cross(*first.directions)))
    kept = _without_duplicates(path, slices)
    notes = []
    if len(kept) < len(slices):
        notes.append(f"{len(slices) - len(kept)} slices are there twice and count once")
    planes, step = _stack(path, kept)
    missing = round(planes[-1]) + 1 - len(kept)
    if missing and np.array_equal(planes, np.rint(planes)):
        notes.append(f"{missing} slices are missing and are interpolated")
    elif missing:
        gaps = np.diff(planes) * abs(step @ np.cross(*first.directions))
        notes.append(f"slices lie {gaps.min():.3g} to {gaps.max():.3g} mm apart and are interpolated")
    if IMAGE_CLASSES[files[0][1].SOPClassUID] == "CT" and None in first.rescale:
        notes.append("CT without RescaleSlope or RescaleIntercept, whose pixels count as Hounsfield units")
    affine = np.eye(4)
    affine[:3, :2] = first.directions.T * first.spacing
    affine[:3, 2] = step
    affine[:3, 3] = kept[0].position
    try:
        require_sound(affine)
    except Fault as fault:
        raise fault.of(path) from None
    return Series(path, tuple(kept), planes, _LPS_TO_RAS @ affine, tuple(notes))


def _require_alike(path: Path, slices: Sequence[Slice]) -> None:
    """Refuse slices of different size, pixel spacing or orientation."""
    first = slices[0]
    for each in slices:
        for what, differs in (
            ("sizes", each.shape != first.shape),
            ("pixel spacings", not np.allclose(each.spacing, first.spacing, rtol=SPACING_TOLERANCE, atol=0)),
            ("orientations", np.abs(each.directions - first.directions).max() > DIRECTION_TOLERANCE),
        ):
            if differs:
                raise Fault(
                    f"slices of different {what} (instance numbers {first.number} and {each.number})",
                    "the slices of a volume are alike",
                    "take out those that do not belong to it, such as a localizer",
                    path,
                )


def _require_in_common(path: Path, headers: Sequence[Dataset]) -> None:
    """Refuse images of two patients, studies or frames of reference under one Series Instance UID."""
    first: dict[str, tuple[str, int]] = {}
    for header in headers:
        for keyword in _IN_COMMON:
            value, number = _said(header, keyword), instance_number(header)
            if value and value != first.setdefault(keyword, (value, number))[0]:
                raise Fault(
                    f"images of different {keyword} (instance numbers {first[keyword][1]} and {number})",
                    "the images of one SeriesInstanceUID are of one patient and study, in one frame of "
                    "reference",
                    "hand each patient and study by itself, or anonymise the images again with UIDs that "
                    "keep them apart and together",
                    path,
                )


def _require_one_scale(path: Path, slices: Sequence[Slice]) -> None:
    """Refuse slices that say how pixels become intensities among others that do not."""
    names = ("RescaleSlope", "RescaleIntercept")
    without = {
        name: [each for each in slices if each.rescale[index] is None] for index, name in enumerate(names)
    }
    mixed = [name for name in names if 0 < len(without[name]) < len(slices)]
    if mixed:
        numbers = sorted({each.number for name in mixed for each in without[name]})
        raise Fault(
            f"no {' and '.join(mixed)} in {len(numbers)} of {len(slices)} slices (instance numbers "
            f"{few(numbers)})",
            "the intensities of a volume are on one scale, so all of its slices have it or none",
            "export the images again, or add it to these slices",
            path,
        )


def _stack(path: Path, slices: Sequence[Slice]) -> tuple[np.ndarray, np.ndarray]:
    """Where slices lie on the third axis of a regular grid, (N,), and its step in the patient, (3,) in mm."""
    first = slices[0]
    normal = np.cross(*first.directions)
    if len(slices) == 1:
        return np.zeros(1), normal * (first.thickness or LONE_THICKNESS)
    from_first = np.array([each.position for each in slices]) - first.position
    along = from_first @ normal
    deviation = np.abs(from_first - np.outer(along / along[-1], from_first[-1])).max()
    if deviation > GRID_TOLERANCE * min(first.spacing):
        raise Fault(
            f"slices that lie up to {deviation:.3g} mm beside the line through the first and the last",
            f"it must run through all of them to within {GRID_TOLERANCE} pixels",
            "reconstruct the series anew or hand its parts one by one",
            path,
        )
    planes = _planes(path, along)
    return planes, from_first[-1] / planes[-1]


def _planes(path: Path, along: np.ndarray) -> np.ndarray:
    """Where slices lie on the axis of a regular grid.

    Args:
        path: what the series is opened by.
        along: distances from the first slice in mm, growing.

    Returns:
        Whole numbers where slices are evenly spaced but for missing ones, with 0 first in any case.
    """
    gaps = np.diff(along)
    planes = np.append(0, np.rint(gaps / gaps.min()).cumsum())
    if np.abs(along / along[-1] * planes[-1] - planes).max() > GRID_TOLERANCE:
        planes = along / along[-1] * math.ceil(along[-1] / gaps.min() - GRID_TOLERANCE)
        planes[-1] = round(planes[-1])
    if len(along) < ACQUIRED_SHARE * (planes[-1] + 1):
        raise Fault(
            f"{len(along)} slices that lie {gaps.min():.3g} to {gaps.max():.3g} mm apart",
            f"at least {ACQUIRED_SHARE:.0%} of the planes of a regular grid must have been acquired",
            "add the slices that are missing or hand the parts one by one",
            path,
        )
    return planes


def _without_duplicates(path: Path, slices: Sequence[Slice]) -> list[Slice]:
    """Keep one of several slices at a position whose pixels are the same."""
    normal = np.cross(*slices[0].directions)
    kept = [slices[0]]
    for each in slices[1:]:
        apart = each.position - kept[-1].position
        if apart @ normal > SAME_POSITION:
            kept.append(each)
            continue
        copy = each.source != kept[-1].source and np.linalg.norm(apart) <= SAME_POSITION
        if not copy or not _same_pixels(path, kept[-1], each):
            raise Fault(
                f"slices at the same position that are no copies (instance numbers {kept[-1].number} and "
                f"{each.number})",
                "a volume has one slice at each position",
                "hand each echo, time point or reconstruction as a series of its own",
                path,
            )
    return kept


def _same_pixels(path: Path, one: Slice, other: Slice) -> bool:
    first, second = _pixels(path, [one, other])
    return np.array_equal(first, second, equal_nan=True)


def _require_decoder(path: Path, header: Dataset) -> None:
    """Refuse pixels that nothing installed here can decode."""
    from pydicom.pixels import get_decoder  # pydicom 3; MONAI Label has pydicom 2, and no need of this

    syntax = uid.UID(header.file_meta.get("TransferSyntaxUID", uid.ImplicitVRLittleEndian))
    try:
        if get_decoder(syntax).is_available:
            return
        needed = _JPEG_DECODER if syntax in _JPEG else f"-r {EXTRA}"
        fix = f"run pip install {needed}, or convert it to Explicit VR Little Endian"
    except NotImplementedError:
        fix = "convert it to Explicit VR Little Endian"
    name = syntax.name if syntax.name != syntax else "of an unknown name"  # which may be anything
    raise Fault(f"the transfer syntax {name}", "its pixels cannot be decoded here", fix, path)


def _slices(path: Path, source: Source, header: Dataset) -> list[Slice]:
    """The slices of a file.

    Raises:
        Fault: something is missing or no number, or the pixels are in colour.
    """
    name = f"(instance number {instance_number(header)})"
    try:
        _require_plain(path, header, name)
        shared = header.get("SharedFunctionalGroupsSequence", [Dataset()])[0]
        frames = header.get("PerFrameFunctionalGroupsSequence", [header])
        if int(header.get("NumberOfFrames") or len(frames)) != len(frames) or not frames:
            raise KeyError("NumberOfFrames")
        return [
            Slice(
                source,
                str(header.get("SOPInstanceUID") or ""),
                index,
                instance_number(header) if len(frames) == 1 else index + 1,
                (int(header.Rows), int(header.Columns)),
                _numbers(frame, shared, "PlanePositionSequence", "ImagePositionPatient", 3),
                _directions(
                    _numbers(frame, shared, "PlaneOrientationSequence", "ImageOrientationPatient", 6)
                ),
                _spacing(_numbers(frame, shared, "PixelMeasuresSequence", "PixelSpacing", 2)),
                _optional(frame, shared, "PixelMeasuresSequence", "SliceThickness") or 0.0,
                _rescale(frame, shared),
            )
            for index, frame in enumerate(frames)
        ]
    except Fault:
        raise
    except Exception as error:  # whatever a broken file makes pydicom raise
        known = isinstance(error, KeyError) and error.args[0] in _HEADER
        reason = f"no usable {error.args[0]}" if known else "a header that is broken"
        raise Fault(
            f"{reason} {name}",
            "every slice must say where it lies and what its pixels mean",
            "export the images again",
            path,
        ) from None


def instance_number(header: Dataset) -> int:
    """Instance Number, 0 where there is none."""
    digits = _said(header, "InstanceNumber")
    return int(digits) if re.fullmatch(r"-?[0-9]{1,12}", digits) else 0


def _said(header: Dataset, keyword: str) -> str:
    """The value of an element as text; empty where there is none that can be read."""
    try:
        return str(header.get(keyword) or "").strip()
    except Exception:  # whatever a broken file makes pydicom raise
        return ""


def _value(frame: Dataset, shared: Dataset, group: str, keyword: str) -> Any:
    """A value of a single-frame image, or of a frame from a functional group of its own or of all frames."""
    for where in (frame, shared):
        if group in where:
            return where[group].value[0].get(keyword)
    return frame.get(keyword)


def _numbers(frame: Dataset, shared: Dataset, group: str, keyword: str, count: int) -> np.ndarray:
    value = _value(frame, shared, group, keyword)
    numbers = np.array([] if value is None else value, dtype=float)
    if numbers.shape != (count,) or not np.isfinite(numbers).all():
        raise KeyError(keyword)
    return numbers


def _optional(frame: Dataset, shared: Dataset, group: str, keyword: str) -> float | None:
    value = _value(frame, shared, group, keyword)
    number = None if value in (None, "") else float(value)
    if number is not None and not math.isfinite(number):
        raise KeyError(keyword)
    return number


def _require_plain(path: Path, header: Dataset, name: str) -> None:
    """Refuse what is no grey image with one scale, whole in its file."""
    if header.get("SamplesPerPixel", 1) != 1:
        raise Fault(f"pixels in colour {name}", "one number a pixel is read", "hand the grey images", path)
    if "ConcatenationUID" in header:
        raise Fault(
            f"a part of a concatenation {name}",
            "a multi-frame image is one file here (PS3.3 C.7.6.16.2.2.4)",
            "put its parts together",
            path,
        )
    if "ModalityLUTSequence" in header:
        raise Fault(
            f"a modality lookup table {name}",
            "intensities are pixels times a slope, plus an intercept",
            "convert the images",
            path,
        )


def _rescale(frame: Dataset, shared: Dataset) -> tuple[float | None, float | None]:
    """Slope and intercept; a slope of 0 leaves no image."""
    group = "PixelValueTransformationSequence"
    slope = _optional(frame, shared, group, "RescaleSlope")
    if slope == 0:
        raise KeyError("RescaleSlope")
    return slope, _optional(frame, shared, group, "RescaleIntercept")


def _directions(cosines: np.ndarray) -> np.ndarray:
    """(2, 3), of unit length, at a right angle."""
    pair = cosines.reshape(2, 3)
    if np.abs(pair @ pair.T - np.eye(2)).max() > ANGLE_TOLERANCE:
        raise KeyError("ImageOrientationPatient")
    return pair / np.linalg.norm(pair, axis=1, keepdims=True)


def _spacing(rows_and_columns: np.ndarray) -> tuple[float, float]:
    """Pixel Spacing gives the distance between rows first (PS3.3 10.7.1.3)."""
    if rows_and_columns.min() <= 0:
        raise KeyError("PixelSpacing")
    return float(rows_and_columns[1]), float(rows_and_columns[0])


def _pixels(path: Path, slices: Sequence[Slice]) -> Iterator[np.ndarray]:
    """Intensities of slices, (rows, columns), float32, NaN where pixels are padding.

    Raises:
        Fault: a file is gone, or its pixels cannot be decoded.
    """
    groups = [list(group) for _, group in itertools.groupby(slices, key=lambda each: each.source)]
    opened = _opened([group[0].source for group in groups])
    for group in groups:
        first = group[0]
        try:
            _, file = next(opened)
            image = pydicom.dcmread(file)
            stored = image.pixel_array.reshape(-1, *first.shape)  # (frames, rows, columns)
            padding = _padding(image, stored)
            planes = [(stored[each.frame], padding[each.frame]) for each in group]
        except Exception as error:  # whatever a decoder raises; its text may tell of the patient
            raise Fault(
                f"pixels that cannot be read (instance number {first.number}, {type(error).__name__})",
                "every file must be there and be readable to its end",
                "copy or export the images again",
                path,
            ) from None
        for each, (plane, padded) in zip(group, planes, strict=True):
            slope, intercept = (1.0 if each.rescale[0] is None else each.rescale[0]), each.rescale[1] or 0.0
            pixels = (plane * np.float64(slope) + intercept).astype(np.float32)
            pixels[padded] = np.nan
            yield pixels


def _padding(image: Dataset, stored: np.ndarray) -> np.ndarray:
    """Which stored pixels are padding (PS3.3 C.7.5.1.1.2): from Value to Limit, in whichever order.

    Both may be written as if the pixels had another sign.
    """
    ends = [image.get("PixelPaddingValue"), image.get("PixelPaddingRangeLimit")]
    if ends[0] is None:
        return np.zeros(stored.shape, bool)
    low, high = np.sort(np.array([int(end) for end in ends if end is not None]).astype(stored.dtype))[[0, -1]]
    return (stored >= low) & (stored <= high)
