"""What the user is told when something handed in cannot be used."""

from __future__ import annotations

import difflib
import errno
import math
import re
import traceback
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

#: What the system answers where there is no more room: on the disk, in a quota, in a limit of the process.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

#: What the system answers about a path, whatever it is used for: no right, no such path can be, no answer.
OF_THE_PATH = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR),
    *(errno.EIO, errno.ESTALE),
)

#: What MONAI says of an expression that fails.
_FAILED = re.compile(r"Failed to evaluate ConfigExpression: *\s*(?P<expression>.*)", re.DOTALL)

#: What MONAI says of a component that it cannot make.
_NOT_MADE = re.compile(r"Failed to instantiate component '(?P<name>[^']*)' with keywords: (?P<values>[^\n]*)")

#: What PyTorch's norms say of one value for each channel.
_NO_STATISTICS = re.compile(
    r"Expected more than 1 (?:value per channel|spatial element) when training, got input size (.*)"
)

#: From this likeness on, 0 to 1, a known name may have been meant by an unknown one.
ALIKE = 0.6

#: A value in a sentence is cut off here. Characters.
LONGEST_VALUE = 60

#: And a path here. Characters.
LONGEST_PATH = 300

#: Most values that a message lists.
MOST_LISTED = 20


class InputError(ValueError):
    """A file, key or argument breaks a rule. The message is one sentence: name, value, rule and fix."""


class Fault(InputError):
    """What is wrong with a file that others may not have: they can be done without it.

    Args:
        found: what the file holds, to follow the word "found".
        rule: what is asked for.
        fix: what the user can do.
        file: its path, where it is known.
    """

    def __init__(self, found: str, rule: str, fix: str, file: str | Path = "") -> None:
        super().__init__(found, rule, fix)
        self.file = str(file)

    def of(self, file: str | Path) -> Fault:
        """The same of this file."""
        found, rule, fix = self.args
        return Fault(found, rule, fix, file)

    def __str__(self) -> str:
        found, rule, fix = self.args
        return f"{self.file + ': ' if self.file else ''}found {found}; {rule}; {fix}."


class CaseError(InputError):
    """What is wrong with a case on its way into a training, in a data worker too.

    PyTorch hands the error of a worker on as the text of its traceback, which ends with the sentence.

    Args:
        sentence: what is wrong, with the name of the case.
    """

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence.rpartition(f"{type(self).__name__}: ")[2].rstrip())


def few(values: Sequence[object]) -> str:
    """The first values of a list, and how many more there are."""
    more = len(values) - MOST_LISTED
    return ", ".join(map(str, values[:MOST_LISTED])) + (f" and {more} more" if more > 0 else "")


def brief(value: Any) -> str:
    """A value for a sentence, of a component its name."""
    if isinstance(value, dict) and "_target_" in value:
        value = value["_target_"]
    text = " ".join(str(value).split())
    return text if len(text) <= LONGEST_VALUE else text[:LONGEST_VALUE] + "..."


def nearest(name: str, known: Collection[str], others: Collection[str] = ()) -> str:
    """The known name that is most like one, as "; did you mean ...", or "" where none is.

    Args:
        name: what was given.
        known: names that are looked at first.
        others: those that count where none of these is like it.
    """
    for names in (known, others):
        plain = {each: _plain(each) for each in names}
        if found := difflib.get_close_matches(_plain(name), plain.values(), 1, ALIKE):
            best = [each for each in plain if plain[each] == found[0]]
            best.sort(key=lambda each: -difflib.SequenceMatcher(None, name, each).ratio())
            return f"; did you mean {best[0]}"
    ends = sorted(each for each in others if each.rpartition("::")[2] == name)
    return f"; did you mean {ends[0]}" if ends else ""


def _plain(name: str) -> str:
    """A name without case, hyphens and dots, which people write in place of `_` and `::`."""
    return re.sub(r"[\W_]+", "", name).lower() or name


def root_cause(error: BaseException) -> BaseException:
    """The InputError among the causes of an error, or else the cause of them all."""
    while not isinstance(error, InputError) and (cause := error.__cause__ or error.__context__):
        error = cause
    return error


def require_one_of(name: str, value: object, allowed: tuple) -> None:
    """Refuse an argument that is not among the values allowed."""
    if value not in allowed:
        raise InputError(f"{name} is {value!r}: use {' or '.join(repr(choice) for choice in allowed)}")


def require_within(name: str, value: float, low: float, high: float = math.inf) -> None:
    """Refuse a number outside its limits, which count as inside."""
    if not low <= value <= high:
        limits = f"{low} or more" if high == math.inf else f"{low} to {high}"
        raise InputError(f"{name} is {value!r}: use {limits}")


def told(error: BaseException) -> str | None:
    """What is said of an error that a user can mend; None of any other.

    Args:
        error: at its root an InputError, or the word of the system that there is no more room or about a
            path, which whatever opens files by itself hands on, or of a norm, in whatever network, that has a
            single value; or a part of a config that makes nothing.
    """
    cause = root_cause(error)
    if isinstance(cause, OSError) and cause.errno in NO_ROOM:
        what = cause.filename or "a file"
        return (
            f"{what} could not be written, as its disk is full: make room there and run it again, or write "
            "elsewhere; what was there before is kept"
        )
    if isinstance(cause, OSError) and cause.errno in OF_THE_PATH and cause.filename:
        path = str(cause.filename)[:LONGEST_PATH]
        return f"{path} cannot be used ({cause.strerror}): correct the path, or mend its rights"
    if (found := _NO_STATISTICS.match(str(cause))) and isinstance(cause, ValueError):
        size = found[1].removeprefix("torch.Size(").removesuffix(")")
        return (
            f"a norm of the network has no statistics of one value for each channel, of a map {size}: give "
            "a larger patch_size or batch_size, and where it is the last step of an epoch, which takes what "
            "is left, set steps_per_epoch"
        )
    return str(cause) if isinstance(cause, InputError) else _of_component(error)


def _of_component(error: BaseException | None) -> str | None:
    """What is said of a component of others that the values in a config do not make; ours tell it."""
    sentence = None
    while error is not None:
        made = _NOT_MADE.match(str(error))
        if made and not made["name"].startswith("scripts."):
            cause = error.__cause__ or error.__context__ or error
            text = " ".join(str(cause).split())[:200]
            values = made["values"].replace(",", ", ")
            sentence = (
                f"{made['name']} cannot be made of {values or 'nothing'} as the configs have it "
                f"({type(cause).__name__}: {text}): correct these values"
            )
        failed = _FAILED.match(str(error))
        if failed and _fails_by_itself(error.__cause__):
            text = " ".join(str(error.__cause__).split())[:200]
            sentence = (
                f"the expression {brief(failed['expression'])} of a config fails "
                f"({type(error.__cause__).__name__}: {text}): correct it"
            )
        if isinstance(error, ModuleNotFoundError) and str(error).startswith("Cannot locate"):
            sentence = f"_target_ in a config names nothing that is there ({error}): correct it"
        error = error.__cause__ or error.__context__
    return sentence


def _fails_by_itself(error: BaseException | None) -> bool:
    """Whether an expression of a config raised an error, and not code that it called."""
    if error is None or error.__traceback__ is None:
        return False
    return traceback.extract_tb(error.__traceback__)[-1].filename == "<string>"
