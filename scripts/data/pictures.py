"""Pictures as the file stores them: TIFF with tifffile, PNG, BMP and JPEG with Pillow.

What is read are the stored values, as ImageJ and tifffile show them: nothing is turned, inverted, scaled or
cut to 8 bits. What cannot be read so is refused by its name. Pillow on its own turns a picture by its
Orientation tag, inverts a TIFF that is WhiteIsZero, drops a byte of colour of 16 bits, stops at a number of
pixels, and takes sound files of the kinds that it does not know for broken ones.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.Image import DecompressionBombError
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile

from scripts.errors import Fault
from scripts.process import require_memory

PICTURE_SUFFIXES = (".png", ".tif", ".tiff", ".bmp", ".jpg", ".jpeg")

MOST_EXPANSION = 4096
"""Bytes of pixels that a byte of a file can hold, and more: Deflate 1032, JPEG 512, LZW 2730."""

SMALL = 1 << 28
"""Bytes of pixels up to which no picture is too large for its file, nor for the memory."""

_PLUGINS: dict[bytes, type[ImageFile]] = {
    b"\x89PNG\r\n\x1a\n": PngImageFile,
    b"BM": BmpImageFile,
    b"\xff\xd8": JpegImageFile,
}
_TIFF_HEADS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_OTHER_KINDS = (
    (0, b"GIF8", "a GIF"),
    (0, b"RIFF", "a WebP"),
    (4, b"ftyp", "a HEIC or AVIF"),
    (4, b"jP", "a JPEG 2000"),
    (0, b"%PDF", "a PDF"),
    (0, b"\x89HDF", "an HDF5"),
    (128, b"DICM", "a DICOM"),
)
_ORIENTATION = 274
_TURNED = {
    2: "mirrored left to right",
    3: "half a turn",
    4: "mirrored top to bottom",
    5: "mirrored, a quarter turn",
    6: "a quarter turn",
    7: "mirrored, a quarter turn",
    8: "a quarter turn",
}
_ALPHA = (1, 2)  # ExtraSamples: associated, unassociated
_WHITE_IS_ZERO, _PALETTE, _COLOUR = 0, 3, (2, 6)  # PhotometricInterpretation
_PHOTOMETRIC = {
    5: "CMYK (inks)",
    6: "YCbCr (luminance and chrominance)",
    8: "CIE L*a*b*",
    9: "ICC L*a*b*",
    10: "ITU L*a*b*",
    32803: "a colour filter array (raw)",
    32844: "LogL",
    32845: "LogLuv",
    34892: "linear raw",
}
_JPEG_COMPRESSIONS = (6, 7, 33007, 34892)
_BYTES = ("L", "B") if sys.byteorder == "little" else ("B", "L")  # orders that give the high, the low byte
_PILLOW_COMPRESSIONS = (1, 2, 3, 4, 5, 7, 8, 32773, 32946, 50000)  # LZW, JPEG, fax and what tifffile has
_PLANES = 2  # PlanarConfiguration
_WHOLE_BITS = (1, 8, 16, 32, 64)
_REDUCED, _MASK = 1, 4  # NewSubfileType

logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # it cites tags; what matters is raised here


@dataclass(frozen=True)
class Picture:
    """A picture that was read.

    Attributes:
        values: (width, height) or (width, height, channel), as stored, indices where ``mode`` is "P".
        mode: "L" grey, "LA" grey with alpha, "RGB", "RGBA", "P" palette, of any number of bits; empty for
            other numbers of channels.
        jpeg: compressed as JPEG, which changes values.
        inverted: viewers show 0 as white (WhiteIsZero).
    """

    values: np.ndarray
    mode: str
    jpeg: bool = False
    inverted: bool = False

    @property
    def channels(self) -> int:
        """How many, alpha counted."""
        return self.values.shape[2] if self.values.ndim == 3 else 1

    @property
    def kind(self) -> str:
        """What it is, to follow the word "found"."""
        kinds = {
            "L": f"a grey picture ({self.values.dtype})",
            "LA": "a grey picture with alpha (LA)",
            "RGB": "a colour picture (RGB)",
            "RGBA": "a colour picture with alpha (RGBA)",
            "P": "a palette picture (P)",
        }
        same = self.mode in ("RGB", "RGBA") and all(
            np.array_equal(self.values[..., 0], self.values[..., other]) for other in (1, 2)
        )
        return kinds.get(self.mode, f"a picture with {self.channels} channels") + " with R = G = B" * same


def read_picture(path: str | Path) -> Picture:
    """Read a picture to its end.

    Args:
        path: a PNG, TIFF, BMP or JPEG, by its content.

    Raises:
        Fault: it is of a kind that is not read here.
        OSError, ValueError, SyntaxError: the file is cut off or broken.
        MemoryError: it is larger than the memory.
    """
    if _head(path).startswith(_TIFF_HEADS):
        with _open_tiff(path) as (tif, series):
            return _read_tiff(tif, series)
    with _open_flat(path) as picture:
        picture.verify()  # checksums and end of a PNG, which load() does not ask for
    with _open_flat(path) as picture:
        return _read_flat(picture, path)


def read_picture_header(path: str | Path) -> tuple[tuple[int, int], int]:
    """(width, height) and channels without alpha, by the header alone; raises what `read_picture` does."""
    if _head(path).startswith(_TIFF_HEADS):
        with _open_tiff(path) as (_, series):
            mode, channels = _layout(series)
            size = (_count(series, "X"), _count(series, "Y"))
            return size, channels - (mode in ("LA", "RGBA"))
    with _open_flat(path) as picture:
        return picture.size, sum(band != "A" for band in picture.getbands())


def _head(path: str | Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(256)


def _require_upright(orientation: Any, tag: str) -> None:
    """Refuse what viewers show turned: nobody knows whether a label was drawn on what they showed."""
    if orientation in _TURNED:
        raise Fault(
            f"{tag} {orientation} (shown turned: {_TURNED[orientation]})",
            "pixels are read as they are stored, and viewers turn these",
            "store the pixels upright, for example with Pillow's ImageOps.exif_transpose, or take the tag "
            "out if labels were drawn on the pixels as they are stored",
        )


def _several(found: str) -> Fault:
    return Fault(
        found,
        "a picture has one page",
        "save each page to a file of its own, or for work in 3D the stack as one .nii.gz file",
    )


def _other_colours(name: str) -> Fault:
    return Fault(
        f"the colours {name}", "pictures are grey or RGB", "convert it to RGB, for example in ImageJ or GIMP"
    )


def _require_room(width: int, height: int, bytes_each: int, file: int) -> None:
    """Refuse a header that asks for more pixels than the file can hold, or than there is memory for.

    Args:
        width: of the picture.
        height: of the picture.
        bytes_each: bytes of a pixel.
        file: bytes of the file.
    """
    pixels = width * height * bytes_each
    if pixels > max(SMALL, file * MOST_EXPANSION):
        raise ValueError(f"{pixels} bytes of pixels in {file} bytes of file")
    if pixels > SMALL:
        require_memory(3 * pixels, f"{width} x {height} pixels")  # decoded, as an array, in another type


# PNG, BMP, JPEG


@contextmanager
def _open_flat(path: str | Path) -> Iterator[ImageFile]:
    """The header of a PNG, BMP or JPEG.

    The plugins are asked directly: Pillow's `Image.open` has a limit of 178,956,970 pixels.
    """
    head = _head(path)
    plugin = next((plugin for magic, plugin in _PLUGINS.items() if head.startswith(magic)), None)
    if plugin is None:
        other = next((name for at, magic, name in _OTHER_KINDS if head[at:].startswith(magic)), None)
        raise Fault(
            f"{other} file under another name" if other else "content that does not begin as a picture does",
            "pictures are PNG, TIFF, BMP or JPEG by their content",
            "convert it to PNG or TIFF, or get it again if it was one",
        )
    try:
        with plugin(path) as picture:
            _require_room(*picture.size, len(picture.getbands()), Path(path).stat().st_size)
            yield picture
    except (SyntaxError, ValueError) as error:
        if "cannot handle" in str(error):
            raise Fault(
                f"a JPEG that Pillow does not read ({error})",
                "a JPEG has 8 bits",
                "convert it to PNG or TIFF",
            ) from error
        if "MAX_TEXT" in str(error):
            raise Fault(
                "more than a million letters of text beside the picture",
                "text and colour profile of a PNG are small",
                "save the picture again without them",
            ) from error
        raise


def _read_flat(picture: ImageFile, path: str | Path) -> Picture:
    """The pixels of an opened PNG, BMP or JPEG."""
    pages = getattr(picture, "n_frames", 1)
    if pages > 1:
        raise _several(f"{pages} pages")
    if picture.mode not in ("1", "L", "LA", "I", "I;16", "P", "RGB", "RGBA"):
        raise _other_colours("CMYK (inks)")
    rawmode = picture.tile[0].args if isinstance(picture, PngImageFile) and picture.tile else ""
    if rawmode in ("RGB;16B", "RGBA;16B"):
        values = _both_bytes(picture, path, rawmode)
    elif rawmode == "LA;16B":
        raise Fault("16 bits of grey with alpha", "alpha is no image", "save the grey channel alone")
    else:
        picture.load()
        values = np.asarray(picture)
    try:
        orientation = picture.getexif().get(_ORIENTATION)
    except Exception:  # broken EXIF says nothing
        orientation = None
    _require_upright(orientation, "the EXIF orientation")
    mode = picture.mode if picture.mode in ("LA", "RGB", "RGBA", "P") else "L"
    return Picture(_native(values).swapaxes(0, 1), mode, isinstance(picture, JpegImageFile))


def _both_bytes(picture: ImageFile, path: str | Path, rawmode: str) -> np.ndarray:
    """Colour of 16 bits, of which Pillow keeps the high byte, or the low one if told the other order."""
    picture.load()
    high = np.asarray(picture).astype(np.uint16)
    with _open_flat(path) as other:
        other.tile = [other.tile[0]._replace(args=rawmode.replace("16B", "16L"))]
        other.load()
        return high << 8 | np.asarray(other)


def _native(values: np.ndarray) -> np.ndarray:
    """The same numbers in the byte order of this machine, as PyTorch takes them; truth values as 0 and 1."""
    dtype = np.dtype(np.uint8) if values.dtype == bool else values.dtype.newbyteorder("=")
    return values.astype(dtype, copy=False)


# TIFF


@contextmanager
def _open_tiff(path: str | Path) -> Iterator[tuple[tifffile.TiffFile, tifffile.TiffPageSeries]]:
    """A TIFF and its one image.

    Raises:
        Fault, ValueError: see `read_picture`; of tifffile's own errors, which cite the file, the kind alone.
    """
    try:
        with tifffile.TiffFile(path) as tif:
            yield tif, _only_series(tif)
    except (Fault, MemoryError, OSError, SyntaxError, ValueError):
        raise
    except Exception as error:  # a broken structure makes tifffile raise whatever comes
        raise ValueError(type(error).__name__) from error


def _only_series(tif: tifffile.TiffFile) -> tifffile.TiffPageSeries:
    """The one image of a file; smaller copies of it (thumbnails, pyramids) and masks may lie beside."""
    series = tif.series
    if not series:
        raise ValueError("no image in it")
    first = series[0]
    kinds = [one.keyframe.subfiletype for one in series]
    if kinds[0] & _REDUCED:
        raise Fault(
            "a file whose first page is a thumbnail",
            "the picture comes first in a TIFF",
            "save the picture alone",
        )
    others = [one for one, kind in zip(series, kinds, strict=True) if not kind & (_REDUCED | _MASK)]
    if len(others) > 1:
        sizes = ", ".join(" x ".join(map(str, one.shape)) for one in others[:4])
        raise _several(f"{len(others)} images ({sizes})")
    if any(page is None or page.parent.filehandle.path != tif.filehandle.path for page in first.pages):
        raise Fault("a part of an image in several files", "a file holds its image", "save it to one file")
    return first


def _layout(series: tifffile.TiffPageSeries) -> tuple[str, int]:
    """Mode, see `Picture`, and channels, of pages too if they are channels by the file's own word."""
    page = series.keyframe
    samples, pages = _count(series, "S"), _count(series, "C")
    if pages > 1:
        return "", samples * pages
    if page.photometric == _PALETTE:
        return "P", samples
    colours = 3 if page.photometric in _COLOUR else 1
    alpha = samples == colours + 1 and (
        page.extrasamples[:1] in [(kind,) for kind in _ALPHA] or (colours == 3 and not page.extrasamples)
    )
    name = "L" if colours == 1 else "RGB"
    return name + "A" if alpha else name if samples == colours else "", samples


