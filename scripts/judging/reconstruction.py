"""How well a network fills in what was hidden of images, as a MONAI metric."""

from __future__ import annotations

from typing import Any

import torch
from monai.handlers import IgniteMetricHandler, from_engine
from monai.metrics import CumulativeIterationMetric
from monai.utils import CommonKeys as Keys

from scripts.labels import IGNORE_LABEL

#: Least variance of what is hidden: an image that is the same everywhere divides by no zero.
LEAST_VARIANCE = 1e-12


class ExplainedVariance(CumulativeIterationMetric):
    """Mean over the cases of the share of the variance of the hidden voxels that the network explains.

    1 is the image itself, 0 is what its mean would give, and less is worse than that. A higher one is better.
    """

    def _compute_tensor(
        self, y_pred: torch.Tensor, y: torch.Tensor | None = None, **kwargs: Any
    ) -> torch.Tensor:
        """The share of each case, (B, 1); both are (B, channels, *spatial), y IGNORE_LABEL where seen."""
        assert y is not None
        shares = []
        for predicted, target in zip(y_pred, y, strict=True):
            known = target != IGNORE_LABEL
            hidden, error = target[known].double(), (predicted[known] - target[known]).double()
            variance = (hidden - hidden.mean()).square().sum().clamp(min=LEAST_VARIANCE)
            shares.append(1 - error.square().sum() / variance)
        return torch.stack(shares).float()[:, None]

    def aggregate(self) -> torch.Tensor:
        """The mean over the cases."""
        return self.get_buffer().mean()


def explained_variance() -> dict[str, IgniteMetricHandler]:
    """`ExplainedVariance` as an evaluator's `key_val_metric`, by its name in curves."""
    pair = from_engine([Keys.PRED, Keys.LABEL])
    return {"val_explained_variance": IgniteMetricHandler(ExplainedVariance(), output_transform=pair)}
