"""Segment volumes that are larger than the memory, from disk to disk, a slab of planes at a time.

The result is that of `configs/inference.json`: the same geometry, intensities and windows, and probabilities
brought back to the grid of the file before the most probable class is taken. Only what a tile needs is read,
and turned, resampled and normalised on the way; only what is finished is written.

`scripts.data.volumes` says what a volume is.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine
from monai.data.utils import AFFINE_TOL
from monai.inferers import Inferer
from monai.transforms import AsDiscreted, NormalizeIntensityd, Orientationd, Spacingd, Transform
from nibabel.volumeutils import apply_read_scaling
from torch import nn

from scripts.compute.inferers import SlabInferer, most_probable
from scripts.data.cases import InferenceCases
from scripts.data.names import output_path
from scripts.data.nifti import header_of_result
from scripts.data.room import seen_grid
from scripts.data.volumes import Box, Volume, open_volume
from scripts.errors import Fault, InputError
from scripts.files import atomic_write
from scripts.labels import IGNORE_LABEL, label_type
from scripts.process import release_memory
from scripts.transforms import ClassesToLabelsd

logger = logging.getLogger(__name__)

#: Voxels that are resampled at once, or enter the statistics at once.
PIECE_VOXELS = 1_000_000

#: Rows of the file, along its second axis, that the statistics take at once.
BLOCK_ROWS = 64

#: Seconds between two lines of the log about a volume's progress.
LOG_INTERVAL = 60.0

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
        weight = (positions - low).astype(np.float32)
        return cls(low, np.where(weight > 0, low + 1, low), weight)

    def part(self, where: slice) -> tuple[AxisInterpolation, slice]:
        """A part of the axis, counted from the start of what it needs of the other axis, and that."""
        low, high = self.low[where], self.high[where]
        start, stop = int(low.min()), int(high.max()) + 1
        return AxisInterpolation(low - start, high - start, self.weight[where]), slice(start, stop)

    def interpolate(self, values: np.ndarray, axis: int) -> np.ndarray:
        """Linear interpolation along an axis."""
        before: Any = (slice(None),) * axis
        low = values[(*before, self.low)]
        if not self.weight.any():
            return low
        weight = self.weight.reshape(-1, *[1] * (values.ndim - 1 - axis))
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


def find_geometry(volume: Volume, transforms: Sequence[Transform]) -> Geometry:
    """What Orientationd and Spacingd do to a grid, without its voxels.

    Args:
        volume: the volume.
        transforms: Orientationd and Spacingd, in any number and order, with the key "image".

    Raises:
        Fault: the volume's grid is sheared.
    """
    shape, affine = seen_grid(volume.shape, volume.affine, transforms)
    matrix = np.linalg.solve(volume.affine, affine)
    sources = tuple(int(axis) for axis in np.abs(matrix[:3, :3]).argmax(0))
    scales = np.array([matrix[source, axis] for axis, source in enumerate(sources)])
    offsets = matrix[list(sources), 3]
    off_axis = matrix[:3, :3].copy()
    off_axis[list(sources), range(3)] = 0
    if sorted(sources) != [0, 1, 2] or (np.abs(off_axis) @ shape).max() > SHEAR_TOLERANCE:
        raise Fault(
            "an affine with shear",
            "the axes must stand at right angles to be resampled one by one",
            "resample it onto a grid without shear, or segment it with configs/inference.json alone",
            volume.path,
        )
    same_shape = shape == tuple(volume.shape[source] for source in sources)
    if (
        same_shape
        and max(np.abs(np.abs(scales) - 1).max(), np.abs(offsets - np.rint(offsets)).max()) < AFFINE_TOL
    ):
        scales, offsets = np.rint(scales), np.rint(offsets)  # as Spacingd, which then leaves the voxels alone
    to_file = [
        AxisInterpolation.at(scale * np.arange(n) + offset, volume.shape[source])
        for n, source, scale, offset in zip(shape, sources, scales, offsets, strict=True)
    ]
    to_network = [
        AxisInterpolation.at((np.arange(volume.shape[source]) - offsets[axis]) / scales[axis], shape[axis])
        for source, axis in sorted(zip(sources, range(3), strict=True))
    ]
    return Geometry(shape, sources, tuple(to_file), tuple(to_network))


class NetworkView:
    """A volume as the network sees it: turned, resampled and normalised where it is read.

    Args:
        volume: the volume.
        geometry: how the network's grid lies in it.
        scores: how often each channel is brought to mean 0 and standard deviation 1, as NormalizeIntensityd
            does; every time takes a pass over the volume.

    Attributes:
        shape: (C, *spatial) of the network's grid.
        axis: the axis of the network's grid along which the file is stored plane by plane.

    Raises:
        Fault: a voxel is not a finite number.
    """

    def __init__(self, volume: Volume, geometry: Geometry, scores: int) -> None:
        self.volume = volume
        self.geometry = geometry
        self.shape = (len(volume.read), *geometry.shape)
        self.axis = geometry.sources.index(2)
        self.steps: list[Callable[[torch.Tensor], torch.Tensor]] = []
        for _ in range(scores):
            self.steps.append(self._z_score())

    def __getitem__(self, box: Box) -> torch.Tensor:
        """The voxels of a box, (C, *spatial), float32; it must hold every channel."""
        values = torch.empty((self.shape[0], *(where.stop - where.start for where in box[1:])))
        for channel, read in zip(values, self.volume.read, strict=True):
            for piece, target in self._pieces(box[1:]):
                channel[target] = torch.from_numpy(self._resampled(read, piece))
        for step in self.steps:
            values = step(values)
        return values

    def _pieces(self, box: Box) -> Iterator[tuple[Box, Box]]:
        """Parts of a box that need few voxels of the file, and where they lie in the box."""
        needed = [between.part(where)[1] for between, where in zip(self.geometry.to_file, box, strict=True)]
        voxels = math.prod(part.stop - part.start for part in needed)
        whole = box[self.axis]
        planes = max((whole.stop - whole.start) * PIECE_VOXELS // voxels, 1)
        for start in range(whole.start, whole.stop, planes):
            stop = min(start + planes, whole.stop)
            piece, target = list(box), [slice(None)] * len(box)
            piece[self.axis] = slice(start, stop)
            target[self.axis] = slice(start - whole.start, stop - whole.start)
            yield tuple(piece), tuple(target)

    def _resampled(self, read: Callable[[Box], np.ndarray], box: Box) -> np.ndarray:
        parts = [between.part(where) for between, where in zip(self.geometry.to_file, box, strict=True)]
        needed = dict(zip(self.geometry.sources, (part for _, part in parts), strict=True))
        values = read(tuple(needed[axis] for axis in range(3))).transpose(self.geometry.sources)
        values = apply_read_scaling(values, *self.volume.scaling).astype(np.float32)
        # the axis that loses most first
        for axis in sorted(range(3), key=lambda axis: len(parts[axis][0].low) / values.shape[axis]):
            values = parts[axis][0].interpolate(values, axis)
        return values

    def _z_score(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """Mean 0 and standard deviation 1 for each channel, as NormalizeIntensityd has it."""
        # The blocks hold whole rows of the file; means and squares are merged as Chan, Golub and LeVeque do
        # ("Updating formulae and a pairwise algorithm for computing sample variances", 1979).
        rows = self.shape[1 + self.geometry.sources.index(0)]
        per_file_axis = (rows, BLOCK_ROWS, max(PIECE_VOXELS // (rows * BLOCK_ROWS), 1))
        sizes = [per_file_axis[source] for source in self.geometry.sources]
        starts = [range(0, n, size) for n, size in zip(self.shape[1:], sizes, strict=True)]
        count, mean, squares = 0, torch.zeros(self.shape[0]).double(), torch.zeros(self.shape[0]).double()
        for corner in product(*starts):
            box = tuple(
                slice(s, min(s + size, n)) for s, size, n in zip(corner, sizes, self.shape[1:], strict=True)
            )
            block = self[(slice(0, self.shape[0]), *box)].flatten(1)
            block_squares, block_mean = torch.var_mean(block.double(), dim=1, correction=0)
            new = block.shape[1]
            apart = block_mean - mean
            squares += block_squares * new + apart**2 * count * new / (count + new)
            mean += apart * new / (count + new)
            count += new
        if not mean.isfinite().all():
            raise Fault(
                "NaN or infinite voxels",
                "every voxel must be a finite number",
                "replace them, for example with numpy.nan_to_num, and save the file again",
                self.volume.path,
            )
        spread = (squares / count).sqrt()
        spread[spread == 0] = 1
        shape = (-1, 1, 1, 1)
        mean, spread = mean.float().view(shape), spread.float().view(shape)
        return lambda values: values.sub_(mean).div_(spread)


class VolumeSegmenter:
    """Segment volumes one after the other; those that fail are logged and added to the problems.

    Args:
        network: takes (B, C, *tile), gives logits (B, classes, *tile).
        inferer: an inferer that works slab by slab.
        cases: the volumes.
        geometry: Orientationd and Spacingd.
        normalise: NormalizeIntensityd, for each channel by itself.
        to_labels: AsDiscreted with argmax, which may be left out, and ClassesToLabelsd.
        handlers: ignite handlers; an iteration is a volume.
        in_channels: channels that the network takes.
        output_dir: folder of the label maps, uncompressed NIfTI files.

    Raises:
        InputError: a part cannot be done slab by slab.
    """

    def __init__(
        self,
        network: nn.Module,
        inferer: Inferer,
        cases: InferenceCases,
        geometry: Sequence[Transform],
        normalise: Sequence[Transform],
        to_labels: Sequence[Transform],
        handlers: Sequence[Any],
        in_channels: int,
        output_dir: str | Path,
    ) -> None:
        if not isinstance(inferer, SlabInferer):
            raise InputError(
                f"inferer is a {type(inferer).__name__}, which needs the whole volume: "
                "use scripts.compute.inferers.SlidingWindowSlabInferer or OverlapTileInferer"
            )
        _require("geometry", geometry, Orientationd, Spacingd)
        _require("normalise", normalise, NormalizeIntensityd)
        _require("to_labels", to_labels, AsDiscreted, ClassesToLabelsd)
        argmax, last = to_labels[:-1], to_labels[-1] if to_labels else None
        if not isinstance(last, ClassesToLabelsd) or len(argmax) > 1 or not all(map(_takes_argmax, argmax)):
            raise InputError(
                f"to_labels holds {[type(step).__name__ for step in to_labels]}: "
                "give one AsDiscreted with argmax alone, and one ClassesToLabelsd"
            )
        for transform in normalise:
            scorer = transform.normalizer  # type: ignore[attr-defined]
            given = scorer.nonzero or scorer.subtrahend is not None or scorer.divisor is not None
            if given or not (scorer.channel_wise or in_channels == 1):
                raise InputError(
                    "normalise holds a NormalizeIntensityd that is not channel_wise, or that has nonzero, "
                    "subtrahend or divisor: use channel_wise alone, or configs/inference.json alone"
                )
        self.network = network
        self.inferer = inferer
        self.cases = cases
        self.geometry = geometry
        self.scores = len(normalise)
        self.values: dict[int, int] = last.values
        self.handlers = handlers
        self.in_channels = in_channels
        self.output_dir = Path(output_dir)

    def run(self) -> None:
        """Segment every volume."""
        engine = Engine(lambda engine, case: self._try(case))
        for handler in self.handlers:
            handler.attach(engine)
        self.network.eval()
        engine.run(list(self.cases.cases), max_epochs=1)

    def _try(self, case: dict[str, Any]) -> None:
        name, path = case["case"], case["image"]
        with self.cases.attempt(case):
            self.segment(Path(path), output_path(self.output_dir, name, "seg", ".nii"))

    def segment(self, path: Path, output: Path) -> None:
        """Segment one volume.

        Args:
            path: the volume.
            output: the label map to write, `.nii`.
        """
        began = time.monotonic()
        if self.inferer.memory_gb is not None:
            release_memory()
        volume = open_volume(path, self.in_channels)
        geometry = find_geometry(volume, self.geometry)
        view = NetworkView(volume, geometry, self.scores)
        largest = [
            max(pair)
            for pair in zip(view.shape[1:], (volume.shape[s] for s in geometry.sources), strict=True)
        ]
        plane = math.prod(largest) // largest[view.axis]

        def reserved(classes: int) -> int:
            # a few planes of probabilities on the way back, and a piece of the file on the way in
            return 4 * (6 * classes * plane + 8 * PIECE_VOXELS)

        values = np.array(
            [self.values[index] for index in range(len(self.values) - (IGNORE_LABEL in self.values))]
        )
        values = values.astype(label_type(values))
        header = header_of_result(volume.shape, values.dtype, volume.affine, volume.form)
        header.set_data_offset(header.single_vox_offset)
        with atomic_write(output) as temporary, temporary.open("wb") as file:
            header.write_to(file)
            file.truncate(header.single_vox_offset + math.prod(volume.shape) * values.itemsize)
            slabs = self.inferer.slabs(view, self.network, view.axis, reserved)
            said = began
            for done, (index, classes) in enumerate(_file_planes(slabs, geometry, view.axis), start=1):
                file.seek(header.single_vox_offset + index * classes.size * values.itemsize)
                file.write(values[classes].tobytes(order="F"))
                if time.monotonic() - said > LOG_INTERVAL:
                    said = time.monotonic()
                    logger.info("%s: %d of %d planes", path.name, done, volume.shape[2])
        logger.info("%s: %s voxels in %.0f s", path.name, volume.shape, time.monotonic() - began)


def _require(name: str, transforms: Sequence[Transform], *kinds: type) -> None:
    for transform in transforms:
        if not isinstance(transform, kinds):
            raise InputError(
                f"{name} holds a {type(transform).__name__}, which needs the whole volume: "
                f"use {' and '.join(kind.__name__ for kind in kinds)}, or configs/inference.json alone"
            )


def _takes_argmax(step: Transform) -> bool:
    """Whether it is AsDiscreted that takes the most probable class and does nothing else."""
    others = ("to_onehot", "threshold", "rounding")
    return (
        isinstance(step, AsDiscreted)
        and all(step.argmax)
        and all(value is None for name in others for value in getattr(step, name))
    )


def _file_planes(
    slabs: Iterator[tuple[int, int, torch.Tensor]], geometry: Geometry, axis: int
) -> Iterator[tuple[int, np.ndarray]]:
    """The planes of a file's last axis, as soon as the network's planes around them are there.

    Args:
        slabs: start, stop and logits, as SlabInferer.slabs gives them along ``axis``.
        geometry: how the network's grid lies in the file's.
        axis: the network's axis that is the last one of the file.

    Yields:
        Index of the plane and its classes, (x, y); each plane once, in the order in which they are ready.
    """
    between = geometry.to_network[2]
    across = [other for other in range(3) if other != axis]
    probabilities: dict[int, np.ndarray] = {}
    for start, stop, logits in slabs:
        for index in np.flatnonzero((between.high >= start) & (between.high < stop)):
            low, high = int(between.low[index]), int(between.high[index])
            for plane in (low, high):
                if plane not in probabilities:
                    probabilities[plane] = _softmax(logits, axis, plane - start)
            for plane in probabilities.keys() - {start - 1, low, high}:
                del probabilities[plane]
            values = probabilities[low]
            if high > low:
                values = values + (probabilities[high] - values) * between.weight[index]
            for dimension, other in enumerate(across, start=1):
                values = geometry.to_network[geometry.sources[other]].interpolate(values, dimension)
            classes = most_probable(torch.from_numpy(values)).numpy()
            yield int(index), classes if geometry.sources[across[0]] == 0 else classes.T
        probabilities = {stop - 1: _softmax(logits, axis, stop - 1 - start)}


def _softmax(logits: torch.Tensor, axis: int, plane: int) -> np.ndarray:
    return logits.select(axis + 1, plane).softmax(0).cpu().numpy()
