"""Numbers for TensorBoard, in one file that grows with its training and goes back with it."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path
from typing import Any

from scripts.files import disk_space_for

#: How the names of TensorBoard's files begin.
PREFIX = "events.out.tfevents"


class Scalars:
    """Writes scalars into a file for TensorBoard, each at once, and cuts the file where a training goes on.

    PyTorch's SummaryWriter begins a file with each start, and what a killed process had written after its
    last checkpoint stands there twice after a resume.

    Args:
        folder: of the file; made with the first scalar.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file: Path | None = None

    def add(self, tag: str, value: float, step: int) -> None:
        """Write one number.

        Raises:
            InputError: the disk is full.
        """
        # half a second, and inference writes no scalars
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        summary = Summary(value=[Summary.Value(tag=tag, simple_value=value)])
        events = [Event(wall_time=time.time(), step=step, summary=summary)]
        if self.file is None:
            name = f"{PREFIX}.{time.time_ns() // 10**9:010d}.{platform.node()}.{os.getpid()}"
            self.file = self.folder / name
            events.insert(0, Event(wall_time=time.time(), file_version="brain.Event:2"))
        with disk_space_for(self.file):
            self.folder.mkdir(parents=True, exist_ok=True)
            with self.file.open("ab") as file:
                for event in events:
                    RecordWriter(file).write(event.SerializeToString())

    def state_dict(self) -> dict[str, Any]:
        """The file and its length; files of an earlier training in its folder are removed."""
        if self.file is None:
            return {"file": None, "size": 0}
        for other in self.folder.glob(f"{PREFIX}.*"):
            if other != self.file:
                other.unlink(missing_ok=True)
        return {"file": self.file.name, "size": self.file.stat().st_size}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on in the file of a checkpoint, as long as it was then."""
        file = self.folder / state["file"] if state["file"] else None
        if file is not None and file.is_file():
            os.truncate(file, min(state["size"], file.stat().st_size))
            self.file = file
