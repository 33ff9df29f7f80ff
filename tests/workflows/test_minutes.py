"""A training of some minutes: its length is measured once, and it is the training of the same numbers."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from scripts.compute import length
from scripts.errors import InputError
from scripts.handlers import LastCheckpoint
from tests.commands import TINY, input_error, run

pytestmark = pytest.mark.workflow

#: Steps of five minutes: of 106 minutes, 21 fit beside a start of less than one.
MINUTES, STEPS, COSTS = 106, 21, length.Costs(step=300.0)

measure = length.measure


class PowerCut(BaseException):
    """Stands for what no handler can catch."""


def train(data: Path, output: Path, **overrides: Any) -> None:
    run(
        *("train", "task/phantom_cells"),
        **{**TINY[2], "network_def::dropout": 0.2, **overrides},
        dataset_dir=str(data),
        output_dir=str(output),
    )


def refused(data: Path, output: Path, **overrides: Any) -> str:
    """What a training is refused with."""
    with pytest.raises((InputError, RuntimeError)) as error:
        train(data, output, **overrides)
    return input_error(error.value)


def last(output: Path) -> dict[str, Any]:
    return torch.load(output / "checkpoints/last.pt", weights_only=True)


def curve(output: Path) -> list[tuple[str, ...]]:
    with (output / "learning_curve.csv").open() as file:
        return [(row["epoch"], row["loss"], row["val_ap50"]) for row in csv.DictReader(file)]


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> list[length.Costs]:
    """Steps are timed as ever, and taken for slow ones."""
    found: list[length.Costs] = []

    def tried(*arguments: Any) -> length.Costs:
        found.append(measure(*arguments))
        return COSTS

    monkeypatch.setattr(length, "measure", tried)
    return found


@pytest.mark.long
def test_minutes_are_the_training_of_the_same_numbers(
    cells: Path, tmp_path: Path, slow: list[length.Costs], monkeypatch: pytest.MonkeyPatch
) -> None:
    timed, by_hand = tmp_path / "timed", tmp_path / "by_hand"
    end = LastCheckpoint._end_epoch

    def end_and_stop(self: LastCheckpoint, trainer: Any) -> None:
        end(self, trainer)
        if trainer.state.epoch == 5:
            raise PowerCut

    with monkeypatch.context() as patch:
        patch.setattr(LastCheckpoint, "_end_epoch", end_and_stop)
        with pytest.raises(PowerCut):
            train(cells, timed, minutes=MINUTES)
    assert 0 < slow[0].step < 60
    assert slow[0].validation > length.PICTURES
    content = json.loads((timed / length.FILE).read_text())
    assert [content[name] for name in ("max_epochs", "steps_per_epoch", "val_interval")] == [STEPS, 1, 4]

    # other minutes are refused; the same ones keep their plan, as do its numbers
    sentence = refused(cells, timed, minutes=50, resume=True)
    assert f"minutes is 50, and the training in {timed} was planned for 106" in sentence
    sentence = refused(cells, timed, max_epochs=30, steps_per_epoch=2, resume=True)
    assert "steps of an epoch was 1 and is 2" in sentence
    train(cells, timed, minutes=MINUTES, resume=True)
    assert len(slow) == 1
    train(cells, by_hand, max_epochs=STEPS, steps_per_epoch=1, val_interval=4)
    assert len(slow) == 1
    found, expected = last(timed), last(by_hand)
    assert found["iteration"] == STEPS
    assert all(torch.equal(found["network"][name], value) for name, value in expected["network"].items())
    assert curve(timed) == curve(by_hand)
    assert found["lr_scheduler"]["_last_lr"] == expected["lr_scheduler"]["_last_lr"] == pytest.approx([0])
    assert not (by_hand / length.FILE).exists()


def test_minutes_are_refused_before_a_step(cells: Path, tmp_path: Path) -> None:
    for ids, sentence in {
        (("minutes", 0.001),): r"minutes is 0.001, and here the start takes",
        (("minutes", 0),): "minutes is 0: use a number above 0",
        (("minutes", 5), ("train::trainer::max_epochs", 3)): "minutes is 5 (train::trainer::max_epochs is 3",
    }.items():
        assert sentence in refused(cells, tmp_path / "out", **dict(ids))
        assert not (tmp_path / "out").exists() or not list((tmp_path / "out").rglob("*.*t"))
