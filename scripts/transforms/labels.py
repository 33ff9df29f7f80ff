"""Between label values on disk, class indices in the network and instance maps."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from scipy import ndimage
from skimage.measure import label as connected_components
from skimage.morphology import remove_small_objects
from skimage.segmentation import expand_labels

from scripts.errors import InputError
from scripts.labels import IGNORE_LABEL, IGNORE_NAME, class_values


def source_of(tensor: torch.Tensor, key: Hashable) -> str:
    """What an error calls a tensor: the file it was read from, or its key."""
    return str(tensor.meta.get("filename_or_obj", key)) if isinstance(tensor, MetaTensor) else str(key)


def _like(array: np.ndarray, tensor: torch.Tensor) -> torch.Tensor:
    """A (1, *spatial) integer tensor of an array, with the meta data of the tensor it was made from."""
    made = torch.from_numpy(np.ascontiguousarray(array, dtype=np.int32))[None]
    if isinstance(tensor, MetaTensor):
        return MetaTensor(made, meta=tensor.meta, applied_operations=tensor.applied_operations)
    return made


class LabelsToClassesd(MapTransform):
    """Replace the values of a label on disk by class indices 0 to N-1, in the order of ``labels``.

    Args:
        keys: labels, (1, *spatial).
        labels: class name to value on disk; an entry "ignore" names the value of unannotated voxels.

    Raises:
        InputError: a value that ``labels`` does not declare.
    """

    def __init__(self, keys: KeysCollection, labels: dict[str, int]) -> None:
        super().__init__(keys)
        self.index = {value: index for index, value in enumerate(class_values(labels))}
        if IGNORE_NAME in labels:
            self.index[labels[IGNORE_NAME]] = IGNORE_LABEL

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        for key in self.keys:
            undeclared = [v for v in torch.unique(out[key]).tolist() if v not in self.index]
            if undeclared:
                raise InputError(
                    f"{source_of(out[key], key)} holds the values {undeclared}: "
                    f"declared are {sorted(self.index)}; correct the label or declare the value in labels"
                )
            classes = torch.zeros_like(out[key])
            for value, index in self.index.items():
                classes[out[key] == value] = index
            out[key] = classes
        return out


class ClassesToLabelsd(MapTransform):
    """Replace class indices 0 to N-1 by the values of a label on disk: the inverse of LabelsToClassesd.

    Args:
        keys: class maps, (1, *spatial).
        labels: class name to value on disk; an entry "ignore" names the value of unannotated voxels.
    """

    def __init__(self, keys: KeysCollection, labels: dict[str, int]) -> None:
        super().__init__(keys)
        self.values = dict(enumerate(class_values(labels)))
        if IGNORE_NAME in labels:
            self.values[IGNORE_LABEL] = labels[IGNORE_NAME]

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        for key in self.keys:
            restored = torch.zeros_like(out[key], dtype=torch.int32)
            for index, value in self.values.items():
                restored[out[key] == index] = value
            out[key] = restored
        return out


class IgnoreToBackgroundd(MapTransform):
    """Set prediction and label to background where the label says that nobody annotated: no metric counts it.

    Args:
        keys: class maps, (1, *spatial), to be cleared.
        label_key: the class map that carries ``IGNORE_LABEL``.
    """

    def __init__(self, keys: KeysCollection, label_key: str = "label") -> None:
        super().__init__(keys)
        self.label_key = label_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        ignored = out[self.label_key] == IGNORE_LABEL
        if ignored.any():
            for key in self.keys:
                out[key] = torch.where(ignored.to(out[key].device), torch.zeros_like(out[key]), out[key])
        return out


class InstancesToClassesd(MapTransform):
    """Turn an instance map into 0 background, 1 interior, 2 border, to tell touching instances apart.

    A pixel of an instance is border when another instance or background lies within ``thickness`` of it.

    Args:
        keys: instance maps, (1, *spatial), 0 background, 1..N instances.
        thickness: pixels taken from each instance's rim.
    """

    def __init__(self, keys: KeysCollection, thickness: int = 1) -> None:
        super().__init__(keys)
        self.thickness = thickness

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        for key in self.keys:
            instances = np.asarray(out[key][0])
            size = 2 * self.thickness + 1
            low, high = ndimage.minimum_filter(instances, size), ndimage.maximum_filter(instances, size)
            classes = (instances > 0) * np.where(low == high, 1, 2)
            out[key] = _like(classes, out[key])
        return out


class ClassesToInstancesd(MapTransform):
    """Turn classes into an instance map: connected components of the interior, grown back over the border.

    Args:
        keys: class maps, (1, *spatial).
        interior: class index of the interior.
        border: class index of the border, or None when there is none.
        grow: pixels by which an instance may grow into the border class.
        min_size: components of fewer pixels are dropped.
    """

    def __init__(
        self,
        keys: KeysCollection,
        interior: int = 1,
        border: int | None = 2,
        grow: int = 3,
        min_size: int = 10,
    ) -> None:
        super().__init__(keys)
        self.interior = interior
        self.border = border
        self.grow = grow
        self.min_size = min_size

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        for key in self.keys:
            classes = np.asarray(out[key][0])
            interior = remove_small_objects(classes == self.interior, max_size=self.min_size - 1)
            instances = connected_components(interior, connectivity=1)
            if self.border is not None:
                grown = expand_labels(instances, self.grow)
                instances = np.where((classes == self.interior) | (classes == self.border), grown, 0)
            out[key] = _like(instances, out[key])
        return out
