"""The mechanisms of the paper, drawn from the components: elastic deformation, weight map, tiles."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from itertools import product
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from scipy import ndimage

from bundle.data.phantom import draw_cells
from bundle.figures.diagram import configured, times
from scripts.compute.inferers import OverlapTileInferer
from scripts.labels import IGNORE_LABEL
from scripts.pictures import CLASS_COLOURS, distinct_colours
from scripts.transforms import (
    RandSpatialPatchd,
    SeparateInstancesd,
    border_weight_map,
    class_weight_map,
)
from scripts.transforms.spatial import SpatialParameters, control_positions, interpolate

#: The paper's settings: section 3.1 (elastic deformation) and section 3 (equation 2).
ELASTIC_POINTS, ELASTIC_STD = 3, 10.0
W0, SIGMA = 10.0, 5.0

#: The input and the output of a tile, as in the paper's figure 2.
INPUT_COLOUR, OUTPUT_COLOUR = "#0072b2", "#f0e442"


def even_cells(index: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """A generated picture under even light, with less noise, to be looked at.

    Args:
        index: of the case; cells are bright in even ones.
        size: rows and columns.

    Returns:
        The image (H, W), float32, 0 to 1; the instance map (H, W).
    """
    image, cells = draw_cells(0, index, size)
    grey = image.astype(np.float32)
    grey = ndimage.gaussian_filter(grey, 1.2) / ndimage.gaussian_filter(grey, 25.0)
    low, high = np.percentile(grey, [0.2, 99.8])
    return ((grey - low) / (high - low)).clip(0, 1), cells


def draw_elastic(seeds: Sequence[int] = (1, 2, 3), size: int = 256) -> Figure:
    """A grid, and cells with their labels, deformed with the paper's settings.

    Args:
        seeds: one deformation each; the first is also drawn as vectors.
        size: pixels along each side.
    """
    cells, instances = even_cells(0, (size, size))
    lines = np.ones((size, size), np.float32)
    for start in range(0, size, 16):
        lines[start : start + 2] = lines[:, start : start + 2] = 0
    data: dict[Hashable, Any] = {
        "lines": torch.from_numpy(lines)[None],
        "cells": torch.from_numpy(cells)[None],
        "label": torch.from_numpy(distinct_colours(instances))[None],
    }
    transform = RandSpatialPatchd(
        keys=list(data),
        modes=["bilinear", "bilinear", "nearest"],
        patch_size=(size, size),
        elastic_prob=1.0,
        elastic_points=ELASTIC_POINTS,
        elastic_std=ELASTIC_STD,
    )
    columns = 1 + len(seeds)
    figure = Figure(figsize=(10, 20 / columns + 0.9))
    room = {"left": 0.02, "right": 0.98, "top": 0.93, "bottom": 0.1, "wspace": 0.08, "hspace": 0.06}
    axes = figure.subplots(2, columns, gridspec_kw=room)
    for column, seed in enumerate([None, *seeds]):
        patch = data
        if seed is not None:
            parameters = _draw_deformation(transform, seed, size)
            patch = transform.apply(data, parameters, np.ones(2))
        label = patch["label"][0].numpy().astype(int)
        for axis, key in zip(axes[:, column], ("lines", "cells"), strict=True):
            faint = key == "lines" and seed is None  # below the vectors
            axis.imshow(patch[key][0].numpy(), cmap="gray", vmin=-3 if faint else 0, vmax=1)
            _tint(axis, np.where((label == IGNORE_LABEL) | (key == "cells"), label, 0))
            axis.set_axis_off()
        axes[0, column].set_title("as it is" if seed is None else f"seed {seed}", fontsize=10, pad=12)
    _draw_vectors(axes[0, 0], source_positions(transform, _draw_deformation(transform, seeds[0], size)))
    figure.supxlabel(
        f"{ELASTIC_POINTS} × {ELASTIC_POINTS} random vectors, standard deviation {ELASTIC_STD:g} pixels. "
        f"Top left: those of seed {seeds[0]} (orange) and the spline through them (blue);\n"
        "a point takes its value from where its arrow ends. Grey: outside of the image, label 255.",
        fontsize=9,
        y=0.02,
    )
    return figure


def _draw_deformation(transform: RandSpatialPatchd, seed: int, size: int) -> SpatialParameters:
    transform.set_random_state(seed)
    return transform.randomize(None, (size, size), np.ones(2))


def source_positions(transform: RandSpatialPatchd, parameters: SpatialParameters) -> np.ndarray:
    """Where every point of a patch takes its value from.

    Args:
        transform: with lengths in pixels.
        parameters: what it drew.

    Returns:
        (*patch size, dims), in pixels of the source.
    """
    spacing = np.ones(len(transform.patch_size))
    points = control_positions(transform.extent, transform.elastic_points, parameters, spacing)
    return interpolate(points, transform.weights).numpy()


def _draw_vectors(axis: Axes, sources: np.ndarray) -> None:
    """Arrows from points of the patch to where they take their values from; of the drawn points in orange."""
    last = len(sources) - 1
    for count, colour, width in ((9, "#0072b2", 0.007), (ELASTIC_POINTS, "#d55e00", 0.014)):
        places = np.linspace(0, last, count).round().astype(int)
        rows, columns = np.meshgrid(places, places, indexing="ij")
        ends = sources[rows, columns]
        axis.quiver(
            columns,
            rows,
            ends[..., 1] - columns,
            ends[..., 0] - rows,
            angles="xy",
            scale_units="xy",
            scale=1,
            color=colour,
            width=width,
            headwidth=2.5,
            headlength=2.5,
            headaxislength=2.5,
            clip_on=False,
        )


def _tint(axis: Axes, colours: np.ndarray) -> None:
    """Lay colours over a picture: 0 is clear, 1 to 7 are CLASS_COLOURS, IGNORE_LABEL is grey."""
    outside = colours == IGNORE_LABEL
    paint = ListedColormap(CLASS_COLOURS)
    axis.imshow(np.where(outside, 0, colours), cmap=paint, vmin=0, vmax=len(CLASS_COLOURS) - 1, alpha=0.45)
    axis.imshow(np.ma.masked_array(outside, ~outside), cmap=ListedColormap(["#c0c0c0"]))


def draw_weights(index: int = 10, size: int = 128) -> Figure:
    """Cells that touch, with background put between them; the two terms of equation 2 and their sum.

    Args:
        index: of the generated picture.
        size: pixels along each side.
    """
    image, touching = even_cells(index, (size, size))
    apart = SeparateInstancesd("cells")({"cells": torch.from_numpy(touching.astype(np.int32))[None]})
    cells = np.where(apart["cells"][0].numpy() > 0, touching, 0)
    classes, border = class_weight_map(cells > 0), border_weight_map(cells, w0=W0, sigma=SIGMA)
    terms = {"class term $w_c$": classes, "border term": border, "weight map: the sum": classes + border}
    row = int(border.sum(1).argmax())
    figure = Figure(figsize=(10, 6.4), layout="constrained")
    axes = figure.subplots(2, 3)
    axes[0, 0].imshow(image, cmap="gray")
    axes[0, 0].set_title("cells", fontsize=10)
    axes[0, 1].imshow(image, cmap="gray")
    _tint(axes[0, 1], distinct_colours(cells))
    axes[0, 1].set_title("instances, with background between", fontsize=10)
    for axis, (name, term) in zip(axes[1], terms.items(), strict=True):
        shown = axis.imshow(term, cmap="cividis", vmin=0)
        figure.colorbar(shown, ax=axis, fraction=0.046, pad=0.02).ax.tick_params(labelsize=8)
        axis.set_title(name, fontsize=10)
    for axis in (axes[0, 1], *axes[1]):
        axis.axhline(row, color="white", linestyle="--", lw=1)
    for axis in (axes[0, 0], axes[0, 1], *axes[1]):
        axis.set_axis_off()
    profile = axes[0, 2]
    highest = float((classes + border)[row].max())
    inside = np.where(cells[row] > 0, 1.05 * highest, 0)
    profile.fill_between(np.arange(size), 0, inside, step="mid", color="#dddddd", label="cell")
    for (name, term), colour in zip(terms.items(), ("#0072b2", "#d55e00", "#000000"), strict=True):
        profile.plot(term[row], color=colour, label=name.split(":")[0], lw=1.2)
    profile.set_xlim(0, size - 1)
    profile.set_ylim(0, 1.35 * highest)
    profile.set_title("along the dashed line", fontsize=10)
    profile.tick_params(labelsize=8)
    profile.set_xlabel("pixels", fontsize=8)
    profile.legend(fontsize=8, loc="upper center", ncols=2)
    figure.supxlabel(
        rf"$w = w_c + w_0 \exp(-(d_1 + d_2)^2 / 2\sigma^2)$ with $w_0 = {W0:g}$, $\sigma = {SIGMA:g}$ pixels",
        fontsize=10,
    )
    return figure


def corrupt_cells(cells: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Make up a prediction: the true cells, but two pairs glued, two cut, two left out and two too many.

    Args:
        cells: (H, W), the true ones; two pairs of them touch, apart from each other.
        others: (H, W), cells of another picture; two of them lie on the background here.

    Returns:
        (H, W), 0 background, every other id a cell.
    """
    pred = cells.astype(np.int32)
    shifted = ((pred[1:], pred[:-1]), (pred[:, 1:], pred[:, :-1]))
    pairs = {
        (low, high)
        for one, other in shifted
        for low, high in np.stack([np.minimum(one, other), np.maximum(one, other)], -1)
        .reshape(-1, 2)
        .tolist()
        if 0 < low < high
    }
    glued: set[int] = set()
    for low, high in sorted(pairs):
        touching = {cell for pair in pairs if {low, high} & set(pair) for cell in pair}
        if len(glued) < 4 and not glued & touching:
            pred[cells == high] = low
            glued |= {low, high}
    largest = np.argsort(-np.bincount(cells.ravel())[1:], kind="stable") + 1
    spare = [cell for cell in largest.tolist() if cell not in glued]
    for cell in spare[:2]:
        places = np.argwhere(cells == cell)
        axis = int(np.ptp(places, axis=0).argmax())
        half = places[places[:, axis] > places[:, axis].mean()]
        pred[tuple(half.T)] = pred.max() + 1
    pred[np.isin(pred, spare[2:4])] = 0
    free = ndimage.distance_transform_edt(np.pad(cells[1:-1, 1:-1] == 0, 1)) > 4
    invented = [other for other in np.unique(others) if other > 0 and free[others == other].all()]
    for other in (invented[0], invented[-1]):
        pred[others == other] = pred.max() + 1
    return pred


