"""A training that was cut off goes on as if nothing had happened."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch

from scripts.handlers import LearningCurve
from tests.commands import TINY, input_error, run

pytestmark = pytest.mark.workflow

#: The same steps on the same samples; only the order of float additions inside a kernel could differ.
WEIGHT_TOLERANCE = 1e-6


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
        torch.testing.assert_close(found[name], weights, atol=WEIGHT_TOLERANCE, rtol=0)


@pytest.fixture(scope="module")
def whole(cells: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four epochs at one go."""
    output = tmp_path_factory.mktemp("whole")
    train(cells, output)
    return output


@pytest.fixture
def cut_off(cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four epochs wanted, the power gone after the second."""
    write = LearningCurve._write

    def write_and_stop(self: LearningCurve, trainer: Any) -> None:
        write(self, trainer)
        if trainer.state.epoch == 2:
            raise PowerCut

    with monkeypatch.context() as patch:
        patch.setattr(LearningCurve, "_write", write_and_stop)
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
    assert found["best_metric"] == pytest.approx(expected["best_metric"], abs=1e-6)
    assert found["lr_scheduler"]["_last_lr"] == pytest.approx(expected["lr_scheduler"]["_last_lr"])
    rows = curve(cut_off)
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    for key in ("loss", "val_mean_dice"):
        wanted = [float(row[key]) for row in curve(whole)]
        assert [float(row[key]) for row in rows] == pytest.approx(wanted, abs=1e-5), key


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
    assert "of another training (fold is 0 there and 1 here; data of training is 3 cases" in said
    assert "data of validation is 1 cases" in said


def test_resume_with_another_network_is_refused(cells: Path, cut_off: Path) -> None:
    before = load(cut_off / "checkpoints/last.pt")["network"]
    with pytest.raises(RuntimeError) as caught:
        train(cells, cut_off, resume=True, channels=[4, 8, 8, 16])
    assert "checkpoint of another network" in input_error(caught.value)
    assert_same_weights(load(cut_off / "checkpoints/last.pt")["network"], before)
