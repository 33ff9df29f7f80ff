"""The measures as MONAI's metric, alone and in an engine that a config describes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser

from scripts.errors import InputError
from scripts.judging import (
    MEASURES,
    Case,
    CaseMetric,
    instance_scores,
    is_better,
    mean_dice,
    membrane_scores,
    section,
)
from scripts.labels import IGNORE_LABEL

# Objects of 4 and 2 pixels; the first is found whole, the second not at all.
TRUTH = torch.tensor([[[1, 1, 1, 1, 0, 2, 2]]])
PRED = torch.tensor([[[4, 4, 4, 4, 0, 0, 0]]])


@pytest.mark.parametrize("name", MEASURES)
def test_every_measure_is_that_of_its_function(name):
    rng = np.random.default_rng(0)
    truth, pred = (torch.from_numpy(rng.integers(0, 2, (1, 8, 9))) for _ in range(2))
    maps = pred[0].numpy(), truth[0].numpy()
    expected = {**instance_scores(Case("a", *maps)), **membrane_scores(section("a", *maps))}
    expected["dice"] = mean_dice(Case("a", *maps))
    assert CaseMetric(name)([pred], [truth])[0, 0].item() == pytest.approx(expected[name])


def test_mean_over_the_cases_that_say_something():
    metric = CaseMetric("ap50")
    empty = torch.zeros_like(TRUTH)
    scores = metric([PRED, TRUTH, empty], [TRUTH, TRUTH, empty])
    np.testing.assert_allclose(scores[:, :2], [[0.5, 1], [1, 1], [math.nan, 0]])
    assert metric.aggregate().item() == pytest.approx(0.75)
    metric(torch.stack([PRED, PRED]), torch.stack([TRUTH, TRUTH]))
    assert metric.aggregate().item() == pytest.approx((0.5 + 1 + 0.5 + 0.5) / 4)
    metric.reset()
    metric([empty], [empty])
    assert math.isnan(metric.aggregate().item())


@pytest.mark.parametrize("name", ["dice", "pq", "v_rand"])
@pytest.mark.parametrize("unknown", [0, IGNORE_LABEL])
def test_without_foreground_in_any_case_there_is_no_mean(name, unknown):
    """Two cases of background, in which something was found, beside one with foreground or not."""
    empty = torch.zeros_like(TRUTH)
    empty[..., 3] = unknown if name != "pq" else 0
    metric = CaseMetric(name)
    metric([PRED > 0, PRED > 0], [empty, empty])
    assert math.isnan(metric.aggregate().item())
    metric([(TRUTH > 0).long()], [(TRUTH > 0).long()])
    assert metric.aggregate().item() == pytest.approx({"dice": 1 / 3, "pq": 1 / 3, "v_rand": 1}[name])


def test_the_best_of_validations_without_a_score_is_the_last():
    assert is_better(math.nan, math.nan)
    assert is_better(0.2, 0.1)
    assert is_better(0.1, 0.1)
    assert not is_better(0.1, 0.2)


@pytest.mark.parametrize(("name", "expected"), [("dice", 2 * 3 / (3 + 4)), ("pixel_error", 1 / 7)])
def test_voxels_that_nobody_annotated_count_nowhere(name, expected):
    truth = torch.tensor([[[1, 1, 1, 1, 0, IGNORE_LABEL, IGNORE_LABEL]]])
    pred = torch.tensor([[[1, 1, 1, 0, 0, 1, 0]]])
    assert CaseMetric(name)([pred], [truth])[0, 0].item() == pytest.approx(expected)


def test_what_does_not_fit_is_refused():
    with pytest.raises(InputError, match="measure is 'iou': give one of dice, ap50"):
        CaseMetric("iou")
    with pytest.raises(InputError, match=r"shapes \[\[1, 2, 1, 7\], \[1, 1, 1, 7\]\]: give one channel each"):
        CaseMetric("pq")([PRED.repeat(2, 1, 1)], [TRUTH])


@pytest.mark.parametrize(("name", "expected"), [("pq", 2 / 3), ("seg", 0.5), ("v_rand", None)])
def test_engine_of_a_config_takes_it_as_its_key_metric(name, expected):
    parser = ConfigParser(
        {
            "imports": ["$import torch", "$import monai"],
            "cases": [],
            "key_metric": {
                "val_score": {
                    "_target_": "IgniteMetricHandler",
                    "metric_fn": {"_target_": "scripts.judging.CaseMetric", "measure": name},
                    "output_transform": "$monai.handlers.from_engine(['pred', 'label'])",
                }
            },
            "evaluator": {
                "_target_": "SupervisedEvaluator",
                "device": "$torch.device('cpu')",
                "val_data_loader": "@cases",
                "network": "$torch.nn.Identity()",
                "key_val_metric": "@key_metric",
            },
        }
    )
    pred, truth = (PRED, TRUTH) if name != "v_rand" else ((PRED > 0).long(), (TRUTH > 0).long())
    parser["cases"] = [{"image": pred[None].float(), "label": truth[None].float()}] * 2
    evaluator = parser.get_parsed_content("evaluator")
    evaluator.run()
    if expected is None:
        expected = membrane_scores(section("a", pred[0].numpy(), truth[0].numpy()))["v_rand"]
    assert evaluator.state.metrics["val_score"] == pytest.approx(expected)
    assert evaluator.state.best_metric == pytest.approx(expected)


def test_validation_of_sparse_labels_says_on_what_it_stands(caplog: pytest.LogCaptureFixture) -> None:
    """Foreground far from all that is annotated counts as wrong, and much of it is warned of."""
    caplog.set_level("INFO")
    label = torch.full((1, 30, 30), IGNORE_LABEL)
    label[0, 4, 4:8], label[0, 6, 4:8] = 1, 0
    right = (label == 1).long()
    painted = right.clone()
    painted[0, 20:, 20:] = 1
    metric = CaseMetric("dice")
    metric([right], [label])
    assert metric.aggregate() == 1
    assert "dice stands on 0.89% of the voxels, which are annotated, and 9" in caplog.text
    assert "(warning)" not in caplog.text
    metric.reset()
    metric([painted], [label])
    assert metric.aggregate() == pytest.approx(2 * 4 / (4 + 104))
    assert "(warning) 96% of what is predicted as foreground lies where none can be" in caplog.text
