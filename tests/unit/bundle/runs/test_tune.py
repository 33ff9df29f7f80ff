"""How trials are judged, and what is on disk of a case; tests/workflows/test_tune.py runs the command."""

from __future__ import annotations

import ast
import csv
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import AsDiscreted
from PIL import Image

from bundle.runs.search import MAX_TRIALS, Trial, best_of, search
from bundle.runs.tune import (
    GRIDS,
    Store,
    _kind_of,
    draw_trials,
    judge_class,
    judge_objects,
    judging,
    read_probabilities,
    tune_classes,
)
from scripts.errors import Fault
from scripts.judging.classes import mean_dice
from scripts.labels import IGNORE_LABEL
from scripts.transforms import WatershedInstancesd

NOTHING: dict[str, Any] = {"largest": False, "min_size": 0, "max_hole": 0}


@pytest.mark.parametrize("kind", GRIDS)
def test_grid_holds_legal_values_and_fits_the_limit(kind: type) -> None:
    for name, values in GRIDS[kind].items():
        for value in (*values.tried, values.low, values.high):
            kind("pred", **{name: value})
    assert sum(len(values.tried) for values in GRIDS[kind].values()) < MAX_TRIALS / 3  # and sizes, and rounds


def test_what_numbers_objects_in_the_configs_is_tuned() -> None:
    assert [_kind_of([kind("pred")]) for kind in GRIDS] == list(GRIDS)
    others = ([], [AsDiscreted("pred", argmax=True)], [WatershedInstancesd("pred")] * 2)
    assert {_kind_of(steps) for steps in others} == {WatershedInstancesd}


def objects(folder: Path, *cases: tuple[np.ndarray, np.ndarray], numbered: bool = True) -> Store:
    """Cases of interior probabilities and true objects, each (*spatial)."""
    store = Store(folder, objects=True, numbered=numbered)
    for interior, truth in cases:
        pred = torch.from_numpy(np.stack([1 - interior, interior]).astype(np.float32))
        store.put(f"case{len(store.cases)}", pred, torch.from_numpy(truth)[None])
    return store


def score(store: Store, measure: str) -> float:
    return judge_objects(store.cases, WatershedInstancesd("pred"), measure, {}).score


