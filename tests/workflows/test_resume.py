"""A training that was cut off goes on as if nothing had happened."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from scripts.compute import memory_formats
from scripts.handlers import LastCheckpoint
from tests.commands import TINY, input_error, run, written

pytestmark = pytest.mark.workflow

try_out = memory_formats.try_out


class PowerCut(BaseException):
    """Stands for what no handler can catch."""


def train(data: Path, output: Path, **overrides: Any) -> None:
    run(
        *("train", "task/phantom_cells"),
        **{**TINY[2], "max_epochs": 4, "val_interval": 1, **overrides},
        dataset_dir=str(data),
        output_dir=str(output),
    )


def curve(output: Path) -> list[dict[str, str]]:
    with (output / "learning_curve.csv").open() as file:
        return list(csv.DictReader(file))


def load(file: Path) -> dict[str, Any]:
    return torch.load(file, weights_only=True)


def assert_same_weights(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, weights in expected.items():
        assert torch.equal(found[name], weights), name


@pytest.fixture(scope="module")
def whole(cells: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four epochs at one go."""
    output = tmp_path_factory.mktemp("whole")
    train(cells, output)
    return output


@pytest.fixture
def cut_off(cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four epochs wanted, the power gone after the second."""
    end = LastCheckpoint._end_epoch

    def end_and_stop(self: LastCheckpoint, trainer: Any) -> None:
        end(self, trainer)
        if trainer.state.epoch == 2:
            raise PowerCut

    with monkeypatch.context() as patch:
        patch.setattr(LastCheckpoint, "_end_epoch", end_and_stop)
        with pytest.raises(PowerCut):
            train(cells, tmp_path)
    assert load(tmp_path / "checkpoints/last.pt")["epoch"] == 2
    return tmp_path


def test_resumed_training_is_the_whole_one(cells: Path, whole: Path, cut_off: Path) -> None:
    train(cells, cut_off, resume=True)
    found, expected = load(cut_off / "checkpoints/last.pt"), load(whole / "checkpoints/last.pt")
    assert_same_weights(found["network"], expected["network"])
    assert_same_weights(load(cut_off / "model.pt"), load(whole / "model.pt"))
    for key in ("epoch", "iteration", "best_metric_epoch"):
        assert found[key] == expected[key], key
    assert found["best_metric"] == expected["best_metric"]
    assert found["lr_scheduler"]["_last_lr"] == expected["lr_scheduler"]["_last_lr"]
    rows = curve(cut_off)
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    for key in ("loss", "val_ap50"):
        assert [row[key] for row in rows] == [row[key] for row in curve(whole)], key


def take(monkeypatch: pytest.MonkeyPatch, cache: Path, fastest: str) -> None:
    """Have a trial find a memory format the fastest, and remember it in a folder of its own."""

    def tried(*arguments: Any) -> dict[str, float]:
        real = try_out(*arguments)
        return {name: 1.0 if name == fastest else 2.0 for name in real}

    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setattr(memory_formats, "try_out", tried)


def test_resumed_training_keeps_the_memory_format_whatever_is_faster_now(
    cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take(monkeypatch, tmp_path / "then", "channels_last")
    train(cells, tmp_path / "whole", max_epochs=2)
    train(cells, tmp_path / "cut", max_epochs=1)
    assert load(tmp_path / "cut/checkpoints/last.pt")["memory_format"] == "channels_last"
    take(monkeypatch, tmp_path / "now", "contiguous")
    train(cells, tmp_path / "fresh", max_epochs=1)  # which is remembered
    assert load(tmp_path / "fresh/checkpoints/last.pt")["memory_format"] == "contiguous"
    train(cells, tmp_path / "cut", max_epochs=2, resume=True)
    found, expected = (load(tmp_path / name / "checkpoints/last.pt") for name in ("cut", "whole"))
    assert found["memory_format"] == "channels_last"
    assert_same_weights(found["network"], expected["network"])


def test_a_trial_changes_nothing_but_the_memory_format(
    cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real steps are tried, and what they say is not heard: weights, batches and dropout are the same."""
    how = {"max_epochs": 1, "network_def::dropout": 0.3}
    train(cells, tmp_path / "set", memory_format="contiguous", **how)
    take(monkeypatch, tmp_path, "contiguous")
    train(cells, tmp_path / "tried", **how)
    found, expected = (load(tmp_path / name / "checkpoints/last.pt") for name in ("tried", "set"))
    assert_same_weights(found["network"], expected["network"])


def test_best_model_outlives_a_worse_end(cells: Path, cut_off: Path) -> None:
    """An unbeatable score before the cut: what follows must not replace the weights that had it."""
    last, model = cut_off / "checkpoints/last.pt", cut_off / "model.pt"
    torch.save({**load(last), "best_metric": 2.0, "best_metric_epoch": 2}, last)
    before = load(model)
    train(cells, cut_off, resume=True)
    assert_same_weights(load(model), before)
    assert load(last)["best_metric"] == 2.0


def test_without_resume_it_starts_afresh(cells: Path, whole: Path, cut_off: Path) -> None:
    train(cells, cut_off)
    assert_same_weights(
        load(cut_off / "checkpoints/last.pt")["network"], load(whole / "checkpoints/last.pt")["network"]
    )
    assert [row["epoch"] for row in curve(cut_off)] == ["1", "2", "3", "4"]


def test_resuming_a_finished_training_changes_nothing(cells: Path, cut_off: Path) -> None:
    train(cells, cut_off, resume=True)
    model, rows = load(cut_off / "model.pt"), curve(cut_off)
    train(cells, cut_off, resume=True)
    assert_same_weights(load(cut_off / "model.pt"), model)
    assert curve(cut_off) == rows
    assert load(cut_off / "checkpoints/last.pt")["epoch"] == 4


def test_resume_with_another_fold_is_refused(cells: Path, cut_off: Path) -> None:
    with pytest.raises(RuntimeError) as caught:
        train(cells, cut_off, resume=True, fold=1)
    said = input_error(caught.value)
    assert "of another training (fold was 0 and is 1; data of training was 3 cases" in said
    assert "data of validation was 1 cases" in said


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"loss": {"_target_": "DiceLoss", "softmax": True, "to_onehot_y": True}}, "loss was scripts.losses"),
        ({"amp": False}, "amp was True and is False"),
        ({"network_def::dropout": 0.1}, "network_def::dropout was 0.0 and is 0.1"),
        ({"patch::elastic_prob": 0.9}, "patch::elastic_prob was 0.3 and is 0.9"),
        ({"optimizer::weight_decay": 0.5}, "optimizer::weight_decay was @weight_decay and is 0.5"),
        ({"targets": []}, "targets was"),
        ({"window_inferer::overlap": 0.25}, "window_inferer::overlap was 0.5 and is 0.25"),
    ],
)
def test_resume_with_another_training_is_refused(
    changed: dict[str, Any], sentence: str, cells: Path, whole: Path
) -> None:
    before = written(whole), (whole / "checkpoints/last.pt").read_bytes()
    with pytest.raises(RuntimeError) as caught:
        train(cells, whole, resume=True, **changed)
    assert sentence in input_error(caught.value)
    assert (written(whole), (whole / "checkpoints/last.pt").read_bytes()) == before


