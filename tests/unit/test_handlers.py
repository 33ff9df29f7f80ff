"""Handlers that can be judged without a training."""

import logging
from types import SimpleNamespace

import pytest
import torch
from ignite.engine import Engine
from torch import nn

from scripts import handlers
from scripts.handlers import CasePictures, LearningCurve, ProgressBar, TimeSplit, Validation


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes on only when it is told to."""
    now = [0.0]
    monkeypatch.setattr(handlers, "perf_counter", lambda: now[0])
    return lambda seconds: now.__setitem__(0, now[0] + seconds)


def test_time_is_split_into_waiting_stepping_and_validating(clock, caplog):
    def batches():
        while True:
            clock(2)
            yield 0

    trainer = Engine(lambda engine, batch: clock(5))
    evaluator = Engine(lambda engine, batch: clock(7))
    split = TimeSplit(evaluator)
    split.attach(trainer)
    trainer.add_event_handler("EPOCH_COMPLETED", lambda: evaluator.run([0]))
    trainer.add_event_handler("EPOCH_COMPLETED", lambda: clock(1))
    with caplog.at_level(logging.INFO):
        trainer.run(batches(), max_epochs=3, epoch_length=4)
    assert split.seconds == {"data": 3 * 4 * 2, "step": 3 * 4 * 5, "validation": 3 * 7, "else": 3 * 1}
    assert "3 epochs in 1.8 minutes" in caplog.text
    assert "data 8.0 s (22%), step 20.0 s (56%), validation 7.0 s (19%), else 1.0 s (3%)" in caplog.text


def trained(epochs, interval, cases, path):
    """Epochs that were validated in a training that sets the network's weight to the epoch."""
    network, judged = nn.Linear(1, 1, bias=False), []
    trainer = Engine(lambda engine, batch: nn.init.constant_(network.weight, engine.state.epoch))
    validator = SimpleNamespace(data_loader=range(cases), run=judged.append)
    Validation(validator, interval, network, str(path)).attach(trainer)
    trainer.run([0], max_epochs=epochs)
    return judged


@pytest.mark.parametrize(
    ("epochs", "interval", "judged"), [(6, 3, [3, 6]), (7, 3, [3, 6, 7]), (1, 5, [1]), (2, 1, [1, 2])]
)
def test_validation_every_few_epochs_and_after_the_last(epochs, interval, judged, tmp_path):
    assert trained(epochs, interval, 2, tmp_path / "model.pt") == judged
    assert not (tmp_path / "model.pt").exists()


def test_without_a_case_to_validate_on_the_last_weights_are_kept(tmp_path, caplog):
    assert trained(3, 1, 0, tmp_path / "model.pt") == []
    assert torch.load(tmp_path / "model.pt")["weight"].item() == 3
    assert "no case to validate on" in caplog.text


def test_only_the_first_process_watches(monkeypatch, tmp_path):
    """Curve, bar, pictures and times: the others would write the same files and say the same."""
    evaluator = Engine(lambda engine, batch: None)
    watching = [
        ProgressBar("training", evaluator),
        TimeSplit(evaluator),
        LearningCurve(evaluator, str(tmp_path)),
        CasePictures(str(tmp_path), {"background": 0, "cell": 1}),
    ]
    for first in (True, False):
        monkeypatch.setattr(handlers, "is_first", lambda first=first: first)
        for handler in watching:
            trainer = Engine(lambda engine, batch: None)
            handler.attach(trainer)
            assert bool(trainer._event_handlers) == first
