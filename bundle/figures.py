"""`python -m bundle figures`: the pictures of docs/unet2015.md, from generated data and untrained networks.

They show what the components do that follow O. Ronneberger, P. Fischer, T. Brox, "U-Net: Convolutional
Networks for Biomedical Image Segmentation", MICCAI 2015: the network (its figure 1), the overlap-tile
strategy (figure 2), the weight map (figure 3) and the elastic deformation (section 3.1).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import numpy as np
import torch
import typer
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from monai.bundle import ConfigParser
from PIL import Image
from scipy import ndimage
from torch import nn

from bundle.phantom import draw_cells
from scripts.errors import InputError
from scripts.files import written_whole
from scripts.inferers import OverlapTileInferer
from scripts.labels import IGNORE_LABEL
from scripts.memory import dry_run
from scripts.networks import UNet
from scripts.networks.blocks import (
    Concatenate,
    InterpolatedUp,
    PlainBlock,
    ResidualBlock,
    Stage,
    TransposedUp,
)
from scripts.networks.unet import DecoderLevel, EncoderLevel
from scripts.pictures import CLASS_COLOURS, distinct_colours, draw_instances, save_figure
from scripts.process import bundle_root
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

#: Colours of the arrows of the network's diagram, one for each kind of operation (Okabe and Ito's palette).
ARROWS = {
    "convolution": "#0072b2",
    "strided convolution": "#e69f00",
    "skip": "#7f7f7f",
    "pool": "#d55e00",
    "up": "#009e73",
    "head": "#cc79a7",
    "shortcut": "#000000",
}
MAP_COLOUR = "#56b4e9"

#: The input and the output of a tile, as in the paper's figure 2.
INPUT_COLOUR, OUTPUT_COLOUR = "#0072b2", "#f0e442"

DPI = 100
LARGEST = 250_000  # bytes of a PNG; a larger one is reduced to 256 colours


@dataclass(frozen=True)
class FeatureMap:
    """One box of the network's diagram.

    Attributes:
        operation: what made it: "input", "merge" or a key of ARROWS.
        detail: the operation in words.
        level: resolution, 0 for the highest.
        channels: all of them.
        size: spatial size, in voxels.
        skipped: how many of the channels come from the skip, which is cropped to ``size``.
        dropout: probability of the dropout that follows, or 0.
        shortcut: index of the map that is added to this one, or None.
        added: the addition in words.
    """

    operation: str
    detail: str
    level: int
    channels: int
    size: tuple[int, ...]
    skipped: int = 0
    dropout: float = 0.0
    shortcut: int | None = None
    added: str = ""


def read_feature_maps(network: UNet, input_size: Sequence[int]) -> list[FeatureMap]:
    """Every feature map of a network, in the order of the forward pass; no data passes.

    Args:
        network: stays as it is; its weights are not read.
        input_size: spatial size of the image, in voxels.

    Returns:
        The image first; the heads of deep supervision last.

    Raises:
        InputError: the size is illegal for the network.
    """
    maps: list[FeatureMap] = []
    handles = []

    def watch(module: nn.Module, operation: str, detail: str, level: int) -> None:
        def note(_: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            skipped = inputs[0].shape[1] if isinstance(module, Concatenate) else 0
            size = tuple(output.shape[2:])
            maps.append(FeatureMap(operation, detail, level, output.shape[1], size, skipped))

        handles.append(module.register_forward_hook(note))

    def watch_block(block: Stage, level: int) -> None:
        if not isinstance(block, PlainBlock):
            watch(block, "convolution", type(block).__name__, level)
            return
        for unit in cast(list[nn.Sequential], list(block.convolutions)):
            strided = max(cast(nn.Conv2d, unit[0]).stride) > 1
            watch(unit, "strided convolution" if strided else "convolution", _describe(*unit), level)
        if isinstance(block, ResidualBlock):
            added = "sum with the block's input, " + _describe(block.act)

            def note(*_: Any) -> None:
                maps[-1] = replace(maps[-1], shortcut=len(maps) - len(block.convolutions) - 1, added=added)

            handles.append(block.register_forward_hook(note))

    def watch_dropout(dropout: nn.Dropout) -> None:
        def note(*_: Any) -> None:
            maps[-1] = replace(maps[-1], dropout=dropout.p)

        handles.append(dropout.register_forward_hook(note))

    for index, down in enumerate(cast(list[EncoderLevel], list(network.encoder.levels))):
        if down.pools:
            watch(down.pool, "pool", f"max pool {_times(down.stride)}", index)
        watch_block(down.block, index)
        if isinstance(down.dropout, nn.Dropout) and down.dropout.p > 0:
            watch_dropout(down.dropout)
    deepest = len(network.encoder.levels) - 1
    for index, rise in enumerate(cast(list[DecoderLevel], list(network.decoder.levels)), start=1):
        watch(rise.up, "up", _describe_up(rise.up), deepest - index)
        watch(rise.merge, "merge", _describe_merge(rise.merge), deepest - index)
        watch_block(rise.block, deepest - index)
    watch(network.head, "head", _describe(network.head), 0)
    for index, head in enumerate(network.deep_heads, start=1):
        watch(head, "head", _describe(head), index)

    first = next(module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Conv3d))
    maps.append(FeatureMap("input", "", 0, first.in_channels, tuple(int(n) for n in input_size)))
    training, network.training = network.training, True  # of the root alone: all heads, nothing else changes
    try:
        dry_run(network, (1, first.in_channels, *input_size))
    finally:
        network.training = training
        for handle in handles:
            handle.remove()
    return maps


def draw_architecture(network: UNet, input_size: Sequence[int]) -> Figure:
    """Draw a network as in figure 1 of the paper; all numbers are those of the instance.

    Args:
        network: see read_feature_maps.
        input_size: spatial size of the image, in voxels.

    Returns:
        Boxes for feature maps, channels above and sizes at the lower left, arrows for operations.

    Raises:
        InputError: the size is illegal for the network.
    """
    maps = read_feature_maps(network, input_size)
    return _Diagram(maps, _title(network, maps)).figure


class _Diagram:
    """The boxes of feature maps in the form of a U, and the arrows between them.

    Args:
        maps: see read_feature_maps.
        title: what stands above.
    """

    #: Lengths in the unit of the drawing: room between two boxes of a level and between two levels; the
    #: tallest and the lowest box; the widest box without what every box is wide at least.
    GAP, STEP, TALLEST, LOWEST, WIDEST, NARROWEST = 0.62, 0.95, 3.0, 1.0, 1.0, 0.14
    MARGIN = 0.6
    WIDTH, LARGEST_UNIT = 10.0, 0.75  # of the figure and of the unit, in inches
    ARROW_HEIGHT = 0.86  # where arrows meet a box, as a share of its height
    FONT, LETTER = 7, 4.7 / 72  # size of the letters beside a box, in points, and their width, in inches

    def __init__(self, maps: Sequence[FeatureMap], title: str) -> None:
        self.maps = maps
        self.most = max(m.channels for m in maps)
        self.largest = _edge(maps[0].size)
        spans = self._spans()
        self.unit = min(self.WIDTH / (max(map(sum, spans)) + 1.5 * self.MARGIN), self.LARGEST_UNIT)
        middles = self._middles()
        heights = [self._height(m) for m in maps]
        self.boxes = [  # left, bottom, width, height
            (left, middles[m.level] - height / 2, width, height)
            for m, (left, width), height in zip(maps, spans, heights, strict=True)
        ]
        right = self.WIDTH / self.unit - self.MARGIN
        low = min(bottom for _, bottom, _, _ in self.boxes) - 0.7
        high = max(bottom + height for _, bottom, _, height in self.boxes) + 1.0
        self.figure = Figure(figsize=(self.WIDTH, self.unit * (high - low)))
        FigureCanvasAgg(self.figure)
        self.axis = self.figure.add_axes((0, 0, 1, 1))
        self.axis.set_axis_off()
        self.axis.set_xlim(-self.MARGIN, right)
        self.axis.set_ylim(low, high)
        self.seen: dict[str, list[str]] = {}
        for index in range(len(maps)):
            self._draw_map(index)
            self._draw_arrow(index)
        self.axis.text((right - self.MARGIN) / 2, high - 0.15, title, ha="center", va="top", fontsize=10)
        handles = [
            Line2D([], [], color=ARROWS[operation], label=detail, linestyle=self._line(operation))
            for operation in ARROWS
            for detail in self.seen.get(operation, ())
        ]
        self.axis.legend(handles=handles, loc="lower right", fontsize=8, frameon=False, borderaxespad=0.8)

    @staticmethod
    def _line(operation: str) -> Literal["-", ":"]:
        return ":" if operation == "shortcut" else "-"

    def _height(self, m: FeatureMap) -> float:
        """Of a box; every box of a level is at least as high as the level's longest size is written."""
        letters = 1 + max(len(_size(other.size)) for other in self.maps if other.level == m.level)
        written = letters * self.LETTER / self.unit / self.ARROW_HEIGHT
        return max(self.TALLEST * math.sqrt(_edge(m.size) / self.largest), self.LOWEST, written)

    def _width(self, channels: int) -> float:
        return self.NARROWEST + self.WIDEST * math.sqrt(channels / self.most)

    def _middles(self) -> list[float]:
        """Where the middle of each level lies, from the highest resolution down."""
        middles, low = [], 0.0
        for level in range(max(m.level for m in self.maps) + 1):
            height = max(self._height(m) for m in self.maps if m.level == level)
            middles.append(low - height / 2)
            low -= height + self.STEP
        return middles

    def _spans(self) -> list[tuple[float, float]]:
        """Left edge and width of each box."""
        spans: list[tuple[float, float]] = []
        ends: dict[int, float] = {}  # where each level ends so far
        for index, m in enumerate(self.maps):
            width = self._width(m.channels)
            before = self.before(index)
            if before is None:
                left = 0.0
            elif m.operation == "merge":  # the map from below, and the skip on its left
                width = spans[before][1] + (self._width(m.skipped) if m.skipped else 0.0)
                left = sum(spans[before]) - width
            elif m.level == self.maps[before].level:
                left = ends[m.level] + self.GAP
            else:
                left = spans[before][0] + (spans[before][1] - width) / 2
                if m.operation == "up":  # the map below makes room for the skip
                    skipped = self.maps[index + 1].skipped
                    room = ends[m.level] + 1.6 * self.GAP + (self._width(skipped) if skipped else 0.0)
                    push = max(room - left, 0.0)
                    spans[before] = (spans[before][0] + push, spans[before][1])
                    left += push
            spans.append((left, width))
            ends[m.level] = left + width
        return spans

    def before(self, index: int) -> int | None:
        """The map that a map is made from."""
        if index == 0:
            return None
        if self.maps[index].operation == "head":
            return max(
                i for i in range(index) if self.maps[i].level == self.maps[index].level and self._is_inner(i)
            )
        return index - 1

    def _is_inner(self, index: int) -> bool:
        return self.maps[index].operation != "head"

    def _draw_map(self, index: int) -> None:
        m, (left, bottom, width, height) = self.maps[index], self.boxes[index]
        if m.operation == "merge":
            edge = self.boxes[index - 1][0]
            self._box(left, bottom, edge - left, height, "white")
        else:
            self._box(left, bottom, width, height, MAP_COLOUR)
        follows = self.maps[index + 1] if index + 1 < len(self.maps) else m
        if m.operation != "up":
            # an arrow from above or to above leaves no room in the middle
            shifted = m.operation in ("pool", "strided convolution") or follows.operation == "up"
            x = left + width / 2 + (0.12 if shifted else 0)
            self.axis.text(
                x, bottom + height + 0.08, str(m.channels), ha="left" if shifted else "center", fontsize=8
            )
            self.axis.text(
                left - 0.05,
                bottom,
                _size(m.size),
                ha="right",
                va="bottom",
                fontsize=self.FONT,
                rotation="vertical",
            )
        if m.dropout:
            self.axis.text(
                left + width / 2 + 0.1,
                bottom - 0.06,
                f"dropout {m.dropout:g}",
                fontsize=self.FONT,
                va="top",
                style="italic",
            )

    def _box(self, left: float, bottom: float, width: float, height: float, colour: str) -> None:
        self.axis.add_patch(
            Rectangle((left, bottom), width, height, facecolor=colour, edgecolor="#20506b", lw=0.8)
        )

    def _draw_arrow(self, index: int) -> None:
        m, before = self.maps[index], self.before(index)
        if before is None:
            return
        left, bottom, width, height = self.boxes[index]
        from_left, from_bottom, from_width, from_height = self.boxes[before]
        middle = left + width / 2
        y = min(bottom + self.ARROW_HEIGHT * height, from_bottom + self.ARROW_HEIGHT * from_height)
        if m.operation == "merge":
            self._draw_skip(index)
        elif m.level > self.maps[before].level:
            start = (from_left + from_width / 2, from_bottom)
            self._arrow(m.operation, m.detail, start, (middle, bottom + height))
        elif m.level < self.maps[before].level:
            start = (from_left + from_width / 2, from_bottom + from_height)
            self._arrow(m.operation, m.detail, start, (middle, bottom))
        else:
            self._arrow(m.operation, m.detail, (from_left + from_width, y), (left, y))
        if m.shortcut is not None:
            source = self.boxes[m.shortcut]
            if self.maps[m.shortcut].level == m.level:  # below the boxes between
                start, end = (source[0] + 0.7 * source[2], source[1]), (left + 0.3 * width, bottom)
                self._arrow("shortcut", m.added, start, end, "arc3,rad=0.35")
            else:  # beside the arrow that goes down
                start = (source[0] + source[2], source[1] + 0.05 * source[3])
                end = (left + 0.13 * width, bottom + height)
                self._arrow("shortcut", m.added, start, end, "arc3,rad=-0.2")

    def _draw_skip(self, index: int) -> None:
        m, (left, bottom, _, height) = self.maps[index], self.boxes[index]
        down = max(
            i for i in range(index - 1) if self.maps[i].level == m.level and self.maps[i].operation != "head"
        )
        from_left, from_bottom, from_width, from_height = self.boxes[down]
        cropped = self.maps[down].size != m.size
        if cropped:
            frame = (from_left, from_bottom + (from_height - height) / 2)
            self.axis.add_patch(
                Rectangle(frame, from_width, height, fill=False, edgecolor="#20506b", lw=0.8, linestyle="--")
            )
        y = min(bottom + self.ARROW_HEIGHT * height, from_bottom + self.ARROW_HEIGHT * from_height)
        detail = m.detail if not m.skipped else "copy and crop" if cropped else "copy"
        self._arrow("skip", detail, (from_left + from_width, y), (left, y))

    def _arrow(
        self,
        operation: str,
        detail: str,
        start: tuple[float, float],
        end: tuple[float, float],
        bend: str = "arc3",
    ) -> None:
        details = self.seen.setdefault(operation, [])
        if detail not in details:
            details.append(detail)
        style = {
            "arrowstyle": "-|>",
            "color": ARROWS[operation],
            "lw": 1.4,
            "shrinkA": 0,
            "shrinkB": 0,
            "mutation_scale": 8,
            "connectionstyle": bend,
            "linestyle": self._line(operation),
        }
        self.axis.annotate("", end, start, arrowprops=style)


