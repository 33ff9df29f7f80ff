"""A calibration scales logits; what the id `calibration` may be."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax

from scripts.calibration import Calibration, read_calibration
from scripts.errors import InputError
from scripts.rules import RULES

LABELS = {"background": 0, "organ": 7, "vessel": 3, "ignore": 9}


def logits(seed: int = 0) -> torch.Tensor:
    return 5 * torch.randn(3, 6, 5, 4, generator=torch.Generator().manual_seed(seed))


def test_one_temperature_divides_and_changes_no_class() -> None:
    given = logits()
    made = Calibration((1.7,)).calibrate_(given.clone())
    np.testing.assert_allclose(made.softmax(0), softmax(given.numpy() / 1.7, axis=0), atol=1e-6)
    assert torch.equal(made.argmax(0), given.argmax(0))
    assert made.softmax(0).max() < given.softmax(0).max()


def test_classes_of_their_own_scale_the_logarithms_of_the_probabilities() -> None:
    given, temperature, bias = logits(), np.array([0.5, 2.0, 1.0]), np.array([0.3, -0.2, 0.1])
    expected = (
        log_softmax(given.numpy(), axis=0) / temperature[:, None, None, None] + bias[:, None, None, None]
    )
    calibration = Calibration(tuple(temperature), tuple(bias))
    made = calibration.calibrate_(given.clone()).softmax(0)
    np.testing.assert_allclose(made, softmax(expected, axis=0), atol=1e-5)
    np.testing.assert_allclose(calibration.of_probabilities(given.softmax(0)), made, atol=1e-5)
    # a shift of all logits says nothing, and the classes may lie along another axis
    moved = calibration.calibrate_((given + 3)[None].clone(), 1).softmax(1)[0]
    np.testing.assert_allclose(moved, made, atol=1e-5)


def test_of_other_classes_it_is_refused() -> None:
    with pytest.raises(InputError, match="calibration has 2 temperatures, the network 3 classes"):
        Calibration((1.0, 2.0)).calibrate_(logits())


def test_the_id_is_read_by_the_names_of_the_classes() -> None:
    assert read_calibration(None, LABELS) is None
    assert read_calibration({"temperature": 2}, LABELS) == Calibration((2.0,))
    value = {"temperature": {"organ": 2.0, "background": 1.0, "vessel": 3.0}}
    assert read_calibration(value, LABELS) == Calibration((1.0, 2.0, 3.0))
    whole = {**value, "bias": {"vessel": 0.5, "background": 0.0, "organ": -0.5}}
    read = read_calibration(whole, LABELS)
    assert read == Calibration((1.0, 2.0, 3.0), (0.0, -0.5, 0.5))
    assert read is not None
    assert read.as_config(LABELS) == whole


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({}, "it has a temperature and perhaps a bias"),
        ({"temperature": 1, "scale": 2}, "it has a temperature and perhaps a bias"),
        ({"temperature": 0}, "calibration::temperature is 0: it is one number above 0"),
        ({"temperature": True}, "calibration::temperature is True"),
        ({"temperature": float("nan")}, "calibration::temperature is nan"),
        (
            {"temperature": {"background": 1, "organ": 2}},
            "names background, organ, and labels background, org",
        ),
        ({"temperature": 1, "bias": 2}, "calibration::bias is 2: it is a number for each class"),
    ],
)
def test_what_it_cannot_be_is_a_sentence(value: Any, said: str) -> None:
    with pytest.raises(InputError, match=re.escape(said)):
        read_calibration(value, LABELS)
    with pytest.raises(ValueError, match=re.escape(said)):
        RULES["calibration"].take(value, {"labels": LABELS})


def test_a_recipe_of_an_older_version_is_told_that_it_does_not_calibrate() -> None:
    rule, value = RULES["calibration"], {"temperature": 1.5}
    assert rule.take(str(value), {"labels": LABELS}) == value
    assert rule.take(value, {"window_inferer": {"calibration": "@calibrated"}}) == value
    with pytest.raises(ValueError, match=r"as before version 0\.16"):
        rule.take(value, {"labels": LABELS, "window_inferer": {"_target_": "x", "roi_size": [8, 8]}})
