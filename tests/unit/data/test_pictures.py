"""Pictures are read as they are stored, whatever their kind; what is not read is named."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from scripts.data.pictures import Picture, read_picture, read_picture_header
from scripts.errors import Fault

HEIGHT, WIDTH = 7, 9
LZW, PLAIN = 5, 1
GREY, RGB, PALETTE = 1, 2, 3  # PhotometricInterpretation


def draw(dtype: str, channels: int = 0, most: int | None = None) -> np.ndarray:
    """Random numbers over the whole range of a type, (rows, columns[, channels])."""
    rng, shape = np.random.default_rng(0), (HEIGHT, WIDTH, channels) if channels else (HEIGHT, WIDTH)
    if np.dtype(dtype).kind == "f":
        return rng.normal(size=shape).astype(dtype)
    info = np.iinfo(dtype)
    high = info.max if most is None else most
    return rng.integers(info.min, high, shape, dtype, endpoint=True)


def rows_of_bits(values: np.ndarray, bits: int) -> list[bytes]:
    """Rows of numbers of fewer than 8 bits or of 12, each padded to whole bytes."""
    rows = []
    for row in values:
        text = "".join(format(int(value), f"0{bits}b") for value in row)
        text += "0" * (-len(text) % 8)
        rows.append(int(text, 2).to_bytes(len(text) // 8, "big"))
    return rows


def lzw(data: bytes) -> bytes:
    """LZW with codes of 9 bits alone: the table is cleared before it outgrows them."""
    text = ""
    for start in range(0, len(data), 200):
        text += "".join(format(code, "09b") for code in (256, *data[start : start + 200]))
    text += format(257, "09b")
    text += "0" * (-len(text) % 8)
    return int(text, 2).to_bytes(len(text) // 8, "big")


def write_tiff(
    path: Path,
    values: np.ndarray,
    photometric: int = GREY,
    compression: int = PLAIN,
    order: str = "<",
    bits: int = 0,
    extra: tuple[int, ...] = (),
    planes: bool = False,
    more: dict[int, tuple[str, list[int]]] | None = None,
) -> Path:
    """A TIFF by hand, after TIFF 6.0, of kinds that no library here writes; a strip, or one a plane."""
    samples = values.shape[2] if values.ndim == 3 else 1
    parts = list(np.moveaxis(values, 2, 0)) if planes else [values]
    strips = []
    for part in parts:
        plain = part.astype(part.dtype.newbyteorder(order)).tobytes()
        plain = b"".join(rows_of_bits(part, bits)) if bits else plain
        strips.append(lzw(plain) if compression == LZW else plain)
    data = b"".join(strip + b"\0" * (len(strip) % 2) for strip in strips)
    ends = np.cumsum([len(strip) + len(strip) % 2 for strip in strips]).tolist()
    bits = bits or values.dtype.itemsize * 8
    tags: dict[int, tuple[str, list[int]]] = {
        256: ("I", [values.shape[1]]),
        257: ("I", [values.shape[0]]),
        258: ("H", [bits] * samples),
        259: ("H", [compression]),
        262: ("H", [photometric]),
        273: ("I", [8, *(8 + end for end in ends[:-1])]),
        277: ("H", [samples]),
        278: ("I", [values.shape[0]]),
        279: ("I", [len(strip) for strip in strips]),
        284: ("H", [2 if planes else 1]),
        339: ("H", ["uif".index(values.dtype.kind) + 1] * samples),
    }
    if extra:
        tags[338] = ("H", list(extra))
    tags |= more or {}
    directory, outside = struct.pack(order + "H", len(tags)), b""
    start = 8 + len(data) + 2 + 12 * len(tags) + 4
    for tag, (kind, content) in sorted(tags.items()):
        packed = struct.pack(f"{order}{len(content)}{kind}", *content)
        if len(packed) > 4:
            packed, outside = struct.pack(order + "I", start + len(outside)), outside + packed
        directory += struct.pack(order + "HHI", tag, {"H": 3, "I": 4}[kind], len(content)) + packed.ljust(
            4, b"\0"
        )
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 8 + len(data))
    path.write_bytes(head + data + directory + bytes(4) + outside)
    return path


def write_png(path: Path, values: np.ndarray, bits: int, colour: int) -> Path:
    """A PNG by hand, its rows filtered in all five ways in turn."""
    channels = values.shape[2] if values.ndim == 3 else 1
    rows = [row.astype(">u2").tobytes() for row in values] if bits == 16 else rows_of_bits(values, bits)
    step, before, filtered = channels * max(bits // 8, 1), bytes(len(rows[0])), b""
    for number, row in enumerate(rows):
        filtered += bytes([number % 5])
        for at, byte in enumerate(row):
            left, corner = (row[at - step], before[at - step]) if at >= step else (0, 0)
            paeth = min((left, before[at], corner), key=lambda near: abs(left + before[at] - corner - near))
            guess = (0, left, before[at], (left + before[at]) // 2, paeth)[number % 5]
            filtered += bytes([(byte - guess) % 256])
        before = row
    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, colour, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(filtered)), (b"IEND", b"")]
    if colour == 3:
        chunks.insert(1, (b"PLTE", bytes(range(48))))
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
            for name, body in chunks
        )
    )
    return path


def require(path: Path, values: Any, mode: str = "L") -> Picture:
    """The picture has these values (rows first) and no others, and its header says the same."""
    picture, values = read_picture(path), np.asarray(values)
    assert picture.mode == mode
    assert picture.values.dtype.isnative
    assert picture.values.dtype != bool
    np.testing.assert_array_equal(picture.values.swapaxes(0, 1), values)
    channels = values.shape[2] if values.ndim == 3 else 1
    assert read_picture_header(path) == (values.shape[1::-1], channels - mode.endswith("A"))
    return picture


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8"])
def test_grey_tiffs_of_every_type(tmp_path: Path, dtype: str, order: str) -> None:
    values = draw(dtype)
    picture = require(write_tiff(tmp_path / "i.tif", values, order=order), values)
    assert picture.values.dtype == np.dtype(dtype)
    assert not picture.inverted
    assert not picture.jpeg


@pytest.mark.parametrize("compression", [PLAIN, LZW])
@pytest.mark.parametrize(
    ("bits", "dtype", "photometric", "mode"),
    [
        (2, "u1", 1, "L"),
        (2, "u1", 0, "L"),
        (4, "u1", 1, "L"),
        (4, "u1", 0, "L"),
        (4, "u1", 3, "P"),
        (12, "u2", 1, "L"),
    ],
)
def test_odd_bits_are_not_scaled(
    tmp_path: Path, bits: int, dtype: str, photometric: int, mode: str, compression: int
) -> None:
    values = draw(dtype, most=2**bits - 1)
    colours = {320: ("H", list(range(3 * 2**bits)))} if photometric == PALETTE else None
    path = write_tiff(tmp_path / "i.tif", values, photometric, compression, bits=bits, more=colours)
    require(path, values, mode)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("compression", [PLAIN, LZW])
@pytest.mark.parametrize("dtype", ["u1", "u2"])
def test_white_is_zero_is_not_inverted(tmp_path: Path, dtype: str, compression: int, order: str) -> None:
    values = draw(dtype)
    path = write_tiff(tmp_path / "i.tif", values, 0, compression, order)
    if (dtype, compression, order) == ("u2", LZW, ">"):
        with pytest.raises(Fault, match="16 bits with compression LZW"):
            read_picture(path)
    else:
        assert require(path, values).inverted


@pytest.mark.parametrize("compression", [None, "group3", "group4", "tiff_lzw", "packbits"])
def test_one_bit_is_zero_and_one(tmp_path: Path, compression: str | None) -> None:
    mask = draw("u1") > 99
    Image.fromarray(mask).save(tmp_path / "black.tif", compression=compression)
    Image.fromarray(mask).save(tmp_path / "white.tif", compression=compression, tiffinfo={262: 0})
    assert not require(tmp_path / "black.tif", mask).inverted
    assert require(tmp_path / "white.tif", ~mask).inverted  # Pillow inverts what it stores, too
    tifffile.imwrite(tmp_path / "tifffile.tif", mask)
    require(tmp_path / "tifffile.tif", mask)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "f4"])
def test_lzw_gives_the_same_values(tmp_path: Path, dtype: str, order: str) -> None:
    values = draw(dtype)
    path = write_tiff(tmp_path / "i.tif", values, compression=LZW, order=order)
    if order == ">" and dtype in ("i2", "u4", "i4", "f4"):  # Pillow changes the order of their bytes twice
        with pytest.raises(Fault, match=r"found 1 x \d+ bits with compression LZW; .* imagecodecs"):
            read_picture(path)
    else:
        require(path, values)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("compression", [PLAIN, LZW])
def test_colour_and_alpha_of_8_and_16_bits_in_tiffs(tmp_path: Path, compression: int, order: str) -> None:
    for dtype, channels, photometric, extra, mode in (
        ("u1", 3, RGB, (), "RGB"),
        ("u2", 3, RGB, (), "RGB"),
        ("u2", 4, RGB, (2,), "RGBA"),
        ("u1", 2, GREY, (2,), "LA"),
    ):
        values = draw(dtype, channels)
        require(
            write_tiff(tmp_path / "i.tif", values, photometric, compression, order, extra=extra), values, mode
        )


@pytest.mark.parametrize("order", "<>")
def test_any_number_of_channels(tmp_path: Path, order: str) -> None:
    for channels in (2, 5):
        values = draw("u2", channels)
        path = write_tiff(tmp_path / "i.tif", values, order=order, extra=(0,) * (channels - 1))
        require(path, values, "")
    path = write_tiff(tmp_path / "i.tif", draw("u1", 5), compression=LZW, extra=(0,) * 4)
    with pytest.raises(Fault, match="found 5 x 8 bits with compression LZW"):
        read_picture(path)


@pytest.mark.parametrize(
    ("photometric", "channels", "name"),
    [(5, 4, "CMYK"), (6, 3, "YCbCr"), (8, 3, r"CIE L\*a\*b\*"), (32803, 1, "a colour filter array")],
)
def test_other_colours_are_refused_by_name(
    tmp_path: Path, photometric: int, channels: int, name: str
) -> None:
    more = {530: ("H", [2, 2])} if photometric == 6 else None
    path = write_tiff(tmp_path / "i.tif", draw("u1", channels), photometric, more=more)
    with pytest.raises(Fault, match=f"found the colours {name}.*convert it to RGB"):
        read_picture(path)
    Image.fromarray(draw("u1")).convert("CMYK").save(tmp_path / "i.jpg")
    with pytest.raises(Fault, match="found the colours CMYK"):
        read_picture(tmp_path / "i.jpg")


def test_complex_numbers_are_refused_by_name(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "i.tif", draw("f4").astype(np.complex64))
    with pytest.raises(Fault, match="found complex numbers"):
        read_picture(tmp_path / "i.tif")


LARGE = np.arange(70 * 90, dtype=np.uint16).reshape(70, 90)


@pytest.mark.parametrize(
    "settings",
    [
        {"tile": (16, 32)},
        {"tile": (16, 32), "compression": "zlib", "predictor": True},
        {"rowsperstrip": 7, "compression": "lzma"},
        {"bigtiff": True, "byteorder": ">"},
        {"imagej": True},
        {"resolution": (3000, 3000), "resolutionunit": "CENTIMETER"},
    ],
    ids=str,
)
def test_every_layout_of_a_tiff(tmp_path: Path, settings: dict[str, Any]) -> None:
    tifffile.imwrite(tmp_path / "i.tif", LARGE, **settings)
    require(tmp_path / "i.tif", LARGE)


@pytest.mark.parametrize("compression", ["tiff_adobe_deflate", "tiff_lzw", "zstd", "packbits", "lzma"])
def test_what_pillow_compresses(tmp_path: Path, compression: str) -> None:
    Image.fromarray(LARGE).save(tmp_path / "i.tif", compression=compression)
    require(tmp_path / "i.tif", LARGE)


@pytest.mark.parametrize("compression", [34712, 50001, 60000])
def test_a_compression_that_nothing_here_reads_is_named(tmp_path: Path, compression: int) -> None:
    path = write_tiff(tmp_path / "i.tif", draw("u1"), compression=compression)
    with pytest.raises(Fault, match=r"found 1 x 8 bits with compression (JPEG2000|WEBP|60000);"):
        read_picture(path)


def test_jpeg_in_a_tiff(tmp_path: Path) -> None:
    smooth = np.indices((16, 24)).sum(axis=0).astype(np.uint8) * 5
    for values, mode in ((smooth, "L"), (np.stack([smooth] * 3, -1), "RGB")):
        Image.fromarray(values).save(tmp_path / "i.tif", compression="jpeg", quality=95)
        picture = read_picture(tmp_path / "i.tif")
        assert picture.jpeg
        assert picture.mode == mode
        assert np.abs(picture.values.swapaxes(0, 1).astype(int) - values).max() < 6


def test_channels_in_planes(tmp_path: Path) -> None:
    values = draw("u2", 3)
    planes = values.transpose(2, 0, 1)
    tifffile.imwrite(tmp_path / "planar.tif", planes, photometric="rgb", planarconfig="separate")
    require(tmp_path / "planar.tif", values, "RGB")
    tifffile.imwrite(tmp_path / "imagej.tif", planes, imagej=True, metadata={"axes": "CYX"})
    require(tmp_path / "imagej.tif", values, "")
    tifffile.imwrite(tmp_path / "i.ome.tif", planes[:, None], metadata={"axes": "CZYX"})
    require(tmp_path / "i.ome.tif", values, "")
    about = "ImageJ=1.53\nimages=3\nchannels=3\nhyperstack=true\nmode=composite\n"
    first, *others = [Image.fromarray(plane) for plane in planes]
    first.save(
        tmp_path / "lzw.tif",
        save_all=True,
        append_images=others,
        compression="tiff_lzw",
        tiffinfo={270: about},
    )
    require(tmp_path / "lzw.tif", values, "")


@pytest.mark.parametrize(("dtype", "compression"), [("u1", LZW), ("u2", LZW), ("u2", PLAIN)])
def test_planes_in_strips_of_their_own(tmp_path: Path, dtype: str, compression: int) -> None:
    values = draw(dtype, 3)
    path = write_tiff(tmp_path / "i.tif", values, RGB, compression, planes=True)
    if (dtype, compression) == ("u2", LZW):  # Pillow mixes them up
        with pytest.raises(Fault, match="found 3 x 16 bits with compression LZW"):
            read_picture(path)
    else:
        require(path, values, "RGB")


@pytest.mark.parametrize("axes", ["ZYX", "TYX"])
def test_a_stack_of_pages_is_refused(tmp_path: Path, axes: str) -> None:
    stack, about = np.stack([LARGE] * 4), {"axes": axes}
    tifffile.imwrite(tmp_path / "no_axes.tif", stack, metadata=None, photometric="minisblack")
    tifffile.imwrite(tmp_path / "tifffile.tif", stack, metadata=about, photometric="minisblack")
    tifffile.imwrite(tmp_path / "i.ome.tif", stack, metadata=about)
    tifffile.imwrite(tmp_path / "imagej.tif", stack, imagej=True, metadata=about)
    tifffile.imwrite(tmp_path / "one.tif", stack, imagej=True, metadata=about, truncate=True)
    with Image.open(tmp_path / "one.tif") as picture:
        assert picture.n_frames == 1  # one directory for all, as in ImageJ's large files
    still = Image.fromarray(draw("u1"))
    still.save(tmp_path / "moves.png", save_all=True, append_images=[Image.fromarray(~draw("u1"))] * 3)
    for path in tmp_path.iterdir():
        with pytest.raises(Fault, match="found 4 pages; a picture has one page"):
            read_picture(path)


def test_thumbnails_beside_the_picture_are_left_out(tmp_path: Path) -> None:
    small = LARGE[::5, ::4]
    with tifffile.TiffWriter(tmp_path / "below.tif") as tif:
        tif.write(LARGE, subifds=1)
        tif.write(small, subfiletype=1)
    require(tmp_path / "below.tif", LARGE)
    with tifffile.TiffWriter(tmp_path / "after.tif") as tif:
        tif.write(LARGE, metadata=None)
        tif.write(small, subfiletype=1, metadata=None)
    require(tmp_path / "after.tif", LARGE)
    with tifffile.TiffWriter(tmp_path / "before.tif") as tif:
        tif.write(small, subfiletype=1, metadata=None)
        tif.write(LARGE, metadata=None)
    with pytest.raises(Fault, match="first page is a thumbnail"):
        read_picture(tmp_path / "before.tif")
    with tifffile.TiffWriter(tmp_path / "other.tif") as tif:
        tif.write(LARGE, metadata=None)
        tif.write(LARGE[:60].astype(np.uint8), metadata=None)
    with pytest.raises(Fault, match=r"found 2 images \(70 x 90, 60 x 90\)"):
        read_picture(tmp_path / "other.tif")


def test_an_image_in_several_files_is_refused(tmp_path: Path) -> None:
    about = (
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:{}">'
        '<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint16" SizeX="90" '
        'SizeY="70" SizeZ="1" SizeC="2" SizeT="1"><Channel ID="Channel:0:0" SamplesPerPixel="1"/>'
        '<TiffData IFD="0" FirstC="0" PlaneCount="1"><UUID FileName="0.ome.tif">urn:uuid:0</UUID></TiffData>'
        '<TiffData IFD="0" FirstC="1" PlaneCount="1"><UUID FileName="1.ome.tif">urn:uuid:1</UUID></TiffData>'
        "</Pixels></Image></OME>"
    )
    for number in range(2):
        path = tmp_path / f"{number}.ome.tif"
        tifffile.imwrite(path, LARGE, description=about.format(number), metadata=None)
    for _ in range(2):
        with pytest.raises(Fault, match="a part of an image in several files"):
            read_picture(tmp_path / "0.ome.tif")
        (tmp_path / "1.ome.tif").unlink(missing_ok=True)


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif"])
def test_a_turned_picture_is_refused(tmp_path: Path, suffix: str, orientation: int) -> None:
    path = tmp_path / f"i{suffix}"
    if suffix == ".tif":
        tifffile.imwrite(path, LARGE, extratags=[(274, "H", 1, orientation, True)])
        found = f"the TIFF Orientation {orientation} "
    else:
        exif = Image.Exif()
        exif[274] = orientation
        Image.fromarray(draw("u1")).save(path, exif=exif)
        found = f"the EXIF orientation {orientation} "
    with pytest.raises(Fault, match=rf"found {found}.*store the pixels upright"):
        read_picture(path)


def test_an_upright_picture_is_read(tmp_path: Path) -> None:
    values = draw("u1")
    exif = Image.Exif()
    exif[274] = 1
    Image.fromarray(values).save(tmp_path / "i.png", exif=exif)
    require(tmp_path / "i.png", values)
    Image.fromarray(values).save(tmp_path / "broken.png", exif=b"Exif\0\0no EXIF at all")
    require(tmp_path / "broken.png", values)
    for orientation in (0, 1, 9):  # 0 and 9 mean nothing
        tifffile.imwrite(tmp_path / "i.tif", values, extratags=[(274, "H", 1, orientation, True)])
        require(tmp_path / "i.tif", values)


@pytest.mark.parametrize(
    ("bits", "colour", "channels", "mode", "factor"),
    [
        (1, 0, 0, "L", 1),
        (2, 0, 0, "L", 85),  # the format says that grey of few bits spans black to white
        (4, 0, 0, "L", 17),
        (8, 0, 0, "L", 1),
        (16, 0, 0, "L", 1),
        (16, 2, 3, "RGB", 1),
        (16, 6, 4, "RGBA", 1),
        (1, 3, 0, "P", 1),
        (2, 3, 0, "P", 1),
        (4, 3, 0, "P", 1),
    ],
)
def test_pngs_of_every_kind(
    tmp_path: Path, bits: int, colour: int, channels: int, mode: str, factor: int
) -> None:
    values = draw("u2", channels, most=2**bits - 1)
    require(write_png(tmp_path / "i.png", values, bits, colour), values * factor, mode)


def test_16_bits_of_grey_with_alpha_are_refused_by_name(tmp_path: Path) -> None:
    path = write_png(tmp_path / "i.png", draw("u2", 2), 16, 4)
    with pytest.raises(Fault, match="16 bits of grey with alpha"):
        read_picture(path)


def test_a_palette_with_alpha_gives_its_numbers(tmp_path: Path) -> None:
    values = draw("u1", most=15)
    picture = Image.fromarray(values, mode="P")
    picture.putpalette(range(48))
    picture.save(tmp_path / "i.png", transparency=0)
    require(tmp_path / "i.png", values, "P")


@pytest.mark.parametrize("mode", ["1", "L", "RGB"])
def test_bmps(tmp_path: Path, mode: str) -> None:
    picture = Image.fromarray(draw("u1", 3)).convert(mode)
    picture.save(tmp_path / "i.bmp")
    require(tmp_path / "i.bmp", np.asarray(picture), "RGB" if mode == "RGB" else "L")


def test_a_phones_jpeg_with_a_second_picture(tmp_path: Path) -> None:
    first, second = (Image.fromarray(np.full((16, 16), grey, np.uint8)) for grey in (50, 200))
    first.save(tmp_path / "i.jpg", format="MPO", save_all=True, append_images=[second])
    assert np.unique(read_picture(tmp_path / "i.jpg").values).tolist() == [50]
    assert read_picture(tmp_path / "i.jpg").jpeg
    (tmp_path / "i.jpg").rename(tmp_path / "i.png")
    assert read_picture(tmp_path / "i.png").jpeg  # whatever its name


@pytest.mark.parametrize(
    ("kind", "name"), [("WEBP", "WebP"), ("GIF", "GIF"), ("AVIF", "HEIC or AVIF"), ("JPEG2000", "JPEG 2000")]
)
def test_other_kinds_are_named_not_called_corrupt(tmp_path: Path, kind: str, name: str) -> None:
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(tmp_path / "i.png", format=kind)
    with pytest.raises(Fault, match=f"found a {name} file under another name"):
        read_picture(tmp_path / "i.png")


def test_what_pillow_alone_does_not_read_is_named(tmp_path: Path) -> None:
    Image.fromarray(draw("u1")).save(tmp_path / "i.jpg")
    data = bytearray((tmp_path / "i.jpg").read_bytes())
    data[data.index(b"\xff\xc0") + 4] = 12
    (tmp_path / "i.jpg").write_bytes(data)
    with pytest.raises(Fault, match="cannot handle 12-bit"):
        read_picture(tmp_path / "i.jpg")
    text = PngInfo()
    text.add_text("log", "x" * 2_000_000, zip=True)
    Image.fromarray(draw("u1")).save(tmp_path / "i.png", pnginfo=text)
    with pytest.raises(Fault, match="more than a million letters of text"):
        read_picture(tmp_path / "i.png")


def test_more_pixels_than_pillow_allows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for suffix in (".png", ".tif", ".bmp", ".jpg"):
        Image.fromarray(np.zeros((HEIGHT, WIDTH), np.uint8)).save(tmp_path / f"i{suffix}")
    Image.fromarray(np.zeros((HEIGHT, WIDTH), np.uint8)).save(tmp_path / "lzw.tif", compression="tiff_lzw")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    for path in tmp_path.iterdir():
        with pytest.raises(Image.DecompressionBombError):
            Image.open(path)
        if path.name == "lzw.tif":  # which Pillow decodes for tifffile
            with pytest.raises(Fault, match=f"found {WIDTH} x {HEIGHT} pixels with compression LZW"):
                read_picture(path)
        else:
            require(path, np.zeros((HEIGHT, WIDTH)))


def test_a_size_that_the_file_cannot_hold(tmp_path: Path) -> None:
    path = write_png(tmp_path / "i.png", draw("u1"), 8, 0)
    data = bytearray(path.read_bytes())
    data[16:24] = struct.pack(">II", 60_000, 60_000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f"3600000000 bytes of pixels in {len(data)} bytes of file"):
        read_picture(path)
    path = write_tiff(tmp_path / "i.tif", draw("u1"), more={256: ("I", [60_000]), 257: ("I", [60_000])})
    with pytest.raises(ValueError, match="bytes of pixels in"):
        read_picture(path)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_more_pixels_than_there_is_memory_for(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(draw("u1", 3)).save(tmp_path / f"i{suffix}")
    monkeypatch.setattr("scripts.data.pictures.SMALL", 10)
    need = 3 * HEIGHT * WIDTH * 3
    for there, refused in ((need, False), (need - 1, True)):
        monkeypatch.setattr("scripts.process.available_memory", lambda _, there=there: there)
        if refused:
            with pytest.raises(Fault, match=f"found {WIDTH} x {HEIGHT} pixels, which take .* of memory"):
                read_picture(tmp_path / f"i{suffix}")
        else:
            require(tmp_path / f"i{suffix}", draw("u1", 3), "RGB")


@pytest.mark.parametrize("settings", [{}, {"compression": "zlib"}, {"tile": (16, 16)}], ids=str)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_tiff_cut_off_anywhere_is_found(tmp_path: Path, share: float, settings: dict[str, Any]) -> None:
    path, noise = tmp_path / "i.tif", np.random.default_rng(0).integers(0, 255, (60, 70), np.uint8)
    tifffile.imwrite(path, noise, **settings)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises((ValueError, OSError)) as raised:
        read_picture(path)
    assert not isinstance(raised.value, Fault)


def test_strips_that_hold_nothing_are_found(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "i.tif", draw("u1"), more={279: ("I", [0])})
    with pytest.raises(ValueError, match="pixels are missing"):
        read_picture(path)


@pytest.mark.parametrize("dtype", ["i1", "u2", "i2", "i4", "u4", "f4", "f8"])
def test_the_network_sees_the_stored_values(tmp_path: Path, dtype: str) -> None:
    load = Compose([LoadImaged("image", reader="scripts.data.ImageReader"), EnsureChannelFirstd("image")])
    values = draw(dtype)
    image = load({"image": write_tiff(tmp_path / "i.tif", values, order=">")})["image"]
    np.testing.assert_array_equal(image.numpy(), values.T[None].astype(np.float32))
    colours = draw("u2", 3)
    image = load({"image": write_png(tmp_path / "i.png", colours, 16, 2)})["image"]
    np.testing.assert_array_equal(image.numpy(), colours.transpose(2, 1, 0))
