"""Files of results: named by the case, whole, and of the smallest integer type that holds the labels."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection, NdarrayOrTensor, PathLike
from monai.data import ImageWriter, PILWriter
from monai.transforms import SaveImaged
from monai.utils import ImageMetaKey, MetaKeys, convert_to_numpy

from scripts.data.datalist import id_of
from scripts.data.grids import GRID_TOLERANCE, Grid, distance
from scripts.data.names import output_path
from scripts.data.nifti import FORM, write_result
from scripts.data.reader import is_picture
from scripts.errors import Fault, InputError
from scripts.files import atomic_write
from scripts.labels import label_type
from scripts.uncertainty import unsure_of


class NiftiWriter(ImageWriter):
    """NIfTI whose header says of its place what that of the image says; integers take their `label_type`.

    What lies on the grid of a picture has the rows of the picture first, as NumPy and Pillow have it, and an
    affine that says so.

    Args:
        output_dtype: not used; MONAI hands it in.
        scale: not used; MONAI hands it in.
    """

    def __init__(self, output_dtype: Any = None, scale: int | None = None) -> None:
        super().__init__()
        self.values = np.empty(0)
        self.affine = np.eye(4)
        self.form: np.ndarray | None = None

    def set_data_array(self, data_array: NdarrayOrTensor, **kwargs: Any) -> None:
        """Take the data, (channels, *spatial), and settle the type to write."""
        array = np.asarray(convert_to_numpy(data_array))
        floating = np.issubdtype(array.dtype, np.floating)
        self.values = array.astype(np.float32 if floating else label_type(array))

    def set_metadata(self, meta_dict: Mapping | None, **options: Any) -> None:
        """Take the affine of the data, and the form of the image's header where they lie on its grid."""
        meta = meta_dict or {}
        self.affine, original = (
            np.asarray(convert_to_numpy(meta.get(key, np.eye(4))), dtype=float)
            for key in (MetaKeys.AFFINE, MetaKeys.ORIGINAL_AFFINE)
        )
        shape = self.values.shape[1:]
        limit = GRID_TOLERANCE * min(Grid(shape, original).spacing)
        same = tuple(meta.get(MetaKeys.SPATIAL_SHAPE, ())) == shape
        if FORM in meta and same and distance(self.affine, original, shape) < limit:
            self.form = np.asarray(convert_to_numpy(meta[FORM]), dtype=float)
        if len(shape) == 2 and is_picture(str(meta.get(ImageMetaKey.FILENAME_OR_OBJ, ""))):
            self.values = self.values.swapaxes(1, 2)
            self.affine = self.affine[:, [1, 0, 2, 3]]

    def write(self, filename: PathLike, verbose: bool = False, **kwargs: Any) -> None:
        """Write the file whole."""
        axes = self.values.ndim - 1
        values = self.values[0] if len(self.values) == 1 else np.moveaxis(self.values, 0, -1)
        with atomic_write(str(filename)) as temporary:
            write_result(temporary, values, axes, self.affine, self.form)


class PictureWriter(PILWriter):
    """PNG, which holds integers up to 65535.

    Raises:
        Fault: when data is handed in that a PNG cannot hold; without a file.
    """

    def set_data_array(  # type: ignore[override]
        self, data_array: NdarrayOrTensor, **kwargs: Any
    ) -> None:
        """Take the data, (channels, *spatial), if a PNG can hold it, and settle the type to write."""
        array = np.asarray(convert_to_numpy(data_array))
        if array.ndim > 3 and max(array.shape[3:]) > 1:
            raise Fault(
                f"a volume of {array.shape[1:]} voxels to save",
                "a .png holds one plane",
                "set output_ext to .nii.gz",
            )
        if (
            np.issubdtype(array.dtype, np.floating)
            or array.min() < 0
            or array.max() > np.iinfo(np.uint16).max
        ):
            raise Fault(
                f"{array.dtype} data from {array.min()} to {array.max()} to save",
                "a .png holds whole numbers from 0 to 65535",
                "set output_ext to .nii.gz",
            )
        self.output_dtype = label_type(array)  # before MONAI's writer turns the data to float32
        self.data_obj = array[0] if len(array) == 1 else np.moveaxis(array, 0, -1)  # an axis of 1 stays

    def write(self, filename: PathLike, verbose: bool = False, **kwargs: Any) -> None:
        """Write the file whole."""
        with atomic_write(str(filename)) as temporary:
            super().write(str(temporary), verbose=verbose, **kwargs)