def _title(network: UNet, maps: Sequence[FeatureMap]) -> str:
    convolutions = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    count = sum(isinstance(module, convolutions) for module in network.modules())
    weights = sum(parameter.numel() for parameter in network.parameters())
    output = next(m for m in maps if m.operation == "head")
    return (
        f"{_times(maps[0].size)} in, {_times(output.size)} out; "
        f"{count} convolutional layers, {weights:,} parameters"
    )


def _edge(size: Sequence[int]) -> float:
    """The edge of the square or cube of the same size."""
    return math.prod(size) ** (1 / len(size))


def _times(numbers: Sequence[int]) -> str:
    return "×".join(map(str, numbers))


def _size(size: Sequence[int]) -> str:
    """A size in little room: 572² for 572 x 572."""
    return f"{size[0]}{'²' if len(size) == 2 else '³'}" if len(set(size)) == 1 else _times(size)


def _describe(*layers: nn.Module) -> str:
    """A convolution with what follows it, in words: "conv 3×3, ReLU"."""
    words = []
    for layer in layers:
        if isinstance(layer, nn.Conv2d | nn.Conv3d):
            stride = f" stride {_times(layer.stride)}" if max(layer.stride) > 1 else ""
            words.append(f"conv {_times(layer.kernel_size)}{stride}")
        else:
            words.append(re.sub(r"\dd$", "", type(layer).__name__))
    return ", ".join(words)


