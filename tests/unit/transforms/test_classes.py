"""Specks and holes of class maps, against MONAI, scikit-image and hand-made maps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import FillHoles, KeepLargestConnectedComponent
from skimage.morphology import remove_small_objects

from scripts.errors import InputError
from scripts.transforms import AboveThresholdd, CleanClassesd
from scripts.transforms.classes import Cleaning, background_holes, clean_classes

LABELS = {"background": 0, "organ": 3, "vessel": 7, "ignore": 9}


def blobs(*shape: int) -> np.ndarray:
    """A class map with many components of two classes, and holes."""
    noise = np.random.default_rng(3).random(shape)
    low, high = {2: (0.4, 0.75), 3: (0.8, 0.9)}[len(shape)]
    return np.where(noise > high, 2, np.where(noise > low, 1, 0))


@pytest.mark.parametrize("shape", [(30, 40), (12, 14, 16)])
def test_components_are_removed_as_monai_and_scikit_image_remove_them(shape: tuple[int, ...]) -> None:
    classes = blobs(*shape)
    tensor = torch.tensor(classes)[None]
    largest = KeepLargestConnectedComponent(applied_labels=[1, 2], independent=True, is_onehot=False)(
        tensor.clone()
    )
    ours = clean_classes(classes, {1: Cleaning(largest=True), 2: Cleaning(largest=True)})
    np.testing.assert_array_equal(ours, np.asarray(largest[0]))
    for index in (1, 2):
        mask = remove_small_objects(classes == index, max_size=3, connectivity=len(shape))
        ours = clean_classes(classes, {index: Cleaning(min_size=4)})
        np.testing.assert_array_equal(ours == index, mask)
        np.testing.assert_array_equal(ours[classes != index], classes[classes != index])
        assert 0 < (ours == index).sum() < (classes == index).sum()


@pytest.mark.parametrize("shape", [(30, 40), (12, 14, 16)])
def test_holes_are_filled_as_monai_fills_them(shape: tuple[int, ...]) -> None:
    mask = (np.random.default_rng(4).random(shape) > 0.35).astype(int)
    theirs = FillHoles(applied_labels=[1], connectivity=1)(torch.tensor(mask)[None])
    ours = clean_classes(mask, {1: Cleaning(max_hole=mask.size)})
    np.testing.assert_array_equal(ours, np.asarray(theirs[0]))
    assert ours.sum() > mask.sum()


def test_only_background_within_one_class_is_a_hole_and_only_up_to_the_limit() -> None:
    classes = np.zeros((12, 20), dtype=np.int32)
    classes[1:11, 1:11] = 1
    classes[2, 2] = 0  # a hole of one
    classes[4:6, 4:6] = 0  # a hole of four
    classes[8, 8] = 2  # a vessel within the organ
    classes[1:11, 11:19] = 2
    classes[5, 10:12] = 0  # between both
    classes[1, 15] = 0  # open to the outside by a face
    parts, sizes, around = background_holes(classes)
    assert sorted(sizes[around == 1].tolist()) == [1, 4]
    assert not (around == 2).any()
    assert around[parts[0, 0]] == around[parts[5, 10]] == 0
    filled = clean_classes(classes, {1: Cleaning(max_hole=3), 2: Cleaning(max_hole=100)})
    expected = classes.copy()
    expected[2, 2] = 1
    np.testing.assert_array_equal(filled, expected)
    whole = clean_classes(classes, {1: Cleaning(max_hole=4), 2: Cleaning()})
    assert (whole != classes).sum() == 5
    both = blobs(12, 14, 16)  # class by class or together
    one, other = Cleaning(max_hole=2), Cleaning(max_hole=3)
    apart = clean_classes(clean_classes(both, {1: one}), {2: other})
    np.testing.assert_array_equal(clean_classes(both, {1: one, 2: other}), apart)


def test_a_removed_speck_within_another_class_is_filled_by_it() -> None:
    classes = np.zeros((12, 12), dtype=np.int32)
    classes[2:10, 2:10] = 1
    classes[5, 5:7] = 2
    classes[11, 11] = 1  # a speck, touching nothing
    cleaned = clean_classes(classes, {1: Cleaning(largest=True, max_hole=2), 2: Cleaning(min_size=3)})
    expected = np.zeros_like(classes)
    expected[2:10, 2:10] = 1
    np.testing.assert_array_equal(cleaned, expected)


def test_by_default_nothing_is_changed_and_an_empty_map_stays_empty() -> None:
    classes = blobs(20, 20)
    before = classes.copy()
    np.testing.assert_array_equal(clean_classes(classes, {1: Cleaning(), 2: Cleaning()}), before)
    all_of_it = Cleaning(largest=True, min_size=5, max_hole=5)
    assert not clean_classes(np.zeros((4, 5, 6), int), {1: all_of_it, 2: all_of_it}).any()
    np.testing.assert_array_equal(clean_classes(np.ones((4, 5), int), {1: all_of_it}), np.ones((4, 5)))
    clean_classes(classes, {1: all_of_it})
    np.testing.assert_array_equal(classes, before)  # not in place


def test_classes_are_cleaned_by_name_and_keep_their_meta_data() -> None:
    classes = torch.zeros(1, 8, 8)
    classes[0, 1:4, 1:4], classes[0, 6, 6], classes[0, 7, 0] = 1, 1, 2
    image = MetaTensor(classes, affine=torch.diag(torch.tensor([2.0, 3, 1, 1])), meta={"note": "kept"})
    clean = CleanClassesd("pred", LABELS, {"vessel": {}, "organ": {"largest": True}})
    out = clean({"pred": image})["pred"]
    assert out.meta["note"] == "kept"
    assert out.shape == (1, 8, 8)
    assert (out[0, 6, 6], out[0, 7, 0], (out == 1).sum()) == (0, 2, 9)


@pytest.mark.parametrize(
    ("classes", "match"),
    [
        ({"organ": {}}, "clean is for the classes organ, and labels names organ, vessel beside"),
        ({"organ": {}, "tumour": {}}, "clean is for the classes organ, tumour, and labels names"),
        ({"organ": {}, "vessel": {"larges": True}}, "has larges for vessel; did you mean largest: use"),
        ({"organ": {}, "vessel": True}, "clean has True for vessel: use an object"),
        ({"organ": {}, "vessel": {"min_size": -1}}, "min_size is -1: use a whole number"),
        ({"organ": {}, "vessel": {"max_hole": 2.5}}, "max_hole is 2.5: use a whole number"),
        ({"organ": {}, "vessel": {"largest": 1}}, "largest is 1: use true or false"),
    ],
)
def test_what_is_not_for_these_classes_is_refused(classes: dict[str, Any], match: str) -> None:
    with pytest.raises(InputError, match=match):
        CleanClassesd("pred", LABELS, classes)


def test_probabilities_are_refused_where_classes_belong() -> None:
    clean = CleanClassesd("pred", LABELS, {"organ": {}, "vessel": {}})
    with pytest.raises(InputError, match="pred has 3 channels where a class map has one"):
        clean({"pred": torch.zeros(3, 4, 4)})


def test_threshold_takes_the_place_of_the_most_probable_class() -> None:
    foreground = torch.rand(6, 7, generator=torch.Generator().manual_seed(0))
    pred = MetaTensor(torch.stack([1 - foreground, foreground]))
    half = AboveThresholdd("pred", 0.5)({"pred": pred})["pred"]
    np.testing.assert_array_equal(np.asarray(half[0]), np.asarray(pred.argmax(0)))
    low = AboveThresholdd("pred", 0.2)({"pred": pred})["pred"]
    np.testing.assert_array_equal(np.asarray(low[0]), np.asarray(foreground > 0.2))
    with pytest.raises(InputError, match="pred has 3 channels: a threshold is for the probabilities of two"):
        AboveThresholdd("pred", 0.2)({"pred": torch.zeros(3, 4, 4)})
    with pytest.raises(InputError, match="threshold is 1: give a probability from 0 to below 1"):
        AboveThresholdd("pred", 1)
