"""Sizes found by trying: of our networks and of MONAI's."""

from __future__ import annotations

import sys

import pytest
import torch
from monai.networks.nets import BasicUNet, BasicUNetPlusPlus, MedNeXt, SegResNet
from torch import nn

from scripts.compute.acceleration import accelerate
from scripts.errors import InputError
from scripts.networks import UNet, output_size
from scripts.networks.sizes import KEPT, Sizes


@pytest.mark.parametrize(
    ("network", "tile", "axis", "expected"),
    [
        (UNet(2, 1, 2, [2, 4, 8], strides=[[2, 1], 2]), (32, 24), 0, (28, 24)),
        (UNet(2, 1, 2, [2, 4, 8], strides=[[2, 1], 2]), (32, 24), 1, (32, 20)),
        (UNet(2, 1, 2, [2, 4], padding="valid"), (24, 24), 0, (20, 24)),
        (UNet(2, 1, 2, [2, 4], norm=None), (2, 8), 0, None),
        (SegResNet(init_filters=8), (64, 48, 16), 1, (64, 40, 16)),
        (SegResNet(init_filters=8), (64, 48, 8), 2, None),
    ],
)
def test_smaller_tile_is_legal(network, tile, axis, expected):
    assert Sizes(network).smaller(tile, axis) == expected


def test_network_of_monai_refuses_what_would_fail_in_it():
    network = SegResNet(init_filters=8)
    with pytest.raises(InputError, match=r"input size \(26, 32, 32\) .*axis 0: 24 or 32$"):
        output_size(network, (26, 32, 32))
    with pytest.raises(RuntimeError):
        network(torch.rand(1, 1, 26, 32, 32))
    assert output_size(network, (24, 32, 32)) == (24, 32, 32)


def test_single_voxel_of_an_instance_norm_is_refused():
    network = UNet(3, 1, 2, [2, 2, 2, 2])
    for _ in range(2):  # in training and in evaluation
        with pytest.raises(InputError, match=r"input size \(8, 8, 8\) does not fit .*\(16, 16, 16\)$"):
            network(torch.rand(1, 1, 8, 8, 8))
        assert network.eval()(torch.rand(1, 1, 8, 8, 16)).shape[2:] == (8, 8, 16)


def test_single_voxel_of_a_group_norm_is_refused():
    """PyTorch takes it in a batch of two, and gives the bias alone."""
    network = MedNeXt(2, init_filters=4, in_channels=1, out_channels=2)
    with pytest.raises(InputError, match=r"input size \(16, 16\) does not fit .* size, \(32, 32\)"):
        Sizes(network).check((16, 16))
    assert Sizes(network).output((16, 32)) == (16, 32)


@pytest.mark.parametrize(
    ("network", "tile", "grid"),
    [
        (UNet(2, 1, 2, [1] * 5, padding="valid", norm=None), (572, 188), (16, 16)),
        (UNet(3, 1, 2, [1, 1, 1], strides=[[1, 2, 2], [3, 2, 1]]), (6, 8, 8), (3, 4, 2)),
        (BasicUNet(2, features=(2, 2, 2, 2, 2, 2)), (64, 96), (16, 16)),  # takes any size
        (SegResNet(2, 8, 1, 2), (64, 64), (8, 8)),
        (nn.Conv2d(1, 1, 3), (9, 9), (1, 1)),
    ],
)
def test_grid_is_that_of_the_smallest_map(network, tile, grid):
    assert Sizes(network).grid(tile) == grid


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (BasicUNetPlusPlus(2, 1, 2, features=(2, 2, 2, 2, 2, 2)), "the network gives a list"),
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(3, 1, 1)), "Invalid channel dimensions"),
    ],
)
def test_what_is_no_matter_of_size_is_said_at_once(network, message):
    sizes = Sizes(network)
    with pytest.raises(InputError, match=message):
        sizes.output((32, 32))
    assert len(sizes._tried) < 40


@pytest.mark.parametrize("tile", [60, 100])
def test_grid_is_the_same_wherever_it_is_measured(tile):
    assert Sizes(BasicUNet(2, features=(2, 2, 2, 2, 2, 2))).grid((tile, tile)) == (16, 16)


def test_network_without_a_legal_size_says_why():
    class Picky(nn.Conv2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise ValueError("not today")

    with pytest.raises(InputError, match=r"input size \(4, 4\) does not fit the network \(not today\)"):
        output_size(Picky(1, 1, 3), (4, 4))


def test_trying_leaves_the_network_alone():
    network = UNet(2, 1, 2, [2, 2, 2], norm="batch")
    image = torch.rand(2, 1, 16, 16)
    accelerate(network, "cpu", memory_format="channels_last")
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    sizes = Sizes(network)
    sizes.output((16, 16))
    sizes.margin((64, 64), 0)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert network.training
    assert not any(module._forward_hooks for module in network.modules())
    assert network(image).shape == (2, 2, 16, 16)


def test_the_compiler_is_left_alone_where_nothing_was_compiled(monkeypatch):
    """What imports it: its own switch, and an instance norm of a tensor without data."""

    def refuse(*arguments, **settings):
        raise RuntimeError("the compiler is imported")

    monkeypatch.delitem(sys.modules, "torch._dynamo", raising=False)
    monkeypatch.setattr(torch.compiler, "set_stance", refuse)
    monkeypatch.setattr(nn.functional, "instance_norm", refuse)
    assert output_size(UNet(2, 1, 2, [2, 4]), (8, 8)) == (8, 8)


@pytest.mark.parametrize("kept", sorted(KEPT, key=lambda kept: kept.__name__))
def test_layers_that_are_passed_over_keep_every_size(kept):
    """A batch norm, in training as well, of a single voxel in a batch of two."""
    dims = 3 if kept is nn.BatchNorm3d else 2
    arguments = {nn.BatchNorm2d: (4,), nn.BatchNorm3d: (4,), nn.GroupNorm: (2, 4)}
    layer = kept(*arguments.get(kept, ())).train()
    for length in (1, 2, 5):
        x = torch.rand(2, 4, *(length,) * dims)
        assert layer(x).shape == x.shape


def test_a_subclass_that_changes_the_size_is_tried():
    class Halving(nn.ReLU):
        def forward(self, x):
            return super().forward(x)[..., ::2, ::2]

    network = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), Halving(), nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2))
    assert Sizes(network).output((8, 6)) == (4, 3)


def test_layers_that_keep_the_size_are_passed_over(monkeypatch):
    """They take most of the time, and a batch norm without data imports the compiler."""

    def refuse(*arguments, **options):
        raise RuntimeError("it is computed")

    for name in ("batch_norm", "relu"):
        monkeypatch.setattr(torch.nn.functional, name, refuse)
    network = UNet(2, 1, 2, [2, 4], norm="batch", act="relu")
    assert Sizes(network).output((8, 8)) == (8, 8)
    monkeypatch.undo()
    assert not any("forward" in vars(module) for module in network.modules())
