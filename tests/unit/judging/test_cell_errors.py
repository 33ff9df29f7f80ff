"""Cells that are merged, split, missed and invented: counted by hand and by brute force."""

from __future__ import annotations

import numpy as np
import pytest

from scripts.judging import Case, CellErrors, cell_errors

#: Truth and prediction side by side, a column a pixel.
TRUE_ROW = [[1, 1, 1, 2, 2, 2, 0, 3, 3, 3, 3, 0, 4, 4, 4, 4, 0, 0, 0, 5, 5, 5]]
FOUND_ROW = [[7, 7, 7, 7, 7, 0, 0, 8, 8, 9, 9, 0, 4, 0, 0, 0, 0, 6, 6, 5, 5, 5]]


def random_cells(seed: int) -> np.ndarray:
    """Blocks of up to nine cells and background."""
    rng = np.random.default_rng(seed)
    return np.kron(rng.integers(0, 10, (4, 5)), np.ones((2, 3), int))


def test_errors_counted_by_hand() -> None:
    # 7 covers all of 1 and two thirds of 2; 3 holds all of 8 and of 9; a quarter of 4 is covered, by a cell
    # that lies where it should; nothing is under 6; 5 is right
    errors = cell_errors(Case("a", np.array(FOUND_ROW), np.array(TRUE_ROW)))
    assert errors == CellErrors(merged=(7,), split=(3,), missed=(4,), invented=(6,))
    assert str(errors) == "1 merged, 1 split, 1 missed, 1 invented"


@pytest.mark.parametrize(
    ("truth", "pred", "expected"),
    [
        ([1, 1], [2, 0], CellErrors((), (), (1,), ())),  # half is not more than half
        ([1, 1, 1], [2, 2, 0], CellErrors((), (), (), ())),
        ([1, 0], [2, 2], CellErrors((), (), (), (2,))),  # covers 1, but lies on it by no more than half
        ([0, 0], [0, 0], CellErrors((), (), (), ())),
        ([1, 1], [3, 4], CellErrors((), (1,), (), ())),  # no background at all
        ([1, 2], [3, 3], CellErrors((3,), (), (), ())),
    ],
)
def test_errors_at_the_edges(truth: list[int], pred: list[int], expected: CellErrors) -> None:
    assert cell_errors(Case("a", np.array(pred), np.array(truth))) == expected


@pytest.mark.parametrize("seed", range(20))
def test_errors_agree_with_sets_of_pixels(seed: int) -> None:
    truth, pred = random_cells(seed), np.roll(random_cells(seed + 100), 1, axis=1)
    true_cells = {i: set(np.flatnonzero(truth == i)) for i in np.unique(truth) if i}
    pred_cells = {i: set(np.flatnonzero(pred == i)) for i in np.unique(pred) if i}
    found = {t: sum(len(a & b) > len(a) / 2 for b in pred_cells.values()) for t, a in true_cells.items()}
    covers = {p: sum(len(a & b) > len(a) / 2 for a in true_cells.values()) for p, b in pred_cells.items()}
    holds = {t: sum(len(a & b) > len(b) / 2 for b in pred_cells.values()) for t, a in true_cells.items()}
    lies = {p: sum(len(a & b) > len(b) / 2 for a in true_cells.values()) for p, b in pred_cells.items()}
    assert cell_errors(Case("a", pred, truth)) == CellErrors(
        merged=tuple(p for p in pred_cells if covers[p] >= 2),
        split=tuple(t for t in true_cells if holds[t] >= 2),
        missed=tuple(t for t in true_cells if not found[t] and holds[t] < 2),
        invented=tuple(p for p in pred_cells if not lies[p] and covers[p] < 2),
    )


def test_exchange_of_truth_and_prediction_exchanges_the_names() -> None:
    one, other = np.array(TRUE_ROW), np.array(FOUND_ROW)
    there, back = cell_errors(Case("a", other, one)), cell_errors(Case("a", one, other))
    assert (there.merged, there.split) == (back.split, back.merged)
    assert (there.missed, there.invented) == (back.invented, back.missed)


def test_cells_that_nobody_annotated_are_not_missed() -> None:
    truth, pred = np.array(TRUE_ROW), np.array(FOUND_ROW)
    mask = np.ones(truth.shape, dtype=bool)
    mask[:, 12:20] = False  # cell 4, missed, and 6, invented
    assert cell_errors(Case("a", pred, truth, mask)) == CellErrors((7,), (3,), (), ())