def test_score_is_the_mean_over_the_cases_that_say_something(tmp_path: Path) -> None:
    truth = np.zeros((20, 30), dtype=int)
    truth[2:12, 2:12], truth[2:12, 12:22] = 1, 2  # 100 pixels each, side by side
    joined = 0.9 * (truth > 0)
    parted = joined.copy()
    parted[:, 12] = 0
    missing = parted.copy()
    missing[:, 13:] = 0
    empty = 0 * joined
    for number, (cases, expected) in enumerate(
        [
            ([(parted, truth)], 1.0),
            ([(joined, truth)], 0.0),  # one instance of 200 pixels: IoU 0.5 with each, not above
            ([(missing, truth)], 0.5),
            ([(parted, truth), (joined, truth), (missing, truth), (empty, 0 * truth)], 0.5),
        ]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        store = objects(folder, *cases)
        assert score(store, "ap50") == pytest.approx(expected)
        assert store.sizes[1] == [100, 100] * sum(true.any() for _, true in cases)
    # two regions of 100 in one: sum p_ij^2 = 2 / 4, sum s^2 = 1, sum t^2 = 2 / 4
    alone = objects(tmp_path, (joined, truth))
    assert score(alone, "v_rand") == pytest.approx(0.5 / (0.5 * 1 + 0.5 * 0.5))


def test_what_nobody_annotated_counts_not(tmp_path: Path) -> None:
    cells = np.zeros((20, 30), dtype=int)
    cells[2:12, 2:12] = 1
    interior = (cells > 0).astype(float)
    interior[14:19, 14:29] = 1  # an object where nobody looked
    label = cells.copy()
    label[13:] = IGNORE_LABEL
    assert score(objects(tmp_path, (interior, label), numbered=False), "ap50") == 1
    assert score(objects(tmp_path, (interior, cells), numbered=False), "ap50") == 0.5


def test_equal_seg_ends_without_inventing_objects(tmp_path: Path) -> None:
    """Specks beside true cells leave SEG alone; `min_size` of 1, tried first, invents them all."""
    truth = np.zeros((60, 60), dtype=int)
    for number in range(9):
        row, column = divmod(number, 3)
        truth[4 + 20 * row : 14 + 20 * row, 4 + 20 * column : 14 + 20 * column] = number + 1
    interior = 0.9 * (truth > 0)
    interior[17:60:20, ::4] = 0.9  # 45 specks of one pixel
    store = objects(tmp_path, (interior, truth), (interior[::-1].copy(), truth[::-1].copy()))

    def judge(parameters: dict[str, Any]) -> Trial:
        return judge_objects(store.cases, WatershedInstancesd("pred", **parameters), "seg", parameters)

    trials = search(judge, {"min_size": 1, "max_hole": 0}, store.grid(1, 1))
    best, first = best_of(trials), trials[0]
    assert first.score == best.score == 1
    assert (first.facts["objects"], best.facts["objects"]) == (2 * (9 + 45), 2 * 9)
    assert best.parameters["min_size"] > 1


def classes(folder: Path, *cases: tuple[np.ndarray, np.ndarray]) -> Store:
    """Cases of class maps, or of foreground probabilities, and true classes, each (*spatial)."""
    store = Store(folder, objects=False)
    for found, truth in cases:
        values = found[None] if found.dtype.kind == "i" else np.stack([1 - found, found])
        store.put(f"case{len(store.cases)}", torch.from_numpy(values), torch.from_numpy(truth)[None])
    return store


def organs(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A volume of two organs, the first of them with specks and a hole in what is found, the second right."""
    random = np.random.default_rng(seed)
    truth = np.zeros((24, 26, 28), dtype=np.int64)
    truth[4:14, 4:16, 4:16], truth[16:22, 4:16, 4:16] = 1, 2
    found = truth.copy()
    for corner in random.integers(18, 24, size=(6, 2)):
        found[1, corner[0], corner[1]] = 1
    found[7:9, 8:10, 8] = 0
    found[4, 4 : 4 + seed] = 0  # every case is another
    return found, truth


def test_specks_and_holes_are_taken_out_where_that_helps(tmp_path: Path, capsys: Any) -> None:
    store = classes(tmp_path, *map(organs, range(1, 7)))
    overlay = tune_classes(store, ["background", "organ", "vessel"], "dice", tmp_path)
    assert overlay["threshold"] is None
    assert overlay["clean"]["vessel"] == {}
    organ = overlay["clean"]["organ"]
    assert organ.get("largest") or organ.get("min_size", 0) > 1
    assert organ["max_hole"] >= 4
    with (tmp_path / "tune.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["kept"]]
    assert [row["class"] for row in rows] == ["organ", "vessel"]
    assert float(rows[0]["gain"]) > float(rows[0]["standard error"])
    assert float(rows[1]["dice"]) == 1
    assert np.asarray(Image.open(tmp_path / "tune.png")).std() > 0
    assert "organ" in capsys.readouterr().out


def test_fewer_than_five_cases_keep_nothing(tmp_path: Path, capsys: Any) -> None:
    store = classes(tmp_path, *map(organs, range(1, 5)))
    overlay = tune_classes(store, ["background", "organ", "vessel"], "dice", tmp_path)
    assert overlay == {"threshold": None, "clean": None}
    assert "4 case(s) tell no gain from chance: with fewer than 5 nothing is kept." in capsys.readouterr().out


def test_a_threshold_is_chosen_for_two_classes(tmp_path: Path) -> None:
    """A network that is too sure of the foreground: its rim is 0.6 where there is none."""
    cases = []
    for seed in range(6):
        truth = np.zeros((30, 40), dtype=np.int64)
        truth[5:20, 5 : 20 + seed] = 1
        found = 0.9 * truth
        found[20:23, 5 : 20 + seed] = 0.64
        cases.append((found, truth))
    overlay = tune_classes(classes(tmp_path, *cases), ["background", "vessel"], "dice", tmp_path)
    assert overlay["clean"] == {"vessel": {}}  # so that it is refused where classes have other names
    assert 0.64 < overlay["threshold"] < 0.9


@pytest.mark.parametrize("measure", ["dice", "surface_dice"])
def test_a_class_that_is_nowhere_counts_and_the_box_changes_nothing(tmp_path: Path, measure: str) -> None:
    found, truth = organs(2)
    none = np.zeros_like(truth)
    store = classes(tmp_path, (found, truth), (none, none), (found, none))
    assert np.load(store.cases[0].pred).size < found.size  # a box is enough
    trial = judge_class(store.cases, 1, measure, NOTHING)
    if measure == "dice":
        hits = ((found == 1) & (truth == 1)).sum()
        assert trial.scores[0] == pytest.approx(2 * hits / ((found == 1).sum() + (truth == 1).sum()))
        assert mean_dice(store.cases[0].judged(np.load(store.cases[0].pred)[0])) > 0
    assert 0 < trial.scores[0] < 1
    assert trial.scores[1:] == (1.0, 0.0)
    assert trial.facts["false positive voxels"] == (found == 1).sum() + ((found == 1) & (truth != 1)).sum()
    clean = judge_class(store.cases, 1, measure, {**NOTHING, "largest": True, "max_hole": 10})
    assert clean.scores[0] > trial.scores[0]


def test_classes_count_where_somebody_annotated(tmp_path: Path) -> None:
    found, truth = organs(2)
    truth[:4] = IGNORE_LABEL  # the specks lie there
    found[4, 4:6, 4:16] = 1
    trial = judge_class(classes(tmp_path, (found, truth)).cases, 1, "dice", NOTHING)
    assert trial.facts["false positive voxels"] == 0
    assert trial.scores[0] > 0.99


def save_nifti(path: Path, values: np.ndarray) -> Path:
    nib.Nifti1Image(values.astype(np.float32), np.diag([2.0, 2, 3, 1])).to_filename(path)
    return path


def test_probabilities_are_read_with_their_place(tmp_path: Path) -> None:
    random = np.random.default_rng(0).random((5, 6, 7, 3))
    random /= random.sum(-1, keepdims=True)
    pred = read_probabilities(save_nifti(tmp_path / "a_prob.nii.gz", random), 3, 3)
    np.testing.assert_allclose(pred, np.moveaxis(random, -1, 0), atol=1e-6)
    assert pred.meta["original_affine"][2, 2] == 3
    for values, classes_, found in [
        (random, 2, "shape (5, 6, 7, 3); the network has 2 classes in 3 dimensions"),
        (random[..., 0], 3, "shape (5, 6, 7); the network has 3 classes"),
        (2 * random, 3, "channels that do not add up to 1"),
        (math.nan * random, 3, "channels that do not add up to 1"),
    ]:
        file = save_nifti(tmp_path / "b_prob.nii.gz", values)
        with pytest.raises(Fault) as caught:
            read_probabilities(file, classes_, 3)
        assert f"{file}: found {found}" in str(caught.value)


def test_picture_of_the_trials(tmp_path: Path) -> None:
    grid = GRIDS[WatershedInstancesd]
    start = {name: values.tried[0] for name, values in grid.items()}
    trials = search(lambda p: Trial(p, (p["neck"] - p["threshold"],)), {**start, "line": False}, grid)
    drawn = (sorted(trials, key=lambda trial: -trial.score), grid)
    draw_trials({"one": drawn, "two": drawn}, "ap50", tmp_path / "tune.png")
    assert np.asarray(Image.open(tmp_path / "tune.png")).std() > 0


def test_the_command_that_is_printed_can_be_repeated(tmp_path: Path) -> None:
    """Whatever characters the folders have; in a shell, and then in the list of configs."""
    odd = tmp_path / """it's a "$HOME" `x` é \\ folder"""
    given = {"args_file": odd / "a.json", "dataset_dir": odd / "data", "output_dir": odd / "out"}
    said = judging(
        ["configs/train.json", str(odd / "task.json")], odd / "p.json", given, Store(tmp_path, True)
    )
    show = f"python() {{ {sys.executable} -c 'import json, sys; print(json.dumps(sys.argv[1:]))' \"$@\"; }}; "
    lines = subprocess.run(["sh", "-c", show + said], capture_output=True, text=True, check=True).stdout
    run, score = map(json.loads, lines.splitlines())
    files = ["configs/inference.json", str(odd / "task.json"), str(odd / "p.json")]
    assert ast.literal_eval(run[run.index("--config_file") + 1]) == files
    assert run[run.index("--dataset_dir") + 1] == score[4] == str(odd / "data")
