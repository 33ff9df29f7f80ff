"""Windows give what MONAI's give, tiles that abut give what the network gives for the whole mirrored image.

The memory budget is judged by the system: by the limit that it sets and by the peak that it counts.
"""

from __future__ import annotations

import functools
import logging
import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.bundle import ConfigParser
from monai.data import MetaTensor, decollate_batch
from monai.inferers import SlidingWindowInferer as MonaiInferer
from monai.networks.nets import BasicUNet, SegResNet
from monai.networks.nets import UNet as MonaiUNet
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from scripts.calibration import Calibration
from scripts.compute.inferers import (
    MIDDLE_TILES,
    AveragedOrientations,
    OverlapTileInferer,
    SlidingWindowSlabInferer,
    _batches,
)
from scripts.compute.memory import resident_bytes
from scripts.compute.runtimes import Runtime
from scripts.errors import InputError
from scripts.networks import UNet, output_size
from scripts.networks.blocks import InterpolatedUp, PlainBlock, ResidualBlock
from scripts.networks.sizes import Sizes
from tests.commands import CONFIGS, ROOT

# Single precision through a few layers, on tiles of different sizes.
TOLERANCE = 1e-5


@functools.cache
def make_network(spatial_dims: int, padding: str = "valid") -> nn.Module:
    """A small U-Net whose output at a voxel depends on its surroundings alone."""
    torch.manual_seed(0)
    network = UNet(spatial_dims, 1, 2, [3, 4], padding=padding, norm=None)
    return network.eval()


