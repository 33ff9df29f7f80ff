"""Between instance maps and star-convex distances: how far each pixel sees within its object, all around.

From every pixel of an object rays go out to the object's border. Where two objects touch the distances change
over the whole of both and not in a thin border alone, and each pixel says by itself where its object ends.

Source:
    U. Schmidt, M. Weigert, C. Broaddus, G. Myers, "Cell Detection with Star-convex Polygons", MICCAI 2018:
    a probability that is the distance to the border, radial distances, and polygons of which those that
    overlap a more probable one are dropped.

Departures: 16 rays instead of 32. Everything is one map of classes, whose mean over tiles, orientations and
networks means something: background, interior, border, and one for each ray. The probability is that of all
but background and border, and a distance is the share of its ray against that of the interior. Rays that
leave the image say that the border is at least as far. Rays run along digital lines. Polygons vote for the
shape of an object, and the mask has a say in it.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from monai.utils import ensure_tuple_rep
from skimage.morphology import remove_small_holes
from skimage.segmentation import expand_labels

from scripts.errors import InputError, require_within
from scripts.labels import BEFORE_RAYS, IGNORE_LABEL, RAY_UNIT, UNKNOWN_OBJECT, whole_numbers
from scripts.transforms.instances import without_small
from scripts.transforms.labels import like, source_of

#: Fewer rays make no polygon of a cell.
LEAST_RAYS = 8

#: Of the interior, below which a ratio to it says nothing.
LEAST_SHARE = 1e-12

#: Of a ray, in pixels: a polygon has at least its own pixel.
LEAST_DISTANCE = 0.1

#: The interior is deeper than this share of the object's depth, the border less deep.
INTERIOR_DEPTH = 0.5


def star_distances(ids: np.ndarray, rays: int) -> np.ndarray:
    """How far it is from each pixel of an object to the object's border, along rays all around.

    Ray k leaves at the angle ``2 pi k / rays`` from the second axis towards the first. It runs along a
    digital line and ends halfway between the last pixel of the object and the next one.

    Args:
        ids: (H, W), whole numbers: 0 background, -1 where nobody annotated, every other id an object.
        rays: a multiple of 4.

    Returns:
        (rays, H, W), float32, pixels; 0 outside of objects; negative where a ray leaves the image, or gets to
        where nobody annotated: the border is at least so far away.
    """
    distances = np.zeros((rays, *ids.shape), np.float32)
    flat = distances.reshape(rays, -1)
    for ray in range(rays // 2):
        angle = 2 * math.pi * ray / rays
        along = 1 if abs(math.cos(angle)) >= abs(math.sin(angle)) else 0
        slope = math.tan(angle) if along else 1 / math.tan(angle)
        ahead, behind = ray, ray + rays // 2
        if along and math.cos(angle) < 0:
            ahead, behind = behind, ahead
        places, forth, back = _along_lines(ids if along else np.ascontiguousarray(ids.T), slope)
        if not along:
            places = places % len(ids) * ids.shape[1] + places // len(ids)
        flat[ahead, places], flat[behind, places] = forth, back
    return distances


def _along_lines(ids: np.ndarray, slope: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distances along the digital lines that rise by ``slope``, -1 to 1, rows a column.

    Args:
        ids: (H, W), see `star_distances`.
        slope: rows a column.

    Returns:
        Flat indices of the pixels of objects, and their distances towards higher and lower columns.
    """
    height, width = ids.shape
    columns = np.arange(width)
    shift = np.rint(slope * columns).astype(np.int64)
    # every row of this grid is a line, which comes in again at the other side of the image
    lines = ((np.arange(height)[:, None] + shift) % height * width + columns).ravel()
    objects = ids.ravel()[lines]
    found = np.flatnonzero(objects > 0)
    if not len(found):
        return found, np.zeros(0, np.float32), np.zeros(0, np.float32)
    places, own = lines[found], objects[found]
    row, column = np.divmod(places, width)
    linked = (np.diff(found) == 1) & (column[1:] > 0) & (own[1:] == own[:-1])
    linked &= np.diff(row) == np.diff(shift[column])
    last = np.flatnonzero(np.append(~linked, True))  # of each run
    first = np.append(0, last[:-1] + 1)
    lengths = last - first + 1
    behind = np.arange(len(found)) - np.repeat(first, lengths)
    ahead = np.repeat(lengths, lengths) - 1 - behind
    step = math.hypot(1, slope)

    def open_ended(ends: np.ndarray, by: int) -> np.ndarray:
        """Whether what follows the end of a run is unknown: -1, else 1."""
        further = column[ends] + by
        inside = (further >= 0) & (further < width)
        further = np.clip(further, 0, width - 1)
        beside = row[ends] + shift[further] - shift[column[ends]]
        inside &= (beside >= 0) & (beside < height)
        known = ids[np.clip(beside, 0, height - 1), further] >= 0
        return np.where(inside & known, 1.0, -1.0)

    forth = (ahead + 0.5) * step * np.repeat(open_ended(last, 1), lengths)
    back = (behind + 0.5) * step * np.repeat(open_ended(first, -1), lengths)
    return places, forth.astype(np.float32), back.astype(np.float32)


