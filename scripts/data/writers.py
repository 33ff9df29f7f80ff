"""MONAI's image writers, made to leave whole files and the smallest integer type that holds the labels."""

from __future__ import annotations

from typing import Any

import numpy as np
from monai.config import PathLike
from monai.data import ImageWriter, NibabelWriter, PILWriter

from scripts.files import written_whole


class _WholeWriter(ImageWriter):
    """Writes beside and renames; integers become uint8 where they fit, else uint16, else int32."""

    def write(self, filename: PathLike, verbose: bool = False, **kwargs: Any) -> None:
        """Write the file whole."""
        if not np.issubdtype(self.data_obj.dtype, np.floating):
            self.output_dtype = np.result_type(np.min_scalar_type(self.data_obj.max()), np.uint8)
        with written_whole(str(filename)) as beside:
            super().write(str(beside), verbose=verbose, **kwargs)


class WholeNibabelWriter(_WholeWriter, NibabelWriter):
    """NIfTI."""


class WholePILWriter(_WholeWriter, PILWriter):
    """PNG."""


def writer_for(output_ext: str) -> type[ImageWriter]:
    """The writer of a file suffix: pictures by Pillow, all else by nibabel.

    Args:
        output_ext: for example ".nii.gz" or ".png".
    """
    return WholePILWriter if output_ext == ".png" else WholeNibabelWriter
