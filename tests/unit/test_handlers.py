"""Handlers that can be judged without a training."""

import logging

import pytest
from ignite.engine import Engine

from scripts import handlers
from scripts.handlers import TimeSplit


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
