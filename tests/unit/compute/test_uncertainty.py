"""Entropies of probabilities: counted by hand, and by SciPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import entropy

from scripts.compute.uncertainty import class_entropies, predictive_entropy


def test_entropy_is_that_of_scipy() -> None:
    probabilities = torch.rand(4, 5, 6, 7, generator=torch.Generator().manual_seed(0)).softmax(0)
    found = predictive_entropy(probabilities)
    assert found.shape == (1, 5, 6, 7)
    np.testing.assert_allclose(found[0].numpy(), entropy(probabilities.numpy(), axis=0), rtol=1e-5)


def test_sure_is_zero_and_a_fair_coin_is_log_two() -> None:
    probabilities = torch.tensor([[1.0, 0.5, 0.0], [0.0, 0.5, 1.0]])
    assert predictive_entropy(probabilities)[0].tolist() == pytest.approx([0, math.log(2), 0])


def test_a_class_has_the_entropy_of_where_it_lies() -> None:
    """Of two voxels one is surely background, the other half background, half organ."""
    probabilities = torch.tensor([[1.0, 0.5], [0.0, 0.5], [0.0, 0.0]])
    background, organ, nowhere = class_entropies(probabilities).tolist()
    assert background == pytest.approx(math.log(2) / 3)  # 0.5 of 1.5 voxels
    assert organ == pytest.approx(math.log(2))
    assert nowhere == 0


def test_more_background_around_does_not_change_a_class() -> None:
    inner = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(1)).softmax(0)
    around = torch.zeros(3, 8, 8)
    around[0] = 1
    around[:, 2:6, 2:6] = inner
    assert class_entropies(around)[1:].tolist() == pytest.approx(class_entropies(inner)[1:].tolist())
    assert class_entropies(around)[0] < class_entropies(inner)[0]
