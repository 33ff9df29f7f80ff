"""Pictures: PNG, TIFF, BMP and JPEG, read with Pillow."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

PICTURE_SUFFIXES = (".png", ".tif", ".tiff", ".bmp", ".jpg", ".jpeg")


@dataclass(frozen=True)
class Picture:
    """A picture that was read.

    Attributes:
        values: (width, height) or (width, height, channel); palette indices where ``mode`` is "P".
        mode: Pillow's name of what a pixel is.
        pages: images in the file, of which ``values`` is the first.
    """

    values: np.ndarray
    mode: str
    pages: int


def read_picture(path: str | Path) -> Picture:
    """Read a picture to its end.

    Raises:
        OSError, ValueError, SyntaxError, Image.DecompressionBombError: the file is cut off or broken.
    """
    with Image.open(path) as picture:
        picture.verify()  # checksums and end of a PNG, which load() does not ask for
    with Image.open(path) as picture:
        picture.load()
        pages = getattr(picture, "n_frames", 1)
        return Picture(np.asarray(picture).swapaxes(0, 1), picture.mode, pages)


def read_picture_header(path: str | Path) -> tuple[tuple[int, int], int]:
    """(width, height) and channels without alpha, by the header alone; raises what `read_picture` does."""
    with Image.open(path) as picture:
        return picture.size, sum(band != "A" for band in picture.getbands())
