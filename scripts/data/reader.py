"""Read the file of an image or a label: the one way for checks, training, inference and judging.

NIfTI (`.nii`, `.nii.gz`) is read by `scripts.data.nifti`, pictures (PNG, TIFF, BMP, JPEG) by
`scripts.data.pictures`, DICOM, which only inference takes, by `scripts.dicom`. Arrays are `(x, y, z)` for
NIfTI and `(width, height)` for pictures, channels last.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import monai.data
import numpy as np
from monai.config import PathLike
from monai.utils import MetaKeys, SpaceKeys, ensure_tuple

from scripts.data.grids import Grid, turn_onto, turned
from scripts.data.nifti import FORM, NIFTI_SUFFIXES, Nifti, read_nifti, read_nifti_header
from scripts.data.pictures import PICTURE_SUFFIXES, Picture, read_picture, read_picture_header
from scripts.dicom import DicomReader
from scripts.errors import Fault

IMAGE_SUFFIXES = NIFTI_SUFFIXES + PICTURE_SUFFIXES

#: Digits of a voxel's edge that are told and written.
DIGITS = 5

#: How files begin that stand for another one, whose they are, and what fetches it.
_POINTERS = (
    (b"version https://git-lfs.github.com/spec/", "Git LFS", "git lfs pull"),
    (b"/annex/objects/", "git-annex", "git annex get"),
)
_HEAD = max(len(begin) for begin, _, _ in _POINTERS)


def image_suffix(path: str | Path) -> str:
    """The part of a file name that says how to read it, as written; empty if it is no image known here."""
    name = Path(path).name
    return next((name[-len(s) :] for s in IMAGE_SUFFIXES if name.lower().endswith(s)), "")


def is_picture(path: str | Path) -> bool:
    """Whether a file is a picture, by its suffix."""
    return image_suffix(path).lower() in PICTURE_SUFFIXES


def require_content(file: Path) -> None:
    """Refuse what is called like an image and is none: a folder, a link to nothing, an empty file, a pointer.

    Raises:
        Fault: without a file.
        OSError: the file cannot be opened.
    """
    if file.is_dir():
        raise Fault(
            "a folder",
            "an image is one file here",
            "convert the series in it to one NIfTI file, or hand the folder to configs/dicom.json",
        )
    if file.is_symlink() and not file.exists():
        raise Fault(
            f"a link to {file.readlink()}, which is not there",
            "the content of an image must be there",
            "fetch it, for example with 'git annex get' or 'datalad get', or correct the link",
        )
    if not file.is_file():
        raise Fault("no such file", "every file of the list must exist", "correct the path or add the file")
    with file.open("rb") as opened:
        head = opened.read(_HEAD)
    if not head:
        raise Fault("an empty file (0 bytes)", "a file must hold an image", "copy or download it again")
    for begin, kind, fix in _POINTERS:
        if head.startswith(begin):
            raise Fault(
                f"a {kind} pointer, not the image itself",
                "the content must be there",
                f"run '{fix}' in the repository it came from",
            )


def read_file(path: str | Path) -> Nifti | Picture:
    """Read a file whole, to its last byte.

    Raises:
        Fault: there is no such file, it is of another kind, cut off or broken, or does not say where its
            voxels lie.
    """
    file = Path(path)
    suffix = image_suffix(file).lower()
    try:
        require_content(file)
        if suffix in NIFTI_SUFFIXES:
            return read_nifti(file)
        if suffix in PICTURE_SUFFIXES:
            return read_picture(file)
    except Fault as fault:
        raise fault.of(path) from fault.__cause__
    except MemoryError as error:
        raise Fault(
            "an image that takes more memory than there is",
            "it is held whole while it is worked on",
            "end other programs, or crop it",
            path,
        ) from error
    except Exception as error:  # a decoder may raise anything
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise Fault(
            f"a truncated or corrupt {suffix} file ({reason[:120]})",
            "a file must be readable to its end",
            "copy, download or export it again",
            path,
        ) from error
    raise Fault(
        f"the unknown suffix '{file.suffix}'",
        f"images are {', '.join(IMAGE_SUFFIXES)}",
        "convert it, volumes to .nii.gz and pictures to .png, or add configs/dicom.json for DICOM",
        path,
    )


def grid_of(file: Nifti | Picture) -> Grid:
    """Where the voxels of a file lie that was read."""
    if isinstance(file, Picture):
        return Grid(file.values.shape[:2], None)
    return Grid(file.header.shape, file.header.affine)


def columns_first(file: Nifti | Picture) -> np.ndarray:
    """Values of what lies on the grid of a picture in the order in which pictures are read.

    Results for pictures are written rows first, as `scripts.data.writers.NiftiWriter` does, and their affine
    says so.

    Returns:
        (width, height) or (width, height, channel).
    """
    grid = grid_of(file)
    rows_first = len(grid.shape) == 2 and grid.affine is not None and not grid.affine[:2, :2].diagonal().any()
    return file.values.swapaxes(0, 1) if rows_first else file.values


def read_header(path: str | Path) -> tuple[Grid, int] | None:
    """The grid and the channels (alpha not counted) of a file, by the header alone.

    It costs no reading of voxels.

    Args:
        path: an image file.

    Returns:
        None if the header cannot be read.
    """
    suffix = image_suffix(path).lower()
    try:
        if suffix in PICTURE_SUFFIXES:
            size, channels = read_picture_header(path)
            return Grid(size, None), channels
        if suffix in NIFTI_SUFFIXES:
            header = read_nifti_header(path)
            return Grid(header.shape, header.affine), header.channels or 1
    except Exception:  # a decoder may raise anything
        return None
    return None


def read_dims(path: str | Path) -> tuple[int, int] | None:
    """Spatial dimensions (2 or 3) and channels by the header alone, see `read_header`."""
    header = read_header(path)
    return header and (len(header[0].shape), header[1])


def read_spacing(path: str | Path) -> list[float] | None:
    """Voxel edges in mm per RAS axis, by the header of a NIfTI file alone; None for any other file."""
    if image_suffix(path).lower() not in NIFTI_SUFFIXES:
        return None
    header = read_nifti_header(path)
    spacing = Grid(header.shape, header.affine).canonical()[1]
    return [round_size(size) for size in spacing or ()]


def round_size(size: float) -> float:
    """A length to `DIGITS` significant digits, however small it is."""
    return float(f"{size:.{DIGITS}g}")


class ImageReader(monai.data.ImageReader):
    """For MONAI's LoadImaged: what `read_file` reads, several files as channels, and DICOM series.

    MONAI's NibabelReader changes an affine that disagrees with pixdim, and its PILReader takes a picture for
    upright and whole.
    """

    def __init__(self) -> None:
        self.dicom = DicomReader()

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        """Whether every path is of a kind that is read here, by its suffix."""
        known = all(bool(image_suffix(str(name))) for name in ensure_tuple(filename))
        return known or self.dicom.verify_suffix(filename)

    def read(self, data: Sequence[PathLike] | PathLike, **kwargs: Any) -> list[str]:
        """The paths, which `get_data` reads: LoadImage takes an error here for a hint to try others."""
        return [str(name) for name in ensure_tuple(data)]

    def get_data(self, img: Any) -> tuple[np.ndarray, dict]:
        """Read the files of a case.

        Args:
            img: what `read` gave.

        Returns:
            Intensities, (*spatial) or (*spatial, channel) of one file, (file, *spatial) of several, and
            the meta data of the first: spatial shape, axis of channels, and of NIfTI the affine (RAS, mm).

        Raises:
            Fault: a file that cannot be read, or that has other voxels than the first.
            InputError: several DICOM series, or none where one is named.
        """
        if self.dicom.verify_suffix(img):
            return self.dicom.get_data(self.dicom.read(img))
        files = [read_file(path) for path in img]
        grid = grid_of(files[0])
        channels_last = files[0].values.ndim > len(grid.shape)
        values = []
        for path, file in zip(img, files, strict=True):
            try:
                values.append(turned(file.values, turn_onto(grid_of(file), grid, "first channel")))
            except Fault as fault:
                raise fault.of(path) from None
        meta: dict[Any, Any] = {
            MetaKeys.SPATIAL_SHAPE: np.array(grid.shape),
            MetaKeys.ORIGINAL_CHANNEL_DIM: -1 if channels_last else float("nan"),
        }
        if grid.affine is not None:
            meta[MetaKeys.AFFINE] = grid.affine.copy()
            meta[MetaKeys.ORIGINAL_AFFINE] = grid.affine.copy()
            meta[MetaKeys.SPACE] = SpaceKeys.RAS
        if isinstance(files[0], Nifti):
            meta[FORM] = files[0].header.form
        if len(values) == 1:
            return values[0], meta
        if channels_last:
            return np.concatenate(values, axis=-1), meta
        return np.stack(values), {**meta, MetaKeys.ORIGINAL_CHANNEL_DIM: 0}
