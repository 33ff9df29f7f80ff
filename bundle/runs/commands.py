"""Running the bundle as a user would, every command printed before it runs."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import typer

from bundle.runs.warm import ROOT, Warm
from scripts.errors import InputError
from scripts.signals import DeferredSignals, end


def say(what: str) -> None:
    """Print what comes next as a headline."""
    typer.secho(f"\n== {what}", bold=True)


def run_bundle(config_file: Sequence[str] | None = None, warm: Warm | None = None, **overrides: Any) -> None:
    """Run `python -m monai.bundle run`.

    Args:
        config_file: paths, relative to the bundle or absolute; None where an `args_file` names them.
        warm: what runs it, as `run_python` does.
        **overrides: ids and their values, the args file among them.

    Raises:
        InputError: the command fails.
    """
    files = {} if config_file is None else {"config_file": list(config_file)}
    options = [part for key, value in {**files, **overrides}.items() for part in (f"--{key}", str(value))]
    run_python("-m", "monai.bundle", "run", *options, warm=warm)


def run_python(*arguments: str, warm: Warm | None = None) -> None:
    """Run `python ARGUMENTS` from the bundle's folder; a signal is handed on, and the command ends first.

    Args:
        *arguments: of Python.
        warm: a process that has made the imports of the command, a module; None starts Python anew.

    Raises:
        InputError: the command fails.
        SystemExit: this process or the command was ended by a signal.
    """
    typer.echo("$ python " + shlex.join(arguments))
    sys.stdout.flush()
    signals = DeferredSignals("ending with the command above")
    with signals:
        number, wait = _fresh(*arguments) if warm is None else (warm.start(*arguments[1:]), warm.wait)
        signals.hand_on = partial(_kill, number)  # to which an echo of what it got itself is no second one
        if signals.number:
            _kill(number, signals.number)
        status = wait()
    if signals.number:
        end(signals.number, "the command above was ended too; the same command again goes on where it can")
    if status:
        raise InputError(f"the command above ended with exit status {status}; its last lines say why")


def _fresh(*arguments: str) -> tuple[int, Callable[[], int]]:
    """Start Python: the number of its process, and what waits for its end and gives its exit status."""
    quiet = {**os.environ, "PYTHONWARNINGS": "ignore"}
    process = subprocess.Popen([sys.executable, *arguments], cwd=ROOT, env=quiet)
    return process.pid, process.wait


def _kill(process: int, number: int) -> None:
    """Send a process a signal, if it has not ended."""
    with suppress(ProcessLookupError):
        os.kill(process, number)
