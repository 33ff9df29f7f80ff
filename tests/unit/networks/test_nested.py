"""U-Net++ against the published counts, and cut networks against small ones."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from scripts.errors import InputError
from scripts.networks import UNet
from scripts.networks.nested import NestedDecoder, NestedEncoder, NestedHeads

PUBLISHED = (32, 64, 128, 256, 512)


def nested(channels=(4, 6, 8, 10, 12), depth=None, mode="accurate", dims=2, heads=None, out_channels=2):
    return UNet(
        *(dims, 1, out_channels, channels),
        norm=None,
        encoder=partial(NestedEncoder, depth=depth),
        decoder=NestedDecoder,
        **({} if heads == "one" else {"heads": partial(NestedHeads, mode=mode)}),
    )


@pytest.mark.parametrize(("heads", "parameters"), [("one", 9_041_601), (None, 9_041_700)])
def test_published_count(heads, parameters):
    with torch.device("meta"):
        network = nested(PUBLISHED, heads=heads, out_channels=1)
    assert sum(p.numel() for p in network.parameters()) == parameters


def operations(network, image):
    with FlopCounterMode(display=False) as counter:
        network(image)
    return counter.get_total_flops()


@pytest.mark.parametrize("mode", ["accurate", "fast"])
@pytest.mark.parametrize("dims", [2, 3])
def test_cut_network_is_the_smaller_one_and_cheaper(dims, mode):
    """The smaller network has the weights of the same name: no node of it sees more."""
    torch.manual_seed(0)
    whole = nested(dims=dims, mode=mode).eval()
    image = torch.rand(2, 1, *[16] * dims)
    costs = []
    for depth in (1, 2, 3, 4):
        cut = nested(depth=depth, dims=dims, mode=mode).eval()
        cut.load_state_dict(whole.state_dict())
        small = nested((4, 6, 8, 10, 12)[: depth + 1], dims=dims, mode=mode).eval()
        small.load_state_dict({name: whole.state_dict()[name] for name in small.state_dict()})
        with torch.no_grad():
            assert torch.equal(cut(image), small(image))
            costs.append(operations(cut, image))
            assert costs[-1] == operations(small, image)
    assert costs == sorted(set(costs))
    with torch.no_grad():
        assert torch.equal(whole(image), cut(image))


def test_modes_and_training_give_the_same_heads():
    """Written out once more from the equations: every node of depth 2, and its heads."""
    torch.manual_seed(0)
    network = nested((3, 4, 5))
    image = torch.rand(1, 1, 8, 12)
    heads = network(image)
    x00, x10, x20 = network.encoder(image)
    node01, node11, node02 = network.decoder.nodes
    assert network.decoder.places == [0, 1, 0]
    x01 = node01.block(torch.cat([x00, node01.up(x10)], 1))
    x11 = node11.block(torch.cat([x10, node11.up(x20)], 1))
    x02 = node02.block(torch.cat([x00, x01, node02.up(x11)], 1))
    first, second = network.heads.heads
    assert list(heads) == ["main", "depth2", "depth1"]
    assert torch.equal(heads["depth2"], second(x02))
    assert torch.equal(heads["depth1"], first(x01))
    torch.testing.assert_close(heads["main"], (second(x02) + first(x01)) / 2)
    assert torch.equal(network.eval()(image), heads["main"])
    fast = nested((3, 4, 5), mode="fast").eval()
    fast.load_state_dict(network.state_dict())
    assert torch.equal(fast(image), second(x02))
    # in training all of it learns, whatever is used of it
    assert list(nested((3, 4, 5), depth=1)(image)) == list(heads)


def test_depth_beyond_the_network_is_refused():
    for depth in (0, 5):
        with pytest.raises(InputError, match=f"depth is {depth}: use 1 to 4"):
            nested(depth=depth)
    with pytest.raises(InputError, match=r"mode is 'slow'"):
        nested(mode="slow")
    with pytest.raises(InputError, match="gives 2 of its 4 maps, and the network's only head"):
        nested(depth=2, heads="one").eval()(torch.rand(1, 1, 16, 16))


def test_script_and_export_agree():
    for depth in (None, 2):
        network = nested((3, 4, 5, 6), depth=depth).eval()
        image = torch.rand(2, 1, 16, 24)
        with torch.no_grad():
            expected = network(image)
            torch.testing.assert_close(torch.jit.script(network)(image), expected)
            torch.testing.assert_close(torch.export.export(network, (image,)).module()(image), expected)
