"""Parts of one's own: what a new block, merge, down-step, bottleneck or encoder needs to fit in."""

from __future__ import annotations

import re
from functools import partial

import pytest
import torch
from monai.bundle import ConfigParser
from torch import nn

from scripts.errors import InputError
from scripts.losses import HeadsLoss, WeightedDiceCELoss
from scripts.networks import UNet, output_size
from scripts.networks.blocks import Concatenate, Layers, MaxPool, PlainBlock, ResidualBlock, Stage
from scripts.networks.heads import main_logits
from scripts.networks.unet import Encoder
from tests.commands import ROOT


def blocks_of_code(language: str) -> list[str]:
    """Code in CONTRIBUTING.md, below "A new block"."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("### A new block")[1]
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_block_of_the_contributing_guide(tmp_path, monkeypatch):
    """The class and the overlay that the guide shows, as they stand there."""
    (tmp_path / "newcomer.py").write_text(blocks_of_code("python")[0], encoding="utf-8")
    (tmp_path / "dense.json").write_text(blocks_of_code("json")[0], encoding="utf-8")
    text = (tmp_path / "dense.json").read_text(encoding="utf-8")
    (tmp_path / "dense.json").write_text(
        text.replace("scripts.networks.blocks.DenseBlock", "newcomer.DenseBlock")
    )
    monkeypatch.syspath_prepend(tmp_path)
    for dims in (2, 3):
        parser = ConfigParser(
            {"spatial_dims": dims, "in_channels": 2, "out_channels": 3, "channels": [4, 6, 8]}
        )
        parser.update(ConfigParser.load_config_file(tmp_path / "dense.json"))
        network = parser.get_parsed_content("network_def")
        size = (16,) * dims
        logits = main_logits(network(torch.rand(2, 2, *size)))
        assert tuple(logits.shape) == (2, 3, *size)
        logits.square().mean().backward()
        assert all(p.grad is not None for p in network.parameters())
        # each convolution sees the maps before it: 2, then 4 and 4 more
        assert network.encoder.out_channels == (2 + 4 + 4, 10 + 6 + 6, 22 + 8 + 8)
        with pytest.raises(InputError, match="axis 0: 16 or 20"):
            output_size(network, (18, *size[1:]))


class Grown(PlainBlock):
    """A block that gives more channels than it was asked for."""

    def __init__(self, layers, in_channels, out_channels, kernel_size, stride):
        super().__init__(layers, in_channels, [*out_channels, 2 * out_channels[-1] + 1], kernel_size, stride)


class Gate(Concatenate):
    """A merge that looks at the coarser map before the up-step."""

    def __init__(self, layers, skip_channels, up_channels, below_channels):
        super().__init__(layers, skip_channels, up_channels, below_channels)
        self.weigh = nn.Conv2d(below_channels, skip_channels, 1)

    def forward(self, skip, up, below):
        weight = nn.functional.interpolate(self.weigh(below).sigmoid(), size=skip.shape[2:])
        return super().forward(skip * weight, up, below)


class Strided(Stage):
    """A down-step that doubles the channels."""

    def __init__(self, layers, in_channels, stride):
        super().__init__(2 * in_channels)
        self.convolution = layers.convolution(in_channels, 2 * in_channels, 3, stride)

    def forward(self, x):
        return self.convolution(x)


class Middle(Stage):
    """What stands between encoder and decoder, with more channels than it gets."""

    def __init__(self, layers, in_channels):
        super().__init__(in_channels + 3)
        self.convolution = layers.convolution(in_channels, in_channels + 3, 1)

    def forward(self, x):
        return self.convolution(x)


class Stem(Encoder):
    """An encoder whose highest level has half the image's resolution, with weights of its own."""

    def __init__(self, layers, in_channels, levels, down, dropout):
        super().__init__(layers, in_channels, levels, down, dropout)
        unit = (1,) * layers.spatial_dims
        self.reduce = MaxPool(layers, in_channels, [2] * layers.spatial_dims)
        self.strides = (tuple(2 * s for s in unit), *self.strides[1:])
        nn.init.constant_(self.levels[0].block.convolutions[0][0].weight, 0.25)

    def draw_weights(self):
        """They are there."""

    def forward(self, x):
        return super().forward(self.reduce(x))


PARTS = {
    "more channels than asked for": {"block": Grown},
    "a class for each level": {"block": [PlainBlock, ResidualBlock, Grown]},
    "a merge that sees below": {"merge": Gate},
    "a down-step of its own": {"down": Strided},
    "a bottleneck": {"bottleneck": Middle},
    "widths of the decoder": {"decoder_channels": [[7, 3], [5]]},
    "an encoder with a stem": {"encoder": Stem},
    "all of them": {"block": Grown, "merge": Gate, "down": Strided, "bottleneck": Middle, "encoder": Stem},
}


@pytest.mark.parametrize("name", PARTS)
def test_part_fits_in(name):
    torch.manual_seed(0)
    network = UNet(2, 1, 2, [3, 4, 5], norm=None, act="leakyrelu", **PARTS[name])
    image = torch.rand(2, 1, 16, 24)
    logits = network(image)
    assert logits.shape == (2, 2, 16, 24) == (2, 2, *output_size(network, (16, 24)))
    logits.square().mean().backward()
    idle = [n for n, p in network.named_parameters() if p.grad is None or p.grad.count_nonzero() == 0]
    assert idle == []


def test_published_widths_are_read():
    network = UNet(2, 1, 2, [3, 4, 5], block=Grown, norm=None)
    assert network.encoder.out_channels == (7, 9, 11)
    # asked for the skips' 9 and 7, the decoder's blocks give twice as many and one
    assert network.decoder.out_channels == (19, 15)
    widths = UNet(2, 1, 2, [3, 4, 5], decoder_channels=[[7, 3], [5]], norm=None)
    assert widths.decoder.out_channels == (5, 3)


def test_weights_that_a_part_brings_along_stay():
    network = UNet(2, 1, 2, [3, 4, 5], encoder=Stem, norm=None)
    first = network.encoder.levels[0].block.convolutions[0][0]
    assert torch.equal(first.weight, torch.full_like(first.weight, 0.25))
    assert network.heads.main.bias.count_nonzero() == 0  # the others are drawn


def test_encoder_of_another_depth_is_refused():
    def shallow(levels, **others):
        return Encoder(levels=levels[:-1], **others)

    with pytest.raises(InputError, match=r"channels \[3, 4, 5\] has 3 entries and the encoder 2 levels"):
        UNet(2, 1, 2, [3, 4, 5], encoder=shallow)


def test_list_of_outputs_says_nothing():
    with pytest.raises(InputError, match=r"gives a list: .*'main'"):
        main_logits([torch.zeros(1)])
    with pytest.raises(InputError, match=r"gives a dict of mask, distance"):
        main_logits({"mask": torch.zeros(1), "distance": torch.zeros(1)})
    with pytest.raises(InputError, match=r"list of 2 outputs"):
        HeadsLoss(WeightedDiceCELoss())([torch.zeros(1, 2, 4, 4)] * 2, torch.zeros(1, 1, 4, 4))


def test_layers_without_norm_and_activation():
    unit = Layers(2, norm="batch").convolution(1, 3, (3, 5), act=False)
    assert [type(layer) for layer in unit] == [nn.Conv2d, nn.BatchNorm2d]
    assert unit(torch.rand(1, 1, 6, 7)).shape == (1, 3, 6, 7)
    assert partial(Layers, 3)("valid").convolution(1, 1)(torch.rand(1, 1, 5, 5, 5)).shape[2:] == (3, 3, 3)
