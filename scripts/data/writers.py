"""Files of results: named by the case, whole, and of the smallest integer type that holds the labels."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from monai.config import KeysCollection, NdarrayOrTensor, PathLike
from monai.data import ImageWriter, NibabelWriter, PILWriter
from monai.transforms import SaveImaged
from monai.utils import convert_to_numpy

from scripts.data.datalist import id_of
from scripts.data.names import output_path
from scripts.errors import Fault, InputError
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
        Fault: when data is handed in that a PNG cannot hold; without a file.
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
            raise Fault(
                f"{array.dtype} data from {array.min()} to {array.max()} to save",
                "a .png holds whole numbers from 0 to 65535",
                "set output_ext to .nii.gz",
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


class SaveCased(SaveImaged):
    """MONAI's SaveImaged, with files that are named by the id of their case and are whole or not there.

    Hosts that leave out SaveImaged leave out this one too. MONAI's tells of what goes wrong in a text alone;
    here it is raised.

    Args:
        keys: what to write, (channels, *spatial), with the meta data of its grid.
        output_dir: folder of the files.
        output_postfix: "seg" or "prob".
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
            writer.set_data_array(data[key], **saver.data_kwargs)
            writer.set_metadata(data[key].meta, **saver.meta_kwargs)
            path = output_path(self.output_dir, id_of(data), self.output_postfix, saver.output_ext)
            writer.write(path, **saver.write_kwargs)
        return dict(data)
