"""Cells coloured and drawn, with what is wrong with them."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import tifffile
from matplotlib.figure import Figure
from PIL import Image

from bundle.data.phantom import draw_cells
from scripts import pictures
from scripts.errors import InputError
from scripts.judging import Case, CellErrors
from scripts.pictures import (
    DPI,
    Panel,
    distinct_colours,
    draw_instances,
    draw_learning_curve,
    draw_panels,
    shown,
)


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


@pytest.mark.parametrize("name", ["c1", "0dc2a9f" * 9])
def test_titles_do_not_run_into_each_other(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr(pictures, "save_figure", lambda figure, path: figures.append(figure))
    cells = random_cells(0)
    draw_panels([Panel(cells, cells, cells, f"median: {name}: mean Dice 0.951")], "unused.png")
    (figure,) = figures
    figure.draw_without_rendering()
    titles = [axis.title for axis in figure.axes]
    assert titles[0].get_text().startswith(f"median: {name[:7]}")
    assert titles[0].get_text().endswith(": mean Dice 0.951")
    boxes = [title.get_window_extent() for title in titles]
    assert boxes[0].x0 >= 0
    assert all(one.x1 < other.x0 for one, other in pairwise(boxes))


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
    right = draw_instances(image, Case("a", renumbered(truth, 1), truth), tmp_path / "right.png")
    assert right == CellErrors((), (), (), ())
    assert coloured(tmp_path / "right.png") == 0
    glued = (truth > 0).astype(int)  # all cells as one
    wrong = draw_instances(image, Case("a", glued, truth), tmp_path / "wrong.png")
    assert wrong.merged == (1,)
    assert coloured(tmp_path / "wrong.png") > 1000
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["right.png", "wrong.png"]


def test_pictures_of_colours_are_drawn_in_colour(tmp_path: Path) -> None:
    image, truth = draw_cells(0, 0, (96, 96))
    purple = np.stack([image, np.zeros_like(image), image])
    for colours in (shown(purple), shown(purple[:1])):
        draw_instances(colours, Case("a", truth, truth), tmp_path / "cells.png")
        picture = np.asarray(Image.open(tmp_path / "cells.png").convert("RGB")).astype(int)
        first = picture[:, : picture.shape[1] // 5]
        purples = (first[..., 0] - first[..., 1] > 100) & (first[..., 2] == first[..., 0])
        assert purples.any() == (len(colours) == 3)


def test_colours_are_those_of_the_file(tmp_path: Path) -> None:
    """Whatever a normalisation of each channel, and a resampling, have made of them."""
    rng = np.random.default_rng(0)
    tissue = np.stack(
        [rng.normal(mean, spread, (60, 90)) for mean, spread in ((200, 20), (120, 30), (180, 9))]
    )
    stored = np.transpose(tissue.clip(0, 255), (1, 2, 0)).astype(np.uint8)  # (rows, columns, 3)
    Image.fromarray(stored).save(tmp_path / "tissue.png")
    image = np.transpose(stored, (2, 1, 0)).astype(np.float32)
    normal = (image - image.mean((1, 2), keepdims=True)) / image.std((1, 2), keepdims=True)
    np.testing.assert_array_equal(shown(normal, tmp_path / "tissue.png"), np.transpose(stored, (2, 1, 0)))
    half = shown(normal[:, ::2, ::2], tmp_path / "tissue.png").astype(float)
    np.testing.assert_allclose(half, image[:, ::2, ::2], atol=3)

    nothing = np.zeros((90, 60), int)
    draw_panels(
        [Panel(shown(normal, tmp_path / "tissue.png"), nothing, nothing, "a")], tmp_path / "drawn.png"
    )
    drawn = np.asarray(Image.open(tmp_path / "drawn.png").convert("RGB")).astype(float)
    height, width = drawn.shape[0] // 2, drawn.shape[1] // 8  # the middle of the first picture
    middle = drawn[height - 20 : height + 20, width - 20 : width + 20]
    np.testing.assert_allclose(middle.mean((0, 1)), stored.mean((0, 1)), atol=12)

    twelve_bits = stored.astype(np.uint16) * 16
    tifffile.imwrite(tmp_path / "camera.tif", twelve_bits, photometric="rgb")
    found = shown(normal, tmp_path / "camera.tif").astype(float)
    brighter = (image * 255 / np.percentile(image, 99.5)).clip(0, 255)
    np.testing.assert_allclose(found, brighter, atol=1)
    for other in ("gone.png", "volume.nii.gz", ""):
        np.testing.assert_array_equal(shown(normal, other and tmp_path / other), normal)


@pytest.mark.parametrize("size", [(700, 500), (40, 300), (1388, 1040)])
def test_no_pixel_of_a_picture_is_lost(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr(pictures, "save_figure", lambda figure, path: figures.append(figure))
    nothing = np.zeros(size, int)
    draw_panels([Panel(nothing, nothing, nothing, "a")], "unused.png")
    draw_instances(nothing, Case("a", nothing, nothing), "unused.png")
    for figure in figures:
        figure.draw_without_rendering()
        box = figure.axes[0].get_window_extent().transformed(figure.dpi_scale_trans.inverted())
        assert min(box.width * DPI / size[0], box.height * DPI / size[1]) > 0.98


def test_errors_of_a_volume_are_counted_in_all_slices(tmp_path: Path) -> None:
    truth = np.zeros((12, 12, 6), int)
    truth[2:10, 2:10, 0:2], truth[4:6, 4:6, 4:6] = 1, 2
    pred = np.where(truth == 1, 1, 0)
    errors = draw_instances(truth.astype(float), Case("a", pred, truth), tmp_path / "volume.png")
    assert errors == CellErrors((), (), (2,), ())
    assert (tmp_path / "volume.png").stat().st_size > 0


def test_other_sizes_are_refused(tmp_path: Path) -> None:
    cells = np.ones((4, 4), int)
    with pytest.raises(InputError, match="on one grid"):
        draw_instances(np.ones((5, 4)), Case("a", cells, cells), tmp_path / "never.png")
    with pytest.raises(InputError, match="on one grid"):
        distinct_colours(cells, np.ones((5, 4), int))


@pytest.mark.parametrize("epochs", [1, 2, 3, 40])
def test_a_learning_curve_has_whole_epochs_below_it(
    epochs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []
    monkeypatch.setattr(pictures, "save_figure", lambda figure, path: drawn.append(figure))
    rows = [{"epoch": epoch + 1, "loss": 1 / (epoch + 1), "dice": 0.5} for epoch in range(epochs)]
    draw_learning_curve(rows, "dice", tmp_path / "curve.png")
    ticks = drawn[0].axes[0].get_xticks()
    assert len(ticks) > 0
    assert all(tick == round(tick) for tick in ticks)


def test_what_nobody_annotated_is_greyed_and_shows_what_was_predicted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr(pictures, "save_figure", lambda figure, path: figures.append(figure))
    truth = np.zeros((20, 30), int)
    truth[2:8, 2:8] = 1
    pred = truth.copy()
    pred[10:18, 20:28] = 1
    mask = np.ones(truth.shape, dtype=bool)
    mask[:, 15:] = False
    for sparse in (None, mask):
        case = Case("a", pred, truth, sparse)
        panel = Panel.of(case, np.zeros(truth.shape), "a")
        np.testing.assert_array_equal(panel.pred, pred)
        draw_panels([panel], "unused.png")
        draw_instances(np.zeros(truth.shape), case, "unused.png")
    layers = [[len(axis.images) for axis in figure.axes[:4]] for figure in figures]
    assert layers == [[1, 2, 2, 2], [1, 2, 2, 2], [1, 3, 3, 3], [1, 3, 3, 3]]
    assert "grey: not annotated" in figures[2]._supxlabel.get_text()
    error = np.asarray(figures[2].axes[3].images[1].get_array())
    assert not error.any()
