"""Weight maps that make a network learn the thin background between touching cells.

Source:
    O. Ronneberger, P. Fischer, T. Brox, "U-Net: Convolutional Networks for Biomedical Image Segmentation",
    MICCAI 2015, equation 2: w(x) = w_c(x) + w0 * exp(-(d1(x) + d2(x))^2 / (2 sigma^2)), where d1 and d2 are
    the distances to the border of the nearest and of the second nearest cell, and w_c balances the class
    frequencies.

The paper says neither which pixels are a cell's border nor what w_c is further: see border_weight_map and
class_weight_map. Departures: works in 3D and with voxels of unequal sides as well, and may take the distances
to the cells instead of their borders, so that inside a cell d1 is 0 (``distance_to``).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import ensure_tuple
from scipy import ndimage

from scripts.errors import InputError
from scripts.labels import IGNORE_LABEL, UNKNOWN_OBJECT, whole_numbers
from scripts.transforms.instances import cell_ids
from scripts.transforms.labels import like, source_of

#: What d1 and d2 of equation 2 lead to: the paper's borders of the cells, or the cells with all they cover.
DISTANCES = ("border", "cell")

#: What the border term may lack of equation 2: pixels whose term is smaller count as infinitely far away.
BORDER_TOLERANCE = 5e-6


def border_weight_map(
    instances: np.ndarray,
    spacing: Sequence[float] | None = None,
    w0: float = 10.0,
    sigma: float = 5.0,
    distance_to: str = "border",
) -> np.ndarray:
    """The border term of equation 2: w0 * exp(-(d1 + d2)^2 / (2 sigma^2)) on every pixel.

    A distance runs from a pixel's centre to that of the nearest pixel of the cell's border: its own pixels
    with an edge (in 3D a face) to a pixel of the image that is not the cell's. With fewer than two cells
    there is no second nearest and the term is 0. Each cell is measured only as far as it can matter: the
    result is exact within 1e-5 (for large ``w0`` within single precision), and the memory taken does not
    depend on the number of cells.

    Args:
        instances: (*spatial), whole numbers: 0 background, every other id a cell. An instance map knows no
            ``IGNORE_LABEL``: there 255 is a cell like any other.
        spacing: size of a voxel, one number an axis; None for pixels.
        w0: largest weight; with 0 there is no border term.
        sigma: how far the border reaches, above 0, in the unit of ``spacing``.
        distance_to: "border" as in the paper, or "cell": 0 all over a cell, so that behind its border the
            weight decays half as fast. Outside of cells they are the same.

    Returns:
        (*spatial), float32, from 0 to ``w0``.

    Raises:
        InputError: fractional or negative ids; several separate cells under the only id; ``spacing``, ``w0``
            or ``sigma`` out of range; another ``distance_to``.
    """
    _check_distance(distance_to)
    cells = cell_ids(instances, "instances")
    if not 0 <= w0 < math.inf:
        raise InputError(f"w0 is {w0}: give a number, 0 or more")
    if not 0 < sigma < math.inf:
        raise InputError(f"sigma is {sigma}: give a number above 0")
    sides = [1.0] * cells.ndim if spacing is None else [float(side) for side in spacing]
    if len(sides) != cells.ndim or not all(0 < side < math.inf for side in sides):
        raise InputError(f"spacing is {sides}: give {cells.ndim} numbers above 0, one for each axis")
    # beyond this sum of distances, let alone one of them, the term is less than BORDER_TOLERANCE
    reach = sigma * math.sqrt(2 * math.log(max(w0 / BORDER_TOLERANCE, 1)))
    margins = [max(math.floor(reach / side), 1) for side in sides]  # beyond a cell's box it has no pixel
    nearest = np.full(cells.shape, np.inf, dtype=np.float32)  # d1
    second = nearest.copy()  # d2
    for cell, box in enumerate(ndimage.find_objects(cells), start=1):
        if box is None:
            continue
        grown = tuple(slice(max(s.start - m, 0), s.stop + m) for s, m in zip(box, margins, strict=True))
        measured = cells[grown] == cell
        if distance_to == "border":
            measured &= ~ndimage.binary_erosion(measured, border_value=1)  # the image's edge is no border
        distance = ndimage.distance_transform_edt(~measured, sampling=spacing).astype(np.float32)
        first, other = nearest[grown], second[grown]
        np.minimum(other, np.maximum(first, distance), out=other)
        np.minimum(first, distance, out=first)
    term = nearest
    term += second
    term *= term
    term /= -2 * sigma**2
    np.exp(term, out=term)
    term *= w0
    return term


def _check_distance(distance_to: str) -> None:
    if distance_to not in DISTANCES:
        raise InputError(f"distance_to is {distance_to!r}: give 'border' or 'cell'")


def class_weight_map(classes: np.ndarray) -> np.ndarray:
    """The class term w_c of equation 2: one over the frequency of a pixel's class, 1 in the mean.

    Every class present weighs the same in sum: a pixel of a class of n among N annotated pixels of K classes
    present weighs N / (K n).

    Args:
        classes: (*spatial), class indices 0 to 254 or ``IGNORE_LABEL``; a mask of two classes may be boolean.

    Returns:
        (*spatial), float32; 0 where the class is ``IGNORE_LABEL``, and 1 in the mean over all other pixels.

    Raises:
        InputError: a fractional or negative class, or one above 255.
    """
    indices = whole_numbers(classes, "classes")
    if indices.max(initial=0) > IGNORE_LABEL:
        raise InputError(
            f"classes holds the value {indices.max()}: give class indices from 0 to {IGNORE_LABEL}"
        )
    counts = np.bincount(indices.ravel(), minlength=IGNORE_LABEL + 1)
    counts[IGNORE_LABEL] = 0
    present = counts > 0
    weights = np.zeros(len(counts), dtype=np.float32)
    weights[present] = counts.sum() / (present.sum() * counts[present])
    return weights[indices]


class BorderWeightsd(MapTransform):
    """Make the weight map of equation 2, class term plus border term, from an instance map.

    Args:
        keys: instance maps, (1, *spatial), 0 background, every other id a cell.
        weight_key: where the weight map goes, (1, *spatial) float32; one name for each of ``keys``.
        label_key: a class map, (1, *spatial), whose classes the class term balances; the weight is 0 where it
            carries ``IGNORE_LABEL``. None: the class term balances cells against background, and the weight
            is 0 where the instance map carries ``UNKNOWN_OBJECT``.
        units: "pixel", or "mm" to honour the voxel size of the instance map (its MetaTensor's affine).
        w0: largest weight of the border term; with 0 the class term is left alone.
        sigma: how far the border reaches, above 0, in ``units``.
        distance_to: "border" or "cell", see border_weight_map.

    Raises:
        InputError: an argument breaks its rule; an instance map with fractional or negative ids, or with
            several separate cells under its only id; a class map of another size.
    """

    def __init__(
        self,
        keys: KeysCollection,
        weight_key: KeysCollection = "weight",
        label_key: Hashable | None = None,
        units: str = "pixel",
        w0: float = 10.0,
        sigma: float = 5.0,
        distance_to: str = "border",
    ) -> None:
        super().__init__(keys)
        _check_distance(distance_to)
        self.weight_keys: tuple[Hashable, ...] = ensure_tuple(weight_key)
        if len(set(self.weight_keys)) != len(self.keys):
            raise InputError(
                f"weight_key is {list(self.weight_keys)}: "
                f"give one name for each of the keys {list(self.keys)}"
            )
        if units not in ("pixel", "mm"):
            raise InputError(f"units is {units!r}: give 'pixel' or 'mm'")
        self.label_key = label_key
        self.units = units
        self.w0 = w0
        self.sigma = sigma
        self.distance_to = distance_to

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        for key, weight_key in zip(self.keys, self.weight_keys, strict=True):
            instances = np.asarray(data[key][0])
            cells = cell_ids(instances, source_of(data[key], key))
            if self.label_key is None:
                classes = np.where(instances == UNKNOWN_OBJECT, IGNORE_LABEL, cells > 0)
            else:
                classes = np.asarray(data[self.label_key][0])
            if classes.shape != cells.shape:
                raise InputError(
                    f"{self.label_key} has {list(classes.shape)} pixels and {key} {list(cells.shape)}: "
                    "give class map and instance map on one grid"
                )
            weight = class_weight_map(classes)
            spacing = self._spacing(data[key])
            weight += border_weight_map(cells, spacing, self.w0, self.sigma, self.distance_to)
            weight[classes == IGNORE_LABEL] = 0
            out[weight_key] = like(weight, data[key])
        return out

    def _spacing(self, instances: torch.Tensor) -> list[float] | None:
        if self.units == "pixel" or not isinstance(instances, MetaTensor):
            return None
        return instances.pixdim[: instances.ndim - 1].tolist()
