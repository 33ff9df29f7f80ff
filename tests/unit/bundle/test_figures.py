"""The pictures show what the components do: sizes of networks, contents of tiles, where points come from."""

from __future__ import annotations

import json
from functools import partial
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import nn

from bundle.figures import FIGURES, write_figures
from bundle.figures.diagram import configured, draw_architecture, read_feature_maps
from bundle.figures.mechanisms import (
    corrupt_cells,
    draw_tiles,
    draw_weights,
    even_cells,
    mirrored,
    source_positions,
)
from scripts.compute.inferers import OverlapTileInferer
from scripts.errors import InputError
from scripts.judging import Case, cell_errors
from scripts.networks import UNet
from scripts.networks.aid import InsertedU
from scripts.networks.blocks import (
    Concatenate,
    InterpolatedUp,
    Layers,
    MaxPool,
    PlainBlock,
    ResidualBlock,
    Stage,
    TransposedUp,
    centre_crop,
)
from scripts.networks.heads import Heads
from scripts.transforms import RandSpatialPatchd
from tests.commands import ROOT, invoke

#: Channels and size of every box of figure 1 of Ronneberger et al., 2015, along the U; the map from below and
#: the pair of it and the copied one are two.
FIGURE_1 = [
    *[(1, 572), (64, 570), (64, 568)],
    *[(64, 284), (128, 282), (128, 280)],
    *[(128, 140), (256, 138), (256, 136)],
    *[(256, 68), (512, 66), (512, 64)],
    *[(512, 32), (1024, 30), (1024, 28)],
    *[(512, 56), (1024, 56), (512, 54), (512, 52)],
    *[(256, 104), (512, 104), (256, 102), (256, 100)],
    *[(128, 200), (256, 200), (128, 198), (128, 196)],
    *[(64, 392), (128, 392), (64, 390), (64, 388)],
    (2, 388),
]
PAPER = ("task/em_membrane", "network/unet2015")

LARGEST = 300_000  # bytes of a picture
NARROWEST = 900  # pixels


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for axis in figure.axes for text in axis.texts]


def legend(figure: Figure) -> list[str]:
    (axis,) = figure.axes
    return [text.get_text() for text in axis.get_legend().get_texts()]


def small(**arguments) -> UNet:
    settings = {"spatial_dims": 2, "in_channels": 1, "out_channels": 2, "channels": [4, 8, 16]}
    return UNet(**{**settings, **arguments})


# The network


def test_feature_maps_of_the_paper() -> None:
    network, _ = configured(*PAPER)
    maps = read_feature_maps(network, (572, 572))
    assert [(m.channels, m.size[0]) for m in maps] == FIGURE_1
    assert all(m.size[0] == m.size[1] for m in maps)
    assert [m.skipped for m in maps if m.operation == "merge"] == [512, 256, 128, 64]
    operations = [m.operation for m in maps]
    assert [operations.count(name) for name in ("convolution", "pool", "up", "merge", "head")] == [
        18,
        4,
        4,
        4,
        1,
    ]
    # dropout at the end of the contracting path: after the last maps of 512 and of 1024 channels
    assert [(m.channels, m.size[0], m.dropout) for m in maps if m.dropout] == [
        (512, 64, 0.5),
        (1024, 28, 0.5),
    ]


def test_diagram_of_the_paper_shows_its_numbers() -> None:
    network, _ = configured(*PAPER)
    figure = draw_architecture(network, (572, 572))
    shown = texts(figure)
    boxes = [pair for i, pair in enumerate(FIGURE_1) if FIGURE_1[i + 1 : i + 2] != [(2 * pair[0], pair[1])]]
    assert len(boxes) == len(FIGURE_1) - 4  # the pair counts as one box
    for what in ("channels", "sizes"):
        for value in {pair[what == "sizes"] for pair in boxes}:
            label = f"{value}²" if what == "sizes" else str(value)
            assert shown.count(label) == sum(pair[what == "sizes"] == value for pair in boxes), label
    # 10 + 8 of 3 x 3, 4 up-convolutions and the last one: "In total the network has 23 convolutional layers"
    (title,) = [text for text in shown if "layers" in text]
    assert title == "572×572 in, 388×388 out; 23 convolutional layers, 31,030,658 parameters"
    assert legend(figure) == ["conv 3×3, ReLU", "copy and crop", "max pool 2×2", "up-conv 2×2", "conv 1×1"]


