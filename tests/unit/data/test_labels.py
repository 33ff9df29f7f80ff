"""Labels as trainings read them: whole numbers, whatever their size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import Compose
from PIL import Image

from scripts.data import LoadLabeld
from scripts.data.checks import read_label
from scripts.errors import Fault
from scripts.labels import UNKNOWN_OBJECT
from scripts.transforms import InstancesToClassesd, IsolatedSpacingd

LABELS = {"background": 0, "organ": 1}
HUGE = 720575940379279312  # a number of a neuron in electron microscopy; float64 cannot tell it from the next


def nifti(path: Path, values: np.ndarray, slope: float | None = None) -> Path:
    image = nib.Nifti1Image(values, np.diag([2.0, 3.0, 4.0, 1.0]), dtype=values.dtype)
    if slope:
        image.header.set_slope_inter(slope, 0)
    nib.save(image, path)
    return path


@pytest.fixture
def block() -> np.ndarray:
    values = np.zeros((4, 5, 6), np.int16)
    values[1:3, 2:4, 3] = 1
    return values


def load(path: Path, **settings: Any) -> torch.Tensor:
    return LoadLabeld("label", **{"labels": LABELS, **settings})({"label": str(path)})["label"]


def test_whole_to_within_rounding(block: np.ndarray, tmp_path: Path) -> None:
    """0 and 255 with a slope of 1/255, and floats just below and above."""
    path = nifti(tmp_path / "slope.nii.gz", block * 255, slope=1 / 255)
    assert np.asanyarray(nib.load(path).dataobj).max() != 1  # not whole in the file
    below = nifti(tmp_path / "float.nii.gz", np.where(block, 0.9999999, -1e-7).astype(np.float32))
    for file in (path, below):
        loaded = load(file)
        assert loaded.dtype == torch.int32
        assert np.array_equal(loaded[0], block)
        assert np.array_equal(read_label(file, LABELS)[0], block)
    assert np.array_equal(loaded.affine, np.diag([2.0, 3.0, 4.0, 1.0]))
    assert loaded.meta["filename_or_obj"] == str(below)


@pytest.mark.parametrize(("value", "shown"), [(1.002, "1.002"), (0.9985, "0.9985"), (123456.25, "123456.25")])
def test_a_fraction_is_shown_with_its_digits(
    value: float, shown: str, block: np.ndarray, tmp_path: Path
) -> None:
    path = nifti(tmp_path / "a.nii.gz", np.where(block, value, 0.0))
    with pytest.raises(Fault, match=rf"a\.nii\.gz: found 1 different fractional values such as {shown}; "):
        load(path)


@pytest.mark.parametrize(("first", "dtype"), [(2**24, np.int32), (HUGE, np.int64), (2**63, np.uint64)])
def test_two_cells_with_large_numbers_stay_two(first: int, dtype: Any, tmp_path: Path) -> None:
    values = np.zeros((8, 9, 5), dtype)
    values[1:4, 1:8, 1:4], values[4:7, 1:8, 1:4] = first, first + 1
    path = nifti(tmp_path / "a.nii.gz", values)
    assert np.unique(read_label(path, instances=True)[0]).tolist() == [0, first, first + 1]
    loaded = load(path, instances=True)
    assert np.array_equal(loaded[0], np.where(values, values - np.array(first - 1, dtype), 0))
    resampled = IsolatedSpacingd("label", pixdim=[2.0, 3.0, 4.0], mode="nearest")
    classes = Compose([resampled, InstancesToClassesd("label")])({"label": loaded})["label"][0]
    assert classes[2:6, 4, 2].tolist() == [1, 2, 2, 1]  # the border between the two


def test_a_class_of_a_large_value_is_named_exactly(block: np.ndarray, tmp_path: Path) -> None:
    path = nifti(tmp_path / "a.nii.gz", block.astype(np.int32) * (2**24 + 1))
    with pytest.raises(Fault, match=r"a\.nii\.gz: found label values 16777217 that are not declared"):
        load(path)


def test_pictures(tmp_path: Path) -> None:
    values = np.arange(12, dtype=np.uint16).reshape(3, 4)
    Image.fromarray(values).save(tmp_path / "a.png")
    loaded = load(tmp_path / "a.png", instances=True)
    assert np.array_equal(loaded[0], values.T)


def test_objects_that_nobody_annotated(tmp_path: Path) -> None:
    """Whatever their number is, and however large those of the others are."""
    values = np.array([[0, 7, 255], [255, 2**24 + 5, 300]], np.int32)
    picture = nifti(tmp_path / "a.nii.gz", np.stack([values] * 2))
    loaded = load(picture, instances=True, labels={"background": 0, "interior": 1, "ignore": 255})
    assert loaded[0, 0].tolist() == [[0, 1, UNKNOWN_OBJECT], [UNKNOWN_OBJECT, 3, 2]]
    with pytest.raises(Fault, match="the value 7 everywhere"):
        load(nifti(tmp_path / "b.nii.gz", np.full((2, 3, 4), 7, np.int16)), labels={**LABELS, "ignore": 7})
