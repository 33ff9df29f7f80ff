"""The share of the variance of hidden voxels that is explained, beside scikit-learn's definition by hand."""

from __future__ import annotations

import pytest
import torch

from scripts.judging.reconstruction import ExplainedVariance
from scripts.labels import IGNORE_LABEL

TARGET = torch.tensor([[[1.0, 2.0, 3.0, IGNORE_LABEL]]])


@pytest.mark.parametrize(
    ("predicted", "share"),
    [
        ([1.0, 2.0, 3.0, 9.0], 1.0),
        ([2.0, 2.0, 2.0, -9.0], 0.0),  # the mean
        ([1.0, 2.0, 2.0, 0.0], 0.5),  # an error of 1 beside a variance of 2
        ([3.0, 2.0, 1.0, 0.0], -3.0),
    ],
)
def test_share_of_a_case(predicted: list[float], share: float) -> None:
    metric = ExplainedVariance()
    metric(torch.tensor([[predicted]]), TARGET)
    assert float(metric.aggregate()) == pytest.approx(share)


def test_cases_count_alike() -> None:
    metric = ExplainedVariance()
    metric(TARGET.clone(), TARGET)
    metric(torch.full_like(TARGET, 2.0), TARGET)
    assert float(metric.aggregate()) == pytest.approx(0.5)
