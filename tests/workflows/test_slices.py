"""Volumes of few thick slices: planned, trained and segmented slice by slice, read and written as volumes."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from tests.commands import datalist, run

pytestmark = pytest.mark.workflow


def stack(case: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A bright disk in some slices of a stack. In odd cases it is turned, so that slices lie across another
    axis of the body."""
    rng = np.random.default_rng(case)
    rows, columns = np.mgrid[:34, :30]
    label = np.zeros((34, 30, 5 + case % 2), np.uint8)
    for z in range(1, label.shape[2] - 1):
        place = rng.uniform(10, 20, 2)
        label[..., z] = np.hypot(rows - place[0], columns - place[1]) < rng.uniform(4, 8)
    image = (rng.normal(0, 1, label.shape) + 6 * label).astype(np.float32)
    affine = np.eye(4)
    turn = Rotation.from_rotvec([1.3 * (case % 2), 0, 0]).as_matrix()
    affine[:3, :3] = turn * [1.5, 1.4 + 0.05 * case, 9.0 + case % 3]
    return image, label, affine


def overlap(predicted: np.ndarray, label: np.ndarray) -> float:
    """Dice of class 1."""
    return float(2 * ((predicted == 1) & (label == 1)).sum() / ((predicted == 1).sum() + label.sum()))


def test_from_stacks_to_stacks(tmp_path: Path) -> None:
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
    for case in range(6):
        image, label, affine = stack(case)
        nib.save(nib.Nifti1Image(image, affine), tmp_path / f"images/c{case}.nii.gz")
        nib.save(nib.Nifti1Image(label, affine), tmp_path / f"labels/c{case}.nii.gz")
    options = {"images": tmp_path / "images", "labels": tmp_path / "labels"}
    datalist(tmp_path / "list", **options, folds=3)
    task = json.loads((tmp_path / "list/task.json").read_text())
    assert task["network_def::slice_axis"] == 2
    assert "axes are those of the files" in task["_reasons"]["geometry"]
    assert task["patch_size"] == [32, 28, 1]

    places = {"dataset_dir": str(tmp_path / "list"), "output_dir": str(tmp_path / "run"), "device": "cpu"}
    small = {"channels": [4, 8], "network_def::strides": 2, "intensity": [], "learning_rate": 0.02}
    short = {"max_epochs": 10, "val_interval": 10}
    run("train", str(tmp_path / "list/task.json"), **places, **small, **short)
    places = {"dataset_dir": str(tmp_path / "images"), "output_dir": str(tmp_path / "out")}
    run(str(tmp_path / "run/inference.json"), **places)
    for case in range(6):
        _, label, affine = stack(case)
        found = nib.load(tmp_path / f"out/c{case}_seg.nii.gz")
        np.testing.assert_allclose(found.affine, affine, atol=1e-5)
        predicted = np.asarray(found.dataobj)
        assert predicted.shape == label.shape
        assert overlap(predicted, label) > 0.6, case
        assert all(overlap(predicted, label) > overlap(np.flip(predicted, axis), label) for axis in range(3))
