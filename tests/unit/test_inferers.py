"""Tiles that abut must give what the network gives for the whole mirrored image at once."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor, decollate_batch
from torch import nn

from scripts.errors import InputError
from scripts.inferers import OverlapTileInferer, _mirror
from scripts.networks import UNet, output_size

# Single precision through a few layers, on tiles of different sizes.
TOLERANCE = 1e-5


@functools.cache
def make_network(spatial_dims: int, padding: str = "valid") -> nn.Module:
    """A small U-Net whose output at a voxel depends on its surroundings alone."""
    torch.manual_seed(0)
    network = UNet(spatial_dims, 1, 2, [3, 4], padding=padding, norm=None)
    return network.eval()


def whole_at_once(image: torch.Tensor, network: nn.Module) -> torch.Tensor:
    """The image mirrored by numpy until the network's output covers it, in one forward pass, cut to size."""
    size = [
        next(n for n in range(1, 400) if network._output_length(n, axis) >= length)
        for axis, length in enumerate(image.shape[2:])
    ]
    covered = output_size(network, size)
    margins = [(s - c) // 2 for s, c in zip(size, covered, strict=True)]
    pads = [(m, s - m - n) for m, s, n in zip(margins, size, image.shape[2:], strict=True)]
    padded = np.pad(image.numpy(), [(0, 0), (0, 0), *pads], mode="reflect")
    with torch.no_grad():
        logits = network(torch.from_numpy(padded))
    return logits[(..., *(slice(0, n) for n in image.shape[2:]))]


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
        def output_size(self, input_size):
            return tuple(n - 6 for n in input_size)

        def forward(self, x, scale=1):
            assert x.shape[2:] == (10, 9)
            return x[..., 3:-3, 3:-3] * scale

    image = torch.rand(2, 1, 13, 25)
    assert torch.equal(infer(image, (10, 9), Crop()), image)
    assert torch.equal(OverlapTileInferer((10, 9))(image, Crop(), scale=2), 2 * image)


def test_network_that_keeps_its_size_sees_whole_tiles():
    image, network = torch.rand(1, 1, 16, 16), make_network(2, "same")
    with torch.no_grad():
        torch.testing.assert_close(infer(image, (16, 16), network), network(image))


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


@pytest.mark.parametrize("shape", [(0, 5), (5, 0)])
def test_image_without_voxels_is_refused(shape):
    with pytest.raises(InputError, match=rf"image of \[{shape[0]}, {shape[1]}\] voxels: give every axis"):
        infer(torch.rand(1, 1, *shape), (20, 20), make_network(2))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 7), st.integers(0, 30), st.integers(0, 30)), min_size=2, max_size=3))
def test_mirror_is_numpys_reflection(axes):
    image = torch.rand((1, 2, *(n for n, _, _ in axes)))
    margins = [(before, after) for _, before, after in axes[:2]] + [(1, 2)] * (len(axes) - 2)
    expected = np.pad(image.numpy(), [(0, 0), (0, 0), *margins], mode="reflect")
    np.testing.assert_array_equal(_mirror(image, margins), expected)
