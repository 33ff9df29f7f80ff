"""A case is its id, from the list to the files: folders for cases, UIDs, nnU-Net's names."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.commands import run, workbench, written

pytestmark = pytest.mark.workflow

#: A network of one convolution that says class 1 where a pixel is above the mean of its image.
THRESHOLD: dict[str, Any] = {
    "spatial_dims": 2,
    "labels": {"background": 0, "bright": 1},
    "patch_size": [16, 16],
    "output_ext": ".png",
    "geometry": [],
    "amp": False,
    "runtime": "torch",
    "network_def": {"_target_": "torch.nn.Conv2d", "in_channels": 1, "out_channels": 2, "kernel_size": 1},
}


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    network = torch.nn.Conv2d(1, 2, 1)
    with torch.no_grad():
        for values in network.parameters():
            values.zero_()
        network.weight[1] = 4.0
    torch.save(network.state_dict(), tmp_path / "threshold.pt")
    return tmp_path / "threshold.pt"


def pair(folder: Path, image: str, label: str, column: int) -> dict[str, str]:
    """A picture with a bright column, and the column."""
    array = np.zeros((16, 16), np.uint8)
    array[:, column] = 1
    for name, values in ((image, 200 * array), (label, array)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(folder / name)
    return {"image": image, "label": label}


def segment(folder: Path, output: Path, weights: Path, **more: Any) -> dict[str, int]:
    """The column of each segmentation."""
    places = {"dataset_dir": str(folder), "output_dir": str(output), "checkpoint": str(weights)}
    run("inference", **{**THRESHOLD, **places, **more})
    files = [name for name in written(output) if "_prob" not in name]
    return {name: int(np.asarray(Image.open(output / name)).any(0).argmax()) for name in files}


def described(folder: Path, testing: list[dict[str, Any]]) -> Path:
    training = [
        {**pair(folder, f"train/{name}.png", f"train/l/{name}.png", 1), "case": name} for name in ("a", "b")
    ]
    content = {"labels": {"0": "background", "1": "bright"}, "training": training, "testing": testing}
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("named", [True, False])
def test_a_folder_for_each_case(named: bool, weights: Path, tmp_path: Path) -> None:
    """One name for all images, with ids in dataset.json or without."""
    data = tmp_path / "data"
    testing = [pair(data, f"c{n}/imaging.png", f"c{n}/segmentation.png", 3 + n) for n in range(3)]
    if named:
        testing = [{**entry, "case": f"1.2.{n}"} for n, entry in enumerate(testing)]
    described(data, testing)
    found = segment(data, tmp_path / "out", weights, section="testing", save_probabilities=True)
    names = ["1.2.0", "1.2.1", "1.2.2"] if named else ["c0", "c1", "c2"]
    assert found == {f"{name}_seg.png": 3 + n for n, name in enumerate(names)}
    assert [f"{name}_prob.nii.gz" in written(tmp_path / "out") for name in names] == [True] * 3
    places = {"dataset_dir": str(data), "output_dir": str(tmp_path / "judged"), "checkpoint": str(weights)}
    run("train", "evaluate", **{**THRESHOLD, **places, "interpolation": {"image": "bilinear"}})
    options = ("--section", "testing", "--output_dir", tmp_path / "scored")
    assert "not scored" not in workbench("score", tmp_path / "out", data, *options)
    for table in (tmp_path / "judged/evaluation/scores.csv", tmp_path / "scored/scores.csv"):
        with table.open() as file:
            dice = {row["case"]: float(row["dice"]) for row in csv.DictReader(file)}
        assert dice == dict.fromkeys(names, 1)


def test_names_of_nnunet_by_section_and_by_folder(weights: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    testing = [pair(data, f"imagesTr/x{n}_0000.png", f"labelsTr/x{n}.png", 3 + n) for n in range(2)]
    described(data, testing)
    expected = {"x0_seg.png": 3, "x1_seg.png": 4}
    assert segment(data, tmp_path / "section", weights, section="testing") == expected
    assert segment(data / "imagesTr", tmp_path / "folder", weights) == expected


def test_names_with_dots(weights: Path, tmp_path: Path) -> None:
    for n, name in enumerate(("run-1.0", "run-1.5", "1.2.840.113619.2.55.3")):
        pair(tmp_path / "data", f"images/{name}.png", f"labels/{name}.png", n)
    assert segment(tmp_path / "data/images", tmp_path / "out", weights) == {
        "1.2.840.113619.2.55.3_seg.png": 2,
        "run-1.0_seg.png": 0,
        "run-1.5_seg.png": 1,
    }


def test_the_id_of_a_case_of_several_files(weights: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    network = torch.nn.Conv2d(2, 2, 1)
    torch.save(network.state_dict(), weights)
    testing = []
    for n in range(2):
        entry = pair(data, f"p{n}/flair.png", f"p{n}/truth.png", 3)
        pair(data, f"p{n}/t1.png", f"p{n}/truth.png", 3)
        testing.append({**entry, "image": [entry["image"], f"p{n}/t1.png"]})
    described(data, testing)
    network_def = {**THRESHOLD["network_def"], "in_channels": 2}
    segment(data, tmp_path / "out", weights, section="testing", in_channels=2, network_def=network_def)
    assert written(tmp_path / "out") == ["p0_seg.png", "p1_seg.png"]
