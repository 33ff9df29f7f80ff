"""The border term of the U-Net's weight map (Ronneberger et al., 2015, equation 2) of an instance map."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from scipy import ndimage
from scipy.spatial import cKDTree

from bundle.benchmark.runner import OURS, Contest, Entry, largest_difference

#: Voxels and number of cells.
SIZES: tuple[tuple[tuple[int, ...], int], ...] = (
    ((512, 512), 50),
    ((512, 512), 200),
    ((512, 512), 800),
    ((128, 128, 128), 100),
)
SMALL: tuple[tuple[tuple[int, ...], int], ...] = (((48, 48), 8), ((16, 16, 16), 4))

W0, SIGMA = 10.0, 5.0  # the paper's


def contests(small: bool, device: torch.device) -> list[Contest]:
    """Few and many cells; on the CPU, whatever the device.

    Args:
        small: tiny sizes.
        device: not used.
    """
    return [_contest(size, cells) for size, cells in (SMALL if small else SIZES)]


def _contest(size: tuple[int, ...], cells: int) -> Contest:
    reference = "a distance map per cell, sorted"
    entries = {reference: Entry(partial(_sorted, size, cells), "SciPy", reference=reference)}
    for allocator in ("default", "tuned"):
        entries[f"border_weight_map, {allocator}"] = Entry(
            partial(_ours, size, cells), OURS, allocator, reference=reference
        )
    return Contest(
        f"weightmap: {cells} cells in {' x '.join(map(str, size))}",
        f"w0 {W0}, sigma {SIGMA}",
        entries,
        agreement="off by",
        compare=largest_difference,
        unit="ms",
    )


def _instances(size: tuple[int, ...], cells: int) -> np.ndarray:
    """Round cells at random places; where they meet they touch."""
    centres = np.random.default_rng(0).uniform(0, size, (cells, len(size)))
    positions = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), axis=-1)
    distance, nearest = cKDTree(centres).query(positions)
    radius = 0.45 * (np.prod(size) / cells) ** (1 / len(size))
    return np.where(distance < radius, nearest + 1, 0).astype(np.int32)


def _sorted(size: tuple[int, ...], cells: int) -> Callable[[], np.ndarray]:
    """The equation as it is usually written down: all distances to all cells, and the smallest two."""
    instances = _instances(size, cells)

    def work() -> np.ndarray:
        ids = np.unique(instances)[1:]
        distances = np.stack([ndimage.distance_transform_edt(instances != cell) for cell in ids], axis=-1)
        distances.sort(axis=-1)
        return W0 * np.exp(-((distances[..., 0] + distances[..., 1]) ** 2) / (2 * SIGMA**2))

    return work


def _ours(size: tuple[int, ...], cells: int) -> Callable[[], np.ndarray]:
    from scripts.transforms.weights import border_weight_map

    instances = _instances(size, cells)
    return lambda: border_weight_map(instances, w0=W0, sigma=SIGMA, distance_to="cell")
