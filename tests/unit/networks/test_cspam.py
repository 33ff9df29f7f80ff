"""Attentions against what their papers write, place by place."""

from __future__ import annotations

import torch
from torch import nn

from scripts.networks.blocks import Layers
from scripts.networks.cspam import ChannelAttention, PositionAttention, SpatialAttention


def test_channels_are_weighed_by_mean_and_largest_value() -> None:
    torch.manual_seed(0)
    attention, x = ChannelAttention(32), torch.randn(2, 32, 3, 4)
    first, _, second = attention.weigh
    for sample in range(2):
        pooled = x[sample].mean((1, 2)), x[sample].amax((1, 2))
        inner = [(first.weight @ each + first.bias).clamp(min=0) for each in pooled]
        weight = 1 / (1 + torch.exp(-sum(second.weight @ each + second.bias for each in inner)))
        assert torch.allclose(attention(x)[sample], x[sample] * weight[:, None, None], atol=1e-6)
    assert first.out_features == 2  # a sixteenth


def test_places_are_weighed_by_those_around_them() -> None:
    attention, x = SpatialAttention(Layers(3)), torch.randn(1, 5, 9, 9, 9)
    nn.init.zeros_(attention.weigh.weight)
    nn.init.zeros_(attention.weigh.bias)
    assert torch.allclose(attention(x), x / 2)
    attention.weigh.weight.data[0, 1, 0, 3, 3] = 1.0  # the largest value three planes before
    expected = x[0, :, 6, 2, 4] * torch.sigmoid(x[0, :, 3, 2, 4].max())
    assert torch.allclose(attention(x)[0, :, 6, 2, 4], expected)
    assert torch.allclose(attention(x)[0, :, 1], x[0, :, 1] / 2)  # before which there is nothing


def test_each_place_finds_what_is_alike_anywhere() -> None:
    torch.manual_seed(1)
    attention, x = PositionAttention(Layers(2), 16), torch.randn(1, 16, 3, 5)
    assert torch.equal(attention(x), x)  # as it begins
    attention.gamma.data.fill_(0.7)
    query, key, value = (part(x)[0].flatten(1) for part in (attention.query, attention.key, attention.value))
    assert query.shape == (2, 15)  # an eighth
    expected = x.clone()
    for place in range(15):
        weights = torch.exp(query[:, place] @ key)
        expected[0].flatten(1)[:, place] += 0.7 * (value * weights).sum(1) / weights.sum()
    assert torch.allclose(attention(x), expected, atol=1e-5)
