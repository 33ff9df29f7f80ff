"""Values on disk and class indices: there and back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from scripts.errors import InputError
from scripts.labels import IGNORE_LABEL
from scripts.transforms import ClassesToLabelsd, LabelsToClassesd

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
    with pytest.raises(InputError, match=rf"^label holds the values? \[?{value}"):
        transform({"label": label})
    with pytest.raises(InputError, match=r"^scan_7\.png holds the value"):
        transform({"label": tracked(label)})


def test_whole_to_within_rounding():
    label = torch.tensor([[[0.9999999, 1.00000012, -1e-4]]])
    made = LabelsToClassesd("label", {"background": 0, "organ": 1})({"label": label})["label"]
    assert (made.flatten().tolist(), made.dtype) == ([1, 1, 0], torch.int32)


def test_the_largest_value_of_a_class():
    assert LabelsToClassesd("label", {"background": 0, "organ": 2**24}).index == {0: 0, 2**24: 1}
    with pytest.raises(InputError, match=r"labels has organ = 16777217; .* at most 16777216"):
        LabelsToClassesd("label", {"background": 0, "organ": 2**24 + 1})


def test_probabilities_are_no_class_map():
    with pytest.raises(
        InputError, match=r"^scan_7\.png has 3 channels where a class map has one: put AsDisc"
    ):
        ClassesToLabelsd("label", {"a": 0, "b": 1, "c": 2})({"label": tracked(torch.rand(3, 4, 4))})


def test_a_class_that_labels_do_not_name_is_no_background():
    restore = ClassesToLabelsd("label", {"a": 0, "b": 7})
    found = restore({"label": tracked(torch.tensor([[[0, 1, 1]]]))})["label"]
    assert found.flatten().tolist() == [0, 7, 7]
    with pytest.raises(InputError, match=r"the network gives class 2 .from 0., and labels names 2: name all"):
        restore({"label": tracked(torch.tensor([[[0, 2, 1]]]))})
