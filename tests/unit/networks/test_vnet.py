"""V-Net's block, up-step and head, by values written out; the count of the whole is in tests/configs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from scripts.errors import InputError
from scripts.networks import UNet
from scripts.networks.blocks import Layers
from scripts.networks.vnet import VNetBlock, VNetHead, VNetUp

LAYERS = Layers(2, act="prelu")


def silent(module: nn.Module) -> nn.Module:
    """A module whose convolutions give nothing, so that the residual is left."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.zeros_(part.weight)
            nn.init.zeros_(part.bias)  # type: ignore[arg-type]
    return module


def test_the_image_is_repeated_to_the_width():
    block = silent(VNetBlock(LAYERS, 3, [7, 7], (5, 5), (1, 1)))
    x = torch.rand(2, 3, 6, 5)  # not negative: PReLU hands it on
    assert block.out_channels == 7
    assert torch.equal(block(x), x[:, [0, 1, 2, 0, 1, 2, 0]])


def test_the_concatenation_is_the_residual_of_the_decoder():
    block = silent(VNetBlock(LAYERS, 8, [4, 4, 4], (5, 5), (1, 1)))
    x = torch.randn(1, 8, 6, 5)
    assert block.out_channels == 8
    assert torch.equal(block(x), torch.where(x > 0, x, 0.25 * x))


def test_what_is_reduced_is_added_after_the_last_convolution_without_activation():
    block = VNetBlock(LAYERS, 2, [4, 4], (5, 5), (2, 2))
    x = torch.randn(1, 2, 8, 6)
    slope = torch.tensor(0.25)
    down = torch.prelu(nn.functional.conv2d(x, block.down[0].weight, block.down[0].bias, stride=2), slope)
    first, second = (unit[0] for unit in block.convolutions)
    y = torch.prelu(nn.functional.conv2d(down, first.weight, first.bias, padding=2), slope)
    y = nn.functional.conv2d(y, second.weight, second.bias, padding=2)
    torch.testing.assert_close(block(x), torch.prelu(y + down, slope))
    assert sum(isinstance(m, nn.PReLU) and m.num_parameters == 4 for m in block.modules()) == 3


def test_levels_have_the_convolutions_of_the_released_network():
    network = UNet(
        *(3, 1, 2, [2, 3, 4, 5, 6]),
        **{"kernel_sizes": 5, "convs_per_level": [1, 1, 2, 3, 3], "block": VNetBlock, "down": None},
        **{"up": VNetUp, "norm": None, "act": "prelu", "heads": VNetHead},
    )
    assert [len(level.block.convolutions) for level in network.encoder.levels] == [1, 1, 2, 3, 3]
    assert [len(level.block.convolutions) for level in network.decoder.levels] == [3, 2, 1, 1]
    assert network.decoder.out_channels == (10, 8, 6, 4)  # those of the skips, twice
    assert not any("norm" in name for name, _ in network.named_modules())


def test_widths_that_cannot_be_added_are_refused():
    with pytest.raises(InputError, match=r"channels of a level are \[4, 8\]: .* one number"):
        VNetBlock(LAYERS, 2, [4, 8], (5, 5), (1, 1))
    with pytest.raises(InputError, match=r"convs_per_level \[1, 2\] has 2 entries: give 3 or more"):
        UNet(2, 1, 2, [2, 3, 4], convs_per_level=[1, 2])
    with pytest.raises(InputError, match="convs_per_level is 0: use 1 or more"):
        UNet(2, 1, 2, [2, 3, 4], convs_per_level=[1, 0, 1])
