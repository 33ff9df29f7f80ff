"""`python -m bundle COMMAND`: the workbench around the bundle."""

from __future__ import annotations

import sys

from bundle.cli import app
from scripts.errors import InputError, told
from scripts.signals import end_on_signals


def main() -> None:
    """Run one command; an InputError becomes one sentence and exit status 1, a signal one and 130 or 143."""
    end_on_signals()
    try:
        app()
    except (InputError, OSError) as error:
        if (sentence := told(error)) is None:
            raise
        sys.exit(f"error: {sentence}")


if __name__ == "__main__":
    main()
