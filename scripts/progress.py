"""Progress of long work: a bar in a terminal, and a line from time to time in a file."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any, TextIO

from tqdm import tqdm

#: Seconds between two lines where nobody watches a terminal.
QUIET_INTERVAL = 20.0


class Lines:
    """A stream on which tqdm, which draws over its last line, writes a line below it.

    Args:
        stream: a file.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> None:
        """Write what there is to read; without the characters that move a cursor."""
        if line := text.strip():
            self.stream.write(f"{line}\n")

    def flush(self) -> None:
        """See the stream."""
        self.stream.flush()


def progress(items: Iterable[Any] | None = None, desc: str | None = None, **options: Any) -> tqdm:
    """A bar of tqdm on standard error, with the time left; where that is a file, whole lines.

    Args:
        items: what is gone through, or None where `update` is called.
        desc: what stands before the bar.
        options: tqdm's, such as total and initial.
    """
    if sys.stderr.isatty():
        return tqdm(items, desc, mininterval=0.5, **options)
    quiet: dict[str, Any] = {"mininterval": QUIET_INTERVAL, "maxinterval": QUIET_INTERVAL}
    return tqdm(items, desc, file=Lines(sys.stderr), **{**options, **quiet})
