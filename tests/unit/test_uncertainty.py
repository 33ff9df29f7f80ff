"""Entropy and mutual information by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import entropy

from scripts.uncertainty import MUTUAL, VOXELS, Versions, class_entropies, predictive_entropy


def test_entropy_is_that_of_scipy_over_its_largest() -> None:
    shares = torch.rand(4, 5, 6, generator=torch.Generator().manual_seed(0)).softmax(0)
    np.testing.assert_allclose(
        predictive_entropy(shares)[0], entropy(shares.numpy(), base=4, axis=0), atol=1e-6
    )
    sure = torch.tensor([1.0, 0.0])[:, None]
    assert predictive_entropy(sure).item() == 0
    assert predictive_entropy(torch.full((2, 1), 0.5)).item() == pytest.approx(1)


def test_versions_of_one_mind_have_no_mutual_information() -> None:
    shares = torch.tensor([0.3, 0.7]).view(1, 2, 1, 1)
    seen = Versions(True)
    for _ in range(3):
        seen.add(shares)
    assert seen.found()[MUTUAL].abs().max() < 1e-6
    torch.testing.assert_close(seen.mean(), shares)


def test_versions_that_contradict_each_other_have_all_of_it() -> None:
    seen = Versions(True)
    for sure in ([1.0, 0.0], [0.0, 1.0]):
        seen.add(torch.tensor(sure).view(1, 2, 1, 1).expand(1, 2, 3, 2))
    found = seen.found()
    torch.testing.assert_close(found[MUTUAL], torch.ones(1, 1, 3, 2))
    assert found[VOXELS].tolist() == [[[6, 0], [0, 6]]]


def test_it_is_the_mean_divergence_from_the_mean() -> None:
    members = torch.rand(4, 2, 3, 5, 5, generator=torch.Generator().manual_seed(0)).mul(4).softmax(2)
    seen = Versions(True)
    for member in members:
        seen.add(member)
    mean = members.mean(0)
    expected = (members * (members / mean).log()).sum(2).mean(0) / math.log(3)
    torch.testing.assert_close(seen.found()[MUTUAL][:, 0], expected, atol=1e-5, rtol=1e-4)


def test_of_one_version_or_unasked_nothing_is_said() -> None:
    seen = Versions(True)
    seen.add(torch.full((1, 2, 2, 2), 0.5))
    assert seen.found() == {}
    quiet = Versions(False)
    for _ in range(2):
        quiet.add(torch.full((1, 2, 2, 2), 0.5))
    assert quiet.found() == {}


def test_a_class_has_the_entropy_of_where_it_lies() -> None:
    """Of two voxels one is surely background, the other half background, half organ."""
    probabilities = torch.tensor([[1.0, 0.5], [0.0, 0.5], [0.0, 0.0]])
    background, organ, nowhere = class_entropies(probabilities).tolist()
    assert background == pytest.approx(1 / math.log2(3) / 3)  # 0.5 of 1.5 voxels
    assert organ == pytest.approx(1 / math.log2(3))
    assert nowhere == 0


def test_more_background_around_does_not_change_a_class() -> None:
    inner = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(1)).softmax(0)
    around = torch.zeros(3, 8, 8)
    around[0] = 1
    around[:, 2:6, 2:6] = inner
    assert class_entropies(around)[1:].tolist() == pytest.approx(class_entropies(inner)[1:].tolist())
    assert class_entropies(around)[0] < class_entropies(inner)[0]
