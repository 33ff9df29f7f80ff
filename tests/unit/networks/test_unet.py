"""The U-Net against the published numbers, a plain reference written out here, and its own promises."""

from __future__ import annotations

import copy
import math
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from monai.bundle import ConfigParser
from monai.networks.nets import BasicUNet
from torch import nn
from torch.nn import functional as F

from scripts.errors import InputError
from scripts.networks import UNet, output_size
from scripts.networks.blocks import InterpolatedUp, MaxPool, PlainBlock, ResidualBlock, TransposedUp
from scripts.networks.heads import Heads
from scripts.networks.sizes import Sizes

CONFIGS = Path(__file__).parents[3] / "configs" / "network"
#: Heads with one more, on the level below the highest.
DEEP = partial(Heads, deep_supervision=1)

CONVOLUTIONS = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)

# Single precision through a dozen layers, summed in another order.
FORMAT_TOLERANCE = 1e-5
# A drawn standard deviation lies this many of its own standard errors from the true one, at most.
STANDARD_ERRORS = 5


def from_config(name: str, **values) -> UNet:
    """Build a network as the bundle does, with the ids that train.json would hold."""
    parser = ConfigParser(values)
    parser.update(ConfigParser.load_config_file(CONFIGS / name))
    return parser.get_parsed_content("network_def")


def count_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def legal_sizes(network: UNet, axis: int, limit: int) -> list[int]:
    """Every legal length of one axis, found by asking about each; the other axes are left at 188."""
    sizes = Sizes(network)
    others = [188] * network.spatial_dims
    return [n for n in range(1, limit) if sizes.is_legal([*others[:axis], n, *others[axis + 1 :]])]


# The published networks


def test_2015_network_has_the_published_layers_and_parameters():
    with torch.device("meta"):
        network = from_config(
            "unet2015.json", spatial_dims=2, in_channels=1, out_channels=2, patch_size=[572, 572]
        )
    # Section 2: "In total the network has 23 convolutional layers."
    assert sum(isinstance(module, CONVOLUTIONS) for module in network.modules()) == 23
    down = (
        (9 * 1 + 1) * 64 + (9 * 64 + 1) * 64
        + (9 * 64 + 1) * 128 + (9 * 128 + 1) * 128
        + (9 * 128 + 1) * 256 + (9 * 256 + 1) * 256
        + (9 * 256 + 1) * 512 + (9 * 512 + 1) * 512
        + (9 * 512 + 1) * 1024 + (9 * 1024 + 1) * 1024
    )  # fmt: skip
    up = (
        (4 * 1024 + 1) * 512 + (9 * 1024 + 1) * 512 + (9 * 512 + 1) * 512
        + (4 * 512) * 256 + 256 + (9 * 512 + 1) * 256 + (9 * 256 + 1) * 256
        + (4 * 256) * 128 + 128 + (9 * 256 + 1) * 128 + (9 * 128 + 1) * 128
        + (4 * 128) * 64 + 64 + (9 * 128 + 1) * 64 + (9 * 64 + 1) * 64
    )  # fmt: skip
    head = (64 + 1) * 2
    assert count_parameters(network) == down + up + head == 31_030_658


def test_2015_network_has_the_feature_maps_of_figure_1():
    with torch.device("meta"):
        network = from_config(
            "unet2015.json", spatial_dims=2, in_channels=1, out_channels=2, patch_size=[572, 572]
        )
        image = torch.empty(1, 1, 572, 572)
        features = network.encoder(image)
        decoded = network.decoder(features)
        logits = network(image)
    assert [tuple(f.shape[1:]) for f in features] == [
        (64, 568, 568), (128, 280, 280), (256, 136, 136), (512, 64, 64), (1024, 28, 28),
    ]  # fmt: skip
    assert [tuple(f.shape[1:]) for f in decoded] == [
        (512, 52, 52), (256, 100, 100), (128, 196, 196), (64, 388, 388),
    ]  # fmt: skip
    assert logits.shape == (1, 2, 388, 388)
    assert output_size(network, (572, 572)) == (388, 388)
    # 188 leaves 4 voxels, and every 16 more let every pooling meet an even size.
    assert legal_sizes(network, axis=1, limit=600) == list(range(188, 600, 16))


