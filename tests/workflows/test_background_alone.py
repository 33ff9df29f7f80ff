"""A training whose validation shows nothing."""

from __future__ import annotations

import csv
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from tests.commands import TINY, datalist, run

pytestmark = pytest.mark.workflow


def test_the_last_weights_are_kept(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Both cases of fold 0 (c0 and c4 of three folds) show nothing."""
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
    for case in range(6):
        inside = np.zeros((16, 16, 16), np.uint8)
        inside[4:9, 5:10, 6:11] = case not in (0, 4)
        noise = np.random.default_rng(case).normal(0, 1, inside.shape)
        nib.save(
            nib.Nifti1Image((noise + 9 * inside).astype("f4"), np.eye(4)), tmp_path / f"images/c{case}.nii"
        )
        nib.save(nib.Nifti1Image(inside, np.eye(4)), tmp_path / f"labels/c{case}.nii")
    datalist(tmp_path / "list", images=tmp_path / "images", labels=tmp_path / "labels", folds=3)
    places = {"dataset_dir": str(tmp_path / "list"), "output_dir": str(tmp_path / "run")}
    short = {"max_epochs": 3, "val_interval": 1, "patience": 2, "device": "cpu"}
    run("train", str(tmp_path / "list/task.json"), **{**TINY[3], **places, **short})
    last = torch.load(tmp_path / "run/checkpoints/last.pt", weights_only=True)
    kept = torch.load(tmp_path / "run/model.pt", weights_only=True)
    assert last["epoch"] == 3
    assert all(torch.equal(kept[name], last["network"][name]) for name in kept)
    with (tmp_path / "run/learning_curve.csv").open() as file:
        assert [row["val_mean_dice"] for row in csv.DictReader(file)] == ["", "", ""]
    said = "".join(capfd.readouterr())
    assert said.count("none of the 2 validation cases") == 1
    assert said.count("no case shows anything but background: dice is undefined") == 3
