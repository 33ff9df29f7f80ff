"""Layers for the viewers: the place of what is left of a volume, colours, outlines, how unsure."""

from __future__ import annotations

import base64
import gzip
import io
import json
import math
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from bundle.report import files_of
from bundle.report.layers import encoded, fitted, palette, read_shown, thinned
from scripts.errors import Fault
from tests.report_folders import CASES, LABELS, listed, write_crossval, write_data


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("layers")
    write_crossval(write_data(made), made)
    return made


def shown(folder: Path, place: int):
    case = listed(folder / "data")[place]
    case["image"] = str(folder / "data" / case["image"])
    return read_shown("worst", case, files_of(folder / "folds/out_of_fold", case["case"]), LABELS, False)


def decoded(text: str) -> nib.Nifti1Image:
    return nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(text)))


def test_layers_of_a_volume(folder: Path) -> None:
    case = shown(folder, 2)
    layers = {name: decoded(text) for name, text in encoded(case, 1).items()}
    truth = nib.Nifti1Image.from_filename(folder / "data/labels/2.nii.gz")
    label = np.asarray(truth.dataobj)
    assert all(np.allclose(layer.affine, truth.affine) for layer in layers.values())
    assert np.array_equal(np.asarray(layers["prediction"].dataobj), np.roll(label, 2, axis=1))
    outline = np.asarray(layers["truth"].dataobj)
    inside = np.zeros_like(label, bool)
    for axis in range(3):
        for step in (-1, 1):
            inside |= np.roll(label, step, axis) != label
    assert np.array_equal(outline, label * inside)
    probabilities = np.asarray(
        nib.Nifti1Image.from_filename(folder / "folds/out_of_fold/c_prob.nii.gz").dataobj, float
    )
    entropy = -(probabilities * np.log(probabilities)).sum(-1) / math.log(3)
    assert np.abs(np.asarray(layers["uncertainty"].dataobj) / 255 - entropy).max() < 0.01
    image = np.asarray(layers["image"].dataobj)
    assert (image.min(), image.max()) == (0, 255)
    assert image[label == 2].mean() > image[label == 1].mean() > image[label == 0].mean()


def test_what_is_left_of_a_volume_lies_where_it_lay(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bundle.report.layers.SHORT_AXIS", 12)
    case = shown(folder, 0)
    assert thinned(case, 3)["prediction"].shape == (7, 6, 10)  # of 20, 18 and 10, which is short
    layer = decoded(encoded(case, 3)["prediction"])
    for voxel in ((0, 0, 0), (4, 2, 7)):
        before = np.array(voxel) * [3, 3, 1] + [1, 1, 0]
        assert np.allclose(layer.affine @ [*voxel, 1], case.affine @ [*before, 1])
        assert np.asarray(layer.dataobj)[voxel] == case.case.pred[tuple(before)]
    layers, step = fitted([case], 3000)
    assert step > 1
    assert sum(map(len, layers[0].values())) <= 3000


def test_layers_of_a_picture(tmp_path: Path) -> None:
    label = np.zeros((20, 30), np.uint8)
    label[5:12, 3:9] = 7
    Image.fromarray(label).save(tmp_path / "p_seg.png")
    colours = np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)
    Image.fromarray(colours).save(tmp_path / "p.png")
    case = {"case": "p", "image": str(tmp_path / "p.png")}
    one = read_shown("best", case, {"seg": tmp_path / "p_seg.png"}, {"background": 0, "cell": 7}, False)
    layers = {
        name: np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))
        for name, text in encoded(one, 1).items()
    }
    assert list(layers) == ["image", "prediction"]
    assert np.array_equal(layers["image"], colours)
    assert np.array_equal(layers["prediction"][..., 3] > 0, label > 0)
    assert layers["prediction"][6, 4, :3].tolist() == palette()[0]
    json.dumps(palette())


def test_an_image_on_another_grid_is_refused(folder: Path, tmp_path: Path) -> None:
    case = listed(folder / "data")[1]
    other = tmp_path / "other.nii.gz"
    nib.save(nib.Nifti1Image(np.zeros((5, 5, 5), np.float32), np.eye(4)), other)
    files = files_of(folder / "folds/out_of_fold", CASES[1])
    with pytest.raises(Fault, match="where the segmentation has"):
        read_shown("worst", {**case, "image": str(other)}, files, LABELS, False)
