"""A data worker that dies or fails, and files that vanish or change, are named with their case."""

from __future__ import annotations

import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from scripts.data import CachedCases, read_split
from scripts.data.checks import Problem
from tests.commands import TINY, input_error, run

pytestmark = pytest.mark.workflow


@pytest.fixture
def copied(cells: Path, tmp_path: Path) -> Path:
    """The cells, to be spoilt."""
    return shutil.copytree(cells, tmp_path / "cells")


def images(data: Path, section: str) -> list[Path]:
    """Images of a section of the data."""
    split = read_split(data, spatial_dims=2, in_channels=1, labels={}, instances=True, check="never")
    return [Path(case["image"]) for case in split[section]]


def said(data: Path, tmp_path: Path, **ids: Any) -> str:
    """The sentence with which a training ends."""
    with pytest.raises(RuntimeError) as caught:
        run(
            *("train", "task/phantom_cells"),
            **{**TINY[2], "max_epochs": 3, "val_interval": 1, "check": "never", **ids},
            dataset_dir=str(data),
            output_dir=str(tmp_path / "out"),
        )
    return input_error(caught.value)


def spoil_at(monkeypatch: pytest.MonkeyPatch, count: int, spoil: Any) -> None:
    """Call something before the n-th case is drawn."""
    transform, drawn = CachedCases._transform, []

    def spoilt(self: CachedCases, index: int) -> Any:
        drawn.append(index)
        if len(drawn) == count:
            spoil()
        return transform(self, index)

    monkeypatch.setattr(CachedCases, "_transform", spoilt)


def test_the_case_of_a_killed_worker(copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the system kills what asks for more memory than there is."""
    named = CachedCases._named

    def killed(self: CachedCases, index: int, cached: bool = False) -> Any:
        if os.getpid() != main and self._name(index) == victim:
            os.kill(os.getpid(), signal.SIGKILL)
        return named(self, index, cached)

    main, victim = os.getpid(), images(copied, "training")[-1].stem
    monkeypatch.setattr(CachedCases, "_named", killed)
    sentence = said(copied, tmp_path, num_workers=1)
    assert re.match(
        rf"a data worker died \(process \d+\); the latest case that it prepared is {victim}; most often",
        sentence,
    )


def vanish(file: Path) -> str:
    file.unlink()
    return "found no such file"


def cut(file: Path) -> str:
    file.write_bytes(file.read_bytes()[:200])
    return "found a file that was changed since it was checked"


def reshape(file: Path) -> str:
    Image.fromarray(np.zeros((50, 40), np.uint8)).save(file)
    return "found a file that was changed since it was checked"


@pytest.mark.parametrize("spoil", [vanish, cut, reshape])
@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_file_that_is_spoilt_under_a_training(
    spoil: Any, num_workers: int, copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, found = images(copied, "training")[0], []
    spoil_at(monkeypatch, 1, lambda: found.append(spoil(image)) or file.write_text(found[0]))
    file = tmp_path / "found"
    sentence = said(copied, tmp_path, num_workers=num_workers, cache_rate=0.0)
    assert sentence.startswith(f"case {image.stem}: {image}: {file.read_text()}; ")
    assert "\n" not in sentence


def test_in_a_validation_too(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    image = images(copied, "validation")[0]
    spoil_at(monkeypatch, 1, lambda: vanish(image))
    assert said(copied, tmp_path, cache_rate=0.0).startswith(
        f"case {image.stem}: {image}: found no such file"
    )
    assert "Traceback" not in caplog.text


def test_between_check_and_cache(copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a case of a validation that is not due yet: it is loaded after the first step."""
    image, take = images(copied, "validation")[0], CachedCases.set_data

    def spoilt(self: CachedCases, data: Any) -> None:
        take(self, data)
        if image.stem in [str(case["case"]) for case in data]:
            cut(image)

    monkeypatch.setattr(CachedCases, "set_data", spoilt)
    sentence = said(copied, tmp_path, val_interval=3)
    assert sentence.startswith(f"case {image.stem}: {image}: found a file that was changed")
    assert not (tmp_path / "out" / "learning_curve.csv").exists()


@pytest.mark.long
def test_while_it_is_checked(copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image, check = images(copied, "training")[0], "scripts.data.remembered.check_cases"

    def check_and_spoil(cases: Any, **_: Any) -> list[Problem]:
        reshape(image)
        return []

    monkeypatch.setattr(check, check_and_spoil)
    sentence = said(copied, tmp_path, check="always")
    assert "an image or label that was changed while it was checked" in sentence
    assert image.name in sentence
    assert not (copied / "checked.json").exists() or image.stem not in (copied / "checked.json").read_text()


def test_a_failing_transform_names_the_case(copied: Path, tmp_path: Path) -> None:
    """What is no fault of a file keeps its traceback."""
    with pytest.raises(RuntimeError) as caught:
        run(
            *("train", "task/phantom_cells"),
            **{**TINY[2], "check": "never", "intensity": ["$lambda data: 1 / 0"], "num_workers": 1},
            dataset_dir=str(copied),
            output_dir=str(tmp_path / "out"),
        )
    causes, error = [], caught.value
    while error:
        causes.append(str(error))
        error = error.__cause__ or error.__context__
    assert any(re.search(r"case \w+ could not be prepared: ", cause) for cause in causes), causes
