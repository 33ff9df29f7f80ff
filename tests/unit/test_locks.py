"""One run at a time in a folder; a killed one locks nothing."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.errors import InputError
from scripts.locks import hold, let_go
from tests.commands import ROOT, input_error, written
from tests.commands import run as monai_run

#: Holds a folder, forks as a data worker does, says so, and waits to be killed.
OTHER = """
import os, sys, time
from scripts.locks import hold
hold(sys.argv[1], "training", hold)
if os.fork():
    print("held", flush=True)
time.sleep(60)
"""


class Run:
    """Holds a folder while it lives."""


@pytest.fixture
def run() -> Iterator[Run]:
    yield Run()
    let_go()


@pytest.fixture
def other(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", OTHER, str(tmp_path / "out")],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_a_second_process_is_refused_until_the_first_is_killed(
    other: subprocess.Popen[str], tmp_path: Path, run: Run
) -> None:
    with pytest.raises(InputError) as caught:
        hold(tmp_path / "out", "training", run)
    assert str(caught.value).startswith(
        f"output_dir is {tmp_path / 'out'}, where another training is at work"
    )
    assert f"(process {other.pid} on {os.uname().nodename})" in str(caught.value)
    hold(tmp_path / "out", "evaluation", run)  # another kind of work
    other.kill()  # and not the process that it forked
    other.wait()
    hold(tmp_path / "out", "training", run)
    assert written(tmp_path) == ["out/.evaluation.lock", "out/.training.lock"]


def test_what_was_made_goes_if_it_is_empty(tmp_path: Path) -> None:
    one, other = Run(), Run()
    hold(tmp_path / "a/b", "training", one)
    hold(tmp_path / "a/b", "training", other)  # after it or beside it in one process
    del one
    assert written(tmp_path) == ["a/b/.training.lock"]
    del other
    assert not (tmp_path / "a").exists()
    hold(tmp_path / "a/b", "training", last := Run())
    (tmp_path / "a/b/model.pt").touch()
    del last
    assert written(tmp_path) == ["a/b/model.pt"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path, run: Run) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        InputError, match=r"output_dir is .*file/out, where nothing can be written \(Not a dir"
    ):
        hold(tmp_path / "file/out", "training", run)
    with pytest.raises(InputError, match=r"where nothing can be written \(File name too long\)"):
        hold(tmp_path / ("x" * 260), "training", run)


def test_a_run_is_refused_before_it_reads_anything(other: subprocess.Popen[str], tmp_path: Path) -> None:
    """A training; an evaluation goes on to its data, which are not there."""
    places = {"dataset_dir": str(tmp_path / "none"), "output_dir": str(tmp_path / "out")}
    with pytest.raises(RuntimeError) as caught:
        monai_run("train", **places)
    assert "where another training is at work" in input_error(caught.value)
    with pytest.raises(RuntimeError) as caught:
        monai_run("train", "evaluate", **places, checkpoint="none.pt")
    assert "dataset_dir" in input_error(caught.value)
    assert written(tmp_path) == ["out/.training.lock"]


@pytest.mark.parametrize("there", [False, True], ids=["new", "folder of results"])
def test_a_full_disk_is_told_and_leaves_no_lock(there: bool, tmp_path: Path, run: Run) -> None:
    """A limit of the process stands for the disk."""
    output = tmp_path / "results/out"
    if there:
        output.mkdir(parents=True)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        with pytest.raises(
            InputError, match=r"results/out, where nothing .* \(its disk is full\): make room"
        ):
            hold(output, "training", run)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.rglob("*")) == ([tmp_path / "results", output] if there else [])
    hold(output, "training", run)
    assert written(output) == [".training.lock"]
