"""Between instance maps, the classes that a network learns instead, and back to instances.

An instance map numbers its objects: 0 is background, UNKNOWN_OBJECT what nobody annotated, every other id one
object. What nobody annotated is no object's neighbour, and IGNORE_LABEL among the classes.

Sources:
    O. Ronneberger, P. Fischer, T. Brox, "U-Net: Convolutional Networks for Biomedical Image Segmentation",
    MICCAI 2015, section 3: the separation border between touching cells (``SeparateInstancesd``).
    J. C. Caicedo et al., "Evaluation of Deep Learning Strategies for Nucleus Segmentation in Fluorescence
    Images", Cytometry A 95, 2019: background, interior and border as classes.
    P. Soille, "Morphological Image Analysis", 2nd edition, 2003, chapters 6 and 9: h-maxima of the distance
    map as markers, and the watershed from markers (``WatershedInstancesd``; computed by scikit-image).

    A. Mahbod et al., "A dual decoder U-Net-based model for nuclei instance segmentation in hematoxylin and
    eosin-stained histological images", Frontiers in Medicine 9, 2022: distances inside of objects as a
    target, and a watershed on the predicted ones (``InstancesToDistancesd``, ``InstancesFromDistancesd``).

Departures: the paper of 2015 says only that the border is computed by morphological operations; the rule here
is our own, see the class. That of 2022 states neither how distances are normalised nor how seeds are found:
both are ours.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from monai.config import KeysCollection
from monai.transforms import Compose, MapTransform
from monai.utils import ensure_tuple_rep
from scipy import ndimage
from skimage.measure import label as connected_components
from skimage.morphology import local_maxima, reconstruction, remove_small_holes, remove_small_objects
from skimage.segmentation import expand_labels, relabel_sequential, watershed

from scripts.errors import InputError, require_within
from scripts.labels import IGNORE_LABEL, IGNORE_NAME, UNKNOWN_OBJECT, whole_numbers
from scripts.transforms.labels import class_map, like, source_of

#: Keys of the objects that a network found, and of the true ones.
FOUND = ("found_objects", "true_objects")


def cell_ids(instances: np.ndarray, name: str) -> np.ndarray:
    """The instance map as int32, with ids small enough for a list of boxes.

    Several pieces under the only id there is are taken for cells that nobody told apart, and refused; pieces
    that meet at a corner are one. What nobody annotated becomes background.
    """
    ids = whole_numbers(np.where(instances == UNKNOWN_OBJECT, 0, instances), name)
    if ids.max(initial=0) > ids.size:
        ids = relabel_sequential(ids)[0]
    ids = ids.astype(np.int32, copy=False)
    if ids.any() and not ((ids > 0) & (ids < ids.max())).any():
        pieces = connected_components(ids, return_num=True)[1]
        if pieces > 1:
            raise InputError(
                f"{name} holds {pieces} separate cells under one id: the border between cells needs an id "
                "for each; number them, for example with skimage.measure.label"
            )
    return ids


def _extremes(ids: np.ndarray, reach: int, instances_alone: bool) -> tuple[np.ndarray, np.ndarray]:
    """The lowest and the highest id within ``reach`` of every pixel of an instance, along axes and diagonals.

    What nobody annotated does not count.

    Args:
        ids: (*spatial), 0 background, UNKNOWN_OBJECT where nobody annotated.
        reach: pixels.
        instances_alone: leave out the background.
    """
    size = 2 * reach + 1
    counted = np.where(ids > 0 if instances_alone else ids >= 0, ids, ids.max(initial=0))
    return ndimage.minimum_filter(counted, size), ndimage.maximum_filter(ids, size)


class InstancesToClassesd(MapTransform):
    """Turn an instance map into 0 background, 1 interior, 2 border, to tell touching instances apart.

    A pixel of an instance is border when another instance, or background, lies within ``thickness`` of it.

    Args:
        keys: instance maps, (1, *spatial), 0 background, 1..N instances, and UNKNOWN_OBJECT where nobody
            annotated, which becomes IGNORE_LABEL.
        thickness: pixels taken from each instance's rim.
        contacts: the border is where another instance lies so near; towards background there is none.
    """

    def __init__(self, keys: KeysCollection, thickness: int = 1, contacts: bool = False) -> None:
        super().__init__(keys)
        self.thickness = thickness
        self.contacts = contacts

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        for key in self.keys:
            instances = np.asarray(out[key][0])
            low, high = _extremes(instances, self.thickness, self.contacts)
            classes = (instances > 0) * np.where(low == high, 1, 2)
            out[key] = like(_unknown_left_out(classes, instances), out[key])
        return out


def _unknown_left_out(made: np.ndarray, instances: np.ndarray) -> np.ndarray:
    """What was made of an instance map, with IGNORE_LABEL where nobody annotated; both (*spatial)."""
    return np.where(instances == UNKNOWN_OBJECT, IGNORE_LABEL, made).astype(made.dtype)


class FindObjectsd(MapTransform):
    """Number the objects of logits as inference does, beside them, for a validation that judges objects.

    Args:
        keys: logits, (classes, *spatial).
        to_labels: what makes objects of probabilities, as in inference; it reads and writes the same key.
        truth: key of the true objects, (1, *spatial).

    Returns of a call:
        FOUND as well: the objects that were found, and the true ones, (1, *spatial).

    Raises:
        InputError: ``to_labels`` is empty.
    """

    def __init__(self, keys: KeysCollection, to_labels: Sequence[Any], truth: str) -> None:
        super().__init__(keys)
        if not to_labels:
            raise InputError(
                "to_labels is not set, and val_measure judges objects: say how they are made of "
                "probabilities, such as by scripts.transforms.WatershedInstancesd, or set val_measure to dice"
            )
        self.to_labels = Compose(to_labels)
        self.truth = truth

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Add both kinds of objects."""
        out = dict(data)
        for key in self.keys:
            probabilities = out[key].float().softmax(0)
            out |= zip(FOUND, (self.to_labels({key: probabilities})[key], out[self.truth]), strict=True)
        return out


