"""Progress in a terminal and in a file."""

from __future__ import annotations

import io
import sys

import pytest

from scripts import progress as module
from scripts.progress import progress


def written(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> str:
    """What a loop of two writes on standard error."""
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: terminal)
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(module, "QUIET_INTERVAL", 0)
    for _ in progress(["a", "b"], "work", unit="case"):
        pass
    return stream.getvalue()


def test_a_file_gets_whole_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    text = written(False, monkeypatch)
    assert "\r" not in text
    lines = text.splitlines()
    assert len(lines) >= 2
    assert all(line.startswith("work: ") for line in lines)
    assert "2/2" in lines[-1]


def test_a_terminal_gets_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    text = written(True, monkeypatch)
    assert text.count("\n") == 1
    assert "\r" in text