def whole_at_once(
    image: torch.Tensor, network: nn.Module, legal: tuple[int, ...] | None = None
) -> torch.Tensor:
    """The image mirrored by numpy until the network's output covers it, in one forward pass, cut to size."""
    sizes = sizes_of(network)
    size = sizes.covering(image.shape[2:], legal or (44,) * (image.ndim - 2))
    covered = sizes.output(size)
    margins = [(s - c) // 2 for s, c in zip(size, covered, strict=True)]
    pads = [(m, s - m - n) for m, s, n in zip(margins, size, image.shape[2:], strict=True)]
    padded = np.pad(image.numpy(), [(0, 0), (0, 0), *pads], mode="reflect")
    with torch.no_grad():
        logits = network(torch.from_numpy(padded))
    return logits[(..., *(slice(0, n) for n in image.shape[2:]))]


@functools.cache
def sizes_of(network: nn.Module) -> Sizes:
    return Sizes(network)


def infer(image: torch.Tensor, tile: tuple[int, ...], network: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return OverlapTileInferer(tile)(image, network)


# Sizes that are legal for the network on every axis: 16 voxels of context, an even number predicted.
LEGAL = [20, 24, 28]


def test_tiles_are_legal_and_predict_less_than_they_see():
    assert output_size(make_network(2), (20, 28)) == (4, 12)


@settings(max_examples=15, deadline=None)
@given(
    st.tuples(st.integers(1, 45), st.integers(1, 45)),
    st.tuples(st.sampled_from(LEGAL), st.sampled_from(LEGAL)),
    st.integers(0, 1000),
)
def test_equals_the_whole_image_2d(size, tile, seed):
    image = torch.rand((2, 1, *size), generator=torch.Generator().manual_seed(seed))
    network = make_network(2)
    torch.testing.assert_close(
        infer(image, tile, network), whole_at_once(image, network), atol=TOLERANCE, rtol=TOLERANCE
    )


@settings(max_examples=6, deadline=None)
@given(st.tuples(*[st.integers(1, 14)] * 3), st.tuples(*[st.sampled_from(LEGAL)] * 3))
def test_equals_the_whole_image_3d(size, tile):
    image = torch.rand((1, 1, *size), generator=torch.Generator().manual_seed(1))
    network = make_network(3)
    torch.testing.assert_close(
        infer(image, tile, network), whole_at_once(image, network), atol=TOLERANCE, rtol=TOLERANCE
    )


def test_batch_is_each_image_by_itself():
    images = torch.rand(2, 1, 23, 17)
    network = make_network(2)
    single = torch.cat([infer(image[None], (24, 20), network) for image in images])
    torch.testing.assert_close(infer(images, (24, 20), network), single, atol=TOLERANCE, rtol=TOLERANCE)


def test_every_voxel_is_predicted_once_and_by_its_own_centre():
    """A network that crops its input gives the image back, wherever the tiles meet."""

    class Crop(nn.Module):
        def forward(self, x, scale=1):
            return x[..., 3:-3, 3:-3] * scale

    image = torch.rand(2, 1, 13, 25)
    assert torch.equal(infer(image, (10, 9), Crop()), image)
    assert torch.equal(OverlapTileInferer((10, 9))(image, Crop(), scale=2), 2 * image)


#: The published networks at their own depth, with few channels and without norms; a tile, and an image that
#: takes several: the legal outputs of a tile are no multiple of the grid of the deepest level.
PUBLISHED = {
    "unet2015": (2, {"channels": [2, 3, 4, 5, 6]}, (252, 236), (150, 90), (68, 52), 16),
    "unet3d2016": (
        3,
        {"channels": [[1, 2], [2, 3], [3, 4], [4, 5]]},
        (100, 108, 92),
        (30, 40, 9),
        (12, 20, 4),
        8,
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_tiles_of_the_published_networks_give_the_image_in_one_piece(name):
    dims, changes, tile, size, predicted, grid = PUBLISHED[name]
    parser = ConfigParser(
        {"spatial_dims": dims, "in_channels": 1, "out_channels": 2, "patch_size": list(tile)}
    )
    parser.update(ConfigParser.load_config_file(CONFIGS / "network" / f"{name}.json"))
    for key, value in {**changes, "norm": None}.items():
        parser[f"network_def::{key}"] = value
    torch.manual_seed(0)
    network = parser.get_parsed_content("network_def").eval()
    sizes = sizes_of(network)
    assert sizes.output(tile) == predicted
    assert sizes.grid(tile) == (grid,) * dims
    image = torch.rand((1, 1, *size), generator=torch.Generator().manual_seed(0))
    if min(predicted) < grid:
        with pytest.raises(
            InputError, match=rf"axis 2 the network predicts 4 voxels .* {grid} of its grid; give it 100 or"
        ):
            infer(image, tile, network)
        tile = (*tile[:2], 100)
    expected = whole_at_once(image, network, tile)
    tiled = infer(image, tile, network)
    torch.testing.assert_close(tiled, expected, atol=TOLERANCE, rtol=TOLERANCE)
    assert torch.equal(tiled.argmax(1), expected.argmax(1))


#: Arguments of padded networks of every kind of part, and a tile larger than twice their margin.
PADDED: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "plain 2D": ({"channels": [3, 4]}, (24, 28)),
    "anisotropic 2D": (
        {"channels": [2, 3, 4], "strides": [[1, 2], 3], "kernel_sizes": [[1, 3], 3, [3, 5]]},
        (48, 144),
    ),
    "residual, strided, interpolated 2D": (
        {"channels": [3, 4], "block": ResidualBlock, "up": InterpolatedUp, "down": None, "norm": "batch"},
        (32, 28),
    ),
    "all gradients 2D": (
        {"channels": [3, 4, 5], "strides": [2, [1, 3]], "down": None, "up": InterpolatedUp, "act": "tanh"},
        (44, 180),
    ),
    "plain 3D": ({"channels": [2, 3], "convs_per_level": 1}, (16, 14, 16)),
}


@functools.cache
def make_padded(name: str) -> tuple[UNet, tuple[int, ...]]:
    arguments, tile = PADDED[name]
    torch.manual_seed(0)
    return UNet(len(tile), 1, 2, **{"norm": None, "act": "leakyrelu", **arguments}).eval(), tile


@pytest.mark.parametrize("name", PADDED)
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_padded_network_gives_the_image_in_one_piece(name, data):
    """Padded with zeros to a legal size, as a sliding window would; the rims of tiles leave no trace."""
    network, tile = make_padded(name)
    size = data.draw(st.tuples(*[st.integers(1, 2 * n) for n in tile]))
    image = torch.rand((1, 1, *size), generator=torch.Generator().manual_seed(0))
    whole = sizes_of(network).covering(size, tile)
    padded = torch.zeros((1, 1, *whole))
    padded[(..., *(slice(0, n) for n in size))] = image
    with torch.no_grad():
        expected = network(padded)[(..., *(slice(0, n) for n in size))]
    torch.testing.assert_close(infer(image, tile, network), expected, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("name", PADDED)
def test_margin_bounds_what_a_voxel_depends_on(name):
    """Gradients of logits reach no further; no less either, but for the grid, where all of them are kept."""
    network, tile = make_padded(name)
    sizes = sizes_of(network)
    for axis in range(len(tile)):
        grid = math.prod(stride[axis] for stride in network.encoder.strides)
        assert sizes.grid(tile)[axis] == grid
        margin = sizes.margin(tile, axis)
        others = sizes.covering([1] * len(tile), tile)
        size = (*others[:axis], grid * (2 * margin // grid + 3), *others[axis + 1 :])
        furthest = 0
        for seed in range(5):
            image = torch.rand((1, 1, *size), generator=torch.Generator().manual_seed(seed)).requires_grad_()
            logits = network(image).movedim(axis + 2, 0)
            for position in range(size[axis] // 2, size[axis] // 2 + grid):
                (gradient,) = torch.autograd.grad(logits[position].square().sum(), image, retain_graph=True)
                seen = gradient.movedim(axis + 2, 0).flatten(1).abs().sum(1).nonzero().flatten().tolist()
                furthest = max([furthest, *(abs(position - place) for place in seen)])
        assert 0 < furthest < margin + grid
        if name == "all gradients 2D":
            assert furthest > margin - grid


def test_network_of_monai_gives_the_image_in_one_piece():
    torch.manual_seed(0)
    network = SegResNet(2, 4, 1, 2, norm="batch", blocks_down=(1, 1), blocks_up=(1,)).eval()
    image = torch.rand(1, 1, 70, 53)
    with torch.no_grad():
        expected = network(nn.functional.pad(image, (0, 1)))[..., :53]
    torch.testing.assert_close(infer(image, (40, 40), network), expected, atol=TOLERANCE, rtol=TOLERANCE)


def test_what_a_newcomers_part_sees_is_found():
    """Two more convolutions in a block that says nothing about them."""

    class Wide(PlainBlock):
        def __init__(self, layers, in_channels, out_channels, kernel_size, stride):
            super().__init__(layers, in_channels, out_channels, kernel_size, stride)
            self.more = nn.Conv2d(self.out_channels, self.out_channels, 5, padding=4, dilation=2)

        def forward(self, x):
            return self.more(super().forward(x))

    torch.manual_seed(0)
    network = UNet(2, 1, 2, [3, 4], block=Wide, norm=None).eval()
    image = torch.rand(1, 1, 150, 20)
    with torch.no_grad():
        expected = network(image)
    torch.testing.assert_close(infer(image, (96, 64), network), expected, atol=TOLERANCE, rtol=TOLERANCE)


class Squeezed(PlainBlock):
    """Weighs all channels by their means over the image."""

    def forward(self, x):
        x = super().forward(x)
        return x * x.mean((2, 3), keepdim=True).sigmoid()


class Normalised(PlainBlock):
    """A norm that is no module."""

    def forward(self, x):
        return nn.functional.instance_norm(super().forward(x))


class Swallowing(PlainBlock):
    """Hands no NaN on."""

    def forward(self, x):
        return super().forward(torch.nan_to_num(x))


class Placed(PlainBlock):
    """Knows where in the image it is."""

    def forward(self, x):
        return super().forward(x) + torch.linspace(0, 1, x.shape[3], device=x.device)


@pytest.mark.parametrize("block", [Squeezed, Normalised, Swallowing, Placed])
def test_network_that_tiles_cannot_follow_is_refused(block):
    torch.manual_seed(0)
    network = UNet(2, 1, 2, [3, 4], block=block, norm=None).eval()
    with pytest.raises(InputError, match="SlidingWindowSlabInferer"):
        infer(torch.rand(1, 1, 40, 100), (32, 64), network)


@pytest.mark.parametrize("changes", [{"block": Squeezed}, {"block": Normalised}, {"up": InterpolatedUp}])
def test_valid_network_that_tiles_cannot_follow_is_refused(changes):
    torch.manual_seed(0)
    network = UNet(2, 1, 2, [3, 4], padding="valid", norm=None, **changes).eval()
    image = torch.rand(1, 1, 40, 30)
    with pytest.raises(InputError, match=r"UNet gives something else in tiles than in one piece"):
        infer(image, (28, 28), network)
    assert infer(image[..., :4, :8], (28, 28), network).shape == (1, 2, 4, 8)  # one tile is one piece


@pytest.mark.parametrize("tile", [(64, 64), (96, 80)])
def test_network_of_any_size_gives_the_image_in_one_piece(tile):
    """MONAI's U-Net halves by strides, and takes every size with strides alone."""
    torch.manual_seed(0)
    network = MonaiUNet(2, 1, 2, (4, 4, 4), (2, 2), norm="batch").eval()
    assert sizes_of(network).grid(tile) == (4, 4)
    image = torch.rand(1, 1, 152, 132)
    with torch.no_grad():
        expected = network(image)
    torch.testing.assert_close(infer(image, tile, network), expected, atol=TOLERANCE, rtol=TOLERANCE)


def test_tile_off_the_grid_is_refused():
    network = BasicUNet(2, features=(2, 2, 2, 2, 2, 2), norm="batch").eval()
    with pytest.raises(InputError, match=r"tile_size is \[300, 300\]: use multiples of \[16, 16\]"):
        infer(torch.rand(1, 1, 400, 400), (300, 300), network)


def test_tile_within_its_margins_is_refused():
    with pytest.raises(InputError, match=r"tiles have 16 voxels along axis 0, and the network sees further"):
        infer(torch.rand(1, 1, 40, 40), (16, 20), make_network(2, "same"))


def test_smallest_tile_beyond_its_margins_is_taken():
    network, image = make_network(2, "same"), torch.rand(1, 1, 40, 40)
    with torch.no_grad():
        expected = network(image)
    torch.testing.assert_close(infer(image, (24, 24), network), expected, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.fixture
def group(tmp_path):
    """A process group of this process alone."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("padding", ["valid", "same"])
def test_network_of_several_processes_is_its_own_network(padding):
    network, image = make_network(2, padding), torch.rand(1, 1, 30, 21)
    inferer = OverlapTileInferer([44, 44] if padding == "same" else [28, 28])
    assert torch.equal(inferer(image, DistributedDataParallel(network)), inferer(image, network))


def test_runtime_looks_at_the_middle_of_an_image_before_its_corners(monkeypatch):
    """Foreground lies in the middle of 5 x 5 windows: 12 come before it."""
    looked = []
    monkeypatch.setattr(
        Runtime, "look", lambda self, network, tiles: looked.extend(float(tile.max()) for tile in tiles)
    )
    image = torch.zeros(1, 2, 20, 20)
    image[..., 9:11, 9:11] = 1
    SlidingWindowSlabInferer([4, 4], overlap=0, runtime="auto")(image, make_convolution(2))
    assert looked[0] == 1
    assert len(looked) == MIDDLE_TILES


@pytest.mark.parametrize(
    ("count", "batch_size", "abreast"), [(9, 4, 1), (9, 1, 2), (7, 2, 4), (3, 1, 3), (1, 1, 1)]
)
def test_every_window_passes_once(count, batch_size, abreast):
    batches = _batches(count, batch_size, abreast)
    assert [index for batch in batches for index in batch] == list(range(count))
    assert (
        all(len(batch) <= batch_size for batch in batches)
        if abreast == 1
        else min(map(len, batches)) >= abreast
    )


def test_zeros_beyond_the_border_where_no_mirror_is_wanted():
    image, network = torch.rand(1, 1, 12, 12), make_network(2)
    tiled = OverlapTileInferer((20, 24), mirror=False)(image, network)
    with torch.no_grad():
        expected = network(nn.functional.pad(image, [8] * 4))
    torch.testing.assert_close(tiled, expected, atol=TOLERANCE, rtol=TOLERANCE)


def test_cost_by_hand():
    """One convolution of a kernel of 3: work is proportional to the voxels that it gives."""

    inferer, valid = OverlapTileInferer((8, 8)), nn.Conv2d(1, 1, 3)
    assert inferer.cost(valid, (1, 12, 6)) == 1  # two of 6 x 6 for 12 x 6
    assert inferer.cost(valid, (1, 13, 6)) == 3 * 36 / (13 * 6)  # the last sticks out
    same = nn.Conv2d(1, 1, 3, padding=1)
    assert SlidingWindowSlabInferer((8, 8), overlap=0.5).cost(same, (1, 16, 8)) == 3 / 2


def test_prediction_keeps_the_meta_data_of_each_image():
    images = MetaTensor(torch.rand(2, 1, 20, 21), meta={"filename_or_obj": ["a.png", "b.png"]})
    images.is_batch = True
    network = make_network(2)
    logits = infer(images, (24, 24), network)
    torch.testing.assert_close(logits.as_tensor(), infer(images.as_tensor(), (24, 24), network))
    assert [part.meta["filename_or_obj"] for part in decollate_batch(logits)] == ["a.png", "b.png"]


def test_illegal_tile_names_the_nearest_legal_sizes():
    with pytest.raises(InputError, match=r"input size \(21, 20\) does not fit the network.*20 or 22"):
        infer(torch.rand(1, 1, 30, 30), (21, 20), make_network(2))


def test_sliding_windows_need_all_that_they_see():
    with pytest.raises(InputError, match=r"logits of \[4, 12\] voxels for tiles of \[20, 28\].*OverlapTile"):
        SlidingWindowSlabInferer((20, 28))(torch.rand(1, 1, 30, 30), make_network(2))


@pytest.mark.parametrize("shape", [(0, 5), (5, 0)])
def test_image_without_voxels_is_refused(shape):
    with pytest.raises(InputError, match=rf"image of \[{shape[0]}, {shape[1]}\] voxels: give every axis"):
        infer(torch.rand(1, 1, *shape), (20, 20), make_network(2))


@functools.cache
def make_convolution(spatial_dims: int) -> nn.Module:
    """A network whose output depends on where a window lies: its zero padding sits at the window's border."""
    torch.manual_seed(0)
    convolution = nn.Conv2d if spatial_dims == 2 else nn.Conv3d
    return nn.Sequential(convolution(2, 3, 3, padding=1), nn.ReLU())


@st.composite
def sliding_cases(draw, spatial_dims):
    """An image and the keywords that both inferers take."""
    size = draw(st.tuples(*[st.integers(1, 30 if spatial_dims == 2 else 14)] * spatial_dims))
    image = torch.rand((draw(st.integers(1, 3)), 2, *size), generator=torch.Generator().manual_seed(0))
    keywords = {
        "roi_size": draw(st.tuples(*[st.integers(2, 12)] * spatial_dims)),
        "sw_batch_size": draw(st.integers(1, 5)),
        "overlap": draw(st.tuples(*[st.sampled_from([0, 0.25, 0.5, 0.7, 0.9])] * spatial_dims)),
        "mode": draw(st.sampled_from(["constant", "gaussian"])),
    }
    return image, keywords


@settings(max_examples=40, deadline=None)
@given(st.one_of(sliding_cases(2), sliding_cases(3)))
def test_sliding_windows_are_monais(case):
    image, keywords = case
    network = make_convolution(image.ndim - 2)
    with torch.no_grad():
        expected = MonaiInferer(**keywords)(image, network)
    logits = SlidingWindowSlabInferer(**keywords)(image, network)
    torch.testing.assert_close(logits, expected, atol=TOLERANCE, rtol=TOLERANCE)
    assert not logits.requires_grad
    labels = SlidingWindowSlabInferer(**keywords, output="labels")(image, network)
    assert labels.dtype == torch.uint8
    assert torch.equal(labels, logits.argmax(1, keepdim=True).byte())


def test_window_of_the_images_size_is_one_pass():
    image = torch.rand(1, 2, 9, 14)
    with torch.no_grad():
        expected = make_convolution(2)(image)
    torch.testing.assert_close(SlidingWindowSlabInferer([0, -1])(image, make_convolution(2)), expected)


def test_sliding_prediction_keeps_the_meta_data_of_each_image():
    images = MetaTensor(torch.rand(2, 2, 20, 21), meta={"filename_or_obj": ["a.png", "b.png"]})
    images.is_batch = True
    labels = SlidingWindowSlabInferer(8, output="labels")(images, make_convolution(2))
    assert [part.meta["filename_or_obj"] for part in decollate_batch(labels)] == ["a.png", "b.png"]


class Counted(np.ndarray):
    """An array on disk, say: it knows how large a part of it was read at once."""

    largest = 0

    def __getitem__(self, box):
        part = np.asarray(super().__getitem__(box))
        Counted.largest = max(Counted.largest, part.size)
        return part


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slabs_read_windows_and_hand_planes_on_as_they_are_finished(axis):
    shape = [11, 12, 10]
    shape[axis] = 40
    volume = np.random.default_rng(0).integers(0, 1000, (2, *shape)).astype(np.int16)
    inferer = SlidingWindowSlabInferer((8, 8, 8), overlap=0.5, mode="gaussian")
    seen, planes = [], []
    for start, stop, logits in inferer.slabs(volume.view(Counted), make_convolution(3), axis):
        assert logits.shape == (3, *shape[:axis], stop - start, *shape[axis + 1 :])
        seen.append((start, stop))
        planes.append(logits.clone())  # they are overwritten
    assert seen == [(start, start + 4) for start in range(0, 32, 4)] + [(32, 40)]
    assert Counted.largest == 2 * 8**3
    whole = inferer(torch.from_numpy(volume.astype(np.float32))[None], make_convolution(3))
    torch.testing.assert_close(torch.cat(planes, axis + 1), whole[0])


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"mode": "cosine"}, "mode is 'cosine': use 'constant' or 'gaussian'"),
        ({"overlap": 1.0}, "overlap is 1.0: use shares"),
        ({"overlap": [0.5, -0.1]}, r"overlap is \[0.5, -0.1\]: use shares"),
        ({"sw_batch_size": 0}, "sw_batch_size is 0: use 1 or more"),
        ({"output": "probabilities"}, "output is 'probabilities': use 'logits' or 'labels'"),
    ],
)
def test_wrong_arguments_are_refused(keywords, message):
    with pytest.raises(InputError, match=message):
        SlidingWindowSlabInferer(8, **keywords)


def test_large_budget_changes_nothing(caplog):
    image = torch.rand(1, 1, 20, 24)
    network = make_network(2, "same")
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            logits = SlidingWindowSlabInferer(16, 3, memory_gb=1000)(image, network)
    torch.testing.assert_close(logits, SlidingWindowSlabInferer(16, 3)(image, network))
    assert "3 tile(s) of [16, 16] voxels at once" in caplog.text


@pytest.mark.parametrize("kind", ["sliding", "overlap-tile"])
def test_budget_that_nothing_fits_names_one_that_does(kind):
    padding = "same" if kind == "sliding" else "valid"
    make = SlidingWindowSlabInferer if kind == "sliding" else OverlapTileInferer
    image, network = torch.rand(1, 1, 64, 64), make_network(2, padding)
    with pytest.raises(
        InputError, match=r"needs [\d.]+ GB even in tiles of .*; memory_gb is 0\.01; allow"
    ) as error:
        make((64, 64), memory_gb=0.01)(image, network)
    enough = float(str(error.value).split(" needs ")[1].split(" GB")[0])
    assert enough > resident_bytes() / 1e9
    make((64, 64), memory_gb=enough + 0.05)(image, network)  # the process may have grown since


def test_budget_needs_a_network_on_the_cpu():
    with pytest.raises(InputError, match="memory_gb is 1, a budget for a network of PyTorch on the CPU"):
        SlidingWindowSlabInferer(8, memory_gb=1)(torch.rand(1, 2, 9, 9), lambda x: x)


BUDGETED = """
import resource, sys, torch
from scripts.compute.acceleration import accelerate
from scripts.compute.inferers import SlidingWindowSlabInferer
from scripts.compute.memory import resident_bytes
from scripts.compute.runtimes import Runtime
from scripts.networks import UNet
from scripts.process import retain_memory

def status(key):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(key))

retain_memory()  # as in every run of the bundle
network, image = UNet(3, 1, 2, [16, 32], convs_per_level=1).eval(), torch.rand(1, 1, 112, 112, 112)
if "accelerated" in sys.argv:
    accelerate(network, torch.device("cpu"), amp=True, memory_format="channels_last")
headroom = 250e6
budget = resident_bytes() + headroom
if "budget" in sys.argv:
    limit = int(status("VmData") + headroom)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
memory_gb = budget / 1e9 if "budget" in sys.argv else None
labels = SlidingWindowSlabInferer(112, 2, memory_gb=memory_gb, output="labels")(image, network)
assert labels.shape == image.shape
print("fits" if status("VmHWM") <= budget else "exceeds")
"""


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="limits and peaks are Linux's")
@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["budget"], "fits"),
        (["budget", "accelerated"], "fits"),
        ([], "exceeds"),
    ],
)
def test_process_stays_within_its_budget(settings, expected):
    done = subprocess.run(
        [sys.executable, "-c", BUDGETED, *settings], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == [expected], done.stderr


@pytest.mark.parametrize("inferer", [SlidingWindowSlabInferer, OverlapTileInferer])
def test_a_calibration_scales_the_logits_of_the_image(inferer: Any) -> None:
    network = UNet(2, 1, 3, [3, 4], norm=None).eval()
    image = torch.randn(1, 1, 44, 52, generator=torch.Generator().manual_seed(0))
    plain, scaled, labels = (
        inferer((32, 32), **more)(image, network)
        for more in (
            {},
            {"calibration": Calibration((1.6,))},
            {"calibration": Calibration((1.6,)), "output": "labels"},
        )
    )
    torch.testing.assert_close(scaled, plain / 1.6)
    assert torch.equal(labels[:, 0].long(), plain.argmax(1))
    classwise = inferer((32, 32), calibration=Calibration((1.0, 2.0, 3.0), (0.0, 0.5, -0.5)))(image, network)
    expected = plain.log_softmax(1) / torch.tensor([1.0, 2, 3]).view(3, 1, 1)
    torch.testing.assert_close(classwise, expected + torch.tensor([0.0, 0.5, -0.5]).view(3, 1, 1))


def test_of_a_mean_the_calibration_scales_the_mean() -> None:
    network = UNet(2, 1, 3, [3, 4], norm=None).eval()
    image = torch.randn(1, 1, 30, 26, generator=torch.Generator().manual_seed(0))
    window = SlidingWindowSlabInferer((16, 16), calibration=Calibration((1.6,)))
    plain = AveragedOrientations(SlidingWindowSlabInferer((16, 16)), [0, 1])(image, network)
    torch.testing.assert_close(AveragedOrientations(window, [0, 1])(image, network), plain / 1.6)
    assert window.calibration is not None
