"""Tasks with networks and losses: an epoch of training, a validation; with networks an inference."""

from __future__ import annotations

import csv
import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bundle.data.phantom import Kind, write_phantom
from tests.commands import CONFIGS, TINY, read_array, run, written

pytestmark = pytest.mark.workflow

TASKS = {"phantom_cells": (Kind.CELLS, (64, 72)), "phantom_organ": (Kind.ORGAN, (24, 25, 26))}
DIMS = {task: len(size) for task, (_, size) in TASKS.items()}

#: Small channels in the form of the published networks, and a legal patch. With valid convolutions three
#: levels take 4n + 12 voxels and give 4n - 28, with two convolutions of 3 a level. Strides where they are a
#: list.
VALID: dict[str | None, dict[int, dict[str, Any]]] = {
    "dcsau": {dims: {"channels": [8, 8, 16], "decoder_channels": [8, 8]} for dims in (2, 3)},
    "fcdensenet": {
        dims: {"channels": [[4, 4], [4], [4, 4]], "decoder_channels": [[4, 4], [4]]} for dims in (2, 3)
    },
    "diffusion": {dims: {"samples": 2, "sampling_steps": 2} for dims in (2, 3)},
    "directions": {
        2: {},
        3: {
            "labels": {
                **{"background": 0, "lower_0": 1, "higher_0": 2, "lower_1": 3, "higher_1": 4},
                **{"lower_2": 5, "higher_2": 6},
            }
        },
    },
    "mss": {
        2: {"network_def::strides": 2, "heads_loss::heads": {}},
        3: {"network_def::strides": [[2, 2, 1], 2, 2], "heads_loss::heads": {}},
    },
    "unet2015": {
        2: {"patch_size": [104, 104], "channels": [4, 8, 8]},
        3: {"patch_size": [68, 68, 60], "channels": [2, 4, 4]},
    },
    "unet3d2016": {
        2: {"patch_size": [104, 104], "channels": [[2, 4], [4, 8], [8, 8]]},
        3: {"patch_size": [68, 68, 60], "channels": [[1, 2], [2, 4], [4, 4]]},
    },
}

#: Networks that number objects, whatever the labels of the task.
NUMBERING = {"directions", "dual_decoder", "star_convex"}

#: Networks that draw samples, and write how far they lie apart.
SAMPLING = {"diffusion"}

#: Small ones of networks that `channels` does not describe, in either dimension.
SMALL: dict[str, tuple[dict[int, list[int]], dict[str, Any]]] = {
    "mednext": ({2: [32, 32], 3: [32, 32, 32]}, {"network_def::init_filters": 4}),
    "pretrained_efficientnet": ({2: [64, 32], 3: [64, 32, 32]}, {"channels": [16, 24, 40, 112, 320]}),
    "pretrained_resnet": ({2: [64, 32], 3: [64, 32, 32]}, {"channels": [4, 4, 4, 4, 4]}),
    "swinunetr": ({2: [64, 32], 3: [64, 32, 32]}, {"network_def::feature_size": 12}),
    "transunet": (
        {2: [32, 32], 3: [32, 32, 32]},
        {
            **{"channels": [4, 8, 8, 8], "network_def::bottleneck::hidden_size": 24},
            **{"network_def::bottleneck::mlp_dim": 48, "network_def::bottleneck::num_layers": 2},
        },
    ),
    "unetr": (
        {2: [32, 32], 3: [32, 32, 32]},
        {
            **{"network_def::feature_size": 4, "network_def::hidden_size": 48},
            "network_def::mlp_dim": 96,
        },
    ),
}
VALID |= {
    name: {dims: ({"patch_size": sizes[dims]} if sizes else {}) | ids for dims in (2, 3)}
    for name, (sizes, ids) in SMALL.items()
}

NETWORKS = sorted(file.stem for file in (CONFIGS / "network").glob("*.json"))
LOSSES = sorted(file.stem for file in (CONFIGS / "loss").glob("*.json"))

