"""Folds that judge a training: what is refused, summed up, told of the time, and done again."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import bundle.runs.crossval
from bundle.made_of import was_made_of, write_record
from bundle.runs.compare import interval
from bundle.runs.crossval import (
    WORST,
    Crossval,
    Fold,
    draw,
    folds_table,
    intervals_table,
    not_segmented,
    require_classes,
    summarise,
    time_left,
    worst_cases,
    worst_table,
    write_ensemble,
)
from scripts.errors import InputError
from scripts.files import write_csv
from tests.commands import CONFIGS, workbench

LABELS = {"background": 0, "inner": 1, "outer": 3, "ignore": 255}
FOLD_OF = {"a": 0, "b": 0, "c": 1, "d": 1}
SUBJECTS = {"a": "s1", "b": "s1", "c": "s2", "d": "d"}


@pytest.fixture
def scored(tmp_path: Path) -> Path:
    values = {"a": (0.5, 0.7), "b": (0.9, math.nan), "c": (0.4, 0.2), "d": (math.nan, math.nan)}
    rows = [
        {"case": case, "class": name, "dice": dice, "hd95": 10 * dice}
        for case, both in values.items()
        for name, dice in zip(("inner", "outer"), both, strict=True)
    ]
    write_csv(tmp_path / "scores.csv", rows)
    return tmp_path


def label(folder: Path, case: str, *values: int) -> dict[str, str]:
    array = np.zeros((4, 5), np.uint8)
    array.flat[: len(values)] = values
    Image.fromarray(array).save(folder / f"{case}.png")
    return {"case": case, "image": "x.png", "label": str(folder / f"{case}.png")}


def test_means_of_classes_and_folds_by_hand(scored: Path) -> None:
    rows = summarise(scored, ("dice", "hd95"), SUBJECTS, FOLD_OF)
    found = {(row["score"], row["class"]): row for row in rows}
    assert [key for key in found if key[0] == "dice"] == [
        ("dice", name) for name in ("inner", "outer", "mean")
    ]
    inner, outer, mean = (found["dice", name] for name in ("inner", "outer", "mean"))
    assert inner["mean"] == pytest.approx(0.6)
    assert inner["folds"] == {"0": pytest.approx(0.7), "1": pytest.approx(0.4)}
    assert (inner["cases"], inner["subjects"]) == (3, 2)
    assert (inner["low"], inner["high"]) == interval([0.5, 0.9, 0.4], ["s1", "s1", "s2"])
    assert (inner["low"], inner["high"]) == pytest.approx((0.4, 0.7))
    assert outer["folds"] == {"0": pytest.approx(0.7), "1": pytest.approx(0.2)}
    assert mean["mean"] == pytest.approx((0.6 + 0.9 + 0.3) / 3)
    assert found["hd95", "inner"]["mean"] == pytest.approx(6)
    json.dumps(rows, allow_nan=False)


def test_one_subject_and_nothing_have_no_interval(scored: Path) -> None:
    one = dict.fromkeys(SUBJECTS, "s")
    held_out = summarise(scored, ("dice",), one, {})
    assert all(row["low"] is None and not row["folds"] for row in held_out)
    assert "0.6000 (one subject)" in intervals_table(held_out)
    rows = [{"case": "a", "class": name, "dice": value} for name, value in (("x", 0.5), ("y", math.nan))]
    write_csv(scored / "scores.csv", rows)
    *_, nothing, _ = summarise(scored, ("dice",), one, FOLD_OF)
    assert (nothing["class"], nothing["mean"], nothing["cases"]) == ("y", None, 0)
    assert intervals_table([nothing]).splitlines()[-1].split() == ["y", "-"]
    draw(summarise(scored, ("dice",), one, FOLD_OF), scored / "nothing.png")


def test_one_class_stands_alone_and_objects_have_none(tmp_path: Path) -> None:
    write_csv(tmp_path / "scores.csv", [{"case": c, "class": "x", "dice": 0.5} for c in "abc"])
    assert [row["class"] for row in summarise(tmp_path, ("dice",), SUBJECTS, FOLD_OF)] == ["x"]
    write_csv(tmp_path / "scores.csv", [{"case": c, "ap50": n / 4} for n, c in enumerate("abcd")])
    (row,) = summarise(tmp_path, ("ap50",), SUBJECTS, FOLD_OF)
    assert (row["class"], row["mean"], row["subjects"]) == ("mean", 0.375, 3)


def test_tables_and_picture(scored: Path) -> None:
    rows = summarise(scored, ("dice", "hd95"), SUBJECTS, FOLD_OF)
    head, inner, *_ = intervals_table(rows).splitlines()
    assert head.split() == ["class", "dice", "(95", "%)", "hd95", "(95", "%)"]
    assert inner.split()[:5] == ["inner", "0.6000", "(0.4000", "to", "0.7000)"]
    assert [line.split() for line in folds_table(rows).splitlines()[:2]] == [
        ["dice", "of", "fold", "0", "fold", "1"],
        ["inner", "0.7000", "0.4000"],
    ]
    draw(rows, scored / "crossval.png")
    with Image.open(scored / "crossval.png") as picture:
        assert picture.width > picture.height


def test_the_worst_come_first(scored: Path) -> None:
    worst = worst_cases(scored, ("dice", "hd95"), FOLD_OF)
    assert [(row["case"], row["fold"]) for row in worst] == [("c", 1), ("a", 0), ("b", 0)]  # d has no score
    assert worst[0]["dice"] == pytest.approx(0.3)
    assert worst_table(worst).splitlines()[1].split() == ["c", "1", "0.3000", "3.0000"]
    assert worst_table([]) == "no case has a score"
    many = {f"c{n}": 0 for n in range(9)}
    write_csv(scored / "scores.csv", [{"case": case, "dice": n / 9} for n, case in enumerate(many)])
    assert [row["case"] for row in worst_cases(scored, ("dice",), many)] == [f"c{n}" for n in range(WORST)]


def test_every_fold_needs_every_class(tmp_path: Path) -> None:
    whole = {0: [label(tmp_path, "a", 1, 3)], 1: [label(tmp_path, "b", 1), label(tmp_path, "c", 3, 255)]}
    require_classes(whole, LABELS, False, tmp_path)
    lacking = {0: [label(tmp_path, "d", 1, 3)], 1: whole[0], 2: [label(tmp_path, "e", 1)]}
    with pytest.raises(InputError, match=r"no case of fold 2 shows outer; every fold needs"):
        require_classes(lacking, LABELS, False, tmp_path)
    lacking[1] = [label(tmp_path, "f", 255)]
    with pytest.raises(InputError, match=r"fold 1 shows inner, outer; no case of fold 2 shows outer"):
        require_classes(lacking, LABELS, False, tmp_path)


def test_every_fold_needs_an_object(tmp_path: Path) -> None:
    folds = {0: [label(tmp_path, "a", 7)], 1: [label(tmp_path, "b")]}
    with pytest.raises(InputError, match="no case of fold 1 shows an object"):
        require_classes(folds, LABELS, True, tmp_path)
    require_classes({0: folds[0]}, LABELS, True, tmp_path)


def test_labels_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    broken = label(tmp_path, "a", 1, 3)
    Path(broken["label"]).write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"a\.png"):
        require_classes({0: [broken, label(tmp_path, "b", 1, 3)]}, LABELS, False, tmp_path)


def test_time_left() -> None:
    assert time_left([], 5, 3.0) == "how long all of it takes is known after this fold"
    assert time_left([10.0, 14.0], 3, 6.0) == "a fold takes 12.0 minutes, about 30.0 are left"
    assert time_left([1.0], 1, 2.0).endswith("about 0.0 are left")


def test_what_is_done_again(tmp_path: Path) -> None:
    """A fold is done with the weights and cases that it has now, and a segmentation of each case."""
    cases = [{"case": name, "image": str(tmp_path / f"{name}.png")} for name in ("a", "a_seg.b")]
    fold, pred = Fold(0, tmp_path / "fold0", cases), tmp_path / "pred"
    pred.mkdir()
    fold.folder.mkdir()
    assert not fold.is_done(pred)
    fold.checkpoint.write_bytes(b"weights")
    write_record(fold.folder, {**fold.made_of(), "minutes": 0.5})
    (pred / "a_seg.b_seg.png").touch()
    assert not_segmented(pred, cases) == ["a"]
    (pred / "a_prob.nii.gz").touch()
    assert not fold.is_done(pred)
    (pred / "a_seg.nii.gz").touch()
    assert fold.is_done(pred)
    assert fold.minutes() == 0.5
    fold.checkpoint.write_bytes(b"others")
    assert not fold.is_done(pred)
    assert not was_made_of(tmp_path, fold.made_of())


def test_a_case_that_fails_stops_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told and tried again; where nothing was done the command ends."""
    cases = [{"case": name} for name in "ab"]
    run = Crossval(tmp_path, tmp_path, "classes", [], {}, [], [])
    done = ["a"]

    def segment(**_: object) -> None:
        for case in done:
            (tmp_path / f"{case}_seg.png").write_text("new")
        if len(done) < 2:
            raise InputError("exit status 1")

    monkeypatch.setattr(bundle.runs.crossval, "run_bundle", segment)
    (tmp_path / "b_seg.png").write_text("of another network")
    run.segment(tmp_path, cases, tmp_path / "fold", {"weights": "x"}, {})
    assert run.failed == ["b were not segmented"]
    assert not was_made_of(tmp_path / "fold", {"weights": "x"})
    assert not (tmp_path / "b_seg.png").exists()
    done.append("b")
    run.segment(tmp_path, cases, tmp_path / "fold", {"weights": "x"}, {})
    assert was_made_of(tmp_path / "fold", {"weights": "x"})
    done.clear()
    with pytest.raises(InputError, match="exit status 1"):
        run.segment(tmp_path, cases, tmp_path / "fold", {"weights": "y"}, {})

    def score(*_: object, **__: object) -> None:
        if written:
            (tmp_path / "s").mkdir()
            (tmp_path / "s/summary.json").touch()
        raise InputError("exit status 1")

    monkeypatch.setattr(bundle.runs.crossval, "score_section", score)
    written = False
    with pytest.raises(InputError, match="exit status 1"):
        run.score(tmp_path, "training", tmp_path / "s", {"weights": "x"})
    written = True
    run.score(tmp_path, "training", tmp_path / "s", {"weights": "x"})
    assert run.failed[1:] == ["not all cases of training were scored"]
    assert not was_made_of(tmp_path / "s", {"weights": "x"})


