"""A command in a fork of a process with its imports is what it would be in one of its own."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bundle.runs.commands import run_python
from bundle.runs.warm import Warm
from scripts.errors import InputError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="demo forks on Linux alone")

PROGRAM = """
import atexit, os, signal, sys
imported = "colorsys" in sys.modules
atexit.register(print, os.getpid(), os.getppid(), imported, __name__, sys.argv[1:])
interrupted = signal.getsignal(signal.SIGINT) is signal.default_int_handler
sys.exit(0 if interrupted and sys.argv[1] == "well" else 3)
"""


def test_commands_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with Warm("colorsys") as warm:
        assert warm.process is None  # it begins with the first command
        run_python("-m", "program", "well", "a b", warm=warm)
        with pytest.raises(InputError, match="the command above ended with exit status 3"):
            run_python("-m", "program", "badly", warm=warm)
    said = capfd.readouterr().out.splitlines()
    assert said[0] == "$ python -m program well 'a b'"
    first, second = (line.split(maxsplit=2) for line in (said[1], said[3]))
    assert first[0] != second[0]
    assert warm.process is not None
    assert first[1] == second[1] == str(warm.process.pid)
    assert first[2] == "True __main__ ['well', 'a b']"
    assert second[2] == "True __main__ ['badly']"
    assert warm.process.poll() == 0


def test_imports_that_fail_are_told(capfd: pytest.CaptureFixture[str]) -> None:
    with Warm("no_such_module") as warm, pytest.raises(InputError, match="imports no_such_module has ended"):
        run_python("-m", "json", warm=warm)
    assert "No module named 'no_such_module'" in capfd.readouterr().err
