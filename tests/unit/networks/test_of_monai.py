"""Networks of MONAI: what they count, and the sizes that they refuse."""

from __future__ import annotations

import pytest
import torch
from monai.networks import nets

from scripts.errors import InputError
from scripts.networks.of_monai import UNETR, DynUNet, MedNeXt
from scripts.networks.sizes import Sizes


def count(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_published_count() -> None:
    with torch.device("meta"):
        # the paper rounds its own to 92.6 M
        assert count(UNETR(3, 1, 14, [96, 96, 96])) == pytest.approx(92.6e6, rel=0.003)


def test_weights_of_monai_fit() -> None:
    with torch.device("meta"):
        pairs = [
            (DynUNet(3, 1, 2, [4, 8, 8]), nets.DynUNet(3, 1, 2, [3] * 3, [1, 2, 2], [2, 2], [4, 8, 8])),
            (MedNeXt(2, 1, 2), nets.MedNeXtS(spatial_dims=2, in_channels=1, out_channels=2)),
        ]
    for ours, theirs in pairs:
        assert ours.state_dict().keys() == theirs.state_dict().keys()


def test_unetr_takes_one_size() -> None:
    network = UNETR(2, 1, 2, [32, 48], 4, 24, 48, 3)
    assert network(torch.zeros(1, 1, 32, 48)).shape == (1, 2, 32, 48)
    for call in (lambda: network(torch.zeros(1, 1, 48, 48)), lambda: Sizes(network).check([48, 48])):
        with pytest.raises(
            InputError, match=r"input size \(48, 48\) .*img_size \(32, 48\): use windows of that"
        ):
            call()
    with pytest.raises(InputError, match=r"img_size \(patch_size\) is \[32, 40\]: use multiples of 16"):
        UNETR(2, 1, 2, [32, 40])


def test_dynunet_names_its_sizes() -> None:
    network = DynUNet(2, 1, 2, [4, 4, 8])
    with pytest.raises(InputError, match="axis 1: 8 or 12"):
        Sizes(network).check([8, 9])
    with pytest.raises(InputError, match="number of levels in channels is 2: use 3 or more"):
        DynUNet(2, 1, 2, [4, 4])
