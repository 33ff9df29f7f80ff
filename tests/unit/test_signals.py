"""A process that is asked to end says so in one sentence and has the exit status of the signal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import ROOT

#: Says that it is ready and waits, whatever interrupts the waiting.
WAIT = """
import os, signal, sys, time
from scripts.signals import DeferredSignals, end, end_on_signals
def wait():
    print("ready", flush=True)
    while True:
        time.sleep(0.01)
"""


def ended(script: str, *numbers: int) -> tuple[int, list[str]]:
    """Exit status, and lines of stderr, of a script that gets signals, each after it has said something."""
    process = subprocess.Popen(
        [sys.executable, "-c", WAIT + script],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    for number in numbers:
        process.stdout.readline()
        process.send_signal(number)
    _, said = process.communicate(timeout=60)
    return process.returncode, said.splitlines()


@pytest.mark.parametrize(
    ("number", "status", "name"), [(signal.SIGTERM, 143, "SIGTERM"), (signal.SIGINT, 130, "Ctrl-C")]
)
def test_it_ends_at_once_with_its_own_exit_status(number: int, status: int, name: str) -> None:
    script = "end_on_signals()\ntry:\n    wait()\nfinally:\n    print('tidy', file=sys.stderr)"
    sentence = f"ended by {name}: what was not finished is not there"
    assert ended(script, number) == (status, ["tidy", sentence])


def test_what_a_host_has_arranged_is_left_alone() -> None:
    script = "signal.signal(signal.SIGTERM, lambda *_: os._exit(7))\nend_on_signals()\nwait()"
    assert ended(script, signal.SIGTERM) == (7, [])


DEFER = """
end_on_signals()
with DeferredSignals("soon") as signals:
    print("ready", flush=True)
    while not signals.number:
        time.sleep(0.01)
    {then}
"""


def test_a_first_signal_can_wait() -> None:
    status, said = ended(DEFER.format(then="end(signals.number, 'all is kept')"), signal.SIGINT)
    assert (status, said) == (130, ["Ctrl-C: soon", "ended by Ctrl-C: all is kept"])


def test_a_second_one_ends_at_once() -> None:
    status, said = ended(DEFER.format(then="wait()"), signal.SIGTERM, signal.SIGTERM)
    assert status == 143
    assert said == [
        "SIGTERM: soon",
        "ended by SIGTERM: at once, as asked for twice; what was finished before is kept",
    ]


def test_children_end_as_ever() -> None:
    """A worker that is forked inherits the handler: SIGTERM ends it, Ctrl-C is for its parent to decide."""
    script = """
end_on_signals()
child = os.fork()
if child == 0:
    os.kill(os.getpid(), signal.SIGINT)
    wait()
sys.stdin.read(0)
time.sleep(0.3)
os.kill(child, signal.SIGTERM)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=sys.stderr)
"""
    assert ended(script) == (0, [str(-signal.SIGTERM)])


@pytest.mark.parametrize("warm", [False, True])
def test_a_command_of_the_workbench_waits_for_the_one_that_it_runs(warm: bool, tmp_path: Path) -> None:
    """The child writes what it has to; the parent has the exit status of the signal."""
    child = (
        "import signal, sys, time, pathlib\n"
        "def stop(*_):\n    time.sleep(0.5)\n    pathlib.Path(sys.argv[1]).touch()\n    sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, stop)\nprint('ready', flush=True)\ntime.sleep(60)"
    )
    done = tmp_path / "done"
    script = f"from bundle.runs.commands import run_python\nrun_python('-c', {child!r}, {str(done)!r})"
    if warm:
        (tmp_path / "waiting.py").write_text(child)
        script = (
            "from bundle.runs.commands import run_python\nfrom bundle.runs.warm import Warm\n"
            f"with Warm('json') as warm:\n    run_python('-m', 'waiting', {str(done)!r}, warm=warm)"
        )
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(tmp_path)},
    )
    assert process.stdout
    while process.stdout.readline().strip() != "ready":
        pass
    process.terminate()
    _, said = process.communicate(timeout=60)
    assert (process.returncode, done.exists()) == (143, True)
    assert said.splitlines()[-1].startswith("ended by SIGTERM: the command above was ended too")
