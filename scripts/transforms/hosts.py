"""What a server that runs our transforms one by one needs of them, such as MONAI Label."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.transforms import MapTransform, Spacingd
from monai.utils import convert_to_numpy

from scripts.labels import label_type


class IsolatedSpacingd(Spacingd):
    """MONAI's Spacingd, which sees the keys it is given and nothing else.

    MONAI's writes the meta data of a NIfTI file to every entry whose name begins with the key, and fails
    where one is no dictionary: MONAI Label keeps the file's name under "image_path" beside "image".
    """

    def __call__(self, data: Mapping[Hashable, Any], lazy: bool | None = None) -> dict[Hashable, Any]:
        """Resample the keys, and hand on the rest."""
        return {**data, **super().__call__({key: data[key] for key in self.key_iterator(dict(data))}, lazy)}


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
