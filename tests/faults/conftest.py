"""What the tier of faults shares, and the report that it writes."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bundle.data.phantom import Kind, write_phantom
from tests.faults.killing import Killer


class Report:
    """Collects what the tests report, in this process or in those that run tests for it."""

    def __init__(self) -> None:
        self.lines: dict[str, list[str]] = {}
        self.started = time.monotonic()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call":
            self.lines[report.nodeid] = [str(line) for name, line in report.user_properties if name == "line"]

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """Write the report where FAULTS_REPORT says, if everything passed."""
        path = os.environ.get("FAULTS_REPORT")
        lines = [line for test in sorted(self.lines) for line in self.lines[test]]
        if path and lines and not exitstatus:
            Path(path).write_text("\n".join([*self._head(), *lines]) + "\n", encoding="utf-8")

    def _head(self) -> list[str]:
        minutes = (time.monotonic() - self.started) / 60
        return [
            "# Faults: the last report",
            "",
            "Written by `make test-faults`; what happens then is in [reference.md](reference.md#faults).",
            "",
            f"- {datetime.date.today()}, {minutes:.0f} minutes, {platform.system()} {platform.machine()}, "
            f"{os.cpu_count()} processors, one thread a training, seed {os.environ.get('FAULTS_SEED', '0')}",
            "",
        ]


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # of pytest-xdist: runs tests for another process
        config.pluginmanager.register(Report())


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Adds lines to the report."""
    return lambda *lines: request.node.user_properties.extend(("line", line) for line in lines)


@pytest.fixture(scope="session")
def seed() -> int:
    """What the moments are drawn with: FAULTS_SEED, or 0."""
    return int(os.environ.get("FAULTS_SEED", "0"))


@pytest.fixture(scope="session")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pictures: three to train, one to validate on, two held out."""
    folder = tmp_path_factory.mktemp("data") / "cells"
    write_phantom(Kind.CELLS, folder, cases=6, size=(64, 96))
    return folder


@pytest.fixture(scope="session")
def runs() -> Iterator[Killer]:
    killer = Killer()
    yield killer
    killer.close()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 8 MB."""
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", tmp_path], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no disk can be mounted here: {mounted.stderr.decode().strip()}")
    yield tmp_path
    subprocess.run(["umount", tmp_path], check=True)