def _count(series: tifffile.TiffPageSeries, axis: str) -> int:
    return int(np.prod([size for name, size in zip(series.axes, series.shape, strict=True) if name == axis]))


def _read_tiff(tif: tifffile.TiffFile, series: tifffile.TiffPageSeries) -> Picture:
    """The stored values of the image of a TIFF."""
    page = series.keyframe
    mode, channels = _layout(series)
    pages = int(np.prod(series.shape)) // (channels * _count(series, "Y") * _count(series, "X"))
    about = {
        "jpeg": page.compression in _JPEG_COMPRESSIONS,
        "inverted": page.photometric == _WHITE_IS_ZERO,
    }
    if pages > 1:
        raise _several(f"{pages} pages")
    _require_upright(page.tags.valueof(_ORIENTATION, 1), "the TIFF Orientation")
    _require_known(page)
    _require_whole(tif, series)
    values = np.asarray(_decode(tif, series)).reshape(series.shape)
    places = {name: at for at, (name, size) in enumerate(zip(series.axes, series.shape, strict=True))}
    order = [places["X"], places["Y"]]
    rest = [at for at in range(values.ndim) if at not in order]
    values = values.transpose(order + rest).reshape(*(values.shape[at] for at in order), channels)
    return Picture(_native(values[..., 0] if channels == 1 else values), mode, **about)


