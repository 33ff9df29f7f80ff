"""NIfTI files: voxels, where they lie, and what of a header belongs to a result on the same grid.

Sources:
    R. W. Cox et al., "A (sort of) new image data format standard: NIfTI-1", 2004, and its header nifti1.h.

A header may say twice where its voxels lie. Here, as in nibabel and FSL, the sform counts where its code is
above 0, else the qform where its code is, else the edges of a voxel alone (method 1 of nifti1.h, with x
running to the left and 0 in the middle, as nibabel has it). Lengths count as mm whatever `xyzt_units` says,
as in nibabel, FSL and SPM. What a header says otherwise is told.

Departures: axes of length 1 from the third on are left out, so that (x, y, 1) is a plane, (x, y, z, 1) a
volume and (x, y, z, 1, channels) a volume with channels, as ITK writes them.
"""

from __future__ import annotations

import gzip
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError
from nibabel.volumeutils import apply_read_scaling

from scripts.affines import require_sound
from scripts.data.grids import GRID_TOLERANCE, distance
from scripts.errors import Fault
from scripts.process import require_memory

NIFTI_SUFFIXES = (".nii.gz", ".nii")

#: Lengths that are not in mm, by the bits of xyzt_units that name the unit of space.
OTHER_UNITS = {1: "metre", 3: "micrometre"}
SPATIAL_UNITS = 7

#: What of a header says where the voxels lie, in the order of `NiftiHeader.form`: names and numbers of each.
FIELDS = {
    **dict.fromkeys(("qform_code", "sform_code", "xyzt_units"), 1),
    **dict.fromkeys(("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"), 1),
    **dict.fromkeys(("srow_x", "srow_y", "srow_z", "pixdim"), 4),
}

#: Name of `NiftiHeader.form` in the meta data of an image.
FORM = "nifti_form"

#: How far pixdim may be from the edges of a voxel, as a share.
SIZE_TOLERANCE = 0.01

_GZIP = b"\x1f\x8b"
_READ_AT_ONCE = 1 << 20
_BEST_COMPRESSION = 1100  # bytes that one byte of a gzip file can stand for, and some
#: What nibabel mends in a header it would log without the name of the file.
_SILENT = logging.Logger("nibabel", level=logging.CRITICAL + 1)


@dataclass(frozen=True)
class NiftiHeader:
    """The header of a file that can be read.

    Attributes:
        raw: nibabel's header, with what nibabel mends in it.
        stored: voxels per axis of the file.
        shape: voxels per spatial axis, (x, y[, z]).
        channels: length of the axis after these, None where there is none.
        affine: (4, 4), from voxels to mm, RAS+.
    """

    raw: Any
    stored: tuple[int, ...]
    shape: tuple[int, ...]
    channels: int | None
    affine: np.ndarray

    @property
    def dtype(self) -> np.dtype:
        """The type of a voxel in the file."""
        return self.raw.get_data_dtype()

    @property
    def offset(self) -> int:
        """Bytes before the first voxel."""
        return int(self.raw.get_data_offset())

    @property
    def scaling(self) -> tuple[float, float]:
        """Slope and intercept that turn what is stored into intensities."""
        slope, intercept = self.raw.get_slope_inter()
        return 1.0 if slope is None else float(slope), 0.0 if intercept is None else float(intercept)

    @property
    def form(self) -> np.ndarray:
        """What a result on the same grid takes: axes in space, version of NIfTI, and `FIELDS`; float64."""
        version = 2 if isinstance(self.raw, nib.Nifti2Header) else 1
        fields = np.concatenate([np.ravel(self.raw[name])[:count] for name, count in FIELDS.items()])
        return np.array([min(len(self.stored), 3), version, *fields.astype(float)])

    def notes(self) -> list[Fault]:
        """What the header says of its voxels otherwise than `affine`, which is used all the same."""
        edges = nib.affines.voxel_sizes(self.affine)[: len(self.shape)]
        pixdim = self.raw["pixdim"][1 : 1 + len(edges)]
        two_forms = self.raw["sform_code"] > 0 and self.raw["qform_code"] > 0
        apart = distance(self.affine, _qform(self.raw), self.shape) if two_forms else 0.0
        rule = "the sform counts here, as in nibabel and FSL, other programs may go by the other"
        fix = "find out which is right and write it over the other, for example with nibabel's set_qform"
        notes = []
        if np.isnan(apart):
            notes.append(Fault("a qform that is no rotation beside its sform", rule, fix))
        elif apart > GRID_TOLERANCE * edges.min():
            notes.append(Fault(f"a qform that lies up to {apart:.3g} mm away from its sform", rule, fix))
        elif not np.allclose(pixdim, edges, rtol=SIZE_TOLERANCE, atol=0):
            written, used = (" x ".join(f"{size:.4g}" for size in sizes) for sizes in (pixdim, edges))
            found = f"a voxel of {written} mm (pixdim) and an sform with one of {used} mm"
            notes.append(Fault(found, rule, fix))
        unit = OTHER_UNITS.get(int(self.raw["xyzt_units"]) & SPATIAL_UNITS)
        if unit:
            found = f"lengths in {unit} (xyzt_units)"
            rule = "they count as mm here, as in nibabel, FSL and SPM; `spacing` and distances are in it"
            notes.append(Fault(found, rule, "write the header in mm where that matters"))
        return notes


