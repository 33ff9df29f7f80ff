"""Pictures that people look at: cases side by side, learning curves, scores."""

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

from scripts.files import written_whole

#: Where matplotlib puts the first row of an array.
Origin = Literal["upper", "lower"]

#: Colours of the classes 0, 1, 2, ...; the background is clear.
CLASS_COLOURS = ["#00000000", "#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7"]

#: What the error picture shows: nothing, missed, invented, wrong class.
ERROR_COLOURS = ["#00000000", "#d55e00", "#56b4e9", "#f0e442"]


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
    _save(figure, path)


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
    _save(figure, path)


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
    _save(figure, path)


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


def _save(figure: Figure, path: str | Path) -> None:
    FigureCanvasAgg(figure)
    with written_whole(path) as beside:
        figure.savefig(beside, dpi=90)
