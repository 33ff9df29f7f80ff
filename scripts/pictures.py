"""Pictures that people look at: cases side by side, cells merged and split, learning curves, scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from scipy import ndimage
from skimage.segmentation import find_boundaries

from scripts.errors import InputError
from scripts.files import atomic_write

#: Where matplotlib puts the first row of an array.
Origin = Literal["upper", "lower"]

#: Colours of the classes 0, 1, 2, ...; the background is clear.
CLASS_COLOURS = ["#00000000", "#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7"]

#: What the error picture shows: nothing, missed, invented, wrong class.
ERROR_COLOURS = ["#00000000", "#d55e00", "#56b4e9", "#f0e442"]

#: What the picture of instances marks beside missed and invented cells: merged, split, and their outlines.
MERGED_COLOUR, SPLIT_COLOUR, OUTLINE_COLOUR = "#cc79a7", "#f0e442", "#000000"

#: Cells at most this many pixels apart get different colours where there are enough colours.
NEIGHBOUR_DISTANCE = 3


@dataclass
class Panel:
    """One case to be drawn.

    Attributes:
        image: (*spatial), grey values.
        truth: (*spatial), class indices.
        pred: (*spatial), class indices.
        title: what stands above the row.
    """

    image: np.ndarray
    truth: np.ndarray
    pred: np.ndarray
    title: str


def draw_panels(panels: Sequence[Panel], path: str | Path) -> None:
    """Save cases as rows of image, truth, prediction and error; volumes by the fullest slice.

    Args:
        panels: at least one case.
        path: the PNG to write.
    """
    origin: Origin = (
        "upper" if panels[0].image.ndim == 2 else "lower"
    )  # pictures run down, RAS volumes run up
    figure = Figure(figsize=(12, 3.3 * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), 4, squeeze=False)
    for row, panel in zip(axes, panels, strict=True):
        image, truth, pred = _slice(panel)
        error = np.select(
            [truth == pred, pred == 0, truth == 0], [0, 1, 2], default=3
        )  # nothing, missed, invented, wrong class
        low, high = np.percentile(image, [0.5, 99.5])
        for axis, name in zip(row, ("image", "truth", "prediction", "error"), strict=True):
            shades = Normalize(low, max(high, low + 1e-6))
            axis.imshow(image.T, cmap="gray", norm=shades, origin=origin, interpolation="nearest")
            axis.set_axis_off()
            axis.set_title(name if name != "image" else panel.title, fontsize=9)
        for axis, classes, colours in zip(
            row[1:], (truth, pred, error), (CLASS_COLOURS, CLASS_COLOURS, ERROR_COLOURS), strict=True
        ):
            _overlay(axis, classes, colours, origin)
    figure.supxlabel("error: orange missed, blue invented, yellow wrong class", fontsize=9)
    save_figure(figure, path)


def draw_learning_curve(rows: Sequence[dict], metric: str, path: str | Path) -> None:
    """Save the loss and the validation metric over the epochs.

    Args:
        rows: dictionaries with "epoch", "loss" and, in epochs with a validation, ``metric``.
        metric: name of the validation metric.
        path: the PNG to write.
    """
    figure = Figure(figsize=(7, 4), layout="constrained")
    axis = figure.subplots()
    axis.plot(
        [row["epoch"] for row in rows], [row["loss"] for row in rows], color="#0072b2", label="training loss"
    )
    axis.set_xlabel("epoch")
    axis.set_ylabel("training loss", color="#0072b2")
    judged = [(row["epoch"], row[metric]) for row in rows if row.get(metric) is not None]
    if judged:
        other = axis.twinx()
        other.plot(*zip(*judged, strict=True), color="#d55e00", marker="o", markersize=3)
        other.set_ylabel(f"validation {metric}", color="#d55e00")
        other.set_ylim(0, 1)
        best = max(judged, key=lambda pair: pair[1])
        axis.set_title(f"best validation {metric} {best[1]:.4f} in epoch {best[0]}", fontsize=10)
    save_figure(figure, path)


def draw_scores(rows: Sequence[dict], path: str | Path, score: str = "dice") -> None:
    """Save one score of every case as points, a column for each class.

    Args:
        rows: dictionaries with "case", "class" and ``score``.
        path: the PNG to write.
        score: which score.
    """
    classes = list(dict.fromkeys(row["class"] for row in rows))
    figure = Figure(figsize=(2 + 1.5 * len(classes), 4), layout="constrained")
    axis = figure.subplots()
    for column, label in enumerate(classes):
        values = np.array([row[score] for row in rows if row["class"] == label and not np.isnan(row[score])])
        spread = np.linspace(-0.2, 0.2, len(values)) if len(values) > 1 else np.zeros(len(values))
        axis.scatter(column + spread, values, s=12, alpha=0.7)
        if len(values):
            axis.hlines(values.mean(), column - 0.3, column + 0.3, color="black")
            axis.annotate(f"{values.mean():.3f}", (column + 0.32, values.mean()), va="center", fontsize=9)
    axis.set_xticks(range(len(classes)), classes)
    axis.set_xlim(-0.5, len(classes) - 0.3)
    axis.set_ylabel(f"{score} of each case; line: mean")
    axis.grid(axis="y", alpha=0.3)
    save_figure(figure, path)


@dataclass(frozen=True)
class CellErrors:
    """Ids of the cells that a prediction got wrong, in ascending order.

    Attributes:
        merged: predicted cells that cover more than half of each of two or more true cells.
        split: true cells that hold more than half of each of two or more predicted cells.
        missed: true cells that no predicted cell covers by more than half, and that are not split.
        invented: predicted cells that no true cell holds by more than half, and that are not merged.
    """

    merged: tuple[int, ...]
    split: tuple[int, ...]
    missed: tuple[int, ...]
    invented: tuple[int, ...]

    def __str__(self) -> str:
        return ", ".join(f"{len(ids)} {name}" for name, ids in vars(self).items())


def cell_errors(truth: np.ndarray, pred: np.ndarray) -> CellErrors:
    """Which cells are merged, split, missed or invented; truth and prediction exchanged, so are the names.

    Args:
        truth: (*spatial), whole numbers: 0 background, every other id a true cell.
        pred: (*spatial), the same for the predicted cells.

    Raises:
        InputError: two shapes.
    """
    _require_one_grid(truth, pred)
    true_ids, true_index, true_area = np.unique(truth, return_inverse=True, return_counts=True)
    pred_ids, pred_index, pred_area = np.unique(pred, return_inverse=True, return_counts=True)
    pairs = true_index.ravel() * len(pred_ids) + pred_index.ravel()
    shared = np.bincount(pairs, minlength=len(true_ids) * len(pred_ids)).reshape(len(true_ids), len(pred_ids))
    shared = shared[true_ids > 0][:, pred_ids > 0]  # (true cells, predicted cells), in pixels
    true_area, pred_area = true_area[true_ids > 0], pred_area[pred_ids > 0]
    true_ids, pred_ids = true_ids[true_ids > 0], pred_ids[pred_ids > 0]
    covered = 2 * shared > true_area[:, None]  # more than half of the true cell
    held = 2 * shared > pred_area  # more than half of the predicted cell
    merged, split = covered.sum(0) > 1, held.sum(1) > 1
    missed, invented = ~covered.any(1) & ~split, ~held.any(0) & ~merged
    return CellErrors(
        merged=tuple(pred_ids[merged].tolist()),
        split=tuple(true_ids[split].tolist()),
        missed=tuple(true_ids[missed].tolist()),
        invented=tuple(pred_ids[invented].tolist()),
    )


def distinct_colours(cells: np.ndarray, like: np.ndarray | None = None) -> np.ndarray:
    """Give neighbouring cells different colours, whatever their numbers.

    Args:
        cells: (*spatial), whole numbers: 0 background, every other id a cell.
        like: (*spatial), colours of other cells on the same grid; a cell takes the colour that covers more
            than half of it, unless a neighbour has it.

    Returns:
        (*spatial), uint8: 0 background, 1 to 7 an index of CLASS_COLOURS. Cells numbered in another way get
        the same colours.

    Raises:
        InputError: two shapes.
    """
    if like is not None:
        _require_one_grid(like, cells)
    ids, first, inverse = np.unique(cells, return_index=True, return_inverse=True)
    place = np.empty(len(ids), dtype=np.int32)  # cells in the order of their first pixels, from 1
    place[np.argsort(np.where(ids > 0, first, -1))] = np.arange(len(ids)) + (0 if (ids == 0).any() else 1)
    ordered = place[inverse].reshape(cells.shape)
    count = len(CLASS_COLOURS)
    colour = np.zeros(int(ordered.max(initial=0)) + 1, dtype=np.uint8)
    used = np.zeros(count, dtype=int)
    for cell, box in enumerate(ndimage.find_objects(ordered), start=1):
        grown = tuple(slice(max(s.start - NEIGHBOUR_DISTANCE, 0), s.stop + NEIGHBOUR_DISTANCE) for s in box)
        mask = ordered[grown] == cell
        near = ordered[grown][ndimage.binary_dilation(mask, iterations=NEIGHBOUR_DISTANCE)]
        taken = set(colour[np.unique(near)].tolist())
        free = [index for index in range(1, count) if index not in taken] or list(range(1, count))
        choice = min(free, key=lambda index: used[index])
        if like is not None:
            counts = np.bincount(like[grown][mask].astype(int), minlength=count)
            most = int(counts[1:].argmax()) + 1
            choice = most if most in free and 2 * counts[most] > mask.sum() else choice
        colour[cell] = choice
        used[choice] += 1
    return colour[ordered]


def draw_instances(image: np.ndarray, truth: np.ndarray, pred: np.ndarray, path: str | Path) -> CellErrors:
    """Save image, true cells, predicted cells and what is wrong with them; volumes by the fullest slice.

    A predicted cell has the colour of the true cell that it lies on, where no neighbour has it.

    Args:
        image: (*spatial), grey values.
        truth: (*spatial), whole numbers: 0 background, every other id a cell.
        pred: (*spatial), the same.
        path: the PNG to write.

    Returns:
        The cells that are wrong, counted over the whole picture or volume.

    Raises:
        InputError: image, truth and prediction have different shapes.
    """
    _require_one_grid(image, truth)
    errors = cell_errors(truth, pred)
    true_colours = distinct_colours(truth)
    pred_colours = distinct_colours(pred, true_colours)
    marks = [
        ("missed", ERROR_COLOURS[1], np.isin(truth, errors.missed)),
        ("invented", ERROR_COLOURS[2], np.isin(pred, errors.invented)),
        ("split", SPLIT_COLOUR, np.isin(truth, errors.split)),
        ("merged", MERGED_COLOUR, np.isin(pred, errors.merged)),
    ]
    wrong = np.zeros(truth.shape, dtype=np.uint8)
    for index, (_, _, cells) in enumerate(marks, start=1):
        wrong[cells] = index
    outline = (find_boundaries(truth, mode="inner") & marks[3][2]) | (
        find_boundaries(pred, mode="inner") & marks[2][2]
    )
    wrong[outline] = len(marks) + 1
    colours = [CLASS_COLOURS[0], *(colour for _, colour, _ in marks), OUTLINE_COLOUR]

    origin: Origin = "upper" if image.ndim == 2 else "lower"
    shown, true_colours_shown, pred_colours_shown = _slice(Panel(image, true_colours, pred_colours, ""))
    wrong, _, _ = _slice(Panel(wrong, true_colours, pred_colours, ""))
    low, high = np.percentile(shown, [0.5, 99.5])
    shades = Normalize(low, max(high, low + 1e-6))
    figure = Figure(figsize=(12, 3.8), layout="constrained")
    axes = figure.subplots(1, 4)
    names = ("image", f"truth: {_count(truth)} cells", f"prediction: {_count(pred)} cells", "errors")
    for axis, name in zip(axes, names, strict=True):
        axis.imshow(shown.T, cmap="gray", norm=shades, origin=origin, interpolation="nearest")
        axis.set_axis_off()
        axis.set_title(name, fontsize=10)
    _overlay(axes[1], true_colours_shown, CLASS_COLOURS, origin)
    _overlay(axes[2], pred_colours_shown, CLASS_COLOURS, origin)
    _overlay(axes[3], wrong, colours, origin)
    figure.suptitle(str(errors), fontsize=11)
    figure.legend(
        handles=[Patch(color=colour, label=name) for name, colour, _ in marks],
        loc="outside lower right",
        ncols=len(marks),
        fontsize=10,
        frameon=False,
    )
    save_figure(figure, path)
    return errors


def _slice(panel: Panel) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The 2D picture itself, or the slice along the last axis with most foreground."""
    if panel.image.ndim == 2:
        return panel.image, panel.truth, panel.pred
    filled = ((panel.truth > 0).sum((0, 1)) + (panel.pred > 0).sum((0, 1))).argmax()
    return panel.image[..., filled], panel.truth[..., filled], panel.pred[..., filled]


def _overlay(axis: Axes, classes: np.ndarray, colours: Sequence[str], origin: Origin) -> None:
    """Colour classes over the picture; more classes than colours go round again, background stays clear."""
    wrapped = np.where(classes > 0, (classes.astype(int) - 1) % (len(colours) - 1) + 1, 0)
    paint, shades = ListedColormap(list(colours)), Normalize(0, len(colours) - 1)
    axis.imshow(wrapped.T, cmap=paint, norm=shades, alpha=0.6, origin=origin, interpolation="nearest")


def _require_one_grid(one: np.ndarray, other: np.ndarray) -> None:
    if one.shape != other.shape:
        raise InputError(f"arrays of {list(one.shape)} and {list(other.shape)} pixels: give both on one grid")


def _count(cells: np.ndarray) -> int:
    """Number of cells: ids other than 0."""
    return int((np.unique(cells) > 0).sum())


def save_figure(figure: Figure, path: str | Path, dpi: int = 90) -> None:
    """Write a figure as a PNG file that is whole or not there at all.

    Args:
        figure: without a canvas yet, or with one.
        path: the PNG to write.
        dpi: pixels for each inch.
    """
    FigureCanvasAgg(figure)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=dpi)
