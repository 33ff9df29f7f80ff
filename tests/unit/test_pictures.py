"""Cells that are merged, split, missed and invented: counted by hand and by brute force, coloured, drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bundle.data.phantom import draw_cells
from scripts.errors import InputError
from scripts.pictures import CellErrors, cell_errors, distinct_colours, draw_instances

#: Truth and prediction side by side, a column a pixel.
TRUTH = [[1, 1, 1, 2, 2, 2, 0, 3, 3, 3, 3, 0, 4, 4, 4, 4, 0, 0, 0, 5, 5, 5]]
PRED = [[7, 7, 7, 7, 7, 0, 0, 8, 8, 9, 9, 0, 4, 0, 0, 0, 0, 6, 6, 5, 5, 5]]


def renumbered(cells: np.ndarray, seed: int) -> np.ndarray:
    """The same cells under other numbers, which are neither consecutive nor in order."""
    ids = np.unique(cells)
    new = np.random.default_rng(seed).permutation(np.arange(1, 3 * len(ids) + 1))[: len(ids)]
    new[ids == 0] = 0
    return new[np.searchsorted(ids, cells)]


def random_cells(seed: int) -> np.ndarray:
    """Blocks of up to nine cells and background."""
    rng = np.random.default_rng(seed)
    return np.kron(rng.integers(0, 10, (4, 5)), np.ones((2, 3), int))


def test_errors_counted_by_hand() -> None:
    # 7 covers all of 1 and two thirds of 2; 3 holds all of 8 and of 9; a quarter of 4 is covered, by a cell
    # that lies where it should; nothing is under 6; 5 is right
    errors = cell_errors(np.array(TRUTH), np.array(PRED))
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
    assert cell_errors(np.array(truth), np.array(pred)) == expected


@pytest.mark.parametrize("seed", range(20))
def test_errors_agree_with_sets_of_pixels(seed: int) -> None:
    truth, pred = random_cells(seed), np.roll(random_cells(seed + 100), 1, axis=1)
    true_cells = {i: set(np.flatnonzero(truth == i)) for i in np.unique(truth) if i}
    pred_cells = {i: set(np.flatnonzero(pred == i)) for i in np.unique(pred) if i}
    found = {t: sum(len(a & b) > len(a) / 2 for b in pred_cells.values()) for t, a in true_cells.items()}
    covers = {p: sum(len(a & b) > len(a) / 2 for a in true_cells.values()) for p, b in pred_cells.items()}
    holds = {t: sum(len(a & b) > len(b) / 2 for b in pred_cells.values()) for t, a in true_cells.items()}
    lies = {p: sum(len(a & b) > len(b) / 2 for a in true_cells.values()) for p, b in pred_cells.items()}
    assert cell_errors(truth, pred) == CellErrors(
        merged=tuple(p for p in pred_cells if covers[p] >= 2),
        split=tuple(t for t in true_cells if holds[t] >= 2),
        missed=tuple(t for t in true_cells if not found[t] and holds[t] < 2),
        invented=tuple(p for p in pred_cells if not lies[p] and covers[p] < 2),
    )


def test_exchange_of_truth_and_prediction_exchanges_the_names() -> None:
    one, other = np.array(TRUTH), np.array(PRED)
    there, back = cell_errors(one, other), cell_errors(other, one)
    assert (there.merged, there.split) == (back.split, back.merged)
    assert (there.missed, there.invented) == (back.invented, back.missed)


def test_neighbours_have_different_colours() -> None:
    _, cells = draw_cells(0, 0)
    colours = distinct_colours(cells)
    assert ((colours > 0) == (cells > 0)).all()
    assert colours.max() <= 7
    assert all(len(np.unique(colours[cells == i])) == 1 for i in np.unique(cells))
    for one, other in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        meet = (cells[one] != cells[other]) & (cells[one] > 0) & (cells[other] > 0)
        assert meet.any()
        assert (colours[one][meet] != colours[other][meet]).all()


@pytest.mark.parametrize("background", [True, False])
def test_colours_do_not_depend_on_numbers(background: bool) -> None:
    cells = random_cells(0) + (0 if background else 1)
    np.testing.assert_array_equal(distinct_colours(renumbered(cells, 1)), distinct_colours(cells))


def test_predicted_cells_take_the_colours_of_true_ones() -> None:
    _, truth = draw_cells(0, 1)
    colours = distinct_colours(truth)
    np.testing.assert_array_equal(distinct_colours(renumbered(truth, 2), colours), colours)
    without_some = np.where(truth % 3 == 1, 0, renumbered(truth, 3))
    expected = np.where(truth % 3 == 1, 0, colours)
    np.testing.assert_array_equal(distinct_colours(without_some, colours), expected)


def test_halves_of_a_cell_differ() -> None:
    truth = np.ones((8, 8), int)
    pred = truth.copy()
    pred[:, 4:] = 2
    colours = distinct_colours(pred, distinct_colours(truth))
    assert len(np.unique(colours)) == 2
    assert distinct_colours(truth)[0, 0] in colours


def coloured(path: Path) -> int:
    """Pixels of the error panel that are not grey."""
    picture = np.asarray(Image.open(path).convert("RGB")).astype(int)
    height, width, _ = picture.shape
    panel = picture[int(0.2 * height) : int(0.8 * height), int(0.77 * width) : int(0.98 * width)]
    return int((np.ptp(panel, axis=2) > 30).sum())


def test_picture_marks_errors_and_nothing_else(tmp_path: Path) -> None:
    image, truth = draw_cells(0, 0, (96, 96))
    right = draw_instances(image, truth, renumbered(truth, 1), tmp_path / "right.png")
    assert right == CellErrors((), (), (), ())
    assert coloured(tmp_path / "right.png") == 0
    glued = (truth > 0).astype(int)  # all cells as one
    wrong = draw_instances(image, truth, glued, tmp_path / "wrong.png")
    assert wrong.merged == (1,)
    assert coloured(tmp_path / "wrong.png") > 1000
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["right.png", "wrong.png"]


def test_errors_of_a_volume_are_counted_in_all_slices(tmp_path: Path) -> None:
    truth = np.zeros((12, 12, 6), int)
    truth[2:10, 2:10, 0:2], truth[4:6, 4:6, 4:6] = 1, 2
    pred = np.where(truth == 1, 1, 0)
    errors = draw_instances(truth.astype(float), truth, pred, tmp_path / "volume.png")
    assert errors == CellErrors((), (), (2,), ())
    assert (tmp_path / "volume.png").stat().st_size > 0


def test_other_sizes_are_refused(tmp_path: Path) -> None:
    cells = np.ones((4, 4), int)
    with pytest.raises(InputError, match=r"\[4, 4\] and \[4, 5\] pixels: give both on one grid"):
        cell_errors(cells, np.ones((4, 5), int))
    with pytest.raises(InputError, match="on one grid"):
        draw_instances(np.ones((5, 4)), cells, cells, tmp_path / "never.png")
    with pytest.raises(InputError, match="on one grid"):
        distinct_colours(cells, np.ones((5, 4), int))
