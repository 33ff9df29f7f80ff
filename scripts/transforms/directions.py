"""Between instance maps and the direction in which the middle of an object lies, as classes.

Every pixel of an object says along which axis, and which way, the middle of its object lies: with the
background these are classes that any network learns, and whose mean over tiles, orientations and networks
means something. Where two objects touch the directions part, over the whole of both and not in a thin border
alone.

Sources:
    C. Stringer, T. Wang, M. Michaelos, M. Pachitariu, "Cellpose: a generalist algorithm for cellular
    segmentation", Nature Methods 18, 2021: pixels follow a predicted field to the middle of their object, and
    those that meet are one.
    H. He et al., "CDNet: Centripetal direction network for nuclear instance segmentation", ICCV 2021: the
    direction to the middle as classes.

Departures: the field leads straight to the middle, where Cellpose's follows a simulated diffusion. A class is
half an axis, CDNet's an eighth of the full angle; the field is made of the classes' probabilities, so that
what lies between two axes has a share of both. It is followed by doubling: where a pixel gets in two steps,
in four, in eight. How meeting places are told apart is ours.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from monai.utils import ensure_tuple_rep
from scipy import ndimage
from skimage.measure import label as connected_components
from skimage.morphology import remove_small_holes
from skimage.segmentation import watershed

from scripts.errors import InputError, require_within
from scripts.labels import IGNORE_LABEL, UNKNOWN_OBJECT, whole_numbers
from scripts.transforms.instances import number_tops, without_small
from scripts.transforms.labels import like, source_of

#: Where fewer pixels arrive than this, after smoothing, none does; at the end of the kernel it is 0.011.
LEAST_ARRIVED = 0.01

#: As many steps as no image is long.
MOST_DOUBLINGS = 20


def directions(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the middle of each pixel's object lies: as a class, and as a vector of length 1.

    The middle of an object is its pixel that is nearest to its centre of mass. The class is that of the axis
    along which it lies furthest, of equals the first; the middle itself has the first class and no vector.

    Args:
        ids: (*spatial), whole numbers: 0 background, -1 where nobody annotated, every other id an object.

    Returns:
        Classes, (*spatial), int32, ``IGNORE_LABEL`` where ``ids`` is -1, see `InstancesToDirectionsd`;
        and vectors, (axes, *spatial), float32, zero outside of objects.
    """
    classes = np.where(ids < 0, IGNORE_LABEL, 0).astype(np.int32)
    vectors = np.zeros((ids.ndim, *ids.shape), np.float32)
    places = np.stack(np.nonzero(ids > 0))  # (axes, pixels)
    if places.shape[1] == 0:
        return classes, vectors
    _, own = np.unique(ids[tuple(places)], return_inverse=True)  # 0 to N - 1
    counts = np.bincount(own)
    centres = np.stack([np.bincount(own, axis) / counts for axis in places])  # (axes, N)
    away = np.square(places - centres[:, own]).sum(0)
    order = np.lexsort((away, own))
    middles = places[:, order[np.cumsum(counts) - counts]]  # (axes, N)
    offsets = middles[:, own] - places
    axis = np.abs(offsets).argmax(0)
    behind = np.take_along_axis(offsets, axis[None], 0)[0] > 0
    classes[tuple(places)] = 1 + 2 * axis + behind
    vectors[(slice(None), *places)] = offsets / np.maximum(np.sqrt(np.square(offsets).sum(0)), 1)
    return classes, vectors