def test_more_epochs_follow_the_schedule_of_so_many(cells: Path, cut_off: Path) -> None:
    """Eight epochs by cosine from 0.002 to 0: the third begins where that of eight has come after two."""
    rates = []
    step = torch.optim.AdamW.step

    def note(self: torch.optim.AdamW, *arguments: Any, **keywords: Any) -> Any:
        rates.append(self.param_groups[0]["lr"])
        return step(self, *arguments, **keywords)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", note)
        train(cells, cut_off, resume=True, max_epochs=8, learning_rate=0.004, val_interval=8)
    steps = len(rates) // 6
    wanted = [0.004 * (1 + math.cos(math.pi * epoch / 8)) / 2 for epoch in range(2, 8)]
    assert rates[::steps] == pytest.approx(wanted)
    assert [row["epoch"] for row in curve(cut_off)] == [str(epoch) for epoch in range(1, 9)]


def test_resume_with_another_network_is_refused(cells: Path, cut_off: Path) -> None:
    before = load(cut_off / "checkpoints/last.pt")["network"]
    with pytest.raises(RuntimeError) as caught:
        train(cells, cut_off, resume=True, channels=[4, 8, 8, 16])
    assert "checkpoint of another network" in input_error(caught.value)
    assert_same_weights(load(cut_off / "checkpoints/last.pt")["network"], before)