def star_depth(ids: np.ndarray, distances: np.ndarray) -> np.ndarray:
    """The shortest distance of each pixel, as a share of the largest such of its object.

    The edge of the image and what nobody annotated are no border.

    Args:
        ids: (H, W), see `star_distances`.
        distances: (rays, H, W), of `star_distances`.

    Returns:
        (H, W), float32, more than 0 to 1 in objects, 0 outside.
    """
    depth = np.zeros(ids.shape, np.float32)
    objects = ids > 0
    if not objects.any():
        return depth
    rays = distances[:, objects]
    shortest = np.where(rays > 0, rays, np.abs(rays).max()).min(0)
    _, own = np.unique(ids[objects], return_inverse=True)
    deepest = np.zeros(own.max() + 1, np.float32)
    np.maximum.at(deepest, own, shortest)
    depth[objects] = shortest / deepest[own]
    return depth


class InstancesToStarsd(MapTransform):
    """Turn an instance map into classes, and beside them depths and distances along rays.

    The classes are 0 background, 1 interior, 2 border, by the depth. To be named after what turns and deforms
    the objects.

    Args:
        keys: instance maps, (1, H, W), whole numbers, 0 background, UNKNOWN_OBJECT where nobody annotated;
            become class maps.
        star_key: where the depth, see `star_depth`, and the distances, see `star_distances`, go,
            (1 + rays, H, W) float32; one name for each of ``keys``, or None to make none.
        instances_key: where the objects go, (1, H, W), numbered without ``IGNORE_LABEL``, which a patch may
            then put where it leaves the image; one name for each of ``keys``, or None.
        ignore_label: number in ``keys`` that is no object but means that nobody annotated, or None.
        rays: a multiple of 4.

    Raises:
        InputError: fractional or negative numbers; volumes; another number of rays.
    """

    def __init__(
        self,
        keys: KeysCollection,
        star_key: KeysCollection | None = None,
        instances_key: KeysCollection | None = None,
        ignore_label: int | None = None,
        rays: int = 16,
    ) -> None:
        super().__init__(keys)
        require_rays(rays)
        self.star_keys: tuple[Hashable, ...] = ensure_tuple_rep(star_key, len(self.keys))
        self.instances_keys: tuple[Hashable, ...] = ensure_tuple_rep(instances_key, len(self.keys))
        self.ignore_label = ignore_label
        self.rays = rays

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replace each of the instance maps."""
        out = dict(data)
        for key, star_key, instances_key in zip(self.keys, self.star_keys, self.instances_keys, strict=True):
            require_picture(data[key], key)
            given = np.asarray(data[key][0])
            unknown = np.isin(given, [UNKNOWN_OBJECT, self.ignore_label or UNKNOWN_OBJECT])
            ids = whole_numbers(np.where(unknown, 0, given), source_of(data[key], key)).astype(np.int64)
            ids[unknown] = -1
            distances = star_distances(ids, self.rays)
            depth = star_depth(ids, distances)
            classes = (ids > 0) * np.where(depth > INTERIOR_DEPTH, 1, 2)
            out[key] = like(np.where(unknown, IGNORE_LABEL, classes), data[key])
            if star_key is not None:
                out[star_key] = torch.from_numpy(np.concatenate([depth[None], distances]))
            if instances_key is not None:
                apart = np.where(unknown, IGNORE_LABEL, ids + (ids >= IGNORE_LABEL))
                out[instances_key] = like(apart, data[key])
        return out


def require_rays(rays: int) -> None:
    """Refuse a number of rays that a turned image does not have in its turned directions.

    Raises:
        InputError: no multiple of 4, or fewer than 8.
    """
    if rays % 4 or rays < LEAST_RAYS:
        raise InputError(
            f"rays is {rays}: use a multiple of 4 from {LEAST_RAYS} on, as images are turned and mirrored"
        )


def require_picture(tensor: torch.Tensor, key: Hashable) -> None:
    """Refuse volumes, in which rays all around would be a sphere of them.

    Raises:
        InputError: another number of axes than two.
    """
    if tensor.ndim != 3:
        raise InputError(
            f"{source_of(tensor, key)} has {tensor.ndim - 1} axes: star-convex distances are of pictures; "
            "use configs/network/directions.json or dual_decoder.json for volumes"
        )


class Stars:
    """The polygons of some pixels.

    Args:
        probabilities: (3 + rays, H, W), see `InstancesFromStarsd`.
        places: flat indices of the pixels, (P,).

    Attributes:
        shape: (H, W).
        places: flat indices of the pixels, (P,).
    """

    def __init__(self, probabilities: np.ndarray, places: np.ndarray) -> None:
        self.shape = probabilities.shape[1:]
        self.places = places
        flat = probabilities.reshape(len(probabilities), -1)[:, places]
        distances = RAY_UNIT * flat[BEFORE_RAYS:] / np.maximum(flat[1], LEAST_SHARE)
        # (P, rays), no further than the image is long
        self.distances = np.clip(distances, LEAST_DISTANCE, max(self.shape)).T.astype(np.float32)
        reach = math.ceil(self.distances.max(initial=0))
        rows, columns = np.indices((2 * reach + 1,) * 2).reshape(2, -1) - reach
        away = np.hypot(rows, columns)
        order = np.argsort(away, kind="stable")[: np.count_nonzero(away <= reach)]
        self.row, self.column, self.away = rows[order], columns[order], away[order]
        # each offset is so much of the ray before it and of the ray after it
        rays = self.distances.shape[1]
        turn = 2 * math.pi / rays
        angle = np.arctan2(self.row, self.column) % (2 * math.pi) / turn
        self.before = np.floor(angle).astype(np.int64) % rays
        self.after = (self.before + 1) % rays
        share = (angle - np.floor(angle)) * turn
        self.of_before = (self.away * np.sin(turn - share) / math.sin(turn)).astype(np.float32)
        self.of_after = (self.away * np.sin(share) / math.sin(turn)).astype(np.float32)

    def pixels(self, index: int) -> np.ndarray:
        """Flat indices of the image's pixels in the polygon of the pixel at an index."""
        distances = self.distances[index]
        near = slice(np.searchsorted(self.away, distances.max(), side="right"))
        part = 1 / distances
        # on this side of the straight line between the ends of the two rays
        inside = (
            self.of_before[near] * part[self.before[near]] + self.of_after[near] * part[self.after[near]] <= 1
        )
        row, column = divmod(int(self.places[index]), self.shape[1])
        rows, columns = row + self.row[near][inside], column + self.column[near][inside]
        there = (rows >= 0) & (rows < self.shape[0]) & (columns >= 0) & (columns < self.shape[1])
        return rows[there] * self.shape[1] + columns[there]


