"""Which memory format a training gets: by trying, from memory, from its checkpoint."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from scripts.compute import memory_formats
from scripts.compute.memory_formats import LOST, choose
from scripts.networks import UNet

SIZE = (2, 1, 16, 16)


def network(**keywords: Any) -> UNet:
    torch.manual_seed(0)
    return UNet(2, 1, 3, [4, 8], dropout=0.5, **keywords)


class Stopwatch:
    """Stands for `_step`: seconds by format, and how often each was asked."""

    def __init__(self, contiguous: float, channels_last: float) -> None:
        self.seconds = {"contiguous": contiguous, "channels_last": channels_last}
        self.steps = dict.fromkeys(self.seconds, 0)

    def __call__(self, tried: nn.Module, batch: torch.Tensor) -> float:
        name = memory_formats.acceleration.memory_format_of(tried)
        self.steps[name] += 1
        return self.seconds[name]


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where choices are remembered."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "unet-bundle" / "memory_formats.json"


@pytest.fixture
def step(monkeypatch: pytest.MonkeyPatch) -> Any:
    def put(*seconds: float) -> Stopwatch:
        watch = Stopwatch(*seconds)
        monkeypatch.setattr(memory_formats, "_step", watch)
        return watch

    return put


@pytest.mark.parametrize(
    ("contiguous", "last", "fastest"),
    [(1.0, 0.9, "channels_last"), (0.9, 1.0, "contiguous"), (1.0, 0.99, "contiguous")],
)
def test_the_faster_format_is_taken_and_told(contiguous, last, fastest, step, caplog):
    step(contiguous, last)
    with caplog.at_level(logging.INFO):
        assert choose(network(), "cpu", SIZE) == fastest
    assert caplog.messages == [
        f"memory_format: {fastest}, as a step takes {contiguous:.3g} s contiguous and {last:.3g} s "
        "channels_last here"
    ]


def test_a_clear_loser_takes_one_step(step):
    watch = step(1.0, LOST + 0.1)
    assert choose(network(), "cpu", SIZE) == "contiguous"
    assert watch.steps == {"contiguous": 2, "channels_last": 1}


def test_slow_steps_are_taken_twice_and_no_more(step, monkeypatch):
    watch = step(10.0, 9.0)
    monkeypatch.setattr(memory_formats, "SECONDS", -1.0)
    assert choose(network(), "cpu", SIZE) == "channels_last"
    assert watch.steps == {"contiguous": 2, "channels_last": 2}


def test_a_choice_is_remembered_for_the_same_work_alone(step, cache):
    watch = step(1.0, 0.5)
    assert choose(network(), "cpu", SIZE) == "channels_last"
    tried = watch.steps["channels_last"]
    watch.seconds["contiguous"] = 0.1
    assert choose(network(), "cpu", SIZE) == "channels_last"
    assert watch.steps["channels_last"] == tried
    assert choose(network(), "cpu", (1, *SIZE[1:])) == "contiguous"
    assert choose(network(act="prelu"), "cpu", SIZE) == "contiguous"
    assert "delete this file" in cache.read_text()


@pytest.mark.parametrize("damage", ["", "[]", '{"chosen": 3}', "KEY", "{" * 5000])
def test_a_damaged_memory_is_none(damage, step, cache):
    step(1.0, 0.5)
    choose(network(), "cpu", SIZE)
    text = cache.read_text().replace('"channels_last"', '["nonsense"]') if damage == "KEY" else damage
    cache.write_text(text)
    watch = step(0.1, 1.0)
    assert choose(network(), "cpu", SIZE) == "contiguous"
    assert watch.steps["contiguous"] > 0
    assert '"contiguous"' in cache.read_text()


def test_nowhere_to_remember_is_no_reason_to_stop(step, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    step(1.0, 0.5)
    assert choose(network(), "cpu", SIZE) == "channels_last"


def test_several_processes_take_the_same_by_the_sum_of_their_times(step, monkeypatch, cache):
    step(1.0, 0.8)
    other = {"contiguous": 1.0, "channels_last": 1.5}
    monkeypatch.setattr(
        memory_formats, "gather", lambda own: [own, other] if isinstance(own, dict) else [own, own]
    )
    assert choose(network(), "cpu", SIZE) == "contiguous"
    monkeypatch.setattr(memory_formats, "gather", lambda own: ["channels_last", own])  # the first remembers
    assert choose(network(), "cpu", SIZE) == "channels_last"


def test_a_training_that_goes_on_keeps_its_format(step, tmp_path):
    watch = step(1.0, 0.5)
    choose(network(), "cpu", SIZE)
    last = tmp_path / "last.pt"
    assert choose(network(), "cpu", SIZE, checkpoint=str(last)) == "channels_last"  # nothing to go on from
    torch.save({"memory_format": "contiguous"}, last)
    watch.steps.clear()
    assert choose(network(), "cpu", SIZE, checkpoint=str(last)) == "contiguous"
    assert not watch.steps


def test_where_there_is_no_choice_nothing_is_tried(step, monkeypatch):
    watch = step(1.0, 0.5)
    assert choose(network(), "cuda", SIZE) == "contiguous"
    strided = nn.Conv2d(1, 1, 1, stride=2)
    monkeypatch.setattr(memory_formats, "mixed_precision", lambda device: torch.bfloat16)
    assert choose(strided, "cpu", SIZE, amp=True) == "contiguous"
    assert sum(watch.steps.values()) == 0


def test_real_steps_leave_network_and_generators_alone():
    """With dropout, which draws; in evaluation mode, which a trial does not take over."""
    tried = network().eval()
    before, state = copy.deepcopy(tried), torch.get_rng_state()
    choose(tried, "cpu", SIZE)
    assert torch.equal(torch.get_rng_state(), state)
    assert not tried.training
    assert not any("forward" in vars(module) for module in tried.modules())
    for weight, old in zip(tried.parameters(), before.parameters(), strict=True):
        assert torch.equal(weight, old)
        assert weight.grad is None
        assert weight.is_contiguous()


def test_real_steps_take_their_time():
    formats = ("contiguous", "channels_last")
    times = memory_formats.try_out(network(), torch.device("cpu"), None, False, formats, SIZE)
    assert list(times) == list(formats)
    assert all(0 < seconds < 60 for seconds in times.values())
