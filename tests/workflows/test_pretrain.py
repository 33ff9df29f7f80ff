"""Masked pre-training on images alone, and a training that begins with its weights."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch

from tests.commands import TINY, run

pytestmark = pytest.mark.workflow


@pytest.mark.parametrize("dims", [2, 3])
def test_images_teach_a_network_that_a_training_begins_with(
    dims: int, cells: Path, organ: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data, task = (cells, "task/phantom_cells") if dims == 2 else (organ, "task/phantom_organ")
    before, after = tmp_path / "before", tmp_path / "after"
    own = {"max_epochs": 2, "val_interval": 1, **TINY[dims]}
    images = data / "imagesTr"  # where there is no label
    run("train", task, "pretrain", dataset_dir=str(images), output_dir=str(before), mask_block=4, **own)
    with (before / "learning_curve.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert all(float(row["val_explained_variance"]) <= 1 for row in rows)
    run(
        *("train", task),
        dataset_dir=str(data),
        output_dir=str(after),
        initial_weights=str(before / "model.pt"),
        learning_rate=0.0,
        **own,
    )
    given, kept = (torch.load(folder / "model.pt", weights_only=True) for folder in (before, after))
    anew = [name for name in kept if given[name].shape != kept[name].shape]
    assert anew
    assert all(name.startswith("heads.") for name in anew)
    assert all(torch.equal(kept[name], given[name]) for name in kept if name not in anew)
    assert f"drawn anew: {anew[0]}" in "".join(capfd.readouterr())
    assert "initial_weights" not in json.loads((after / "inference.json").read_text())


def test_labels_of_a_data_set_are_not_read(organ: Path, tmp_path: Path) -> None:
    """Whatever they hold, and whether they are there."""
    description = json.loads((organ / "dataset.json").read_text())
    cases = [
        {"image": str(organ / entry["image"]), "label": "nowhere.nii.gz"} for entry in description["training"]
    ]
    (tmp_path / "data").mkdir()
    (tmp_path / "data/dataset.json").write_text(json.dumps({"training": cases[1:], "validation": cases[:1]}))
    places = {"dataset_dir": str(tmp_path / "data"), "output_dir": str(tmp_path / "out")}
    run("train", "task/phantom_organ", "pretrain", **places, max_epochs=1, mask_block=4, **TINY[3])
    assert (tmp_path / "out/model.pt").is_file()
