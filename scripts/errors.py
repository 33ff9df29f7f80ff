"""What the user is told when something handed in cannot be used."""

from __future__ import annotations


class InputError(ValueError):
    """A file, key or argument breaks a rule. The message is one sentence: name, value, rule and fix."""
