"""How unsure probabilities are, one function for all that ask."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def predictive_entropy(probabilities: Tensor, dim: int = 0) -> Tensor:
    """The entropy of probabilities over that of classes that are all alike.

    Args:
        probabilities: those of the classes along ``dim``, which add up to 1.
        dim: the axis of the classes, two or more.

    Returns:
        The same with one entry along ``dim``: 0 is sure of one class, 1 of none.
    """
    known = probabilities.clamp(min=0)
    entropy = -torch.xlogy(known, known).sum(dim, keepdim=True)
    return (entropy / math.log(probabilities.shape[dim])).clamp(0, 1)
