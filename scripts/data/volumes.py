"""Volumes that stay on disk and are read box by box.

A volume is an uncompressed NIfTI file (`.nii`), or a folder `.zarr` that holds one Zarr array with the axes
(x, y, z) or (x, y, z, channel) and, among its attributes, `affine`, 4 x 4, from voxels to mm, RAS+, or
`spacing`, the edges of a voxel in mm.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from monai.transforms import Transform
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from scripts.affines import require_sound
from scripts.data.cases import InferenceCases
from scripts.data.checks import Problem, check_form, describe, log_problems
from scripts.data.datalist import file_stem, group_channels, list_images, without_results
from scripts.data.names import require_short
from scripts.data.nifti import read_nifti_header
from scripts.data.reader import image_suffix, require_content
from scripts.data.room import Grids
from scripts.errors import Fault, InputError

Box = tuple[slice, ...]


@dataclass(frozen=True)
class Volume:
    """A volume on disk.

    Attributes:
        path: the file or folder.
        shape: voxels, (x, y, z).
        affine: (4, 4), from voxels to mm.
        read: for each channel what reads a box of it, in the type of the file.
        scaling: slope and intercept that turn these values into intensities.
        form: what a result takes of the header of a NIfTI file, see `scripts.data.nifti`.
    """

    path: Path
    shape: tuple[int, ...]
    affine: np.ndarray
    read: tuple[Callable[[Box], np.ndarray], ...]
    scaling: tuple[float, float] = (1.0, 0.0)
    form: np.ndarray | None = None


def open_volume(path: str | Path, in_channels: int) -> Volume:
    """Open a volume without reading its voxels.

    Args:
        path: a `.nii` file or a `.zarr` folder, see the module.
        in_channels: channels that the network takes.

    Raises:
        Fault: it cannot be read piece by piece, or has another number of axes or channels.
        InputError: it is a Zarr array, and zarr is not installed.
    """
    path = Path(path)
    suffix = ".zarr" if path.suffix.lower() == ".zarr" else image_suffix(path).lower()
    if suffix == ".nii.gz":
        raise Fault(
            "a compressed file",
            "only an uncompressed one can be read piece by piece",
            f"uncompress it with 'gunzip --keep {path.name}' and put {path.stem} in its place",
            path,
        )
    if suffix not in (".nii", ".zarr"):
        raise Fault(
            "another kind of file", "a volume is a .nii file or a .zarr folder", "convert or remove it", path
        )
    try:
        if suffix == ".nii":
            require_content(path)
        volume, dtype, shape = (_open_zarr if suffix == ".zarr" else _open_nifti)(path)
    except Fault as fault:
        raise fault.of(path) from None
    except (EOFError, OSError, ValueError, KeyError, HeaderDataError, WrapStructError) as error:
        if isinstance(error, InputError):
            raise
        reason = " ".join(str(error).split())[:120]
        raise Fault(f"a broken volume ({reason})", "it must be readable", "write it again", path) from error
    if dtype.kind not in "biuf":
        raise Fault(
            f"voxels of type {dtype}",
            "voxels must be integers or real numbers",
            "save it with one number per voxel",
            path,
        )
    if len(volume.read) != in_channels or len(shape) < 3 or min(shape) < 1:
        raise Fault(
            f"shape {shape}",
            f"a volume with {in_channels} channel(s) is expected, several as the last of four axes",
            "save it so, or set --in_channels right",
            path,
        )
    try:
        require_sound(volume.affine)
    except Fault as fault:
        raise fault.of(path) from None
    return volume


def _open_nifti(path: Path) -> tuple[Volume, np.dtype, tuple[int, ...]]:
    header = read_nifti_header(path)
    shape, dtype, offset = header.stored, header.dtype, header.offset
    width, height, depth = (*header.shape, 1)[:3]
    if path.stat().st_size < offset + math.prod(shape) * dtype.itemsize:
        raise Fault("a truncated file", "all its voxels must be there", "copy or download it again", path)

    def reader(channel: int) -> Callable[[Box], np.ndarray]:
        # Rows are read, not mapped: the pages of a map would count as the process's own.
        def read(box: Box) -> np.ndarray:
            x, y, z = box
            rows = y.stop - y.start
            values = np.empty((x.stop - x.start, rows, z.stop - z.start), dtype, order="F")
            with path.open("rb") as file:
                for index, plane in enumerate(range(z.start, z.stop)):
                    before = width * (y.start + height * (plane + depth * channel))
                    file.seek(offset + before * dtype.itemsize)
                    read_rows = np.fromfile(file, dtype, width * rows).reshape((width, rows), order="F")
                    values[..., index] = read_rows[x]
            return values

        return read

    read = tuple(reader(channel) for channel in range(header.channels or 1))
    return (
        Volume(path, (width, height, depth), header.affine, read, header.scaling, header.form),
        dtype,
        shape,
    )


def _open_zarr(path: Path) -> tuple[Volume, np.dtype, tuple[int, ...]]:
    if not find_spec("zarr"):
        raise InputError(
            f"{path} is a Zarr array, and zarr is not installed: run pip install -r requirements-runtimes.txt"
        )
    import zarr

    array = zarr.open_array(path, mode="r")
    shape = tuple(array.shape)
    if "affine" in array.attrs:
        affine = np.array(array.attrs["affine"], dtype=float)
    elif "spacing" in array.attrs:
        affine = np.diag([*np.array(array.attrs["spacing"], dtype=float), 1.0])
    else:
        raise Fault(
            "neither 'affine' nor 'spacing' among the attributes",
            "one of them must say how large a voxel is in mm",
            "add it, for example array.attrs['spacing'] = [1.0, 1.0, 1.0]",
            path,
        )

    def reader(channel: tuple[int, ...]) -> Callable[[Box], np.ndarray]:
        return lambda box: np.asarray(array[(*box, *channel)])  # type: ignore[index]

    read = tuple(map(reader, [()] if len(shape) == 3 else [(channel,) for channel in range(shape[-1])]))
    return Volume(path, shape[:3], affine, read), np.dtype(array.dtype), shape


def read_volumes(
    dataset_dir: str | Path, *, in_channels: int, geometry: Sequence[Transform] = ()
) -> InferenceCases:
    """Find the volumes of a folder; bad ones are logged and left out. No voxel is read.

    Args:
        dataset_dir: folder of `.nii` files and `.zarr` folders.
        in_channels: channels that the network takes.
        geometry: Orientationd and Spacingd, which bring a volume to the grid that the network sees.

    Returns:
        The sound volumes and the problems of the others.

    Raises:
        InputError: the folder is missing, or holds no volume or none that is sound, or two of one name.
    """
    folder = Path(dataset_dir).expanduser().absolute()
    if not folder.is_dir():
        raise InputError(f"dataset_dir {folder} is no folder: hand the folder of the volumes")
    paths = sorted({*list_images(folder), *folder.glob("*.zarr")})
    named = without_results({path: file_stem(path) for path in paths})
    if not named:
        raise InputError(f"dataset_dir {folder} holds no volumes: put .nii files or .zarr folders in")
    result = InferenceCases([])
    for case in group_channels(named, 1):
        try:
            require_short(case["case"])
            volume = open_volume(case["image"], in_channels)
            Grids.of(in_channels, volume.shape, volume.affine, geometry).require_sense()
            result.cases.append(case)
            if volume.form is not None:
                result.problems += check_form(case["case"], case["image"])
        except Fault as fault:
            result.problems.append(Problem(case["case"], case["image"], *fault.args))
    if not result.cases:
        raise InputError(
            describe(result.problems, f"None of the {len(named)} volumes in {folder} is usable:")
        )
    log_problems(result.problems)
    return result
