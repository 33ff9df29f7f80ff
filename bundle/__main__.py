"""`python -m bundle <command>`: the workbench around the bundle."""

from __future__ import annotations

import importlib
import sys

import typer

from scripts.errors import InputError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
for _name in (
    "data.phantom",
    "data.datalist",
    "runs.demo",
    "benchmark",
    "figures",
    "runs.tune",
    "runs.score",
    "runs.study",
    "ship.package",
    "ship.verify",
    "ship.archive",
    "ship.export",
):
    importlib.import_module(f"bundle.{_name}").register(app)


def main() -> None:
    """Run one command; an InputError becomes one sentence and exit status 1."""
    try:
        app()
    except InputError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
