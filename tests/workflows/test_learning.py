"""What the demo promises: a short training on a phantom beats thresholding by far.

In 2D; the volumes are in `tests/networks`, a part of `make test-networks`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bundle.data.phantom import Kind, write_phantom
from bundle.runs.baseline import otsu_components
from scripts.judging import Case, mean_dice
from tests.commands import read_array, run

pytestmark = pytest.mark.workflow

#: By how much the network's mean Dice on held-out cases must exceed Otsu's, which the truth helps.
MARGIN = 0.25

#: The demo's task files at fewer epochs; in 2D half as wide and on smaller patches.
TASKS: dict[str, tuple[Kind, dict[str, Any], int]] = {
    "phantom_cells": (
        Kind.CELLS,
        {"max_epochs": 5, "val_interval": 5, "channels": [8, 16, 32], "patch_size": [96, 96]},
        2,
    ),
    "phantom_organ": (Kind.ORGAN, {"max_epochs": 6, "val_interval": 6}, 3),
}


def test_network_beats_thresholding(tmp_path: Path) -> None:
    check_beats_thresholding("phantom_cells", tmp_path)


def check_beats_thresholding(task: str, tmp_path: Path) -> None:
    """Train on a phantom, and hold the segmentations against those of Otsu's threshold."""
    kind, ids, n_classes = TASKS[task]
    data = tmp_path / "data"
    write_phantom(kind, data)
    run("train", f"task/{task}", dataset_dir=str(data), output_dir=str(tmp_path / "out"), **ids)
    run(
        *("inference", f"task/{task}"),
        **{key: value for key, value in ids.items() if key in ("channels", "patch_size")},
        dataset_dir=str(data / "imagesTs"),
        output_dir=str(tmp_path / "seg"),
        checkpoint=str(tmp_path / "out/model.pt"),
    )
    network, otsu = [], []
    for image in sorted((data / "imagesTs").iterdir()):
        stem, ending = image.name.split(".", 1)
        pred = read_array(tmp_path / f"seg/{stem}_seg.{ending}")
        truth = read_array(data / "labelsTs" / image.name)
        if kind is Kind.CELLS:  # instance maps: any cell is foreground
            pred, truth = pred > 0, truth > 0
        pred, truth = pred.astype(np.uint8), truth.astype(np.uint8)
        network.append(mean_dice(Case(stem, pred, truth)))
        otsu.append(mean_dice(Case(stem, otsu_components(read_array(image), truth, n_classes), truth)))
    assert len(network) == 4
    assert np.mean(network) > np.mean(otsu) + MARGIN, f"network {network}, Otsu {otsu}"