def _describe_up(up: Stage) -> str:
    if isinstance(up, TransposedUp):
        return f"up-conv {_times(up.stride)}"
    if isinstance(up, InterpolatedUp):
        return f"conv {_times((1,) * len(up.stride))}, interpolation ×{_times(up.stride)}"
    return type(up).__name__


def _describe_merge(merge: Stage) -> str:
    return "copy" if isinstance(merge, Concatenate) else type(merge).__name__


def configured(*overlays: str, **overrides: Any) -> tuple[UNet, tuple[int, ...]]:
    """The network of configs/train.json with overlays, without weights, and the patch size that it is for.

    Args:
        *overlays: names of overlays such as "network/unet2015".
        **overrides: ids to be replaced.
    """
    files = [str(Path(bundle_root(), "configs", f"{name}.json")) for name in ("train", *overlays)]
    parser = ConfigParser(ConfigParser.load_config_files(files))
    parser.update(overrides)
    with torch.device("meta"):
        network = parser.get_parsed_content("network_def")
    return network, tuple(parser.get_parsed_content("patch_size"))


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
    points = control_positions(transform.patch_size, transform.elastic_points, parameters, spacing)
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


def spoil(cells: np.ndarray, others: np.ndarray) -> np.ndarray:
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
    spoilt: set[int] = set()
    for low, high in sorted(pairs):
        touching = {cell for pair in pairs if {low, high} & set(pair) for cell in pair}
        if len(spoilt) < 4 and not spoilt & touching:
            pred[cells == high] = low
            spoilt |= {low, high}
    largest = np.argsort(-np.bincount(cells.ravel())[1:], kind="stable") + 1
    spare = [cell for cell in largest.tolist() if cell not in spoilt]
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
    veil = np.full((*canvas.shape, 4), (1.0, 1.0, 1.0, 0.45))
    veil[down : down + image_size[0], across : across + image_size[1], 3] = 0
    whole.imshow(veil, extent=extent)
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
        f"{len(corners)} tiles for an image of {_times(image_size)} pixels; pale: mirrored", fontsize=10
    )
    inner.set_title(f"a tile: {_times(layout.tile)} in, {_times(layout.window)} out", fontsize=10)
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


