"""A training is the same bit by bit with cases from memory, from its own files and from those of another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from scripts.checkpoints import read_weights
from tests.commands import TINY, run

pytestmark = pytest.mark.workflow


def train(data: Path, output: Path, **ids: Any) -> tuple[list[str], dict[str, torch.Tensor]]:
    """The learning curve, without times, and the last weights of a training."""
    run(
        *("train", "task/phantom_organ"),
        **{**TINY[3], "max_epochs": 2, "val_interval": 1, "memory_format": "contiguous", **ids},
        dataset_dir=str(data),
        output_dir=str(output),
    )
    curve = [line.rpartition(",")[0] for line in (output / "learning_curve.csv").read_text().splitlines()]
    assert curve[0] == "epoch,loss,val_mean_dice"
    return curve, read_weights(output / "checkpoints" / "last.pt")


def test_losses_and_weights_are_the_same_bit_by_bit(organ: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    curve, weights = train(organ, tmp_path / "memory", cache_gb=0)
    assert not kept.exists()
    for name in ("fresh", "old"):
        again, same = train(organ, tmp_path / name, cache_dir=str(kept))
        assert again == curve
        assert all(torch.equal(weights[key], same[key]) for key in weights)
    files = {file: file.stat().st_ino for file in kept.rglob("*.safetensors")}
    assert len(files) == 2  # one to train, one to validate on
    train(organ, tmp_path / "rounded", cache_dir=str(kept), cache_dtype="float16")
    assert len(list(kept.rglob("*.safetensors"))) == 4
    assert files == {file: file.stat().st_ino for file in files}  # which nobody wrote anew
