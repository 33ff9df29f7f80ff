"""Checks that were passed, remembered: files that have not changed since are not read again.

A case that passed is a hash, kept in `checked.json` beside `dataset.json`, or where that folder cannot be
written in the user's cache folder. The hash is of the size, the time and the first and last bytes of each of
its files, of what the check was asked and of the code that reads and checks. A file that is changed in its
middle alone and given its old time back passes for unchanged; `check` "always" reads it. What had a problem
or a warning is never remembered.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.utils import ensure_tuple

from scripts.data.checks import Problem, check_cases
from scripts.errors import InputError
from scripts.files import atomic_write, fingerprint, sha256, user_cache
from scripts.process import gather, rank_and_size

logger = logging.getLogger(__name__)

#: What reads and checks files: what an older version passed is read again.
CODE = [Path(__file__).with_name(f"{name}.py") for name in ("checks", "reader", "nifti", "pictures")]

CHECKS = ("remembered", "always", "never")


def check_remembered(
    cases: Sequence[Mapping[str, Any]], folder: Path, check: str, **settings: Any
) -> list[Problem]:
    """`check_cases`, each case in one of several processes, and only those that have to be read.

    Args:
        cases: see `scripts.data.checks`.
        folder: of the data set.
        check: "remembered": what passed before and has not changed is not read; "always": all are read;
            "never": none.
        **settings: what `check_cases` is asked.

    Returns:
        All problems found, in every process.

    Raises:
        InputError: an unknown ``check``.
    """
    if check not in CHECKS:
        raise InputError(f"check is {check!r}: use {', '.join(map(repr, CHECKS))}")
    if check == "never":
        return []
    rank, size = rank_and_size()
    places = [folder / "checked.json", _cache_file(folder)]
    known = set().union(*map(_read, places)) if check == "remembered" else set()
    rules = [*map(sha256, CODE), settings]
    mine = {case_hash(case, folder, rules): case for case in cases[rank::size]}
    new = {key: case for key, case in mine.items() if key not in known}
    problems = check_cases(list(new.values()), **settings)
    problems += [_changed(case) for key, case in new.items() if case_hash(case, folder, rules) != key]
    faulty = {problem.case for problem in problems}
    passed = [key for key, case in new.items() if str(case["case"]) not in faulty]
    gathered = gather((problems, passed, len(mine) - len(new)))
    if rank == 0:
        left = sum(count for _, _, count in gathered)
        if left:
            logger.info(
                "%d of %d cases passed their check before: --check always reads them", left, len(cases)
            )
        _remember(places, [key for _, keys, _ in gathered for key in keys])
    return [problem for found, _, _ in gathered for problem in found]


def _changed(case: Mapping[str, Any]) -> Problem:
    return Problem(
        str(case["case"]),
        str(ensure_tuple(case["image"])[0]),
        "an image or label that was changed while it was checked",
        "files must stay as they are",
        "let what writes them end, and start again",
    )


def _cache_file(folder: Path) -> Path:
    return user_cache() / f"checked-{hashlib.sha256(str(folder).encode()).hexdigest()[:16]}.json"


def case_hash(case: Mapping[str, Any], folder: Path, rules: Any) -> str:
    """Of a case's files as they are, and of whatever else what is remembered depends on."""
    described: list[Any] = [rules, str(case["case"])]
    for key in ("image", "label"):
        for name in ensure_tuple(case.get(key) or ()):
            path = Path(name)
            described.append([key, os.path.relpath(path, folder)])
            if os.path.isfile(path):
                size, ends = fingerprint(path)
                described.append([size, path.stat().st_mtime_ns, ends])
    return hashlib.sha256(json.dumps(described, default=str).encode()).hexdigest()[:32]


def _read(place: Path) -> set[str]:
    """What a file remembers; nothing if it is missing or not to be read."""
    try:
        passed = json.loads(place.read_text(encoding="utf-8"))["passed"]
        return {entry for entry in passed if isinstance(entry, str)}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return set()


def _remember(places: Sequence[Path], passed: Sequence[str]) -> None:
    """Add hashes to the first place that can be written; that none can is no reason to stop."""
    for place in places if passed else ():
        text = "cases whose files were read and found sound; delete this file to have all read again"
        try:
            with atomic_write(place) as temporary:
                content = {"about": text, "passed": sorted(_read(place).union(passed))}
                temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        except (OSError, InputError):
            continue
        return
