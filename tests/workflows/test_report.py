"""`python -m bundle report` of a training that was judged: it segments its cases, and numbers agree."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import monai.bundle
import numpy as np
import pytest

import bundle.report
from scripts.errors import InputError
from scripts.judging.tables import read_means
from scripts.tables import number
from tests.commands import TINY, run, unchanged_process, workbench
from tests.html_page import Page

pytestmark = pytest.mark.workflow


@pytest.fixture(scope="module")
def trained(organ: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    where = {"dataset_dir": str(organ), "output_dir": str(folder), **TINY[3], "max_epochs": 2}
    run("train", "task/phantom_organ", **where, val_interval=1)
    run("train", "task/phantom_organ", "evaluate", **where)
    return folder


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def run_bundle(config_file: list[str], **overrides: Any) -> None:
        with unchanged_process():
            try:
                monai.bundle.run(config_file=config_file, **overrides)
            except Exception as error:
                raise InputError("the command above ended with exit status 1") from error

    monkeypatch.setattr(bundle.report, "run_bundle", run_bundle)


def test_a_training_is_reported_with_its_cases(trained: Path, organ: Path, in_this_process: None) -> None:
    said = workbench("report", trained, "--dataset_dir", organ)
    assert "2 cases to look at" in said  # of two that were held out
    page = Page((trained / "report.html").read_text(encoding="utf-8"))
    mean = read_means(trained / "evaluation/summary.json")["dice"]
    assert f"Dice is {number('dice', mean)} (95 % interval" in page.texts["summary"]
    assert "2 cases, held out for testing, which the training has not seen" in page.texts["summary"]
    assert "Not all of it is there" not in page.texts["summary"]
    (content,) = [json.loads(text) for given, text in page.scripts if given.get("id") == "viewer-data"]
    with (trained / "evaluation/scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    dice: dict[str, list[float]] = {}
    for row in rows:
        dice.setdefault(row["case"], []).append(float(row["dice"]))
    for case in content["cases"]:
        assert case["said"] == f"Dice {number('dice', float(np.mean(dice[case['id']])))}"
        assert set(case["layers"]) == {"image", "truth", "prediction", "uncertainty"}
    how = page.texts["how"]
    assert "for 2 epochs" in how
    assert "a learning rate of 0.003" in how
    assert "4, 8, 8 and 8 feature maps" in how


def test_a_recipe_that_cannot_segment_leaves_the_rest(
    trained: Path, organ: Path, in_this_process: None
) -> None:
    recipe = trained / "inference.json"
    before = recipe.read_text()
    facts = json.loads((trained / "metadata.json").read_text())
    try:
        config = json.loads(before)
        recipe.write_text(json.dumps({**config, "channels": [4, 8]}))  # not those of the weights
        (trained / "metadata.json").write_text(json.dumps({**facts, "version": "0.4.0"}))
        said = workbench("report", trained, "--dataset_dir", organ)
    finally:
        recipe.write_text(before)
        (trained / "metadata.json").write_text(json.dumps(facts))
    assert "no pictures of cases, as they could not be segmented" in said
    page = Page((trained / "report.html").read_text(encoding="utf-8"))
    assert "trained by version 0.4.0" in page.texts["how"]
    assert "scores" in page.texts
