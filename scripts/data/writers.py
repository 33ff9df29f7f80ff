"""MONAI's image writers, made to leave whole files and the smallest integer type that holds the labels."""

from __future__ import annotations

from typing import Any

import numpy as np
from monai.config import NdarrayOrTensor, PathLike
from monai.data import ImageWriter, NibabelWriter, PILWriter
from monai.utils import convert_to_numpy

from scripts.errors import InputError
from scripts.files import atomic_write
from scripts.labels import label_type


class _WholeWriter(ImageWriter):
    """Writes beside and renames; integers take their `label_type`, floats keep theirs."""

    def set_data_array(self, data_array: NdarrayOrTensor, **kwargs: Any) -> None:
        """Take the data, (channels, *spatial), and settle the type to write."""
        array = convert_to_numpy(data_array)
        if not np.issubdtype(array.dtype, np.floating):
            self.output_dtype = label_type(array)  # before MONAI's writers turn the data to float32
        super().set_data_array(data_array, **kwargs)

    def write(self, filename: PathLike, verbose: bool = False, **kwargs: Any) -> None:
        """Write the file whole."""
        with atomic_write(str(filename)) as temporary:
            super().write(str(temporary), verbose=verbose, **kwargs)


class WholeNibabelWriter(_WholeWriter, NibabelWriter):  # type: ignore[misc]
    """NIfTI."""


class WholePILWriter(_WholeWriter, PILWriter):  # type: ignore[misc]
    """PNG, which holds integers up to 65535.

    Raises:
        InputError: when data is handed in that a PNG cannot hold.
    """

    def set_data_array(  # type: ignore[override]
        self, data_array: NdarrayOrTensor, **kwargs: Any
    ) -> None:
        """Take the data, (channels, *spatial), if a PNG can hold it."""
        array = convert_to_numpy(data_array)
        if (
            np.issubdtype(array.dtype, np.floating)
            or array.min() < 0
            or array.max() > np.iinfo(np.uint16).max
        ):
            raise InputError(
                f"{array.dtype} data from {array.min()} to {array.max()}: a .png holds whole numbers from 0 "
                "to 65535; set output_ext to .nii.gz"
            )
        super().set_data_array(data_array, **kwargs)


def writer_for(output_ext: str) -> type[ImageWriter]:
    """The writer of a file suffix: pictures by Pillow, volumes by nibabel.

    Args:
        output_ext: ".png", ".nii" or ".nii.gz".

    Raises:
        InputError: any other suffix.
    """
    writers: dict[str, type[ImageWriter]] = {
        ".png": WholePILWriter,
        ".nii": WholeNibabelWriter,
        ".nii.gz": WholeNibabelWriter,
    }
    if output_ext not in writers:
        raise InputError(f"output_ext is {output_ext!r}: give one of {', '.join(writers)}")
    return writers[output_ext]