def test_the_ensemble_is_an_args_file(tmp_path: Path) -> None:
    folds = [Fold(number, tmp_path / f"fold{number}", []) for number in (0, 2)]
    write_ensemble(tmp_path / "ensemble.json", folds)
    assert json.loads((tmp_path / "ensemble.json").read_text()) == {
        "config_file": [str(tmp_path / "fold0/inference.json"), str(CONFIGS / "ensemble.json")],
        "checkpoint": [str(tmp_path / "fold0/model.pt"), str(tmp_path / "fold2/model.pt")],
    }


def crossval(folder: Path, *options: str, **experiment: Any) -> str:
    """What the command says of an experiment and data in one folder."""
    content = {"config_file": ["configs/train.json"], "dataset_dir": str(folder), **experiment}
    (folder / "a.json").write_text(json.dumps(content))
    return workbench("crossval", "--args_file", folder / "a.json", "--output_dir", folder / "out", *options)


def test_what_cannot_be_is_refused_before_anything(tmp_path: Path) -> None:
    labels = {"background": 0, "inner": 1, "outer": 3}
    both = [label(tmp_path, case, 1, 3) for case in "abcd"]

    def describe(**lists: object) -> None:
        (tmp_path / "dataset.json").write_text(json.dumps(lists))

    describe(training=both[:3], validation=both[3:])
    assert "has no folds, as splits.json or the list 'validation'" in crossval(tmp_path, labels=labels)
    describe(training=[{**entry, "fold": 1} for entry in both])
    assert "has all cases in fold 1, so that nothing is left to train on" in crossval(tmp_path)
    folds = [{**entry, "fold": n % 2} for n, entry in enumerate(both)]
    describe(training=[{**entry, "subject": "s"} for entry in folds])
    assert "has the subject 's' in fold 0 (a) and in fold 1 (b)" in crossval(tmp_path)
    describe(training=folds, testing=[{"case": "e", "image": "e.png"}])
    assert "has e under 'testing' without a label" in crossval(tmp_path)
    folds[1]["label"], folds[3]["label"] = (label(tmp_path, case, 3)["label"] for case in "xy")
    describe(training=folds)
    assert "no case of fold 1 shows inner" in crossval(tmp_path, labels=labels)
    assert "fold is 1, and crossval sets it for each fold" in crossval(tmp_path, "--fold", "1")
    assert "checkpoint is 'm.pt'" in crossval(tmp_path, checkpoint="m.pt")
    assert "no config of a training" in crossval(tmp_path, config_file=["configs/inference.json"])
    assert not (tmp_path / "out").exists()