class ComponentsToInstancesd(MapTransform):
    """Number the connected parts (across edges) of equal value from 1 on; 0 stays background.

    A mask of cells that do not touch becomes an instance map, and an instance map stays one.

    Args:
        keys: labels, (1, *spatial), whole numbers, or UNKNOWN_OBJECT, which becomes background.
        labels: name to value; an entry "ignore" is the value of what nobody annotated, background too.
    """

    def __init__(self, keys: KeysCollection, labels: Mapping[str, int] = MappingProxyType({})) -> None:
        super().__init__(keys)
        self.ignored = (UNKNOWN_OBJECT, labels.get(IGNORE_NAME, UNKNOWN_OBJECT))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replace each of the labels."""
        out = dict(data)
        for key in self.keys:
            values = np.asarray(out[key][0])
            known = np.where(np.isin(values, self.ignored), 0, values)
            numbers = whole_numbers(known, source_of(out[key], key))
            out[key] = like(connected_components(numbers, connectivity=1), out[key])
        return out


class SeparateInstancesd(MapTransform):
    """Turn an instance map into 0 background, 1 foreground, with background between touching instances.

    Of two instances with pixels within ``gap`` of each other (diagonal steps count as one), one gives way
    and loses those pixels: the one with more pixels that lie further than ``gap`` from every other instance.
    So at least ``gap`` pixels of background lie between any two, nothing else is cleared, and an instance
    keeps all of its pixels that lie further away. One that has no such pixel is too thin: it loses nothing
    to instances that have some, but of two such neighbours the one of the lower id gives way, and may vanish.

    Args:
        keys: instance maps, (1, *spatial), 0 background, every other id an instance.
        gap: pixels of background between two instances, 1 or more.

    Raises:
        InputError: ``gap`` below 1; fractional or negative ids; several separate pieces under the only id.
    """

    def __init__(self, keys: KeysCollection, gap: int = 1) -> None:
        super().__init__(keys)
        if gap < 1:
            raise InputError(f"gap is {gap}: give 1 pixel or more")
        self.gap = gap

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        for key in self.keys:
            instances = np.asarray(data[key][0])
            ids = cell_ids(instances, source_of(data[key], key))
            apart = self._separated(ids).astype(np.int32)
            out[key] = like(_unknown_left_out(apart, instances), data[key])
        return out

    def _separated(self, ids: np.ndarray) -> np.ndarray:
        lowest, highest = _extremes(ids, self.gap, instances_alone=True)
        alone = np.where(lowest == highest, ids, 0)  # pixels with no other instance within the gap
        free = np.bincount(alone.ravel(), minlength=ids.max(initial=0) + 1)
        rank = np.empty(len(free), dtype=np.int32)  # the lower one gives way
        rank[np.argsort(-free[1:], kind="stable") + 1] = np.arange(1, len(free))
        rank[0] = 0
        ranks = rank[ids]
        return (ranks > 0) & (ndimage.maximum_filter(ranks, 2 * self.gap + 1) == ranks)


class ClassesToInstancesd(MapTransform):
    """Turn classes into an instance map: connected components of the interior, grown back over the border.

    Args:
        keys: class maps, (1, *spatial).
        interior: class index of the interior.
        border: class index of the border, or None when there is none.
        grow: pixels by which an instance may grow into the border class.
        min_size: components of fewer pixels are dropped.

    Raises:
        InputError: several channels: probabilities instead of classes.
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
            classes = np.asarray(class_map(out[key], key)[0].cpu())
            interior = remove_small_objects(classes == self.interior, max_size=self.min_size - 1)
            instances = connected_components(interior, connectivity=1)
            if self.border is not None:
                grown = expand_labels(instances, self.grow)
                grown = np.where((classes == self.interior) | (classes == self.border), grown, 0)
                pieces = connected_components(grown, connectivity=grown.ndim)
                with_core = np.isin(pieces, np.unique(pieces[interior]))  # border beyond a gap is nobody's
                instances = np.where(with_core, grown, 0)
            out[key] = like(instances, out[key])
        return out


