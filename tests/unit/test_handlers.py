"""Handlers by themselves, in engines that train next to nothing."""

import contextlib
import csv
import functools
import logging
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from torch import nn

from scripts import handlers
from scripts.errors import InputError
from scripts.handlers import (
    EarlyStopping,
    InitialWeights,
    LastCheckpoint,
    LearningCurve,
    ProgressBar,
    Review,
    StepSeeds,
    TimeSplit,
    Validation,
)
from scripts.recipe import for_resume
from scripts.transforms.versions import LOOK, LOWEST, TOLD


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


def trained(epochs, interval, cases, kept):
    """Epochs that were validated in a training that sets the network's weight to the epoch."""
    network, judged = nn.Linear(1, 1, bias=False), []
    trainer = Engine(lambda engine, batch: nn.init.constant_(network.weight, engine.state.epoch))
    validator = SimpleNamespace(data_loader=range(cases), run=judged.append)
    weights = SimpleNamespace(path="model.pt", write=lambda: kept.append(network.weight.item()))
    Validation(validator, interval, weights).attach(trainer)
    trainer.run([0], max_epochs=epochs)
    return judged


@pytest.mark.parametrize(
    ("epochs", "interval", "judged"), [(6, 3, [3, 6]), (7, 3, [3, 6, 7]), (1, 5, [1]), (2, 1, [1, 2])]
)
def test_validation_every_few_epochs_and_after_the_last(epochs, interval, judged):
    kept = []
    assert trained(epochs, interval, 2, kept) == judged
    assert kept == []


def test_without_a_case_to_validate_on_the_last_weights_are_kept(caplog):
    kept = []
    assert trained(3, 1, 0, kept) == []
    assert kept == [3]
    assert "no case to validate on" in caplog.text


def test_only_the_first_process_watches(monkeypatch, tmp_path):
    """Curve, bar, pictures and times: the others would write the same files and say the same."""
    evaluator = Engine(lambda engine, batch: None)
    watching = [
        ProgressBar("training", evaluator),
        TimeSplit(evaluator),
        LearningCurve(evaluator, str(tmp_path)),
    ]
    for first in (True, False):
        monkeypatch.setattr(handlers, "is_first", lambda first=first: first)
        for handler in watching:
            trainer = Engine(lambda engine, batch: None)
            handler.attach(trainer)
            assert bool(trainer._event_handlers) == first


def test_evaluator_runs_without_the_training_that_it_belongs_to(tmp_path, caplog):
    """A config may make a trainer, whose handlers know the evaluator, and run the evaluator alone."""
    trainer, evaluator = Engine(lambda engine, batch: None), Engine(lambda engine, batch: None)
    evaluator.data_loader = []
    split = TimeSplit(evaluator)
    split.attach(trainer)
    Validation(evaluator, 1, SimpleNamespace(path="model.pt")).attach(trainer)
    LearningCurve(evaluator, str(tmp_path)).attach(trainer)
    ProgressBar("training", evaluator).attach(trainer)
    EarlyStopping(evaluator, 1).attach(trainer)
    evaluator.run([0])
    assert not any(split.seconds.values())
    assert not caplog.records
    assert not list(tmp_path.iterdir())


#: As much of a config as makes a training what it is, and of what may change.
CONFIG = {
    "train": {
        "dataset": {"data": "$@split['training']", "seed": "@seed", "cache_rate": 1.0},
        "dataloader": {"batch_size": "@batch_size", "num_workers": 0},
        "loss_function": {"_target_": "scripts.losses.HeadsLoss", "loss": "@loss"},
        "trainer": {"optimizer": "@optimizer", "max_epochs": "@max_epochs", "train_handlers": "@elsewhere"},
        "handlers": ["@elsewhere"],
    },
    "optimizer": {"_target_": "torch.optim.SGD", "lr": "@learning_rate"},
    "loss": {"_target_": "DiceLoss", "sigmoid": True},
    "split": {"_target_": "scripts.data.read_split", "fold": "@fold", "dataset_dir": "@dataset_dir"},
    **{"fold": 0, "seed": 1, "batch_size": 2, "max_epochs": 4, "learning_rate": 0.1, "dataset_dir": "here"},
}


class PowerCut(BaseException):
    """Stands for what no handler can catch."""


