"""The experiment that follows the paper of 2015, on generated cells instead of micrographs."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bundle.datalist import datalist
from tests.commands import CONFIGS, ROOT, command, read_array

pytestmark = pytest.mark.workflow

#: The smallest tile of five levels with valid convolutions, and few channels.
TINY = ("--patch_size", "[188,188]", "--network_def::channels", "[2,2,4,4,4]", "--val_interval", "1")


def test_experiment_trains_and_resumes(cells: Path, tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    for label in (cells / "labelsTr").iterdir():
        mask = (read_array(label) > 0).astype(np.uint8) * 255
        Image.fromarray(mask).save(tmp_path / "masks" / label.name)
    masks = {"labels": tmp_path / "masks", "label_names": "membrane=0,cell=255", "folds": 4}
    datalist(tmp_path / "list", images=cells / "imagesTr", **masks)
    places = ("--dataset_dir", str(tmp_path / "list"), "--output_dir", str(tmp_path / "out"))
    experiment = ("-m", "monai.bundle", "run", "--args_file", str(CONFIGS / "experiments/unet2015_em.json"))
    for epochs in (1, 2):
        steps = ("--max_epochs", str(epochs), "--resume", "True")
        done = command(*experiment, *places, *TINY, *steps, cwd=ROOT)
        assert done.returncode == 0, done.stderr
    with (tmp_path / "out/learning_curve.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert all(math.isfinite(float(row["loss"])) for row in rows)
    last = torch.load(tmp_path / "out/checkpoints/last.pt", weights_only=True)
    assert last["optimizer"]["param_groups"][0]["momentum"] == 0.99