def test_default_network_keeps_its_size() -> None:
    network, patch = configured()
    maps = read_feature_maps(network, patch)
    for m in maps:
        assert m.size == tuple(n // 2**m.level for n in patch)
    by_level = {level: [m.channels for m in maps if m.level == level] for level in range(4)}
    assert by_level == {
        0: [1, 16, 16, 16, 32, 16, 16, 3],
        1: [16, 32, 32, 32, 64, 32, 32],
        2: [32, 64, 64, 64, 128, 64, 64],
        3: [64, 128, 128],
    }
    assert legend(draw_architecture(network, patch)) == [
        *("conv 3×3×3, InstanceNorm, ReLU", "copy", "max pool 2×2×2", "up-conv 2×2×2", "conv 1×1×1")
    ]


def test_residual_network_has_strides_shortcuts_and_three_heads() -> None:
    network, patch = configured("network/residual")
    maps = read_feature_maps(network, patch)
    operations = [m.operation for m in maps]
    assert "pool" not in operations
    assert operations.count("strided convolution") == 3
    assert [(m.level, m.size) for m in maps if m.operation == "head"] == [
        *((0, (32, 48, 32)), (1, (16, 24, 16)), (2, (8, 12, 8)))
    ]
    # what a block's input is: the image, the level above, or the merged map
    sources = [maps[m.shortcut].operation for m in maps if m.shortcut is not None]
    assert sources == ["input", "convolution", "convolution", "convolution", "merge", "merge", "merge"]
    assert all(m.operation == "convolution" for m in maps if m.shortcut is not None)
    lines = draw_architecture(network, patch).axes[0].get_legend().get_lines()
    drawn = [(line.get_color(), line.get_linestyle()) for line in lines]
    assert len(set(drawn)) == len(drawn) == 7


@pytest.mark.parametrize("block", [PlainBlock, ResidualBlock])
@pytest.mark.parametrize("down", [MaxPool, None])
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_feature_maps_are_those_of_a_forward_pass(block: type, down: type | None, padding: str) -> None:
    deep = partial(Heads, deep_supervision=int(padding == "same"))
    network = small(block=block, down=down, padding=padding, heads=deep, strides=[2, [2, 1]])
    size = (64, 48) if padding == "same" else (60, 60) if down else (62, 60)
    maps = read_feature_maps(network, size)
    seen: list[tuple[int, ...]] = []
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d | Concatenate)]
    for module in convolutions:
        module.register_forward_hook(lambda _, __, output: seen.append(tuple(output.shape[1:])))
    logits = network(torch.zeros(1, 1, *size))
    heads = logits.values() if isinstance(logits, dict) else [logits]
    expected = [tuple(head.shape[1:]) for head in heads]
    assert [(m.channels, *m.size) for m in maps if m.operation == "head"] == expected
    drawn = {(m.channels, *m.size) for m in maps if m.operation not in ("input", "pool", "up")}
    # a valid block's shortcut is wider than what it is added to
    assert drawn == set(seen) or (block is ResidualBlock and padding == "valid" and drawn < set(seen))


def test_network_stays_as_it_was() -> None:
    network = small(norm="batch", heads=partial(Heads, deep_supervision=1)).eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert [m.operation for m in read_feature_maps(network, (16, 16))].count("head") == 2
    with pytest.raises(InputError, match="does not fit the network"):
        read_feature_maps(network, (17, 16))
    assert not any(module.training for module in network.modules())
    assert not any(module._forward_hooks for module in network.modules())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_a_network_within_a_block_is_part_of_the_block() -> None:
    maps = read_feature_maps(small(block=InsertedU), (16, 16))
    plain = read_feature_maps(small(), (16, 16))
    assert [m.operation for m in maps if m.operation != "convolution"] == [
        m.operation for m in plain if m.operation != "convolution"
    ]
    assert {m.detail for m in maps if m.operation == "convolution"} == {"InsertedU"}


