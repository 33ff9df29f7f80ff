"""What every network of `configs/network` keeps, where it takes longer to say than `make test` has time."""

from __future__ import annotations

import math

import pytest
import torch

from bundle.figures.diagram import read_feature_maps
from scripts.compute.memory import training_bytes
from scripts.errors import told
from scripts.networks import UNet
from scripts.networks.heads import main_logits
from scripts.networks.sizes import Sizes
from tests.configs.test_networks import CASES, Case, check_sizes, small

pytestmark = pytest.mark.workflow

#: How much more an image may take in a batch than alone, where it needs fewer copies.
COPIES = 1.15

#: bf16 has 8 bits: how far logits may lie from those of float32, as a share of their spread.
BF16 = 0.1


@pytest.fixture(scope="module", params=CASES, ids=[f"{name}-{dims}D" for name, dims in CASES])
def case(request: pytest.FixtureRequest) -> Case:
    return small(*request.param)


def test_sizes_are_true_whatever_the_length(case: Case) -> None:
    check_sizes(case, range(case.size[0], case.size[0] + 4))


def test_half_precision_agrees(case: Case) -> None:
    network, image = case.network.eval(), case.image()
    with torch.no_grad():
        exact = main_logits(network(image))
        with torch.autocast("cpu", torch.bfloat16):
            half = main_logits(network(image)).float()
    assert float((half - exact).square().mean().sqrt()) < BF16 * float(exact.std())


def test_a_batch_of_one_trains_or_is_refused_in_a_sentence(case: Case) -> None:
    """On the smallest image, where a norm may have one voxel."""
    sizes = Sizes(case.network)
    smallest = next(length for length in range(1, 65) if sizes.is_legal((length,) * case.dims))
    said = ""
    try:
        case.network.train()(torch.zeros((1, 1, *[smallest] * case.dims)))
    except ValueError as error:  # of PyTorch
        said = str(told(error))
    assert not said or "has no statistics of one value for each channel" in said


def test_memory_of_a_step_is_foreseen(case: Case) -> None:
    """By tensors without data: what it keeps of an image is kept of each image of a batch."""
    one, three = (training_bytes(case.network.train(), (batch, 1, *case.size)) for batch in (1, 3))
    assert 4 * math.prod(case.size) < one < three <= 3 * COPIES * one


def test_it_is_drawn_from_the_instance(case: Case) -> None:
    if not isinstance(case.network, UNet):
        pytest.skip("MONAI's own: its overlay has no diagram")
    maps = read_feature_maps(case.network.eval(), case.size)
    assert maps[0].size == case.size
    assert [m.channels for m in maps if m.operation == "head"][:1] == [3]
