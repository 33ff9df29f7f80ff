"""Ways in which a file breaks: any file byte by byte, and each format where it hurts."""

from __future__ import annotations

import gzip
import io
import json
import math
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import safetensors.torch
import torch

#: Numbers that headers do not expect.
ODD = (
    0,
    -1,
    1,
    2,
    7,
    255,
    32767,
    -32768,
    65535,
    2**31 - 1,
    -(2**31),
    1e-30,
    1e30,
    math.nan,
    math.inf,
    -math.inf,
)

Rng = np.random.Generator


def pick(rng: Rng, choices: Any) -> Any:
    """One of several."""
    listed = list(choices)
    return listed[int(rng.integers(len(listed)))]


def change_bytes(rng: Rng, raw: bytes) -> tuple[bytes, str]:
    """Flip, cut, grow, zero, double or swap.

    Returns:
        The bytes, and what was done to them.
    """
    data, n = bytearray(raw), len(raw)
    near = int(min(n, 512)) if rng.random() < 0.5 else n  # where headers are
    at = int(rng.integers(near))
    length = int(rng.integers(1, max(2, n // 4)))
    kind = pick(rng, ("flip", "flip", "flip", "cut", "grow", "zero", "double", "swap", "empty"))
    if kind == "flip":
        for _ in range(int(rng.integers(1, 9))):
            data[int(rng.integers(near))] ^= 1 << int(rng.integers(8))
    elif kind == "cut":
        data = data[:at]
    elif kind == "grow":
        data += rng.bytes(length) if rng.random() < 0.5 else bytes(length)
    elif kind == "zero":
        data[at : at + length] = bytes(len(data[at : at + length]))
    elif kind == "double":
        data[at:at] = data[at : at + length]
    elif kind == "swap":
        other = int(rng.integers(n))
        data[at], data[other] = data[other], data[at]
    else:
        data = bytearray()
    return bytes(data), f"bytes: {kind}"


_NIFTI_FIELDS = (
    *("dim", "dim", "dim", "pixdim", "pixdim", "pixdim", "datatype", "bitpix", "vox_offset", "scl_slope"),
    *("scl_inter", "qform_code", "sform_code", "quatern_b", "quatern_d", "qoffset_x", "srow_x", "srow_y"),
    *("srow_z", "xyzt_units", "intent_code", "slice_code", "sizeof_hdr", "magic", "dim_info", "cal_max"),
)


def change_nifti(rng: Rng, path: Path) -> str:
    """Bytes as they lie, or of what is packed, or fields of the header."""
    raw, packed = path.read_bytes(), path.suffix == ".gz"
    if rng.random() < (0.25 if packed else 0.4):
        raw, what = change_bytes(rng, raw)
        path.write_bytes(raw)
        return what
    data = gzip.decompress(raw) if packed else raw
    if packed and rng.random() < 0.3:
        data, what = change_bytes(rng, data)
    else:
        kind = nib.Nifti2Header if nib.Nifti2Header.may_contain_header(data[:540]) else nib.Nifti1Header
        size = kind.sizeof_hdr
        header = np.frombuffer(data[:size], kind.template_dtype).copy()
        told = []
        for _ in range(int(rng.integers(1, 4))):
            name = pick(rng, _NIFTI_FIELDS)
            field = header[name][0]
            value: Any = pick(rng, ODD)
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("ignore")
                if field.dtype.kind == "S":
                    value = rng.bytes(4)
                elif field.dtype.kind in "iu" and not math.isfinite(value):
                    value = int(rng.integers(-4, 4096))
                number = value if field.dtype.kind == "S" else np.array(value).astype(field.dtype)
                if np.ndim(field):
                    index = int(rng.integers(len(field)))
                    header[name][0][index] = number
                else:
                    header[name] = number
            told.append(name)
        data, what = header.tobytes() + data[size:], "header: " + ", ".join(sorted(set(told)))
    path.write_bytes(gzip.compress(data, 1) if packed else data)
    return what


def change_png(rng: Rng, path: Path) -> str:
    """Bytes, or chunks with their checksums made right."""
    raw = path.read_bytes()
    if rng.random() < 0.4:
        raw, what = change_bytes(rng, raw)
        path.write_bytes(raw)
        return what
    chunks, at = [], 8
    while at < len(raw):
        (size,) = struct.unpack(">I", raw[at : at + 4])
        chunks.append((raw[at + 4 : at + 8], bytearray(raw[at + 8 : at + 8 + size])))
        at += 12 + size
    kind = pick(rng, ("IHDR", "IHDR", "drop", "double", "data", "pack", "new"))
    which = int(rng.integers(len(chunks)))
    if kind == "IHDR":
        values = list(struct.unpack(">IIBBBBB", chunks[0][1]))
        field = int(rng.integers(7))
        odd = (0, 1, 3, 4, 16, 33, 47, 49, 255, 65535, 2**31 - 1, 2**32 - 1)
        values[field] = pick(rng, odd) % (2**32 if field < 2 else 256)
        chunks[0] = (b"IHDR", bytearray(struct.pack(">IIBBBBB", *values)))
    elif kind == "drop":
        del chunks[which]
    elif kind == "double":
        chunks.insert(which, chunks[which])
    elif kind == "new":
        chunks.insert(
            1, (pick(rng, (b"tRNS", b"gAMA", b"tEXt", b"acTL", b"eXIf", b"PLTE")), bytearray(rng.bytes(9)))
        )
    else:
        place = next((i for i, (name, _) in enumerate(chunks) if name == b"IDAT"), 0)
        if kind == "pack":
            body, _ = change_bytes(rng, zlib.decompress(bytes(chunks[place][1])))
            chunks[place] = (b"IDAT", bytearray(zlib.compress(body)))
        else:
            body, _ = change_bytes(rng, bytes(chunks[place][1]))
            chunks[place] = (b"IDAT", bytearray(body))
    out = raw[:8]
    for name, body in chunks:
        out += (
            struct.pack(">I", len(body))
            + name
            + bytes(body)
            + struct.pack(">I", zlib.crc32(name + bytes(body)))
        )
    path.write_bytes(out)
    return f"chunk: {kind}"


def change_tiff(rng: Rng, path: Path) -> str:
    """Bytes, or an entry of the first directory."""
    raw = path.read_bytes()
    if rng.random() < 0.4:
        raw, what = change_bytes(rng, raw)
        path.write_bytes(raw)
        return what
    data = bytearray(raw)
    (start,) = struct.unpack("<I", raw[4:8])
    (count,) = struct.unpack("<H", raw[start : start + 2])
    at = start + 2 + 12 * int(rng.integers(count))
    kind = pick(rng, ("tag", "type", "count", "value", "value", "value"))
    odd = int(pick(rng, (0, 1, 2, 3, 5, 8, 32, 255, 65535, 2**31, 2**32 - 1)))
    if kind in ("tag", "type"):
        place = at + (0 if kind == "tag" else 2)
        data[place : place + 2] = struct.pack("<H", odd % 65536)
    else:
        place = at + (4 if kind == "count" else 8)
        data[place : place + 4] = struct.pack("<I", odd)
    path.write_bytes(bytes(data))
    return f"entry: {kind}"


_OF_IMAGES = (
    *("Rows", "Columns", "PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient"),
    *("BitsAllocated", "BitsStored", "RescaleSlope", "RescaleIntercept", "SOPInstanceUID"),
    *("SamplesPerPixel", "PixelRepresentation", "PhotometricInterpretation", "SeriesInstanceUID"),
)


def change_dicom(rng: Rng, path: Path) -> str:
    """Bytes, or attributes of the header."""
    raw = path.read_bytes()
    if rng.random() < 0.35:
        raw, what = change_bytes(rng, raw)
        path.write_bytes(raw)
        return what
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = pydicom.dcmread(io.BytesIO(raw))
        elements = [element for element in dataset if element.VR not in ("SQ",)]
        element = pick(rng, elements)
        if rng.random() < 0.5:
            names = ("Rows", "Columns", "PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient")
            more = ("BitsAllocated", "BitsStored", "RescaleSlope", "RescaleIntercept", "SOPInstanceUID")
            last = (
                "SamplesPerPixel",
                "PixelRepresentation",
                "PhotometricInterpretation",
                "SeriesInstanceUID",
            )
            element = dataset[pick(rng, (*names, *more, *last))]
        kind = pick(rng, ("delete", "empty", "odd", "odd", "odd", "text"))
        if kind == "delete":
            del dataset[element.tag]
        else:
            value = str(pick(rng, ODD)) if kind == "odd" else "" if kind == "empty" else "x" * 70
            many = max(element.VM, 1)
            _set_raw(dataset, element, "\\".join([value] * many) if rng.random() < 0.7 else value, kind)
        settings = pydicom.config.settings
        before = settings.writing_validation_mode
        settings.writing_validation_mode = pydicom.config.IGNORE
        try:
            dataset.save_as(path)
        finally:
            settings.writing_validation_mode = before
    return f"attribute: {kind}"


def _set_raw(dataset: pydicom.Dataset, element: Any, text: str, kind: str) -> None:
    """Put a text, or a number of the kind that the attribute holds, where it does not belong."""
    binary = {"US": ("<H", 2**16), "SS": ("<h", 2**15), "UL": ("<I", 2**32), "SL": ("<i", 2**31)}
    if element.VR in binary:
        form, limit = binary[element.VR]
        try:
            number = int(float(text.split("\\")[0])) % limit
        except (ValueError, OverflowError):
            number = 0
        value = b"" if kind == "empty" else struct.pack(form, number)
    elif element.VR in ("OW", "OB", "OB or OW"):
        value = element.value[: len(element.value) // 2] if kind != "empty" else b""
    else:
        value = text.encode("ascii", "replace")
        value += b" " * (len(value) % 2)
    dataset[element.tag] = pydicom.dataelem.RawDataElement(
        element.tag, element.VR, len(value), value, 0, False, True
    )


_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 3, 1e308, -1e308, 10**30, 0.5, math.nan, math.inf, "", "x", "x" * 5000),
    *([], {}, [[]], [0], ["a", 1], {"a": {}}, "../../etc/passwd", "/", "$1/0", "@nothing", "\x00", "-1"),
)


def change_json(rng: Rng, path: Path) -> str:
    """Bytes, or a value somewhere within."""
    raw = path.read_bytes()
    if rng.random() < 0.25:
        raw, what = change_bytes(rng, raw)
        path.write_bytes(raw)
        return what
    content = json.loads(raw)
    places = list(_places(content))
    holder, key = pick(rng, places)
    kind = pick(rng, ("delete", "value", "value", "value", "value", "rename", "double", "wrap"))
    if kind == "delete":
        del holder[key]
    elif kind == "value":
        holder[key] = pick(rng, _VALUES)
    elif kind == "wrap":
        holder[key] = [holder[key]] if rng.random() < 0.5 else {"a": holder[key]}
    elif isinstance(holder, list):
        holder.insert(key, holder[key])
        kind = "double"
    elif kind == "rename":
        holder[f"{key}s"] = holder.pop(key)
    else:
        text = json.dumps(content)
        one = f'"{key}": '
        at = text.index(one)
        path.write_text(text[:at] + one + json.dumps(pick(rng, _VALUES)) + ", " + text[at:])
        return "json: double"
    path.write_text(json.dumps(content))
    return f"json: {kind}"


def _places(content: Any) -> Any:
    """Every entry of dictionaries and lists within."""
    if isinstance(content, dict | list):
        for key in list(content) if isinstance(content, dict) else range(len(content)):
            yield content, key
            yield from _places(content[key])


def change_weights(rng: Rng, path: Path) -> str:
    """Bytes, or entries of the dictionary."""
    raw = path.read_bytes()
    if rng.random() < 0.5:
        raw, what = change_bytes(rng, raw)
        path.write_bytes(raw)
        return what
    safe = path.suffix == ".safetensors"
    content: Any = safetensors.torch.load_file(path) if safe else torch.load(path, weights_only=True)
    holder, key = pick(rng, list(_places(content)))
    value = holder[key]
    kinds: dict[str, Callable[[], Any]] = {"delete": lambda: None, "rename": lambda: None}
    if isinstance(value, torch.Tensor):
        kinds |= {
            "shape": lambda: torch.zeros((*value.shape, 2)),
            "type": lambda: (value * 0).to(torch.int16),
            "NaN": lambda: torch.full_like(value.float(), math.nan),
            "huge": lambda: torch.full_like(value.float(), 1e38),
        }
    if not safe:
        kinds["value"] = lambda: pick(rng, (None, -1, 10**9, 0.5, math.nan, "x", [], {}, [1, "a"]))
    kind = pick(rng, kinds)
    made = kinds[kind]()
    if kind == "delete" or (kind == "rename" and isinstance(holder, list)):
        del holder[key]
    elif kind == "rename":
        holder[f"{key}s"] = holder.pop(key)
    else:
        holder[key] = made
    if safe:
        safetensors.torch.save_file(content, path)
    else:
        torch.save(content, path)
    return f"entry: {kind}"
