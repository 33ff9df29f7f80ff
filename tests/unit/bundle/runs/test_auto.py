"""How `auto` divides the minutes, and what it has the other commands do."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import bundle.runs.auto
from bundle.runs.auto import A_FOLD, MANY, TRAINING, folds_of
from scripts.errors import InputError
from tests.commands import invoke


@pytest.mark.parametrize(
    ("minutes", "cases", "folds"), [(1, 9, 3), (60, 9, 3), (80, 9, 4), (999, 9, 5), (999, 2, 2)]
)
def test_more_folds_where_each_has_time(minutes: float, cases: int, folds: int) -> None:
    assert folds_of(minutes, cases) == folds
    assert folds == 3 or cases == 2 or TRAINING * minutes / folds >= A_FOLD


def test_one_case_is_too_few() -> None:
    with pytest.raises(InputError, match="auto needs 2 cases or more"):
        folds_of(60, 1)


def test_it_plans_once_and_hands_on_what_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels, out = tmp_path / "the images", tmp_path / "labels", tmp_path / "out"
    rng = np.random.default_rng(0)
    for case in range(MANY):
        label = np.zeros((24, 24), np.uint8)
        label[4:12, 5:15] = 1
        for folder, pixels in ((images, 90 * label + rng.integers(0, 40, label.shape)), (labels, label)):
            folder.mkdir(exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"p{case // 2}_{case}.png")
    commands: list[tuple[str, ...]] = []

    def run_python(*arguments: str) -> None:
        commands.append(arguments[2:])
        if arguments[2] == "plan":
            result = invoke(*arguments[2:])
            assert result.exit_code == 0, result.output

    monkeypatch.setattr(bundle.runs.auto, "run_python", run_python)
    given = ["--images", images, "--labels", labels, "--output_dir", out, "--subject_pattern", "(p[0-9]+)_"]
    names = ["--label_name", "background=0", "--label_name", "thing=1"]
    ids = ["--channels", "[4,8]", "--amp", "False"]

    def auto(minutes: float) -> str:
        result = invoke("auto", *given, *names, "--minutes", minutes, *ids)
        return str(result.exception) if result.exception else result.output

    said = auto(10)
    assert f"{MANY} cases, 10 minutes: 3 folds of 2.67 minutes of training each" in said
    assert [command[0] for command in commands] == ["plan", "crossval"]
    experiment = json.loads((out / "data/experiment.json").read_text())
    assert experiment["minutes"] == 2.67
    listed = json.loads((out / "data/dataset.json").read_text())
    assert {case["fold"] for case in listed["training"]} == {0, 1, 2}
    assert len(listed["testing"]) >= 0.15 * MANY
    assert json.loads((out / "data/task.json").read_text())["labels"] == {"background": 0, "thing": 1}
    assert commands[1][1:] == (
        *("--args_file", str(out / "data/experiment.json"), "--output_dir", str(out / "crossval")),
        *("--channels", "[4, 8]", "--amp", "False"),
    )
    commands.clear()
    auto(10)
    assert [command[0] for command in commands] == ["plan", "crossval"]  # nothing is trained yet
    (out / "crossval/fold0").mkdir(parents=True)
    commands.clear()
    auto(10)
    assert [command[0] for command in commands] == ["crossval"]
    assert "was made of something else" in auto(20)
    assert len(commands) == 1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ["--minutes", 0.01],
            "--minutes is 0.01, which leaves each of 3 folds 0 minutes of training: give 2",
        ),
        (["--minutes", 9, "--chanels", "[4,8]"], "chanels.*did you mean channels"),
        (["--minutes", 9, "--fold", 1], "fold is 1, and auto sets it: leave it out"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    more: list[object], message: str, tmp_path: Path
) -> None:
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
        for case in range(4):
            Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / folder / f"{case}.png")
    given = [
        "--images",
        tmp_path / "images",
        "--labels",
        tmp_path / "labels",
        "--output_dir",
        tmp_path / "out",
    ]
    result = invoke("auto", *given, *more)
    with pytest.raises(InputError, match=message):
        raise result.exception
    assert not (tmp_path / "out").exists()