class InstancesToDirectionsd(MapTransform):
    """Turn an instance map into classes: 0 background, then in which direction the middle lies.

    Class ``1 + 2 a`` has the middle at lower indices of axis a, class ``2 + 2 a`` at higher ones. To be named
    after what turns and deforms the objects.

    Args:
        keys: instance maps, (1, *spatial), whole numbers, 0 background, UNKNOWN_OBJECT where nobody
            annotated; become class maps.
        flow_key: where vectors to the middle go, (axes, *spatial) float32, of length 1; one name for each of
            ``keys``, or None to make none.
        instances_key: where the objects go, (1, *spatial), numbered without ``IGNORE_LABEL``, which a patch
            may then put where it leaves the image; one name for each of ``keys``, or None.
        ignore_label: number in ``keys`` that is no object but means that nobody annotated, or None.

    Raises:
        InputError: fractional or negative numbers.
    """

    def __init__(
        self,
        keys: KeysCollection,
        flow_key: KeysCollection | None = None,
        instances_key: KeysCollection | None = None,
        ignore_label: int | None = None,
    ) -> None:
        super().__init__(keys)
        self.flow_keys: tuple[Hashable, ...] = ensure_tuple_rep(flow_key, len(self.keys))
        self.instances_keys: tuple[Hashable, ...] = ensure_tuple_rep(instances_key, len(self.keys))
        self.ignore_label = ignore_label

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replace each of the instance maps."""
        out = dict(data)
        for key, flow_key, instances_key in zip(self.keys, self.flow_keys, self.instances_keys, strict=True):
            given = np.asarray(data[key][0])
            unknown = np.isin(given, [UNKNOWN_OBJECT, self.ignore_label or UNKNOWN_OBJECT])
            ids = whole_numbers(np.where(unknown, 0, given), source_of(data[key], key)).astype(np.int64)
            ids[unknown] = -1
            classes, vectors = directions(ids)
            out[key] = like(classes, data[key])
            if flow_key is not None:
                out[flow_key] = torch.cat([like(axis, data[key]) for axis in vectors])
            if instances_key is not None:
                apart = np.where(unknown, IGNORE_LABEL, ids + (ids >= IGNORE_LABEL))
                out[instances_key] = like(apart, data[key])
        return out


class InstancesFromDirectionsd(MapTransform):
    """Turn probabilities of background and directions into an instance map.

    1. The mask is where background is improbable; small holes in it are filled.
    2. Each of its pixels takes 2 ** ``doublings`` steps, each as long as the directions are sure, one pixel
       at most.
    3. Where many pixels arrive is the middle of an object: a top of the smoothed number of arrivals that is
       higher than the ways to a higher one by the factor ``drop``. Pixels that arrive around one are one
       object.
    4. Objects of too few pixels are dropped, and those whose pixels point elsewhere than to their middle.

    Args:
        keys: probabilities, (1 + 2 * axes, *spatial), 0 to 1, see `InstancesToDirectionsd`.
        threshold: the mask is where the probability of all classes but background is above this.
        doublings: 7 for 128 steps: objects of a larger radius in pixels need more.
        smoothing: standard deviation of the Gaussian that smooths the number of arrivals, in pixels.
        drop: above 1.
        agreement: share, 0 to 1, of the probability of an object that its pixels must give the direction in
            which its middle lies.
        max_hole: holes in the mask of up to so many pixels are filled.
        min_size: objects of fewer pixels are dropped.

    Raises:
        InputError: an argument out of its range; other channels than two for each axis and one.
    """

    def __init__(
        self,
        keys: KeysCollection,
        threshold: float = 0.5,
        doublings: int = 7,
        smoothing: float = 1.0,
        drop: float = 1.5,
        agreement: float = 0.0,
        max_hole: int = 0,
        min_size: int = 10,
    ) -> None:
        super().__init__(keys)
        require_within("threshold", threshold, 0, 1)
        require_within("agreement", agreement, 0, 1)
        for name, value in (("smoothing", smoothing), ("max_hole", max_hole), ("min_size", min_size)):
            require_within(name, value, 0)
        require_within("doublings", doublings, 0, MOST_DOUBLINGS)
        if not drop > 1:
            raise InputError(f"drop is {drop}: use a number above 1, as every top would be a middle")
        self.threshold = threshold
        self.doublings = doublings
        self.smoothing = smoothing
        self.drop = drop
        self.agreement = agreement
        self.max_hole = max_hole
        self.min_size = min_size

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        for key in self.keys:
            axes = data[key].ndim - 1
            if len(data[key]) != 1 + 2 * axes:
                raise InputError(
                    f"{source_of(data[key], key)} has {len(data[key])} channels: give the probabilities of "
                    f"background and of two directions for each of {axes} axes, without argmax before"
                )
            out[key] = like(self._instances(np.asarray(data[key].float().cpu())), data[key])
        return out

    def _instances(self, probabilities: np.ndarray) -> np.ndarray:
        """From (1 + 2 * axes, *spatial) to (*spatial)."""
        inside = probabilities[1:].sum(0)
        mask = remove_small_holes(inside > self.threshold, max_size=self.max_hole)
        places = np.stack(np.nonzero(mask))  # (axes, pixels)
        found = np.zeros(mask.shape, np.int32)
        if places.shape[1] == 0:
            return found
        field = (probabilities[2::2] - probabilities[1::2]) * (mask / np.maximum(inside, 1e-6))
        ends = np.rint(self._follow(field, places)).astype(np.int64)
        ends = np.clip(ends, 0, np.array(mask.shape)[:, None] - 1)
        arrived = np.zeros(mask.shape)
        np.add.at(arrived, tuple(ends), 1)
        arrived = ndimage.gaussian_filter(arrived, self.smoothing, mode="constant", truncate=3)
        arrived *= max(math.sqrt(2 * math.pi) * self.smoothing, 1) ** mask.ndim  # one alone makes about 1
        reached = arrived > LEAST_ARRIVED
        heights = np.log(np.maximum(arrived / LEAST_ARRIVED, 1))  # a factor becomes a difference
        parts = connected_components(reached, connectivity=mask.ndim)
        seeds = number_tops(parts, heights, np.log(self.drop), np.log(self.drop))
        basins = watershed(-heights, seeds, mask=reached)
        found[tuple(places)] = basins[tuple(ends)]
        if self.agreement > 0:
            found = self._agreeing(found, probabilities, inside)
        return without_small(found, self.min_size)

    def _follow(self, field: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Where pixels get by the steps of a field, (axes, *spatial): positions, (axes, pixels)."""
        moves = field
        for _ in range(self.doublings):
            now = places + moves[(slice(None), *places)]
            there = np.stack([ndimage.map_coordinates(axis, now, order=1, mode="nearest") for axis in moves])
            further = np.zeros_like(moves)
            further[(slice(None), *places)] = moves[(slice(None), *places)] + there
            moves = further
        return places + moves[(slice(None), *places)]

    def _agreeing(self, found: np.ndarray, probabilities: np.ndarray, inside: np.ndarray) -> np.ndarray:
        """The objects most of whose probability is that of the direction to their middle."""
        own = np.take_along_axis(probabilities, directions(found)[0][None], 0)[0]
        most = np.bincount(found.ravel(), inside.ravel())
        share = np.bincount(found.ravel(), own.ravel()) / np.maximum(most, 1e-6)
        return np.where(share[found] >= self.agreement, found, 0)