def test_2016_network_has_the_published_sizes_and_parameters():
    with torch.device("meta"):
        network = from_config(
            "unet3d2016.json", spatial_dims=3, in_channels=3, out_channels=3, patch_size=[132, 132, 116]
        )
        logits = network(torch.empty(1, 3, 132, 132, 116))
    assert logits.shape == (1, 3, 44, 44, 28)
    assert output_size(network, (132, 132, 116)) == (44, 44, 28)
    pairs = [
        (3, 32), (32, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 512),
        (512 + 256, 256), (256, 256), (256 + 128, 128), (128, 128), (128 + 64, 64), (64, 64),
    ]  # fmt: skip
    convolutions = sum((27 * fan_in + 1) * width for fan_in, width in pairs)
    up = 8 * (512 * 512 + 256 * 256 + 128 * 128)
    head = (64 + 1) * 3
    # Section 2: "The architecture has 19069955 parameters in total."
    assert count_parameters(network) == convolutions + up + head == 19_069_955
    kinds = [
        type(m) for m in network.encoder.modules() if isinstance(m, (nn.Conv3d, nn.BatchNorm3d, nn.ReLU))
    ]
    assert kinds == [nn.Conv3d, nn.BatchNorm3d, nn.ReLU] * 8
    assert sum(isinstance(module, nn.MaxPool3d) for module in network.modules()) == 3


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_residual_config_strides_its_convolutions_and_supervises_three_levels(spatial_dims):
    network = from_config(
        "residual.json", spatial_dims=spatial_dims, in_channels=1, out_channels=3, channels=[4, 6, 8, 10]
    )
    assert not any(isinstance(module, (nn.MaxPool2d, nn.MaxPool3d)) for module in network.modules())
    assert sum(isinstance(module, ResidualBlock) for module in network.modules()) == 7
    image = torch.rand(2, 1, *(16,) * spatial_dims)
    assert {name: tuple(y.shape) for name, y in network.train()(image).items()} == {
        name: (2, 3, *(n,) * spatial_dims) for name, n in (("main", 16), ("deep1", 8), ("deep2", 4))
    }
    assert network.eval()(image).shape == (2, 3, *(16,) * spatial_dims)


# The arithmetic of the forward pass


