"""A disk that is full at any write: one sentence, whole files, and what was there before."""

from __future__ import annotations

import csv
import json
import random
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from PIL import Image

from scripts.files import sha256
from tests.commands import TINY, config_files, written
from tests.faults.killing import Killer
from tests.workflows.packaging import CARD

#: Disks of as many sizes for each command.
DISKS = 6

NETWORK = {key: TINY[2][key] for key in ("patch_size", "channels")}
TASK = "task/phantom_cells"


@pytest.fixture(scope="module")
def trained(runs: Killer, cells: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training of two epochs, and what its package needs."""
    folder = tmp_path_factory.mktemp("trained")
    ids = {**TINY[2], "max_epochs": 2, "val_interval": 1, "dataset_dir": str(cells)}
    assert runs.run(folder / "out", config_files("train", TASK), ids=ids).status == 0
    experiment = {"config_file": ["configs/train.json", "configs/task/phantom_cells.json"], **TINY[2]}
    (folder / "experiment.json").write_text(json.dumps({**experiment, "output_dir": "elsewhere"}))
    (folder / "card.json").write_text(json.dumps(CARD))
    return folder


def commands(trained: Path, cells: Path, output: Path) -> dict[str, dict[str, Any]]:
    """What `Killer.run` takes, by what a report calls it."""
    weights, data = trained / "out/model.pt", str(cells)
    of_training = {**TINY[2], "max_epochs": 4, "val_interval": 1, "dataset_dir": data, "resume": True}
    of_results = {**NETWORK, "checkpoint": str(weights)}
    given = ("--args_file", trained / "experiment.json", "--checkpoint", weights)
    return {
        "training": {"files": config_files("train", TASK), "ids": of_training},
        "evaluation": {
            "files": config_files("train", TASK, "evaluate"),
            "ids": {**of_results, "dataset_dir": data, "section": "validation"},
        },
        "inference": {
            "files": config_files("inference", TASK),
            "ids": {**of_results, "dataset_dir": str(cells / "imagesTr"), "save_probabilities": True},
        },
        "datalist": {
            "arguments": (
                *("datalist", "--images", cells / "imagesTr", "--labels", cells / "labelsTr"),
                *("--instances", "--folds", 2, "--output_dir", output),
            )
        },
        "score": {
            "arguments": (
                *("score", cells / "labelsTr", cells / "labelsTr", "--output_dir", output),
                *("--measure", "instances", "--images", cells / "imagesTr"),
            )
        },
        "tune": {"arguments": ("tune", *given, "--dataset_dir", data, "--output_dir", output)},
        "package": {
            "arguments": ("package", *given, "--card", trained / "card.json", "--output_dir", output)
        },
        "export": {"arguments": ("export", *given, "--output_dir", output, "--format", "torchscript")},
    }


NAMES = list(commands(Path(), Path(), Path()))


def require_whole(file: Path) -> None:
    """Read a file to its end."""
    if file.suffix == ".json":
        json.loads(file.read_text())
    elif file.suffix == ".pt":
        torch.load(file, weights_only=True)
    elif file.suffix == ".safetensors":
        safetensors.torch.load_file(file)
    elif file.suffix == ".png":
        Image.open(file).load()
    elif file.suffix == ".csv":
        rows = list(csv.reader(file.open()))
        assert len({len(row) for row in rows}) == 1, file
    elif file.suffix == ".zip":
        assert zipfile.ZipFile(file).testzip() is None


@pytest.mark.parametrize("name", NAMES)
def test_full_disk(
    name: str,
    runs: Killer,
    trained: Path,
    cells: Path,
    disk: Path,
    seed: int,
    report: Callable[..., None],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    output = disk / "out"
    command = commands(trained, cells, output)[name]
    if name == "training":  # goes on from the second epoch
        shutil.copytree(trained / "out", output)
    before = {file: sha256(output / file) for file in written(output)} if output.exists() else {}
    usual = tmp_path_factory.mktemp("usual") / "out"
    if before:
        shutil.copytree(output, usual)
    whole = runs.run(usual, **commands(trained, cells, usual)[name])
    assert whole.status == 0, whole
    needed = sum(file.stat().st_size for file in usual.rglob("*") if file.is_file())
    needed -= sum((output / file).stat().st_size for file in before)

    draw, refused = random.Random(f"{seed} {name}"), 0
    for _ in range(DISKS):
        if not before:
            shutil.rmtree(output, ignore_errors=True)
        room = shutil.disk_usage(disk).free - draw.randrange(max(needed, 1))
        (disk / "filler").write_bytes(bytes(room))
        ended = runs.run(output, **command)
        (disk / "filler").unlink()
        for file in written(output) if output.exists() else ():
            assert not Path(file).name.startswith("."), file
            require_whole(output / file)
        if ended.status == 0:
            continue
        refused += 1
        assert ended.status == 1, ended
        lines = ended.said.splitlines()
        assert "Traceback" not in ended.said, ended
        assert any("disk" in line and "full" in line for line in lines[-3:]), ended
        assert before.keys() <= set(written(output)) if before else True
    assert refused, "no disk was small enough"
    report(f"- full disk, {name}: {refused} of {DISKS} disks were too small; each said so in a sentence.")