def test_other_stages_are_named() -> None:
    class Sum(PlainBlock):
        pass

    class Mean(Stage):
        def __init__(self, layers: Layers, skip_channels: int, up_channels: int, below_channels: int) -> None:
            super().__init__(up_channels)

        def forward(self, skip: torch.Tensor, up: torch.Tensor, below: torch.Tensor) -> torch.Tensor:
            return (skip + up) / 2

    figure = draw_architecture(small(up=InterpolatedUp, block=Sum), (16, 16))
    assert "conv 1×1, interpolation ×2×2" in legend(figure)
    maps = read_feature_maps(small(merge=Mean), (16, 16))
    assert [(m.channels, m.skipped) for m in maps if m.operation == "merge"] == [(8, 0), (4, 0)]


def test_copied_channels_are_those_of_the_skip() -> None:
    wide = partial(TransposedUp, keep_channels=True)
    merges = [m for m in read_feature_maps(small(up=wide), (16, 16)) if m.operation == "merge"]
    # 8 copied beside 16 that come up, 4 beside 8
    assert [(m.channels, m.skipped) for m in merges] == [(24, 8), (12, 4)]


@pytest.mark.parametrize(
    ("overlays", "size"),
    [
        (PAPER, (572, 572)),
        ((), None),
        (("network/residual",), None),
        (("network/unet3d2016",), (132, 132, 116)),
        (("network/attention",), None),
    ],
    ids=str,
)
def test_nothing_in_a_diagram_overlaps(overlays: tuple[str, ...], size: tuple[int, ...] | None) -> None:
    network, patch = configured(*overlays)
    figure = draw_architecture(network, size or patch)
    (axis,) = figure.axes
    renderer = figure.canvas.get_renderer()
    written = [text.get_window_extent(renderer) for text in axis.texts if text.get_text()]
    written.append(axis.get_legend().get_window_extent(renderer))
    boxes = [patch.get_window_extent(renderer) for patch in axis.patches if patch.get_fill()]
    assert len(boxes) >= 20
    for one, other in combinations(written, 2):
        assert not one.overlaps(other)
    for one, other in product(written, boxes):
        assert not one.overlaps(other)
    frame = figure.bbox
    assert all(
        frame.x0 <= b.x0 and b.x1 <= frame.x1 and frame.y0 <= b.y0 and b.y1 <= frame.y1 for b in written
    )


# The other pictures


