"""What something was made of, written down beside it, and compared by name before it is used again.

A study goes on where it was cut, and gets more variants, seeds and data sets from one call to the next. What
is there is used as it is: so whatever it depends on must be what it was. `made_of.json` in its folder holds
that: settings, cases and weights, which must be the same, and the code and the machine that made it, whose
change is told.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from scripts.errors import InputError
from scripts.files import atomic_write, read_json, sha256, short_hash
from scripts.machine import machine
from scripts.recipe import NAMED, other_training
from scripts.settings import CONFIGS
from scripts.tables import Row

#: The file, and its key for what made it.
RECORD, BY = "made_of.json", "by"


def here() -> Row:
    """What makes things here: the code, by version and by a hash of `scripts`, PyTorch and the machine."""
    files = sorted((CONFIGS.parent / "scripts").rglob("*.py"))
    return {
        "version": read_json(CONFIGS / "metadata.json")["version"],
        "scripts": short_hash([sha256(file) for file in files]),
        "pytorch": torch.__version__,
        "machine": machine(),
    }


def write_record(folder: Path, made_of: Mapping[str, Any]) -> None:
    """Write down what a folder is about to be made of, here and now."""
    with atomic_write(folder / RECORD) as temporary:
        content = {**made_of, BY: here()}
        temporary.write_text(json.dumps(content, indent=1, default=str) + "\n", encoding="utf-8")


def was_made_of(folder: Path, made_of: Mapping[str, Any]) -> bool:
    """Whether the record of a folder says so."""
    file = folder / RECORD
    return file.is_file() and not _differences(read_json(file), made_of)


def require_same(folder: Path, made_of: Mapping[str, Any]) -> str:
    """Refuse a folder that was made of something else.

    Args:
        folder: with results.
        made_of: what it would be made of now, by name; what is not known now is not compared.

    Returns:
        What is to be told: another code or machine made it, or nothing says what it was made of, which is
        then taken for what it would be made of now. "" where nothing is.

    Raises:
        InputError: names what differs.
    """
    file = folder / RECORD
    if not file.is_file():
        write_record(folder, made_of)
        return f"there was no {RECORD}: it is taken as made of what is asked for now"
    content = read_json(file)
    if differences := _differences(content, made_of):
        more = f"; {len(differences) - NAMED} more differ" if len(differences) > NAMED else ""
        raise InputError(
            f"{folder} was made of something else ({'; '.join(differences[:NAMED])}{more}): give what was "
            "given then, remove that folder to have it made again, or give another --output_dir"
        )
    return "; ".join(other_training(content.get(BY, {}), here()))


def _differences(record: Mapping[str, Any], made_of: Mapping[str, Any]) -> list[str]:
    """Where a record says something else than what is known now."""
    before = {name: value for name, value in record.items() if name in made_of}
    return other_training(before, json.loads(json.dumps(made_of, default=str)))