class InstancesFromStarsd(MapTransform):
    """Turn probabilities of background, interior, border and rays into an instance map.

    1. Every pixel that is probable to lie deep in an object draws a polygon by its distances. The most
       probable comes first; one that overlaps an earlier one too much is dropped.
    2. The most probable pixels of a polygon vote for the shape of its object, each by its own polygon: the
       object is where half of them agree. Where several claim a pixel it has the one with most of its votes.
    3. Pixels of the mask that nobody claims go to an object next to them. Objects that are too small are
       dropped, the others numbered 1 to N.

    Args:
        keys: probabilities, (3 + rays, H, W), 0 to 1, see `InstancesToStarsd`.
        seed_threshold: polygons are drawn from where the probability of all classes but background and border
            is above this, 0 to 1.
        overlap: share of the smaller of two polygons, 0 to 1: of those that overlap by more one is dropped.
        votes: pixels of a polygon that vote, 1 or more; with 1 an object is its polygon.
        threshold: the mask is where the probability of all classes but background is above this.
        grow: pixels by which an object may grow over the mask.
        max_hole: holes in the mask of up to so many pixels are filled.
        min_size: objects of fewer pixels are dropped.

    Raises:
        InputError: an argument out of its range; volumes; channels of no multiple of 4 rays.
    """

    def __init__(
        self,
        keys: KeysCollection,
        seed_threshold: float = 0.5,
        overlap: float = 0.15,
        votes: int = 16,
        threshold: float = 0.5,
        grow: int = 4,
        max_hole: int = 0,
        min_size: int = 10,
    ) -> None:
        super().__init__(keys)
        for name, share in (
            ("seed_threshold", seed_threshold),
            ("overlap", overlap),
            ("threshold", threshold),
        ):
            require_within(name, share, 0, 1)
        require_within("votes", votes, 1)
        for name, value in (("grow", grow), ("max_hole", max_hole), ("min_size", min_size)):
            require_within(name, value, 0)
        self.seed_threshold = seed_threshold
        self.overlap = overlap
        self.votes = votes
        self.threshold = threshold
        self.grow = grow
        self.max_hole = max_hole
        self.min_size = min_size

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        for key in self.keys:
            require_picture(data[key], key)
            rays = len(data[key]) - BEFORE_RAYS
            if rays < LEAST_RAYS or rays % 4:
                raise InputError(
                    f"{source_of(data[key], key)} has {len(data[key])} channels: give the probabilities of "
                    "background, interior, border and of a multiple of 4 rays, without argmax before"
                )
            out[key] = like(self._instances(np.asarray(data[key].float().cpu())), data[key])
        return out

    def _instances(self, probabilities: np.ndarray) -> np.ndarray:
        """From (3 + rays, H, W) to (H, W)."""
        inside = 1 - probabilities[0]
        score = inside - probabilities[2]
        places = np.flatnonzero(score > self.seed_threshold)
        places = places[np.argsort(-score.ravel()[places], kind="stable")]
        stars = Stars(probabilities, places)
        winners = self._winners(stars)
        found = self._voted(stars, winners) if self.votes > 1 else winners
        mask = remove_small_holes(inside > self.threshold, max_size=self.max_hole)
        found = np.where(mask, expand_labels(found, self.grow), 0)
        return without_small(found, self.min_size)

    def _winners(self, stars: Stars) -> np.ndarray:
        """Number the polygons that overlap none before them too much, (H, W)."""
        found = np.zeros(stars.shape, np.int32)
        flat = found.ravel()
        areas = [0]
        for index, place in enumerate(stars.places):
            if flat[place]:
                continue
            drawn = stars.pixels(index)
            there = flat[drawn]
            met = np.bincount(there[there > 0], minlength=1)
            smaller = np.minimum(len(drawn), areas[: len(met)])
            if len(drawn) == 0 or (met > self.overlap * smaller).any():
                continue
            flat[drawn[there == 0]] = len(areas)
            areas.append(len(drawn))
        return found

    def _voted(self, stars: Stars, winners: np.ndarray) -> np.ndarray:
        """The objects as the most probable pixels of each winner see them, (H, W)."""
        own = winners.ravel()[stars.places]
        found, most = np.zeros(winners.size, np.int32), np.full(winners.size, 0.5)
        order = np.argsort(own, kind="stable")  # within an object the most probable first
        starts = np.searchsorted(own[order], np.arange(1, winners.max(initial=0) + 2))
        for number, (start, stop) in enumerate(pairwise(starts.tolist()), start=1):
            voters = order[start : min(stop, start + self.votes)]
            votes = np.concatenate([stars.pixels(index) for index in voters])
            places, counts = np.unique(votes, return_counts=True)
            share = counts / len(voters)
            better = share > most[places]
            found[places[better]], most[places[better]] = number, share[better]
        return found.reshape(winners.shape)
