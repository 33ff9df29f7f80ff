"""What is unlike the cases learnt from is found, and told in a sentence; sound cases are left alone."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Orientation

from bundle.runs.unlike import FEWEST_SOUND, Sound, flagged, learn_fingerprint, summarise_flagged
from scripts.errors import InputError
from scripts.review import features
from scripts.unlike import BLOCKS, Description, beyond_ranges, describe, judge, require_fingerprint, sentence

NAMES = ("background", "organ")


def case(
    seed: int, dims: int = 3, spacing: float = 1.0, change: Any = lambda values: values
) -> tuple[MetaTensor, MetaTensor]:
    """An image, bright at one end of each axis, with a bright organ; and probabilities of the organ."""
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(22, 26, dims))
    places = np.stack(np.meshgrid(*[np.linspace(-1, 1, size) for size in shape], indexing="ij"))
    middle = np.array([0.3, -0.2, 0.1])[:dims] + rng.uniform(-0.05, 0.05, dims)
    away = ((places - middle.reshape(-1, *[1] * dims)) ** 2).sum(0)
    ground = np.tensordot(np.array([1.0, 0.6, -0.8])[:dims], places, 1)
    values = ground + 2.0 * (away < 0.16) + 0.1 * rng.standard_normal(shape)
    values = np.asarray(change(values), dtype=np.float32)
    normal = (values - values.mean()) / max(values.std(), 1e-6)
    inside = 1 / (1 + np.exp(-(values - 2) * 4)) * 0.98
    affine = np.diag([*[spacing] * dims, *[1] * (4 - dims)])
    tensors = [torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32)) for x in (normal, inside)]
    image = MetaTensor(tensors[0][None], affine=affine, meta={"original_affine": affine})
    return image, MetaTensor(torch.stack([1 - tensors[1], tensors[1]]), affine=affine)


def described(image: MetaTensor, prediction: MetaTensor) -> Description:
    return describe(image, prediction, NAMES, features(prediction.numpy()))


def sound(count: int, dims: int = 3) -> list[Sound]:
    return [Sound(f"c{seed}", seed % 4, described(*case(seed, dims))) for seed in range(count)]


LEARNT: dict[int, Any] = {dims: learn_fingerprint(sound(60, dims), []) for dims in (2, 3)}


@pytest.mark.parametrize("dims", [2, 3])
def test_sound_cases_are_left_alone(dims: int) -> None:
    told = [judge(described(*case(seed, dims)), LEARNT[dims])[1] for seed in range(100, 140)]
    assert sum(map(bool, told)) <= 4
    row = summarise_flagged(flagged(sound(60, dims), []))
    assert row["cases"] == 60
    assert row["low"] <= 0.05


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x: np.flip(x, 0), "the image looks flipped along axis 0: turned back it fits"),
        (lambda x: np.flip(x, (0, 1)), "the image looks flipped along axis 0 and 1: "),
        (lambda x: np.rot90(x, 1, (0, 1)), "the image looks rotated in the plane of axes 0 and 1: "),
        (lambda x: -x, r"in the cases learnt from: it may be "),
        (lambda x: x * 0, "it may be empty, padded or clipped"),
        (lambda x: np.minimum(x, 0.2), "it may be clipped"),
        (lambda x: x[:12], "it may be cropped"),
        (lambda x: np.pad(x, 8, constant_values=x.min()), "it may be padded"),
        (lambda x: np.repeat(x[::3], 3, 0), "repeated"),
        (lambda x: x + np.random.default_rng(0).standard_normal(x.shape), "it may be noisy"),
    ],
    ids=["flip", "two flips", "rotation", "inverted", "empty", "clipped", "crop", "pad", "repeated", "noise"],
)
def test_what_is_wrong_is_told(dims: int, change: Any, said: str) -> None:
    beyond, told = judge(described(*case(100, dims, change=change)), LEARNT[dims])
    assert beyond > LEARNT[dims]["limit"]
    assert re.search(said, "; ".join(told)), told


def test_images_of_few_slices_have_the_same_outline_as_others() -> None:
    """Stacks of 3 to 9 slices, as scanners give them, are learnt from and judged together."""
    thin = [
        Sound(each.case, each.group, described(*case(number, change=lambda x, n=3 + number % 7: x[..., :n])))
        for number, each in enumerate(sound(40))
    ]
    learnt = learn_fingerprint(thin, [])
    require_fingerprint(learnt)
    assert learnt is not None
    assert judge(thin[0].description, learnt)[1] == []
    flipped = described(*case(0, change=lambda x: np.flip(x[..., :3], 0)))
    assert "looks flipped along axis 0" in judge(flipped, learnt)[1][0]


def test_a_wrong_spacing_is_told_with_value_and_range() -> None:
    _, told = judge(described(*case(100, spacing=2.0)), LEARNT[3])
    assert any(
        "the size of a voxel along axis" in each and "is 2, and 1 in the cases" in each for each in told
    )


def test_how_a_file_is_stored_does_not_matter_but_for_the_order_of_its_axes() -> None:
    """A prediction on the grid of a file in LPS has the numbers of the same in RAS."""
    image, prediction = case(3)
    stored = Orientation("LPS", labels=None)(prediction)
    one, other = described(image, prediction), described(image, MetaTensor(stored))
    assert one.numbers == pytest.approx(other.numbers, rel=1e-3, abs=1e-3)
    assert judge(other, LEARNT[3])[1] == []
    for affine, is_told in [(stored.affine.numpy(), False), (np.eye(4)[[1, 0, 2, 3]], True)]:
        of_file = MetaTensor(image.as_tensor(), affine=image.affine, meta={"original_affine": affine})
        told = "; ".join(judge(described(of_file, prediction), LEARNT[3])[1])
        assert ("the direction of axis 0 of the file is back-front, and left-right in the" in told) == is_told


def test_distances_are_shares_of_the_range() -> None:
    ranges = {"place: organ, axis 0": [0.2, 0.4], "spacing: axis 0": [1.0, 1.0], "pieces: organ": [1, 2]}
    found = {"place: organ, axis 0": 0.5, "spacing: axis 0": 2.0, "volume: organ": 3.0}
    beyond = beyond_ranges(found, ranges)
    assert beyond == pytest.approx({"place: organ, axis 0": 0.5, "spacing: axis 0": np.log(2) / 0.1})
    assert beyond_ranges({"place: organ, axis 0": 0.25}, ranges)["place: organ, axis 0"] == pytest.approx(
        -0.25
    )
    assert sentence("size: axis 1", 20, (30, 40)) == (
        "the length along axis 1, in mm or pixels, is 20, and 30 to 40 in the cases learnt from: "
        "it may be cropped"
    )


def test_more_cases_than_one_in_twenty_are_needed() -> None:
    assert learn_fingerprint(sound(FEWEST_SOUND - 2), []) is None
    assert learn_fingerprint(sound(FEWEST_SOUND - 1), []) is not None
    assert learn_fingerprint([Sound("a", 0, each.description) for each in sound(40)], []) is None
    assert summarise_flagged(flagged(sound(FEWEST_SOUND), []))["cases"] == 0


def test_a_fingerprint_that_was_not_learnt_is_refused() -> None:
    learnt = LEARNT[3]
    require_fingerprint(learnt)
    assert len(learnt["outline"]) == BLOCKS**3
    for value, said in [
        ({}, "has not limit, ranges and outline"),
        ({**learnt, "limit": None}, "holds what is no range"),
        ({**learnt, "ranges": {**learnt["ranges"], "beauty: ": [0, 1]}}, "holds what is no range"),
        ({**learnt, "outline": [1.0]}, "outline has 1 numbers"),
    ]:
        with pytest.raises(InputError, match=said):
            require_fingerprint(value)
