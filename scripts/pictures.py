"""Pictures that people look at: cases side by side, cells that are wrong, learning curves, scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap, Normalize, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from scipy import ndimage
from skimage.segmentation import find_boundaries

from scripts.data.reader import is_picture, read_file
from scripts.errors import Fault, InputError
from scripts.files import atomic_write
from scripts.judging import Case, CellErrors, cell_errors

#: Colours of the classes 0, 1, 2, ...; the background is clear.
CLASS_COLOURS = ["#00000000", "#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7"]

#: What the error picture shows: nothing, missed, invented, wrong class.
ERROR_COLOURS = ["#00000000", "#d55e00", "#56b4e9", "#f0e442"]

#: What the picture of instances marks beside missed and invented cells: merged, split, and their outlines.
MERGED_COLOUR, SPLIT_COLOUR, OUTLINE_COLOUR = "#cc79a7", "#f0e442", "#000000"

#: What lies over the part of a picture that nobody annotated, half of it opaque.
UNKNOWN_COLOUR = "#80808080"

#: Characters of a title above one of four pictures, so that it does not run into the next.
LONGEST_TITLE = 36

#: Pixels of the longer side of a picture within a figure, least and most: in between each has all its own.
SMALLEST_SIDE, LARGEST_SIDE = 270, 1500

#: Pixels of an inch of a figure.
DPI = 90

#: Percentile of a map that is drawn opaque, as a few voxels may be much stronger than all others.
STRONGEST = 99.8

#: Cells at most this many pixels apart get different colours where there are enough colours.
NEIGHBOUR_DISTANCE = 3


@dataclass(frozen=True)
class Panel:
    """What is drawn of a case.

    Attributes:
        image: grey values, (X, Y), or red, green and blue, (3, X, Y).
        truth: class indices, (X, Y).
        pred: class indices, (X, Y).
        title: what stands above the row.
        unknown: True where nobody annotated, (X, Y), which is greyed; None: nowhere.
    """

    image: np.ndarray
    truth: np.ndarray
    pred: np.ndarray
    title: str
    unknown: np.ndarray | None = None

    @classmethod
    def of(cls, case: Case, image: np.ndarray, title: str) -> Panel:
        """The picture itself, or the slice of a volume along the last axis with most foreground.

        Args:
            case: class maps.
            image: `shown` of it.
            title: what stands above the row.
        """
        pred, truth = case.cleared()
        where = _fullest(truth, pred)
        unknown = np.zeros(truth.shape, dtype=bool) if case.mask is None else ~case.mask
        image, truth, pred, unknown = (v[where].copy() for v in (image, truth, case.pred, unknown))
        return cls(image, truth, pred, title, unknown)


def draw_panels(panels: Sequence[Panel], path: str | Path) -> None:
    """Save cases as rows of image, truth, prediction and error.

    Args:
        panels: at least one case.
        path: the PNG to write.
    """
    sides = np.array([_inches(panel.image) for panel in panels])
    heights = sides[:, 1] + 0.35
    figure = Figure(figsize=(4 * sides[:, 0].max(), heights.sum() + 0.3), layout="constrained")
    axes = figure.subplots(len(panels), 4, squeeze=False, height_ratios=heights.tolist())
    for row, panel in zip(axes, panels, strict=True):
        truth, pred = panel.truth, panel.pred
        error = np.select(
            [truth == pred, pred == 0, truth == 0], [0, 1, 2], default=3
        )  # nothing, missed, invented, wrong class
        if panel.unknown is not None:
            error[panel.unknown] = 0
        _show(row, panel.image, (panel.title, "truth", "prediction", "error"))
        for axis, classes, colours in zip(
            row[1:], (truth, pred, error), (CLASS_COLOURS, CLASS_COLOURS, ERROR_COLOURS), strict=True
        ):
            _overlay(axis, classes, colours)
            _grey(axis, panel.unknown)
    told = "error: orange missed, blue invented, yellow wrong class"
    if any(panel.unknown is not None and panel.unknown.any() for panel in panels):
        told += "; grey: not annotated, counts nowhere"
    figure.supxlabel(told, fontsize=9)
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
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
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


def draw_instances(image: np.ndarray, case: Case, path: str | Path) -> CellErrors:
    """Save image, true cells, predicted cells and what is wrong with them; volumes by the fullest slice.

    A predicted cell has the colour of the true cell that it lies on, where no neighbour has it.

    Args:
        image: `shown` of it.
        case: object numbers, 0 background.
        path: the PNG to write.

    Returns:
        The cells that are wrong, counted over the whole picture or volume.

    Raises:
        InputError: the image has another shape.
    """
    pred, truth = case.cleared()
    _require_one_grid(image[0] if image.ndim > truth.ndim else image, truth)
    errors = cell_errors(case)
    true_colours = distinct_colours(truth)
    pred_colours = distinct_colours(case.pred, true_colours)
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

    where = _fullest(truth, pred)
    width, height = _inches(image[where])
    figure = Figure(figsize=(4 * width, height + 0.8), layout="constrained")
    axes = figure.subplots(1, 4)
    names = ("image", f"truth: {_count(truth)} cells", f"prediction: {_count(pred)} cells", "errors")
    _show(axes, image[where], names)
    _overlay(axes[1], true_colours[where], CLASS_COLOURS)
    _overlay(axes[2], pred_colours[where], CLASS_COLOURS)
    _overlay(axes[3], wrong[where], colours)
    if case.mask is not None:
        for axis in axes[1:]:
            _grey(axis, ~case.mask[where])
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


def draw_found(
    image: np.ndarray, case: Case, uncertainty: np.ndarray | None, instances: bool, path: str | Path
) -> None:
    """Save an image, what was found in it and, where that is known, how unsure; volumes by the fullest slice.

    Args:
        image: `shown` of it.
        case: class indices or object numbers, of which the prediction counts.
        uncertainty: 0 to 1, (*spatial); None where nobody knows.
        instances: object numbers.
        path: the PNG to write.
    """
    where = _fullest(case.pred, case.pred)
    width, height = _inches(image[where])
    names = ["image", "found", *(["not sure"] if uncertainty is not None else [])]
    figure = Figure(figsize=(len(names) * width, height + 0.35), layout="constrained")
    axes = figure.subplots(1, len(names))
    _show(axes, image[where], names)
    _overlay(axes[1], (distinct_colours(case.pred) if instances else case.pred)[where], CLASS_COLOURS)
    if uncertainty is not None:
        axes[2].imshow(uncertainty[where].T, cmap="magma", vmin=0, vmax=1, interpolation="nearest")
    save_figure(figure, path)


def draw_why(
    image: np.ndarray,
    pred: np.ndarray,
    at: Sequence[int],
    maps: Mapping[str, np.ndarray],
    spacing: Sequence[float],
    title: str,
    path: str | Path,
) -> None:
    """Save an image, its prediction with a place, and maps of what counted there.

    Of a volume the planes through the place; maps are summed across them.

    Args:
        image: `shown` of it.
        pred: class indices, (*spatial).
        at: the place, a voxel.
        maps: name to values, (*spatial), of which those below 0 are drawn in another colour.
        spacing: edges of a voxel.
        title: what stands above.
        path: the PNG to write.
    """
    axes = [2] if pred.ndim == 2 else [2, 1, 0]  # across which is looked
    names = ["image", "prediction and place", *maps]
    side = SMALLEST_SIDE / DPI
    figure = Figure(figsize=(side * len(names), (side + 0.3) * len(axes) + 0.3), layout="constrained")
    for row, across in zip(figure.subplots(len(axes), len(names), squeeze=False), axes, strict=True):
        x, y = (axis for axis in range(3) if axis != across)
        where = (
            np.s_[:, :]
            if pred.ndim == 2
            else tuple(at[axis] if axis == across else slice(None) for axis in range(3))
        )
        _show(
            row,
            image if image.ndim > pred.ndim else image[where],
            names if across == axes[0] else [""] * len(names),
        )
        _overlay(row[1], pred[where], CLASS_COLOURS)
        for axis, values in zip(row[2:], maps.values(), strict=True):
            summed = values if pred.ndim == 2 else values.sum(across)
            _paint(axis, summed)
        for axis in row:
            axis.set_aspect(spacing[y] / spacing[x])
            if pred.ndim == 3:
                axis.invert_yaxis()
            axis.plot(at[x], at[y], marker="+", markersize=9, color="#f0e442", markeredgewidth=1.2)
        row[0].lines[0].remove()
    figure.suptitle(title, fontsize=10)
    figure.supxlabel(
        "orange: speaks for it, blue: against it; the stronger, the more opaque"
        + ("" if pred.ndim == 2 else "; maps: all planes summed up"),
        fontsize=9,
    )
    save_figure(figure, path)


def _paint(axis: Axes, values: np.ndarray) -> None:
    """Lay a map over the picture: its sign as a colour, its strength as what lies over the picture."""
    strength = np.abs(values) / max(float(np.percentile(np.abs(values), STRONGEST)), 1e-12)
    paint = np.zeros((*values.shape, 4))
    for colour, there in zip(ERROR_COLOURS[1:3], (values > 0, values < 0), strict=True):
        paint[there, :3] = to_rgb(colour)
    paint[..., 3] = strength.clip(0, 1)
    axis.imshow(paint.transpose(1, 0, 2), interpolation="nearest")


def _fullest(truth: np.ndarray, pred: np.ndarray) -> tuple[Any, ...]:
    """Index of the slice along the last axis with most foreground, which runs up; of a picture of it all."""
    if truth.ndim == 2:
        return (...,)
    return np.s_[:, ::-1, ((truth > 0).sum((0, 1)) + (pred > 0).sum((0, 1))).argmax()]


def shown(image: np.ndarray, file: str | Path = "") -> np.ndarray:
    """What is drawn of an image, (channels, *spatial): a picture of three channels is one of colours.

    Args:
        image: as it was read, or as it is after a normalisation of each channel.
        file: what it was read from, whose colours are drawn where it is a picture in colour.

    Returns:
        Red, green and blue, (3, X, Y), of 0 to 255 where they are the colours of the file, or the first
        channel, (*spatial).
    """
    if len(image) != 3 or image.ndim != 3:
        return image[0]
    stored = _colours(file)
    if stored is None or stored.shape == image.shape:
        return image if stored is None else stored.astype(np.uint8)
    axes = (1, 2)  # resampled or cut: each channel gets back the mean and the spread that it has in the file
    means, spreads = (getattr(image, name)(axes, keepdims=True) for name in ("mean", "std"))
    standard = (image - means) / np.maximum(spreads, 1e-6)
    restored = standard * stored.std(axes, keepdims=True) + stored.mean(axes, keepdims=True)
    return restored.clip(0, 255).round().astype(np.uint8)


def _colours(file: str | Path) -> np.ndarray | None:
    """Red, green and blue of a picture, (3, X, Y), 0 to 255; None of anything else."""
    try:
        values = read_file(file).values if is_picture(file) else np.empty(0)
    except Fault:
        return None
    if values.ndim != 3 or values.shape[-1] not in (3, 4):
        return None
    colours = np.moveaxis(values[..., :3], -1, 0)
    brightest = 255 if values.dtype == np.uint8 else max(np.percentile(colours, 99.5), 1e-6)
    return (colours * (255 / brightest)).clip(0, 255).astype(np.float32)


def _inches(image: np.ndarray) -> tuple[float, float]:
    """Width and height of one of four pictures of a figure, of an image (X, Y) or (3, X, Y)."""
    sides = np.array(image.shape[-2:], dtype=float)
    sides *= min(max(SMALLEST_SIDE / sides.max(), 1), LARGEST_SIDE / sides.max())
    width, height = 1.02 * np.maximum(sides, [SMALLEST_SIDE, 1]) / DPI
    return width, height


def _show(axes: Sequence[Axes], image: np.ndarray, titles: Sequence[str]) -> None:
    """Show the image on all axes, each with its title."""
    low, high = (0, 255) if _is_of_file(image) else np.percentile(image, [0.5, 99.5])
    shades = Normalize(low, max(high, low + 1e-6), clip=True)
    colours = np.asarray(shades(image).T)  # of grey values matplotlib makes grey, of (Y, X, 3) nothing else
    for axis, title in zip(axes, titles, strict=True):
        axis.imshow(colours, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axis.set_axis_off()
        axis.set_title(_fitting(title), fontsize=9)


def _is_of_file(image: np.ndarray) -> bool:
    """Whether `shown` found the colours of a file."""
    return image.ndim == 3 and image.dtype == np.uint8


def _fitting(title: str) -> str:
    """A title that ends before the next picture begins: what is too long loses its middle."""
    half = LONGEST_TITLE // 2
    return title if len(title) <= LONGEST_TITLE else f"{title[: half - 1]}…{title[-half:]}"


def _overlay(axis: Axes, classes: np.ndarray, colours: Sequence[str]) -> None:
    """Colour classes over the picture; more classes than colours go round again, background stays clear."""
    wrapped = np.where(classes > 0, (classes.astype(int) - 1) % (len(colours) - 1) + 1, 0)
    paint, shades = ListedColormap(list(colours)), Normalize(0, len(colours) - 1)
    axis.imshow(wrapped.T, cmap=paint, norm=shades, alpha=0.6, interpolation="nearest")


def _grey(axis: Axes, unknown: np.ndarray | None) -> None:
    """Lay grey over what nobody annotated, through which what lies there is seen."""
    if unknown is not None and unknown.any():
        paint = ListedColormap(["#00000000", UNKNOWN_COLOUR])
        axis.imshow(unknown.T, cmap=paint, vmin=0, vmax=1, interpolation="nearest")


def _require_one_grid(one: np.ndarray, other: np.ndarray) -> None:
    if one.shape != other.shape:
        raise InputError(f"arrays of {list(one.shape)} and {list(other.shape)} pixels: give both on one grid")


def _count(cells: np.ndarray) -> int:
    """Number of cells: ids other than 0."""
    return int((np.unique(cells) > 0).sum())


def save_figure(figure: Figure, path: str | Path, dpi: int = DPI) -> None:
    """Write a figure as a PNG file that is whole or not there at all.

    Args:
        figure: without a canvas yet, or with one.
        path: the PNG to write.
        dpi: pixels for each inch.
    """
    FigureCanvasAgg(figure)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=dpi)
