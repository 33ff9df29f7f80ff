"""The random patches of the configs: counted before they are drawn, and never folded."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.transforms import Compose

import scripts.transforms.spatial
from scripts.data import SeededCacheDataset
from scripts.transforms import RandSpatialPatchd
from scripts.transforms.spatial import SMALLEST_VOLUME, SpatialParameters
from tests.commands import CONFIGS, ROOT
from tests.unit.transforms.test_spatial import volumes

pytestmark = pytest.mark.workflow

#: The grid of the 3D paper of 2016.
ELASTIC_2016 = {"patch::elastic_spacing": 32, "patch::elastic_points": "$None", "patch::elastic_std": 4.0}

SETTINGS: dict[str, tuple[list[str], dict[str, Any]]] = {
    "train": (["configs/train.json"], {}),
    **{
        file.stem: (["configs/train.json", f"configs/task/{file.name}"], {})
        for file in sorted((CONFIGS / "task").glob("*.json"))
    },
    "2016": (["configs/train.json"], {**ELASTIC_2016, "patch_size": [84, 84, 68], "patch::units": "pixel"}),
}

#: How many of 200 fields as drawn fold, at least, where any does.
LEAST_FOLDED = {"train": 100, "phantom_organ": 2}


def patch_of(files: list[str], overrides: dict[str, Any]) -> tuple[RandSpatialPatchd, np.ndarray]:
    """The patch of a config, always deformed, and the size of a voxel in its units."""
    parser = ConfigParser()
    parser.read_config([ROOT / file for file in files])
    parser.update({**overrides, "patch::elastic_prob": 1.0, "label_size": None})
    patch = parser.get_parsed_content("patch")
    spacing = np.array(parser.get("spacing") if patch.units == "edge" else [1.0] * patch.dims)
    return patch, spacing / spacing.min()


def draw(
    patch: RandSpatialPatchd, spacing: np.ndarray, count: int
) -> Iterator[tuple[SpatialParameters, ...]]:
    """Parameters as they are kept, and as they were drawn."""
    shape = [n + 9 for n in patch.patch_size]
    free = copy.deepcopy(patch)
    free._unfolded = lambda *_: 1.0  # type: ignore[method-assign]
    for seed in range(count):
        kept, drawn = (p.set_random_state(seed).randomize(None, shape, spacing) for p in (patch, free))
        yield kept, drawn


@pytest.mark.parametrize("name", SETTINGS)
def test_no_patch_is_folded(name: str) -> None:
    """Of 200 elastic patches; those that keep their volumes are as they were drawn."""
    patch, spacing = patch_of(*SETTINGS[name])
    folded = 0
    for kept, drawn in draw(patch, spacing, 10 if name == "2016" else 200):
        assert kept.displacements is not None
        assert drawn.displacements is not None
        smallest = volumes(patch, drawn, spacing).min()
        folded += smallest <= 0
        if np.array_equal(kept.displacements, drawn.displacements):
            assert smallest > 0
        else:
            assert smallest < 1.5 * SMALLEST_VOLUME
            assert volumes(patch, kept, spacing).min() > 0
    # of the volumes alone, which are small
    assert (folded > LEAST_FOLDED[name]) if name in LEAST_FOLDED else (folded == 0)


def test_published_deformation_stays_as_drawn() -> None:
    """The 2015 paper's, in tiles of 572 x 572."""
    experiment = json.loads((CONFIGS / "experiments" / "unet2015_em.json").read_text())
    overrides = {key: value for key, value in experiment.items() if key.startswith("patch")}
    assert overrides["patch::elastic_std"] == 10.0
    for kept, drawn in draw(*patch_of(experiment["config_file"], overrides), 200):
        np.testing.assert_array_equal(kept.displacements, drawn.displacements)


def test_cases_are_counted_once_and_samples_are_those_of_cases_not_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parser = ConfigParser()
    parser.read_config([CONFIGS / "train.json"])
    parser.update({"patch_size": [6, 6, 6], "label_size": None, "patch::foreground_prob": 0.7})
    augment = parser.get_parsed_content("augment")
    generator = torch.Generator().manual_seed(0)
    cases = [
        {
            "image": torch.rand(1, 9, 8, 7, generator=generator),
            "label": torch.randint(3, (1, 9, 8, 7), generator=generator).float(),
        }
        for _ in range(3)
    ]
    counted: list[torch.Tensor] = []
    count = scripts.transforms.spatial.class_counts
    monkeypatch.setattr(
        scripts.transforms.spatial, "class_counts", lambda label: counted.append(label) or count(label)
    )
    dataset = SeededCacheDataset(cases, Compose(augment), seed=3)
    samples = [dataset[index] for index in range(12)]
    assert len(counted) == 3
    plain = SeededCacheDataset(cases, Compose(augment[1:]), seed=3)
    for sample, index in zip(samples, range(12), strict=True):
        assert sample.keys() == {"image", "label"}
        expected = plain[index]
        for key in ("image", "label"):
            assert torch.equal(sample[key], expected[key])
    assert len(counted) > 3 + 3