class Training:
    """Epochs of three steps of a network with dropout, with all that a checkpoint holds.

    Attributes:
        rates: learning rate of each epoch.
    """

    def __init__(
        self, folder, max_epochs=4, stop=None, optimizer=None, schedule=None, network=None, **changed
    ):
        torch.manual_seed(0)
        self.network = network or nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 1))
        self.optimizer = (optimizer or functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9))(
            self.network.parameters()
        )
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR
        self.schedule = (schedule or functools.partial(cosine, T_max=max_epochs))(self.optimizer)
        self.evaluator = Engine(lambda engine, batch: None)
        self.evaluator.state.best_metric, self.evaluator.state.best_metric_epoch = -1, -1
        self.scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=2)
        self.max_epochs, self.stop = max_epochs, stop
        given = {"cases": {"training": [{"case": "a"}, {"case": "b"}]}}
        config = for_resume(changed.pop("config", CONFIG))
        self.checkpoint = LastCheckpoint(
            str(folder / "last.pt"),
            self.network,
            self.optimizer,
            self.schedule,
            self.evaluator,
            weights=SimpleNamespace(training=config, written=None, path=folder / "model.pt"),
            curve=LearningCurve(self.evaluator, str(folder)),
            **{**given, **changed},
        )
        self.evaluator.state.key_metric_name = "dice"
        self.rates = []

    def run(self):
        trainer = Engine(self.step)
        trainer.scaler = self.scaler
        StepSeeds(1).attach(trainer)
        trainer.add_event_handler(
            "EPOCH_STARTED", lambda: self.rates.append(self.optimizer.param_groups[0]["lr"])
        )
        trainer.add_event_handler("EPOCH_COMPLETED", lambda: self.schedule.step())
        self.checkpoint.attach(trainer)
        trainer.add_event_handler("EPOCH_COMPLETED", self.cut)
        with contextlib.suppress(PowerCut):
            trainer.run(range(3), max_epochs=self.max_epochs)
        return self

    def note_rate(self):
        self.rates.append(self.optimizer.param_groups[0]["lr"])

    def step(self, engine, batch):
        self.optimizer.zero_grad()
        loss = self.network(torch.ones(2, 4) * (batch + 1)).square().mean()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return {"loss": loss}

    def cut(self, engine):
        if engine.state.epoch == self.stop:
            raise PowerCut


def cosine(epoch, epochs, rate=0.1):
    return rate * (1 + math.cos(math.pi * epoch / epochs)) / 2


ONE_CYCLE = functools.partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=0.1, total_steps=9)


@pytest.mark.parametrize("schedule", [None, ONE_CYCLE])
def test_resumed_training_is_the_one_left_alone(schedule, tmp_path):
    """Weights, momentum, dropout, the scale of the loss and a schedule that changes the momentum too."""
    alone = Training(tmp_path / "alone", schedule=schedule).run()
    Training(tmp_path, stop=2, schedule=schedule).run()
    resumed = Training(tmp_path, schedule=schedule, resume=True)
    torch.manual_seed(99)
    resumed.run()
    assert resumed.rates == alone.rates[2:]
    assert resumed.optimizer.param_groups[0]["momentum"] == alone.optimizer.param_groups[0]["momentum"]
    assert resumed.scaler.get_scale() == alone.scaler.get_scale() != 8
    for found, expected in zip(resumed.network.parameters(), alone.network.parameters(), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize(("epochs", "rate"), [(8, 0.1), (3, 0.1), (4, 0.5)])
def test_schedule_follows_what_is_asked_for(epochs, rate, tmp_path):
    Training(tmp_path, stop=2).run()
    optimizer = functools.partial(torch.optim.SGD, lr=rate, momentum=0.9)
    resumed = Training(tmp_path, epochs, optimizer=optimizer, resume=True).run()
    assert resumed.rates == pytest.approx([cosine(epoch, epochs, rate) for epoch in range(2, epochs)])


def test_finished_training_goes_on_without_a_second_rise(tmp_path):
    Training(tmp_path).run()
    rates = Training(tmp_path, 8, resume=True).run().rates
    assert rates == pytest.approx([cosine(epoch, 8) for epoch in range(4, 8)])
    assert rates == sorted(rates, reverse=True)


def test_schedule_by_the_scores_goes_on_where_it_was(tmp_path):
    class NeverBetter(torch.optim.lr_scheduler.ReduceLROnPlateau):
        def step(self):
            super().step(1.0)  # a tenth after every epoch but the first

    schedule = functools.partial(NeverBetter, patience=0)
    Training(tmp_path, stop=2, schedule=schedule).run()
    assert Training(tmp_path, schedule=schedule, resume=True).run().rates == pytest.approx([0.01, 0.001])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"config": {**CONFIG, "fold": 1}}, r"another training \(fold was 0 and is 1\); resume with"),
        (
            {"config": {**CONFIG, "seed": 2, "batch_size": 3}},
            "seed was 1 and is 2; batch_size was 2 and is 3",
        ),
        (
            {"config": {**CONFIG, "loss": {"_target_": "DiceLoss", "sigmoid": False}}},
            "loss::sigmoid was True and is False",
        ),
        ({"config": {**CONFIG, "loss": {"_target_": "FocalLoss"}}}, "loss was DiceLoss and is FocalLoss"),
        (
            {"cases": {"training": [{"case": "a"}, {"case": "c"}]}},
            r"data of training was 2 cases \(\w{8}\) and is",
        ),
        ({"network": nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))}, "checkpoint of another network"),
        ({"max_epochs": 1}, "max_epochs is 1, and .* has 2 epochs behind it"),
    ],
)
def test_another_training_is_not_gone_on_with(changed, message, tmp_path):
    Training(tmp_path, stop=2).run()
    before = (tmp_path / "last.pt").read_bytes()
    with pytest.raises(InputError, match=message):
        Training(tmp_path, **changed, resume=True).run()
    assert (tmp_path / "last.pt").read_bytes() == before


