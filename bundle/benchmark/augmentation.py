"""A random patch of a case, image and label deformed elastically, rotated and scaled by the same field."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.transforms import MapTransform, Rand2DElasticd, Rand3DElasticd, Randomizable
from torch import Tensor

from bundle.benchmark.runner import CEILING, OURS, Contest, Entry
from scripts.labels import IGNORE_LABEL
from scripts.transforms import CountClassesd, RandSpatialPatchd

#: Voxels of the case and of the patch along every axis, by number of axes.
SIZES = {3: (200, 128), 2: (768, 512)}
SMALL = {3: (24, 16), 2: (48, 32)}

#: What all libraries are asked for: nnU-Net's largest angle, in radians, and magnifications.
ROTATE = 0.52
SCALES = (0.7, 1.4)

KEYS = ("image", "label")
MODES = ("bilinear", "nearest")

#: Of every entry: about what a data loader's process has.
THREADS = 2

#: Name of the entry that shows what the machine can do at best.
BEST = "two grid_sample calls, shared by all threads"

Pair = tuple[Tensor, Tensor]  # image and label, (1, *spatial)


def contests(small: bool, device: torch.device) -> list[Contest]:
    """Patches in three dimensions and in two; on the CPU, where data loaders run, whatever the device.

    Args:
        small: tiny sizes.
        device: not used.
    """
    return [_contest(dims, *(SMALL if small else SIZES)[dims]) for dims in (3, 2)]


def _contest(dims: int, case: int, patch: int) -> Contest:
    entries = {
        BEST: Entry(partial(_sample, dims, case, patch, True), CEILING, "tuned"),
        "two grid_sample calls": Entry(partial(_sample, dims, case, patch, False), CEILING, "tuned"),
    }
    contenders: dict[str, tuple[str, Callable[[int, int, int], Callable[[], Pair]], tuple[str, ...]]] = {
        f"Rand{dims}DElasticd": ("MONAI", _monai, ()),
        "SpatialTransform, nnU-Net's settings": (
            "batchgeneratorsv2",
            partial(_batchgenerators, "bilinear"),
            ("batchgeneratorsv2",),
        ),
        "SpatialTransform, nearest label": (
            "batchgeneratorsv2",
            partial(_batchgenerators, "nearest"),
            ("batchgeneratorsv2",),
        ),
        "RandomElasticDeformation, RandomAffine": ("TorchIO", _torchio, ("torchio",)),
        "RandSpatialPatchd": (OURS, partial(_ours, 0.0), ()),
        "RandSpatialPatchd, around foreground": (OURS, partial(_ours, 1.0), ()),
    }
    for name, (origin, make, needs) in contenders.items():
        for allocator in ("default", "tuned"):
            entries[f"{name}, {allocator}"] = Entry(
                partial(make, dims, case, patch), origin, allocator, needs, ceiling=BEST, reference=BEST
            )
    sizes = " x ".join([str(patch)] * dims)
    return Contest(
        f"augmentation: an elastic patch of {sizes} with its label",
        f"from {' x '.join([str(case)] * dims)}, rotated by up to {ROTATE} rad, scaled by {SCALES[0]} to "
        f"{SCALES[1]}, {THREADS} threads; TorchIO crops first; the label should still follow its image",
        entries,
        agreement="label follows",
        compare=label_follows,
        unit="ms",
        threads=THREADS,
    )


def label_follows(outcome: tuple[np.ndarray, np.ndarray], reference: object) -> float:
    """Share of the voxels where the image, a copy of the label before, still agrees with it.

    Args:
        outcome: image and label; voxels with IGNORE_LABEL do not count.
        reference: not used.
    """
    image, label = outcome
    counted = label != IGNORE_LABEL
    return float(np.mean((image > 0.5)[counted] == (label > 0.5)[counted]))


def _case(dims: int, size: int) -> Pair:
    """Smooth blobs as a label, and the same as an image."""
    coarse = torch.rand((1, 1, *[max(size // 16, 3)] * dims))
    mode = {2: "bicubic", 3: "trilinear"}[dims]
    smooth = F.interpolate(coarse, [size] * dims, mode=mode, align_corners=True)[0]
    label = smooth > smooth.median()
    return label.float(), label.to(torch.uint8)


def _sample(dims: int, case: int, patch: int, shared: bool) -> Callable[[], Pair]:
    """grid_sample gives each thread images of the batch: shared, every thread has a slab of the patch."""
    image, label = (volume.float()[None] for volume in _case(dims, case))
    axes = [torch.linspace(-patch / case, patch / case, patch)] * dims
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1], dim=-1)  # (*patch, dims)
    slabs = THREADS if shared else 1
    grid = grid.unflatten(0, (slabs, patch // slabs))  # (slabs, patch / slabs, ..., dims)
    image, label = (volume.expand(slabs, *volume.shape[1:]) for volume in (image, label))

    def one(volume: Tensor, mode: str) -> Tensor:
        sampled = F.grid_sample(volume, grid, mode=mode, padding_mode="zeros", align_corners=False)
        return sampled.flatten(0, 2)[None]  # (slabs, 1, patch / slabs, ...) to (1, *patch)

    return lambda: (one(image, MODES[0]), one(label, MODES[1]))


def _dictionary(transform: MapTransform, dims: int, case: int) -> Callable[[], Pair]:
    # what comes before the first random transform is cached
    data = CountClassesd("label")(dict(zip(KEYS, _case(dims, case), strict=True)))
    assert isinstance(transform, Randomizable)
    transform.set_random_state(seed=0)

    def work() -> Pair:
        done = transform(data)
        return torch.as_tensor(done["image"]), torch.as_tensor(done["label"])

    return work


def _ours(foreground_prob: float, dims: int, case: int, patch: int) -> Callable[[], Pair]:
    transform = RandSpatialPatchd(
        KEYS,
        MODES,
        [patch] * dims,
        foreground_prob=foreground_prob,
        affine_prob=1.0,
        rotate_range=ROTATE,
        scale_range=SCALES,
        elastic_prob=1.0,
        elastic_points=4,
        elastic_std=patch / 32,
    )
    return _dictionary(transform, dims, case)


def _monai(dims: int, case: int, patch: int) -> Callable[[], Pair]:
    scale_range = [(low - 1, high - 1) for low, high in [SCALES] * dims]
    transform: MapTransform
    if dims == 3:
        transform = Rand3DElasticd(
            KEYS,
            sigma_range=(5, 8),
            magnitude_range=(100, 200),
            prob=1.0,
            rotate_range=[ROTATE] * 3,
            scale_range=scale_range,
            spatial_size=(patch, patch, patch),
            mode=MODES,
            padding_mode="zeros",
        )
    else:
        transform = Rand2DElasticd(
            KEYS,
            spacing=(patch // 3, patch // 3),
            magnitude_range=(patch / 64, patch / 32),
            prob=1.0,
            rotate_range=ROTATE,
            scale_range=scale_range,
            spatial_size=(patch, patch),
            mode=MODES,
            padding_mode="zeros",
        )
    return _dictionary(transform, dims, case)


def _batchgenerators(label_mode: str, dims: int, case: int, patch: int) -> Callable[[], Pair]:
    from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform

    transform = SpatialTransform(
        (patch,) * dims,
        patch_center_dist_from_border=patch // 2,
        random_crop=True,
        p_elastic_deform=1,
        elastic_deform_magnitude=(patch / 64, patch / 32),
        p_rotation=1,
        rotation=(-ROTATE, ROTATE),
        p_scaling=1,
        scaling=SCALES,
        p_synchronize_scaling_across_axes=1,
        mode_seg=label_mode,
    )
    image, label = _case(dims, case)
    label = label.to(torch.int16)

    def work() -> Pair:
        done = transform(image=image, segmentation=label)
        return done["image"], done["segmentation"]

    return work


def _torchio(dims: int, case: int, patch: int) -> Callable[[], Pair]:
    import torchio

    flat = dims == 2  # its images have three axes
    size = (patch, patch, 1 if flat else patch)
    transform = torchio.Compose(
        [
            torchio.CropOrPad(size),
            torchio.RandomElasticDeformation(max_displacement=(7.5, 7.5, 0 if flat else 7.5)),
            torchio.RandomAffine(
                scales=SCALES,
                degrees=(0, 0, np.degrees(ROTATE)) if flat else np.degrees(ROTATE),
                isotropic=True,
            ),
        ]
    )
    image, label = (volume[..., None] if flat else volume for volume in _case(dims, case))
    subject = torchio.Subject(image=torchio.ScalarImage(tensor=image), label=torchio.LabelMap(tensor=label))

    def work() -> Pair:
        done: Any = transform(subject)
        return done["image"].data, done["label"].data

    return work
