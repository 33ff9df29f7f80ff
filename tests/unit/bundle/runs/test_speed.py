"""What `python -m bundle tune --speed` chooses; tests/workflows/test_tune.py runs the command."""

from __future__ import annotations

import csv
import errno
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from monai.bundle import ConfigParser
from PIL import Image

from bundle.runs import speed
from bundle.runs.speed import (
    ALL,
    LOSSES,
    Bench,
    Setting,
    Trial,
    choose,
    draw,
    front,
    overlay_of,
    promising,
    row_of,
    search,
    tune_speed,
    within,
)
from scripts.errors import InputError
from scripts.files import read_json, write_csv
from scripts.recipe import hashes_of


def trial(number: int, dice: float, seconds: float) -> Trial:
    """A trial whose cases lie 0.1 to both sides of the mean."""
    return Trial(Setting(threads=number), [dice - 0.1, dice + 0.1], [seconds])


def test_front_holds_what_no_faster_trial_beats() -> None:
    best, beaten, middling, slow, fast = (
        trial(1, 0.9, 8),
        trial(2, 0.85, 4),
        trial(3, 0.88, 2),
        trial(4, 0.9, 9),
        trial(5, 0.7, 1),
    )
    assert front([best, beaten, middling, slow, fast]) == [fast, middling, best]


@pytest.mark.parametrize(
    ("losses", "chosen"),
    [
        ({1: 0.0, 2: 0.0009, 3: 0.0049, 4: 0.0051}, {"best": 1, "balanced": 2, "fast": 3}),
        ({1: 0.0, 2: 0.0011, 3: 0.0052, 4: 0.2}, {"best": 1, "balanced": 1, "fast": 2}),
        ({1: 0.0, 2: 0.00005}, {"best": 2, "balanced": 2, "fast": 2}),
    ],
)
def test_each_overlay_is_the_fastest_within_its_loss(
    losses: dict[int, float], chosen: dict[str, int]
) -> None:
    """The larger the number, the faster."""
    trials = [trial(number, 0.9 - loss, 10 / number) for number, loss in losses.items()]
    assert {name: found.setting.threads for name, found in choose(trials).items()} == chosen


def test_turns_are_taken_by_the_configured_setting_and_what_could_be_chosen() -> None:
    configured = trial(1, 0.5, 100)
    others = [trial(number, 0.9 - 0.0001 * number, 10 / number) for number in range(2, 60)]
    found = promising([configured, *others], configured)
    assert found[0] is configured
    assert len(set(map(id, found))) == len(found)
    for loss in LOSSES.values():
        assert within(others, loss)[0] in found


def test_row_has_the_loss_of_the_worst_case(tmp_path: Path) -> None:
    best = Trial(Setting(), [0.9, 0.8, float("nan")], [2.0, 4.0, 3.0])
    other = Trial(Setting(threads=1), [0.8, 0.9, float("nan")], [1.5], "torch in float32")
    row = row_of(other, best, best, {"fast": other, "best": best, "balanced": other})
    assert row == {
        "setting": "1 thread",
        "auto took": "torch in float32",
        "dice": pytest.approx(0.85),
        "loss": pytest.approx(0.0),
        "largest loss": pytest.approx(0.1),
        "seconds a case": 1.5,
        "times as fast": 2.0,
        "overlay": "fast balanced",
    }
    rows = [row, row_of(best, best, best, {"best": best})]
    draw(rows, rows, tmp_path / "speed.png")
    assert np.asarray(Image.open(tmp_path / "speed.png")).std() > 0
    write_csv(tmp_path / "speed.csv", [row])
    assert next(csv.DictReader((tmp_path / "speed.csv").open()))["overlay"] == "fast balanced"


@pytest.mark.parametrize(
    ("taken", "precision"), [("openvino in int8", "fast"), ("openvino in bfloat16", "exact"), ("", "exact")]
)
def test_overlay_allows_int8_only_where_it_was_measured(taken: str, precision: str) -> None:
    int8 = Setting((("runtime", "auto"), ("amp", True), ("precision", "fast")))
    found = Trial(int8, [0.9], [1.0], taken)
    bench = cast(Bench, SimpleNamespace(config={}, flips=(), hashes=["of the weights"]))
    overlay = overlay_of(found, row_of(found, found, found, {}), bench)
    assert (overlay["runtime"], overlay["precision"]) == ("auto", precision)


def test_orientations_are_not_described_by_the_overlay_that_they_come_from() -> None:
    ids: dict[str, Any] = Setting(orientations=ALL).ids({}, ())
    assert ids["inferer"]["_target_"].endswith("AveragedOrientations")
    assert "_desc_" not in ids["inferer"]


def test_what_is_found_in_an_empty_case_is_lost_whole() -> None:
    """A case without foreground, in which one setting finds none and the other some."""
    best = Trial(Setting(), [0.9, float("nan")], [2.0])
    other = Trial(Setting(threads=1), [0.89, 0.0], [1.0])
    assert row_of(other, best, best, {})["largest loss"] == 1
    assert row_of(best, best, best, {})["largest loss"] == 0


def test_cases_without_foreground_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(bench: Bench, trial: Trial) -> None:
        trial.dice, trial.seconds = [float("nan")], [1.0]

    monkeypatch.setattr(Bench, "measure", nothing)
    bench = Bench({"device": "cpu"}, None, {}, Path("model.pt"), [], ())  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"no foreground in .* 1 validation cases.*: choose another fold"):
        search(bench)


def canned(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Weights of which a search finds all settings alike and slow enough for the weights to become others."""
    checkpoint = folder / "model.pt"
    checkpoint.write_bytes(b"tuned")

    def found(bench: Bench) -> tuple[Trial, list[Trial], list[Trial]]:
        checkpoint.write_bytes(b"trained on")
        return (only := trial(1, 0.9, 1)), [only], [only]

    for name, value in {
        "read_evaluation": lambda *_: SimpleNamespace(cases=SimpleNamespace(finish=lambda: None)),
        "parser_of": lambda _: ConfigParser({}),
        "for_inference": lambda _: {},
        "read_recipe": lambda *_: None,
        "read_weights": lambda _: {},
        "search": found,
    }.items():
        monkeypatch.setattr(speed, name, value)
    return checkpoint


def test_overlays_are_for_the_weights_that_were_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = canned(tmp_path, monkeypatch)
    before = hashes_of(checkpoint)
    tune_speed({}, tmp_path, checkpoint, tmp_path / "out", None)
    for name in LOSSES:
        overlay = read_json(tmp_path / "out" / f"{name}.json")
        assert overlay["recipe"]["tuned_for"] == before != hashes_of(checkpoint)


def test_a_place_that_takes_no_files_is_told_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = canned(tmp_path, monkeypatch)
    monkeypatch.setattr(speed, "search", lambda _: pytest.fail("searched"))
    (tmp_path / "out").touch()
    with pytest.raises(InputError, match=r"out could not be written \(File exists\)"):
        tune_speed({}, tmp_path, checkpoint, tmp_path / "out", None)


def test_a_full_disk_loses_no_table_and_mixes_no_overlays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, out = canned(tmp_path, monkeypatch), tmp_path / "out"
    out.mkdir()
    (out / "fast.json").write_text("earlier")
    write = Path.write_text

    def full(file: Path, text: str, encoding: str) -> int:
        if file.name.endswith("best.json"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, text, encoding)

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(InputError, match="is full"):
        tune_speed({}, tmp_path, checkpoint, out, None)
    assert [file.name for file in out.iterdir()] == ["fast.json"]
    assert (out / "fast.json").read_text() == "earlier"
    assert "1 thread" in capsys.readouterr().out
