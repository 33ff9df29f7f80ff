"""From probabilities to class maps, and class maps without specks and holes.

Sources: F. Isensee et al., "nnU-Net: a self-configuring method for deep learning-based biomedical image
segmentation", Nature Methods 18, 2021: the largest component of each class is kept, where that helps in
cross-validation.

MONAI's KeepLargestConnectedComponent, RemoveSmallObjects and FillHoles do parts of it, each in a pass of its
own, but take one size for all classes and no limit for holes; with scikit-image 0.26 RemoveSmallObjects also
removes components of exactly its size. Sizes count voxels, whatever their sides measure.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from monai.config import KeysCollection
from monai.transforms import MapTransform
from scipy.ndimage import find_objects
from skimage.measure import label as connected_components

from scripts.errors import InputError, nearest
from scripts.labels import class_names
from scripts.transforms.labels import class_map, like, source_of


@dataclass(frozen=True)
class Cleaning:
    """What is taken out of a class, and filled in it; by default nothing.

    Components hang together by faces, edges and corners, holes by faces alone.

    Attributes:
        largest: of the components the largest alone is kept, of equals the first.
        min_size: components of fewer voxels are removed.
        max_hole: holes of up to so many voxels are filled: background that has this class at all of its
            faces, and so does not reach the edge of the image. Other classes within stay.

    Raises:
        InputError: a size that is no whole number of 0 or more, a flag that is none.
    """

    largest: bool = False
    min_size: int = 0
    max_hole: int = 0

    def __post_init__(self) -> None:
        """Hold the values against their rules."""
        if not isinstance(self.largest, bool):
            raise InputError(f"largest is {self.largest!r}: use true or false")
        for name, value in (("min_size", self.min_size), ("max_hole", self.max_hole)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise InputError(f"{name} is {value!r}: use a whole number of voxels, 0 or more")


def clean_classes(classes: np.ndarray, cleanings: Mapping[int, Cleaning]) -> np.ndarray:
    """A class map without the specks and holes of some classes.

    First components are removed, of all classes, and become background; then holes are filled. So a speck
    within another class, once removed, is a hole of that class.

    Args:
        classes: class indices, (*spatial), 0 background; it is not changed.
        cleanings: class index, 1 or more, to what is done.

    Returns:
        The same shape and type.
    """
    cleaned = classes.copy()
    for index, cleaning in cleanings.items():
        for box in _box(cleaned == index) if cleaning.largest or cleaning.min_size > 1 else ():
            within = cleaned[box]
            within[_small(within == index, cleaning)] = 0
    filled = [index for index, cleaning in cleanings.items() if cleaning.max_hole]
    for box in _box(np.isin(cleaned, filled)) if filled else ():  # the holes of a class lie within its box
        _fill(cleaned[box], cleanings)
    return cleaned


def background_holes(classes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Connected parts (by faces) of the background, and those among them that one class encloses.

    Args:
        classes: class indices, (*spatial).

    Returns:
        The number of its part for each voxel, (*spatial), 0 in no background; and for each number, 0 among
        them, its voxels and the class around it, 0 where there are several or it reaches the edge.
    """
    parts, count = connected_components(classes == 0, connectivity=1, return_num=True)
    lowest = np.full(count + 1, np.iinfo(np.int64).max)
    highest = np.zeros(count + 1, dtype=np.int64)
    for axis in range(classes.ndim):
        numbers, values = np.moveaxis(parts, axis, 0), np.moveaxis(classes, axis, 0)
        for here, there in ((slice(1, None), slice(None, -1)), (slice(None, -1), slice(1, None))):
            rim = (numbers[here] > 0) & (values[there] > 0)
            np.minimum.at(lowest, numbers[here][rim], values[there][rim])
            np.maximum.at(highest, numbers[here][rim], values[there][rim])
        lowest[numbers[[0, -1]]] = -1
    return parts, np.bincount(parts.ravel(), minlength=count + 1), np.where(lowest == highest, highest, 0)


