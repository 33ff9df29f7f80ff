"""Tiny data sets that the workflows share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import monai.bundle
import pytest
import torch
from monai.bundle import ConfigParser

import bundle.runs.crossval
import bundle.runs.study
import bundle.runs.trainings
from bundle.data.phantom import Kind, write_phantom
from bundle.runs.experiments import parser_of
from scripts.recipe import for_inference
from tests.commands import ROOT, TINY, invoke, unchanged_process
from tests.workflows.packaging import CARD, package


@pytest.fixture(scope="session")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of 64 rows and 96 columns: four to train and validate on, two held out."""
    folder = tmp_path_factory.mktemp("data") / "cells"
    write_phantom(Kind.CELLS, folder, cases=6, size=(64, 96))
    return folder


@pytest.fixture(scope="session")
def organ(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Volumes of about 24 voxels, every second one oblique, all anisotropic: two held out."""
    folder = tmp_path_factory.mktemp("data") / "organ"
    write_phantom(Kind.ORGAN, folder, cases=4, size=(24, 25, 26))
    return folder


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What `study` and `crossval` run, one word each, here without a process for each."""
    done: list[str] = []
    monkeypatch.chdir(ROOT)

    def run_bundle(config_file: list[str] | None = None, warm: Any = None, **overrides: Any) -> None:
        done.append("segment" if "section" in overrides else "train")
        with unchanged_process():
            monai.bundle.run(config_file=config_file, **overrides)

    def run_python(*arguments: str, warm: Any = None) -> None:
        done.append(arguments[2])
        result = invoke(*arguments[2:])
        assert result.exit_code == 0, result.output

    for module in (bundle.runs.study, bundle.runs.crossval):
        monkeypatch.setattr(module, "run_bundle", run_bundle)
    for module in (bundle.runs.trainings, bundle.runs.crossval):
        monkeypatch.setattr(module, "run_python", run_python)
    return done


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An experiment, a card, and weights that nobody trained."""
    folder = tmp_path_factory.mktemp("package")
    experiment = {"config_file": ["configs/train.json", "configs/task/phantom_cells.json"], **TINY[2]}
    (folder / "experiment.json").write_text(json.dumps({**experiment, "output_dir": "elsewhere"}))
    (folder / "card.json").write_text(json.dumps(CARD))
    torch.manual_seed(0)
    config = for_inference(parser_of(experiment).get())
    torch.save(ConfigParser(config).get_parsed_content("network_def").state_dict(), folder / "model.pt")
    entries = [
        {"class": "mean", "score": name, "mean": mean} for name, mean in (("ap50", 0.5), ("seg", None))
    ]
    scores = {"measure": "instances", "summary": entries}
    (folder / "summary.json").write_text(json.dumps(scores))
    return folder


@pytest.fixture(scope="session")
def packaged(workshop: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("dist")
    result = package(workshop, output)
    assert result.exit_code == 0, result.output
    return output / CARD["folder"]
