"""Labels on their way from the file into a training."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import ImageMetaKey, MetaKeys, SpaceKeys
from skimage.segmentation import relabel_sequential

from scripts.data.checks import read_label
from scripts.data.grids import Grid
from scripts.labels import IGNORE_NAME, LARGEST_VALUE, UNKNOWN_OBJECT


class LoadLabeld(MapTransform):
    """Read label files exactly as the check and the judges do: whole numbers, whatever their size.

    MONAI's LoadImaged reads float32, in which 16777216 and 16777217 are one number. Objects with such numbers
    get those from 1 on, in the same order, as resampling computes in float32 too.

    Args:
        keys: paths of label files.
        labels: class name to value on disk; an entry "ignore" names the value of unannotated voxels.
        instances: the files number objects; then ``labels`` is not compared with them. What nobody annotated
            becomes UNKNOWN_OBJECT.
        image_key: the image as it was loaded: a label that is stored the other way round on the same voxels
            is turned onto it.

    Raises:
        Fault: a file that the check refuses.
    """

    def __init__(
        self,
        keys: KeysCollection,
        labels: Mapping[str, int],
        instances: bool = False,
        image_key: str = "image",
    ) -> None:
        super().__init__(keys)
        self.image_key = image_key
        self.labels = labels
        self.instances = instances

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replace each path by the label, int32, (1, *spatial)."""
        out = dict(data)
        onto = _grid(data[self.image_key]) if self.image_key in data else None
        for key in self.keys:
            values, grid = read_label(out[key], self.labels, self.instances, onto)
            if self.instances:
                values = self._numbered(values)
            affine = np.eye(4) if grid.affine is None else grid.affine
            meta = {
                ImageMetaKey.FILENAME_OR_OBJ: str(out[key]),
                MetaKeys.SPATIAL_SHAPE: np.array(grid.shape),
                MetaKeys.ORIGINAL_AFFINE: affine.copy(),
                MetaKeys.SPACE: SpaceKeys.RAS,
            }
            label = torch.from_numpy(np.ascontiguousarray(values[None], np.int32))
            out[key] = MetaTensor(label, affine=torch.as_tensor(affine, dtype=torch.float64), meta=meta)
        return out

    def _numbered(self, values: np.ndarray) -> np.ndarray:
        """Objects with numbers that float32 holds, and UNKNOWN_OBJECT where nobody annotated."""
        unknown = values == self.labels.get(IGNORE_NAME, UNKNOWN_OBJECT)
        values = values * ~unknown
        if values.max(initial=0) > LARGEST_VALUE:
            values = relabel_sequential(values)[0]
        return np.where(unknown, UNKNOWN_OBJECT, values.astype(np.int32))


def _grid(image: Any) -> Grid:
    """Where an image lies, (C, *spatial), as it was loaded."""
    affine = image.meta.get(MetaKeys.ORIGINAL_AFFINE) if isinstance(image, MetaTensor) else None
    return Grid(tuple(image.shape[1:]), None if affine is None else np.asarray(affine, dtype=float))
