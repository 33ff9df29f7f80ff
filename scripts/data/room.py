"""Whether cases fit into the memory at the spacing that the network sees, by their headers alone.

A header whose voxel size is wrong by a factor of 100 asks for a million times the memory. Where the system
grants what it does not have, the process is killed when it uses it, and the other cases are lost with it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Orientationd, Spacingd, Transform
from monai.transforms.traits import RandomizableTrait
from monai.utils import ensure_tuple

from scripts.compute.planes import Geometry
from scripts.data.checks import Problem, describe
from scripts.data.reader import read_header
from scripts.dicom import SeriesFinder
from scripts.errors import Fault, InputError
from scripts.machine import gigabytes
from scripts.process import available_memory, rank_and_size

#: Voxels that one voxel of a file may become. Slices of 5 mm brought to 0.5 mm become 10 times as many, a
#: volume of 5 mm brought to 0.5 mm 1000 times.
MOST_OF_ONE = 4096

#: Of the shape of an image, the tile of it that passes the network.
Tile = Callable[[tuple[int, ...]], Sequence[int]]

_FIX = "correct the voxel size in its header, which counts as mm whatever it says, or set another --spacing"

#: Bytes that a voxel takes where MONAI brings an image to a grid: for each it works out where it lies, first
#: with an entry more than there are axes, in float64.
_PLACES = {2: 8 * (3 + 2), 3: 8 * (4 + 3)}


@dataclass(frozen=True)
class Grids:
    """The grid of a file, and that on which the network sees it.

    Attributes:
        channels: of the image.
        shape: voxels of the file, (*spatial).
        spacing: edges of its voxels in mm, 1 for pictures.
        seen_shape: voxels that the network sees.
        seen_spacing: edges of these.
        parallel: the axes of both run along each other, or they are one.
    """

    channels: int
    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    seen_shape: tuple[int, ...]
    seen_spacing: tuple[float, ...]
    parallel: bool = True

    @classmethod
    def of(
        cls, channels: int, shape: Sequence[int], affine: np.ndarray, geometry: Iterable[Transform]
    ) -> Grids:
        """The grids of an image; ``shape``, ``affine`` and ``geometry`` as for `seen_grid`."""
        steps = list(geometry)
        seen_shape, seen_affine = seen_grid(shape, affine, steps)
        edges = [
            tuple(nib.affines.voxel_sizes(matrix)[: len(shape)].tolist()) for matrix in (affine, seen_affine)
        ]
        parallel = not steps
        if len(shape) == 3:
            parallel = Geometry.between(shape, affine, seen_shape, seen_affine) is not None
        return cls(channels, tuple(shape), edges[0], seen_shape, edges[1], parallel)

    def require_sense(self) -> None:
        """Refuse a grid that can only be a mistake.

        Raises:
            Fault: a voxel becomes more than `MOST_OF_ONE`, or all of them one; without a file.
        """
        growth = math.prod(self.seen_shape) / math.prod(self.shape)
        if growth > MOST_OF_ONE:
            rule = f"a voxel becomes at most {MOST_OF_ONE} there, and would become {growth:.0f}"
            raise Fault(self.describe(), rule, _FIX)
        if max(self.shape) > 1 and max(self.seen_shape) == 1:
            raise Fault(self.describe(), "a single voxel shows the network nothing", _FIX)

    def bytes_to_load(self, labelled: bool) -> float:
        """Most bytes at a time from the file to the grid that the network sees.

        Args:
            labelled: a label comes with the image.
        """
        arrays, file, seen = self.channels + labelled, math.prod(self.shape), math.prod(self.seen_shape)
        if self.shape == self.seen_shape and np.allclose(self.spacing, self.seen_spacing):
            return 12.0 * arrays * file  # as in the file, 8 at most, and float32
        return 12.0 * arrays * file + self._places * seen

    def bytes_to_keep(self, labelled: bool) -> float:
        """Bytes of the image as the network sees it, and of its label: float32."""
        return 4.0 * (self.channels + labelled) * math.prod(self.seen_shape)

    def bytes_to_predict(self, classes: int, labelled: bool = False, tile: Tile | None = None) -> float:
        """Most bytes at a time while the network predicts, its own left out.

        Args:
            classes: whose logits are held, float32: those of a slab of windows where there is a tile, else
                those of the whole image, and their probabilities.
            labelled: a label comes with the image.
            tile: of the shape that the network sees the tile of it that passes the network, where the most
                probable class is found plane by plane.
        """
        seen = math.prod(self.seen_shape)
        kept = self.bytes_to_keep(labelled)
        if tile is None or not self.parallel:
            return kept + 8.0 * classes * seen
        deep, *wide = tile(self.seen_shape)
        wide = [max(pair) for pair in zip(wide, self.seen_shape[1:], strict=True)]
        larger = [max(pair) for pair in zip(sorted(self.shape), sorted(self.seen_shape), strict=True)]
        planes = 5.0 * math.prod(larger[1:])  # of probabilities on their way back
        return kept + 4.0 * (classes + 2) * deep * math.prod(wide) + 4.0 * classes * planes + self._mapped

    def bytes_to_finish(self, classes: int, labelled: bool = False, tile: Tile | None = None) -> float:
        """Most bytes at a time from the prediction to the labels on the grid of the file.

        Args:
            classes: whose probabilities are brought back in float64, where there is no tile.
            labelled: a label comes with the image, and the image is brought back too.
            tile: see `bytes_to_predict`.
        """
        file, seen = math.prod(self.shape), math.prod(self.seen_shape)
        kept, places = self.bytes_to_keep(labelled), self._places * file * (self.shape != self.seen_shape)
        if tile is not None and self.parallel:
            return kept + self._mapped + places * labelled
        return kept + (12.0 * classes * seen + places if places else 8.0 * classes * seen)

    def bytes_to_segment(self, classes: int, labelled: bool = False, tile: Tile | None = None) -> float:
        """Most bytes at a time from the file to the labels on its grid; arguments as above."""
        predict = self.bytes_to_predict(classes, labelled, tile)
        return max(self.bytes_to_load(labelled), predict, self.bytes_to_finish(classes, labelled, tile))

    @property
    def _mapped(self) -> float:
        """Bytes of class maps: bytes, float32 and int32, and what is compared."""
        return 16.0 * math.prod(self.shape)

    @property
    def _places(self) -> int:
        return _PLACES[len(self.shape)]

    def describe(self) -> str:
        """Voxel sizes and numbers of voxels, to follow the word "found"."""
        return (
            f"voxels of {_sizes(self.spacing)} mm, so that it has {_by(self.seen_shape)} voxels of "
            f"{_sizes(self.seen_spacing)} mm where the network sees it"
        )


def seen_grid(
    shape: Sequence[int], affine: np.ndarray, transforms: Iterable[Transform]
) -> tuple[tuple[int, ...], np.ndarray]:
    """What Orientationd and Spacingd do to a grid, without its voxels.

    Args:
        shape: voxels, (*spatial).
        affine: from voxels to mm, (4, 4).
        transforms: Orientationd and Spacingd, in any number and order.

    Returns:
        Shape and affine of the grid that comes out.
    """
    # MONAI's lazy transforms work out shape and affine alone; the voxels are one number, repeated.
    image = MetaTensor(torch.zeros(()).expand(1, *shape), affine=torch.from_numpy(affine))
    for transform in transforms:
        one: Any = copy.copy(transform)  # for one key, as all come to one grid
        one.keys = one.keys[:1]
        image = one({one.keys[0]: image}, lazy=True)[one.keys[0]]
    return tuple(int(n) for n in image.peek_pending_shape()), np.asarray(image.peek_pending_affine(), float)


def geometry_of(preprocessing: Callable | None) -> list[Transform]:
    """The steps of a preprocessing that change the grid, up to the first random one."""
    steps: list[Transform] = []
    for step in getattr(preprocessing, "transforms", ()):
        if isinstance(step, RandomizableTrait):
            break
        if isinstance(step, Orientationd | Spacingd):
            steps.append(step)
    return steps


class Room:
    """The memory that there is, and whether a case fits into it.

    Args:
        preprocessing: what brings a case to the network; None leaves it on the grid of its file.
        classes: of the network; 0 in training, which holds no prediction of a whole image.
        labelled: cases have labels.
        finder: opens DICOM series; None for files.
        tile: see `Grids.bytes_to_predict`.
    """

    def __init__(
        self,
        preprocessing: Callable | None,
        classes: int,
        labelled: bool = False,
        finder: SeriesFinder | None = None,
        tile: Tile | None = None,
    ) -> None:
        self.geometry = geometry_of(preprocessing)
        self.classes = classes
        self.labelled = labelled
        self.finder = finder
        self.tile = tile
        self.bytes = available_memory()
        self._beside: list[tuple[float, float, float]] = []  # of each case: to load, to predict, to finish

    def grids(self, case: Mapping[str, Any]) -> Grids | None:
        """The grids of a case, by the header of its image; None where nothing can be said of it."""
        header = _header(case, self.finder)
        try:
            return header and Grids.of(*header, self.geometry)
        except (ValueError, RuntimeError, ArithmeticError):  # a header that the check is going to name
            return None

    def problems(self, case: Mapping[str, Any]) -> list[Problem]:
        """What stands in the way of working on a case; an error, a warning, or nothing.

        Args:
            case: see `scripts.data.checks`.
        """
        return self.judged(case, self.grids(case))

    def judged(self, case: Mapping[str, Any], grids: Grids | None) -> list[Problem]:
        """`problems` of a case whose grids are known."""
        if grids is None:
            return []
        name, file = str(case["case"]), str(ensure_tuple(case["image"])[0])
        try:
            grids.require_sense()
            needed = grids.bytes_to_load(self.labelled)
            if self.classes:
                about = self.classes, self.labelled, self.tile
                beside = needed, grids.bytes_to_predict(*about), grids.bytes_to_finish(*about)
                needed = max(beside)
                self._beside.append(beside)
            if needed > self.bytes:
                raise Fault(
                    grids.describe(),
                    f"its work takes {gigabytes(needed)} of memory, and {gigabytes(self.bytes)} are there",
                    f"{_FIX}; or crop it, or end other programs",
                )
        except Fault as fault:
            return [Problem(name, file, *fault.args)]
        if min(grids.seen_shape) == 1 < min(grids.shape):
            rule = "along an axis of one voxel the network sees no change"
            return [Problem(name, file, grids.describe(), rule, _FIX, "warning")]
        return []

    def beside(self) -> bool:
        """Whether any case whose `problems` were asked for may be predicted beside any two others.

        The last one is finished meanwhile, and after that the next one is loaded.
        """
        if not self._beside:
            return False
        load, predict, finish = map(max, zip(*self._beside, strict=True))
        return predict + max(load, finish) <= self.bytes


def require_room(
    data: Sequence[Any], preprocessing: Callable, cache_rate: float, on_disk: float = 0.0
) -> bool:
    """Refuse cases that training could not load, or not keep.

    Args:
        data: the cases; what is no dictionary with a file is passed over.
        preprocessing: what brings a case to the network.
        cache_rate: share of the cases that are kept, in [0, 1].
        on_disk: bytes of them that may lie in files, see `scripts.data.prepared`.

    Returns:
        Whether the memory takes all that are kept, without files.

    Raises:
        InputError: a case that is too large, or all that are kept together.
    """
    files = [case for case in data if isinstance(case, Mapping) and _is_file(case.get("image"))]
    if not files:
        return True
    room = Room(preprocessing, classes=0, labelled=True)
    named = [{"case": _name_of(case), **case} for case in files]
    grids = [room.grids(case) for case in named]
    judged = [problem for pair in zip(named, grids, strict=True) for problem in room.judged(*pair)]
    problems = [problem for problem in judged if problem.severity == "error"]
    if problems:
        raise InputError(describe(problems, f"{len(problems)} cases are too large, mend them and run again:"))
    kept = [each.bytes_to_keep(labelled=True) for each in grids if each]
    total, there = sum(kept) * cache_rate, room.bytes / rank_and_size()[1]
    if total > there + on_disk:
        share = math.floor(50 * there / sum(kept)) / 100  # half of it: the training needs some too
        beside = f", with {gigabytes(on_disk)} in files" if on_disk else ""
        raise InputError(
            f"cache_rate is {cache_rate}: {int(len(data) * cache_rate)} cases take {gigabytes(total)} at the "
            f"spacing that the network sees, and {gigabytes(there)} of memory are there{beside}; set "
            f"--cache_rate {share}, a larger --cache_gb where the disk has room, or a larger --spacing"
        )
    return total <= there


def _header(
    case: Mapping[str, Any], finder: SeriesFinder | None
) -> tuple[int, tuple[int, ...], np.ndarray] | None:
    """Channels, shape and affine of an image; None if its header is not to be read."""
    files = ensure_tuple(case["image"])
    try:
        if finder is not None:
            series = finder.open(files[0])
            return 1, series.shape, series.affine
    except InputError:
        return None
    header = read_header(files[0])
    if header is None:
        return None
    grid, channels = header
    return max(channels, len(files)), grid.shape, np.eye(4) if grid.affine is None else grid.affine


def _is_file(image: Any) -> bool:
    files = ensure_tuple(image) if isinstance(image, str | Path | list | tuple) else ()
    return bool(files) and all(isinstance(file, str | Path) for file in files)


def _name_of(case: Mapping[str, Any]) -> str:
    return str(case.get("case") or ensure_tuple(case["image"])[0])


def _by(numbers: Iterable[float]) -> str:
    return " x ".join(f"{number:g}" if number < 1e6 else f"{number:.0f}" for number in numbers)


def _sizes(edges: Sequence[float]) -> str:
    return _by(float(f"{edge:.3g}") for edge in edges)
