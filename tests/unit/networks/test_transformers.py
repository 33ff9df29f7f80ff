"""The transformer at the lowest resolution, and TransUNet's encoder before it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from scripts.errors import InputError
from scripts.networks.blocks import Layers
from scripts.networks.transformers import AlignedUp, HybridEncoder, TransformerBottleneck, standardised

LAYERS = Layers(2, norm="batch")


def bottleneck(img_size: list[int], dims: int = 2) -> TransformerBottleneck:
    torch.manual_seed(0)
    settings = {"hidden_size": 12, "mlp_dim": 24, "num_layers": 2, "num_heads": 3, "dropout": 0.0}
    return TransformerBottleneck(Layers(dims, norm="batch"), 5, img_size, 4, **settings)  # type: ignore[arg-type]


def test_places_count() -> None:
    """A map that is shifted around gives another one, but for learnt places of zero."""
    part = bottleneck([16, 24]).eval()
    part.leave = nn.Identity()  # convolutions see the rim
    x = torch.randn(1, 5, 4, 6)
    nn.init.normal_(part.places)
    assert not torch.allclose(part(x.roll(2, 3)).roll(-2, 3), part(x), atol=1e-3)
    nn.init.zeros_(part.places)
    assert torch.allclose(part(x.roll(2, 3)).roll(-2, 3), part(x), atol=1e-5)


def test_places_of_another_size_are_interpolated() -> None:
    part = bottleneck([16, 24, 8], 3).eval()
    nn.init.normal_(part.places)
    tokens: list[torch.Tensor] = []
    part.dropout.register_forward_pre_hook(lambda _, given: tokens.append(given[0]))
    nn.init.zeros_(part.enter.weight)
    nn.init.zeros_(part.enter.bias)
    part(torch.randn(1, 5, 6, 6, 3))
    expected = F.interpolate(part.places, size=(6, 6, 3), mode="trilinear").flatten(2).transpose(1, 2)
    assert torch.allclose(tokens[0], expected)


@pytest.mark.parametrize(("img_size", "dims"), [([18, 16], 2), ([16, 16], 3)])
def test_sizes_that_do_not_fit_are_refused(img_size: list[int], dims: int) -> None:
    with pytest.raises(InputError, match=r"img_size \(patch_size\) is .*: use multiples of 4, [23] of them"):
        bottleneck(img_size, dims)


@pytest.mark.parametrize("dims", [2, 3])
def test_standardised_weights_have_mean_0_and_variance_1(dims: int) -> None:
    convolution = standardised(dims, 3, 4, 3, 2)
    weight = convolution.weight.detach().flatten(1)
    expected = (weight - weight.mean(1, keepdim=True)) / (
        weight.var(1, correction=0, keepdim=True) + 1e-5
    ).sqrt()
    x = torch.randn(1, 3, *(8,) * dims)
    plain = F.conv2d if dims == 2 else F.conv3d
    wanted = plain(x, expected.view_as(convolution.weight), stride=2, padding=1)
    assert torch.allclose(convolution(x), wanted, atol=1e-4)


def test_levels_of_the_encoder() -> None:
    levels = [SimpleNamespace(channels=(width, width)) for width in (8, 16, 24, 32)]
    encoder = HybridEncoder(LAYERS, 3, levels, None, 0.0, blocks=(1, 2, 1))
    features = encoder(torch.randn(1, 3, 32, 48))
    assert [tuple(x.shape[1:]) for x in features] == [(8, 16, 24), (16, 8, 12), (24, 4, 6), (32, 2, 3)]
    with pytest.raises(InputError, match="give 4 multiples of 4, one more than blocks has"):
        HybridEncoder(LAYERS, 3, levels[:3], None, 0.0)


def test_corners_stay_where_they_are() -> None:
    x = torch.rand(1, 2, 3, 4)
    y = AlignedUp(LAYERS, 2, 7, (2, 2))(x)
    assert y.shape == (1, 2, 6, 8)
    assert torch.allclose(y[..., [0, 0, -1, -1], [0, -1, 0, -1]], x[..., [0, 0, -1, -1], [0, -1, 0, -1]])