class WatershedInstancesd(MapTransform):
    """Turn class probabilities into an instance map: a watershed from the cores of the interior.

    1. The mask is where background is improbable; small holes in it are filled.
    2. Cores are the connected parts of the probable interior that are large enough. A core is cut where it
       has a neck: each of its parts that is clearly thicker than the way to a thicker one is a seed.
    3. The seeds grow over the mask: first through their core, from the inside out, then over the other
       pixels in the order of their interior probability. Two that meet stop. What no seed reaches is
       background.
    4. Instances that are too small (parts of a core that was cut) are dropped, the others numbered 1 to N.

    Lengths and sizes count pixels or voxels, whatever their sides measure.

    Args:
        keys: probabilities, (classes, *spatial), 0 to 1: background and interior (for cells behind membranes:
            membrane and cell), or background, interior and border.
        threshold: the mask is where the probability of all classes but background is above this.
        seed_threshold: a core is where the probability of the interior is above this, inside the mask.
        neck: a core is cut where it is at least this many pixels thinner, from the middle to the rim, than in
            the parts on both sides; 0: cores stay whole.
        max_hole: holes in the mask of up to so many pixels are filled; so are small pieces of background at
            the edge of the image.
        min_size: cores of fewer pixels are no cores, what they cover goes to others in the mask; instances of
            fewer pixels are dropped.
        line: keep a line of background, one pixel wide, between instances that meet.

    Raises:
        InputError: an argument out of its range; not two or three channels.
    """

    def __init__(
        self,
        keys: KeysCollection,
        threshold: float = 0.5,
        seed_threshold: float = 0.7,
        neck: float = 2.0,
        max_hole: int = 0,
        min_size: int = 10,
        line: bool = False,
    ) -> None:
        super().__init__(keys)
        for name, value in (("threshold", threshold), ("seed_threshold", seed_threshold)):
            if not 0 <= value < 1:
                raise InputError(f"{name} is {value}: give a probability from 0 to below 1")
        for name, value in (("neck", neck), ("max_hole", max_hole), ("min_size", min_size)):
            if not value >= 0:
                raise InputError(f"{name} is {value}: give 0 pixels or more")
        self.threshold = threshold
        self.seed_threshold = seed_threshold
        self.neck = neck
        self.max_hole = max_hole
        self.min_size = min_size
        self.line = line

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        for key in self.keys:
            if len(data[key]) not in (2, 3):
                raise InputError(
                    f"{source_of(data[key], key)} has {len(data[key])} channels: give the probabilities of "
                    "background and interior, or of background, interior and border, without argmax before"
                )
            out[key] = like(self._instances(np.asarray(data[key].float().cpu())), data[key])
        return out

    def _instances(self, probabilities: np.ndarray) -> np.ndarray:
        """From (classes, *spatial) to (*spatial)."""
        interior = probabilities[1]
        mask = remove_small_holes(1 - probabilities[0] > self.threshold, max_size=self.max_hole)
        core = mask & (interior > self.seed_threshold)
        core = remove_small_objects(core, max_size=max(self.min_size - 1, 0))
        depth = ndimage.distance_transform_edt(core)  # from 1 in the core, 0 elsewhere
        relief = -(depth + interior)  # the core lies below all the rest, and floods first
        flooded = watershed(relief, self._seeds(core, depth), mask=mask, watershed_line=self.line)
        instances = connected_components(flooded, connectivity=flooded.ndim)  # lines may cut one in two
        return without_small(instances, self.min_size)

    def _seeds(self, core: np.ndarray, depth: np.ndarray) -> np.ndarray:
        """Number the seeds: the cores, or the top of each of their parts where necks divide them."""
        cores = connected_components(core, connectivity=1)
        if self.neck == 0:
            return cores
        # not even a neck one pixel wide is so much thinner than a core that is not thicker than this
        return number_tops(cores, depth, self.neck, 1 + self.neck)