@dataclass(frozen=True)
class Nifti:
    """A file that was read.

    Attributes:
        values: intensities, (*spatial) or (*spatial, channel).
        header: its header.
    """

    values: np.ndarray
    header: NiftiHeader


def read_nifti_header(path: str | Path) -> NiftiHeader:
    """Read a header, and no voxel.

    Raises:
        Fault: it does not say what and where the voxels are.
        OSError, ValueError, EOFError: the file cannot be read.
    """
    with _opened(path) as file:
        return _read_header(file)


def read_nifti(path: str | Path) -> Nifti:
    """Read a file to its end, that of a compressed one with its checksum.

    Args:
        path: the file, compressed or not whatever its suffix.

    Raises:
        Fault: it does not say what and where the voxels are, or they take more memory than there is.
        OSError, ValueError, EOFError: the file is cut off or broken.
    """
    with _opened(path) as file:
        header = _read_header(file)
        missing = header.offset - file.tell()
        while missing > 0 and (skipped := file.read(min(missing, _READ_AT_ONCE))):
            missing -= len(skipped)
        size = math.prod(header.stored) * header.dtype.itemsize
        packed = isinstance(file, gzip.GzipFile)
        if header.offset + size > Path(path).stat().st_size * (_BEST_COMPRESSION if packed else 1):
            raise EOFError(f"{size} bytes of voxels are announced")
        slope, intercept = header.scaling
        scaled = (slope, intercept) != (1, 0)  # to float64
        more = 8 * math.prod(header.stored) if scaled else 0
        require_memory(size + more, f"voxels of shape {header.stored}")
        buffer = np.empty(size, np.uint8)
        if (got := _fill(file, buffer.data)) < size:
            raise EOFError(f"{got} of {size} bytes of voxels are there")
        while packed and file.read(_READ_AT_ONCE):
            pass  # to the checksum
    shape = header.shape if header.channels is None else (*header.shape, header.channels)
    values = buffer.view(header.dtype).reshape(shape, order="F")
    return Nifti(apply_read_scaling(values, np.float64(slope), np.float64(intercept)), header)


def _opened(path: str | Path) -> BinaryIO:
    """A file as bytes, unpacked where it is packed."""
    with open(path, "rb") as file:
        packed = file.read(len(_GZIP)) == _GZIP or str(path).lower().endswith(".gz")
    return cast(BinaryIO, gzip.open(path) if packed else open(path, "rb"))


def _fill(file: BinaryIO, view: memoryview) -> int:
    """Read into memory as far as the file goes; gives the number of bytes."""
    done = 0
    while done < len(view) and (got := file.readinto(view[done : done + (_READ_AT_ONCE << 4)])):  # type: ignore[attr-defined]
        done += got
    return done


