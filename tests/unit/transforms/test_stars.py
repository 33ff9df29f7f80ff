"""Star-convex distances of an object, and back to objects."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.draw import polygon

from bundle.data.phantom import Kind, write_phantom
from scripts.errors import InputError
from scripts.judging import Case, instance_scores
from scripts.labels import IGNORE_LABEL, RAY_UNIT
from scripts.transforms import InstancesFromStarsd, InstancesToStarsd
from scripts.transforms.stars import Stars, star_depth, star_distances
from tests.commands import SHARED_DATA
from tests.unit.transforms.test_directions import discs

DATA = SHARED_DATA / "dsb2018_nuclei"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the shared data set dsb2018_nuclei is absent")


def by_hand(ids: np.ndarray, place: tuple[int, int], angle: float) -> float:
    """How far a ray gets from a pixel to the first one of something else, in steps of a tenth."""
    row, column = place
    for step in range(10 * sum(ids.shape)):
        at = round(row + step / 10 * math.sin(angle)), round(column + step / 10 * math.cos(angle))
        if not (0 <= at[0] < ids.shape[0] and 0 <= at[1] < ids.shape[1]) or ids[at] < 0:
            return -step / 10
        if ids[at] != ids[place]:
            return step / 10
    raise AssertionError


@pytest.mark.parametrize("shape", [(40, 30), (30, 43)])
def test_distances_are_those_of_rays_walked_by_hand(shape: tuple[int, int]) -> None:
    """A ray on a digital line is at most a pixel longer or shorter where it meets a border head-on."""
    ids = discs(shape, [(12, 9), (12, 20), (25, 14), (2, 25)], 8)
    ids[20:22, 5:9] = -1
    distances = star_distances(ids, 16)
    assert not distances[:, ids <= 0].any()
    wrong = 0
    places = np.argwhere(ids > 0)[::9]
    for place in map(tuple, places):
        for ray in range(16):
            expected = by_hand(ids, place, 2 * math.pi * ray / 16)
            found = distances[(ray, *place)]
            wrong += abs(abs(found) - abs(expected)) > 1.1 or (found > 0) != (expected > 0)
    assert wrong < 0.03 * 16 * len(places)  # rays that graze another object or a corner


def test_distances_of_a_disc_are_those_of_the_circle() -> None:
    ids = discs((61, 67), [(30, 32)], 20)
    distances = star_distances(ids, 32)
    np.testing.assert_allclose(distances[:, 30, 32], 20.4, atol=0.8)
    down, right = np.sin(np.arange(32) * np.pi / 16), np.cos(np.arange(32) * np.pi / 16)
    # from 8 below the middle: |8 + t down, t right| = 20.4
    expected = -8 * down + np.sqrt(20.4**2 - 64 * right**2)
    np.testing.assert_allclose(distances[:, 38, 32], expected, atol=1.1)
    depth = star_depth(ids, distances)
    assert depth[30, 32] == depth.max() == 1
    assert depth[30, 42] == pytest.approx(0.5, abs=0.06)
    assert not depth[ids == 0].any()


def test_turned_objects_have_turned_distances() -> None:
    ids = np.random.default_rng(1).integers(0, 3, (9, 9)).repeat(5, 0).repeat(5, 1)
    distances = star_distances(ids, 8)
    np.testing.assert_array_equal(
        star_distances(ids[:, ::-1], 8)[[4, 3, 2, 1, 0, 7, 6, 5], :, ::-1], distances
    )
    turned = star_distances(np.ascontiguousarray(ids.T), 8)[[2, 1, 0, 7, 6, 5, 4, 3]]
    np.testing.assert_array_equal(turned.transpose(0, 2, 1), distances)


def test_the_edge_of_the_image_is_no_border() -> None:
    """Of an object that it cuts, and of one that fills the image."""
    ids = np.zeros((20, 20), np.int32)
    ids[5:15, :10] = 1
    distances = star_distances(ids, 8)
    assert distances[0, 10, 0] == 9.5
    assert distances[4, 10, 7] == -7.5
    depth = star_depth(ids, distances)
    assert depth[9, 0] == 1
    assert depth[9, 9] < 0.2
    full = star_distances(np.ones((6, 8), np.int32), 8)
    assert (full < 0).all()
    assert (star_depth(np.ones((6, 8), np.int32), full) == 1).all()
    assert not star_depth(np.zeros((6, 8), np.int32), np.zeros((8, 6, 8), np.float32)).any()


def targets(ids: np.ndarray, rays: int = 16) -> tuple[np.ndarray, np.ndarray]:
    out = InstancesToStarsd("label", star_key="star", rays=rays)({"label": torch.from_numpy(ids)[None]})
    return out["label"][0].numpy(), out["star"].numpy()


def probabilities(star: np.ndarray) -> torch.Tensor:
    """What a network that makes no error gives."""
    depth, distances = star[0], np.abs(star[1:]) / RAY_UNIT
    deep = depth / (1 + distances.sum(0))
    inside = depth > 0
    return torch.from_numpy(np.stack([1.0 - inside, deep, inside - depth, *(deep * distances)])).float()


def back(ids: np.ndarray, **arguments: float) -> np.ndarray:
    pred = {"pred": probabilities(targets(ids)[1])}
    return InstancesFromStarsd("pred", **arguments)(pred)["pred"][0].numpy()


def test_classes_are_told_by_the_depth() -> None:
    ids = discs((40, 40), [(20, 20)], 10)
    classes, star = targets(ids)
    assert star.shape == (17, 40, 40)
    assert (classes[ids == 0] == 0).all()
    assert classes[20, 20] == 1
    assert classes[20, 29] == 2
    np.testing.assert_array_equal(classes == 1, star[0] > 0.5)


def test_what_nobody_annotated_stays_so() -> None:
    """An object may have the number 255 until the patch puts it where it leaves the image."""
    ids = np.zeros((6, 9), np.int32)
    ids[1:4, 1:4], ids[1:4, 5:8] = 254, 255
    first = InstancesToStarsd("label", instances_key="instances")({"label": torch.from_numpy(ids)[None]})
    numbered = first["instances"][0].numpy()
    assert sorted(set(numbered.ravel())) == [0, 254, 256]
    numbered[4:] = IGNORE_LABEL
    again = InstancesToStarsd("label", star_key="star", ignore_label=IGNORE_LABEL)
    out = again({"label": torch.from_numpy(numbered)[None]})
    assert (out["label"][0, 4:] == IGNORE_LABEL).all()
    assert not out["star"][:, 4:].any()
    assert out["star"][1 + 4, 3, 1] < 0 < out["star"][1 + 12, 3, 1]  # downwards it is unknown
    with pytest.raises(InputError, match="label holds the value -2"):
        again({"label": torch.full((1, 4, 4), -2)})


@pytest.mark.parametrize(
    ("centres", "radius"),
    [
        ([(20, 20), (20, 38), (38, 29), (38, 60)], 10),
        ([(8, 8), (8, 15), (15, 11)], 4),
        ([(3, 3), (3, 60)], 9),
    ],
)
@pytest.mark.parametrize("votes", [1, 16])
def test_touching_discs_come_back(centres: list[tuple[int, int]], radius: int, votes: int) -> None:
    ids = discs((60, 70), centres, radius)
    made = back(ids, votes=votes)
    assert made.max() == len(centres)
    scores = instance_scores(Case("", made, ids))
    assert scores["ap50"] == 1
    assert scores["sq"] > 0.93


def test_cells_come_back(tmp_path: Path) -> None:
    """Generated cells, many of which touch."""
    write_phantom(Kind.CELLS, tmp_path, cases=4, size=(160, 160))
    scores = []
    for file in sorted((tmp_path / "labelsTr").glob("*.png")):
        ids = np.asarray(Image.open(file)).astype(np.int32)
        scores.append(instance_scores(Case("", back(ids), ids))["ap50"])
    assert np.mean(scores) >= 0.97


@needs_data
@pytest.mark.data
def test_true_nuclei_come_back() -> None:
    scores = []
    for name in json.loads((DATA / "splits.json").read_text())["val"][::6]:
        ids = np.asarray(Image.open(DATA / "labels" / f"{Path(name).stem}.png")).astype(np.int32)
        scores.append(instance_scores(Case("", back(ids, min_size=1), ids))["ap50"])
    assert np.mean(scores) >= 0.98


def test_of_two_polygons_that_overlap_the_more_probable_one_stays() -> None:
    """A disc of which one half says that it is a smaller one."""
    ids = discs((40, 60), [(20, 30)], 12)
    star = targets(ids)[1]
    star[1:, :, 34:] *= 0.4
    star[0, :, 34:] *= 0.9
    pred = {"pred": probabilities(star)}
    made = InstancesFromStarsd("pred", overlap=0.4)(pred)["pred"][0].numpy()
    assert made.max() == 1
    assert instance_scores(Case("", made, ids))["sq"] > 0.9


def test_voters_outvote_one_that_is_wrong() -> None:
    """The most probable pixel sees twice as far as it should."""
    ids = discs((60, 60), [(30, 30)], 12)
    star = targets(ids)[1]
    star[1:, 30, 30] *= 2
    pred = {"pred": probabilities(star)}

    def sq(votes: int) -> float:
        made = InstancesFromStarsd("pred", votes=votes, threshold=0, grow=0)(pred)["pred"]
        return instance_scores(Case("", made[0].numpy(), ids))["sq"]

    pred["pred"][0] -= 1e-6  # all of it is mask
    assert not sq(1) > 0.5
    assert sq(9) > 0.9


def test_the_mask_has_a_say_in_the_shape() -> None:
    ids = discs((40, 60), [(20, 20), (20, 50)], 10)
    pred = probabilities(targets(ids)[1])
    pred[:, 20, 20] = torch.tensor([1.0, *[0] * 18])
    pred[:, :, 55:] = pred[:, :1, :1]

    def made(**arguments: float) -> np.ndarray:
        return InstancesFromStarsd("pred", **arguments)({"pred": pred})["pred"][0].numpy()

    assert made()[20, 20] == 0
    assert not made()[:, 55:].any()
    assert made(max_hole=1)[20, 20] == made(max_hole=1)[20, 21] > 0
    assert made(min_size=300).max() == 1
    small = targets(ids)[1]
    small[1:] *= 0.8
    kept = {"pred": probabilities(small)}
    areas = [(InstancesFromStarsd("pred", grow=n)(kept)["pred"] > 0).sum() for n in (0, 1, 4)]
    assert areas[0] < areas[1] < areas[2] == (ids > 0).sum()


def test_polygons_are_those_of_scikit_image() -> None:
    """But for pixels on their edges."""
    generator = np.random.default_rng(4)
    shape, rays = (50, 40), 16
    probabilities = generator.uniform(0.2, 1, (3 + rays, *shape)).astype(np.float32)
    probabilities[1] = 40
    places = generator.choice(50 * 40, 30, replace=False)
    stars = Stars(probabilities, places)
    angles = 2 * np.pi * np.arange(rays) / rays
    for index, place in enumerate(places):
        row, column = divmod(place, shape[1])
        away = RAY_UNIT * probabilities[3:, row, column] / 40
        expected = np.zeros(shape, bool)
        expected[polygon(row + away * np.sin(angles), column + away * np.cos(angles), shape)] = True
        found = np.zeros(shape, bool)
        found.flat[stars.pixels(index)] = True
        assert (found != expected).sum() <= 2


def test_no_object_gives_none() -> None:
    pred = torch.zeros(19, 8, 9)
    pred[0] = 1
    assert not InstancesFromStarsd("pred")({"pred": pred})["pred"].any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed_threshold": 1.5}, "seed_threshold is 1.5"),
        ({"overlap": -1}, "overlap is -1"),
        ({"votes": 0}, "votes is 0"),
        ({"grow": -1}, "grow is -1"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        InstancesFromStarsd("pred", **arguments)


@pytest.mark.parametrize("rays", [4, 10])
def test_rays_that_do_not_turn_are_refused(rays: int) -> None:
    with pytest.raises(InputError, match=f"rays is {rays}: use a multiple of 4 from 8 on"):
        InstancesToStarsd("label", rays=rays)
    with pytest.raises(InputError, match=f"pred has {3 + rays} channels: .* a multiple of 4 rays"):
        InstancesFromStarsd("pred")({"pred": torch.zeros(3 + rays, 4, 4)})


def test_volumes_are_refused() -> None:
    for transform in (InstancesToStarsd("x"), InstancesFromStarsd("x")):
        with pytest.raises(InputError, match=r"x has 3 axes: .*dual_decoder\.json for volumes"):
            transform({"x": torch.zeros(19, 4, 4, 4)})
