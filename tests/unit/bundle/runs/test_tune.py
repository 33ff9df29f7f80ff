"""The search for parameters, and how they are judged; tests/workflows/test_tune.py runs the command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.transforms import AsDiscreted
from PIL import Image

from bundle.runs.tune import GRIDS, MAX_TRIALS, Predicted, Trial, _kind_of, draw_trials, mean_score, search
from scripts.transforms import WatershedInstancesd

GRID_OF_TWO = {"a": (1, 2, 3, 4), "b": (0, 10, 20)}


def test_search_finds_the_best_where_parameters_act_alone() -> None:
    trials = search(
        lambda p: -((p["a"] - 3) ** 2) - (p["b"] - 10) ** 2, {"a": 1, "b": 0, "c": "x"}, GRID_OF_TWO
    )
    assert trials[0].parameters == {"a": 1, "b": 0, "c": "x"}
    assert max(trials, key=lambda trial: trial.score) == Trial({"a": 3, "b": 10, "c": "x"}, 0)
    tried = [(t.parameters["a"], t.parameters["b"]) for t in trials]
    # the first round: a with b = 0, b with a = 3; the second: a with b = 10, without what was tried
    assert tried == [(1, 0), (2, 0), (3, 0), (4, 0), (3, 10), (3, 20), (1, 10), (2, 10), (4, 10)]


def test_search_goes_on_while_a_round_makes_it_better() -> None:
    """b = 20 is better only once a is 4, which is better only once b is 10."""
    score = {(1, 0): 1, (1, 10): 2, (4, 10): 3, (4, 20): 4}
    trials = search(lambda p: score.get((p["a"], p["b"]), 0), {"a": 1, "b": 0}, GRID_OF_TWO)
    assert max(trials, key=lambda trial: trial.score).parameters == {"a": 4, "b": 20}


def test_search_keeps_the_start_among_equals_and_its_limit() -> None:
    start = {"a": 2, "b": 5}  # 5 is not in the grid
    trials = search(lambda p: 1.0, start, GRID_OF_TWO)
    assert max(trials, key=lambda trial: trial.score).parameters == start
    assert len(trials) == 1 + 3 + 3
    assert len(search(lambda p: p["a"] * p["b"], start, GRID_OF_TWO, limit=4)) == 4


@pytest.mark.parametrize("kind", GRIDS)
def test_grid_holds_legal_values_and_fits_the_limit(kind: type) -> None:
    for name, values in GRIDS[kind].items():
        for value in values:
            kind("pred", **{name: value})
    assert sum(map(len, GRIDS[kind].values())) < MAX_TRIALS / 2  # two rounds at least


def test_what_numbers_objects_in_the_configs_is_tuned() -> None:
    assert [_kind_of([kind("pred")]) for kind in GRIDS] == list(GRIDS)
    others = ([], [AsDiscreted("pred", argmax=True)], [WatershedInstancesd("pred")] * 2)
    assert {_kind_of(steps) for steps in others} == {WatershedInstancesd}


def make_case(
    folder: Path, name: str, interior: np.ndarray, truth: np.ndarray, mask: Any = True
) -> Predicted:
    np.save(folder / f"{name}.npy", np.stack([1 - interior, interior]).astype(np.float32))
    return Predicted(folder / f"{name}.npy", truth, np.broadcast_to(mask, truth.shape))


def test_score_is_the_mean_over_the_cases_that_say_something(tmp_path: Path) -> None:
    truth = np.zeros((20, 30), dtype=int)
    truth[2:12, 2:12], truth[2:12, 12:22] = 1, 2  # 100 pixels each, side by side
    interior = 0.9 * (truth > 0)
    joined = make_case(tmp_path, "joined", interior, truth)
    apart = interior.copy()
    apart[:, 12] = 0
    half = apart.copy()
    half[:, 13:] = 0
    parted, missing = make_case(tmp_path, "parted", apart, truth), make_case(tmp_path, "half", half, truth)
    empty = make_case(tmp_path, "empty", 0 * interior, 0 * truth)
    transform = WatershedInstancesd("pred")
    for cases, expected in [
        ([parted], 1.0),
        ([joined], 0.0),  # one instance of 200 pixels: IoU 0.5 with each, not above
        ([missing], 0.5),
        ([parted, joined, missing, empty], 0.5),
    ]:
        assert mean_score(cases, transform, "ap50") == pytest.approx(expected)
    # two regions of 100 in one: sum p_ij^2 = 2 / 4, sum s^2 = 1, sum t^2 = 2 / 4
    assert mean_score([joined], transform, "v_rand") == pytest.approx(0.5 / (0.5 * 1 + 0.5 * 0.5))


def test_what_nobody_annotated_counts_not(tmp_path: Path) -> None:
    truth = np.zeros((20, 30), dtype=int)
    truth[2:12, 2:12] = 1
    interior = (truth > 0).astype(float)
    interior[14:19, 14:29] = 1  # an object where nobody looked
    mask = np.ones(truth.shape, dtype=bool)
    mask[13:] = False
    case = make_case(tmp_path, "case", interior, truth, mask)
    assert mean_score([case], WatershedInstancesd("pred"), "ap50") == 1
    assert (
        mean_score([make_case(tmp_path, "all", interior, truth)], WatershedInstancesd("pred"), "ap50") == 0.5
    )
    assert torch.from_numpy(np.load(case.probabilities)).dtype == torch.float32


def test_picture_of_the_trials(tmp_path: Path) -> None:
    start = {name: values[0] for name, values in GRIDS[WatershedInstancesd].items()}
    trials = search(
        lambda p: p["neck"] - p["threshold"], {**start, "line": False}, GRIDS[WatershedInstancesd]
    )
    draw_trials(
        sorted(trials, key=lambda trial: -trial.score),
        GRIDS[WatershedInstancesd],
        "ap50",
        tmp_path / "tune.png",
    )
    assert np.asarray(Image.open(tmp_path / "tune.png")).std() > 0