class InstancesToDistancesd(MapTransform):
    """Turn an instance map into distances, and into 0 background, 1 interior, 2 border by them.

    The distance of a pixel of an instance is that to the nearest pixel outside of it, divided by the largest
    of the instance: 1 in its middle, more than 0 all over it. Background has 0. The edge of the image is no
    border: an instance that it cuts has its middle there. Lengths count pixels or voxels.

    Args:
        keys: instance maps, (1, *spatial), 0 background, every other id an instance; become class maps.
        distance_key: where the distances go, (1, *spatial) float32; one name for each of ``keys``.
        threshold: the interior is where the distance is above this, 0 to 1.

    Raises:
        InputError: ``threshold`` out of its range; fractional or negative ids; several separate pieces under
            the only id.
    """

    def __init__(
        self, keys: KeysCollection, distance_key: KeysCollection = "distance", threshold: float = 0.5
    ) -> None:
        super().__init__(keys)
        require_within("threshold", threshold, 0, 1)
        self.distance_keys: tuple[Hashable, ...] = ensure_tuple_rep(distance_key, len(self.keys))
        self.threshold = threshold

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        for key, distance_key in zip(self.keys, self.distance_keys, strict=True):
            instances = np.asarray(data[key][0])
            ids = cell_ids(instances, source_of(data[key], key))
            distances = _distances(ids, instances == UNKNOWN_OBJECT)
            classes = (ids > 0) * np.where(distances > self.threshold, 1, 2)
            out[distance_key] = like(_unknown_left_out(distances, instances), data[key])
            out[key] = like(_unknown_left_out(classes, instances), data[key])
        return out


