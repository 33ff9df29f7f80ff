"""Rows as people read them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]

#: Digits after the point, of scores for which four say too little.
DECIMALS = {"warping_error": 6}


def number(score: str, value: float) -> str:
    """A score as tables show it."""
    return f"{value:.{DECIMALS.get(score, 4)}f}"


def with_interval(score: str, mean: float | None, low: float | None, high: float | None) -> str:
    """A mean as tables show it, its interval behind it; None is what is not known."""
    if mean is None:
        return "-"
    ends = [number(score, end) for end in (low, high) if end is not None]
    return f"{number(score, mean)} ({' to '.join(ends) or 'one subject'})"


def table(columns: Sequence[str], rows: Sequence[Row], names: int = 1) -> str:
    """A plain table: names to the left, numbers to the right, a dash for what is missing.

    Args:
        columns: keys of the rows, and headings.
        rows: dictionaries; other keys are not shown.
        names: how many of the first columns are names.
    """
    texts = [list(columns), *([_cell(name, row.get(name)) for name in columns] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if index < names else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in texts
    )


def _cell(name: str, value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    return number(name, value) if isinstance(value, float) else str(value)
