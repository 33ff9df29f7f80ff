"""Class maps straight from the slabs of an inferer, where nobody asks for the probabilities.

`configs/inference.json` has logits of the whole image, probabilities, these on the grid of the file, and of
these the most probable class. What comes out is found here a few planes at a time, and no more of the
logits is ever held: those of 100 classes in 384 x 384 x 384 voxels alone take 22.6 GB.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from monai.transforms import (
    Activationsd,
    AsDiscreted,
    Compose,
    Invertd,
    InvertibleTransform,
    MapTransform,
    Orientationd,
    Spacingd,
    Transform,
)
from monai.utils import CommonKeys as Keys
from monai.utils import MetaKeys, convert_to_dst_type

from scripts.compute.inferers import SlabInferer, most_probable
from scripts.compute.planes import Geometry, file_planes
from scripts.networks.blocks import Axes
from scripts.transforms.labels import plain

#: What a step that inverts may have to undo: turned axes, and linear interpolation that ends at the border.
TURNED, RESAMPLED = "Orientation", "SpatialResample"
LINEAR = {"mode": "bilinear", "padding_mode": "border", "align_corners": False}


def straight(inferer: Inferer, postprocessing: Callable) -> tuple[Inferer, Callable]:
    """An inferer and what follows it, by way of class maps where that says the same.

    It does where the postprocessing begins with Activationsd (softmax), perhaps Invertd that undoes nothing
    but Orientationd and Spacingd, and AsDiscreted (argmax) of "pred", and the inferer works slab by slab.

    Args:
        inferer: gives logits, (B, classes, *spatial).
        postprocessing: what is done with them, MONAI's Compose.

    Returns:
        Both, or what is to take their places.
    """
    steps = list(getattr(postprocessing, "transforms", ()))
    invert = steps[1] if len(steps) > 2 and isinstance(steps[1], Invertd) else None
    count = 2 if invert is None else 3
    known = len(steps) >= count and takes_softmax(steps[0]) and takes_argmax(steps[count - 1])
    if not known or not (invert is None or _inverts(invert)):
        return inferer, postprocessing
    if isinstance(inferer, SlabInferer) and inferer.output == "logits":
        inferer = ClassMaps(inferer, invert)
    return inferer, Compose([OnFileGridd(steps[0], invert), *steps[count:]])


def tile_of(inferer: Inferer | None, postprocessing: Callable | None) -> Callable[[Axes], Axes] | None:
    """Of the shape of an image, the tile of it that passes the network, where class maps come straight.

    Args:
        inferer: see `straight`.
        postprocessing: see `straight`.

    Returns:
        None where logits of the whole image are held.
    """
    made = None if inferer is None or postprocessing is None else straight(inferer, postprocessing)[0]
    return made.inferer.full_tile if isinstance(made, ClassMaps) else None


def takes_argmax(step: Transform) -> bool:
    """Whether it is AsDiscreted that takes the most probable class of "pred" and does nothing else."""
    others = ("to_onehot", "threshold", "rounding")
    return (
        isinstance(step, AsDiscreted)
        and step.keys == (Keys.PRED,)
        and all(step.argmax)
        and all(value is None for name in others for value in getattr(step, name))
        and not step.converter.kwargs
    )


def takes_softmax(step: Transform) -> bool:
    """Whether it is Activationsd that turns the logits of "pred" to probabilities and does nothing else."""
    return (
        isinstance(step, Activationsd)
        and step.keys == (Keys.PRED,)
        and all(step.softmax)
        and not any(step.sigmoid)
        and all(other is None for other in step.other)
        and not step.converter.kwargs
    )


def _inverts(step: Invertd) -> bool:
    """Whether it brings "pred" back as the image came, turned and by interpolation."""
    names = ("orig_keys", "nearest_interp", "device", "post_func")
    place = step.keys.index(Keys.PRED) if Keys.PRED in step.keys else None
    wanted = [Keys.IMAGE, False, None, None]
    known = place is not None and [getattr(step, name)[place] for name in names] == wanted
    return known and all(isinstance(each, Orientationd | Spacingd) for each in _invertible(step))


class ClassMaps(Inferer):
    """The most probable class of each voxel, on the grid of the file where something is to be undone.

    Where that cannot be found plane by plane it gives logits as ever: of a grid with shear, of several images
    at once, and on a GPU of images that are resampled.

    Args:
        inferer: what computes the logits.
        invert: what brings the results back to the grid of the file; None leaves them on that of the image.
    """

    def __init__(self, inferer: SlabInferer, invert: Invertd | None) -> None:
        super().__init__()
        self.inferer = inferer
        self.labels = copy.copy(inferer)  # shares the runtime
        self.labels.output = "labels"
        self.undone = None if invert is None else len(_invertible(invert))

    def __call__(
        self, inputs: torch.Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Predict an image, without gradients.

        Args:
            inputs: (1, in_channels, *spatial).
            network: see `SlabInferer.slabs`.
            *args: further positional arguments of the network.
            **kwargs: further keyword arguments of the network.

        Returns:
            Classes, (1, 1, *spatial), uint8, on the grid of the file where `geometry_of` finds one; or
            logits, (B, classes, *spatial), float32. With the meta data of ``inputs``.
        """
        if len(inputs) != 1:
            return self.inferer(inputs, network, *args, **kwargs)
        image = inputs[0]
        operations = _operations(image)
        if self.undone is None or not operations:
            return self.labels(inputs, network, *args, **kwargs)
        geometry = geometry_of(image) if len(operations) == self.undone else None
        if geometry is None:
            return self.inferer(inputs, network, *args, **kwargs)
        classes = torch.zeros([len(between.low) for between in geometry.to_network], dtype=torch.uint8)
        along = classes.movedim(geometry.sources[0], 0)

        def reserved(count: int) -> int:
            return int(classes.numel() + held_planes(count, geometry))

        slabs = self.inferer.slabs(plain(image), network, 0, reserved, args, kwargs)
        for index, found in file_planes(slabs, geometry, 0):
            along[index] = torch.from_numpy(np.ascontiguousarray(found))
        return MetaTensor(classes[None, None].to(inputs.device)).copy_meta_from(inputs, copy_attr=False)


