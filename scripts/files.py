"""Files: written whole or not at all, JSON, tables, hashes."""

from __future__ import annotations

import codecs
import csv
import errno
import glob
import hashlib
import json
import os
import platform
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from scripts.errors import NO_ROOM, InputError, root_cause

#: This machine, in names of files.
_HOST = hashlib.sha256(platform.node().encode()).hexdigest()[:8]

#: A disk with less than this is full: not every library says why it could not write. Bytes.
FULL = 1 << 20

#: How the names of workshops end.
WORKSHOP = "workshop"

#: Bytes at either end of a file that take part in its fingerprint.
ENDS = 4096

#: What it answers where a file cannot be written though there is room.
NOT_TO_BE_WRITTEN = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ENAMETOOLONG),
    *(errno.ENOTDIR, errno.EEXIST),  # a file where a folder should be
)


@contextmanager
def disk_space_for(path: str | Path) -> Iterator[None]:
    """Say in one sentence why something could not be written: a full disk, or a place that takes no files.

    Args:
        path: what is written: a file, or a folder that files go into.

    Raises:
        InputError: the disk is full, or the file cannot be written there.
    """
    folder = Path(path).absolute()
    folder = folder if folder.is_dir() else folder.parent
    try:
        yield
    except (OSError, RuntimeError) as error:
        cause = root_cause(error)
        number = cause.errno if isinstance(cause, OSError) else None
        if number in NO_ROOM or free_bytes(folder) < FULL:
            raise InputError(
                f"{path} could not be written, as the disk of {folder} is full: make room there and run it "
                "again, or write elsewhere; what was there before is kept"
            ) from error
        if number in NOT_TO_BE_WRITTEN:
            raise InputError(
                f"{path} could not be written ({os.strerror(number)}): correct the folder or its "
                "permissions, or write elsewhere; what was there before is kept"
            ) from error
        raise


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Write a file beside its place and rename it when complete; a failure leaves what was there before.

    The data are on the disk before the new name is, and the name before this returns: a loss of power leaves
    the old file or the new one too. What a killed process of this machine left beside the place is removed.

    Args:
        path: the file's place; missing folders are made.

    Yields:
        Where to write: a hidden name in the same folder, with the same suffixes.

    Raises:
        InputError: see `disk_space_for`.
    """
    with atomic_writes(path) as (temporary,):
        yield temporary


@contextmanager
def atomic_writes(*paths: str | Path) -> Iterator[list[Path]]:
    """`atomic_write` for files that belong together: none is renamed before all are on the disk.

    Args:
        paths: the files' places, in one folder.

    Yields:
        Where to write each.

    Raises:
        InputError: see `disk_space_for`.
    """
    places = [Path(path) for path in paths]
    temporaries = [path.with_name(f".{_HOST}-{os.getpid()}.{path.name}") for path in places]
    try:
        with disk_space_for(places[0]):
            places[0].parent.mkdir(parents=True, exist_ok=True)
            for path in places:
                _remove_left(path)
            yield temporaries
            for temporary in temporaries:
                _to_disk(temporary)
            for temporary, path in zip(temporaries, places, strict=True):
                os.replace(temporary, path)
            with suppress(OSError):  # some network disks sync no folders
                _to_disk(places[0].parent)
    finally:
        for temporary in temporaries:
            with suppress(OSError):  # of a folder that could not be made
                temporary.unlink(missing_ok=True)


@contextmanager
def workshop(folder: Path) -> Iterator[Path]:
    """A hidden folder inside another one for what is being made; it is removed at the end.

    So is what killed processes of this machine left of theirs.

    Args:
        folder: made where it is missing, and removed at the end if it is still empty.

    Yields:
        The hidden folder.

    Raises:
        InputError: see `disk_space_for`.
    """
    is_new = not folder.exists()
    with disk_space_for(folder):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _remove_left(folder / WORKSHOP)
            prefix, suffix = f".{_HOST}-{os.getpid()}.", f".{WORKSHOP}"
            with TemporaryDirectory(dir=folder, prefix=prefix, suffix=suffix) as made:
                yield Path(made)
        finally:
            if is_new:
                with suppress(OSError):  # it holds something, or was never made
                    folder.rmdir()


def replace_folder(made: Path, place: Path) -> None:
    """Put a folder that was made in a `workshop` in its place, on the disk before it has its name.

    Args:
        made: the folder, in the workshop.
        place: a folder that is there goes with the workshop.
    """
    for path in (*made.rglob("*"), made):
        _to_disk(path)
    if place.exists():
        place.rename(made.with_name("replaced"))
    made.rename(place)
    _to_disk(place.parent)


def _remove_left(path: Path) -> None:
    """Remove what processes that are no more left of a file or workshop, if they ran on this machine."""
    for left in path.parent.glob(f".{_HOST}-*.{glob.escape(path.name)}"):
        number = left.name.removeprefix(f".{_HOST}-").partition(".")[0]
        if number.isdecimal() and not _runs(int(number)):
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)


def _runs(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True


def _to_disk(path: Path) -> None:
    """Have the system write out what it holds back of a file or of the names in a folder."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def free_bytes(folder: Path) -> int:
    """Bytes that can still be written into a folder, or into the nearest one above that exists."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


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


def write_json(path: Path, content: Mapping[str, Any], indent: int = 2) -> None:
    """Write an object as JSON, which knows no NaN."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=indent, allow_nan=False) + "\n", encoding="utf-8")


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


def user_cache() -> Path:
    """The user's folder for what is remembered to save time; it need not exist.

    Raises:
        RuntimeError: the user has no home.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "unet-bundle"


def is_as_written(path: Path) -> bool:
    """Whether a file has the SHA-256 that the metadata.json beside it gives it; also where none does."""
    facts = path.with_name("metadata.json")
    meant = read_json(facts).get("weights", {}).get(path.name) if facts.is_file() else None
    return not (meant and path.is_file()) or sha256(path) == meant


def require_nameable(path: Path, name: str) -> None:
    """Refuse a path that no config can hold, as MONAI takes a part of it for an id.

    Args:
        path: absolute.
        name: of the argument.

    Raises:
        InputError: it has "#" or "::" in it.
    """
    if found := next((part for part in ("#", "::") if part in str(path)), None):
        raise InputError(
            f"{name} is {path}, and MONAI takes what follows {found} in a path for an id: rename the folder, "
            "or give another one"
        )


def sha256(file: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def short_hash(content: Any) -> str:
    """Eight hexadecimal digits for what JSON can hold."""
    return hashlib.sha256(json.dumps(content, default=str).encode()).hexdigest()[:8]


def fingerprint(file: Path) -> tuple[int, str]:
    """Size of a file and a hash of its ends, which hold its header and, of `.gz` and PNG, a checksum."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        first = opened.read(ENDS)
        opened.seek(max(size - ENDS, 0))
        return size, hashlib.sha256(first + opened.read()).hexdigest()
