"""Values on disk, class indices and instances: there and back."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from scripts.errors import InputError
from scripts.labels import IGNORE_LABEL
from scripts.transforms import (
    ClassesToInstancesd,
    ClassesToLabelsd,
    IgnoreToBackgroundd,
    InstancesToClassesd,
    LabelsToClassesd,
)

AFFINE = torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0], dtype=torch.float64))


def tracked(values: np.ndarray | torch.Tensor) -> MetaTensor:
    return MetaTensor(torch.as_tensor(values), affine=AFFINE, meta={"filename_or_obj": "scan_7.png"})


# Values and classes


@pytest.mark.parametrize(
    ("labels", "values", "classes"),
    [
        ({"membrane": 0, "cell": 255}, [0, 255, 255], [0, 1, 1]),
        ({"cell": 255, "membrane": 0}, [0, 255, 255], [1, 0, 0]),
        ({"background": 0, "organ": 1, "ignore": 255}, [0, 1, 255], [0, 1, IGNORE_LABEL]),
        ({"background": 0, "ignore": 7, "organ": 255}, [0, 7, 255], [0, IGNORE_LABEL, 1]),
        ({"first": 3, "second": 1, "third": 2, "ignore": 0}, [0, 1, 2, 3], [IGNORE_LABEL, 1, 2, 0]),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.int32, torch.uint8])
def test_values_become_classes_and_come_back(labels, values, classes, dtype):
    label = tracked(torch.tensor(values, dtype=dtype)[None, :, None])
    made = LabelsToClassesd("label", labels)({"label": label})
    assert made["label"].flatten().tolist() == classes
    back = ClassesToLabelsd("label", labels)(made)
    assert back["label"].flatten().tolist() == values
    for tensor in (made["label"], back["label"]):
        assert tensor.shape == label.shape
        assert tensor.meta["filename_or_obj"] == "scan_7.png"
        torch.testing.assert_close(tensor.affine, AFFINE)
    assert label.flatten().tolist() == values  # what was handed in is untouched


@pytest.mark.parametrize("value", [2, 0.5, -1, float("nan")])
def test_undeclared_value_is_refused(value):
    """A half between two classes is none of them; it must not become background."""
    label = torch.tensor([[[0.0, 1.0, value]]])
    transform = LabelsToClassesd("label", {"background": 0, "organ": 1})
    with pytest.raises(InputError, match=rf"^label holds the values \[{value}.*\]: declared are \[0, 1\]"):
        transform({"label": label})
    with pytest.raises(InputError, match=r"^scan_7\.png holds the values"):
        transform({"label": tracked(label)})


def test_ignored_voxels_become_background_in_every_key():
    label = tracked(torch.tensor([[[0.0, 1.0, IGNORE_LABEL, IGNORE_LABEL]]]))
    data = {"label": label, "pred": tracked(torch.tensor([[[1, 1, 1, 0]]])), "image": torch.ones(1, 1, 4)}
    out = IgnoreToBackgroundd(["pred", "label"])(data)
    assert out["pred"].flatten().tolist() == [1, 1, 0, 0]
    assert out["label"].flatten().tolist() == [0, 1, 0, 0]
    assert out["image"] is data["image"]
    assert out["pred"].meta["filename_or_obj"] == "scan_7.png"
    assert label.max() == IGNORE_LABEL


def test_annotated_case_is_left_alone():
    data = {"label": torch.tensor([[[0, 1]]]), "pred": torch.tensor([[[1, 1]]])}
    out = IgnoreToBackgroundd(["pred", "label"])(data)
    assert all(out[key] is data[key] for key in data)


# Instances


def discs(shape: tuple[int, ...], centres: list[tuple[int, ...]], radius: float) -> np.ndarray:
    """Touching discs or balls; a pixel between two belongs to the nearer."""
    grid = np.indices(shape)
    distances = np.stack(
        [np.sqrt(sum((g - c) ** 2 for g, c in zip(grid, cs, strict=True))) for cs in centres]
    )
    return np.where(distances.min(0) <= radius, distances.argmin(0) + 1, 0)


def test_border_is_what_lies_within_thickness_of_another_or_background():
    instances = np.random.default_rng(0).integers(0, 3, (5, 4)).repeat(4, 0).repeat(5, 1)
    for thickness in (1, 2):
        out = InstancesToClassesd("label", thickness)({"label": torch.from_numpy(instances)[None]})["label"][
            0
        ]
        expected = np.zeros_like(instances)
        for i, j in np.ndindex(instances.shape):
            near = instances[
                max(i - thickness, 0) : i + thickness + 1, max(j - thickness, 0) : j + thickness + 1
            ]
            if instances[i, j]:
                expected[i, j] = 1 if (near == instances[i, j]).all() else 2
        np.testing.assert_array_equal(out, expected)
        assert {1, 2} <= set(expected.flat)


@pytest.mark.parametrize(
    ("shape", "centres", "radius"),
    [
        ((40, 70), [(12, 12), (12, 31), (28, 22), (28, 41), (14, 56)], 10),
        ((24, 24, 40), [(11, 11, 9), (11, 11, 24), (13, 13, 36)], 8),
    ],
)
def test_touching_instances_come_back_one_to_one(shape, centres, radius):
    instances = discs(shape, centres, radius)
    numbers = np.array([0, 300, 7, 12, 90, 41])[: len(centres) + 1]  # as they come on disk, with gaps
    data = {"label": tracked(numbers[instances].astype(np.float32)[None])}
    classes = InstancesToClassesd("label")(data)
    assert set(classes["label"].unique().tolist()) == {0, 1, 2}
    found = ClassesToInstancesd("label")(classes)["label"]
    ious = np.zeros((len(centres), int(found.max())))
    for a, b in np.ndindex(ious.shape):
        one, other = instances == a + 1, found[0].numpy() == b + 1
        ious[a, b] = (one & other).sum() / (one | other).sum()
    assert ious.shape == (len(centres), len(centres))
    assert (np.sort(ious.argmax(1)) == np.arange(len(centres))).all()
    assert ious.max(1).min() > 0.9
    for tensor in (classes["label"], found):
        assert tensor.dtype == torch.int32
        assert tensor.meta["filename_or_obj"] == "scan_7.png"
        torch.testing.assert_close(tensor.affine, AFFINE)


def test_without_the_border_class_touching_discs_would_be_one():
    """What the border is for: the same map with its border taken as interior merges."""
    instances = discs((24, 44), [(12, 12), (12, 31)], 10)
    classes = InstancesToClassesd("label")({"label": torch.from_numpy(instances)[None]})["label"]
    merged = ClassesToInstancesd("label", border=None)({"label": (classes > 0).int()})["label"]
    assert merged.max() == 1


@pytest.mark.parametrize("shape", [(8, 9), (5, 6, 7)])
def test_background_alone_stays_background(shape):
    empty = torch.zeros(1, *shape)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for transform in (InstancesToClassesd("label"), ClassesToInstancesd("label")):
            assert not transform({"label": empty})["label"].any()


def test_one_object_alone_gives_no_warning():
    classes = torch.zeros(1, 12, 12)
    classes[0, 3:9, 3:9] = 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ClassesToInstancesd("label")({"label": classes})["label"].sum() == 36


def test_objects_that_meet_at_a_corner_are_two():
    classes = torch.zeros(1, 10, 10)
    classes[0, 1:5, 1:5] = 1
    classes[0, 5:9, 5:9] = 1
    out = ClassesToInstancesd("label", border=None)({"label": classes})["label"][0]
    assert out[2, 2] != out[6, 6]
    assert out.max() == 2


def test_small_components_go_and_numbers_stay_without_gaps():
    classes = torch.zeros(1, 10, 30)
    classes[0, 1:4, 1:4] = 1  # 9 pixels
    classes[0, 1:4, 10:13] = 1
    classes[0, 4, 10] = 1  # 10 pixels
    classes[0, 1:6, 20:25] = 1  # 25 pixels
    out = ClassesToInstancesd("label", border=None)({"label": classes})["label"]
    assert out[0, 1:4, 1:4].max() == 0
    assert [(out == number).sum().item() for number in (1, 2)] == [10, 25]
    assert out.max() == 2
    every = ClassesToInstancesd("label", border=None, min_size=1)({"label": classes})["label"]
    assert every.max() == 3


def test_instances_grow_over_the_border_and_no_further():
    classes = torch.zeros(1, 15, 15)
    classes[0, 1:14, 1:14] = 2
    classes[0, 6:9, 6:9] = 1
    out = ClassesToInstancesd("label", grow=2, min_size=1)({"label": classes})["label"][0].numpy()
    distances = [
        min(np.hypot(i - a, j - b) for a in range(6, 9) for b in range(6, 9)) for i, j in np.ndindex(15, 15)
    ]
    expected = np.array(distances).reshape(15, 15) <= 2
    np.testing.assert_array_equal(out, expected.astype(int))
