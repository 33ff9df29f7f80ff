"""Two processes with half a batch each train the network that one process with the whole batch trains."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from bundle.phantom import Kind, write_phantom
from tests.commands import bundle_run, command, config_files, run, written

pytestmark = pytest.mark.workflow

#: Means over two processes and over one batch add the same floats in another order; plain gradient descent
#: carries the difference along without amplifying it.
WEIGHT_TOLERANCE = 1e-4
SCORE_TOLERANCE = 1e-3

#: Non-random enough to be compared: crops that stay inside the picture, so that both halves of a batch hold
#: as many annotated pixels, a Dice of each sample, and an optimizer that is linear in the gradient.
PLAIN: dict[str, Any] = {
    "patch_size": [32, 32],
    "channels": [8, 16],
    "samples_per_case": 4,
    "max_epochs": 8,
    "val_interval": 4,
    "learning_rate": 0.2,
    "loss": {"_target_": "scripts.losses.DiceCELoss", "alpha": "@alpha", "batch": False},
    "optimizer": {"_target_": "torch.optim.SGD", "params": "$@network.parameters()", "lr": "@learning_rate"},
    "augment": [
        {
            "_target_": "RandSpatialCropd",
            "keys": ["image", "label"],
            "roi_size": "@patch_size",
            "random_size": False,
        }
    ],
}


def last_dice(output: Path) -> float:
    with (output / "learning_curve.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == [str(epoch) for epoch in range(1, PLAIN["max_epochs"] + 1)]
    return float(rows[-1]["val_mean_dice"])


def names(folder: Path) -> list[str]:
    """Files without the process number and time that TensorBoard puts into its names."""
    return [re.sub(r"tfevents\..*", "tfevents", file) for file in written(folder)]


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    data, overlay = tmp_path / "cells", tmp_path / "plain.json"
    write_phantom(Kind.CELLS, data, cases=8, size=(64, 64))  # four to train on, two to validate on
    overlay.write_text(json.dumps(PLAIN), encoding="utf-8")
    files = config_files("train", "task/phantom_cells", str(overlay))

    done = command(
        *("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"),
        *bundle_run(
            *("--dataset_dir", str(data), "--output_dir", str(tmp_path / "two"), "--batch_size", "1"),
            files=[*files, *config_files("multi_gpu_train")],
        ),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    run(*files, dataset_dir=str(data), output_dir=str(tmp_path / "one"), batch_size=2)

    assert last_dice(tmp_path / "one") > 0.3
    assert last_dice(tmp_path / "two") == pytest.approx(last_dice(tmp_path / "one"), abs=SCORE_TOLERANCE)
    one, two = (torch.load(tmp_path / which / "model.pt", weights_only=True) for which in ("one", "two"))
    assert one.keys() == two.keys()
    for name, weights in one.items():
        torch.testing.assert_close(two[name], weights, atol=WEIGHT_TOLERANCE, rtol=0, msg=name)
    assert names(tmp_path / "two") == names(tmp_path / "one")  # one process writes


def test_without_torchrun_one_sentence_says_so(organ: Path, tmp_path: Path) -> None:
    done = command(
        *bundle_run(
            *("--dataset_dir", str(organ), "--output_dir", str(tmp_path / "out")),
            files=config_files("train", "multi_gpu_train"),
        ),
        cwd=tmp_path,
    )
    assert done.returncode != 0
    assert (
        done.stderr.strip().splitlines()[-1].startswith("error: multi_gpu_train.json needs several processes")
    )
    assert written(tmp_path) == []
