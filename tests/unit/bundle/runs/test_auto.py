"""How `auto` divides the minutes, and what it has the other commands do."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from subprocess import PIPE, Popen

import numpy as np
import pytest
from PIL import Image

import bundle.runs.auto
from bundle.cli import MOST_MINUTES
from bundle.runs.auto import A_FOLD, MANY, folds_of, left_of_fold, told, training_of
from scripts.errors import InputError
from scripts.locks import let_go
from tests.commands import ROOT, invoke


@pytest.mark.parametrize(
    ("minutes", "cases", "folds"), [(1, 9, 3), (60, 9, 3), (80, 9, 4), (999, 9, 5), (999, 2, 2)]
)
def test_more_folds_where_each_has_time(minutes: float, cases: int, folds: int) -> None:
    assert folds_of(minutes, cases) == folds
    assert folds == 3 or cases == 2 or training_of(minutes) / folds >= A_FOLD


@pytest.mark.parametrize("minutes", [3, 20, 60, 600, MOST_MINUTES])
def test_it_ends_within_its_time_whether_the_rest_takes_much_or_little(minutes: float) -> None:
    """From no time at all to twice what is kept for it."""
    rest = minutes - training_of(minutes)
    assert 0.08 <= rest / minutes <= 0.2 + 1e-9
    assert minutes < 30 or rest <= 0.15 * minutes  # of long ones less, as they would end too soon


def test_what_reading_took_is_not_there_to_train() -> None:
    assert left_of_fold(2.67, 3, 10, 0.9) == 2.67
    assert left_of_fold(2.67, 3, 10, 3.0) == 2.0
    assert left_of_fold(2.67, 3, 10, 11.0) == 0.5


def test_it_tells_what_took_longer_than_planned() -> None:
    in_time = told(60, 58, 1, 51, 53.2)
    assert in_time == (
        "\nThis took 58 minutes of 60: 1 to read and plan, 51 to train (53.2 planned), 6 to segment, "
        "choose and judge"
    )
    busy = told(60, 90, 1, 80, 53.2)
    assert busy.endswith(
        "That is 30 minutes over, 26.8 of them training, as this machine became busier than it was when "
        "steps were timed"
    )
    assert "20.2 of them the rest, as it has more or larger cases" in told(60, 80, 2, 53, 53.2)


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
    monkeypatch.setattr(bundle.runs.auto, "_spent", lambda: 0.1)  # this process has run other tests
    given = ["--images", images, "--labels", labels, "--output_dir", out, "--subject_pattern", "_([0-9]+)"]
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
        *("--channels", "[4, 8]", "--amp", "False", "--minutes", "2.67"),
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

    given[given.index("_([0-9]+)")] = "(p[0-9])"
    given[given.index(out)] = tmp_path / "subjects"
    commands.clear()
    assert f"{MANY} cases of 10 subject(s), 200 minutes: 5 folds" in auto(200)
    assert commands[0][commands[0].index("--test_fraction") :][:2] == ("--test_fraction", "0")

    beside = f"from scripts.locks import hold; hold({str(out)!r}, 'auto', hold); print(flush=True); input()"
    let_go()
    with Popen([sys.executable, "-c", beside], cwd=ROOT, stdin=PIPE, stdout=PIPE, text=True) as process:
        assert process.stdout
        process.stdout.readline()
        given[given.index(tmp_path / "subjects")] = out
        given[given.index("(p[0-9])")] = "_([0-9]+)"
        assert f"output_dir is {out}, where another auto is at work (process {process.pid}" in auto(10)
        process.communicate("\n")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ["--minutes", 0.01],
            "--minutes is 0.01, which leaves each of 3 folds 0 minutes of training: give 2",
        ),
        (["--minutes", 1e9], "--minutes is 1e[+]09; it takes more than 0 and a week, 10080, at most"),
        (["--minutes", 9, "--memory_gb", 0], "--memory_gb is 0; a training takes more than 0"),
        (["--minutes", 9, "--chanels", "[4,8]"], "chanels.*did you mean channels"),
        (
            ["--minutes", 9, "--output_dir", "/dev/null/out"],
            "output_dir is /dev/null/out, where nothing can be",
        ),
        (
            ["--minutes", 9, "--output_dir", "/tmp/a#b"],
            "a#b, and MONAI takes what follows # in a path for an id",
        ),
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