def _write_instances(path: Path) -> None:
    image, truth = even_cells(0, (192, 192))
    _, others = even_cells(1, (192, 192))
    draw_instances(image.T, truth.T, spoil(truth, others).T, path)


def _writes(draw: Callable[[], Figure]) -> Callable[[Path], None]:
    return lambda path: save_figure(draw(), path, DPI)


def _architecture(*overlays: str, **overrides: Any) -> Callable[[Path], None]:
    return _writes(lambda: draw_architecture(*configured(*overlays, **overrides)))


#: Name of each picture, and what writes it.
FIGURES: dict[str, Callable[[Path], None]] = {
    "unet2015": _architecture("task/em_membrane", "network/unet2015", patch_size=[572, 572]),
    "unet3d": _architecture(),
    "residual": _architecture("network/residual"),
    "tiles": _writes(draw_tiles),
    "weights": _writes(draw_weights),
    "elastic": _writes(draw_elastic),
    "instances": _write_instances,
}


def write_figures(names: Sequence[str], output_dir: Path) -> list[Path]:
    """Write pictures as PNG files.

    Args:
        names: keys of FIGURES; none for all.
        output_dir: made where missing; files of the same names are replaced.

    Returns:
        The files.

    Raises:
        InputError: an unknown name.
    """
    unknown = [name for name in names if name not in FIGURES]
    if unknown:
        raise InputError(f"no figure is called {unknown[0]!r}: use {', '.join(FIGURES)}")
    paths = []
    for name in names or FIGURES:
        path = output_dir / f"{name}.png"
        FIGURES[name](path)
        if path.stat().st_size > LARGEST:
            with Image.open(path) as picture:
                reduced = picture.convert("RGB").quantize(
                    256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE
                )
            with written_whole(path) as beside:
                reduced.save(beside, optimize=True)
        paths.append(path)
    return paths


def figures(
    names: Annotated[list[str] | None, typer.Argument(help="Which; all unless given")] = None,
    output_dir: Annotated[Path, typer.Option("--output_dir", help="Where the PNG files go")] = Path(
        bundle_root(), "runs", "figures"
    ),
) -> None:
    """Draw networks, tiles, the weight map, elastic deformation and wrong cells for docs/unet2015.md."""
    for path in write_figures(names or [], output_dir):
        typer.echo(path)


def register(app: typer.Typer) -> None:
    """Add the command to the workbench."""
    app.command()(figures)