@pytest.mark.parametrize(
    "changed", [{"max_epochs": 4, "learning_rate": 0.3, "dataset_dir": "there"}, {"train": None}]
)
def test_what_may_change(changed, tmp_path):
    Training(tmp_path, stop=2).run()
    train = {**CONFIG["train"], "dataloader": {"batch_size": "@batch_size", "num_workers": 3}}
    config = {**CONFIG, **changed, "train": {**train, "handlers": ["@others"]}}
    assert len(Training(tmp_path, config=config, resume=True).run().rates) == 2


@pytest.mark.parametrize("content", [b"123", b"13"])
def test_other_files_of_the_same_cases_are_another_training(content, tmp_path):
    file = tmp_path / "a.png"
    cases = {"training": [{"case": "a", "image": str(file)}]}
    file.write_bytes(b"12")
    Training(tmp_path, stop=2, cases=cases).run()
    file.write_bytes(content)
    with pytest.raises(InputError, match="data of training"):
        Training(tmp_path, cases=cases, resume=True).run()


def test_weights_alone_are_no_training(tmp_path):
    torch.save(Training(tmp_path).network.state_dict(), tmp_path / "last.pt")
    with pytest.raises(InputError, match="holds no training that could go on"):
        Training(tmp_path, resume=True).run()


def test_nothing_to_resume_is_said(tmp_path, caplog):
    """A first run with --resume True is nothing to warn of; a training without its checkpoint is."""
    assert len(Training(tmp_path, resume=True).run().rates) == 4
    assert "nothing to resume" not in caplog.text
    (tmp_path / "last.pt").rename(tmp_path / "model.pt")
    assert len(Training(tmp_path, resume=True).run().rates) == 4
    assert f"nothing to resume in {tmp_path / 'last.pt'}, beside weights of an earlier tr" in caplog.text


def test_steps_are_seeded_by_seed_step_and_process(monkeypatch):
    def drawn(seed, rank=0):
        monkeypatch.setattr(handlers, "rank_and_size", lambda: (rank, 2))
        numbers = []
        trainer = Engine(lambda engine, batch: numbers.append((torch.rand(1).item(), np.random.rand())))
        StepSeeds(seed).attach(trainer)
        trainer.run(range(3), max_epochs=2)
        return numbers

    first = drawn(0)
    torch.rand(7)
    assert drawn(0) == first
    assert len({*first, *drawn(1), *drawn(0, rank=1)}) == 3 * 6


def test_number_of_processes_belongs_to_a_training(tmp_path, monkeypatch):
    Training(tmp_path, stop=2).run()
    monkeypatch.setattr(handlers, "rank_and_size", lambda: (0, 2))
    with pytest.raises(InputError, match="number of processes was 1 and is 2"):
        Training(tmp_path, resume=True).run()


def initial(path, network):
    """Run a training of no steps that begins with the weights of a file."""
    trainer = Engine(lambda engine, batch: None)
    InitialWeights(str(path), network).attach(trainer)
    trainer.run([0], max_epochs=1)


def test_initial_weights_are_taken_as_far_as_they_fit(tmp_path, caplog):
    other = nn.ModuleDict({"body": nn.Linear(3, 2), "top": nn.Linear(2, 1), "extra": nn.Linear(1, 1)})
    torch.save(other.state_dict(), tmp_path / "model.pt")
    network = nn.ModuleDict({"body": nn.Linear(3, 2), "top": nn.Linear(2, 5)})
    drawn = network["top"].weight.detach().clone()
    with caplog.at_level(logging.INFO):
        initial(tmp_path / "model.pt", network)
    assert torch.equal(network["body"].weight, other["body"].weight)
    assert torch.equal(network["top"].weight, drawn)
    assert (
        "2 of 4; drawn anew: top.weight ([1, 2] in the file, [5, 2] in the network), top.bias" in caplog.text
    )
    assert "in the file alone: extra.weight, extra.bias" in caplog.text


def test_initial_weights_of_another_network_are_refused(tmp_path):
    torch.save(nn.Linear(3, 2).state_dict(), tmp_path / "model.pt")
    network = nn.Linear(4, 7)
    with pytest.raises(InputError, match=r"of which no weight fits the network; the first: weight"):
        initial(tmp_path / "model.pt", network)
    with pytest.raises(InputError, match=r"initial_weights is .*none\.pt, which is not there"):
        initial(tmp_path / "none.pt", network)


def test_what_needs_a_look_comes_first_in_the_review(tmp_path):
    told = {"a<": ("", 0.8), "b": ("low", 0.5), "c": ("unlike", 0.9), "d": ("", 0.7)}

    def step(engine, name):
        engine.state.batch = [{"case": name}]
        look, lowest = told[name]
        return [{TOLD: {LOOK: look, LOWEST: lowest}}]

    engine = Engine(step)
    Review(tmp_path).attach(engine)
    engine.run(list(told), max_epochs=1)
    with (tmp_path / "review.csv").open(newline="") as file:
        assert [row["case"] for row in csv.DictReader(file)] == ["c", "b", "d", "a_"]  # as its files
