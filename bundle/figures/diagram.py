"""A network as figure 1 of the paper draws it, read from the instance while tensors without data pass."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from monai.bundle import ConfigParser
from torch import nn

from scripts.compute.memory import dry_run
from scripts.networks import UNet
from scripts.networks.blocks import (
    Concatenate,
    InterpolatedUp,
    MaxPool,
    PlainBlock,
    ResidualBlock,
    Stage,
    TransposedUp,
)
from scripts.networks.heads import MAIN_HEAD, Heads
from scripts.networks.sizes import Sizes
from scripts.networks.unet import DecoderLevel, EncoderLevel
from scripts.process import bundle_root

_Module = TypeVar("_Module", bound=nn.Module)

#: Colours of the arrows of the network's diagram, one for each kind of operation (Okabe and Ito's palette).
ARROWS = {
    "convolution": "#0072b2",
    "strided convolution": "#e69f00",
    "skip": "#7f7f7f",
    "gate": "#8c6d00",
    "pool": "#d55e00",
    "part": "#882255",
    "up": "#009e73",
    "head": "#cc79a7",
    "shortcut": "#000000",
}
MAP_COLOUR = "#56b4e9"

#: What a merge does that puts the skip beside the map from below as it is.
COPY = "copy"


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
        gated: the merge looks at the coarser map, before its up-step.
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
    gated: bool = False
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
    Sizes(network).check(input_size)
    maps: list[FeatureMap] = []
    handles = []

    def watch(module: nn.Module, operation: str, detail: str, level: int) -> None:
        def note(_: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            skipped = inputs[0].shape[1] if isinstance(module, Concatenate) else 0
            size = tuple(output.shape[2:])
            gated = operation == "merge" and _looks_below(module, *inputs)
            maps.append(FeatureMap(operation, detail, level, output.shape[1], size, skipped, gated=gated))

        handles.append(module.register_forward_hook(note))

    def watch_block(block: Stage, level: int) -> None:
        if not isinstance(block, PlainBlock):
            watch(block, "convolution", type(block).__name__, level)
            return
        for unit in cast(list[nn.Sequential], list(block.convolutions)):
            strided = any(max(m.stride) > 1 for m in unit if isinstance(m, nn.Conv2d | nn.Conv3d))
            watch(unit, "strided convolution" if strided else "convolution", _describe(*unit), level)
        for part in (part for part in block.children() if isinstance(part, Stage)):
            watch(part, "part", _words(part), level)
        if isinstance(block, ResidualBlock):
            added = "sum with the block's input, " + _describe(block.act)

            def note(*_: Any) -> None:
                maps[-1] = replace(maps[-1], shortcut=len(maps) - len(block.convolutions) - 1, added=added)

            handles.append(block.register_forward_hook(note))

    def watch_dropout(dropout: nn.Dropout) -> None:
        def note(*_: Any) -> None:
            maps[-1] = replace(maps[-1], dropout=dropout.p)

        handles.append(dropout.register_forward_hook(note))

    levels = list(_outermost(network.encoder, EncoderLevel))
    for index, down in enumerate(levels):
        if isinstance(down.down, Stage):
            watch(down.down, "pool", _describe_down(down), index)
        watch_block(down.block, index)
        if isinstance(down.dropout, nn.Dropout) and down.dropout.p > 0:
            watch_dropout(down.dropout)
    if not levels:

        def note_features(encoder: nn.Module, inputs: Any, output: list[torch.Tensor]) -> None:
            for index, x in enumerate(output):
                made = type(encoder).__name__
                maps.append(FeatureMap("strided convolution", made, index, x.shape[1], tuple(x.shape[2:])))

        handles.append(network.encoder.register_forward_hook(note_features))
    if not isinstance(network.bottleneck, nn.Identity):
        lowest = len(network.encoder.strides) - 1
        watch(network.bottleneck, "part", _words(network.bottleneck), lowest)
    for rise in _outermost(network.decoder, DecoderLevel):
        watch(rise.up, "up", _describe_up(rise.up), rise.level)
        watch(rise.merge, "merge", _describe_merge(rise.merge), rise.level)
        watch_block(rise.block, rise.level)
    heads = cast(nn.Module, network.heads)
    if isinstance(heads, Heads):
        for index, head in enumerate([heads.main, *heads.deep.values()]):
            watch(head, "head", _describe(head), index)
    else:

        def note_heads(_: nn.Module, inputs: Any, output: Any) -> None:
            for name, logits in (output if isinstance(output, dict) else {MAIN_HEAD: output}).items():
                size = tuple(logits.shape[2:])
                maps.append(FeatureMap("head", f"{type(heads).__name__}: {name}", 0, logits.shape[1], size))

        handles.append(heads.register_forward_hook(note_heads))

    maps.append(FeatureMap("input", "", 0, network.in_channels, tuple(int(n) for n in input_size)))
    training, heads.training = heads.training, True  # of the heads alone: all of them, nothing else changes
    try:
        dry_run(network, (1, network.in_channels, *input_size))
    finally:
        heads.training = training
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
            Line2D([], [], color=ARROWS[operation], label=detail, linestyle=self._line(operation, detail))
            for operation in ARROWS
            for detail in self.seen.get(operation, ())
        ]
        self.axis.legend(handles=handles, loc="lower right", fontsize=8, frameon=False, borderaxespad=0.8)

    def _line(self, operation: str, detail: str) -> Literal["-", "--", ":"]:
        """Dotted for shortcuts, solid for the first detail of an operation, dashed for others."""
        if operation == "shortcut":
            return ":"
        return "-" if detail == self.seen[operation][0] else "--"

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
                    ends[self.maps[before].level] += push
                    left += push
            spans.append((left, width))
            ends[m.level] = left + width
        return spans

    def before(self, index: int) -> int | None:
        """The map that a map is made from."""
        if index == 0:
            return None
        if self.maps[index].operation in ("head", "up"):
            source = self.maps[index].level + (self.maps[index].operation == "up")
            return max(
                (i for i in range(index) if self.maps[i].level == source and self._is_inner(i)),
                default=index - 1,
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
        detail = "copy and crop" if cropped and m.detail == COPY else m.detail
        self._arrow("skip", detail, (from_left + from_width, y), (left, y))
        if m.gated:  # from the map below, between the levels, beside the sizes
            below_left, below_bottom, below_width, below_height = self.boxes[self.before(index - 1) or 0]
            turn = below_left + 0.15 * below_width
            top, between, x = below_bottom + below_height, bottom - 0.5 * self.STEP, left - 0.5 * self.GAP
            self.axis.plot([turn, turn, x], [top, between, between], color=ARROWS["gate"], lw=1.4)
            self._arrow("gate", "the coarser map looked at", (x, between), (x, y))
            self.axis.plot(x, y, marker="o", markersize=6, color=ARROWS["gate"])

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
            "linestyle": self._line(operation, detail),
        }
        self.axis.annotate("", end, start, arrowprops=style)


def _title(network: UNet, maps: Sequence[FeatureMap]) -> str:
    convolutions = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    count = sum(isinstance(module, convolutions) for module in network.modules())
    weights = sum(parameter.numel() for parameter in network.parameters())
    output = next(m for m in maps if m.operation == "head")
    return (
        f"{times(maps[0].size)} in, {times(output.size)} out; "
        f"{count} convolutional layers, {weights:,} parameters"
    )


def _edge(size: Sequence[int]) -> float:
    """The edge of the square or cube of the same size."""
    return math.prod(size) ** (1 / len(size))


def times(numbers: Sequence[int]) -> str:
    """Numbers with a multiplication sign between."""
    return "×".join(map(str, numbers))


def _size(size: Sequence[int]) -> str:
    """A size in little room: 572² for 572 x 572."""
    return f"{size[0]}{'²' if len(size) == 2 else '³'}" if len(set(size)) == 1 else times(size)


def _describe(*layers: nn.Module) -> str:
    """A convolution with what follows it, in words: "conv 3×3, ReLU"."""
    words = []
    for layer in layers:
        if isinstance(layer, nn.Conv2d | nn.Conv3d):
            stride = f" stride {times(layer.stride)}" if max(layer.stride) > 1 else ""
            words.append(f"conv {times(layer.kernel_size)}{stride}")
        else:
            words.append(re.sub(r"\dd$", "", type(layer).__name__))
    return ", ".join(words)


def _describe_down(level: EncoderLevel) -> str:
    named = "max pool" if isinstance(level.down, MaxPool) else type(level.down).__name__
    return f"{named} {times(level.stride)}"


def _describe_up(up: Stage) -> str:
    if isinstance(up, TransposedUp):
        return f"up-conv {times(up.convolution.stride)}"
    if isinstance(up, InterpolatedUp):
        factors = tuple(map(int, cast(tuple[float, ...], up.interpolation.scale_factor)))
        return f"conv {times((1,) * len(factors))}, interpolation ×{times(factors)}"
    return type(up).__name__


def _describe_merge(merge: Stage) -> str:
    return COPY if type(merge) is Concatenate else _words(merge)


def _words(part: nn.Module) -> str:
    """The name of a part's class as people write it: "attention gate"."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(part).__name__).lower()


def _outermost(module: nn.Module, kind: type[_Module]) -> Iterator[_Module]:
    """Parts of a kind, but not those within one: a block may have a network of its own in it."""
    for child in module.children():
        if isinstance(child, kind):
            yield child
        else:
            yield from _outermost(child, kind)


def _looks_below(merge: nn.Module, skip: torch.Tensor, up: torch.Tensor, below: torch.Tensor) -> bool:
    """Whether what a merge gives depends on the coarser map by another way than the up-step."""
    coarser = torch.empty_like(below, requires_grad=True)
    with torch.enable_grad():
        merged = merge.forward(skip.detach(), up.detach(), coarser)
        if not merged.requires_grad:
            return False
        (gradient,) = torch.autograd.grad(merged.sum(), coarser, allow_unused=True)
    return gradient is not None


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
