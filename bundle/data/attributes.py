"""Tables that say something of each case: whom it is of, where it was made, with what."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from scripts.data.names import composed
from scripts.errors import InputError, few
from scripts.files import read_text

#: Columns that have a meaning of their own, in whatever case they are written.
CASE, SUBJECT = "case", "subject"

#: What stands in a table where something is not known, in small letters.
UNKNOWN = ("", "n/a", "na", "nan", "none", "null", "unknown", "not stated")

#: Name of the option.
OPTION = "--attributes"


def read_case_table(path: Path, option: str, needed: Sequence[str] = ()) -> dict[str, dict[str, str]]:
    """A table in CSV, with commas, semicolons or tabs, that has a row for each case.

    Args:
        path: the file.
        option: that names it, for messages.
        needed: columns beside CASE that it has to have.

    Returns:
        Case id to what its row says, column by column; a row that is there twice counts once.

    Raises:
        InputError: there is no such file, a column is missing or there twice, a row names no case, or a case
            has two rows that differ.
    """
    if not path.is_file():
        raise InputError(f"{option} {path} does not exist; it must be a CSV table; correct the path.")
    text = read_text(path)
    delimiter = max(",;\t", key=text.partition("\n")[0].count)
    try:
        lines = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter))
    except csv.Error as error:
        raise InputError(f"{option} {path} is no CSV table ({error}); correct the file.") from error
    rows = [[cell.strip() for cell in line] for line in lines]
    columns = [name.lower() if name.lower() in (CASE, SUBJECT) else name for name in rows[0]] if rows else []
    wanted = [CASE, *needed]
    if not set(wanted) <= set(columns):
        raise InputError(
            f"{option} {path} has the columns {columns}; {' and '.join(map(repr, wanted))} are needed; add a "
            f"first line '{','.join(wanted)}'."
        )
    if twice := [name for name in dict.fromkeys(columns) if name and columns.count(name) > 1]:
        raise InputError(f"{option} {path} has the column {twice[0]!r} twice; rename or remove one.")
    found: dict[str, dict[str, str]] = {}
    for number, row in enumerate(rows[1:], start=2):
        cells = {name: "" for name in columns if name} | dict(zip(columns, row, strict=False))
        case = composed(cells.pop(CASE))
        if not case and any(cells.values()):
            raise InputError(f"{option} {path} names no case in row {number}; each row has one; add it.")
        before = found.setdefault(case, cells)
        if differing := [name for name in cells if before[name] != cells[name]]:
            name = differing[0]
            raise InputError(
                f"{option} {path} has the case {case} with the {name}s {before[name]} and {cells[name]}; a "
                "case has one; correct the table."
            )
    found.pop("", None)
    return found


def require_column(table: Mapping[str, Mapping[str, str]], name: str, path: Path, option: str) -> None:
    """Refuse an attribute that a table does not have.

    Raises:
        InputError: says which it has.
    """
    known = attributes_of(table)
    if name not in known:
        raise InputError(
            f"{option} {name}: {path} has no such column, but {few(known) or 'none'}; correct the name."
        )


def attributes_of(table: Mapping[str, Mapping[str, str]]) -> list[str]:
    """The columns of a table that are neither CASE nor SUBJECT."""
    return [name for name in next(iter(table.values()), {}) if name and name != SUBJECT]


def is_stated(value: str) -> bool:
    """Whether a cell says something."""
    return value.lower() not in UNKNOWN


def values_to_fold_by(
    path: Path, name: str, cases: Sequence[str], subject_of: Mapping[str, str]
) -> dict[str, str]:
    """What each case has of an attribute that makes the folds, such as its site.

    Args:
        path: a table with the attribute.
        name: of the attribute.
        cases: that are put into folds.
        subject_of: case id to subject; a case that is not there is its own.

    Returns:
        Case id to value.

    Raises:
        InputError: no such attribute, a case without it, a single value, or a subject with several.
    """
    table = read_case_table(path, OPTION)
    require_column(table, name, path, "--folds_by")
    value_of = {case: table.get(case, {}).get(name, "") for case in cases}
    if unknown := [case for case, value in value_of.items() if not is_stated(value)]:
        raise InputError(
            f"{OPTION} {path} states no {name} of {few(unknown)}; --folds_by puts each case into the fold of "
            "its value; add it, or leave these cases out."
        )
    of_subject: dict[str, str] = {}
    for case, value in value_of.items():
        subject = subject_of.get(case, case)
        before = of_subject.setdefault(subject, value)
        if before != value:
            raise InputError(
                f"{OPTION} {path} has the subject {subject} with {name} {before} and, in {case}, {value}; "
                "a subject belongs to one fold; correct the table, or leave cases of it out."
            )
    if len(set(value_of.values())) < 2:
        raise InputError(
            f"{OPTION} {path} has the {name} {few(sorted(set(value_of.values())))} for all cases; --folds_by "
            "takes two values or more; name another column, or leave it out."
        )
    return value_of
