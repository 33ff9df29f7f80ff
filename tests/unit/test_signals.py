"""A process that is asked to end says so in one sentence and has the exit status of the signal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.signals import PATIENCE
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


#: What follows the sentence of a first signal.
MORE = "; another one, 1 s or more after this one, ends it at once"


def ended(script: str, *numbers: int) -> tuple[int, list[str]]:
    """Exit status, and lines of stderr, of a script that gets signals, each once it is ready."""
    process = subprocess.Popen(
        [sys.executable, "-c", WAIT + script],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    for number in numbers:
        while process.stdout.readline().strip() != "ready":
            assert process.poll() is None
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
    assert (status, said) == (130, [f"Ctrl-C: soon{MORE}", "ended by Ctrl-C: all is kept"])


def test_a_second_one_ends_at_once() -> None:
    then = f"time.sleep({1.1 * PATIENCE})\n    wait()"
    status, said = ended(DEFER.format(then=then), signal.SIGTERM, signal.SIGTERM)
    assert status == 143
    assert said == [
        f"SIGTERM: soon{MORE}",
        "ended by SIGTERM: at once, as asked for twice; what was finished before is kept",
    ]


def test_an_echo_is_no_second_one() -> None:
    """GNU timeout sends a signal to the process, then to the group that it is in."""
    then = "os.killpg(0, signal.SIGTERM)\n    time.sleep(0.3)\n    end(signals.number, 'all is kept')"
    script = "os.setpgid(0, 0)\n" + DEFER.format(then=then)
    status, said = ended(script, signal.SIGTERM)
    assert (status, said[1:]) == (143, ["ended by SIGTERM: all is kept"])


def test_an_echo_does_not_disturb_the_end() -> None:
    """What is tidied away at the end is, and the last word comes once."""
    script = """
end_on_signals()
try:
    wait()
finally:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.1)
    print("tidy", file=sys.stderr)
"""
    sentence = "ended by SIGTERM: what was not finished is not there"
    assert ended(script, signal.SIGTERM) == (143, ["tidy", sentence])


def test_what_is_sent_to_the_group_does_not_end_workers_first() -> None:
    """A data worker is needed for the step that is being finished; its parent ends it."""
    script = """
os.setpgid(0, 0)
with DeferredSignals("soon") as signals:
    child = os.fork()
    if child == 0:
        time.sleep(60)
    time.sleep(0.2)
    os.killpg(0, signal.SIGTERM)
    time.sleep(0.2)
    print(os.waitpid(child, os.WNOHANG)[0], file=sys.stderr)
    os.kill(child, signal.SIGTERM)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=sys.stderr)
"""
    status, said = ended(script)
    assert (status, said[1:]) == (0, ["0", str(-signal.SIGTERM)])


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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("group", [False, True], ids=["alone", "group"])
@pytest.mark.parametrize("warm", [False, True], ids=["fresh", "warm"])
def test_a_command_of_the_workbench_waits_for_the_one_that_it_runs(
    warm: bool, group: bool, number: signal.Signals, tmp_path: Path
) -> None:
    """The child writes what it has to, once; the parent has the exit status of the signal."""
    child = """
import pathlib, sys, time
from scripts.signals import DeferredSignals, end
with DeferredSignals("soon") as signals:
    print("ready", flush=True)
    while not signals.number:
        time.sleep(0.01)
    time.sleep(0.3)
    pathlib.Path(sys.argv[1]).touch()
end(signals.number, "all is kept")
"""
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
        env={**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": f"{tmp_path}:{ROOT}"},
        process_group=0,
    )
    assert process.stdout
    while process.stdout.readline().strip() != "ready":
        pass
    process.send_signal(number)
    if group:
        os.killpg(process.pid, number)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, done.exists()) == (128 + number, True), said
    assert said.splitlines()[-1].endswith(
        ": the command above was ended too; the same command again goes on where it can"
    )


def test_a_signal_before_the_command_has_begun_is_handed_on() -> None:
    """As while a warm process imports MONAI."""
    script = """
import time
from bundle.runs.commands import run_python
class Slow:
    def start(self, *arguments):
        print("ready", flush=True)
        time.sleep(0.3)
        self.child = os.fork()
        if self.child == 0:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            time.sleep(60)
        time.sleep(0.3)
        return self.child
    def wait(self):
        return os.waitstatus_to_exitcode(os.waitpid(self.child, 0)[1])
run_python("-m", "json", warm=Slow())
"""
    status, said = ended(script, signal.SIGTERM)
    assert status == 143, said