def reference_unet(parameters: list[torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Two poolings, plain 2D, unpadded, no norm: the 2015 paper's figure 1 cut to three levels."""
    remaining = iter(parameters)

    def take() -> tuple[torch.Tensor, torch.Tensor]:
        return next(remaining), next(remaining)

    def two_convolutions(y: torch.Tensor) -> torch.Tensor:
        return F.conv2d(F.conv2d(y, *take()).relu(), *take()).relu()

    def crop_and_join(skip: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        edge = (skip.shape[-1] - y.shape[-1]) // 2
        return torch.cat([skip[..., edge:-edge, edge:-edge], y], dim=1)

    high = two_convolutions(x)
    middle = two_convolutions(F.max_pool2d(high, 2))
    y = two_convolutions(F.max_pool2d(middle, 2))
    y = two_convolutions(crop_and_join(middle, F.conv_transpose2d(y, *take(), stride=2)))
    y = two_convolutions(crop_and_join(high, F.conv_transpose2d(y, *take(), stride=2)))
    return F.conv2d(y, *take())


def test_valid_network_equals_the_reference_written_out():
    torch.manual_seed(0)
    network = UNet(2, 1, 2, [3, 4, 5], padding="valid", norm=None)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)  # biases too
    x = torch.rand(2, 1, 48, 48)
    with torch.no_grad():
        expected = reference_unet(list(network.parameters()), x)
        assert expected.shape == (2, 2, 8, 8)
        assert torch.allclose(network(x), expected, atol=FORMAT_TOLERANCE)


@pytest.mark.parametrize("block", [PlainBlock, ResidualBlock])
@pytest.mark.parametrize(
    ("size", "strides"), [((48, 64), [2, 2]), ((44, 48, 36), [2, [2, 2, 1]])], ids=["2D", "3D anisotropic"]
)
def test_valid_output_is_what_the_padded_network_gives_far_from_its_edges(block, size, strides):
    torch.manual_seed(0)
    arguments: dict[str, Any] = {"channels": [2, 3, 4], "strides": strides, "block": block, "norm": None}
    valid = UNet(len(size), 1, 2, padding="valid", **arguments)
    same = UNet(len(size), 1, 2, padding="same", **arguments)
    same.load_state_dict(valid.state_dict())
    x = torch.rand(1, 1, *size)
    # With a frame of 2 the unpadded network's first pooling starts 2 + 2 voxels into the padded one's map,
    # the second 4 / 2 + 2: both are even, so the windows of the two networks coincide.
    framed = F.pad(x, [2] * (2 * len(size)), value=7.0)
    with torch.no_grad():
        inner, whole = valid(x), same(framed)
    for axis, length in enumerate(inner.shape[2:], start=2):
        whole = whole.narrow(axis, (whole.shape[axis] - length) // 2, length)
    assert torch.allclose(inner, whole, atol=FORMAT_TOLERANCE)


@pytest.mark.parametrize("up", [TransposedUp, InterpolatedUp])
@pytest.mark.parametrize(("down", "size"), [(MaxPool, (48, 64)), (None, (48, 66))])
def test_valid_network_moves_with_its_input(down, size, up):
    torch.manual_seed(0)
    network = UNet(
        spatial_dims=2,
        in_channels=1,
        out_channels=2,
        channels=[2, 3, 4],
        strides=[[1, 2], [2, 2]],
        padding="valid",
        block=ResidualBlock,
        up=up,
        down=down,
        norm=None,
    )
    x = torch.rand(1, 1, *size)
    # Each axis repeats after the product of its strides, 2 and 4.
    with torch.no_grad():
        whole, part = network(x), network(x[..., 2:, 4:])
    # Interpolation repeats the edge of a map, so only the inside agrees.
    inside = (..., slice(4, -4), slice(4, -4))
    assert part[inside].numel() > 0
    assert torch.allclose(whole[..., 2:, 4:][inside], part[inside], atol=FORMAT_TOLERANCE)


# Sizes


def named_sizes(message: str, size: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The sizes that an error tells the user to take: all lower ones, where there are any, and all upper."""
    lower, upper = list(size), list(size)
    for axis, below, above in re.findall(r"axis (\d): (?:(\d+) or )?(\d+)", message):
        lower[int(axis)], upper[int(axis)] = int(below or above), int(above)
    return [tuple(lower), tuple(upper)]


@st.composite
def networks_and_sizes(draw):
    spatial_dims = draw(st.sampled_from([2, 3]))
    levels = draw(st.integers(2, 3))

    def per_axis(values: list[int]):
        return st.one_of(st.sampled_from(values), st.tuples(*[st.sampled_from(values)] * spatial_dims))

    arguments = {
        "channels": draw(st.lists(st.integers(1, 3), min_size=levels, max_size=levels)),
        "strides": draw(st.lists(per_axis([1, 2, 3]), min_size=levels - 1, max_size=levels - 1)),
        "kernel_sizes": draw(st.lists(per_axis([1, 3, 5]), min_size=levels, max_size=levels)),
        "padding": draw(st.sampled_from(["same", "valid"])),
        "block": draw(st.sampled_from([PlainBlock, ResidualBlock])),
        "up": draw(st.sampled_from([TransposedUp, InterpolatedUp])),
        "down": draw(st.sampled_from([MaxPool, None])),
        "convs_per_level": draw(st.integers(1, 3)),
    }
    size = tuple(draw(st.lists(st.integers(1, 60), min_size=spatial_dims, max_size=spatial_dims)))
    return spatial_dims, arguments, size


#: The smallest legal size is far from what is handed in.
DEEP_AND_WIDE: dict[str, Any] = {
    **{"channels": [1, 1, 1], "strides": [3, 3], "kernel_sizes": [3, 5, 5], "convs_per_level": 3},
    "padding": "valid",
}


@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(networks_and_sizes())
@example((2, DEEP_AND_WIDE, (1, 1)))
def test_output_size_is_the_shape_that_comes_out(drawn):
    spatial_dims, arguments, size = drawn
    with torch.device("meta"):
        network = UNet(spatial_dims, 1, 2, norm=None, **arguments)
        try:
            output_size(network, size)
            legal = [size]
        except InputError as error:
            legal = named_sizes(str(error), size)
        for usable in legal:
            logits = network(torch.empty(1, 1, *usable))
            assert output_size(network, usable) == logits.shape[2:]
            if arguments["padding"] == "same":
                assert logits.shape[2:] == usable


@pytest.mark.parametrize(
    ("arguments", "size", "message"),
    [
        ({"padding": "valid"}, (570, 572), r"input size \(570, 572\) .*axis 0: 556 or 572$"),
        ({"padding": "valid"}, (572, 100), r"axis 1: 188, the smallest$"),
        ({"padding": "same"}, (100, 33), r"axis 0: 96 or 112; axis 1: 32 or 48$"),
        ({"padding": "same"}, (0, 16), r"axis 0: 16, the smallest$"),
        ({"padding": "same", "strides": [[1, 2]] * 4}, (5, 20), r"size, axis 1: 16 or 32$"),
        (
            {"padding": "same"},
            (16, 16, 16),
            r"has 3 spatial axes, the network has 2: hand in a batch with 4 dim",
        ),
    ],
)
def test_an_illegal_size_is_named_with_its_rule_and_its_neighbours(arguments, size, message):
    network = UNet(2, 1, 2, [1, 1, 1, 1, 1], norm=None, **arguments)
    with pytest.raises(InputError, match=message) as caught:
        network(torch.zeros(1, 1, *size))
    if len(size) == 2:
        for usable in named_sizes(str(caught.value), size):
            assert network(torch.zeros(1, 1, *usable)).shape[2:] == output_size(network, usable)


def test_output_size_of_any_network():
    network = UNet(2, 1, 2, [1, 1, 1, 1, 1], padding="valid", norm=None)
    assert output_size(network, [572, 188]) == (388, 4)
    assert output_size(BasicUNet(spatial_dims=2, features=(4, 4, 4, 4, 4, 4)), [96, 64]) == (96, 64)
    with pytest.raises(InputError, match="axis 0: 556 or 572"):
        output_size(network, (571, 572))


# Weights, gradients, dropout, deep supervision


def incoming_nodes(module: Any) -> int:
    """Incoming nodes of one output neuron, counted: with weights and inputs of one it gives their number."""
    counter = copy.deepcopy(module)
    nn.init.ones_(counter.weight)
    nn.init.zeros_(counter.bias)
    spatial_dims = counter.weight.dim() - 2
    image = torch.ones(1, counter.in_channels, *(5,) * spatial_dims)
    with torch.no_grad():
        response = counter(image)[0, 0]
    return round(response[tuple(length // 2 for length in response.shape)].item())


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_weights_are_drawn_with_variance_2_over_n(spatial_dims):
    torch.manual_seed(0)
    network = UNet(spatial_dims, 3, 2, [8, 16, 32], block=ResidualBlock, down=None, heads=DEEP)
    layers = [module for module in network.modules() if isinstance(module, CONVOLUTIONS)]
    assert len(layers) == 10 + 5 + 2 + 2  # five blocks of two, their shortcuts, two up-steps, two heads
    for layer in layers:
        expected = math.sqrt(2 / incoming_nodes(layer))
        error = expected / math.sqrt(2 * layer.weight.numel())
        assert layer.weight.std().item() == pytest.approx(expected, abs=STANDARD_ERRORS * error)
        assert layer.bias is not None
        assert layer.bias.count_nonzero() == 0


VARIANTS: list[dict[str, Any]] = [
    {"spatial_dims": 2},
    {"spatial_dims": 3},
    {"spatial_dims": 2, "padding": "valid", "block": ResidualBlock, "down": None},
    {"spatial_dims": 3, "block": ResidualBlock, "up": InterpolatedUp, "down": None, "heads": DEEP},
    {"spatial_dims": 3, "strides": [[1, 2, 2], 2], "kernel_sizes": [[1, 3, 3], 3, 3]},
]


def make_variant(variant: dict, norm: str | None = None) -> tuple[UNet, torch.Tensor]:
    torch.manual_seed(0)
    network = UNet(in_channels=2, out_channels=3, channels=[4, 5, 6], norm=norm, act="leakyrelu", **variant)
    length = 50 if variant.get("padding") == "valid" else 8
    return network, torch.rand(2, 2, *(length,) * network.spatial_dims)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_parameter_gets_a_gradient(variant):
    network, image = make_variant(variant)
    logits = network(image)
    outputs = list(logits.values()) if isinstance(logits, dict) else [logits]
    sum(output.square().mean() for output in outputs).backward()
    idle = [name for name, p in network.named_parameters() if p.grad is None or p.grad.count_nonzero() == 0]
    assert idle == []


@pytest.mark.parametrize("variant", VARIANTS[2:])  # every block, up-step and pooling is in these
@pytest.mark.parametrize("form", ["script", "export"])
def test_script_and_export_agree_with_eager(variant, form):
    network, image = make_variant(variant, norm="batch")
    with torch.no_grad():
        network(image)  # moves the running statistics of the norm away from 0 and 1
        network.eval()
        expected = network(image)
        other = (
            torch.jit.script(network) if form == "script" else torch.export.export(network, (image,)).module()
        )
        assert torch.allclose(other(image), expected, atol=FORMAT_TOLERANCE)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_network_of_slices_is_one_of_two_dimensions_on_each(axis):
    torch.manual_seed(0)
    network = UNet(3, 1, 2, [4, 6, 8], strides=[2, [2, 1]], slice_axis=axis)
    torch.manual_seed(0)
    flat = UNet(2, 1, 2, [4, 6, 8], strides=[2, [2, 1]])
    size = [16, 10]
    size.insert(axis, 5)
    volume = torch.rand(2, 1, *size)
    expected = torch.stack([flat(plane) for plane in volume.unbind(axis + 2)], axis + 2)
    torch.testing.assert_close(network(volume), expected)
    torch.testing.assert_close(torch.jit.script(network)(volume), expected)
    any_size = (dict.fromkeys((0, 2, 3, 4), torch.export.Dim.DYNAMIC),)
    exported = torch.export.export(network, (volume,), dynamic_shapes=any_size).module()
    for part in (volume, volume[:1], volume.narrow(axis + 2, 0, 1)):
        torch.testing.assert_close(exported(part), network(part))
    sizes = Sizes(network)
    assert sizes.output(size) == tuple(size)
    within = list(Sizes(flat).grid([16, 10]))
    assert sizes.grid(size) == (*within[:axis], 1, *within[axis:])
    assert sizes.margin(size, axis) == 0
    first = int(axis == 0)
    with pytest.raises(InputError, match=f"use a nearest legal size, axis {first}: 4 or 8"):
        network(volume.narrow(2 + first, 0, 5))


def test_a_network_of_slices_gives_all_of_its_heads():
    network = UNet(3, 1, 2, [4, 6, 8], heads=DEEP, slice_axis=2).train()
    found = network(torch.rand(1, 1, 16, 12, 3))
    assert {name: tuple(head.shape[2:]) for name, head in found.items()} == {
        "main": (16, 12, 3),
        "deep1": (8, 6, 3),
    }
    with pytest.raises(InputError, match="volumes alone have slices"):
        UNet(2, 1, 2, [4, 6], slice_axis=1)


def test_a_scripted_network_survives_its_file(tmp_path):
    network, image = make_variant(VARIANTS[0])
    torch.jit.save(torch.jit.script(network.eval()), str(tmp_path / "network.ts"))
    loaded = torch.jit.load(str(tmp_path / "network.ts"))
    # Another legal size than the network was scripted with, none at all.
    image = torch.cat([image, image], dim=2)
    with torch.no_grad():
        assert torch.allclose(loaded(image), network(image), atol=FORMAT_TOLERANCE)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_dropout_modules_stand_in_the_two_deepest_levels_whatever_the_value(dropout):
    network = UNet(2, 1, 2, [2, 2, 2, 2], dropout=dropout)
    found = {name: module.p for name, module in network.named_modules() if isinstance(module, nn.Dropout)}
    assert found == {"encoder.levels.2.dropout": dropout, "encoder.levels.3.dropout": dropout}


def test_a_host_can_switch_dropout_on_alone():
    torch.manual_seed(0)
    network = UNet(2, 1, 2, [8, 8, 8], norm=None, dropout=0.5).eval()
    image = torch.rand(1, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(network(image), network(image))
        for module in network.modules():
            if isinstance(module, nn.Dropout):
                module.train()
        assert not torch.equal(network(image), network(image))


def test_deep_supervision_gives_one_head_per_level_in_training_only():
    heads = partial(Heads, deep_supervision=2)
    network = UNet(3, 1, 2, [2, 3, 4, 5], strides=[[1, 2, 2], 2, 2], heads=heads)
    image = torch.rand(2, 1, 8, 16, 16)
    shapes = {name: tuple(logits.shape) for name, logits in network(image).items()}
    assert shapes == {"main": (2, 2, 8, 16, 16), "deep1": (2, 2, 8, 8, 8), "deep2": (2, 2, 4, 4, 4)}
    main = network(image)["main"]
    assert torch.equal(network.eval()(image), main)  # instance norm has no mode


def test_deep_supervision_of_a_valid_network_is_refused():
    with pytest.raises(InputError, match=r'deep_supervision is 1 with padding "valid".*use 0'):
        UNet(2, 1, 2, [2, 3, 4], padding="valid", heads=DEEP)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spatial_dims": 1}, "spatial_dims is 1: use 2 or 3"),
        ({"padding": "reflect"}, "padding is 'reflect': use 'same' or 'valid'"),
        ({"block": [PlainBlock]}, "block has 1 entries: give 3, one per level, or one class"),
        ({"decoder_channels": [2]}, r"decoder_channels \[2\] has 1 entries: give 2, one per level"),
        ({"channels": [4]}, "number of levels in channels is 1: use 2 or more"),
        ({"channels": [4, [], 4]}, "channels .* holds an empty level"),
        ({"strides": [2, 2, 2]}, r"strides \[2, 2, 2\] has 3 entries: give 2, one per down-step"),
        ({"strides": [[2, 2, 2], 2]}, r"strides .* neither a number nor 2, one per axis"),
        ({"strides": 0}, "strides 0 holds an entry .* of 1 or more"),
        ({"kernel_sizes": [3, 3]}, r"kernel_sizes \[3, 3\] has 2 entries: give 3, one per level"),
        ({"kernel_sizes": [3, [2, 3], 3]}, "kernel_sizes .* holds an even number: use odd"),
        ({"heads": partial(Heads, deep_supervision=2)}, "deep_supervision is 2: use 0 to 1"),
        ({"dropout": 1.5}, "dropout is 1.5: use 0 to 1"),
        ({"convs_per_level": 0}, "convs_per_level is 0: use 1 or more"),
        ({"out_channels": 0}, "out_channels is 0: use 1 or more"),
    ],
)
def test_an_argument_that_breaks_a_rule_is_named(changes, message):
    arguments = {"spatial_dims": 2, "in_channels": 1, "out_channels": 2, "channels": [2, 2, 2]}
    with pytest.raises(InputError, match=message):
        UNet(**(arguments | changes))
