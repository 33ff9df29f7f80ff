"""Attention U-Net: a gate against its formula written out, and where gates and heads stand."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from scripts.errors import InputError
from scripts.networks import UNet
from scripts.networks.attention import AttentionDecoder, AttentionGate, FusedHeads
from scripts.networks.blocks import Concatenate, Layers, LinearUp


@pytest.mark.parametrize("finer", [2, 4])  # the coarser map on theta's grid, and one that is enlarged to it
def test_gated_skip_is_the_formula_of_the_paper(finer):
    merge = AttentionGate(Layers(2, norm=None), 3, 5, 5, gates=2, guides=True)
    skip, below = torch.randn(2, 3, 8, 12), torch.randn(2, 5, 8 // finer, 12 // finer)
    up = torch.randn(2, 5, 8, 12)
    signal = F.conv2d(below, merge.guide[0].weight, merge.guide[0].bias).relu()
    gated = []
    for gate in merge.gates:
        theta = F.conv2d(skip, gate.theta.weight, stride=2)
        phi = F.conv2d(signal, gate.phi.weight, gate.phi.bias)
        phi = F.interpolate(phi, theta.shape[2:], mode="bilinear")
        alpha = F.conv2d((theta + phi).relu(), gate.psi.weight, gate.psi.bias).sigmoid()
        alpha = F.interpolate(alpha, skip.shape[2:], mode="bilinear")
        gated.append(F.conv2d(alpha * skip, gate.out[0].weight, gate.out[0].bias))
    mixed = F.conv2d(torch.cat(gated, 1), merge.mix[0].weight, merge.mix[0].bias).relu()
    torch.testing.assert_close(merge(skip, up, below), torch.cat([mixed, up], 1))
    assert merge.out_channels == 8


def make(channels, gates=1):
    merge = partial(AttentionGate, gates=gates)
    parts = {"up": LinearUp, "merge": merge, "decoder": AttentionDecoder, "heads": FusedHeads}
    return UNet(2, 1, 3, channels, norm="batch", **parts)


def test_all_skips_but_the_highest_are_gated_and_the_deepest_is_guided():
    deep, middle, high = (level.merge for level in make([4, 6, 8, 10]).decoder.levels)
    assert type(high) is Concatenate
    assert isinstance(deep.guide, nn.Sequential)
    assert isinstance(middle.guide, nn.Identity)
    assert len(make([4, 6, 8], gates=2).decoder.levels[0].merge.gates) == 2


def test_heads_are_fused():
    heads = FusedHeads(Layers(2), [5, 4], 3)
    low, high = torch.randn(1, 5, 2, 3), torch.randn(1, 4, 4, 6)
    large = F.interpolate(heads.heads[0](low), (4, 6), mode="bilinear")
    torch.testing.assert_close(heads([low, high]), heads.main(torch.cat([large, heads.heads[1](high)], 1)))


def test_two_levels_and_no_gate_are_refused():
    with pytest.raises(InputError, match=r"channels has 2 levels, .* give it 3 or more"):
        make([4, 6])
    with pytest.raises(InputError, match="gates is 0: use 1 or more"):
        make([4, 6, 8], gates=0)
    with pytest.raises(InputError, match="merge has 1 entries: give 2, one per level but the deepest"):
        UNet(2, 1, 3, [4, 6, 8], merge=[Concatenate])
