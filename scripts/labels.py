"""What label values mean: values declared on disk, class indices in the network, what nobody annotated."""

from __future__ import annotations

import numpy as np

from scripts.errors import InputError

#: Class index of voxels that nobody annotated: loss and metrics leave them out. Classes are 0 to 254.
IGNORE_LABEL = 255

#: Name under which a task's ``labels`` may declare the value of unannotated voxels on disk.
IGNORE_NAME = "ignore"

#: Integer types of label maps, in the order in which they are tried.
LABEL_TYPES = (np.uint8, np.uint16, np.int32, np.int64)


def class_names(labels: dict[str, int]) -> list[str]:
    """Names of the classes in the order of their indices (the order of ``labels``, without "ignore")."""
    return [name for name in labels if name != IGNORE_NAME]


def class_values(labels: dict[str, int]) -> list[int]:
    """Values on disk of the classes in the order of their indices."""
    return [labels[name] for name in class_names(labels)]


def count_classes(labels: dict[str, int]) -> int:
    """Number of classes, background included: the network's ``out_channels``."""
    return len(class_names(labels))


def whole_numbers(values: np.ndarray, name: str) -> np.ndarray:
    """The values as integers from 0; any fraction or negative number is refused under the name given."""
    values = np.asarray(values)
    if values.dtype == bool:
        return values.astype(np.int32)
    if not np.issubdtype(values.dtype, np.integer):
        with np.errstate(invalid="ignore"):
            whole = values.astype(np.int64)
        broken = values[whole != values]
        if broken.size:
            raise InputError(f"{name} holds the value {broken[0]}: give whole numbers from 0")
        values = whole
    if values.size and values.min() < 0:
        raise InputError(f"{name} holds the value {values.min()}: give whole numbers from 0")
    return values


def label_type(labels: np.ndarray) -> type[np.integer]:
    """The first of LABEL_TYPES that holds every value of an integer array."""
    low, high = int(labels.min()), int(labels.max())
    return next(t for t in LABEL_TYPES if np.iinfo(t).min <= low and high <= np.iinfo(t).max)
