"""How the grid that a network sees lies in that of a file, and classes brought back plane by plane.

Only a few planes of probabilities are held, and of these one class at a time in double precision: with many
classes the probabilities of a whole volume take more memory than most machines have.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.data.utils import AFFINE_TOL

from scripts.compute.inferers import most_probable

#: How far a voxel may lie from where an axis-parallel grid has it, in voxels.
SHEAR_TOLERANCE = 0.01


@dataclass(frozen=True)
class AxisInterpolation:
    """Where the voxels of an axis lie between those of another: at low, plus weight on the way to high."""

    low: np.ndarray
    high: np.ndarray
    weight: np.ndarray

    @classmethod
    def at(cls, positions: np.ndarray, length: int) -> AxisInterpolation:
        """Positions on an axis of a length; what lies beyond its ends takes the value there."""
        positions = positions.clip(0, length - 1)
        low = np.floor(positions).astype(int)
        weight = positions - low
        return cls(low, np.where(weight > 0, low + 1, low), weight)

    def part(self, where: slice) -> tuple[AxisInterpolation, slice]:
        """A part of the axis, counted from the start of what it needs of the other axis, and that."""
        low, high = self.low[where], self.high[where]
        start, stop = int(low.min()), int(high.max()) + 1
        return AxisInterpolation(low - start, high - start, self.weight[where]), slice(start, stop)

    def interpolate(self, values: np.ndarray, axis: int) -> np.ndarray:
        """Linear interpolation along an axis, in the precision of the values."""
        before: Any = (slice(None),) * axis
        low = values[(*before, self.low)]
        if not self.weight.any():
            return low
        weight = self.weight.astype(values.dtype).reshape(-1, *[1] * (values.ndim - 1 - axis))
        return low + (values[(*before, self.high)] - low) * weight


@dataclass(frozen=True)
class Geometry:
    """How the grid that the network sees lies in the grid of a file.

    Attributes:
        shape: voxels of the network's grid.
        sources: for each of its axes the axis of the file.
        to_file: for each of its axes where its voxels lie on the file's axis.
        to_network: for each axis of the file where its voxels lie on the network's axis.
    """

    shape: tuple[int, ...]
    sources: tuple[int, ...]
    to_file: tuple[AxisInterpolation, ...]
    to_network: tuple[AxisInterpolation, ...]

    @classmethod
    def between(
        cls, file_shape: Sequence[int], file_affine: np.ndarray, shape: Sequence[int], affine: np.ndarray
    ) -> Geometry | None:
        """The geometry of two grids; None where they do not run along the same axes.

        Args:
            file_shape: voxels of the file, (x, y, z).
            file_affine: from these to mm, (4, 4).
            shape: voxels of the network's grid.
            affine: from these to mm, (4, 4).
        """
        matrix = np.linalg.solve(file_affine, affine)
        sources = tuple(int(axis) for axis in np.abs(matrix[:3, :3]).argmax(0))
        scales = np.array([matrix[source, axis] for axis, source in enumerate(sources)])
        offsets = matrix[list(sources), 3]
        off_axis = matrix[:3, :3].copy()
        off_axis[list(sources), range(3)] = 0
        if sorted(sources) != [0, 1, 2] or (np.abs(off_axis) @ shape).max() > SHEAR_TOLERANCE:
            return None
        same_shape = tuple(shape) == tuple(file_shape[source] for source in sources)
        apart = max(np.abs(np.abs(scales) - 1).max(), np.abs(offsets - np.rint(offsets)).max())
        if same_shape and apart < AFFINE_TOL:
            scales, offsets = np.rint(scales), np.rint(offsets)  # as Spacingd, which leaves the voxels alone
        to_file = [
            AxisInterpolation.at(scale * np.arange(n) + offset, file_shape[source])
            for n, source, scale, offset in zip(shape, sources, scales, offsets, strict=True)
        ]
        to_network = [
            AxisInterpolation.at((np.arange(file_shape[source]) - offsets[axis]) / scales[axis], shape[axis])
            for source, axis in sorted(zip(sources, range(3), strict=True))
        ]
        return cls(tuple(shape), sources, tuple(to_file), tuple(to_network))

    @property
    def resamples(self) -> bool:
        """Whether a voxel of the file lies between two of the network's."""
        return any(between.weight.any() for between in self.to_network)


def file_planes(
    slabs: Iterator[tuple[int, int, torch.Tensor]], geometry: Geometry, axis: int
) -> Iterator[tuple[int, np.ndarray]]:
    """The planes of a file along one axis, as soon as the network's planes around them are there.

    Probabilities are interpolated in double precision and compared in single precision, as Spacingd and
    Invertd do; where no voxel lies between two others the most probable class is that of the logits.

    Args:
        slabs: start, stop and logits, as SlabInferer.slabs gives them along ``axis``.
        geometry: how the network's grid lies in the file's.
        axis: the axis of the network along which slabs come; `Geometry.sources` has that of the file.

    Yields:
        Index of the plane along the file's axis and its classes on the file's two other axes, uint8; each
        plane once, in the order in which they are ready.
    """
    between = geometry.to_network[geometry.sources[axis]]
    across = [geometry.sources[other] for other in range(3) if other != axis]
    within = [geometry.to_network[source] for source in across]
    find = _interpolated if geometry.resamples else _moved
    for index, classes in find(slabs, axis, between, within):
        yield index, classes if across[0] < across[1] else classes.T


def _moved(
    slabs: Iterator[tuple[int, int, torch.Tensor]],
    axis: int,
    between: AxisInterpolation,
    within: Sequence[AxisInterpolation],
) -> Iterator[tuple[int, np.ndarray]]:
    for start, stop, logits in slabs:
        planes = most_probable(logits.movedim(axis + 1, 1)).cpu().numpy()
        for index in np.flatnonzero((between.low >= start) & (between.low < stop)):
            classes = planes[between.low[index] - start]
            for dimension, other in enumerate(within):
                classes = other.interpolate(classes, dimension)
            yield int(index), classes


def _interpolated(
    slabs: Iterator[tuple[int, int, torch.Tensor]],
    axis: int,
    between: AxisInterpolation,
    within: Sequence[AxisInterpolation],
) -> Iterator[tuple[int, np.ndarray]]:
    probabilities: dict[int, np.ndarray] = {}
    for start, stop, logits in slabs:
        for index in np.flatnonzero((between.high >= start) & (between.high < stop)):
            low, high = int(between.low[index]), int(between.high[index])
            for plane in (low, high):
                if plane not in probabilities:
                    probabilities[plane] = _softmax(logits, axis, plane - start)
            for plane in probabilities.keys() - {start - 1, low, high}:
                del probabilities[plane]
            found = []
            for here, there in zip(probabilities[low], probabilities[high], strict=True):
                values = here.astype(np.float64)
                if high > low:
                    values += (there - values) * between.weight[index]
                for dimension, other in enumerate(within):
                    values = other.interpolate(values, dimension)
                found.append(torch.from_numpy(values.astype(np.float32)))
            yield int(index), most_probable(torch.stack(found)).numpy()
        probabilities = {stop - 1: _softmax(logits, axis, stop - 1 - start)}


def _softmax(logits: torch.Tensor, axis: int, plane: int) -> np.ndarray:
    return logits.select(axis + 1, plane).softmax(0).cpu().numpy()
