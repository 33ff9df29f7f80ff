"""How unsure probabilities are, one function for all that ask."""

from __future__ import annotations

import math

import torch
from torch import Tensor

#: Where an inferer leaves in the meta data of a prediction how far its versions lie apart, and what is there.
VERSIONS, MUTUAL, VOXELS = "versions", "mutual_information", "voxels"

#: Voxels of a class at least, so that none divides by zero.
LEAST_VOXELS = 1e-12


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


def class_entropies(probabilities: Tensor) -> Tensor:
    """The mean of the predictive entropy where each class lies: a voxel counts as much as it is of the class.

    Args:
        probabilities: as for `predictive_entropy`, the classes along the first axis.

    Returns:
        (classes,), float64, 0 to 1; 0 of a class that lies nowhere.
    """
    known = probabilities.clamp(min=0)
    axes = tuple(range(1, known.ndim))
    summed = (predictive_entropy(known) * known).sum(axes, dtype=torch.float64)
    return summed / known.sum(axes, dtype=torch.float64).clamp(min=LEAST_VOXELS)


class Versions:
    """Several predictions of an image: their mean, and how far they lie apart.

    The mutual information is the part of the predictive entropy that comes from the versions' being of
    different minds: that of the mean less the mean of theirs, on the same scale. N. Houlsby et al., "Bayesian
    Active Learning for Classification and Preference Learning", 2011 (arXiv 1112.5745).

    Args:
        apart: whether it is asked how far they lie apart.
    """

    def __init__(self, apart: bool) -> None:
        self.apart = apart
        self.count = 0
        self.total = torch.zeros(())
        self.entropy = torch.zeros(())
        self.voxels: list[Tensor] = []

    def add(self, probabilities: Tensor) -> None:
        """Add a version, (B, classes, *spatial)."""
        self.count += 1
        self.total = self.total + probabilities
        if self.apart:
            self.entropy = self.entropy + predictive_entropy(probabilities, 1)
            found, classes = probabilities.argmax(1).flatten(1), probabilities.shape[1]
            self.voxels.append(torch.stack([part.bincount(minlength=classes) for part in found]))

    def mean(self) -> Tensor:
        """The mean probabilities, (B, classes, *spatial)."""
        return self.total / self.count

    def found(self) -> dict[str, Tensor]:
        """How far two versions or more lie apart; else nothing.

        Returns:
            MUTUAL, (B, 1, *spatial), 0 to 1, and VOXELS of each class in each version,
            (B, versions, classes).
        """
        if not self.apart or self.count < 2:
            return {}
        mutual = (predictive_entropy(self.mean(), 1) - self.entropy / self.count).clamp(min=0)
        return {MUTUAL: mutual, VOXELS: torch.stack(self.voxels, 1)}


def unsure_of(values: Tensor) -> Tensor:
    """The predictive entropy of probabilities, (classes, *spatial), (1, *spatial); a map is one itself."""
    return predictive_entropy(values) if len(values) > 1 else values
