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
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine
from monai.inferers import Inferer
from monai.transforms import AsDiscreted, NormalizeIntensityd, Orientationd, Spacingd, Transform
from nibabel.volumeutils import apply_read_scaling
from torch import nn

from scripts.compute.classmaps import takes_argmax
from scripts.compute.inferers import SlabInferer
from scripts.compute.planes import Geometry, file_planes
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


def find_geometry(volume: Volume, transforms: Sequence[Transform]) -> Geometry:
    """What Orientationd and Spacingd do to a grid, without its voxels.

    Args:
        volume: the volume.
        transforms: Orientationd and Spacingd, in any number and order, with the key "image".

    Raises:
        Fault: the volume's grid is sheared.
    """
    found = Geometry.between(volume.shape, volume.affine, *seen_grid(volume.shape, volume.affine, transforms))
    if found is None:
        raise Fault(
            "an affine with shear",
            "the axes must stand at right angles to be resampled one by one",
            "resample it onto a grid without shear, or segment it with configs/inference.json alone",
            volume.path,
        )
    return found


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
        if not isinstance(last, ClassesToLabelsd) or len(argmax) > 1 or not all(map(takes_argmax, argmax)):
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
            return 4 * (7 * classes * plane + 8 * PIECE_VOXELS)

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
            for done, (index, classes) in enumerate(file_planes(slabs, geometry, view.axis), start=1):
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
