"""Minutes as steps, steps as epochs, and a trial that leaves no trace."""

from __future__ import annotations

import json
import random
import re
import types

import numpy as np
import pytest
import torch
from monai.engines import default_prepare_batch
from torch import nn

from scripts.compute import length
from scripts.compute.length import (
    FEWEST,
    FILE,
    MOST,
    PICTURES,
    VALIDATING,
    VALIDATIONS,
    WARM,
    Costs,
    Length,
    least,
    measure,
    plan,
    read_plan,
    whole_epochs,
)
from scripts.errors import InputError

#: Seconds by the clock of these tests.
LOAD, DRAW, STEP, CASE = 3.0, 0.5, 1.0, 2.0


def test_epochs_make_as_many_steps_as_fit() -> None:
    for steps in (*range(1, 1200), 4999, 123_457):
        epochs, length = whole_epochs(steps)
        assert min(FEWEST, steps) <= epochs <= MOST
        lost = steps - epochs * length
        assert 0 <= lost <= steps / 60
        assert lost <= steps / 150 or steps < 1000


@pytest.mark.parametrize("seconds", [30.0, 61.5, 600.0, 7200.0])
@pytest.mark.parametrize(
    "costs",
    [
        Costs(0.01),
        Costs(0.5, 0.02, 1.0),
        Costs(1.0, 0.1, 5.0, 0.3, 12, 3),
        Costs(0.2, 0.1, 25.0, 2.0, 1000, 2),
        Costs(1.4, 0.05, 0.5),
    ],
)
def test_a_plan_fills_its_time_and_not_more(seconds: float, costs: Costs) -> None:
    found = plan(seconds, costs)
    if found is None:
        assert seconds < least(costs)
        return
    epochs, steps = found.max_epochs, found.steps_per_epoch
    validations = -(-epochs // found.val_interval)
    assert FEWEST <= epochs <= MOST
    assert 1 <= validations <= VALIDATIONS
    assert validations == 1 or validations * costs.validation <= VALIDATING * seconds
    spent = costs.seconds(epochs, steps, validations)
    assert spent <= seconds
    # what is left has no room for an epoch more of everything
    affordable = max(min(VALIDATING * seconds // costs.validation, VALIDATIONS), 1) if costs.validation else 6
    idle = (affordable - validations) * costs.validation + MOST * costs.epoch + (2 + costs.loads * costs.load)
    assert seconds - spent <= idle + seconds / 60 + 2 * costs.step


def test_the_least_is_enough() -> None:
    costs = Costs(1.0, 0.1, 5.0, 0.3, 12, 3)
    assert least(costs) == pytest.approx(FEWEST * 1.1 + 5 + 12 * 0.3)
    assert plan(least(costs), costs) is not None
    assert plan(least(costs) - 0.01, costs) is None


class Clock:
    """A clock that goes on where it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Cases:
    """Images and labels that take their time."""

    def __init__(self, clock: Clock, count: int) -> None:
        self.clock, self.count, self.cache_num = clock, count, count
        self.held: set[int] = set()

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        self.clock.now += DRAW + (LOAD if index % self.count not in self.held else 0)
        self.held.add(index % self.count)
        torch.rand(3), np.random.rand(), random.random()  # as a transform without a state of its own
        return {"image": torch.rand(1, 8, 8), "label": torch.ones(1, 8, 8)}


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """The parts of a training by name, and the clock that they move."""
    clock = Clock()
    monkeypatch.setattr(length, "perf_counter", clock)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Dropout(0.5))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)

    def infer(inputs: torch.Tensor, network: nn.Module) -> torch.Tensor:
        clock.now += CASE
        return network(inputs)

    def loss(found: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        clock.now += STEP
        return (found - label).square().mean()

    parts = {
        **{"network": network, "optimizer": optimizer, "device": torch.device("cpu"), "seed": 0},
        **{"train::dataset": Cases(clock, 40), "validate::dataset": Cases(clock, 6)},
        **{"train::dataloader::batch_size": 2, "train::dataloader::num_workers": 0},
        **{"train::loss_function": loss, "prepare_batch": default_prepare_batch},
        **{"train::inferer": lambda inputs, network: network(inputs), "train::trainer::amp": False},
        **{"validate::inferer": infer, "validate::postprocessing": None},
    }
    parser = types.SimpleNamespace(get_parsed_content=parts.__getitem__)
    monkeypatch.setattr(length, "running", lambda kind: parser)
    return types.SimpleNamespace(parser=parser, parts=parts, clock=clock)


def state(network: nn.Module) -> list[torch.Tensor]:
    return [tensor.detach().clone() for tensor in (*network.parameters(), *network.buffers())]


def test_what_a_training_takes_is_measured(training, tmp_path) -> None:
    found = measure(training.parser, 250.0, tmp_path)  # of which the trial takes 10
    assert found.step == pytest.approx(2 * DRAW + STEP)
    assert found.load == pytest.approx(LOAD)
    steps = WARM + 6  # of 2 seconds each
    assert len(training.parts["train::dataset"].held) == 2 * steps
    assert found.cases == 40 - 2 * steps + 6 - 3
    assert found.validation == pytest.approx(6 * (DRAW + CASE) + PICTURES)
    assert found.loads == 3
    assert not list(tmp_path.iterdir())  # of the checkpoint that was timed


def test_workers_hide_what_they_can(training, tmp_path) -> None:
    training.parts["train::dataloader::num_workers"] = 2
    assert measure(training.parser, 250.0, tmp_path).step == pytest.approx(STEP)
    training.parts["train::dataloader::batch_size"] = 8
    assert measure(training.parser, 250.0, tmp_path).step == pytest.approx(8 * DRAW / 2)


def test_nothing_is_validated_without_a_case(training, tmp_path) -> None:
    training.parts["validate::dataset"] = Cases(training.clock, 0)
    assert measure(training.parser, 250.0, tmp_path).validation == 0


def test_a_trial_leaves_no_trace(training, tmp_path) -> None:
    network, optimizer = training.parts["network"], training.parts["optimizer"]
    before, settings = state(network), [dict(group) for group in optimizer.param_groups]
    drawn = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    tried: list[torch.Tensor] = []
    training.parts["train::loss_function"] = lambda found, label: (
        tried.extend(state(network)) or (found - label).square().mean()
    )
    measure(training.parser, 60.0, tmp_path)
    assert not all(
        torch.equal(*pair) for pair in zip(tried[: len(before)], tried[-len(before) :], strict=True)
    )
    assert all(torch.equal(*pair) for pair in zip(before, state(network), strict=True))
    assert not optimizer.state
    assert all(weights.grad is None for weights in network.parameters())
    for group, earlier in zip(optimizer.param_groups, settings, strict=True):
        assert {name: value for name, value in group.items() if name != "params"} == {
            name: value for name, value in earlier.items() if name != "params"
        }
        assert all(one is other for one, other in zip(group["params"], earlier["params"], strict=True))
    assert torch.equal(torch.get_rng_state(), drawn[0])
    assert np.array_equal(np.random.get_state()[1], drawn[1])
    assert random.getstate() == drawn[2]
    assert network.training


def test_without_minutes_it_is_what_the_config_says(tmp_path) -> None:
    found = Length(None, 40, None, 5, str(tmp_path))
    assert (found.max_epochs, found.steps_per_epoch, found.val_interval) == (40, None, 5)
    assert not list(tmp_path.iterdir())


def test_minutes_win_and_are_written_down(training, tmp_path, caplog) -> None:
    with caplog.at_level("INFO"):
        found = Length(10, 40, None, 5, str(tmp_path / "out"))
    content = json.loads((tmp_path / "out" / FILE).read_text())
    assert read_plan(tmp_path / "out" / FILE).steps == content["steps"]
    assert content["steps"] == found.max_epochs * found.steps_per_epoch
    assert content["minutes"] == 10
    assert content["seconds_a_step"] == pytest.approx(2 * DRAW + STEP)
    assert {"machine", "version", "pytorch_version", "monai_version"} <= content.keys()
    validations = -(-found.max_epochs // found.val_interval)
    start = content["measured"].pop("start")
    spent = Costs(**content["measured"]).seconds(found.max_epochs, found.steps_per_epoch, validations)
    assert 0.95 * 600 < start + spent <= 600
    said = [record.getMessage() for record in caplog.records if record.name == length.__name__]
    assert re.search(
        r"minutes: 10; a step takes 2 s .*: \d+ steps in \d+ epochs of \d+, .* until about", said[0]
    )
    assert "max_epochs 40, steps_per_epoch None and val_interval 5 of the config have no effect" in said[1]


def test_too_few_minutes_are_refused_with_enough(training, tmp_path) -> None:
    with pytest.raises(
        InputError, match=r"minutes is 0\.001, and .* a step 2 s .*: give ([\d.]+) or more"
    ) as said:
        Length(0.001, 40, None, 5, str(tmp_path))
    assert not list(tmp_path.iterdir())
    enough = float(re.search(r"give ([\d.]+) or", str(said.value))[1])
    for data in ("train::dataset", "validate::dataset"):
        training.parts[data].held.clear()
    assert Length(enough, 40, None, 5, str(tmp_path)).max_epochs >= FEWEST


def test_what_goes_on_keeps_its_plan(training, tmp_path, monkeypatch) -> None:
    first = Length(10, 40, None, 5, str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.pt").touch()
    monkeypatch.setattr(length, "measure", lambda *of: pytest.fail("measured again"))
    again = Length(10, 7, 3, 1, str(tmp_path), resume=True)
    assert vars(again) == vars(first)
    with pytest.raises(
        InputError,
        match=rf"minutes is 20, and .* was planned for 10 .*--minutes 10.*--max_epochs {first.max_epochs} "
        rf"--steps_per_epoch {first.steps_per_epoch} --val_interval {first.val_interval} with more epochs",
    ):
        Length(20, 40, None, 5, str(tmp_path), resume=True)
    content = json.loads((tmp_path / FILE).read_text())
    (tmp_path / FILE).write_text(json.dumps({**content, "max_epochs": "many"}))
    with pytest.raises(InputError, match=f"{FILE} has no whole numbers for max_epochs"):
        Length(10, 40, None, 5, str(tmp_path), resume=True)
    (tmp_path / FILE).unlink()
    with pytest.raises(InputError, match=f"minutes is 10, and there is no .*{FILE} .*: leave minutes out"):
        Length(10, 40, None, 5, str(tmp_path), resume=True)