class OnFileGridd(MapTransform):
    """What `ClassMaps` gives as the steps give it that it stands for; of logits it carries them out.

    Args:
        softmax: Activationsd.
        invert: Invertd, or None.
    """

    def __init__(self, softmax: Activationsd, invert: Invertd | None) -> None:
        super().__init__(Keys.PRED)
        self.softmax = softmax
        self.invert = invert
        self.others: Invertd | None = None
        if invert is not None and len(invert.keys) > 1:
            others = [place for place, key in enumerate(invert.keys) if key != Keys.PRED]
            self.others = copy.copy(invert)
            for name, value in vars(invert).items():
                if isinstance(value, tuple) and len(value) == len(invert.keys):
                    setattr(self.others, name, tuple(value[place] for place in others))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Put the class of each voxel on the grid of the file in the place of "pred".

        Args:
            data: with "image" as the network saw it, and "pred", (1, *spatial), uint8, or logits.

        Returns:
            The same with "pred" (1, *spatial), float32, and other keys brought back.
        """
        out = dict(data)
        pred, image = out[Keys.PRED], out.get(Keys.IMAGE)
        if pred.dtype != torch.uint8:
            out = dict(self.softmax(out))
            out = dict(self.invert(out)) if self.invert else out
            found = out[Keys.PRED]
            classes = most_probable(plain(found))[None].float()
            out[Keys.PRED] = convert_to_dst_type(classes, found)[0]
            return out
        out[Keys.PRED] = pred.float()
        if self.invert is None:
            return out
        if image is None or not _operations(image):
            return dict(self.invert(out))
        meta = copy.deepcopy(image.meta)
        made = MetaTensor(plain(out[Keys.PRED]), meta=meta, applied_operations=[])
        made.affine = torch.as_tensor(np.asarray(meta[MetaKeys.ORIGINAL_AFFINE], dtype=float))
        out[Keys.PRED] = made
        return dict(self.others(out)) if self.others else out


def geometry_of(image: torch.Tensor) -> Geometry | None:
    """How the grid of an image lies in that of its file, where classes can go back plane by plane.

    Args:
        image: (C, *spatial), with the meta data and the operations that preprocessing left.

    Returns:
        None where they cannot, see `ClassMaps`.
    """
    operations = _operations(image)
    if not isinstance(image, MetaTensor) or image.ndim != 4 or MetaKeys.ORIGINAL_AFFINE not in image.meta:
        return None
    for operation in operations:
        settings = operation["extra_info"]
        linear = all(settings.get(name) == value for name, value in LINEAR.items())
        if operation["class"] != TURNED and not (operation["class"] == RESAMPLED and linear):
            return None
    shape = tuple(int(n) for n in image.meta.get(MetaKeys.SPATIAL_SHAPE, ()))
    if shape != tuple(int(n) for n in operations[0]["orig_size"]):
        return None
    affine = np.asarray(image.meta[MetaKeys.ORIGINAL_AFFINE], dtype=float)
    found = Geometry.between(shape, affine, tuple(image.shape[1:]), np.asarray(image.affine, dtype=float))
    return None if found is None or (found.resamples and image.device.type != "cpu") else found


def held_planes(classes: int, geometry: Geometry) -> float:
    """Bytes of probabilities that are held at once on their way to the grid of the file.

    Args:
        classes: of the network.
        geometry: how the grids lie.
    """
    _, *across = geometry.shape
    own = float(np.prod(across))
    file = float(np.prod([len(geometry.to_network[source].low) for source in geometry.sources[1:]]))
    return 4.0 * classes * (3 * own + 2 * file) if geometry.resamples else 0.0


def _operations(image: Any) -> list[Any]:
    return list(image.applied_operations) if isinstance(image, MetaTensor) else []


def _invertible(invert: Invertd) -> list[Any]:
    """The transforms that a step undoes."""
    return [
        step for step in getattr(invert.transform, "transforms", ()) if isinstance(step, InvertibleTransform)
    ]