def _require_known(page: tifffile.TiffPage) -> None:
    """Refuse kinds of pixels whose stored values are no intensities of grey or RGB."""
    decoded = page.photometric == 6 and page.compression in _JPEG_COMPRESSIONS  # JPEG decoders give RGB
    if page.photometric in _PHOTOMETRIC and not decoded:
        raise _other_colours(_PHOTOMETRIC[page.photometric])
    if page.dtype is None or page.dtype.kind not in "buif":
        kind = {"c": "complex numbers"}.get(page.dtype.kind) if page.dtype else None
        raise Fault(
            kind or f"samples of {page.bitspersample} bits that are no whole or real numbers of a usual size",
            "samples are whole numbers of 1 to 64 bits or real numbers of 16, 32 or 64",
            "save it as 16-bit or 32-bit TIFF",
        )


def _require_whole(tif: tifffile.TiffFile, series: tifffile.TiffPageSeries) -> None:
    """Refuse a TIFF that lacks a part of its pixels, which tifffile takes for zeros."""
    size = tif.filehandle.size
    width, height = _count(series, "X"), _count(series, "Y")
    _require_room(width, height, series.nbytes // max(width * height, 1), size)
    for page in series.pages:
        parts = list(zip(page.dataoffsets, page.databytecounts, strict=True))  # type: ignore[union-attr]
        if not parts or any(count <= 0 or start + count > size for start, count in parts):
            raise ValueError("pixels are missing")


def _decode(tif: tifffile.TiffFile, series: tifffile.TiffPageSeries) -> np.ndarray:
    """The stored values by tifffile, or where it needs a package that is not installed by Pillow."""
    page = series.keyframe
    if (
        page.compression in tifffile.TIFF.DECOMPRESSORS
        and page.predictor in tifffile.TIFF.UNPREDICTORS
        and page.bitspersample in _WHOLE_BITS
    ):
        with suppress(ImportError):  # Zstandard before Python 3.14
            return series.asarray(maxworkers=1)
    return _by_pillow(tif, series)


def _by_pillow(tif: tifffile.TiffFile, series: tifffile.TiffPageSeries) -> np.ndarray:
    """The stored values by way of Pillow, where it has them."""
    page = series.keyframe
    names = {int(one): one.name for one in tifffile.COMPRESSION}
    compression = f"with compression {names.get(page.compression, page.compression)}"
    refused = Fault(
        f"{page.samplesperpixel} x {page.bitspersample} bits {compression}",
        "neither tifffile nor Pillow reads that",
        "save it uncompressed or with Deflate in 8, 16 or 32 bits, or install the package imagecodecs",
    )
    # Pillow changes the order of bytes that libtiff has changed before.
    turned = tif.byteorder == ">" and page.dtype not in (np.bool_, np.uint8, np.int8, np.uint16)
    both = page.dtype == np.uint16 and page.samplesperpixel in (3, 4)
    if page.compression not in _PILLOW_COMPRESSIONS or turned or (both and page.planarconfig == _PLANES):
        raise refused
    planes = []
    for one in series.pages:
        try:
            values, mode = _pillow_page(tif, one.index, both)  # type: ignore[union-attr]
            planes.append(_stored(values, mode, page, refused))
        except SyntaxError as error:  # a mode that Pillow does not know
            raise refused from error
        except DecompressionBombError as error:
            found = f"{page.imagewidth} x {page.imagelength} pixels {compression}"
            raise Fault(found, *refused.args[1:]) from error
    return np.stack(planes)


def _pillow_page(tif: tifffile.TiffFile, index: int, both: bool) -> tuple[np.ndarray, str]:
    """What Pillow makes of a page, and its mode; ``both``: of colour of 16 bits, both bytes."""
    values: Any = 0
    for order in _BYTES if both else ("",):
        with TiffImageFile(tif.filehandle.path) as picture:
            picture.seek(index)
            if order:
                [tile] = picture.tile
                args = (f"{picture.mode};16{order}", *tile.args[1:])  # type: ignore[index]
                picture.tile = [tile._replace(args=args)]
            picture.load()
            part = np.asarray(picture)
            values = values << 8 | part.astype(np.uint16) if order else part
    return values, picture.mode


def _stored(values: np.ndarray, mode: str, page: tifffile.TiffPage, refused: Fault) -> np.ndarray:
    """The stored values of what Pillow made of a page: not inverted, not scaled, of its type and shape."""
    bits, dtype = page.bitspersample, np.dtype(np.uint8 if page.dtype == np.bool_ else page.dtype)
    if page.photometric == _WHITE_IS_ZERO and bits <= 8:
        values = ~values
    if bits in (2, 4) and mode == "L":
        values = values // (255 // (2**bits - 1))
    if mode == "I" and dtype == np.int16:
        values = values.astype(dtype)
    if page.planarconfig == _PLANES and values.ndim == 3:
        values = np.moveaxis(values, -1, 0)
    values = np.ascontiguousarray(_native(values))
    whole = values.dtype.kind + dtype.kind in ("uu", "ui", "iu", "ii")
    same = values.dtype.itemsize == dtype.itemsize and (whole or values.dtype == dtype)
    if not same or values.shape != page.shape or 1 in page.extrasamples:
        raise refused
    return values.view(dtype)
