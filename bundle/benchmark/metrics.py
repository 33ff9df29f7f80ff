"""Distances between the surfaces of two class maps: HD95, average distance, surface Dice."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from monai.metrics import (
    compute_average_surface_distance,
    compute_hausdorff_distance,
    compute_surface_dice,
)

from bundle.benchmark.runner import OURS, Contest, Entry, largest_difference

#: Voxels along every axis; classes, background included.
SIZE, CLASSES = 200, 4
SMALL_SIZE = 24

SPACING = (1.0, 0.8, 0.8)  # mm
TOLERANCE = 1.0  # mm

Maps = tuple[np.ndarray, np.ndarray]  # prediction and truth


def contests(small: bool, device: torch.device) -> list[Contest]:
    """One case; on the CPU, whatever the device.

    Args:
        small: tiny sizes.
        device: not used.
    """
    size = SMALL_SIZE if small else SIZE
    contenders: dict[str, tuple[str, Callable[[int], Callable[[], np.ndarray]], tuple[str, ...]]] = {
        "compute_* of MONAI": ("MONAI", _monai, ()),
        "surface-distance": ("surface-distance", _surface_distance, ("surface_distance",)),
        "surface_scores": (OURS, _ours, ()),
    }
    entries = {
        f"{name}, {allocator}": Entry(
            partial(make, size), origin, allocator, needs, reference="compute_* of MONAI, default"
        )
        for name, (origin, make, needs) in contenders.items()
        for allocator in ("default", "tuned")
    }
    contest = Contest(
        "metrics: HD95, average symmetric surface distance and surface Dice of a case",
        f"{size} x {size} x {size}, {CLASSES} classes with the background, voxels of "
        f"{' x '.join(map(str, SPACING))} mm, tolerance {TOLERANCE} mm; surface-distance weighs by area",
        entries,
        agreement="off by",
        compare=largest_difference,
    )
    return [contest]


def _class_maps(size: int) -> Maps:
    """Ellipsoids side by side, in the prediction moved by a voxel or two, with a dent."""
    axes = np.meshgrid(*[(np.arange(size) + 0.5) / size] * 3, indexing="ij", sparse=True)

    def classes(shift: float, dent: float) -> np.ndarray:
        x, y, z = axes
        wave = dent * np.sin(12 * x) * np.sin(9 * y)
        found = np.zeros((size,) * 3, np.uint8)
        for index in range(1, CLASSES):
            centre = (index - 0.5) / (CLASSES - 1) + shift
            radius = ((x - centre) / 0.16) ** 2 + ((y - 0.5 - shift) / 0.3) ** 2 + ((z - 0.5) / 0.35) ** 2
            found[radius + wave < 1] = index
        return found

    return classes(1.5 / size, 0.1), classes(0.0, 0.0)


def _monai(size: int) -> Callable[[], np.ndarray]:
    pred, truth = _class_maps(size)

    def work() -> np.ndarray:
        found, true = (
            torch.from_numpy(np.stack([classes == index for index in range(1, CLASSES)]))[None]
            for classes in (pred, truth)
        )
        hd95 = compute_hausdorff_distance(found, true, True, percentile=95, spacing=SPACING)
        average = compute_average_surface_distance(found, true, True, symmetric=True, spacing=SPACING)
        limits = [TOLERANCE] * (CLASSES - 1)
        dice = compute_surface_dice(found, true, limits, include_background=True, spacing=SPACING)
        return torch.cat([hd95, average, dice]).T.numpy()  # (classes, scores)

    return work


def _surface_distance(size: int) -> Callable[[], np.ndarray]:
    import surface_distance

    pred, truth = _class_maps(size)

    def scores(index: int) -> list[float]:
        distances = surface_distance.compute_surface_distances(truth == index, pred == index, SPACING)
        return [
            surface_distance.compute_robust_hausdorff(distances, 95),
            np.mean(surface_distance.compute_average_surface_distance(distances)),
            surface_distance.compute_surface_dice_at_tolerance(distances, TOLERANCE),
        ]

    return lambda: np.array([scores(index) for index in range(1, CLASSES)])


def _ours(size: int) -> Callable[[], np.ndarray]:
    from scripts.judging import surface_scores

    pred, truth = _class_maps(size)

    def scores(index: int) -> list[float]:
        return list(surface_scores(pred == index, truth == index, SPACING, TOLERANCE))

    return lambda: np.array([scores(index) for index in range(1, CLASSES)])
