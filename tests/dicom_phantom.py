"""DICOM series made up for tests: plain ones, and ones with every oddity that scanners and archives add."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import Dataset, FileMetaDataset, uid
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag
from pydicom.uid import generate_uid

#: Who the phantom is: none of these texts may turn up in a log, a report or the name of a file. The name has
#: no caret, of which highdicom warns by citing it.
NAME, IDENTIFIER, ACCESSION, BORN = "Nobodyknows", "MRN7391", "ACC55512", "19410203"
IDENTITY = (NAME, IDENTIFIER, ACCESSION, BORN)

AXIAL = np.array([[1.0, 0, 0], [0, 1, 0]])

#: Turned about two axes; both rows are of unit length and at a right angle.
OBLIQUE = np.array([[0.96, 0.28, 0.0], [-0.168, 0.576, 0.8]])

CLASSES = {
    "MR": uid.MRImageStorage,
    "CT": uid.CTImageStorage,
    "PT": uid.PositronEmissionTomographyImageStorage,
}


def draw(shape: tuple[int, int, int], seed: int = 0, low: int = 0, high: int = 1000) -> np.ndarray:
    """Random whole numbers, (x, y, z)."""
    return np.random.default_rng(seed).integers(low, high, shape).astype(np.int16)


def positions(
    number: int,
    directions: np.ndarray = AXIAL,
    gaps: float | Sequence[float] = 2.0,
    tilt: float = 0.0,
    start: Sequence[float] = (-20.0, 15.0, 40.0),
) -> np.ndarray:
    """(N, 3) in mm, LPS, of slices that lie one after another along the normal.

    Args:
        number: of slices.
        directions: along a row and down a column.
        gaps: mm between two slices along the normal; one for all or one each.
        tilt: of the gantry, in degrees: slices shift along the columns.
        start: of the first slice.
    """
    along = np.append(0, np.cumsum(np.broadcast_to(gaps, number - 1)))
    way = np.cross(*directions) + np.tan(np.radians(tilt)) * directions[1]
    return np.asarray(start) + np.outer(along, way)


def series(
    volume: np.ndarray,
    where: np.ndarray,
    directions: np.ndarray = AXIAL,
    spacing: tuple[float, float] = (0.8, 1.3),
    modality: str = "MR",
    rescale: Sequence[tuple[float, float]] | None = None,
    series_uid: str | None = None,
    study_uid: str = "1.2.826.0.1.3680043.8.498.11",
) -> list[Dataset]:
    """A data set for each slice.

    Args:
        volume: stored values, (x, y, z), of the type to store.
        where: (z, 3), positions.
        directions: along a row and down a column.
        spacing: mm between columns and between rows.
        modality: MR, CT or PT.
        rescale: slope and intercept of each slice.
        series_uid: of the series; a new one unless given.
        study_uid: of the study.
    """
    series_uid = series_uid or generate_uid()
    made = []
    for index, position in enumerate(where):
        image = Dataset()
        image.file_meta = FileMetaDataset()
        image.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
        image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID = CLASSES[modality]
        image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID = generate_uid()
        image.PatientName, image.PatientBirthDate, image.PatientSex = NAME, BORN, "O"
        image.PatientID, image.AccessionNumber, image.StudyID = IDENTIFIER, ACCESSION, "1"
        image.ReferringPhysicianName = ""
        image.StudyDate, image.StudyTime = "20200102", "030405"
        image.StudyInstanceUID, image.SeriesInstanceUID = study_uid, series_uid
        image.FrameOfReferenceUID, image.PositionReferenceIndicator = study_uid + ".1", ""
        image.Modality, image.SeriesNumber, image.InstanceNumber = modality, 3, index + 1
        image.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        image.Rows, image.Columns = volume.shape[1], volume.shape[0]
        image.PixelSpacing = [repr(spacing[1]), repr(spacing[0])]
        image.SliceThickness = "1.5"
        image.ImagePositionPatient = [f"{value:.9g}" for value in position]
        image.ImageOrientationPatient = [f"{value:.9g}" for value in directions.ravel()]
        if rescale is not None:
            image.RescaleSlope, image.RescaleIntercept = (f"{value:.9g}" for value in rescale[index])
        image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
        set_pixels(image, volume[:, :, index].T)
        made.append(image)
    return made


def plant(image: Dataset, keyword: str | int, value: bytes) -> None:
    """Give an attribute a value as it lies in the file, which no library checks on the way there."""
    tag = Tag(keyword)
    image[tag] = RawDataElement(tag, dictionary_VR(tag), len(value), value, 0, False, True)


def set_pixels(image: Dataset, pixels: np.ndarray) -> None:
    """Store (rows, columns) or (frames, rows, columns) of 8 or 16 bits."""
    image.BitsAllocated = image.BitsStored = 8 * pixels.itemsize
    image.HighBit = image.BitsStored - 1
    image.PixelRepresentation = int(pixels.dtype.kind == "i")
    image.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
    image["PixelData"].VR = "OB" if pixels.itemsize == 1 else "OW"


def multi_frame(images: Sequence[Dataset], seed: int = 0) -> Dataset:
    """An enhanced MR image whose frames are the images, in an order of their own (PS3.3 C.7.6.16)."""
    order = np.random.default_rng(seed).permutation(len(images))
    whole = Dataset()
    for element in images[0]:
        if element.keyword not in (
            *("PixelData", "PixelSpacing", "SliceThickness", "RescaleSlope", "RescaleIntercept"),
            *("ImagePositionPatient", "ImageOrientationPatient"),
        ):
            whole.add(element)
    whole.file_meta = FileMetaDataset()
    whole.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    whole.file_meta.MediaStorageSOPClassUID = whole.SOPClassUID = uid.EnhancedMRImageStorage
    whole.file_meta.MediaStorageSOPInstanceUID = whole.SOPInstanceUID = generate_uid()
    whole.NumberOfFrames = len(images)
    shared = Dataset()
    shared.PlaneOrientationSequence = [_item(images[0], "ImageOrientationPatient")]
    shared.PixelMeasuresSequence = [_item(images[0], "PixelSpacing", "SliceThickness")]
    whole.SharedFunctionalGroupsSequence = [shared]
    whole.PerFrameFunctionalGroupsSequence = []
    for index in order:
        frame = Dataset()
        frame.PlanePositionSequence = [_item(images[index], "ImagePositionPatient")]
        if "RescaleSlope" in images[index]:
            frame.PixelValueTransformationSequence = [
                _item(images[index], "RescaleSlope", "RescaleIntercept")
            ]
        whole.PerFrameFunctionalGroupsSequence.append(frame)
    set_pixels(whole, np.stack([images[index].pixel_array for index in order]))
    return whole


def _item(image: Dataset, *keywords: str) -> Dataset:
    item = Dataset()
    for keyword in keywords:
        setattr(item, keyword, image[keyword].value)
    return item


def secondary_capture(image: Dataset) -> Dataset:
    """A picture of the screen in the series of an image, with no place in the patient."""
    picture = Dataset()
    picture.file_meta = FileMetaDataset()
    picture.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    picture.file_meta.MediaStorageSOPClassUID = picture.SOPClassUID = uid.SecondaryCaptureImageStorage
    picture.file_meta.MediaStorageSOPInstanceUID = picture.SOPInstanceUID = generate_uid()
    picture.SeriesInstanceUID, picture.StudyInstanceUID = image.SeriesInstanceUID, image.StudyInstanceUID
    picture.Rows, picture.Columns, picture.SamplesPerPixel = 4, 4, 1
    picture.PhotometricInterpretation = "MONOCHROME2"
    set_pixels(picture, np.zeros((4, 4), np.uint8))
    return picture


def localizer(image: Dataset) -> Dataset:
    """A view from the side in the series of an axial image."""
    (view,) = series(draw((5, 6, 1)), np.zeros((1, 3)), np.array([[0.0, 1, 0], [0, 0, -1]]))
    view.SeriesInstanceUID = image.SeriesInstanceUID
    view.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    return view


def write(images: Sequence[Dataset], folder: Path, seed: int = 0, names: str = "IM{:04d}") -> Path:
    """Write the images under names that have nothing to do with their order."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers = np.random.default_rng(seed).permutation(len(images)) + len(list(folder.iterdir()))
    for number, image in zip(numbers, images, strict=True):
        image.save_as(folder / names.format(number), enforce_file_format=True)
    return folder


