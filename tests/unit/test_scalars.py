"""TensorBoard's file: what stands in it, and how it goes back with its training."""

from __future__ import annotations

from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from scripts.scalars import Scalars


def read(folder: Path) -> list[tuple[int, float]]:
    """Steps and values of "loss", as TensorBoard shows them."""
    events = EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars("loss")]


def test_tensorboard_reads_what_was_added(tmp_path: Path) -> None:
    scalars = Scalars(tmp_path / "new")
    for step in range(3):
        scalars.add("loss", step / 4, step)
    assert read(tmp_path / "new") == [(0, 0.0), (1, 0.25), (2, 0.5)]
    assert len(list((tmp_path / "new").iterdir())) == 1


def test_a_training_that_goes_on_writes_nothing_twice(tmp_path: Path) -> None:
    scalars = Scalars(tmp_path)
    scalars.add("loss", 1.0, 1)
    state = scalars.state_dict()
    scalars.add("loss", 2.0, 2)  # lost: the process was killed before the next checkpoint
    (file,) = tmp_path.iterdir()
    with file.open("ab") as opened:
        opened.write(b"half of a")
    resumed = Scalars(tmp_path)
    resumed.load_state_dict(state)
    resumed.add("loss", 3.0, 2)
    assert read(tmp_path) == [(1, 1.0), (2, 3.0)]
    assert list(tmp_path.iterdir()) == [file]


def test_an_earlier_training_is_kept_until_there_is_a_checkpoint(tmp_path: Path) -> None:
    first = Scalars(tmp_path)
    first.add("loss", 1.0, 1)
    state = first.state_dict()
    second = Scalars(tmp_path)
    monkeyed = pytest.MonkeyPatch()
    monkeyed.setattr("os.getpid", lambda: 0)
    second.add("loss", 5.0, 1)
    monkeyed.undo()
    assert len(list(tmp_path.iterdir())) == 2
    second.state_dict()
    assert read(tmp_path) == [(1, 5.0)]
    gone = Scalars(tmp_path)
    gone.load_state_dict(state)  # its file is not there any more
    gone.add("loss", 7.0, 2)
    gone.state_dict()
    assert read(tmp_path) == [(2, 7.0)]
