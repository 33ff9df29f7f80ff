"""R2U-Net's recurrent layers, step by step."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from scripts.errors import InputError
from scripts.networks.blocks import Layers, NearestUp
from scripts.networks.recurrent import RecurrentBlock

KERNEL, STRIDE = (3, 3), (1, 1)


def test_separate_weights_stay_the_same_over_the_steps():
    block = RecurrentBlock(Layers(2), 2, [4, 4], KERNEL, STRIDE, steps=2)
    image = torch.randn(1, 2, 6, 5)
    x = y = F.conv2d(image, block.enter.weight, block.enter.bias)
    for layer in block.layers:
        fed = F.conv2d(y, layer.feed.weight, layer.feed.bias, padding=1)
        y = fed.relu()
        for _ in range(2):
            y = (fed + F.conv2d(y, layer.recur.weight, padding=1)).relu()
    torch.testing.assert_close(block(image), x + y)


def test_shared_weights_see_the_sum():
    block = RecurrentBlock(Layers(2), 2, [4, 4], KERNEL, STRIDE, steps=1, shared=True)
    image = torch.randn(1, 2, 6, 5)
    x = y = F.conv2d(image, block.enter.weight, block.enter.bias)
    for layer in block.layers:
        weight, bias = layer.unit[0].weight, layer.unit[0].bias
        first = F.conv2d(y, weight, bias, padding=1).relu()
        y = F.conv2d(y + first, weight, bias, padding=1).relu()
    torch.testing.assert_close(block(image), x + y)


def test_each_step_has_a_norm_of_its_own_where_weights_are_separate():
    norm = ("batch", {"affine": True})
    separate, shared = (
        RecurrentBlock(Layers(2, norm=norm), 2, [4], KERNEL, STRIDE, steps=3, shared=shared)
        for shared in (False, True)
    )
    counts = [
        sum(isinstance(m, torch.nn.BatchNorm2d) for m in block.modules()) for block in (separate, shared)
    ]
    assert counts == [4, 1]


def test_nearest_up_repeats_and_convolves():
    up = NearestUp(Layers(2), 3, 2, (2, 3))
    x = torch.randn(1, 3, 4, 2)
    repeated = x.repeat_interleave(2, 2).repeat_interleave(3, 3)
    expected = F.conv2d(repeated, up.convolution[0].weight, up.convolution[0].bias, padding=1).relu()
    torch.testing.assert_close(up(x), expected)


def test_what_cannot_be_added_is_refused():
    with pytest.raises(InputError, match=r"channels of a level are \[4, 6\]"):
        RecurrentBlock(Layers(2), 2, [4, 6], KERNEL, STRIDE)
    with pytest.raises(InputError, match='padding is "valid"'):
        RecurrentBlock(Layers(2, padding="valid"), 2, [4, 4], KERNEL, STRIDE)
