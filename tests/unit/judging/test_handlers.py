"""What judges an engine's cases: their names, what is annotated, memory, several processes."""

from __future__ import annotations

import csv
import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing
from ignite.engine import Engine
from monai.data import MetaTensor

from scripts.errors import InputError
from scripts.judging import Case, class_scores, mean_dice
from scripts.judging.handlers import CasePictures, CaseScores
from scripts.labels import IGNORE_LABEL
from scripts.pictures import Panel
from tests.commands import written

LABELS = {"background": 0, "a": 1, "b": 2, "ignore": 9}

Maps = tuple[np.ndarray, np.ndarray]


def draw(seed: int, shape: tuple[int, ...] = (12, 10)) -> Maps:
    """Prediction and truth, in which a few voxels are not annotated."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 3, shape)
    pred = np.where(rng.random(shape) < 0.1 * (1 + seed % 7), 0, truth)
    truth[:2] = IGNORE_LABEL
    return pred, truth


def judge(handler: Any, cases: dict[str, Maps], key: str = "case") -> None:
    """Run an engine over cases, a batch each, with what MONAI's evaluator leaves in its state."""

    def step(engine: Engine, name: str) -> list[dict]:
        pred, truth = cases[name]
        meta = {"filename_or_obj": f"/data/{name}/imaging.nii.gz"}
        affine = torch.diag(torch.tensor([2.0] * 3 + [1.0]))
        image = MetaTensor(truth[None].astype(np.float32), affine=affine, meta=meta)
        label = MetaTensor(truth[None].astype(np.float32), affine=affine, meta=meta)
        engine.state.batch = [{"image": image, key: name}]
        return [{"image": image, "label": label, "pred": torch.from_numpy(pred[None])}]

    engine = Engine(step)
    handler.attach(engine)
    engine.run(list(cases), max_epochs=1)


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "scores.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_rows_are_named_by_the_id_and_leave_out_what_nobody_annotated(tmp_path: Path) -> None:
    cases = {"run-1.5": draw(1), "run-1.0": draw(0), "site/7": draw(2)}
    judge(CaseScores(str(tmp_path), LABELS, 3.0), cases)
    rows = rows_of(tmp_path)
    assert [(row["case"], row["class"]) for row in rows] == [
        (case, name) for case in ("run-1.0", "run-1.5", "site/7") for name in "ab"
    ]
    for case, (pred, truth) in cases.items():
        expected = class_scores(Case(case, pred, truth, truth != IGNORE_LABEL, spacing=(2.0, 2.0)), 3, 3.0)
        for row, wanted in zip((row for row in rows if row["case"] == case), expected, strict=True):
            assert {name: float(row[name]) for name in wanted} == pytest.approx(wanted, nan_ok=True)
    summary = json.loads((tmp_path / "summary.json").read_text())
    about = {key: summary[key] for key in ("measure", "cases", "not_scored", "tolerance")}
    assert about == {"measure": "classes", "cases": 3, "not_scored": 0, "tolerance": 3.0}
    assert summary["annotated"] == pytest.approx(10 / 12)  # two of twelve rows are not
    whole = np.zeros((6, 7), int)
    whole[2:4, 2:4] = 1
    judge(CaseScores(str(tmp_path / "whole"), LABELS), {"a": (whole, whole)})
    assert "annotated" not in json.loads((tmp_path / "whole/summary.json").read_text())
    assert {entry["cases"] for entry in summary["summary"] if entry["score"] == "dice"} == {3}
    names = ["cases.png", "scores.csv", "scores.png", "summary.csv", "summary.json"]
    assert written(tmp_path / "whole") == names  # nothing of the slices is left


def test_cases_of_one_name_are_refused(tmp_path: Path) -> None:
    """Without ids they are called by their files, which here have one name."""
    with pytest.raises(InputError, match="several cases are called 'imaging': give each an id of its own"):
        judge(CaseScores(str(tmp_path), LABELS), {"c1": draw(0), "c2": draw(1)}, key="other")
    assert written(tmp_path) == []


def test_worst_median_and_best_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[list[Panel]] = []
    monkeypatch.setattr("scripts.judging.handlers.draw_panels", lambda panels, path: drawn.append(panels))
    cases = {f"c{seed}": draw(seed, (9, 8, 5)) for seed in range(7)}
    empty = np.zeros((9, 8, 5), int)
    judge(CaseScores(str(tmp_path), LABELS), {**cases, "empty": (empty, empty)})
    judge(CasePictures(str(tmp_path)), {**cases, "empty": (empty, empty)})
    dice = {name: mean_dice(Case(name, *maps, maps[1] != IGNORE_LABEL)) for name, maps in cases.items()}
    ranked = sorted(dice, key=dice.__getitem__)
    for panels, places in zip(drawn, ([0, 3, 6], [0, 6]), strict=True):
        for panel, place in zip(panels, places, strict=True):
            assert f"{ranked[place]}: mean Dice {dice[ranked[place]]:.3f}" in panel.title
            assert panel.image.shape == (9, 8)
            assert panel.truth.max() <= 2
    assert [panel.title.split(":")[0] for panel in drawn[0]] == ["worst", "median", "best"]


@pytest.mark.parametrize("handler", [CaseScores, CasePictures])
def test_memory_does_not_grow_with_the_cases(handler: Any, tmp_path: Path) -> None:
    judged = handler(str(tmp_path), LABELS) if handler is CaseScores else handler(str(tmp_path))
    volume = np.zeros((40, 40, 40))
    volume[10:20] = 1
    held = {}

    class Cases(dict[str, Maps]):
        def __getitem__(self, name: str) -> Maps:
            held[name], _ = tracemalloc.get_traced_memory()
            return volume + 0, volume + 0  # as an evaluator reads each anew

    tracemalloc.start()
    judge(judged, Cases.fromkeys([f"c{index:02}" for index in range(12)]))
    tracemalloc.stop()
    assert held["c11"] - held["c03"] < volume.nbytes / 2


def _process(rank: int, folder: str) -> None:
    """One of two processes, which have three and two of five cases."""
    torch.distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    cases = {f"c{seed}": draw(seed) for seed in range(5)}
    mine = dict(list(cases.items())[rank::2])
    judge(CaseScores(f"{folder}/two/scores", LABELS), mine)
    judge(CasePictures(f"{folder}/two/pictures"), mine)
    torch.distributed.destroy_process_group()


@pytest.mark.long
def test_two_processes_judge_every_case_once(tmp_path: Path) -> None:
    other = torch.multiprocessing.spawn(_process, args=(str(tmp_path),), nprocs=1, join=False)
    _process(1, str(tmp_path))
    while not other.join():
        pass
    cases = {f"c{seed}": draw(seed) for seed in range(5)}
    judge(CaseScores(str(tmp_path / "one/scores"), LABELS), cases)
    judge(CasePictures(str(tmp_path / "one/pictures")), cases)
    assert written(tmp_path / "two") == written(tmp_path / "one")
    for name in written(tmp_path / "one"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes(), name
