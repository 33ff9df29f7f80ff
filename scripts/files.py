"""Files: written whole or not at all, JSON, tables, hashes."""

from __future__ import annotations

import codecs
import csv
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scripts.errors import InputError

#: A disk with less than this is full: not every library says why it could not write. Bytes.
FULL = 1 << 20


@contextmanager
def disk_space_for(path: str | Path) -> Iterator[None]:
    """Say in one sentence that the disk is full, if that is why something could not be written.

    Args:
        path: what is written, in a folder that exists.

    Raises:
        InputError: the disk is full.
    """
    folder = Path(path).absolute().parent
    try:
        yield
    except (OSError, RuntimeError) as error:
        said = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if said or shutil.disk_usage(folder).free < FULL:
            raise InputError(
                f"{path} could not be written, as the disk of {folder} is full: make room there and run it "
                "again, or write elsewhere; what was there before is kept"
            ) from error
        raise


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Write a file beside its place and rename it when complete; a failure leaves what was there before.

    Args:
        path: the file's place; missing folders are made.

    Yields:
        Where to write: a hidden name in the same folder, with the same suffixes.

    Raises:
        InputError: the disk is full.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        with disk_space_for(path):
            yield temporary
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_text(path: Path) -> str:
    """Read a text in UTF-8, or in UTF-16 with its mark at the beginning.

    Raises:
        InputError: another encoding.
        OSError: the file cannot be read.
    """
    raw = path.read_bytes()
    wide = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return raw.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is no text in UTF-8, from its byte {error.start} on; save it in this encoding."
        ) from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, each key of which stands there once."""
    content = dict(pairs)
    if len(content) < len(pairs):
        twice = next(key for key in content if sum(key == name for name, _ in pairs) > 1)
        raise ValueError(f"the key {twice!r} is there twice")
    return content


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        InputError: if it is missing, no text, no JSON or no object, or a key comes twice.
    """
    try:
        content = json.loads(read_text(path), object_pairs_hook=_once)
    except InputError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        reason = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
        raise InputError(f"{path} {reason}; it must be a JSON file; correct the path or the file.") from error
    if not isinstance(content, dict):
        raise InputError(
            f"{path} holds a {type(content).__name__}; a JSON object {{...}} is expected; correct the file."
        )
    return content


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = ()) -> None:
    """Write rows as CSV with a heading.

    Args:
        path: the file.
        rows: dictionaries, at least one; other keys than the columns are left out.
        columns: those of the first row unless given.
    """
    with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(columns or rows[0]), extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def sha256(file: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
