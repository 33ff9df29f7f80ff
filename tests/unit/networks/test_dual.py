"""Two decoders: what inference reads says what both of them found."""

from __future__ import annotations

import pytest
import torch

from scripts.errors import InputError
from scripts.networks import UNet
from scripts.networks.dual import LEAST_DISTANCE, DistanceHeads, DualDecoder


def dual(out_channels=3):
    torch.manual_seed(0)
    return UNet(*(2, 1, out_channels, [4, 6, [8, 10]]), norm=None, decoder=DualDecoder, heads=DistanceHeads)


def test_probabilities_say_mask_and_distance():
    network = dual()
    torch.nn.init.constant_(network.heads.distance.bias, 0.4)
    heads = network(torch.rand(2, 1, 16, 12))
    assert {name: tuple(x.shape[1:]) for name, x in heads.items()} == {
        "main": (3, 16, 12),
        "mask": (1, 16, 12),
        "distance": (1, 16, 12),
    }
    background, interior, border = heads["main"].softmax(1).split(1, 1)
    torch.testing.assert_close(1 - background, heads["mask"].sigmoid())
    expected = heads["distance"].clamp(LEAST_DISTANCE, 1 - LEAST_DISTANCE)
    assert expected.std() > 0.01
    torch.testing.assert_close(interior / (interior + border), expected)


def test_decoders_share_the_encoder_alone():
    network = dual()
    heads = network(torch.rand(2, 1, 16, 12))
    for name, other in (("mask", "distance"), ("distance", "mask")):
        network.zero_grad()
        heads[name].sum().backward(retain_graph=True)
        moved = {n.rsplit(".levels")[0] for n, p in network.named_parameters() if p.grad is not None}
        assert any(n.startswith("encoder") for n in moved)
        assert f"decoder.{name}" in moved
        assert f"decoder.{other}" not in moved


def test_script_agrees():
    network, image = dual().eval(), torch.rand(2, 1, 16, 12)
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.script(network)(image), network(image))


def test_other_classes_are_refused():
    with pytest.raises(InputError, match=r"out_channels is 2, of 2 maps: .* give labels background"):
        dual(2)