def mirrored(image: np.ndarray, margin: Sequence[int], size: Sequence[int]) -> np.ndarray:
    """An image with its mirror images around it.

    Args:
        image: (H, W).
        margin: pixels before the first one, one number an axis.
        size: pixels of the result, one number an axis.
    """
    after = [n - m - s for n, m, s in zip(size, margin, image.shape, strict=True)]
    return np.pad(image, list(zip(margin, after, strict=True)), mode="reflect")


def draw_tiles(tile_size: Sequence[int] = (316, 316), image_size: Sequence[int] = (512, 512)) -> Figure:
    """The overlap-tile strategy: what the tiles of an image see and what they predict.

    Args:
        tile_size: input of the network of configs/network/unet2015.json.
        image_size: rows and columns of a generated image.
    """
    network, _ = configured("task/em_membrane", "network/unet2015")
    layout = OverlapTileInferer(tile_size).windows(network, tuple(image_size), tuple(tile_size))
    image, _ = even_cells(1, (image_size[0], image_size[1]))
    margin = [(seen - predicted) // 2 for seen, predicted in zip(layout.tile, layout.window, strict=True)]
    size = [c[-1] + n + 2 * m for c, n, m in zip(layout.corners, layout.window, margin, strict=True)]
    canvas = mirrored(image, margin, size)

    figure = Figure(figsize=(10, 6.6), layout="constrained")
    whole, inner, corner = figure.subplot_mosaic(
        [["all", "inner"], ["all", "corner"]], width_ratios=[2.05, 1]
    ).values()
    down, across = margin
    extent = (-across - 0.5, size[1] - across - 0.5, size[0] - down - 0.5, -down - 0.5)
    whole.imshow(canvas, cmap="gray", extent=extent)
    overlay = np.full((*canvas.shape, 4), (1.0, 1.0, 1.0, 0.45))
    overlay[down : down + image_size[0], across : across + image_size[1], 3] = 0
    whole.imshow(overlay, extent=extent)
    corners = list(product(*layout.corners))
    for row, column in corners:
        _frame(whole, (row, column), layout.window, OUTPUT_COLOUR, 1.2)
    chosen = tuple(starts[len(starts) // 2] for starts in layout.corners)
    for axis, (row, column), style in ((inner, chosen, "-"), (corner, corners[0], "--")):
        start = (row - down, column - across)
        for panel in (whole, axis):
            _frame(panel, start, layout.tile, INPUT_COLOUR, 3, style)
            _frame(panel, (row, column), layout.window, OUTPUT_COLOUR, 3, style)
        part = canvas[row : row + layout.tile[0], column : column + layout.tile[1]]
        low, left = start[0] - 0.5, start[1] - 0.5
        axis.imshow(part, cmap="gray", extent=(left, left + layout.tile[1], low + layout.tile[0], low))
        axis.set_axis_off()
        _frame(axis, (0, 0), image_size, "white", 1.5, ":")
    whole.set_axis_off()
    whole.set_title(
        f"{len(corners)} tiles for an image of {times(image_size)} pixels; pale: mirrored", fontsize=10
    )
    inner.set_title(f"a tile: {times(layout.tile)} in, {times(layout.window)} out", fontsize=10)
    corner.set_title("the first tile, mirrored beyond the dots", fontsize=10)
    figure.legend(
        handles=[
            Line2D([], [], color=INPUT_COLOUR, lw=3, label="input of a tile"),
            Line2D([], [], color=OUTPUT_COLOUR, lw=3, label="output of a tile"),
        ],
        loc="outside lower center",
        ncols=2,
        fontsize=10,
        facecolor="#808080",
        labelcolor="white",
    )
    return figure


def _frame(
    axis: Axes, start: tuple[int, int], size: Sequence[int], colour: str, width: float, style: str = "-"
) -> None:
    place = (start[1] - 0.5, start[0] - 0.5)
    axis.add_patch(
        Rectangle(place, size[1], size[0], fill=False, edgecolor=colour, lw=width, linestyle=style)
    )
