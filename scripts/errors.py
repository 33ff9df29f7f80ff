"""What the user is told when something handed in cannot be used."""

from __future__ import annotations


class InputError(ValueError):
    """A file, key or argument breaks a rule. The message is one sentence: name, value, rule and fix."""


def root_cause(error: BaseException) -> BaseException:
    """The InputError among the causes of an error, or else the cause of them all."""
    while not isinstance(error, InputError) and (cause := error.__cause__ or error.__context__):
        error = cause
    return error