def _box(mask: np.ndarray) -> list[tuple[slice, ...]]:
    """The box around a mask; none where it is empty."""
    return find_objects(mask.view(np.uint8))


def _small(mask: np.ndarray, cleaning: Cleaning) -> np.ndarray:
    """Where the components of a mask lie that are not kept, (*spatial)."""
    components, count = connected_components(mask, return_num=True)
    sizes = np.bincount(components.ravel(), minlength=count + 1)
    removed = sizes < cleaning.min_size
    if cleaning.largest:
        removed |= np.arange(count + 1) != 1 + sizes[1:].argmax()
    removed[0] = False
    return removed[components]


def _fill(classes: np.ndarray, cleanings: Mapping[int, Cleaning]) -> None:
    """Fill holes in place."""
    parts, sizes, around = background_holes(classes)
    limits = np.zeros(max(int(around.max()), *cleanings) + 1, dtype=np.int64)
    for index, cleaning in cleanings.items():
        limits[index] = cleaning.max_hole
    filled = np.where(sizes <= limits[around], around, 0)
    filled[0] = 0
    holes = filled[parts]
    classes[holes > 0] = holes[holes > 0]


class CleanClassesd(MapTransform):
    """Remove specks and fill holes of each class of a class map, see `Cleaning` and `clean_classes`.

    Args:
        keys: class maps, (1, *spatial).
        labels: class name to value on disk, in the order of the class indices.
        classes: for each class but the background its `Cleaning`, such as {"organ": {"largest": true}}; of
            one from which nothing is taken {}.

    Raises:
        InputError: other classes than those of ``labels``; something unknown or out of its range; several
            channels: probabilities instead of classes.
    """

    def __init__(
        self,
        keys: KeysCollection,
        labels: dict[str, int],
        classes: Mapping[str, Mapping[str, Any]],
    ) -> None:
        super().__init__(keys)
        names = class_names(labels)
        if set(classes) != set(names[1:]):
            raise InputError(
                f"clean is for the classes {', '.join(classes)}, and labels names {', '.join(names[1:])} "
                "beside the background: name each of these, with {} where nothing is to be done, or run "
                "python -m bundle tune for this network"
            )
        known = [field.name for field in fields(Cleaning)]
        for name, settings in classes.items():
            if not isinstance(settings, Mapping):
                raise InputError(
                    f'clean has {settings!r} for {name}: use an object such as {{"largest": true}}'
                )
            if unknown := sorted(settings.keys() - set(known)):
                raise InputError(
                    f"clean has {unknown[0]} for {name}{nearest(unknown[0], known)}: use {', '.join(known)}"
                )
        self.cleanings = {names.index(name): Cleaning(**settings) for name, settings in classes.items()}

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replace each of the class maps."""
        out = dict(data)
        for key in self.keys:
            classes = np.asarray(class_map(out[key], key)[0].cpu()).astype(np.int32)
            out[key] = like(clean_classes(classes, self.cleanings), out[key])
        return out


class AboveThresholdd(MapTransform):
    """Turn the probabilities of background and foreground into a class map by a threshold.

    At 0.5 that is the most probable class.

    Args:
        keys: probabilities, (2, *spatial), 0 to 1.
        threshold: foreground is where its probability is above this, 0 to below 1.

    Raises:
        InputError: a threshold out of its range; not two channels.
    """

    def __init__(self, keys: KeysCollection, threshold: float) -> None:
        super().__init__(keys)
        if not 0 <= threshold < 1:
            raise InputError(f"threshold is {threshold}: give a probability from 0 to below 1")
        self.threshold = threshold

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replace each of the probabilities by a class map, (1, *spatial)."""
        out = dict(data)
        for key in self.keys:
            if len(data[key]) != 2:
                raise InputError(
                    f"{source_of(data[key], key)} has {len(data[key])} channels: a threshold is for the "
                    "probabilities of two classes, background and foreground; leave it out for others"
                )
            foreground = np.asarray(data[key][1].float().cpu())
            out[key] = like(foreground > self.threshold, data[key])
        return out
