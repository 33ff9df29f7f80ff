"""What passed its check is not read again until it changes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from scripts.data import checks, remembered
from scripts.data.remembered import check_remembered
from scripts.errors import InputError

SETTINGS: dict[str, Any] = {"spatial_dims": 2, "in_channels": 1, "labels": {"background": 0, "cell": 1}}


@pytest.fixture
def cases(tmp_path: Path) -> list[dict[str, str]]:
    folder = tmp_path / "data"
    folder.mkdir()
    for case in "ab":
        Image.fromarray(np.eye(8, dtype=np.uint8)).save(folder / f"{case}.png")
        Image.fromarray(np.eye(8, dtype=np.uint8)).save(folder / f"{case}_label.png")
    return [
        {"case": case, "image": str(folder / f"{case}.png"), "label": str(folder / f"{case}_label.png")}
        for case in "ab"
    ]


@pytest.fixture(autouse=True)
def loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Names of the files that were read, and a cache folder of its own."""
    files: list[str] = []
    load = checks.read_file
    monkeypatch.setattr(checks, "read_file", lambda path: files.append(Path(path).name) or load(path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return files


def read(
    cases: list[dict[str, str]], loaded: list[str], check: str = "remembered", **settings: Any
) -> list[str]:
    """Files that a check reads, and finds nothing wrong with."""
    loaded.clear()
    assert not check_remembered(cases, Path(cases[0]["image"]).parent, check, **{**SETTINGS, **settings})
    return sorted(loaded)


ALL = ["a.png", "a_label.png", "b.png", "b_label.png"]


def test_sound_files_are_read_once(cases, loaded):
    assert read(cases, loaded) == ALL
    assert read(cases, loaded) == []
    assert read(cases, loaded, "always") == ALL
    assert read(cases, loaded, "never") == []


def test_changed_file_is_read_again(cases, loaded):
    read(cases, loaded)
    file = Path(cases[1]["label"])
    before = file.stat()
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert read(cases, loaded) == ALL[2:]
    content = file.read_bytes()
    Image.fromarray(np.eye(8, dtype=np.uint8)[::-1]).save(file)
    assert len(file.read_bytes()) != len(content) or file.read_bytes() != content
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert read(cases, loaded) == ALL[2:]


def test_other_rules_are_another_check(cases, loaded, monkeypatch):
    read(cases, loaded)
    assert read(cases, loaded, labels={"background": 0, "nucleus": 1}) == ALL
    monkeypatch.setattr(remembered, "sha256", lambda file: "other code")
    assert read(cases, loaded) == ALL


def test_problems_and_warnings_are_never_remembered(cases, loaded):
    folder = Path(cases[0]["image"]).parent
    Image.fromarray(np.full((8, 8), 7, np.uint8)).save(cases[0]["label"])
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(cases[1]["label"])
    for _ in range(2):
        loaded.clear()
        found = check_remembered(cases, folder, "remembered", **SETTINGS)
        assert [problem.severity for problem in found] == ["error", "warning"]
        assert sorted(loaded) == ALL
    assert not (folder / "checked.json").exists()


def test_folder_that_cannot_be_written(cases, loaded, tmp_path, monkeypatch):
    """A folder in the place of the file stands for it; root may write everywhere."""
    (Path(cases[0]["image"]).parent / "checked.json").mkdir()
    assert read(cases, loaded) == ALL
    assert read(cases, loaded) == []
    assert len(list((tmp_path / "cache/unet-bundle").iterdir())) == 1
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    for _ in range(2):  # nowhere to be remembered
        assert read(cases, loaded) == ALL


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"passed": 3}'])
def test_unreadable_memory_is_none(content, cases, loaded):
    place = Path(cases[0]["image"]).parent / "checked.json"
    place.write_text(content)
    assert read(cases, loaded) == ALL
    assert len(json.loads(place.read_text())["passed"]) == 2


def test_processes_share_the_cases(cases, loaded, monkeypatch):
    """The second of two reads the second case, and hears of the problem that the first one found."""
    told = checks.Problem("a", "a.png", "something", "a rule", "a fix")
    monkeypatch.setattr(remembered, "rank_and_size", lambda: (1, 2))
    monkeypatch.setattr(remembered, "gather", lambda own: [([told], [], 0), own])
    folder = Path(cases[0]["image"]).parent
    assert check_remembered(cases, folder, "remembered", **SETTINGS) == [told]
    assert sorted(loaded) == ALL[2:]
    assert not (folder / "checked.json").exists()


def test_unknown_word_is_refused(cases):
    with pytest.raises(InputError, match="check is True: use 'remembered', 'always', 'never'"):
        check_remembered(cases, Path(), True, **SETTINGS)


@pytest.mark.parametrize(
    "values",
    [
        np.array([[0, 5], [5, 255]], np.uint8),
        np.array([-3, 4, 4, -3, 0], np.int16),
        np.array([0, 1 << 63, (1 << 63) + 1], np.uint64),
        np.array([0, 1 << 40, 1 << 40]),
        np.array([True, False, True]),
        np.zeros((0, 3), int),
        np.asfortranarray(np.arange(24).reshape(2, 3, 4) % 5),
    ],
)
def test_values_are_counted_as_numpy_counts_them(values):
    for found, expected in zip(
        checks._count_values(values), np.unique(values, return_counts=True), strict=True
    ):
        assert found.tolist() == expected.tolist()


@pytest.mark.parametrize("name", ["x" * 5000 + ".nii", "a\x00.nii"])
def test_a_name_that_no_file_can_have_is_told(tmp_path: Path, name: str) -> None:
    case = {"image": str(tmp_path / name), "label": str(tmp_path / name), "case": "a"}
    about: dict[str, Any] = {"spatial_dims": 3, "in_channels": 1, "labels": None}
    problems = check_remembered([case], tmp_path, "remembered", **about)
    assert [problem.severity for problem in problems] == ["error", "error"]
