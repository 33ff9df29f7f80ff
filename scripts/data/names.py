"""Names: of a case, of its results, of files in a list."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from scripts.errors import Fault

LONGEST_NAME = 200
"""Bytes of the name of a result, without what is put before and after it while it is written."""

_NOT_IN_A_NAME = re.compile(r'^\.|[/\\:*?"<>|\x00-\x1f]')


def composed(text: str) -> str:
    """A text with each accent in one character with its letter (NFC), as macOS does not write them."""
    return unicodedata.normalize("NFC", text)


def output_name(case: str) -> str:
    """How the files of a case begin: its id, with `_` in place of what a file name cannot hold.

    Cases that this gives one name are refused, see `of_one_name`.
    """
    return _NOT_IN_A_NAME.sub("_", case)


def output_path(folder: str | Path, case: str, postfix: str, suffix: str) -> Path:
    """The file of a result.

    Args:
        folder: where the results go.
        case: id of the case.
        postfix: "seg" or "prob".
        suffix: of the file, with its dot.
    """
    return Path(folder, f"{output_name(case)}_{postfix}{suffix}")


def of_one_name(ids: Iterable[str]) -> list[str]:
    """The ids whose results some file system takes for files of one name, in order."""
    names: defaultdict[str, list[str]] = defaultdict(list)
    for case in ids:
        names[composed(output_name(case)).casefold()].append(case)
    return sorted({case for same in names.values() if len(same) > 1 for case in same})


def require_short(case: str) -> None:
    """Refuse an id that leaves no room in the name of a file.

    Raises:
        Fault: without a file.
    """
    length = len(composed(output_name(case)).encode())
    if length > LONGEST_NAME:
        raise Fault(
            f"the case id {case[:20]}... of {length} bytes",
            f"the name of a result has room for {LONGEST_NAME}",
            "give the file a shorter name, or in dataset.json the case a shorter id",
        )


def place(folder: Path, listed: str) -> str:
    """The path of a file that a list names.

    `~` is the home folder. What does not exist as it is written is looked for with `/` in place of
    backslashes, and with accents in the other form of Unicode.

    Args:
        folder: of the list, where relative paths begin.
        listed: a path, relative or absolute.
    """
    written = folder / os.path.expanduser(listed)
    if os.path.lexists(written):
        return str(written)
    forward = folder / os.path.expanduser(listed.replace("\\", "/"))
    forms = [Path(unicodedata.normalize(form, str(forward))) for form in ("NFC", "NFD")]
    return str(next((path for path in (forward, *forms) if os.path.lexists(path)), written))
