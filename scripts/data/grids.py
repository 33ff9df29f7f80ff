"""Where the voxels of a file lie, and how two files of a case lie to each other."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import nibabel as nib
import numpy as np
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation

from scripts.errors import Fault

GRID_TOLERANCE = 0.1
"""How far the corners of two grids may lie apart, as a fraction of the smallest voxel edge."""


@dataclass(frozen=True)
class Grid:
    """Where the voxels of a file lie: voxels per spatial axis and, but for pictures, voxel to mm (4, 4)."""

    shape: tuple[int, ...]
    affine: np.ndarray | None

    @property
    def spacing(self) -> tuple[float, ...]:
        """Edges of a voxel in mm, one an axis; 1 for pictures."""
        sizes = np.ones(3) if self.affine is None else nib.affines.voxel_sizes(self.affine)
        return tuple(sizes[: len(self.shape)].tolist())

    def canonical_axes(self) -> list[int]:
        """For each axis which one it is in the order of RAS orientation, of pictures itself."""
        if self.affine is None or len(self.shape) != 3:
            return list(range(len(self.shape)))
        return io_orientation(self.affine)[:, 0].astype(int).tolist()

    def canonical(self) -> tuple[tuple[int, ...], tuple[float, ...] | None]:
        """Shape and voxel edges (mm, None for pictures), in 3D in the order of RAS orientation."""
        if self.affine is None:
            return self.shape, None
        order = np.argsort(self.canonical_axes())
        return tuple(self.shape[axis] for axis in order), tuple(self.spacing[axis] for axis in order)


def distance(one: np.ndarray, other: np.ndarray, shape: tuple[int, ...]) -> float:
    """The largest distance in mm between where two affines, (4, 4), have the same corner of a shape."""
    last = [(0, size - 1) for size in shape] + [(0,)] * (3 - len(shape))
    corners = np.array([(*corner, 1) for corner in itertools.product(*last)])  # (8, 4), voxels
    return float(np.linalg.norm(corners @ (one - other).T, axis=1).max())


def turn_onto(here: Grid, other: Grid, name: str) -> np.ndarray | None:
    """How a file is turned so that its voxels are in the order of another one that covers the same voxels.

    Axes may come in another order and run the other way, as a file from right to left does beside one from
    left to right.

    Args:
        here: the grid of the file.
        other: the grid that it should have.
        name: what has the other one.

    Returns:
        What `turned` takes; None where there is nothing to turn.

    Raises:
        Fault: without a file; the two do not cover the same voxels.
    """
    turn, shape, affine = None, here.shape, here.affine
    if here.affine is not None and other.affine is not None:
        axes = len(here.shape)
        between = np.linalg.solve(other.affine, here.affine)
        found = io_orientation(np.vstack([between[:axes, [*range(axes), 3]], [*[0] * axes, 1]]))
        if np.isfinite(found).all() and not np.array_equal(found, [[axis, 1] for axis in range(axes)]):
            turn = found
            shape = tuple(here.shape[axis] for axis in np.argsort(found[:, 0]))
            whole = np.vstack([found, *([axis, 1] for axis in range(axes, 3))])
            affine = here.affine @ inv_ornt_aff(whole, (*here.shape, 1, 1)[:3])
    if shape != other.shape:
        raise Fault(
            f"shape {here.shape} where the {name} has {other.shape}",
            f"both must lie on the same grid as the {name}",
            f"resample it onto the grid of the {name} or pair it with the right one",
        )
    if affine is None or other.affine is None:
        return None
    apart = distance(affine, other.affine, shape)
    if apart > GRID_TOLERANCE * nib.affines.voxel_sizes(other.affine)[: len(shape)].min():
        raise Fault(
            f"a grid that lies up to {apart:.3g} mm away from that of the {name}",
            f"both must have the same affine to within {GRID_TOLERANCE} voxel",
            f"resample it onto the grid of the {name}"
            + (
                " or copy the affine if only the header is wrong" if turn is None else ", whose axes it turns"
            ),
        )
    return turn


def turned(values: np.ndarray, turn: np.ndarray | None) -> np.ndarray:
    """Values, (*spatial[, channel]), in the order of the grid that `turn_onto` was given."""
    return values if turn is None else np.ascontiguousarray(apply_orientation(values, turn))
