"""Dense blocks, split attention, Inception blocks and small Us, one by one."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser

from scripts.errors import InputError, told
from scripts.networks import UNet
from scripts.networks.aid import AIDEncoder, InsertedU
from scripts.networks.blocks import Layers
from scripts.networks.dcsau import PooledBatchNorm, SplitAttention, SplitAttentionBlock
from scripts.networks.dense import DenseBlock, DenseDecoder, DenseEncoder, TransitionDown, TransitionUp
from scripts.networks.denseres import AtrousResidualMerge
from scripts.networks.inception import HybridPool, spectral_matrix
from scripts.networks.separable import DepthwiseSeparableBlock


def block_of(kind, dims=2, in_channels=3, out_channels=(4, 5), stride=1, norm=None, **others):
    return kind(
        layers=Layers(dims, norm=norm),
        in_channels=in_channels,
        out_channels=out_channels,
        kernel_size=[3] * dims,
        stride=[stride] * dims,
        **others,
    )


def test_dense_block_gives_what_each_convolution_made():
    torch.manual_seed(0)
    whole, new = (block_of(DenseBlock, norm="batch", only_new=only).eval() for only in (False, True))
    new.load_state_dict(whole.state_dict())
    x = torch.randn(2, 3, 6, 5)
    first = whole.steps[0](x)
    second = whole.steps[1](torch.cat([x, first], 1))
    assert whole.out_channels == 3 + 4 + 5
    assert torch.equal(whole(x), torch.cat([x, first, second], 1))
    assert torch.equal(new(x), torch.cat([first, second], 1))
    assert [type(layer).__name__ for layer in whole.steps[0]] == ["BatchNorm2d", "ReLU", "Conv2d"]
    with pytest.raises(InputError, match=r"stride \(2, 2\): give the network a class for down"):
        block_of(DenseBlock, stride=2)


def test_only_new_maps_are_enlarged():
    """The widths of the paper, at a growth of 2 instead of 16: m = stem + growth x layers ..."""
    growth = [[2] * n for n in (4, 5, 7, 10, 12, 15)]
    network = UNet(
        *(2, 1, 2, growth),
        decoder_channels=growth[:-1],
        block=DenseBlock,
        down=TransitionDown,
        up=TransitionUp,
        encoder=partial(DenseEncoder, stem=6),
        decoder=DenseDecoder,
        norm="batch",
    )
    published = [112, 192, 304, 464, 656]  # with a stem of 48 and a growth of 16: eight times as many
    assert [8 * m for m in network.encoder.out_channels[:-1]] == published
    assert 8 * (network.encoder.out_channels[-1] + network.encoder.out_channels[-2]) == 896
    assert 8 * network.decoder.out_channels[-1] == 256
    joined = [level.merge.out_channels + level.block.out_channels for level in network.decoder.levels[:-1]]
    assert [8 * m for m in joined] == [1088, 816, 576, 384]


@pytest.mark.parametrize("stride", [(2, 2), (1, 2), (3, 2)])
def test_transition_up_is_cut_at_the_end(stride):
    torch.manual_seed(0)
    step = TransitionUp(Layers(2), 3, 9, stride)
    x = torch.randn(1, 3, 4, 5)
    whole = step.convolution(x)
    made = step(x)
    assert made.shape[2:] == (4 * stride[0], 5 * stride[1])
    assert torch.equal(made, whole[:, :, : 4 * stride[0], : 5 * stride[1]])


def test_split_attention_is_a_weighted_sum():
    """ResNeSt's way of the softmax over the two halves, written out."""
    torch.manual_seed(0)
    module = SplitAttention(Layers(2, norm="batch"), 4).eval()
    x = torch.randn(3, 4, 6, 7)
    one, other = module.first(x).split(4, 1)
    other = module.second(one + other)
    weights = module.attention((one + other).mean((2, 3), keepdim=True)).view(3, 2, 4, 1, 1).softmax(1)
    torch.testing.assert_close(module(x), weights[:, 0] * one + weights[:, 1] * other)
    with pytest.raises(InputError, match=r"channels \[12\]: give multiples of 8"):
        block_of(SplitAttentionBlock, out_channels=[12])


def test_pooled_norm_takes_a_batch_of_one():
    torch.manual_seed(0)
    norm, plain = PooledBatchNorm(3), torch.nn.BatchNorm2d(3)
    batch = torch.randn(4, 3, 1, 1)
    torch.testing.assert_close(norm(batch), plain(batch))
    torch.testing.assert_close(norm.running_var, plain.running_var)
    kept = norm.running_mean.clone()
    torch.testing.assert_close(norm(batch[:1]), plain.eval()(batch[:1]))
    assert torch.equal(norm.running_mean, kept)