def writer_for(output_ext: str) -> type[ImageWriter]:
    """The writer of a file suffix: pictures by Pillow, NIfTI by nibabel.

    Args:
        output_ext: ".png", ".nii" or ".nii.gz".

    Raises:
        InputError: any other suffix.
    """
    writers: dict[str, type[ImageWriter]] = {
        ".png": PictureWriter,
        ".nii": NiftiWriter,
        ".nii.gz": NiftiWriter,
    }
    if output_ext not in writers:
        raise InputError(f"output_ext is {output_ext!r}: give one of {', '.join(writers)}")
    return writers[output_ext]


class SaveCased(SaveImaged):
    """MONAI's SaveImaged, with files that are named by the id of their case and are whole or not there.

    Hosts that leave out SaveImaged leave out this one too. MONAI's tells of what goes wrong in a text alone;
    here it is raised.

    Args:
        keys: what to write, (channels, *spatial), with the meta data of its grid.
        output_dir: folder of the files.
        output_postfix: what the names of the files end in, such as "seg" or "prob".
        output_ext: suffix of the files, see `writer_for`.

    Raises:
        InputError: a suffix that there is no writer for.
    """

    def __init__(
        self, keys: KeysCollection, output_dir: str | Path, output_postfix: str, output_ext: str
    ) -> None:
        self.writer = writer_for(output_ext)
        super().__init__(keys, output_ext=output_ext, output_dtype=None, print_log=False, writer=self.writer)
        self.output_dir = output_dir
        self.output_postfix = output_postfix

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Write the files of a case.

        Args:
            data: the case, see `scripts.data.datalist.id_of`.

        Returns:
            The same.

        Raises:
            InputError: the disk is full.
            Fault: data that files of this suffix cannot hold.
        """
        saver = self.saver
        for key in self.key_iterator(data):
            writer = self.writer(**saver.init_kwargs)
            writer.set_data_array(self.values(data[key]), **saver.data_kwargs)
            writer.set_metadata(data[key].meta, **saver.meta_kwargs)
            path = output_path(self.output_dir, id_of(data), self.output_postfix, saver.output_ext)
            writer.write(path, **saver.write_kwargs)
        return dict(data)

    def values(self, given: NdarrayOrTensor) -> NdarrayOrTensor:
        """What is written of what the key holds, (channels, *spatial)."""
        return given


class SaveSpreadd(SaveCased):
    """Write how unsure probabilities are: their entropy over that of classes that are all alike.

    Of the mean of several samples, or networks, that is their predictive entropy. 0 is sure of one class, 1
    of none; in a .png 0 to 255.

    Args:
        keys: probabilities, (classes, *spatial), with the meta data of their grid; or such a map itself,
            (1, *spatial).
        output_dir: folder of the files.
        output_ext: suffix of the files, see `writer_for`.
        output_postfix: what the names of the files end in.
        allow_missing_keys: pass over what a case does not have.
    """

    def __init__(
        self,
        keys: KeysCollection,
        output_dir: str | Path,
        output_ext: str,
        output_postfix: str = "spread",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, output_dir, output_postfix, output_ext)
        self.allow_missing_keys = allow_missing_keys

    def values(self, given: NdarrayOrTensor) -> NdarrayOrTensor:
        """How unsure each voxel is, (1, *spatial), float32, or uint8 for a picture."""
        unsure = unsure_of(torch.as_tensor(given))
        return unsure.mul(255).round().to(torch.uint8) if self.writer is PictureWriter else unsure
