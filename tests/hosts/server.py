"""A MONAI Label server on loopback, and calls to it by its own client."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.commands import ROOT

#: Python of the environment that `make test-hosts` builds.
PYTHON = ROOT / ".venv-hosts" / "bin" / "python"

CLIENT = Path(__file__).with_name("client.py")

#: Seconds that the server may take to start, a call or task to end, and a line to reach the log.
STARTS, ENDS, LOGS = 180, 600, 60

#: Lines of the log that an error shows.
TAIL = 25


class CallError(Exception):
    """A call failed; the message is one sentence."""


def call(server: str, folder: Path, method: str, **arguments: Any) -> Any:
    """A call by MONAILabelClient, see client.py.

    Raises:
        CallError: it failed.
    """
    command = [str(PYTHON), str(CLIENT), server, str(folder), method]
    given = json.dumps(arguments)
    done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=ENDS, check=False)
    if done.returncode:
        raise CallError(done.stderr.strip())
    return json.loads(done.stdout)


def free_port() -> int:
    """A port of loopback on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Server:
    """A server that runs.

    Attributes:
        url: where it listens.
        app: its app, which holds the bundles below model.
        studies: the folder of its images, or the DICOMweb root of an archive.
        log: what it writes.
        folder: where results go.
    """

    url: str
    app: Path
    studies: Path | str
    log: Path
    folder: Path

    def call(self, method: str, **arguments: Any) -> Any:
        """A call that must succeed; the test fails with a sentence and the end of the log."""
        try:
            return call(self.url, self.folder, method, **arguments)
        except CallError as error:
            pytest.fail(f"{error}\n{self.tail()}", pytrace=False)

    def infer(self, model: str, image: str = "", file: Path | None = None) -> Path:
        """The result of a model for an image of the server, or for a file that is sent."""
        sent = None if file is None else str(file)
        result, _ = self.call("infer", model=model, image_id=image, params={}, file=sent)
        return Path(result)

    def wait(self, method: str) -> dict[str, Any]:
        """Where a task stands at its end: DONE, or the test fails with the end of the log."""
        until = time.monotonic() + ENDS
        while time.monotonic() < until:
            task = self.call(method)
            if task["status"] not in ("SUBMITTED", "RUNNING"):
                break
            time.sleep(1)
        if task["status"] != "DONE":
            pytest.fail(f"{method} of {self.url} is {task['status']}\n{self.tail()}", pytrace=False)
        return task

    def weights(self, model: str) -> Path:
        """The file of weights that it serves."""
        return self.app / "model" / model / "models" / "model.pt"

    def logs(self, words: str) -> bool:
        """Whether it logs these words: it may answer before it writes."""
        until = time.monotonic() + LOGS
        while not (found := words in self._log()) and time.monotonic() < until:
            time.sleep(1)
        return found

    def _log(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def tail(self) -> str:
        """The end of its log."""
        lines = self._log().splitlines()
        return "\n".join([f"the end of {self.log}:", *lines[-TAIL:]])


@contextmanager
def serving(
    bundles: Sequence[Path], studies: Path | str, folder: Path, main: Path | None = None
) -> Iterator[Server]:
    """Start `monailabel start_server` with copies of bundles, and stop it at the end.

    Args:
        bundles: folders of packaged bundles.
        studies: folder of the images, into which the server writes, or the DICOMweb root of an archive.
        folder: an empty one, for app, log and results.
        main: an app that derives from the one of MONAI Label, which it imports as `monaibundle`.
    """
    app = folder / "app"
    shutil.copytree(PYTHON.parents[1] / "monailabel/sample-apps/monaibundle", app)
    if main is not None:
        (app / "main.py").rename(app / "monaibundle.py")
        shutil.copyfile(main, app / "main.py")
    for bundle in bundles:
        shutil.copytree(bundle, app / "model" / bundle.name)
    (folder / "results").mkdir()
    port = free_port()
    server = Server(f"http://127.0.0.1:{port}", app, studies, folder / "server.log", folder / "results")
    names = ",".join(bundle.name for bundle in bundles)
    settings = {"models": names, "epistemic_model": names, "zoo_source": "ngc", "sam2": "false"}
    command = [str(PYTHON), "-m", "monailabel.main", "start_server", "--app", str(app)]
    command += ["--studies", str(studies), "--host", "127.0.0.1", "--port", str(port)]
    command += [part for key, value in settings.items() for part in ("--conf", key, value)]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(app),  # as its launcher sets it, but never to this repository and its scripts
        "MONAI_LABEL_AUTO_UPDATE_SCORING": "false",  # scoring starts when it is asked for
        "MONAI_LABEL_DICOMWEB_SEARCH_FILTER": '{"Modality": "MR"}',
        "MONAI_LABEL_DICOMWEB_CACHE_PATH": str(folder / "cache"),
        "PATH": f"{PYTHON.parent}:{os.environ['PATH']}",  # where it looks for dcmqi, with an archive
    }
    with server.log.open("w") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        wait_until_up(server, process)
        yield server
    finally:
        process.terminate()
        process.wait(timeout=60)


def wait_until_up(server: Server, process: subprocess.Popen[bytes]) -> None:
    """Wait until a server answers; the test fails with a sentence and the end of the log if it does not."""
    until = time.monotonic() + STARTS
    while process.poll() is None and time.monotonic() < until:
        try:
            call(server.url, server.folder, "info")
        except CallError:
            time.sleep(1)
        else:
            return
    status = process.poll()
    ended = f"does not answer within {STARTS} s" if status is None else f"ended with status {status}"
    pytest.fail(f"MONAI Label at {server.url} {ended}\n{server.tail()}", pytrace=False)
