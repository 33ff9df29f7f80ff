"""DICOM series for MONAI's LoadImaged."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.config import PathLike
from monai.data import ImageReader
from monai.utils import MetaKeys, SpaceKeys, ensure_tuple

from scripts.dicom.series import PADDING_SHARE, SERIES_DIGEST, SeriesFinder, is_series
from scripts.errors import InputError

#: What `reader` says in a config.
DICOM_READER = "scripts.dicom.DicomReader"


class DicomReader(ImageReader):
    """Reads a series in patient geometry, see `scripts.dicom.series`.

    An image is a folder, a zip file or a multi-frame file that holds one series, or has the name of the
    series behind it, `FOLDER/series_0123456789ab`. Only affine, shape, a hash of the UIDs and the share of
    padding enter the meta data: nothing about the patient.
    """

    def __init__(self) -> None:
        self.finder = SeriesFinder()

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        """Whether every path is a folder, a zip or DICOM file by its suffix, or the name of a series."""
        paths = [Path(name) for name in ensure_tuple(filename)]
        return all(
            path.is_dir() or path.suffix.lower() in (".zip", ".dcm") or is_series(path) for path in paths
        )

    def read(self, data: Sequence[PathLike] | PathLike, **kwargs: Any) -> Path:
        """The path, which `get_data` reads: LoadImage takes an error here for a hint to try other readers.

        Raises:
            InputError: several paths.
        """
        paths = ensure_tuple(data)
        if len(paths) != 1:
            raise InputError(f"{len(paths)} images are given for one case: a DICOM series is one channel")
        return Path(paths[0])

    def get_data(self, img: Any) -> tuple[np.ndarray, dict]:
        """Read a series.

        Args:
            img: what `read` gave.

        Returns:
            Intensities after rescaling, (x, y, z), float32, x along the rows; and affine (RAS, mm), shape,
            `Series.digest` and the share of padding.

        Raises:
            InputError: there is no such series.
            Fault: its slices do not make a volume, or cannot be decoded.
        """
        series = self.finder.open(img)
        values, padding = series.load()
        return values, {
            MetaKeys.AFFINE: series.affine.copy(),
            MetaKeys.ORIGINAL_AFFINE: series.affine.copy(),
            MetaKeys.SPATIAL_SHAPE: np.array(series.shape),
            MetaKeys.SPACE: SpaceKeys.RAS,
            MetaKeys.ORIGINAL_CHANNEL_DIM: float("nan"),
            SERIES_DIGEST: series.digest,
            PADDING_SHARE: padding,
        }
