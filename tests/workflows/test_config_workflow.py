"""The bundle as the Model Zoo's tests use it: several workflows in one process, the bundle's folder relative.

Source: ci/unit_tests of github.com/Project-MONAI/model-zoo: `ConfigWorkflow` with overrides, initialize,
check_properties, run, finalize.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from monai.bundle import ConfigWorkflow

from tests.commands import ROOT, TINY, unchanged_process, written

pytestmark = [pytest.mark.workflow, pytest.mark.filterwarnings("ignore:parsing config_file")]


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A working directory that is not the bundle's, and the process as it was."""
    monkeypatch.chdir(ROOT.parent)
    with unchanged_process():
        yield


def overrides(data: Path, output: Path) -> dict[str, Any]:
    """What the Zoo's tests set: folders, an epoch, two cases to train and validate on."""
    listed = json.loads((data / "dataset.json").read_text())["training"]
    cases = [{key: str(data / case[key]) for key in ("image", "label")} for case in listed]
    return {
        **TINY[2],
        "bundle_root": ROOT.name,
        "dataset_dir": os.path.relpath(data),
        "output_dir": os.path.relpath(output),
        "train#trainer#max_epochs": 1,
        "train#dataset#data": cases[:2],
        "train#dataset#cache_rate": 0.0,
        "train#dataloader#num_workers": 0,
    }


def go_through(workflow_type: str, *files: str, **changed: Any) -> ConfigWorkflow:
    """What the Zoo does with each workflow."""
    workflow = ConfigWorkflow(
        workflow_type=workflow_type,
        config_file=[f"{ROOT.name}/configs/{file}" for file in files],
        logging_file=f"{ROOT.name}/configs/logging.conf",
        meta_file=f"{ROOT.name}/configs/metadata.json",
        **changed,
    )
    workflow.initialize()
    assert workflow.check_properties() == []
    workflow.run()
    workflow.finalize()
    return workflow


def test_train_evaluate_and_infer_in_one_process(cells: Path, tmp_path: Path) -> None:
    """The Zoo's tests call an evaluation on top of train.json a training too."""
    task, given = "task/phantom_cells.json", overrides(cells, tmp_path)
    trained = go_through("train", "train.json", task, **given)
    assert trained.max_epochs == 1
    assert len(trained.train_dataset) == 2

    files = {key: str(cells / f"{key}sTs/cells_005.png") for key in ("image", "label")}
    scores = tmp_path / "evaluation/scores.csv"
    for workflow_type, chosen, cases in (
        ("train", {"validate#dataset#data": [{**files, "case": "cells_005"}]}, ["cells_005"]),
        ("evaluation", {}, ["cells_004", "cells_005"]),
    ):
        go_through(workflow_type, "train.json", task, "evaluate.json", **given, **chosen)
        with scores.open() as file:
            assert sorted({row["case"] for row in csv.DictReader(file)}) == cases

    given |= {
        "checkpoint": f"{given['output_dir']}/model.pt",
        "dataset_dir": f"{given['dataset_dir']}/imagesTs",
    }
    given = {key: value for key, value in given.items() if not key.startswith("train#")}
    go_through("infer", "inference.json", task, **given | {"output_dir": f"{given['output_dir']}/segmented"})
    assert written(tmp_path / "segmented") == ["cells_004_seg.png", "cells_005_seg.png"]
    assert {"model.pt", "learning_curve.csv"} <= set(written(tmp_path))
