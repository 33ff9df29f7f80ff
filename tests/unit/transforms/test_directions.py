"""Directions to the middle of an object, and back to objects."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bundle.data.phantom import Kind, write_phantom
from scripts.errors import InputError
from scripts.judging import Case, instance_scores
from scripts.labels import IGNORE_LABEL
from scripts.transforms import InstancesFromDirectionsd, InstancesToDirectionsd
from tests.commands import SHARED_DATA

DATA = SHARED_DATA / "dsb2018_nuclei"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the shared data set dsb2018_nuclei is absent")


def discs(shape: tuple[int, ...], centres: list[tuple[int, ...]], radius: float) -> np.ndarray:
    """Balls numbered from 1 on; of two that overlap, each has the pixels that are nearer to its middle."""
    places = np.stack(np.indices(shape), -1)
    away = np.stack([np.linalg.norm(places - centre, axis=-1) for centre in centres])
    return np.where(away.min(0) <= radius, away.argmin(0) + 1, 0).astype(np.int32)


def targets(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    out = InstancesToDirectionsd("label", flow_key="flow")({"label": torch.from_numpy(ids)[None]})
    return out["label"][0].numpy(), out["flow"].numpy()


def probabilities(classes: np.ndarray, flow: np.ndarray) -> torch.Tensor:
    """What a network that makes no error gives."""
    parts = np.stack([np.maximum(sign * axis, 0) for axis in flow for sign in (-1, 1)])
    total = parts.sum(0)
    share = np.where(total > 0, parts / np.maximum(total, 1e-6), 1 / len(parts))  # the middle has none
    return torch.from_numpy(np.concatenate([(classes == 0)[None], share * (classes > 0)]).astype(np.float32))


def back(ids: np.ndarray, **arguments: float) -> np.ndarray:
    pred = {"pred": probabilities(*targets(ids))}
    return InstancesFromDirectionsd("pred", **arguments)(pred)["pred"][0].numpy()


def test_directions_of_a_disc_lead_to_its_middle() -> None:
    """By the angle of each pixel as seen from the middle."""
    ids = discs((41, 45), [(20, 22)], 15)
    classes, flow = targets(ids)
    down, right = np.indices(ids.shape) - np.array([20, 22])[:, None, None]
    angle = np.degrees(np.arctan2(down, right))
    inside = (ids > 0) & ((down != 0) | (right != 0))
    assert (classes[ids == 0] == 0).all()
    assert not flow[:, ids == 0].any()
    np.testing.assert_allclose(flow[0][inside], -np.sin(np.radians(angle[inside])), atol=1e-5)
    np.testing.assert_allclose(flow[1][inside], -np.cos(np.radians(angle[inside])), atol=1e-5)
    # what lies above the middle has it below, and so on
    for low, high, expected in ((-134, -46, 2), (46, 134, 1), (-44, 44, 3)):
        sector = inside & (angle > low) & (angle < high)
        assert sector.any()
        assert set(classes[sector]) == {expected}
    assert set(classes[inside & (np.abs(angle) > 136)]) == {4}


def test_an_object_bent_around_its_centre_of_mass_has_its_middle_in_itself() -> None:
    ids = np.zeros((9, 9), np.int32)
    ids[1:8, 1], ids[1, 1:8], ids[7, 1:8] = 5, 5, 5
    classes, flow = targets(ids)
    still = np.argwhere((ids > 0) & ~flow.any(0))
    assert still.tolist() == [[4, 1]]  # the centre of mass is (4, 3)
    assert classes[1, 7] in (2, 3)
    assert flow[:, 7, 1].tolist() == [-1, 0]


def test_what_nobody_annotated_stays_so() -> None:
    """An object may have the number 255 until the patch puts it where it leaves the image."""
    ids = np.zeros((6, 9), np.int32)
    ids[1:4, 1:4], ids[1:4, 5:8] = 254, 255
    first = InstancesToDirectionsd("label", instances_key="instances")({"label": torch.from_numpy(ids)[None]})
    numbered = first["instances"][0].numpy()
    assert sorted(set(numbered.ravel())) == [0, 254, 256]
    np.testing.assert_array_equal(numbered > 254, ids > 254)
    numbered[4:] = IGNORE_LABEL
    again = InstancesToDirectionsd("label", flow_key="flow", ignore_label=IGNORE_LABEL)
    out = again({"label": torch.from_numpy(numbered)[None]})
    assert (out["label"][0, 4:] == IGNORE_LABEL).all()
    assert torch.equal(out["label"][0, :4], first["label"][0, :4])
    assert not out["flow"][:, 4:].any()
    with pytest.raises(InputError, match="label holds the value -2"):
        again({"label": torch.full((1, 4, 4), -2)})


@pytest.mark.parametrize(
    ("shape", "centres", "radius"),
    [
        ((60, 70), [(20, 20), (20, 38), (38, 29), (38, 60)], 10),
        ((60, 70), [(8, 8), (8, 15), (15, 11)], 4),
        ((30, 32, 40), [(15, 15, 10), (15, 15, 24), (15, 15, 36)], 8),
    ],
)
def test_touching_discs_come_back(
    shape: tuple[int, ...], centres: list[tuple[int, ...]], radius: int
) -> None:
    ids = discs(shape, centres, radius)
    made = back(ids)
    assert made.max() == len(centres)
    scores = instance_scores(Case("", made, ids))
    assert scores["ap50"] == 1
    assert scores["sq"] > 0.95


def test_cells_come_back(tmp_path: Path) -> None:
    """Generated cells, many of which touch."""
    write_phantom(Kind.CELLS, tmp_path, cases=4, size=(160, 160))
    scores = []
    for file in sorted((tmp_path / "labelsTr").glob("*.png")):
        ids = np.asarray(Image.open(file)).astype(np.int32)
        scores.append(instance_scores(Case("", back(ids), ids))["ap50"])
    assert np.mean(scores) >= 0.98


@needs_data
@pytest.mark.data
def test_true_nuclei_come_back() -> None:
    scores = []
    for name in json.loads((DATA / "splits.json").read_text())["val"]:
        ids = np.asarray(Image.open(DATA / "labels" / f"{Path(name).stem}.png")).astype(np.int32)
        scores.append(instance_scores(Case("", back(ids, min_size=1), ids))["ap50"])
    assert np.mean(scores) >= 0.98


def test_what_does_not_point_to_its_middle_goes() -> None:
    """A disc whose pixels point away from its middle, or all the same way, is none."""
    ids = discs((40, 80), [(20, 20), (20, 60)], 10)
    classes, flow = targets(ids)
    flow[0][ids == 2], flow[1][ids == 2] = 1, 0
    pred = {"pred": probabilities(classes, flow)}
    assert InstancesFromDirectionsd("pred", agreement=0)(pred)["pred"].max() >= 2
    made = InstancesFromDirectionsd("pred", agreement=0.6)(pred)["pred"][0].numpy()
    assert (made > 0).sum() == (ids == 1).sum()


def test_holes_are_filled_and_small_objects_go() -> None:
    ids = discs((40, 60), [(20, 20), (20, 50)], 10)
    ids[(ids == 2) & (np.indices(ids.shape)[1] != 50)] = 0
    pred = probabilities(*targets(ids))
    pred[:, 20, 20] = torch.tensor([1.0, 0, 0, 0, 0])
    made = InstancesFromDirectionsd("pred", max_hole=1, min_size=22)({"pred": pred})["pred"][0].numpy()
    assert made.max() == 1
    assert made[20, 20] == 1
    assert InstancesFromDirectionsd("pred", max_hole=1, min_size=21)({"pred": pred})["pred"].max() == 2


def test_no_object_gives_none() -> None:
    pred = torch.zeros(5, 8, 9)
    pred[0] = 1
    assert not InstancesFromDirectionsd("pred")({"pred": pred})["pred"].any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"threshold": 1.5}, "threshold is 1.5"),
        ({"agreement": -1}, "agreement is -1"),
        ({"drop": 1}, "drop is 1: .* above 1"),
        ({"smoothing": -1}, "smoothing is -1"),
        ({"doublings": -1}, "doublings is -1"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        InstancesFromDirectionsd("pred", **arguments)


def test_other_numbers_of_channels_are_refused() -> None:
    with pytest.raises(InputError, match=r"pred has 3 channels: .* two directions for each of 2 axes"):
        InstancesFromDirectionsd("pred")({"pred": torch.zeros(3, 4, 4)})
