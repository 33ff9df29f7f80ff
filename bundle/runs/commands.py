"""Running the bundle as a user would, every command printed before it runs."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import typer

from scripts.errors import InputError
from scripts.process import bundle_root
from scripts.signals import DeferredSignals, end


def say(what: str) -> None:
    """Print what comes next as a headline."""
    typer.secho(f"\n== {what}", bold=True)


def run_bundle(config_file: Sequence[str] | None = None, **overrides: Any) -> None:
    """Run `python -m monai.bundle run`.

    Args:
        config_file: paths, relative to the bundle or absolute; None where an `args_file` names them.
        **overrides: ids and their values, the args file among them.

    Raises:
        InputError: the command fails.
    """
    files = {} if config_file is None else {"config_file": list(config_file)}
    options = [part for key, value in {**files, **overrides}.items() for part in (f"--{key}", str(value))]
    run_python("-m", "monai.bundle", "run", *options)


def run_python(*arguments: str) -> None:
    """Run `python ARGUMENTS` from the bundle's folder; a signal is handed on, and the command ends first.

    Raises:
        InputError: the command fails.
        SystemExit: this process or the command was ended by a signal.
    """
    typer.echo("$ python " + shlex.join(arguments))
    sys.stdout.flush()
    quiet = {**os.environ, "PYTHONWARNINGS": "ignore"}
    signals = DeferredSignals("ending with the command above; a second one ends both at once")
    with signals:
        process = subprocess.Popen([sys.executable, *arguments], cwd=bundle_root(), env=quiet)
        # a terminal sends Ctrl-C to both
        signals.hand_on = lambda number: process.terminate() if number == signal.SIGTERM else None
        status = process.wait()
    if signals.number:
        end(signals.number, "the command above was ended too; the same command again goes on where it can")
    if status:
        raise InputError(f"the command above ended with exit status {status}; its last lines say why")
