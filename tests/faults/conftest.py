"""What the tier of faults shares, and the report that it writes."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bundle.data.phantom import Kind, write_phantom
from tests.faults.killing import Killer

REPORT = pytest.StashKey[list[str]]()
STARTED = pytest.StashKey[float]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[REPORT], config.stash[STARTED] = [], time.monotonic()


@pytest.fixture(scope="session")
def report(request: pytest.FixtureRequest) -> list[str]:
    """Lines of the report."""
    return request.config.stash[REPORT]


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


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Write the report where FAULTS_REPORT says, if everything passed."""
    lines, path = session.config.stash[REPORT], os.environ.get("FAULTS_REPORT")
    if not path or not lines or exitstatus:
        return
    minutes = (time.monotonic() - session.config.stash[STARTED]) / 60
    head = [
        "# Faults: the last report",
        "",
        "Written by `make test-faults`; what happens then is in [reference.md](reference.md#faults).",
        "",
        f"- {datetime.date.today()}, {minutes:.0f} minutes, {platform.system()} {platform.machine()}, "
        f"{os.cpu_count()} processors, one thread, seed {os.environ.get('FAULTS_SEED', '0')}",
        "",
    ]
    Path(path).write_text("\n".join([*head, *lines]) + "\n", encoding="utf-8")