@pytest.mark.parametrize(("length", "kept"), [(8, 4), (9, 3), (12, 3), (10, 5)])
def test_spectral_pooling_keeps_the_low_frequencies(length, kept):
    """By the Fourier transform of NumPy: cut, and transformed back."""
    x = np.random.default_rng(0).normal(size=(2, length))
    spectrum = np.fft.fft(x)
    low = np.zeros((2, kept), complex)
    for k in range(-((kept - 1) // 2), (kept - 1) // 2 + 1):
        low[:, k % kept] = spectrum[:, k % length]
    expected = np.fft.ifft(low).real * kept / length
    matrix = spectral_matrix(length, kept, torch.zeros(1))
    np.testing.assert_allclose(torch.from_numpy(x).float() @ matrix.t(), expected, atol=1e-5)
    torch.testing.assert_close(matrix.sum(1), torch.ones(kept))


@pytest.mark.parametrize("dims", [2, 3])
def test_hybrid_pool_leaves_a_constant_as_it_is(dims):
    pool = HybridPool(Layers(dims), 1, [2] * dims)
    torch.nn.init.constant_(pool.join.weight, 0.5)
    torch.nn.init.zeros_(pool.join.bias)
    x = torch.full((1, 1, *[8] * dims), 3.0)
    torch.testing.assert_close(pool(x), torch.full((1, 1, *[4] * dims), 3.0))


def test_separable_block_costs_less():
    """k x k a channel and a 1x1 convolution, instead of k x k across: counted by hand, without norm."""
    block = block_of(DepthwiseSeparableBlock, in_channels=6, out_channels=(8, 10))
    assert sum(p.numel() for p in block.parameters()) == 6 * 9 + 6 * 8 + 8 + 8 * 9 + 8 * 10 + 10
    assert block(torch.randn(1, 6, 9, 9)).shape == (1, 10, 9, 9)


def test_inserted_u_is_added():
    torch.manual_seed(0)
    block = block_of(InsertedU, depth=2)
    x = torch.randn(1, 3, 8, 12)
    inner = block.block(x)
    assert torch.equal(block(x), inner + block.decoder(block.encoder(inner))[-1])
    network = UNet(2, 1, 2, [4, 5, 6], block=InsertedU, encoder=AIDEncoder)
    assert [type(level.block).__name__ for level in network.encoder.levels] == [
        *("InsertedU", "InsertedU", "PlainBlock")
    ]
    with pytest.raises(InputError, match="depth is 0: use 1 or more"):
        block_of(InsertedU, depth=0)


def test_atrous_merge_sees_as_far_as_its_dilations_say():
    merge = AtrousResidualMerge(Layers(2, norm=None), 1, 1, 1, dilations=(1, 2, 4))
    for weight in merge.parameters():
        torch.nn.init.ones_(weight)
    skip = torch.zeros(1, 1, 21, 21)
    skip[..., 10, 10] = torch.nan
    seen = merge(skip, torch.zeros_like(skip), skip)[0, 0].isnan()
    assert seen.nonzero().min() == 10 - 7
    assert seen.nonzero().max() == 10 + 7


def test_batch_without_statistics_is_told_in_one_sentence():
    network = UNet(2, 1, 2, [8, 8], norm="batch").train()
    network(torch.randn(2, 1, 2, 2))
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - what it says is told
        network(torch.randn(1, 1, 2, 2))
    assert "no statistics of one value for each channel, of a map [1, 8, 1, 1]" in str(told(caught.value))


#: Small networks of each overlay, whose paths differ.
SMALL: dict[str, dict[str, Any]] = {
    "aid": {},
    "dcsau": {"channels": [8, 8, 16], "decoder_channels": [8, 8]},
    "denseres": {},
    "depthwise_separable": {},
    "fcdensenet": {"channels": [[4, 4], [4], [4, 4]], "decoder_channels": [[4, 4], [4]]},
    "inception": {},
}


@pytest.mark.parametrize("name", SMALL)
def test_script_and_export_agree(name):
    torch.manual_seed(0)
    parser = ConfigParser({"spatial_dims": 2, "in_channels": 1, "out_channels": 2})
    parser.update(ConfigParser.load_config_file(Path(__file__).parents[3] / f"configs/network/{name}.json"))
    parser.update({"channels": [4, 6, 8], **SMALL[name]})
    network = parser.get_parsed_content("network_def").eval()
    image = torch.randn(2, 1, 16, 24)
    with torch.no_grad():
        expected = network(image)
        torch.testing.assert_close(torch.jit.script(network)(image), expected)
        torch.testing.assert_close(torch.export.export(network, (image,)).module()(image), expected)
