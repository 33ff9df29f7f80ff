"""What several predictions of an image say of it, on its way to files and to the table of the run."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from scripts.labels import class_names
from scripts.transforms.labels import like
from scripts.uncertainty import MUTUAL, VERSIONS, VOXELS

#: Key under which a case has its line of the table that `scripts.handlers.Review` writes, and the columns by
#: which that is sorted, see `by_need`.
TOLD, LOOK, LOWEST = "told", "look", "lowest"

#: In the column LOOK: why a case needs a look, being unlike those learnt from or its low predicted Dice; in a
#: further column how far it lies beyond those.
UNLIKE, LOW, BEYOND = "unlike", "low", "beyond"

#: mm3 in a mL.
ML = 1000.0


def with_told(data: Mapping[Hashable, Any], more: Mapping[str, Any]) -> dict[Hashable, Any]:
    """A case with more columns in its line of the table."""
    return {**data, TOLD: {**data.get(TOLD, {}), **more}}


def by_need(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What the table is sorted by: what is UNLIKE, farthest first, what is LOW, then by LOWEST."""
    unlike = row.get(LOOK) == UNLIKE
    return not unlike, -row.get(BEYOND, 0.0) if unlike else 0.0, not row.get(LOOK), row.get(LOWEST, 0.0)


class TakeVersionsd(MapTransform):
    """Take what an inferer left of how far its versions of an image lie apart.

    The mutual information becomes a key of its own, MUTUAL, (1, *spatial), on the grid of the prediction. The
    mean volume of each class and its standard deviation over the versions go into the table: in mL, of
    pictures in pixels.

    Args:
        keys: logits or probabilities, (classes, *spatial), of `scripts.compute.inferers.AveragedVersions`;
            what has no versions stays as it is.
        labels: name to value, the background first.
    """

    def __init__(self, keys: KeysCollection, labels: Mapping[str, int]) -> None:
        super().__init__(keys)
        self.names = class_names(dict(labels))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        for key in self.keys:
            tensor = out[key]
            if not isinstance(tensor, MetaTensor) or VERSIONS not in tensor.meta:
                continue
            found = tensor.meta[VERSIONS]
            meta = {name: value for name, value in tensor.meta.items() if name != VERSIONS}
            out[key] = MetaTensor(tensor.as_tensor(), meta=meta, applied_operations=tensor.applied_operations)
            out[MUTUAL] = like(found[MUTUAL][0].cpu().numpy(), out[key])
            out = with_told(out, self.volumes(found[VOXELS], out[key]))
        return out

    def volumes(self, voxels: torch.Tensor, tensor: MetaTensor) -> dict[str, float]:
        """Mean and standard deviation of the volume of each class but the background; four decimals."""
        dims = tensor.ndim - 1
        unit, size = ("ml", math.prod(tensor.pixdim.tolist()) / ML) if dims == 3 else ("pixels", 1.0)
        sizes = voxels.double() * size
        return {
            column: round(float(value), 4)
            for index, name in enumerate(self.names[1:], start=1)
            for column, value in (
                (f"{name} {unit}", sizes[:, index].mean()),
                (f"{name} {unit} sd", sizes[:, index].std()),
            )
        }
