"""Zhang's residual U-Net: what of it is published, and the order within a block."""

from __future__ import annotations

import torch
from monai.bundle import ConfigParser
from torch import nn
from torch.nn import functional as F

from scripts.networks.blocks import Layers
from scripts.networks.preactivation import FirstPreActivationBlock, PreActivationBlock
from tests.commands import CONFIGS


def test_kernels_and_head_have_the_published_number():
    parser = ConfigParser({"spatial_dims": 2, "in_channels": 3, "out_channels": 1})
    parser.update(ConfigParser.load_config_file(CONFIGS / "network/preactivation.json"))
    with torch.device("meta"):
        network = parser.get_parsed_content("network_def")
    head = network.heads.main
    kernels = [m for m in network.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert len(kernels) == 14  # two in each of seven levels
    assert sum(m.weight.numel() for m in (*kernels, head)) == 7_780_096
    first, *_ = network.encoder.levels[0].block.convolutions
    assert [type(m) for m in first] == [nn.Conv2d]


def test_norm_and_activation_come_before_each_convolution():
    block = PreActivationBlock(Layers(2, norm="batch"), 2, [3, 3], (3, 3), (2, 2)).eval()
    one, two = (unit[2] for unit in block.convolutions)
    x = torch.randn(2, 2, 8, 6)
    scale = (1 + 1e-5) ** -0.5  # a batch norm that has seen nothing
    y = F.conv2d((x * scale).relu(), one.weight, one.bias, stride=2, padding=1)
    y = F.conv2d((y * scale).relu(), two.weight, two.bias, padding=1)
    torch.testing.assert_close(block(x), y + F.conv2d(x, block.shortcut.weight, stride=2))


def test_the_first_block_sees_the_image_itself():
    block = FirstPreActivationBlock(Layers(2), 1, [2, 2], (3, 3), (1, 1))
    assert [[type(m) for m in unit] for unit in block.convolutions] == [[nn.Conv2d], [nn.ReLU, nn.Conv2d]]
