"""Commands that are killed at chosen moments, each in a process that is forked from one with all imports.

    python -m tests.faults.killing

reads a line of JSON for each run from its standard input and answers with one: how the run ended and in
which phase it was. A moment is an instant in time, or the n-th time that a run is about to open, rename, cut
or remove a file in its output folder or fires an event of its engines; so a kill may fall between any two
writes.
"""

from __future__ import annotations

import atexit
import json
import mmap
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: Seconds after which a run counts as hanging.
PATIENCE = 120.0

#: Bytes for the phase, which the run writes and its parent reads.
_ROOM = 128

#: What Python says of files, by the place of the path among what it says.
_FILES = {"open": 0, "os.rename": 1, "os.truncate": 0, "os.remove": 0, "os.mkdir": 0}


@dataclass(frozen=True)
class Ending:
    """How a run ended.

    Attributes:
        status: exit status, or minus the signal that killed it.
        phase: what it was about to do, as "trainer EPOCH_COMPLETED" or "rename last.pt".
        moments: how many moments it had.
        seconds: how long it took.
        said: the last of what it wrote to stderr.
    """

    status: int
    phase: str
    moments: int
    seconds: float
    said: str


class Killer:
    """A process that has imported everything, and runs commands in children of its own."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "tests.faults.killing"],
            cwd=Path(__file__).parents[2],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(
        self,
        output: Path,
        files: Sequence[str] = (),
        arguments: Sequence[object] = (),
        ids: Mapping[str, Any] | None = None,
        **how: Any,
    ) -> Ending:
        """Run a command.

        Args:
            output: its output folder.
            files: those of `python -m monai.bundle run`, which writes into `output`, or
            arguments: those of `python -m bundle`.
            ids: of the config.
            **how: `moment`, `phase` (the first whose name has this in it) or `seconds` at which a `signal`
                (SIGKILL unless given) is sent.
        """
        if self.process.stdin is None or self.process.stdout is None:
            raise RuntimeError("started without pipes")
        given = {"files": list(files), "arguments": list(map(str, arguments)), "ids": ids or {}}
        self.process.stdin.write(json.dumps({**given, **how, "output": str(output)}) + "\n")
        self.process.stdin.flush()
        return Ending(**json.loads(self.process.stdout.readline()))

    def close(self) -> None:
        """End the process."""
        if self.process.stdin:
            self.process.stdin.close()
        self.process.wait()


class _Watch:
    """Counts the moments of this process, notes the phase, and sends the signal when it is time."""

    def __init__(self, output: str, shared: mmap.mmap, how: dict[str, Any]) -> None:
        self.output, self.shared, self.how = output, shared, how
        self.moments = 0
        self.sent = False

    def audit(self, event: str, arguments: tuple) -> None:
        if event in _FILES:
            path = arguments[_FILES[event]]
            if isinstance(path, str | os.PathLike) and str(path).startswith(self.output):
                self.reach(f"{event.removeprefix('os.')} {_plain(Path(path).name)}")

    def reach(self, phase: str) -> None:
        self.moments += 1
        self.shared[:_ROOM] = f"{self.moments} {phase}".encode()[:_ROOM].ljust(_ROOM)
        wanted = self.how.get("phase")
        due = self.moments == self.how.get("moment") or (wanted and wanted in phase)
        if due and not self.sent:
            self.sent = True
            os.kill(os.getpid(), self.how.get("signal", signal.SIGKILL))


def _plain(name: str) -> str:
    """A file's name without the process and time in it."""
    if name.startswith("events."):
        return "events"
    return "half of " + name.split(".", 2)[2] if name.startswith(".") and name.count(".") > 2 else name


def _carry_out(how: dict[str, Any], watch: _Watch) -> None:
    """The run itself, in the child."""
    import monai.bundle
    from ignite.engine import Engine

    import bundle.__main__

    fire = Engine._fire_event

    def fire_watched(engine: Engine, name: Any, *arguments: Any, **keywords: Any) -> None:
        kind = "trainer" if "Trainer" in type(engine).__name__ else "evaluator"
        watch.reach(f"{kind} {name.name}")
        fire(engine, name, *arguments, **keywords)

    Engine._fire_event = fire_watched  # type: ignore[method-assign]
    sys.addaudithook(watch.audit)
    watch.reach("start")
    if how["arguments"]:
        sys.argv = ["bundle", *how["arguments"]]
        bundle.__main__.main()
    else:
        monai.bundle.run(config_file=how["files"], output_dir=how["output"], **how["ids"])


def _child(how: dict[str, Any], shared: mmap.mmap, log: Path) -> None:
    """Be a process of its own: its output goes to a file, and errors end as in a command."""
    with log.open("wb") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    status = 1
    try:
        _carry_out(how, _Watch(how["output"], shared, how))
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
        if isinstance(error.code, str):
            sys.stderr.write(f"{error.code}\n")
    except BaseException:
        sys.excepthook(*sys.exc_info())
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _run(how: dict[str, Any]) -> Ending:
    """Fork, wait and report."""
    shared = mmap.mmap(-1, _ROOM)
    log = Path(tempfile.gettempdir(), f"killing-{os.getpid()}.log")
    begun = time.monotonic()
    child = os.fork()
    if child == 0:
        _child(how, shared, log)
    limit = how.get("seconds", PATIENCE)
    number = how.get("signal", signal.SIGKILL) if "seconds" in how else signal.SIGKILL
    timer = threading.Timer(limit, os.kill, (child, number))
    timer.start()
    _, status = os.waitpid(child, 0)
    timer.cancel()
    moments, _, phase = shared[:_ROOM].rstrip(b"\0 ").decode(errors="replace").partition(" ")
    said = log.read_text(errors="replace")[-3000:]
    log.unlink()
    return Ending(os.waitstatus_to_exitcode(status), phase, int(moments or 0), time.monotonic() - begun, said)


def _serve() -> None:
    import torch
    from tensorboard.compat.proto import event_pb2, summary_pb2  # noqa: F401
    from tensorboard.summary.writer import record_writer  # noqa: F401

    import scripts.handlers
    import scripts.judging.handlers  # noqa: F401

    torch.set_num_threads(1)
    for line in sys.stdin:
        sys.stdout.write(json.dumps(vars(_run(json.loads(line)))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _serve()
