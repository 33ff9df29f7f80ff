"""The experiment that follows the paper of 2015, on generated cells instead of micrographs."""

from __future__ import annotations

import csv
import math
import shutil
from pathlib import Path
from typing import Any

import monai.bundle
import numpy as np
import pytest
import torch
from PIL import Image

from bundle.data.phantom import Kind, write_phantom
from tests.commands import CONFIGS, ROOT, TINY, datalist, read_array, run, unchanged_process

pytestmark = pytest.mark.workflow

#: The smallest tile of five levels with valid convolutions, and few channels.
SMALL: dict[str, Any] = {"patch_size": [204, 204], "channels": [2, 2, 4, 4, 4], "val_interval": 1}
EXPERIMENT = str(CONFIGS / "experiments/unet2015_em.json")


def test_experiment_trains_and_resumes(cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "masks").mkdir()
    for label in (cells / "labelsTr").iterdir():
        mask = (read_array(label) > 0).astype(np.uint8) * 255
        Image.fromarray(mask).save(tmp_path / "masks" / label.name)
    masks = {"labels": tmp_path / "masks", "label_name": ["membrane=0", "cell=255"], "folds": 4}
    datalist(tmp_path / "list", images=cells / "imagesTr", **masks)
    places = {"dataset_dir": str(tmp_path / "list"), "output_dir": str(tmp_path / "out")}
    monkeypatch.chdir(ROOT)
    for epochs in (1, 2):
        with unchanged_process():
            monai.bundle.run(args_file=EXPERIMENT, **places, **SMALL, max_epochs=epochs, resume=True)
    with (tmp_path / "out/learning_curve.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert all(math.isfinite(float(row["loss"])) for row in rows)
    last = torch.load(tmp_path / "out/checkpoints/last.pt", weights_only=True)
    assert last["optimizer"]["param_groups"][0]["momentum"] == 0.99


def test_border_weights_of_images_of_two_sizes(tmp_path: Path) -> None:
    for part, size in (("a", (64, 72)), ("b", (80, 64))):
        write_phantom(Kind.CELLS, tmp_path / part, cases=4, size=size)
        for folder in ("images", "labels"):
            (tmp_path / folder).mkdir(exist_ok=True)
            for file in (tmp_path / part).glob(f"{folder}T[rs]/*"):
                shutil.copy(file, tmp_path / folder / f"{part}_{file.name}")
    folders = {"images": tmp_path / "images", "labels": tmp_path / "labels"}
    datalist(tmp_path / "list", **folders, instances=True, folds=4)
    run(
        *("train", "task/nuclei", "loss/border_weights"),
        **TINY[2],
        dataset_dir=str(tmp_path / "list"),
        output_dir=str(tmp_path / "out"),
        batch_size=4,
        max_epochs=1,
    )
    with (tmp_path / "out/learning_curve.csv").open() as file:
        assert math.isfinite(float(next(csv.DictReader(file))["loss"]))
