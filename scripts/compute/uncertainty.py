"""How unsure predictions are, by the entropy of their probabilities."""

from __future__ import annotations

import torch
from torch import Tensor

#: Voxels of a class at least, so that none divides by zero.
LEAST_VOXELS = 1e-12


def predictive_entropy(probabilities: Tensor) -> Tensor:
    """The entropy of the classes in each voxel; of the mean of several predictions their predictive entropy.

    Args:
        probabilities: (classes, *spatial), 0 to 1, with the sum 1 over the classes.

    Returns:
        (1, *spatial), 0 where one class is sure, to log(classes) where all are alike.
    """
    known = torch.as_tensor(probabilities).clamp(min=0)
    return -torch.xlogy(known, known).sum(0, keepdim=True)


def class_entropies(probabilities: Tensor) -> Tensor:
    """The mean of the predictive entropy where each class lies: a voxel counts as much as it is of the class.

    Args:
        probabilities: as for `predictive_entropy`.

    Returns:
        (classes,), float64, 0 to log(classes).
    """
    known = torch.as_tensor(probabilities).clamp(min=0)
    axes = tuple(range(1, known.ndim))
    summed = (predictive_entropy(known) * known).sum(axes, dtype=torch.float64)
    return summed / known.sum(axes, dtype=torch.float64).clamp(min=LEAST_VOXELS)
