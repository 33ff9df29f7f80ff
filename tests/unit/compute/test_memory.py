"""What a forward pass needs, counted by hand."""

from __future__ import annotations

import torch
from torch import nn

from scripts.compute.memory import dry_run, forward_bytes, resident_bytes, training_bytes
from scripts.networks import UNet
from scripts.process import release_memory


def test_forward_bytes_by_hand():
    """While a map is made input and map before live too; a convolution copies in blocks of 16 channels."""
    network = nn.Sequential(nn.ReLU(), nn.Sigmoid(), nn.AvgPool2d(2))
    voxels = 2 * 3 * 20 * 10
    assert forward_bytes(network, (2, 3, 20, 10)) == (4 * 3 * voxels, 3)
    convolution = nn.Conv2d(3, 20, 1)
    pixels = 2 * 20 * 10
    assert forward_bytes(convolution, (2, 3, 20, 10)) == (4 * pixels * (3 + 20 + 16 + 32), 20)


def test_mixed_precision_halves_the_maps():
    network = nn.Sequential(nn.Conv2d(1, 8, 1), nn.ReLU(), nn.ReLU())
    single, _ = forward_bytes(network, (1, 1, 100, 100))
    half, _ = forward_bytes(network, (1, 1, 100, 100), torch.bfloat16)
    assert half < 0.7 * single


def test_forward_bytes_computes_nothing():
    _, classes = forward_bytes(UNet(3, 1, 3, [16, 32, 64]).eval(), (8, 1, 512, 512, 512))  # terabytes
    assert classes == 3


class Shared(nn.Module):
    """A layer under two names, and two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 1, 1)
        self.last = nn.Sequential(self.first)
        self.other = nn.Conv2d(1, 1, 1)
        self.other.weight = self.first.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.other(self.last(self.first(x)))


def test_a_network_stays_as_it_is():
    network = Shared()
    image = torch.ones((1, 1, 4, 4))
    before = network(image)
    assert dry_run(network, image.shape).shape == image.shape
    assert training_bytes(network, image.shape) > 0
    assert torch.equal(network(image), before)
    assert network.first.weight.grad is None


def test_released_memory_leaves_the_process():
    release_memory()
    before = resident_bytes()
    filled = torch.ones(25_000_000)
    assert resident_bytes() - before > 95e6
    del filled
    release_memory()
    assert resident_bytes() - before < 20e6
