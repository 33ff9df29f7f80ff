"""What the user is told when something handed in cannot be used."""

from __future__ import annotations

import math


class InputError(ValueError):
    """A file, key or argument breaks a rule. The message is one sentence: name, value, rule and fix."""


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
