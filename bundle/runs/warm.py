"""Commands in forks of a process that has imported MONAI, which takes longer than many a small run.

The process reads commands from a socket, one JSON list of a module and its arguments a line. It forks for
each, tells the number of the child, waits for it and tells its exit status. A child is what
`python -m MODULE ARGUMENTS` would be.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import socket
import subprocess
import sys
from contextlib import AbstractContextManager, nullcontext, suppress
from importlib import import_module
from pathlib import Path
from types import TracebackType

from scripts.errors import InputError
from scripts.signals import ASKED

ROOT = Path(__file__).resolve().parents[2]


class Warm:
    """The other end of such a process, as a context; the process begins with the first command.

    Args:
        module: that the process imports.

    Attributes:
        process: the process, or None.
    """

    def __init__(self, module: str = "monai.bundle") -> None:
        self.module = module
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Warm:
        return self

    def _begin(self) -> None:
        ours, theirs = socket.socketpair()
        self.process = subprocess.Popen(
            [sys.executable, "-m", __name__, self.module, str(theirs.fileno())],
            cwd=ROOT,
            env={**os.environ, "PYTHONWARNINGS": "ignore"},
            pass_fds=[theirs.fileno()],
        )
        theirs.close()
        self.lines = ours.makefile("rw", encoding="utf-8")
        ours.close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process is None:
            return
        with suppress(OSError):
            self.lines.close()  # which ends the process
        self.process.wait()

    def start(self, module: str, *arguments: str) -> int:
        """Begin a command, and give the number of its process."""
        if self.process is None:
            self._begin()
        with suppress(ConnectionError):  # the next line tells
            self.lines.write(json.dumps([module, *arguments]) + "\n")
            self.lines.flush()
        return self._number()

    def wait(self) -> int:
        """The exit status of the command, or the signal that ended it as a negative number."""
        return self._number()

    def _number(self) -> int:
        line = ""
        with suppress(ConnectionError):
            line = self.lines.readline()
        if not line:
            raise InputError(f"the process that imports {self.module} has ended; its last lines say why")
        return int(line)


def imports_once() -> AbstractContextManager[Warm | None]:
    """What runs the commands of a context: such a process on Linux, elsewhere Python anew for each.

    Elsewhere a fork of a process that has imported PyTorch is not to be relied on.
    """
    return Warm() if sys.platform == "linux" else nullcontext()


def serve(module: str, connection: socket.socket) -> list[str]:
    """Fork for each command; come back in each child, with its module and arguments."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in ASKED}  # it is for the command
    import_module(module)
    lines = connection.makefile("rw", encoding="utf-8")
    for line in iter(lines.readline, ""):
        signal.pthread_sigmask(signal.SIG_BLOCK, ASKED)  # what comes before a child can take it waits
        child = os.fork()
        if not child:
            for number, handler in before.items():
                signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ASKED)
        if not child:
            lines.close()
            connection.close()
            return json.loads(line)
        lines.write(f"{child}\n")
        lines.flush()
        lines.write(f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n")
        lines.flush()
    sys.exit()


if __name__ == "__main__":
    sys.argv = serve(sys.argv[1], socket.socket(fileno=int(sys.argv[2])))
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
