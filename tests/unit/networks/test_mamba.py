"""Scans in chunks against the recurrence step by step, and the layers around them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from bundle.ship.export import lengths_of_one
from scripts.errors import InputError
from scripts.networks import UNet, mamba
from scripts.networks.blocks import Layers
from scripts.networks.mamba import S6, SSD, Mamba, MambaBottleneck, SqueezeExcite, VisualMamba
from scripts.networks.sizes import Sizes

#: Single precision, as a share of the largest number.
TOLERANCE = 1e-5


def step_by_step(x: Tensor, step: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """h = exp(Δ A) h + Δ B x and y = C h, (B, L, D), as the paper has it."""
    h = x.new_zeros(x.shape[0], x.shape[2], a.shape[1])
    ys = []
    for t in range(x.shape[1]):
        h = (step[:, t, :, None] * a).exp() * h + (step[:, t] * x[:, t])[..., None] * b[:, t, None]
        ys.append((h * c[:, t, None]).sum(-1))
    return torch.stack(ys, 1)


def drawn(length: int, channels: int, state: int, steps: int) -> list[Tensor]:
    """x, Δ, B, C of two sequences; Δ of all sizes, so that some states last and some are gone at once."""
    generator = torch.Generator().manual_seed(length)
    x, b, c = (torch.randn(2, length, n, generator=generator) for n in (channels, state, state))
    step = torch.rand(2, length, steps, generator=generator) ** 4 * 3
    return [x.requires_grad_(), step.requires_grad_(), b.requires_grad_(), c.requires_grad_()]


def agree(found: Tensor, expected: Tensor, arguments: list[Tensor]) -> None:
    """Results and gradients of both are the same."""
    assert found.shape == expected.shape
    gradient = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    pairs = zip(
        (found, *torch.autograd.grad(found, arguments, gradient)),
        (expected, *torch.autograd.grad(expected, arguments, gradient)),
        strict=True,
    )
    for ours, theirs in pairs:
        assert torch.allclose(
            ours, theirs, rtol=0, atol=TOLERANCE * max(1.0, float(theirs.detach().abs().max()))
        )


@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 65, 100, 271])  # 271 takes three levels of chunks
def test_scans_equal_the_recurrence(length: int) -> None:
    x, step, b, c = drawn(length, 3, 4, 3)
    a = (-torch.rand(3, 4) * 8).requires_grad_()
    agree(mamba.s6(x, step, a, b, c), step_by_step(x, step, a, b, c), [x, step, a, b, c])

    x, step, b, c = drawn(length, 6, 4, 2)  # two heads of three channels
    a = (-torch.rand(2) * 8).requires_grad_()
    each = step.repeat_interleave(3, -1), a.repeat_interleave(3)[:, None].expand(6, 4)
    found = mamba.ssd(x.unflatten(2, (2, 3)), step, a, b, c).flatten(2)
    agree(found, step_by_step(x, each[0], each[1], b, c), [x, step, a, b, c])


def test_long_memory_stays_exact() -> None:
    """Where states hardly decay, sums of logarithms would lose them, and where they do, overflow."""
    for decay in (-1e-6, -300.0):
        x, step, b, c = drawn(200, 2, 3, 2)
        a = torch.full((2, 3), decay)
        found, expected = mamba.s6(x, step, a, b, c), step_by_step(x, step, a, b, c)
        assert torch.allclose(found, expected, rtol=0, atol=TOLERANCE * float(expected.detach().abs().max()))


@pytest.mark.parametrize(("channels", "count"), [(16, 3_360), (64, 32_640), (256, 437_760)])
def test_published_count(channels: int, count: int) -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in Mamba(channels).parameters()) == count


def test_drawn_as_published() -> None:
    """A = -1 ... -N in each channel, D = 1, Δ from 0.001 to 0.1 where nothing comes in."""
    scan = S6(32, 4, 1)
    assert torch.allclose(scan.a_log.exp(), torch.arange(1.0, 5).expand(32, 4))
    assert torch.equal(scan.skip, torch.ones(32))
    for bias in (scan.step.bias, SSD(256, 4, 1).step_bias):
        step = nn.functional.softplus(bias)
        assert 0.0009 < float(step.min()) <= float(step.max()) < 0.11


@pytest.mark.parametrize("scan", [S6, SSD])
def test_a_layer_sees_the_past_alone(scan: type[nn.Module]) -> None:
    torch.manual_seed(0)
    layer = Mamba(6, scan)
    x = torch.randn(1, 40, 6)
    changed = x.clone()
    changed[:, 25:] += 1
    first, second = layer(x), layer(changed)
    assert torch.allclose(first[:, :25], second[:, :25], atol=1e-6)
    assert not torch.allclose(first[:, 25], second[:, 25], atol=1e-4)


def test_visual_scans_go_along_every_axis_and_back() -> None:
    """With one scan in all directions a map that is turned over or mirrored gives the same, turned so."""
    torch.manual_seed(0)
    layer = VisualMamba(Layers(2), 4, S6)
    nn.init.ones_(layer.convolution.weight)  # looks the same from everywhere
    weights = layer.there[0].state_dict()
    for scan in (*layer.there, *layer.back):
        scan.load_state_dict(weights)
    x = torch.randn(1, 4, 5, 7)
    expected = layer(x)
    assert torch.allclose(layer(x.transpose(2, 3)).transpose(2, 3), expected, atol=1e-5)
    assert torch.allclose(layer(x.flip(2, 3)).flip(2, 3), expected, atol=1e-5)
    # the last voxel of a row is seen by the first one, and the other way round
    far = x.clone()
    far[..., 4, 6] += 1
    assert not torch.allclose(layer(far)[..., 0, 0], expected[..., 0, 0], atol=1e-6)


def test_bottleneck_goes_row_by_row() -> None:
    torch.manual_seed(0)
    bottleneck = MambaBottleneck(Layers(3), 3)
    x = torch.randn(2, 3, 2, 3, 4)
    rows = x.permute(0, 2, 3, 4, 1).reshape(2, 24, 3)
    expected = bottleneck.mamba(bottleneck.norm(rows)).reshape(2, 2, 3, 4, 3).permute(0, 4, 1, 2, 3)
    assert torch.allclose(bottleneck(x), expected, atol=1e-6)


def test_excitation_weighs_channels_of_the_skip() -> None:
    merge = SqueezeExcite(Layers(2), 4, 2, 8)
    for parameter in merge.parameters():
        nn.init.zeros_(parameter)
    skip, up = torch.randn(1, 4, 6, 6), torch.randn(1, 2, 6, 6)
    assert torch.allclose(merge(skip, up, torch.empty(0)), torch.cat([skip / 2, up], 1))  # sigmoid(0)


@pytest.mark.parametrize("scan", [S6, SSD])
def test_a_sequence_that_does_not_fit_the_memory_is_refused(
    scan: type[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mamba, "available_memory", lambda: 1e6)
    bottleneck = MambaBottleneck(Layers(3), 8, scan)
    bottleneck(torch.zeros(1, 8, 2, 3, 4))
    with pytest.raises(
        InputError, match=r"1 sequences of 32768 voxels, which takes .*B of 1\.0 MB: use a sm"
    ):
        bottleneck(torch.zeros(1, 8, 32, 32, 32))


def test_scans_stay_in_single_precision() -> None:
    x, step, b, c = drawn(70, 6, 4, 2)
    a = -torch.ones(2)
    exact = mamba.ssd(x.unflatten(2, (2, 3)), step, a, b, c)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = mamba.ssd(x.unflatten(2, (2, 3)), step, a, b, c)
    assert mixed.dtype == torch.float32
    assert torch.equal(mixed, exact)
    assert math.isfinite(float(mixed.detach().sum()))


@pytest.mark.long
@pytest.mark.parametrize("scan", [S6, SSD])
def test_an_exported_layer_takes_any_length(scan: type[nn.Module]) -> None:
    layer = Mamba(3, scan, state=2).eval()
    example = torch.randn(2, 24, 3)
    shapes = ({0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO},)
    with lengths_of_one():
        program = torch.export.export(layer, (example,), dynamic_shapes=shapes, strict=False).module()
    for size in ((2, 24, 3), (3, 7, 3), (1, 300, 3), (2, 4500, 3)):
        x = torch.randn(size)
        assert torch.allclose(program(x), layer(x), atol=1e-6)


@pytest.mark.parametrize("scan", [S6, SSD])
def test_a_trace_is_refused(scan: type[nn.Module]) -> None:
    with torch.no_grad(), pytest.raises(InputError, match="is not traced: use runtime torch"):
        torch.jit.trace(Mamba(3, scan, state=2).eval(), (torch.randn(2, 24, 3),))


def test_tiles_of_a_network_that_sees_all_are_refused() -> None:
    sizes = Sizes(UNet(2, 1, 2, [4, 4, 4], bottleneck=MambaBottleneck))
    assert [sizes.is_legal((16, length)) for length in (16, 18, 20)] == [True, False, True]
    with pytest.raises(InputError, match=r"use .*SlidingWindowSlabInferer"):
        sizes.margin((32, 32), 0)
