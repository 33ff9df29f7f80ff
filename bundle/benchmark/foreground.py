"""A patch around a voxel of the foreground of a large case that is held in memory."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.data import CacheDataset, MetaTensor
from monai.transforms import (
    ClassesToIndicesd,
    Compose,
    FgBgToIndicesd,
    Lambda,
    RandCropByLabelClassesd,
    RandCropByPosNegLabeld,
    Transform,
)
from torch import Tensor

from bundle.benchmark.runner import OURS, Contest, Entry
from scripts.data import SeededCacheDataset
from scripts.transforms import CountClassesd, RandSpatialPatchd

#: Voxels of the case and of the patch along every axis; classes, background included.
SIZE, PATCH, CLASSES = 256, 64, 3
SMALL = (32, 8)

KEYS = ("image", "label")

#: What MONAI's transforms put beside a label, or take from there.
FOUND = {"fg_indices_key": "label_fg_indices", "bg_indices_key": "label_bg_indices"}
CLASSED = {"indices_key": "label_cls_indices"}

#: What the others are compared with.
BASELINE = "RandCropByPosNegLabeld, looking at each draw"

Pair = tuple[Tensor, Tensor]  # image and label, (1, *spatial)


def contests(small: bool, device: torch.device) -> list[Contest]:
    """One draw; on the CPU, where data loaders run, whatever the device.

    Args:
        small: tiny sizes.
        device: not used.
    """
    size, patch = SMALL if small else (SIZE, PATCH)
    find = [FgBgToIndicesd("label")]
    classes = [ClassesToIndicesd("label", num_classes=CLASSES)]
    negative, counted = partial(_by_foreground, patch, {}), partial(_by_foreground, patch, FOUND)
    ours = partial(_ours, patch)
    contenders: dict[str, tuple[str, Callable[[], Callable[[], Pair]]]] = {
        BASELINE: ("MONAI", partial(_draw, size, [], negative)),
        "RandCropByPosNegLabeld, FgBgToIndicesd before": ("MONAI", partial(_draw, size, find, counted)),
        "the same in CacheDataset": ("MONAI", partial(_cached, size, find, counted, True)),
        "the same in CacheDataset, copy_cache off": ("MONAI", partial(_cached, size, find, counted, False)),
        "RandCropByLabelClassesd, looking at each draw": (
            "MONAI",
            partial(_draw, size, [], partial(_by_classes, patch, {})),
        ),
        "RandCropByLabelClassesd, ClassesToIndicesd before": (
            "MONAI",
            partial(_draw, size, classes, partial(_by_classes, patch, CLASSED)),
        ),
        "RandSpatialPatchd, counting at each draw": (OURS, partial(_draw, size, [], ours)),
        "RandSpatialPatchd, CountClassesd before": (
            OURS,
            partial(_draw, size, [CountClassesd("label")], ours),
        ),
        "the same in SeededCacheDataset": (OURS, partial(_seeded, size, ours)),
    }
    entries = {name: Entry(make, origin, reference=BASELINE) for name, (origin, make) in contenders.items()}
    contest = Contest(
        f"foreground: a patch of {patch} x {patch} x {patch} around a voxel of the foreground",
        f"cut out of a case of {size} x {size} x {size} with {CLASSES} classes that is held in memory, image "
        "and label, nothing else done to it",
        entries,
        agreement="in the foreground",
        compare=in_foreground,
        unit="ms",
    )
    return [contest]


def in_foreground(outcome: tuple[np.ndarray, np.ndarray], reference: object) -> float:
    """Whether the voxel in the middle of a patch is foreground, and image and label still agree: 0 or 1.

    Args:
        outcome: image, a copy of the label before, and label.
        reference: not used.
    """
    image, label = (np.asarray(each)[0] for each in outcome)
    middle = tuple(n // 2 for n in label.shape)
    return float(label[middle] > 0 and np.array_equal(image, label))


def _case(size: int) -> dict[str, MetaTensor]:
    """Blobs in the middle of a volume, a tenth of it, of two classes, and an image that is the same."""
    coarse = torch.rand((1, 1, *[max(size // 16, 4)] * 3))
    smooth = F.interpolate(coarse, [size // 2] * 3, mode="trilinear", align_corners=True)[0]
    inner = (smooth > smooth.mean()).to(torch.uint8) + (smooth > smooth.mean() + smooth.std()).to(torch.uint8)
    label = F.pad(inner, [size // 4] * 6)
    return {"image": MetaTensor(label.float()), "label": MetaTensor(label)}


def _draw(size: int, before: Sequence[Transform], crop: Callable[[], Any]) -> Callable[[], Pair]:
    """A draw by the transform alone, which leaves the case as it is."""
    case = Compose(before)(_case(size))
    transform = crop()
    transform.set_random_state(seed=0)
    return lambda: _pair(transform(case))


def _cached(
    size: int, before: Sequence[Transform], crop: Callable[[], Any], copies: bool
) -> Callable[[], Pair]:
    """A draw from MONAI's data set, which copies a case before a random transform unless told not to."""
    steps = Compose([Lambda(lambda _: _case(size)), *before, crop()])
    steps.set_random_state(seed=0)
    data = CacheDataset([0], steps, copy_cache=copies, progress=False)
    return lambda: _pair(data[0])


def _seeded(size: int, crop: Callable[[], Any]) -> Callable[[], Pair]:
    steps = Compose([Lambda(lambda _: _case(size)), CountClassesd("label"), crop()])
    data = SeededCacheDataset([{"case": "a"}], steps)
    draws = itertools.count()
    return lambda: _pair(data[next(draws)])


def _by_foreground(patch: int, indices: Mapping[str, Any]) -> Any:
    return RandCropByPosNegLabeld(KEYS, "label", [patch] * 3, pos=1, neg=0, num_samples=1, **indices)


def _by_classes(patch: int, indices: Mapping[str, Any]) -> Any:
    ratios = [0.0, *[1.0] * (CLASSES - 1)]
    size = [patch] * 3
    return RandCropByLabelClassesd(KEYS, "label", size, ratios, num_classes=CLASSES, num_samples=1, **indices)


def _ours(patch: int) -> RandSpatialPatchd:
    return RandSpatialPatchd(KEYS, ("bilinear", "nearest"), [patch] * 3, foreground_prob=1.0)


def _pair(drawn: Any) -> Pair:
    sample = drawn[0] if isinstance(drawn, list) else drawn
    return tuple(torch.as_tensor(sample[key]) for key in KEYS)  # type: ignore[return-value]