def _read_header(file: BinaryIO) -> NiftiHeader:
    block = file.read(nib.Nifti2Header.sizeof_hdr)
    maker: Any = nib.Nifti2Header if nib.Nifti2Header.may_contain_header(block) else nib.Nifti1Header
    if len(block) < maker.sizeof_hdr:
        raise EOFError(f"{len(block)} bytes of a header")
    raw = maker(block[: maker.sizeof_hdr], check=False)
    file.seek(maker.sizeof_hdr)
    if raw["magic"].item() == maker.pair_magic:
        raise Fault(
            "a header whose voxels are in another file (.img)",
            "a NIfTI file holds both",
            "convert the pair to one .nii.gz file, for example with nibabel.load and nibabel.save",
        )
    begin, first = float(raw["vox_offset"]), maker.single_vox_offset
    if not first <= begin < 2**62:
        raise Fault(
            f"voxels that begin at byte {begin:.6g} (vox_offset)",
            f"they begin after the header, at byte {first} or later, and readers differ where it says less",
            "save it again with the program that wrote it, or correct the header",
        )
    pixdim = raw["pixdim"][1:4].astype(float)
    raw.check_fix(logger=_SILENT)
    if raw.get_data_dtype().kind not in "biuf":
        raise Fault(
            f"voxels of type {raw.get_data_dtype()}",
            "voxels must be integers or real numbers",
            "save it with one number per voxel",
        )
    stored = tuple(int(n) for n in raw.get_data_shape())
    if not stored or min(stored) < 1:
        raise Fault(f"shape {stored}", "each axis has voxels", "copy, download or export it again")
    axes = [*stored[:2], *(n for n in stored[2:3] if n > 1)]
    further = [n for n in stored[3:] if n > 1]
    if len(further) > 1:
        raise Fault(
            f"{len(stored)} dimensions {stored}",
            "a file holds space and, as the axis after it, channels",
            "save one of its volumes to a file of its own",
        )
    channels = further[0] if further else None
    return NiftiHeader(raw, stored, tuple(axes), channels, _affine(raw, pixdim, len(axes)))


def _affine(raw: Any, pixdim: np.ndarray, axes: int) -> np.ndarray:
    """From voxels to mm, as the module says.

    Args:
        raw: the header, mended.
        pixdim: the edges of a voxel as the file has them, (3,).
        axes: how many of them count.
    """
    wrong = ~(np.isfinite(pixdim[:axes]) & (pixdim[:axes] != 0))
    if raw["sform_code"] == 0 and wrong.any():
        raise Fault(
            f"a voxel of {' x '.join(f'{size:g}' for size in pixdim[:axes])} (pixdim)",
            "the edges of a voxel are numbers above 0",
            "write the true size into the header, for example with nibabel's header.set_zooms",
        )
    affine = np.array(raw.get_best_affine(), dtype=float)
    require_sound(affine, axes)
    edges = nib.affines.voxel_sizes(affine)[:axes]
    raw["pixdim"][1 : 1 + axes] = np.where(wrong, edges, raw["pixdim"][1 : 1 + axes])
    return affine


def _qform(raw: Any) -> np.ndarray:
    """The qform as an affine, (4, 4); NaN where its numbers are no rotation."""
    try:
        return raw.get_qform()
    except (ValueError, HeaderDataError):
        return np.full((4, 4), np.nan)


def header_of_result(
    shape: Sequence[int], dtype: np.dtype, affine: np.ndarray, form: np.ndarray | None = None
) -> Any:
    """The header of a single file with voxels on the grid of an image.

    Args:
        shape: voxels per axis of the file.
        dtype: of the voxels.
        affine: (4, 4), from voxels to mm, RAS+.
        form: `NiftiHeader.form` of the image, which is written as it was read; None for an image of another
            format: then both forms say what ``affine`` does, but for shear, which a qform cannot.
    """
    second = max(shape) > np.iinfo(np.int16).max or (form is not None and form[1] == 2)
    header = (nib.Nifti2Header if second else nib.Nifti1Header)()
    header.set_data_dtype(dtype)
    header.set_data_shape(shape)
    if form is None:
        header.set_xyzt_units("mm")
        header.set_sform(affine, code="scanner")
        header.set_qform(affine, code="scanner")
        if distance(header.get_qform(), affine, tuple(shape[:3])) > GRID_TOLERANCE * min(header.get_zooms()):
            header.set_qform(None, code="unknown")
        return header
    values = np.split(form[2:], np.cumsum(list(FIELDS.values()))[:-1])
    for (name, count), value in zip(FIELDS.items(), values, strict=True):
        if count == 1:
            header[name] = value[0]
        else:
            header[name][:count] = value
    header["xyzt_units"] = int(header["xyzt_units"]) & SPATIAL_UNITS  # after space come channels, not time
    return header


def write_result(
    path: str | Path, values: np.ndarray, axes: int, affine: np.ndarray, form: np.ndarray | None = None
) -> None:
    """Write a label map or probabilities, gzipped where the name ends in .gz.

    Args:
        path: the file.
        values: (*spatial) or (*spatial, channel).
        axes: how many are spatial.
        affine: see `header_of_result`.
        form: see `header_of_result`.
    """
    channels = values.shape[axes:]
    stored = 3 if channels else axes if form is None else int(form[0])
    shape = (*values.shape[:axes], *[1] * (stored - axes), *channels)
    header = header_of_result(shape, values.dtype, affine, form)
    maker: Any = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
    nib.save(maker(values.reshape(shape), None, header), str(path))  # type: ignore[attr-defined]
