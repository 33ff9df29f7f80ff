"""Files that are whole or not there at all."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
def written_whole(path: str | Path) -> Iterator[Path]:
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
    beside = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        with disk_space_for(path):
            yield beside
            os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
