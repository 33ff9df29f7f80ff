"""nnU-Net's residual encoder: its shortcut written out, its levels, and how it starts."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from scripts.errors import InputError
from scripts.networks import UNet
from scripts.networks.blocks import Layers, PlainBlock
from scripts.networks.heads import Heads
from scripts.networks.resenc import PlainDecoder, PooledResidualBlock, ResidualEncoder

NORM = ("instance", {"affine": True})
LAYERS = Layers(2, norm=NORM, act=("leakyrelu", {"negative_slope": 0.01}))


def make(channels, blocks):
    encoder = partial(ResidualEncoder, blocks_per_level=blocks)
    parts = {"encoder": encoder, "decoder": PlainDecoder, "block": PooledResidualBlock, "down": None}
    return UNet(2, 1, 2, channels, norm=NORM, heads=partial(Heads, deep_supervision=None), **parts)


def test_a_block_starts_as_its_shortcut():
    block = PooledResidualBlock(LAYERS, 2, [3, 3], (3, 3), (2, 2))
    block.draw_weights()
    pool, unit = block.shortcut
    assert unit[0].bias is None
    x = torch.randn(2, 2, 8, 6)
    expected = F.instance_norm(F.conv2d(F.avg_pool2d(x, 2), unit[0].weight))
    torch.testing.assert_close(block(x), F.leaky_relu(expected, 0.01))
    assert list(PooledResidualBlock(LAYERS, 3, [3, 3], (3, 3), (1, 1)).shortcut) == []
    # where channels stay there is pooling alone
    assert [type(m) for m in PooledResidualBlock(LAYERS, 3, [3, 3], (3, 3), (2, 2)).shortcut] == [type(pool)]


def test_levels_have_their_blocks_and_the_decoder_one_convolution():
    network = make([4, 6, 8], [1, 3, 2, 6])  # for four levels: a network of three takes the first
    kinds = [[type(block) for block in level.block.blocks] for level in network.encoder.levels]
    residual = PooledResidualBlock
    assert kinds == [[PlainBlock, residual], [residual] * 3, [residual] * 2]
    assert [type(level.block) for level in network.decoder.levels] == [PlainBlock] * 2
    assert [len(level.block.convolutions) for level in network.decoder.levels] == [1, 1]
    assert set(network.train()(torch.rand(2, 1, 16, 16))) == {"main", "deep1"}


def test_fewer_blocks_than_levels_are_refused():
    with pytest.raises(InputError, match=r"blocks_per_level \[1, 3\] has 2 entries: give 3 or more"):
        make([4, 6, 8], [1, 3])


def test_prelu_learns_a_slope_for_each_channel():
    assert [
        m.num_parameters for m in Layers(2, act="prelu").convolution(1, 5) if isinstance(m, nn.PReLU)
    ] == [5]
    shared = Layers(2, act=("prelu", {"init": 0.1})).convolution(1, 5)
    assert [m.num_parameters for m in shared if isinstance(m, nn.PReLU)] == [1]