def test_calibration_comes_before_the_post_processing_and_goes_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of fewer subjects than it takes nothing is learnt, and nothing of what is there is done again."""
    ran: list[list[str]] = []

    def run_python(*arguments: str, warm: Any = None) -> None:
        out = Path(arguments[arguments.index("--output_dir") + 1])
        out.mkdir(parents=True, exist_ok=True)
        name = {"calibrate": "calibration", "tune": "postprocessing"}[arguments[2]]
        (out / f"{name}.json").write_text(json.dumps({name: {"temperature": 1.5}}))
        ran.append(list(arguments[2:]))

    monkeypatch.setattr(bundle.runs.crossval, "run_python", run_python)
    cases = [label(tmp_path, f"c{number}", 1) for number in range(6)]
    folds = [Fold(number, tmp_path / f"fold{number}", cases[number::2]) for number in range(2)]
    for fold in folds:
        fold.folder.mkdir()
        fold.checkpoint.write_bytes(b"weights")

    def crossval(subjects: int) -> Crossval:
        of = {case["case"]: f"s{number % subjects}" for number, case in enumerate(cases)}
        return Crossval(tmp_path, tmp_path, "classes", folds, of, [], [])

    assert crossval(4).calibrate(tmp_path / "experiment.json", {}) == []
    run = crossval(6)
    for _ in range(2):
        learnt = run.calibrate(tmp_path / "experiment.json", {"channels": [4, 8]})
        assert learnt == [tmp_path / "calibrated/calibration.json"]
        tuned = run.tune(tmp_path / "experiment.json", {"calibration": {"temperature": 1.5}})
        assert tuned == [tmp_path / "tuned/postprocessing.json"]
    assert [command for command, *_ in ran] == ["calibrate", "tune"]
    assert "{'temperature': 1.5}" in ran[1][ran[1].index("--calibration") + 1]
    run.tune(tmp_path / "experiment.json", {"calibration": None})
    assert [command for command, *_ in ran] == ["calibrate", "tune", "tune"]
