"""Between label values on disk and class indices in the network."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from scripts.errors import InputError
from scripts.labels import IGNORE_LABEL, IGNORE_NAME, class_values, whole_numbers


def source_of(tensor: torch.Tensor, key: Hashable) -> str:
    """What an error calls a tensor: the file it was read from, or its key."""
    return str(tensor.meta.get("filename_or_obj", key)) if isinstance(tensor, MetaTensor) else str(key)


def class_map(tensor: torch.Tensor, key: Hashable) -> torch.Tensor:
    """The tensor, if it is a class map, (1, *spatial).

    Raises:
        InputError: several channels: probabilities, whose argmax nobody took.
    """
    if len(tensor) != 1:
        raise InputError(
            f"{source_of(tensor, key)} has {len(tensor)} channels where a class map has one: "
            "put AsDiscreted with argmax before this transform"
        )
    return tensor


def like(array: np.ndarray, tensor: torch.Tensor) -> torch.Tensor:
    """An array (*spatial) as (1, *spatial), with the meta data of the tensor it was made from.

    Whole numbers become int32.
    """
    made = torch.from_numpy(np.ascontiguousarray(array, array.dtype if array.dtype.kind == "f" else np.int32))
    if isinstance(tensor, MetaTensor):
        return MetaTensor(made[None], meta=tensor.meta, applied_operations=tensor.applied_operations)
    return made[None]


def plain(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor without MONAI's bookkeeping, which costs time at every operation."""
    return tensor.as_tensor() if isinstance(tensor, MetaTensor) else tensor


class LabelsToClassesd(MapTransform):
    """Replace the values of a label on disk by class indices 0 to N-1, in the order of ``labels``.

    Args:
        keys: labels, (1, *spatial), whole to within WHOLE_TOLERANCE.
        labels: class name to value on disk; an entry "ignore" names the value of unannotated voxels.

    Raises:
        InputError: a fraction, a value that ``labels`` does not declare, or one declared above LARGEST_VALUE.
    """

    def __init__(self, keys: KeysCollection, labels: dict[str, int]) -> None:
        super().__init__(keys)
        self.index = {value: index for index, value in enumerate(class_values(labels))}
        if IGNORE_NAME in labels:
            self.index[labels[IGNORE_NAME]] = IGNORE_LABEL

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        for key in self.keys:
            values = whole_numbers(np.asarray(out[key][0].cpu()), source_of(out[key], key))
            undeclared = sorted(set(np.unique(values).tolist()) - self.index.keys())
            if undeclared:
                raise InputError(
                    f"{source_of(out[key], key)} holds the values {undeclared}: "
                    f"declared are {sorted(self.index)}; correct the label or declare the value in labels"
                )
            classes = np.zeros(values.shape, np.int32)
            for value, index in self.index.items():
                classes[values == value] = index
            out[key] = like(classes, out[key])
        return out


class ClassesToLabelsd(MapTransform):
    """Replace class indices 0 to N-1 by the values of a label on disk: the inverse of LabelsToClassesd.

    Args:
        keys: class maps, (1, *spatial).
        labels: class name to value on disk; an entry "ignore" names the value of unannotated voxels.

    Raises:
        InputError: several channels: probabilities instead of classes; a class that labels does not name.
    """

    def __init__(self, keys: KeysCollection, labels: dict[str, int]) -> None:
        super().__init__(keys)
        self.values = dict(enumerate(class_values(labels)))
        if IGNORE_NAME in labels:
            self.values[IGNORE_LABEL] = labels[IGNORE_NAME]

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        for key in self.keys:
            restored = torch.zeros_like(class_map(out[key], key), dtype=torch.int32)
            if restored.numel() and (largest := int(out[key].max())) not in self.values:
                raise InputError(
                    f"the network gives class {largest} (from 0), and labels names {len(self.values)}: name "
                    "all classes of the network in labels, in their order"
                )
            lookup = torch.zeros(IGNORE_LABEL + 1, dtype=torch.int32, device=restored.device)
            for index, value in self.values.items():
                lookup[index] = value
            for plane, classes in zip(plain(restored)[0], plain(out[key])[0], strict=True):
                plane.copy_(
                    lookup[classes.long()]
                )  # as many passes over the map as there are classes are slow
            out[key] = restored
        return out
