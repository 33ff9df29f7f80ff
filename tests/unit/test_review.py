"""A predicted Dice with an interval that holds, and a margin that covers the truth."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy.stats import binom

from bundle.runs.review import NOMINAL, Observed, judged_rows, learn_review, summary_rows
from scripts.errors import InputError
from scripts.review import (
    FEATURES,
    Reviewd,
    conformal_quantile,
    features,
    margin_needed,
    predicted_dice,
    require_review,
)
from scripts.rules import RULES
from scripts.transforms.versions import TOLD

LABELS = {"background": 0, "organ": 1, "vessel": 2}


def ball(centre: float = 12, radius: float = 6, size: int = 24) -> np.ndarray:
    return np.linalg.norm(np.indices((size,) * 3) - centre, axis=0) <= radius


def probabilities(sure: float) -> np.ndarray:
    inside = np.where(ball(), sure, 1 - sure)
    return np.stack([1 - inside, inside, 0 * inside]).astype(np.float32)


def test_what_probabilities_say_of_a_class() -> None:
    sure, unsure = (features(probabilities(share)) for share in (1.0, 0.8))
    assert [found.keys() for found in sure] == [set(FEATURES)] * 3
    assert sure[1]["expected_dice"] == pytest.approx(1)
    assert sure[1]["border_entropy"] == 0
    voxels = ball().sum()
    assert sure[1]["log_voxels"] == pytest.approx(math.log1p(voxels))
    outside = 24**3 - voxels
    expected = 2 * 0.8 * voxels / (voxels + 0.8 * voxels + 0.2 * outside)
    assert unsure[1]["expected_dice"] == pytest.approx(expected, rel=1e-4)
    assert unsure[1]["border_entropy"] > 0.4
    two = probabilities(1.0)
    two[0, 0, 0, 0], two[1, 0, 0, 0] = 0, 1
    assert features(two)[1]["largest_piece"] == pytest.approx(voxels / (voxels + 1))
    assert features(probabilities(1.0))[2] == dict.fromkeys(FEATURES, 0.0)


def test_the_margin_is_the_dilation_that_covers_so_much() -> None:
    mask, truth = np.zeros((2, 24, 24, 24), bool)
    mask[4:12, 4:12, 4:12], truth[4:14, 4:12, 4:12] = True, True
    assert margin_needed(mask, truth, 1.0) == 2
    truth[8, 8, 20] = True  # one voxel far away is less than a hundredth
    assert margin_needed(mask, truth, 0.99) == 2
    assert margin_needed(mask, truth, 1.0) == 9
    assert margin_needed(truth, mask, 1.0) == 0
    assert margin_needed(mask, mask & False, 1.0) == 0
    assert margin_needed(mask & False, mask, 0.99) == math.inf


def test_the_rank_of_the_quantile_counts_the_case_to_come() -> None:
    assert conformal_quantile(range(1, 10), 0.9) == 9  # ceil(10 * 0.9)
    assert conformal_quantile(range(1, 9), 0.9) is None
    assert conformal_quantile(range(1, 20), 0.9) == 18
    assert conformal_quantile([*range(17), math.inf, math.inf], 0.9) is None


def test_as_many_of_new_cases_lie_within_as_was_asked_for() -> None:
    """Whatever the scores are, over many draws of both."""
    rng = np.random.default_rng(0)
    held = [
        rng.exponential() ** 3 <= (conformal_quantile(list(rng.exponential(size=25) ** 3), NOMINAL) or 0)
        for _ in range(3000)
    ]
    low, high = binom.interval(0.999, len(held), math.ceil(26 * NOMINAL) / 26)
    assert low <= sum(held) <= high


def observed(cases: int, noise: float, seed: int = 0) -> list[Observed]:
    rng = np.random.default_rng(seed)
    found = []
    for number in range(cases):
        quality = rng.uniform(0.5, 0.95)
        told = {name: float(rng.standard_normal()) for name in FEATURES}
        told["expected_dice"] = quality + 0.05
        dice = float(np.clip(quality + noise * rng.standard_normal(), 0, 1))
        margin = float(rng.integers(0, 5))
        found.append(Observed(f"c{number}", f"s{number}", number % 5, "organ", told, dice, margin))
    return found


def test_what_is_learnt_predicts_cases_that_it_was_not_learnt_on() -> None:
    rows = judged_rows(observed(200, 0.03), 0)
    assert len(rows) == 200
    (row,) = summary_rows(rows)
    assert row["correlation"] > 0.9
    assert row["within low"] <= NOMINAL <= row["within high"]
    assert row["covered"] >= 0.85
    assert row["mean width"] < 0.2
    for each in rows:
        assert each["within"] == (each["low"] <= each["dice"] <= each["high"])
        assert each["covered"] == (each["needed"] <= each["margin"])


def test_of_too_few_nothing_is_learnt() -> None:
    assert learn_review(observed(10, 0.1), 0) is None


def test_the_table_has_a_line_for_a_case() -> None:
    review = learn_review(observed(100, 0.03), 0)
    assert review is not None
    require_review(review, LABELS)
    step = Reviewd("pred", review, LABELS)
    told = step({"pred": MetaTensor(torch.from_numpy(probabilities(0.99)))})[TOLD]
    learnt = review["classes"]["organ"]
    dice = predicted_dice(features(probabilities(0.99))[1], learnt)
    assert told["organ dice"] == told["lowest"] == pytest.approx(dice, abs=1e-4)
    assert told["organ dice low"] == pytest.approx(max(dice - learnt["half_width"], 0), abs=1e-4)
    assert told["organ margin"] == learnt["margin"]
    assert told["look"] == "unlike"  # nothing of it is like the noise that was learnt from


def test_a_review_of_other_classes_is_refused() -> None:
    review: Any = learn_review(observed(100, 0.03), 0)
    others = {"background": 0, "liver": 1}
    broken = {**review, "classes": {"organ": {**review["classes"]["organ"], "half_width": None}}}
    strange = {**review["classes"]["organ"], "weights": {"age": 1.0}}
    for value, labels, said in [
        ({}, LABELS, "review has not coverage, covered, classes"),
        (review, others, "review names the classes organ, and labels liver"),
        (broken, LABELS, "review::classes::organ holds what is no number"),
        (
            {**review, "classes": {"organ": strange}},
            LABELS,
            "review::classes::organ::weights has not expected_dice",
        ),
        ({**review, "classes": {"organ": {}}}, LABELS, "review::classes::organ has not intercept"),
    ]:
        with pytest.raises(InputError, match=re.escape(said)):
            require_review(value, labels)
        with pytest.raises(ValueError, match=re.escape(said)):
            RULES["review"].take(value, {"labels": labels})
    with pytest.raises(ValueError, match=r"as before version 0\.16"):
        RULES["review"].take(review, {"labels": LABELS, "restore": [{"_target_": "Activationsd"}]})


def test_a_run_fails_for_what_is_unlike_only_where_something_says_so() -> None:
    rule = RULES["fail_on_unlike"]
    assert rule.take(True, {"review": {}}) is True
    assert rule.take(False, {"review": None, "segmenter": {}}) is False
    with pytest.raises(ValueError, match="nothing says what is unlike"):
        rule.take(True, {"review": None})
    with pytest.raises(ValueError, match=r"large_volume\.json has no use for it"):
        rule.take(True, {"review": {}, "segmenter": {}})
