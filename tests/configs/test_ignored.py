"""What nobody annotated changes neither a gradient nor a score: each loss, of classes and of instances."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.utils import set_determinism
from PIL import Image

from scripts.judging.case_metric import CaseMetric
from scripts.labels import IGNORE_LABEL, UNKNOWN_OBJECT
from scripts.transforms.labels import plain
from tests.commands import CONFIGS

pytestmark = pytest.mark.workflow

LOSSES = sorted(file.stem for file in (CONFIGS / "loss").glob("*.json"))

#: The value of what nobody annotated, in the files.
IGNORED = 77

SMALL: dict[str, Any] = {"patch_size": [48, 48], "channels": [4, 8], "segments": {}, "device": "cpu"}
CLASSES: dict[str, Any] = {
    "spatial_dims": 2,
    "geometry": [],
    "labels": {"background": 0, "one": 3, "two": 9, "ignore": IGNORED},
    "patch::rotate_range": 3.14,
    "patch::units": "pixel",
    "flip_axes": [0, 1],
}
NUMBERED: dict[str, Any] = {
    "labels": {"background": 0, "interior": 1, "border": 2, "ignore": IGNORED},
    "batch_size": 1,
}
TASKS: dict[str, tuple[Sequence[str], dict[str, Any]]] = {
    "classes": ([], CLASSES),
    "instances": (["task/phantom_cells.json"], NUMBERED),
}


def case_in(folder: Path, values: np.ndarray) -> dict[str, str]:
    """An image of noise and a label on disk."""
    noise = np.random.default_rng(0).integers(0, 255, values.shape, np.uint8)
    Image.fromarray(noise).save(folder / "image.png")
    Image.fromarray(values).save(folder / "label.png")
    return {"image": str(folder / "image.png"), "label": str(folder / "label.png"), "case": "a"}


def label_of(task: str) -> np.ndarray:
    """Squares, one of which is cut by what nobody annotated."""
    values = np.zeros((64, 64), np.uint8)
    values[4:20, 4:20], values[8:24, 30:50] = 3, 9
    values[30:50, 20:44] = 9 if task == "classes" else 10
    values[40:, :] = IGNORED
    return values


def parser_for(task: str, loss: str, **ids: Any) -> ConfigParser:
    overlays, own = TASKS[task]
    parser = ConfigParser()
    parser.read_config([CONFIGS / name for name in ("train.json", *overlays, f"loss/{loss}.json")])
    parser.update({**SMALL, **own, **ids})
    return parser


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("loss", LOSSES)
def test_gradient_does_not_know_what_nobody_annotated(loss: str, task: str, tmp_path: Path) -> None:
    """Whatever a network says there, no gradient goes to it, and all others stay the same to the bit."""
    parser = parser_for(task, loss)
    set_determinism(0)
    sample = parser.get_parsed_content("train::preprocessing")(case_in(tmp_path, label_of(task)))
    set_determinism(None)
    target = plain(sample["label"])[None]
    unknown = target[0, 0] == IGNORE_LABEL
    assert 0 < unknown.sum() < unknown.numel()
    assert (target[0, 0, ~unknown] > 0).any()
    function = parser.get_parsed_content("heads_loss")
    first = torch.randn(1, 3, *unknown.shape, generator=torch.Generator().manual_seed(1))
    gradients, losses = [], []
    for seed in (2, 3):
        noise = torch.randn(first.shape, generator=torch.Generator().manual_seed(seed))
        logits = torch.where(unknown, noise, first).requires_grad_()
        losses.append(function(logits, target))
        losses[-1].backward()
        assert logits.grad is not None
        assert not logits.grad[..., unknown].any()
        assert logits.grad[..., ~unknown].any()
        gradients.append(logits.grad)
    assert torch.equal(*losses)
    assert torch.equal(*gradients)


@pytest.mark.parametrize("loss", LOSSES)
def test_loss_is_that_of_what_is_annotated_alone(loss: str) -> None:
    """Where nine tenths are not annotated the loss is that of the annotated tenth by itself."""
    function = parser_for("classes", loss).get_parsed_content("heads_loss")
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(1, 3, 40, 20, generator=generator)
    target = torch.randint(3, (1, 1, 40, 20), generator=generator).float()
    alone = function(logits[:, :, :4], target[:, :, :4])
    target[:, :, 4:] = IGNORE_LABEL
    torch.testing.assert_close(function(logits, target), alone)


@pytest.mark.parametrize("task", TASKS)
def test_score_does_not_know_what_nobody_annotated(task: str, tmp_path: Path) -> None:
    parser = parser_for(task, "dice", val_measure="dice" if task == "classes" else "ap50")
    case = parser.get_parsed_content("validate::preprocessing")(case_in(tmp_path, label_of(task)))
    key = "label" if task == "classes" else "objects"
    truth = case[key][None]
    unknown = truth == (IGNORE_LABEL if task == "classes" else UNKNOWN_OBJECT)
    assert unknown.sum() == 24 * 64
    pred = torch.where(unknown, 0, truth.clamp(min=0))
    pred[..., :24, :25] = 0
    other = torch.where(unknown, torch.arange(64)[None, None, :, None] // 8 % 3, pred)
    metric = CaseMetric("dice" if task == "classes" else "ap50")
    scores = []
    for found in (pred, other):
        metric.reset()
        metric(y_pred=found, y=truth)
        scores.append(metric.aggregate())
    assert 0 < scores[0] < 1
    assert scores[0] == scores[1]
