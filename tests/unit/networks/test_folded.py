"""Squares of pixels as channels, and back."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from monai.networks.utils import pixelshuffle

from scripts.networks import UNet
from scripts.networks.folded import FoldedEncoder, UnfoldedHeads, fold, unfold


def folded(dims: int) -> UNet:
    torch.manual_seed(0)
    return UNet(dims, 1, 3, [4, 6], encoder=FoldedEncoder, heads=UnfoldedHeads)


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_channels_are_those_of_pytorch_and_monai(factor: int) -> None:
    plane = torch.rand(2, 3, 6, 12)
    assert torch.equal(fold(plane, factor), F.pixel_unshuffle(plane, factor))
    channels = torch.rand(2, 2 * factor**2, 4, 5)
    assert torch.equal(unfold(channels, factor), F.pixel_shuffle(channels, factor))
    channels = torch.rand(2, 2 * factor**3, 4, 5, 3)
    assert torch.equal(unfold(channels, factor), pixelshuffle(channels, 3, factor))
    assert torch.equal(fold(unfold(channels, factor), factor), channels)


@pytest.mark.parametrize("dims", [2, 3])
def test_it_is_the_network_of_the_folded_image(dims: int) -> None:
    """Its weights in a plain `UNet`, folded by hand."""
    network, image = folded(dims).eval(), torch.rand(2, 1, *[8, 12, 16][:dims])
    plain = UNet(dims, 2**dims, 3 * 2**dims, [4, 6]).eval()
    weights = {
        key.replace("encoder.folded.", "encoder."): value for key, value in network.state_dict().items()
    }
    plain.load_state_dict(weights)
    with torch.no_grad():
        assert torch.equal(network(image), unfold(plain(fold(image, 2)), 2))
        torch.testing.assert_close(torch.jit.script(network)(image), network(image))
