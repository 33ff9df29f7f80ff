"""Blocks, up-steps and merges against values written out by hand and against PyTorch's functions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from scripts.networks.blocks import (
    Concatenate,
    InterpolatedUp,
    Layers,
    LinearUp,
    PlainBlock,
    ResidualBlock,
    TransposedUp,
    centre_crop,
)

# Two sums of the same few single-precision products in another order differ by less.
ROUNDING = 1e-5


def make_block(kind: type[PlainBlock], **changes) -> PlainBlock:
    arguments: dict[str, Any] = {
        "in_channels": 1,
        "out_channels": [1, 1],
        "kernel_size": (3, 3),
        "stride": (1, 1),
    }
    layers = {key: changes.pop(key) for key in ("padding", "norm", "act") if key in changes}
    return kind(Layers(2, **layers), **(arguments | changes))


def hand_on_the_centre(block: nn.Module) -> None:
    """Set every one-channel kernel so that it hands its centre voxel on."""
    for module in block.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.dirac_(module.weight)
            assert module.bias is not None
            nn.init.zeros_(module.bias)


def ramp(height: int, width: int) -> torch.Tensor:
    """An image in which every voxel has its own value."""
    return torch.arange(1.0, height * width + 1).reshape(1, 1, height, width)


def test_centre_crop_takes_the_middle_of_each_axis():
    x = ramp(5, 6)
    assert torch.equal(centre_crop(x, [3, 2]), x[..., 1:4, 2:4])
    # Three voxels go: one in front, two at the end.
    assert torch.equal(centre_crop(x, [2, 6]), x[..., 1:3, :])


def test_plain_block_orders_convolution_norm_activation():
    block = make_block(PlainBlock, out_channels=[4, 6], norm="batch", act="leakyrelu")
    kinds = [type(m) for m in block.modules() if not list(m.children())]
    assert kinds == [nn.Conv2d, nn.BatchNorm2d, nn.LeakyReLU] * 2
    assert block.out_channels == 6
    assert block(torch.rand(2, 1, 5, 7)).shape == (2, 6, 5, 7)


def test_plain_block_without_norm_has_convolutions_and_activations_only():
    kinds = [type(m) for m in make_block(PlainBlock).modules() if not list(m.children())]
    assert kinds == [nn.Conv2d, nn.ReLU] * 2


@pytest.mark.parametrize(
    ("stride", "kernel_size", "rows", "columns"),
    [
        # Two 3x3 convolutions lose two voxels on each side.
        ((1, 1), (3, 3), slice(2, -2), slice(2, -2)),
        # The strided one looks at 1, 3, 5, 7, 9 (0 and 10 have no full window), the next drops both ends.
        ((2, 1), (3, 3), slice(3, 8, 2), slice(2, -2)),
        # Kernel 5 down, kernel 1 across.
        ((1, 1), (5, 1), slice(4, -4), slice(None)),
    ],
)
def test_valid_blocks_look_at_the_voxels_counted_by_hand(stride, kernel_size, rows, columns):
    x = ramp(11, 12)
    expected = x[..., rows, columns]
    for kind, times in ((PlainBlock, 1), (ResidualBlock, 2)):
        block = make_block(kind, stride=stride, kernel_size=kernel_size, padding="valid")
        hand_on_the_centre(block)
        # The residual block adds to every voxel the same voxel from its shortcut.
        assert torch.equal(block(x), times * expected)


def test_residual_block_shortcut_is_the_identity_where_nothing_changes():
    block = make_block(ResidualBlock, in_channels=3, out_channels=[5, 3])
    for parameter in block.parameters():
        nn.init.zeros_(parameter)
    x = torch.randn(2, 3, 6, 5)
    assert isinstance(block.shortcut, nn.Identity)
    assert torch.equal(block(x), x.relu())


def test_residual_block_activates_after_the_sum():
    block = make_block(ResidualBlock)
    hand_on_the_centre(block)
    last = [module for module in block.modules() if isinstance(module, nn.Conv2d)][-1]
    nn.init.constant_(last.bias, -3.0)  # type: ignore[arg-type]
    # relu(x + (x - 3)): for x = 1, 2 and 4 an activation before the sum would give 1, 2 and 5.
    x = torch.tensor([1.0, 2.0, 4.0]).reshape(1, 1, 1, 3)
    assert block(x).flatten().tolist() == [0.0, 1.0, 5.0]


@pytest.mark.parametrize("changes", [{"out_channels": [2, 2]}, {"stride": (1, 2)}])
def test_residual_block_shortcut_is_a_1x1_convolution_where_something_changes(changes):
    block = make_block(ResidualBlock, norm="batch", **changes)
    assert isinstance(block, ResidualBlock)
    convolution, norm = block.shortcut.children()
    assert isinstance(convolution, nn.Conv2d)
    assert convolution.kernel_size == (1, 1)
    assert isinstance(norm, nn.BatchNorm2d)
    assert block(torch.rand(2, 1, 6, 6)).shape[2:] == (6, 6 // changes.get("stride", (1, 1))[1])


def test_transposed_up_gives_each_input_voxel_a_box_of_its_own():
    up = TransposedUp(Layers(3), in_channels=1, out_channels=1, stride=(1, 2, 3), bias=False)
    x = torch.rand(1, 1, 2, 3, 4)
    # (1, 1, 2, 3, 4) -> (1, 1, 2, 6, 12): Kronecker product of image and kernel.
    assert torch.allclose(up(x)[0, 0], torch.kron(x[0, 0], up.convolution.weight[0, 0]))


def test_transposed_up_channels_are_those_of_the_skip_or_those_that_came_in():
    x = torch.rand(1, 8, 3, 3)
    for keep, channels in ((False, 4), (True, 8)):
        up = TransposedUp(Layers(2), in_channels=8, out_channels=4, stride=(2, 2), keep_channels=keep)
        assert up.out_channels == channels
        assert up(x).shape == (1, channels, 6, 6)


@pytest.mark.parametrize(
    ("size", "stride", "mode"), [((4, 5), (2, 3), "bilinear"), ((3, 4, 2), (1, 2, 3), "trilinear")]
)
def test_interpolated_up_is_interpolation_then_1x1_convolution(size, stride, mode):
    up = InterpolatedUp(Layers(len(size)), in_channels=4, out_channels=3, stride=stride)
    x = torch.rand(2, 4, *size)
    enlarged = [n * s for n, s in zip(size, stride, strict=True)]
    expected = up.convolution(nn.functional.interpolate(x, size=enlarged, mode=mode))
    assert torch.allclose(up(x), expected, atol=ROUNDING)


def test_linear_up_is_interpolation_alone():
    up = LinearUp(Layers(2), in_channels=3, out_channels=7, stride=(2, 3))
    x = torch.rand(2, 3, 4, 5)
    assert up.out_channels == 3
    assert list(up.parameters()) == []
    assert torch.equal(up(x), nn.functional.interpolate(x, size=(8, 15), mode="bilinear"))


def test_concatenate_puts_the_cropped_skip_first():
    skip, up = torch.rand(1, 2, 8, 10), torch.rand(1, 3, 4, 6)
    merge = Concatenate(Layers(2, "valid"), skip_channels=2, up_channels=3, below_channels=6)
    merged = merge(skip, up, below=torch.rand(1, 6, 2, 3))
    assert merge.out_channels == 5
    assert torch.equal(merged[:, :2], skip[..., 2:6, 2:8])
    assert torch.equal(merged[:, 2:], up)


def test_concatenate_never_crops_with_same_padding():
    merge = Concatenate(Layers(2), skip_channels=1, up_channels=1, below_channels=2)
    with pytest.raises(RuntimeError, match="Sizes of tensors must match"):
        merge(torch.rand(1, 1, 8, 8), torch.rand(1, 1, 6, 6), torch.rand(1, 2, 3, 3))
