"""Transforms of MONAI that need something more, for servers that run them one by one and for small voxels."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Spacingd
from monai.utils import convert_to_numpy

from scripts.labels import label_type


class IsolatedSpacingd(Spacingd):
    """MONAI's Spacingd, which sees the keys it is given and nothing else, and computes in a unit that fits.

    MONAI's writes the meta data of a NIfTI file to every entry whose name begins with the key, and fails
    where one is no dictionary: MONAI Label keeps the file's name under "image_path" beside "image". It takes
    two affines for one where they differ by less than 0.001 mm, and so leaves voxels of a micrometre alone.
    Here it is given lengths in the power of 2 that is next below the smallest edge asked for: such a change
    of units costs no digit.

    Args:
        keys: see Spacingd.
        pixdim: edges of a voxel in mm, see Spacingd.
        **settings: other arguments of Spacingd.
    """

    def __init__(self, keys: KeysCollection, pixdim: Sequence[float] | float, **settings: Any) -> None:
        sizes = np.atleast_1d(np.asarray(pixdim, dtype=float))
        given = sizes[np.isfinite(sizes) & (sizes > 0)]
        self.unit = 2.0 ** np.floor(np.log2(given.min())) if given.size else 1.0
        scaled = {
            name: (np.asarray(value, dtype=float) / self.unit).tolist()
            for name, value in {"pixdim": pixdim, **settings}.items()
            if name in ("pixdim", "min_pixdim", "max_pixdim") and value is not None
        }
        super().__init__(keys, **{**settings, **scaled})

    def __call__(self, data: Mapping[Hashable, Any], lazy: bool | None = None) -> dict[Hashable, Any]:
        """Resample the keys, and hand on the rest."""
        own = {key: in_unit(data[key], self.unit) for key in self.key_iterator(dict(data))}
        return {**data, **self._in_mm(super().__call__(own, lazy))}

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Bring the keys back to their grid, and hand on the rest."""
        own = {key: in_unit(data[key], self.unit) for key in self.key_iterator(dict(data))}
        return {**data, **self._in_mm(super().inverse(own))}

    def _in_mm(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        return {key: in_unit(data[key], 1 / self.unit) for key in self.key_iterator(dict(data))}


def in_unit(image: Any, unit: float) -> Any:
    """An image, (C, *spatial), whose affine is in another unit of length; its voxels are the same."""
    if not isinstance(image, MetaTensor):
        return image
    same = MetaTensor(image.as_tensor()).copy_meta_from(image)
    affine = image.affine.clone()
    affine[:-1] /= unit
    same.affine = affine
    same.spatial_ndim = image.spatial_ndim  # 2 of a picture; the setter above made it 3
    return same


class ToLabelMapd(MapTransform):
    """A label map as an array of the smallest integer type that holds it; of a picture without channel axis.

    A server writes what it gets as it is: to a PNG 8 or 16 bits and no third axis.

    Args:
        keys: label maps, (1, *spatial), whole numbers.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replace each of the label maps: (rows, columns) of a picture, (1, *spatial) of a volume."""
        out = dict(data)
        for key in self.keys:
            labels = convert_to_numpy(torch.as_tensor(out[key]))
            labels = labels.astype(
                label_type(labels) if np.issubdtype(labels.dtype, np.integer) else labels.dtype
            )
            out[key] = labels[0] if labels.ndim == 3 else labels
        return out
