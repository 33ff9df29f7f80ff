"""Whether two trainings are the same one, bit by bit, by all that they left in their output folders."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from scripts.files import sha256
from tests.commands import config_files, written
from tests.faults.killing import Ending, Killer

#: Ids of a training of seconds, with dropout and with several steps an epoch.
IDS: dict[str, Any] = {
    **{"patch_size": [32, 32], "channels": [4, 8, 8, 8], "samples_per_case": 2, "batch_size": 2},
    **{"val_interval": 2, "network_def::dropout": 0.2, "steps_per_epoch": 4},
}


def train(runs: Killer, data: Path, output: Path, amp: bool, epochs: int = 4, **how: Any) -> Ending:
    """Train in bfloat16 or in float32, and go on where there is a checkpoint."""
    ids = {**IDS, "max_epochs": epochs, "amp": amp, "dataset_dir": str(data), "resume": True}
    return runs.run(output, config_files("train", "task/phantom_cells"), ids=ids, **how)


def assert_same(found: Path, expected: Path) -> None:
    """Weights, moments, best epoch, recipe, learning curve, scalars and names of files."""
    assert _names(found) == _names(expected)
    one, other = (_load(folder / "checkpoints/last.pt") for folder in (found, expected))
    for state in (one, other):
        state["curve"] = None  # holds times
    _assert_equal(one, other, "last.pt")
    for name in ("model.pt", "model.safetensors", "inference.json", "metadata.json"):
        assert sha256(found / name) == sha256(expected / name), name
    assert _curve(found) == _curve(expected)
    assert _scalars(found) == _scalars(expected)
    assert len(_scalars(found)) == len(set(_scalars(found)))


def _assert_equal(found: Any, expected: Any, name: str) -> None:
    if isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected), name
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys(), name
        for key, value in expected.items():
            _assert_equal(found[key], value, f"{name} {key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), name
        for index, both in enumerate(zip(found, expected, strict=True)):
            _assert_equal(*both, f"{name} {index}")
    else:
        assert found == expected, name


def _load(file: Path) -> dict[str, Any]:
    return torch.load(file, weights_only=True)


def _names(folder: Path) -> list[str]:
    """Every file, hidden ones too, without the process and the time in the name of TensorBoard's."""
    return [re.sub(r"tfevents\..*", "tfevents", name) for name in written(folder)]


def _curve(folder: Path) -> list[dict[str, str]]:
    with (folder / "learning_curve.csv").open() as file:
        return [{key: row[key] for key in row if key != "minutes"} for row in csv.DictReader(file)]


def _scalars(folder: Path) -> list[tuple[str, int, float]]:
    """Tag, step and value of every scalar, in the order in which they stand."""
    (file,) = (folder / "tensorboard").iterdir()
    return [
        (value.tag, event.step, value.tensor.float_val[0])
        for event in EventFileLoader(str(file)).Load()
        for value in event.summary.value
    ]