def pack(folder: Path, file: Path, inside: str = "study") -> Path:
    """A zip file of a folder's files, below a path of their own."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.iterdir()):
            archive.write(path, f"{inside}/{path.name}")
    return file


def affine(
    where: np.ndarray, planes: int, directions: np.ndarray = AXIAL, spacing: tuple[float, float] = (0.8, 1.3)
) -> np.ndarray:
    """From voxels of a grid of so many planes to mm, RAS, by the formula of PS3.3 C.7.6.2.1.1."""
    matrix = np.eye(4)
    matrix[:3, 0] = directions[0] * spacing[0]
    matrix[:3, 1] = directions[1] * spacing[1]
    matrix[:3, 2] = (where[-1] - where[0]) / (planes - 1)
    matrix[:3, 3] = where[0]
    return np.diag([-1.0, -1, 1, 1]) @ matrix


def odd_series() -> dict[str, dict[str, Any]]:
    """Arguments of `series` and of `positions` for every oddity of geometry and of values."""
    slopes = [(0.5 + 0.25 * index, -3.0 * index) for index in range(8)]
    return {
        "plain": {},
        "oblique": {"directions": OBLIQUE},
        "tilted": {"tilt": 20.0},
        "tilted_oblique": {"tilt": -15.0, "directions": OBLIQUE},
        "missing": {"gaps": [2.0, 2, 4, 2, 6, 2, 2]},
        "missing_tilted": {"gaps": [2.0, 2, 4, 2, 6, 2, 2], "tilt": 20.0, "directions": OBLIQUE},
        "uneven": {"gaps": [2.0, 2.5, 3, 2, 3.5, 2, 3]},
        "unsigned": {"dtype": np.uint16},
        "bytes": {"dtype": np.uint8, "high": 255},
        "signed": {"low": -1000, "modality": "CT", "rescale": [(1.0, -24.0)] * 8},
        "slopes": {"modality": "PT", "rescale": slopes},
    }


def make_odd(name: str, seed: int = 0) -> tuple[list[Dataset], np.ndarray]:
    """The images of an entry of `odd_series`, and their intensities, (x, y, z)."""
    about = dict(odd_series()[name])
    dtype = about.pop("dtype", np.int16)
    stored = draw((7, 6, 8), seed, about.pop("low", 0), about.pop("high", 1000)).astype(dtype)
    directions = about.get("directions", AXIAL)
    place = {key: about.pop(key) for key in ("gaps", "tilt") if key in about}
    where = positions(8, directions, **place)
    images = series(stored, where, **about)
    scale = np.array(about.get("rescale", [(1.0, 0.0)] * 8))
    return images, stored * scale[:, 0] + scale[:, 1]