class Recorder(nn.Module):
    """A network that predicts 6 pixels less on each side, and remembers what it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[np.ndarray] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not x.is_meta:
            self.seen += [tile[0].numpy().copy() for tile in x]
        return centre_crop(x, [n - 12 for n in x.shape[2:]])


def test_mirrored_picture_is_what_the_tiles_see() -> None:
    image = np.random.default_rng(0).random((50, 41), dtype=np.float32)
    network, inferer = Recorder(), OverlapTileInferer((30, 28))
    layout = inferer.windows(network, image.shape, (30, 28))
    inferer(torch.from_numpy(image)[None, None], network)
    canvas = mirrored(
        image, (6, 6), [c[-1] + n + 12 for c, n in zip(layout.corners, layout.window, strict=True)]
    )
    corners = list(product(*layout.corners))
    assert len(corners) == len(network.seen) == 9
    for (row, column), tile in zip(corners, network.seen, strict=True):
        np.testing.assert_array_equal(canvas[row : row + 30, column : column + 28], tile)


def test_tiles_of_the_picture_cover_the_image_side_by_side() -> None:
    whole = draw_tiles((252, 252), (100, 150)).axes[0]
    frames = {(p.get_xy(), p.get_width(), p.get_height()) for p in whole.patches}
    # 252 pixels in give 68 out: 92 less on each side; tiles lie a multiple of 16 apart
    outputs = {((x - 0.5, y - 0.5), 68, 68) for x in (0, 64, 128) for y in (0, 64)}
    assert outputs <= frames
    assert {(w, h) for _, w, h in frames - outputs} == {(252, 252)}


def test_points_come_from_where_the_arrows_end() -> None:
    size = 64
    transform = RandSpatialPatchd(
        ["row", "column"], ["bilinear", "bilinear"], (size, size), elastic_prob=1.0, elastic_std=3.0
    ).set_random_state(0)
    parameters = transform.randomize(None, (size, size), np.ones(2))
    sources = source_positions(transform, parameters)
    assert np.abs(sources - np.indices((size, size)).transpose(1, 2, 0)).max() > 1
    ramps = dict(
        zip(("row", "column"), torch.from_numpy(np.indices((size, size)))[:, None].float(), strict=True)
    )
    patch = transform.apply(ramps, parameters, np.ones(2))
    inside = ((sources > 0) & (sources < size - 1)).all(-1)
    assert inside.mean() > 0.5
    for axis, key in enumerate(ramps):
        np.testing.assert_allclose(patch[key][0].numpy()[inside], sources[inside][:, axis], atol=1e-3)


def test_weight_map_is_the_sum_of_its_terms() -> None:
    figure = draw_weights()
    shown = {axis.get_title(): axis.images[0].get_array() for axis in figure.axes if axis.images}
    classes, border, total = (
        shown[name] for name in ("class term $w_c$", "border term", "weight map: the sum")
    )
    np.testing.assert_allclose(classes + border, total)
    assert 9 < border.max() <= 10  # cells touch
    assert len(np.unique(classes)) == 2
    assert sum("colorbar" in axis.get_label() for axis in figure.axes) == 3


def test_made_up_prediction_has_two_errors_of_each_kind() -> None:
    (_, truth), (_, others) = (even_cells(index, (192, 192)) for index in (0, 1))
    pred = corrupt_cells(truth, others)
    errors = cell_errors(Case("a", pred, truth))
    assert [len(ids) for ids in vars(errors).values()] == [2, 2, 2, 2]
    count = int(truth.max())
    assert len(np.unique(pred)) - 1 == count - 2 + 2 - 2 + 2
    untouched = [i for i in range(1, count + 1) if len(np.unique(pred[truth == i])) == 1]
    assert len(untouched) == count - 2  # all but those that are cut


@pytest.mark.parametrize("name", FIGURES)
def test_picture_is_small_and_wide(name: str, tmp_path: Path) -> None:
    (path,) = write_figures([name], tmp_path / "new")
    assert path == tmp_path / "new" / f"{name}.png"
    assert path.stat().st_size < LARGEST
    with Image.open(path) as picture:
        assert picture.width >= NARROWEST
        assert len(picture.convert("RGB").getcolors(10**6)) > 20


def test_page_shows_every_picture() -> None:
    page = (ROOT / "docs" / "unet2015.md").read_text(encoding="utf-8")
    assert [name for name in FIGURES if f"(images/{name}.png)" not in page] == []


def test_command(tmp_path: Path) -> None:
    result = invoke("figures", "--only", "unet3d", "--output_dir", tmp_path)
    assert result.exit_code == 0, result.output
    assert [path.name for path in tmp_path.iterdir()] == ["unet3d.png"]


def test_the_network_of_an_experiment(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"config_file": ["configs/train.json", "configs/network/umamba.json"]}))
    given = ("figures", "--args_file", file, "--output_dir", tmp_path / "out")
    result = invoke(*given, "--channels", "[4,8,8]")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "out/mine.png").is_file()
    file.write_text(json.dumps({"config_file": ["configs/train.json", "configs/network/segresnet.json"]}))
    assert "network_def is SegResNet, whose parts are not known" in str(invoke(*given).exception)
    assert "give --args_file too" in str(invoke("figures", "--channels", "[4,8]").exception)


def test_what_stands_in_the_bottleneck_and_what_gates_look_at_are_read() -> None:
    class Twice(Stage):
        def __init__(self, layers: Layers, in_channels: int) -> None:
            super().__init__(2 * in_channels)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([x, x], 1)

    class BelowToo(Concatenate):
        def forward(self, skip: torch.Tensor, up: torch.Tensor, below: torch.Tensor) -> torch.Tensor:
            return super().forward(skip * below.mean(), up, below)

    plain, gated = (read_feature_maps(small(merge=merge), (16, 16)) for merge in (Concatenate, BelowToo))
    assert [m.gated for m in plain if m.operation == "merge"] == [False, False]
    assert [m.gated for m in gated if m.operation == "merge"] == [True, True]
    network = small(merge=BelowToo, bottleneck=Twice)
    maps = read_feature_maps(network, (16, 16))
    (wide,) = (m for m in maps if m.operation == "part")
    before = maps[maps.index(wide) - 1]
    assert (wide.detail, wide.level, wide.size) == ("twice", before.level, before.size)
    assert wide.channels == 2 * before.channels
    assert {"twice", "below too", "the coarser map looked at"} <= set(
        legend(draw_architecture(network, (16, 16)))
    )
