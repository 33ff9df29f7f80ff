"""An epoch on a few real cases, by way of the data list command."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.commands import SHARED_DATA, datalist, read_array, run, written

pytestmark = [pytest.mark.workflow, pytest.mark.data]

#: Folder of the data set, of its images and labels, how files end, the labels, and the task's overlay.
SETS: dict[str, tuple[str, str, str, str, str, list[str], dict[str, Any]]] = {
    "hippocampus": (
        "msd_task04_hippocampus",
        "imagesTr",
        "labelsTr",
        ".nii.gz",
        ["background=0", "anterior=1", "posterior=2"],
        [],
        {"patch_size": [16, 16, 16]},
    ),
    "em_membrane": (
        "isbi2012_em",
        "images",
        "labels",
        ".png",
        ["membrane=0", "cell=255"],
        ["task/em_membrane"],
        {"patch_size": [128, 128]},
    ),
}


@pytest.mark.parametrize("name", SETS)
def test_an_epoch_on_four_cases(name: str, tmp_path: Path) -> None:
    folder, images, labels, ending, label_names, overlays, size = SETS[name]
    source = SHARED_DATA / folder
    if not source.is_dir():
        pytest.skip(f"shared data set {folder} is not here")
    fixed = json.loads((source / "splits.json").read_text(encoding="utf-8"))
    few = {"train": fixed["train"][:2], "val": fixed["val"][:1], "test": fixed["test"][:1]}
    (tmp_path / "splits.json").write_text(json.dumps(few), encoding="utf-8")
    for kind in (images, labels):
        (tmp_path / kind).mkdir()
        for case in (case for cases in few.values() for case in cases):
            (tmp_path / kind / f"{case}{ending}").symlink_to((source / kind / f"{case}{ending}").resolve())

    data = tmp_path / "list"
    datalist(
        data,
        images=tmp_path / images,
        labels=tmp_path / labels,
        splits=tmp_path / "splits.json",
        label_name=label_names,
    )
    run(
        *("train", *overlays),
        **size,
        channels=[4, 8, 8, 8],
        samples_per_case=1,
        dataset_dir=str(data),
        output_dir=str(tmp_path / "out"),
        max_epochs=1,
        val_interval=1,
    )
    with (tmp_path / "out/learning_curve.csv").open() as table:
        (row,) = csv.DictReader(table)
    assert np.isfinite(float(row["loss"]))
    listed = json.loads((data / "dataset.json").read_text(encoding="utf-8"))
    cases = [
        [Path(entry["image"]).name for entry in listed[kind]]
        for kind in ("training", "validation", "testing")
    ]
    assert cases == [[f"{case}{ending}" for case in few[kind]] for kind in ("train", "val", "test")]

    run(
        *("inference", *overlays),
        **size,
        channels=[4, 8, 8, 8],
        dataset_dir=str(tmp_path / images),
        output_dir=str(tmp_path / "seg"),
        checkpoint=str(tmp_path / "out/model.pt"),
    )
    sources = sorted((tmp_path / images).iterdir())
    assert written(tmp_path / "seg") == [file.name.replace(ending, f"_seg{ending}") for file in sources]
    for file in sources:
        made = read_array(tmp_path / "seg" / file.name.replace(ending, f"_seg{ending}"))
        assert made.shape == read_array(file).shape