class InstancesFromDistancesd(MapTransform):
    """Turn probabilities of background, interior and border into an instance map, the other way round.

    1. The mask is where background is improbable; small holes in it are filled.
    2. The distance is the share of the interior in what is not background, smoothed.
    3. A seed is a top of the distance that is higher than all ways to a higher one by ``height``; a part of
       the mask has one seed or more. The seeds grow over the mask from the inside out, until two meet.
    4. Instances that are too small are dropped, the others numbered 1 to N.

    Args:
        keys: probabilities, (3, *spatial), 0 to 1, as `scripts.networks.dual.DistanceHeads` gives.
        threshold: the mask is where the probability of all classes but background is above this.
        height: of a top, above 0 to 1: lower ones are taken for noise. Two touching objects are told apart
            where the distance between them is lower by this than in the middle of either.
        smoothing: standard deviation of the Gaussian that smooths distances, in pixels, 0 or more.
        max_hole: holes in the mask of up to so many pixels are filled.
        min_size: instances of fewer pixels are dropped.

    Raises:
        InputError: an argument out of its range; not three channels.
    """

    def __init__(
        self,
        keys: KeysCollection,
        threshold: float = 0.5,
        height: float = 0.2,
        smoothing: float = 1.0,
        max_hole: int = 0,
        min_size: int = 10,
    ) -> None:
        super().__init__(keys)
        require_within("threshold", threshold, 0, 1)
        require_within("height", height, 0, 1)
        if height == 0:
            raise InputError("height is 0: use a number above 0, as every top would be a seed")
        for name, value in (("smoothing", smoothing), ("max_hole", max_hole), ("min_size", min_size)):
            require_within(name, value, 0)
        self.threshold = threshold
        self.height = height
        self.smoothing = smoothing
        self.max_hole = max_hole
        self.min_size = min_size

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        for key in self.keys:
            if len(data[key]) != 3:
                raise InputError(
                    f"{source_of(data[key], key)} has {len(data[key])} channels: give the probabilities of "
                    "background, interior and border, without argmax before"
                )
            out[key] = like(self._instances(np.asarray(data[key].float().cpu())), data[key])
        return out

    def _instances(self, probabilities: np.ndarray) -> np.ndarray:
        """From (3, *spatial) to (*spatial)."""
        inside = probabilities[1] + probabilities[2]
        mask = remove_small_holes(inside > self.threshold, max_size=self.max_hole)
        # the mask has more than nothing of interior and border, but for holes that were filled
        distance = np.divide(probabilities[1], inside, out=np.zeros_like(inside), where=mask & (inside > 0))
        distance = ndimage.gaussian_filter(distance, self.smoothing)
        parts = connected_components(mask, connectivity=1)
        seeds = number_tops(parts, distance, self.height, self.height)
        return without_small(watershed(-distance, seeds, mask=mask), self.min_size)


def _distances(ids: np.ndarray, unknown: np.ndarray) -> np.ndarray:
    """Of each pixel of an instance to the nearest outside of it, as a share of the instance's largest.

    Args:
        ids: (*spatial), 0 background.
        unknown: (*spatial), where nobody annotated, which is no outside.

    Returns:
        (*spatial), float32; 0 in the background.
    """
    distances = np.zeros(ids.shape, dtype=np.float32)
    for number, box in enumerate(ndimage.find_objects(ids), start=1):
        if box is None:
            continue
        grown = tuple(slice(max(s.start - 1, 0), s.stop + 1) for s in box)
        own = ids[grown] == number
        reach = own | unknown[grown]
        if reach.all():  # it covers the image: without an outside there is no distance, and its edge is one
            inside = ndimage.distance_transform_edt(np.pad(own, 1))[(slice(1, -1),) * own.ndim]
        else:
            inside = ndimage.distance_transform_edt(reach)
        distances[grown][own] = (inside / inside[own].max())[own]
    return distances


def number_tops(parts: np.ndarray, heights: np.ndarray, drop: float, least: float) -> np.ndarray:
    """Number the tops of each part: where heights exceed all ways to a higher place by ``drop``.

    Args:
        parts: (*spatial), numbered from 1 on; 0 elsewhere.
        heights: (*spatial), 0 or more.
        drop: above 0.
        least: a part that is nowhere higher than this is one top as a whole.
    """
    tops, count = np.zeros_like(parts), 0
    for number, box in enumerate(ndimage.find_objects(parts), start=1):
        top = own = parts[box] == number
        inside = np.where(own, heights[box], 0)
        if inside.max() > least:
            # not skimage's h_maxima, which parts two tops of the same height however wide the neck is
            top = local_maxima(reconstruction(inside - drop, inside)) & own
            top = top if top.any() else own  # a box that the part fills, all on one level
        found, several = connected_components(top, connectivity=top.ndim, return_num=True)
        tops[box][found > 0] = found[found > 0] + count
        count += several
    return tops


def without_small(instances: np.ndarray, min_size: int) -> np.ndarray:
    """An instance map without what has fewer pixels than ``min_size``, numbered 1 to N in the same order."""
    counts = np.bincount(instances.ravel())
    kept = (counts >= max(min_size, 1)) & (np.arange(len(counts)) > 0)
    return (np.cumsum(kept) * kept)[instances]