#: Networks that train here: `test_networks.py` has each alone, `make test-networks` trains all of them, and
#: each loss in both dimensions.
TRAINED = (
    None,
    "diffusion",
    "dual_decoder",
    "segresnet",
)

MATRIX = [
    *((task, network, None) for task in TASKS for network in TRAINED),
    *zip(itertools.cycle(TASKS), itertools.repeat(None), LOSSES, strict=False),
    ("phantom_organ", "unet2015", None),
    ("phantom_cells", "unet3d2016", None),
    ("phantom_cells", "unet2015", "tversky"),  # labels smaller than images, and a loss of MONAI's
    ("phantom_cells", "residual", "cross_entropy"),  # several heads
    ("phantom_organ", "residual", "tversky"),
]


def tiny_phantoms(folder: Path) -> dict[str, Path]:
    """Four tiny cases of each task: one to train on, one to validate on, two held out."""
    for task, (kind, size) in TASKS.items():
        write_phantom(kind, folder / task, cases=4, size=size)
    return {task: folder / task for task in TASKS}


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return tiny_phantoms(tmp_path_factory.mktemp("phantoms"))


@pytest.mark.parametrize(
    ("task", "network", "loss"), MATRIX, ids=["-".join(filter(None, combination)) for combination in MATRIX]
)
def test_combination_trains_and_segments(
    task: str, network: str | None, loss: str | None, phantoms: dict[str, Path], tmp_path: Path
) -> None:
    train(task, network, loss, phantoms[task], tmp_path)
    if loss is None:
        segment(task, network, phantoms[task], tmp_path)


def overlays_and_ids(task: str, network: str | None) -> tuple[list[str], dict[str, Any]]:
    """What makes a tiny training of a task with a network."""
    overlays = [f"task/{task}", *([f"network/{network}"] if network else [])]
    return overlays, {**TINY[DIMS[task]], **VALID.get(network, {}).get(DIMS[task], {})}


def train(task: str, network: str | None, loss: str | None, data: Path, tmp_path: Path) -> None:
    """An epoch of training and a validation."""
    overlays, tiny = overlays_and_ids(task, network)
    run(
        *("train", *overlays, *([f"loss/{loss}"] if loss else [])),
        **tiny,
        dataset_dir=str(data),
        output_dir=str(tmp_path / "train"),
        max_epochs=1,
        val_interval=1,
    )
    with (tmp_path / "train/learning_curve.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert math.isfinite(float(row["loss"]))
    assert 0 <= float(row["val_ap50" if DIMS[task] == 2 else "val_mean_dice"]) <= 1
    assert {"model.pt", "checkpoints/last.pt"} <= set(written(tmp_path / "train"))


def segment(task: str, network: str | None, data: Path, tmp_path: Path) -> None:
    """An inference with what was trained."""
    overlays, tiny = overlays_and_ids(task, network)
    del tiny["samples_per_case"]  # a key of training alone
    run(
        *("inference", *overlays),
        **tiny,
        dataset_dir=str(data / "imagesTs"),
        output_dir=str(tmp_path / "seg"),
        checkpoint=str(tmp_path / "train/model.pt"),
    )
    ending = ".png" if DIMS[task] == 2 else ".nii.gz"
    images = sorted((data / "imagesTs").iterdir())
    results = ("seg", "spread") if network in SAMPLING else ("seg",)
    names = [image.name.replace(ending, f"_{name}{ending}") for image in images for name in results]
    assert written(tmp_path / "seg") == names
    for image in images:
        made = tmp_path / "seg" / image.name.replace(ending, f"_seg{ending}")
        assert read_array(made).shape == read_array(image).shape
        if DIMS[task] == 3 and network not in NUMBERING:
            labels = json.loads((CONFIGS / "train.json").read_text())["labels"]
            assert set(np.unique(read_array(made))) <= set(labels.values())
