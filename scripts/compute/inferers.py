"""From a patch-sized network to a whole image, window by window, a slab of planes at a time.

Both inferers here walk an image along one of its axes. They hold sums for as many planes as a window
is thick, hand a plane on as soon as no further window reaches it, and so need no more memory for a long
volume than for a short one.
"""

from __future__ import annotations

import copy
import logging
import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from heapq import nsmallest
from itertools import pairwise, product
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, cast

import numpy as np
import torch
from monai.data import MetaTensor
from monai.data.utils import compute_importance_map, dense_patch_slices
from monai.inferers import Inferer
from monai.utils import ensure_tuple, ensure_tuple_rep, fall_back_tuple
from torch import nn

from scripts.calibration import Calibration
from scripts.checkpoints import unwrap
from scripts.compute.exported import Exported
from scripts.compute.memory import operations, resident_bytes
from scripts.compute.runtimes import Runtime
from scripts.errors import Fault, InputError, few, require_within
from scripts.labels import class_names, turned_classes
from scripts.networks.blocks import Axes
from scripts.networks.ensemble import Ensemble
from scripts.networks.sizes import Sizes
from scripts.process import release_memory, require_memory
from scripts.sides import LEFT_RIGHT, sided_names
from scripts.transforms.labels import plain
from scripts.transforms.spatial import fold
from scripts.uncertainty import VERSIONS, Versions

logger = logging.getLogger(__name__)

Ends = tuple[tuple[bool, bool], ...]  # one entry per spatial axis

OUTPUTS = ("logits", "labels")

#: Tiles from the middle of an image by which runtime "auto" may choose; corners rarely show foreground.
MIDDLE_TILES = 8

#: Voxels whose classes are compared at once.
AT_ONCE = 1 << 18

#: What leaves out activations.
DROPOUTS = (nn.modules.dropout._DropoutNd,)

#: Norms whose statistics depend on which part of the image they see.
LOCAL_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


class Source(Protocol):
    """What a volume has to offer to be segmented: a tensor, an array on disk, a view that resamples."""

    @property
    def shape(self) -> Sequence[int]:
        """(C, *spatial)."""

    def __getitem__(self, box: tuple[slice, ...]) -> Any:
        """The voxels of a box, one slice with start and stop an axis, channels included."""


@dataclass(frozen=True)
class Windows:
    """Where the windows of an image lie.

    Attributes:
        tile: voxels that the network sees.
        window: voxels that it predicts, at the centre of the tile.
        corners: for each axis where windows start, in voxels of the image; they may stick out of it.
        mirrored: what lies outside of the image: its mirror image, or zeros.
        margin: voxels at a window's rim that do not count, one number an axis; at the ends of the row all do.
    """

    tile: Axes
    window: Axes
    corners: tuple[list[int], ...]
    mirrored: bool
    margin: Axes = ()

    def ends(self, corner: Sequence[int]) -> Ends:
        """For each axis, whether the window at a corner is the first one, and the last; () without margin."""
        if not self.margin:
            return ()
        pairs = zip(corner, self.corners, strict=True)
        return tuple((start == corners[0], start == corners[-1]) for start, corners in pairs)


class SlabInferer(Inferer):
    """What the inferers of this module share; they differ in where their windows lie.

    Args:
        sw_batch_size: windows that pass the network at once.
        runtime: what computes the network, see `scripts.compute.runtimes.Runtime`.
        amp: mixed precision where the hardware has it.
        memory_gb: most memory that the process may take up while it predicts, in GB (10^9 bytes), or None;
            on the CPU alone. Where it does not suffice, fewer and then smaller tiles pass the network.
        output: "logits", or "labels" for the class index of each voxel, found plane by plane, so that the
            logits of the whole image never exist.
        quantised: an int8 file of the network for runtime "auto", see `scripts.compute.runtimes.Runtime`.
        calibration: what scales the logits, see `scripts.calibration`; None: they stay.

    Raises:
        InputError: an argument breaks its rule.
    """

    def __init__(
        self,
        sw_batch_size: int,
        runtime: str,
        amp: bool,
        memory_gb: float | None,
        output: str,
        quantised: Path | None,
        calibration: Calibration | None,
    ) -> None:
        super().__init__()
        if sw_batch_size < 1:
            raise InputError(f"sw_batch_size is {sw_batch_size!r}: use 1 or more")
        if output not in OUTPUTS:
            raise InputError(f"output is {output!r}: use {' or '.join(map(repr, OUTPUTS))}")
        self.sw_batch_size = sw_batch_size
        self.output = output
        self.memory_gb = memory_gb
        self.calibration = calibration
        self.runtime = Runtime(runtime, amp, quantised)
        self._logged = ""
        self._channels: int | None = None
        self._sizes: tuple[tuple[nn.Module, bool], Sizes] | None = None

    @abstractmethod
    def full_tile(self, spatial: Axes) -> Axes:
        """The tile that was asked for, for an image of this size."""

    @abstractmethod
    def windows(self, network: Callable[..., Any], spatial: Axes, tile: Axes) -> Windows:
        """Where the windows of an image of this size lie."""

    @abstractmethod
    def importance(self, layout: Windows, ends: Ends) -> torch.Tensor:
        """Weight of each voxel of a window against those of other windows, (*window).

        Args:
            layout: where the windows lie.
            ends: see `Windows.ends`.
        """

    def cost(self, network: nn.Module, size: Sequence[int]) -> float:
        """Multiply-adds that an image takes tile by tile, relative to the image in one piece.

        Args:
            network: stays as it is; nothing is computed.
            size: (C, *spatial) of the image.

        Returns:
            Multiply-adds of all tiles over those of the smallest input that covers the image.
        """
        channels, *spatial = (int(n) for n in size)
        self._channels = channels
        tile = self.full_tile(tuple(spatial))
        tiles = math.prod(len(corners) for corners in self.windows(network, tuple(spatial), tile).corners)
        whole = self.sizes(network).covering(spatial, tile)
        return tiles * operations(network, (1, channels, *tile)) / operations(network, (1, channels, *whole))

    def sizes(self, network: nn.Module) -> Sizes:
        """The sizes of a network, which are tried once for as long as it is the same."""
        key = (network, getattr(network, "training", False))
        if self._sizes is None or self._sizes[0] != key:
            self._sizes = key, Sizes(network, self._channels)
        return self._sizes[1]

    def slabs(
        self,
        source: Source,
        network: Callable[..., Any],
        axis: int = 0,
        reserved: Callable[[int], int] = lambda classes: 0,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] = MappingProxyType({}),
    ) -> Iterator[tuple[int, int, torch.Tensor]]:
        """Predict one image a few planes at a time, without gradients.

        Args:
            source: (C, *spatial); only the boxes of single windows are read.
            network: takes (B, C, *tile), gives logits (B, classes, *window), or a dictionary of them by the
                name of the head, of which "main" counts.
            axis: the spatial axis to walk along.
            reserved: bytes that the caller is going to hold beside, from the number of classes.
            args: further positional arguments of the network.
            kwargs: further keyword arguments of the network.

        Yields:
            start, stop and the logits of these planes of ``axis``: (classes, *spatial), shorter along that
            axis, float32, on the network's device. They are overwritten when the next are asked for.

        Raises:
            InputError: an axis has no voxels, the network refuses the tile, or the memory budget is too
                small for any.
        """
        network = unwrap(cast(nn.Module, network))
        self._channels, *lengths = (int(n) for n in source.shape)
        spatial = tuple(lengths)
        if 0 in spatial:
            raise InputError(f"image of {list(spatial)} voxels: give every axis at least one")
        tile, batch_size = self._fit(network, source, axis, reserved)
        layout = self.windows(network, spatial, tile)
        window = layout.window
        device = _device(network, source)
        walked = layout.corners[axis]
        across = list(product(*layout.corners[:axis], [walked[0]], *layout.corners[axis + 1 :]))
        # Sums and weights cover whole windows; what of them lies within the image is handed on.
        low = [corners[0] for corners in layout.corners]
        high = [corners[-1] + n for corners, n in zip(layout.corners, window, strict=True)]
        high[axis] = low[axis] + window[axis]
        places = [
            _box([c - start for c, start in zip(corner, low, strict=True)], window) for corner in across
        ]
        ready = [slice(-start, n - start) for start, n in zip(low, spatial, strict=True)]
        every = slice(None)
        extent = [stop - start for start, stop in zip(low, high, strict=True)]
        taken = "sums of windows" if device.type == "cpu" else ""
        if taken:
            require_memory(12.0 * math.prod(extent), taken)  # weights, of a row too, and sums of a class
        weights = torch.zeros(extent, device=device)

        @cache
        def importance(ends: Ends) -> torch.Tensor:
            return self.importance(layout, ends).to(device)

        @cache
        def row(ends: Ends) -> torch.Tensor:
            """The weights of all windows that start on one plane, which may be the first or the last."""
            total = torch.zeros_like(weights)
            for place, corner in zip(places, across, strict=True):
                beside = layout.ends(corner)
                total[place] += importance((*beside[:axis], *ends, *beside[axis + 1 :]))
            return total

        converted = not (args or kwargs)  # with further arguments PyTorch computes the network
        fixed = self.memory_gb is not None or not converted
        abreast = 1 if fixed else self.runtime.abreast(network, tile, len(across))
        batches = _batches(len(across), batch_size, abreast)
        if converted:
            seen = [[corner] * len(batches[0]) for corner in _from_the_middle(layout.corners)]
            self.runtime.look(network, (read_tiles(source, corners, layout, device) for corners in seen))

        sums = torch.empty(0)
        for index, top in enumerate(walked):
            for chosen in batches:
                corners = [(*across[i][:axis], top, *across[i][axis + 1 :]) for i in chosen]
                tiles = read_tiles(source, corners, layout, device)
                logits = self.runtime(network, tiles, *args, **kwargs)
                if tuple(logits.shape[2:]) != window:
                    raise InputError(
                        f"the network gives logits of {list(logits.shape[2:])} voxels for tiles of "
                        f"{list(tile)}, where {type(self).__name__} expects {list(window)}: use "
                        "OverlapTileInferer for a network that predicts less than it sees"
                    )
                if not sums.numel():
                    if taken:
                        require_memory(4.0 * logits.shape[1] * math.prod(extent), taken)
                    sums = torch.zeros((logits.shape[1], *extent), device=device)
                for i, corner, part in zip(chosen, corners, logits, strict=True):
                    sums[(every, *places[i])].addcmul_(part, importance(layout.ends(corner)))
            weights += row(layout.ends(corners[0])[axis : axis + 1])
            below = walked[index + 1] if index + 1 < len(walked) else spatial[axis]
            start, stop = max(top, 0), min(below, spatial[axis])
            ready[axis] = slice(start - top, stop - top)
            planes = sums[(every, *ready)].div_(weights[tuple(ready)])
            yield start, stop, planes if self.calibration is None else self.calibration.calibrate_(planes)
            _move_up(sums.movedim(axis + 1, 0), below - top)
            _move_up(weights.movedim(axis, 0), below - top)

    def __call__(
        self, inputs: torch.Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Predict whole images, without gradients.

        Args:
            inputs: (B, in_channels, *spatial).
            network: see `slabs`.
            *args: further positional arguments of the network.
            **kwargs: further keyword arguments of the network.

        Returns:
            Logits, (B, classes, *spatial), float32, or with output "labels" class indices,
            (B, 1, *spatial), uint8; on the device and with the meta data of ``inputs``.
        """
        images = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        voxels = math.prod(images.shape[2:]) * len(images)
        labels = self.output == "labels"
        output = torch.empty(0)

        def reserved(classes: int) -> int:
            return 0 if output.numel() else voxels * (1 if labels else 4 * classes)

        for index, image in enumerate(images):
            for start, stop, logits in self.slabs(image, network, 0, reserved, args, kwargs):
                if not output.numel():
                    output = images.new_empty(
                        (len(images), 1 if labels else len(logits), *images.shape[2:]),
                        dtype=torch.uint8 if labels else logits.dtype,
                    )
                if labels:
                    output[index, 0, start:stop] = most_probable(logits)
                else:
                    output[index, :, start:stop] = logits
        return MetaTensor(output).copy_meta_from(inputs, copy_attr=False) if images is not inputs else output

    def _fit(
        self, network: Callable[..., Any], source: Source, axis: int, reserved: Callable[[int], int]
    ) -> tuple[Axes, int]:
        """The tile and the number of them that pass the network at once, within the memory budget."""
        channels, *spatial = source.shape
        tile = self.full_tile(tuple(spatial))
        if self.memory_gb is None:
            return tile, self.sw_batch_size
        exported = isinstance(network, Exported)
        if not isinstance(network, nn.Module) or exported or _device(network, source).type != "cpu":
            raise InputError(
                f"memory_gb is {self.memory_gb}, a budget for a network of PyTorch on the CPU: "
                "leave it out elsewhere, and with an exported network"
            )

        def needed(tile: Axes, batch_size: int) -> float:
            layout = self.windows(network, tuple(spatial), tile)
            peak, classes = self.runtime.peak_bytes(network, (batch_size, channels, *tile))
            extent = [c[-1] - c[0] + n for c, n in zip(layout.corners, layout.window, strict=True)]
            extent[axis] = layout.window[axis]
            sums = (classes + 2) * math.prod(extent)  # and the weights, of a row and of all
            before = batch_size * (classes * math.prod(layout.window) + channels * math.prod(tile))
            return peak + 4 * (sums + before) + reserved(classes)

        batch_size = self.sw_batch_size
        need = needed(tile, batch_size)
        release_memory()  # and measure after the first count, which loads modules
        room = self.memory_gb * 1e9 - resident_bytes() + self.runtime.reserved
        while need > room and batch_size > 1:
            batch_size //= 2
            need = needed(tile, batch_size)
        axes = set(range(len(tile)))
        while need > room and axes:
            longest = max(sorted(axes), key=tile.__getitem__)
            smaller = self.sizes(network).smaller(tile, longest)
            try:
                need = needed(smaller, 1) if smaller else need
            except (ValueError, RuntimeError):  # the network finds it too small
                smaller = None
            if smaller is None:
                axes.remove(longest)
            else:
                tile = smaller
        if need > room:
            enough = math.ceil((self.memory_gb * 1e9 + need - room) / 1e7) / 100
            raise Fault(
                f"voxels whose work needs {enough} GB even in tiles of {list(tile)}, the smallest that the "
                "network takes",
                f"memory_gb is {self.memory_gb}",
                "allow as much",
            )
        chosen = f"memory_gb {self.memory_gb}: {batch_size} tile(s) of {list(tile)} voxels at once"
        if chosen != self._logged:
            self._logged = chosen
            logger.info(chosen)
        return tile, batch_size


class SlidingWindowSlabInferer(SlabInferer):
    """Overlapping windows, blended: MONAI's `SlidingWindowInferer` in a slab of the memory.

    Windows and weights are MONAI's, and so is the result.

    Args:
        roi_size: voxels of a window, one number or one an axis; 0 or less takes the image's size. An image
            that is smaller is padded with zeros.
        sw_batch_size: windows that pass the network at once.
        overlap: share of a window that its neighbour covers too, in [0, 1), one number or one an axis.
        mode: how windows are blended: "constant" weighs all voxels alike, "gaussian" those at a window's
            centre most.
        runtime: what computes the network, see `scripts.compute.runtimes.Runtime`.
        amp: mixed precision where the hardware has it.
        memory_gb: a memory budget, see `SlabInferer`.
        output: "logits" or "labels", see `SlabInferer`.
        quantised: an int8 file of the network, see `SlabInferer`.
        calibration: of the logits, see `SlabInferer`.

    Raises:
        InputError: an argument breaks its rule.
    """

    def __init__(
        self,
        roi_size: Sequence[int] | int,
        sw_batch_size: int = 1,
        overlap: Sequence[float] | float = 0.25,
        mode: str = "constant",
        runtime: str = "torch",
        amp: bool = False,
        memory_gb: float | None = None,
        output: str = "logits",
        quantised: Path | None = None,
        calibration: Calibration | None = None,
    ) -> None:
        super().__init__(sw_batch_size, runtime, amp, memory_gb, output, quantised, calibration)
        if mode not in ("constant", "gaussian"):
            raise InputError(f"mode is {mode!r}: use 'constant' or 'gaussian'")
        if not all(0 <= share < 1 for share in ensure_tuple(overlap)):
            raise InputError(f"overlap is {overlap!r}: use shares from 0 to less than 1")
        self.roi_size = roi_size
        self.overlap = overlap
        self.mode = mode
        self._weights: tuple[Axes, torch.Tensor] | None = None  # of the window of the last image

    def full_tile(self, spatial: Axes) -> Axes:
        """The tile that was asked for, for an image of this size."""
        return fall_back_tuple(self.roi_size, spatial)

    def windows(self, network: Callable[..., Any], spatial: Axes, tile: Axes) -> Windows:
        """Windows that cover the image, the last of each axis moved back to end with it."""
        overlap = ensure_tuple_rep(self.overlap, len(spatial))
        corners = tuple(_starts(*axis) for axis in zip(spatial, tile, overlap, strict=True))
        return Windows(tile, tile, corners, mirrored=False)

    def importance(self, layout: Windows, ends: Ends) -> torch.Tensor:
        """MONAI's weights for the mode of blending."""
        if self._weights is None or self._weights[0] != layout.window:
            self._weights = layout.window, compute_importance_map(layout.window, mode=self.mode)
        return self._weights[1]


class OverlapTileInferer(SlabInferer):
    """Overlap-tile strategy: tiles whose predictions equal those of the image in one piece.

    A network with valid convolutions predicts the centre of a tile; context missing at the image's border is
    made by mirroring. Tiles start on the grid of the network's deepest level, so that they meet the same
    pooling windows as the image in one piece: 384 pixels apart where a tile predicts 388 and the grid is 16.
    A padded network predicts whole tiles, whose rims suffer from the padding. There the tiles overlap: what
    lies within a margin of a tile's rim counts only at the image's border, where the image in one piece is
    padded too. The margin is what the network is found to see (`scripts.networks.sizes.Sizes.margin`). A norm
    that takes its statistics from the tile, such as an instance norm, stands in the way of equality; the log
    says so.

    Source: Ronneberger, Fischer, Brox, MICCAI 2015, figure 2 and section 2: the tile that is predicted needs
    a larger tile as input, and context missing at the image's border is made by mirroring.

    Args:
        tile_size: voxels of the input tile, one number an axis; must be legal for the network. A padded
            network gets a smaller one where the image is smaller.
        sw_batch_size: tiles that pass the network at once.
        runtime: what computes the network, see `scripts.compute.runtimes.Runtime`.
        amp: mixed precision where the hardware has it.
        memory_gb: a memory budget, see `SlabInferer`.
        output: "logits" or "labels", see `SlabInferer`.
        mirror: show a network with valid convolutions the mirrored image beyond its border; False: zeros.
        quantised: an int8 file of the network, see `SlabInferer`.
        calibration: of the logits, see `SlabInferer`.

    Raises:
        InputError: an argument breaks its rule, the tile is illegal for the network, predicts less than the
            grid or is no larger than twice the margin, or the image has no voxels.
    """

    def __init__(
        self,
        tile_size: Sequence[int],
        sw_batch_size: int = 1,
        runtime: str = "torch",
        amp: bool = False,
        memory_gb: float | None = None,
        output: str = "logits",
        mirror: bool = True,
        quantised: Path | None = None,
        calibration: Calibration | None = None,
    ) -> None:
        super().__init__(sw_batch_size, runtime, amp, memory_gb, output, quantised, calibration)
        self.tile_size = tuple(int(n) for n in tile_size)
        self.mirror = mirror
        self._said = False
        self._exact: Callable[..., Any] | None = None

    def full_tile(self, spatial: Axes) -> Axes:
        """The tile that was asked for, whatever the image's size."""
        return self.tile_size

    def windows(self, network: Callable[..., Any], spatial: Axes, tile: Axes) -> Windows:
        """Windows on the grid of the deepest level, from the first voxel on; the last may stick out."""
        sizes = self.sizes(cast(nn.Module, network))
        size = sizes.output(tile)
        self._warn_of_norms(sizes.network)
        if size == tile:
            return self._padded_windows(sizes, spatial, tile)
        corners = []
        for axis, (length, predicted, grid) in enumerate(zip(spatial, size, sizes.grid(tile), strict=True)):
            step = predicted // grid * grid
            if not step:
                enough = sizes.covering([grid] * len(tile), tile)[axis]
                raise InputError(
                    f"tile_size is {list(self.tile_size)}: along axis {axis} the network predicts "
                    f"{predicted} voxels of it, fewer than the {grid} of its grid; give it {enough} or more"
                )
            corners.append(list(range(0, max(length - predicted, 0) + step, step)))
        if network is not self._exact and any(len(starts) > 1 for starts in corners):
            sizes.require_exact_tiles(tile, dict.fromkeys(range(len(tile)), 0))
            self._exact = network
        return Windows(tile, size, tuple(corners), self.mirror)

    def importance(self, layout: Windows, ends: Ends) -> torch.Tensor:
        """One where the window counts, zero in its margin."""
        weights = torch.ones(layout.window)
        for axis, (margin, (first, last)) in enumerate(zip(layout.margin, ends, strict=True)):
            planes = weights.movedim(axis, 0)
            planes[: 0 if first else margin] = 0
            planes[len(planes) - (0 if last else margin) :] = 0
        return weights

    def _padded_windows(self, sizes: Sizes, spatial: Axes, tile: Axes) -> Windows:
        """Tiles within the image, rounded up to a legal size, that overlap by twice the margin."""
        grids = sizes.grid(tile)
        if any(seen % grid for seen, grid in zip(tile, grids, strict=True)):
            raise InputError(
                f"tile_size is {list(self.tile_size)}: use multiples of {list(grids)}, the network's grid"
            )
        covered = []
        for seen, n, grid in zip(tile, sizes.covering(spatial, tile), grids, strict=True):
            covered.append(n if n <= seen else seen + -(-(n - seen) // grid) * grid)
        whole = tuple(min(seen, n) for seen, n in zip(tile, covered, strict=True))
        corners: list[list[int]] = []
        margins: list[int] = []
        for axis, (seen, n, grid) in enumerate(zip(whole, covered, grids, strict=True)):
            margin = sizes.margin(tile, axis) if seen < n else 0
            step = (seen - 2 * margin) // grid * grid
            if step < 1:
                enough = sizes.covering([2 * margin + grid] * len(tile), tile)[axis]
                raise InputError(
                    f"tile_size is {list(self.tile_size)}: axis {axis} of this network needs a margin of "
                    f"{margin} voxels on both sides; give it {enough} or more"
                )
            last = n - seen
            corners.append([*range(0, last, step), last])
            margins.append(margin)
        return Windows(whole, whole, tuple(corners), False, tuple(margins))

    def _warn_of_norms(self, network: nn.Module) -> None:
        norms = {
            type(norm).__name__
            for norm in network.modules()
            if isinstance(norm, LOCAL_NORMS) and not getattr(norm, "track_running_stats", False)
        }
        if norms and not self._said:
            self._said = True
            logger.warning(
                "OverlapTileInferer: %s takes its statistics from the tile; the result differs from that of "
                "the image in one piece",
                ", ".join(sorted(norms)),
            )


class AveragedVersions(Inferer):
    """The mean of the probabilities of several predictions of an image, and how far they lie apart.

    Args:
        inferer: predicts one version, (B, C, *spatial) to logits (B, classes, *spatial). What calibrates its
            logits calibrates the mean.
        spread: leave in the meta data what `scripts.uncertainty.Versions` finds.
    """

    def __init__(self, inferer: Inferer, spread: bool = False) -> None:
        super().__init__()
        self.inferer, self.calibration = uncalibrated(inferer)
        self.spread = spread

    @abstractmethod
    def versions(
        self, images: torch.Tensor, network: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]
    ) -> Iterator[torch.Tensor]:
        """The probabilities of each version, (B, classes, *spatial).

        Args:
            images: (B, in_channels, *spatial).
            network: see the inferer.
            args: further positional arguments of the network.
            kwargs: further keyword arguments of the network.
        """

    def __call__(
        self, inputs: torch.Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Predict every version, and average.

        Args:
            inputs: (B, in_channels, *spatial).
            network: see the inferer.
            *args: further positional arguments of the network.
            **kwargs: further keyword arguments of the network.

        Returns:
            Logarithms of the mean probabilities, calibrated, which softmax turns back into them,
            (B, classes, *spatial), with the meta data of ``inputs``.
        """
        images = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        seen = Versions(self.spread)
        for probabilities in self.versions(images, network, args, kwargs):
            seen.add(probabilities)
        mean = seen.mean().clamp_min(torch.finfo(torch.float32).tiny).log()
        if self.calibration is not None:
            self.calibration.calibrate_(mean, 1)
        if images is inputs:
            return mean
        return with_versions(MetaTensor(mean).copy_meta_from(inputs, copy_attr=False), seen)


class AveragedOrientations(AveragedVersions):
    """Test-time augmentation: the mean of the probabilities over turned and mirrored versions of the image.

    Source: Ronneberger, Fischer, Brox, MICCAI 2015, section 4, which averages over 7 rotated versions for the
    EM challenge; here the 8 orientations of the square, or of a volume the 8 combinations of its flips.

    Args:
        inferer: predicts one version, see `AveragedVersions`.
        flip_axes: spatial axes that are mirrored; each doubles the number of versions.
        transpose: also exchange the first two axes, which doubles it again; with both flips these are the
            orientations of the square. For images with pixels as high as wide.
        labels: the task's labels, class name to value: where names say left or right, the axis from left to
            right is neither mirrored nor exchanged, which is told; classes whose names are directions
            (`scripts.labels.DIRECTION`) are turned with the image.
        spread: see `AveragedVersions`.

    Raises:
        InputError: axes that are negative or named twice, or at the first image axes that it lacks.
    """

    def __init__(
        self,
        inferer: Inferer,
        flip_axes: Sequence[int],
        transpose: bool = False,
        labels: Mapping[str, int] | None = None,
        spread: bool = False,
    ) -> None:
        super().__init__(inferer, spread)
        if len(set(flip_axes)) < len(flip_axes) or min(flip_axes, default=0) < 0:
            raise InputError(f"flip_axes is {list(flip_axes)}: name each spatial axis at most once, from 0")
        sided = sided_names(labels or ())
        if sided and (transpose or LEFT_RIGHT in flip_axes):
            logger.warning(
                "%s say left or right: no version of the image is mirrored from left to right", few(sided)
            )
        self.flip_axes = tuple(axis for axis in flip_axes if not sided or axis != LEFT_RIGHT)
        self.transpose = transpose and not sided
        self.names = class_names(dict(labels or {}))

    def versions(
        self, images: torch.Tensor, network: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]
    ) -> Iterator[torch.Tensor]:
        """The probabilities of each orientation, turned back."""
        if max(self.flip_axes, default=0) > images.ndim - 3:
            raise InputError(
                f"flip_axes is {list(self.flip_axes)}: the images have the axes 0 to {images.ndim - 3}"
            )
        for version in product((False, True), repeat=len(self.flip_axes) + self.transpose):
            turned = self.transpose and version[-1]
            flips = [axis + 2 for axis, flipped in zip(self.flip_axes, version, strict=False) if flipped]
            image = images.transpose(2, 3) if turned else images
            logits = self.inferer(image.flip(flips).contiguous(), network, *args, **kwargs).flip(flips)
            classes = turned_classes(self.names, [axis - 2 for axis in flips], turned)
            if classes != sorted(classes):
                logits = logits[:, classes]
            yield (logits.transpose(2, 3) if turned else logits).softmax(1)


class MembersApart(Inferer):
    """What an inferer predicts, and how far the networks of an ensemble lie apart.

    The prediction is that of the inferer. To know the networks apart each computes the image once more.

    Args:
        inferer: predicts the image, (B, C, *spatial) to logits (B, classes, *spatial).
    """

    def __init__(self, inferer: Inferer) -> None:
        super().__init__()
        self.inferer = inferer
        self._inferers: list[Inferer] = []

    def __call__(
        self, inputs: torch.Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Predict images; of an ensemble the meta data say what `scripts.uncertainty.Versions` finds.

        Args:
            inputs: (B, in_channels, *spatial).
            network: see the inferer.
            *args: further positional arguments of the network.
            **kwargs: further keyword arguments of the network.
        """
        made: torch.Tensor = self.inferer(inputs, network, *args, **kwargs)
        bare = unwrap(network) if isinstance(network, nn.Module) else network
        if not isinstance(bare, Ensemble) or not isinstance(made, MetaTensor):
            return made
        if len(self._inferers) != len(bare.members):  # a runtime converts one network
            self._inferers = [own_runtime(uncalibrated(self.inferer)[0]) for _ in bare.members]
        seen = Versions(apart=True)
        for inferer, member in zip(self._inferers, bare.members, strict=True):
            logits: torch.Tensor = inferer(inputs, member, *args, **kwargs)
            seen.add(plain(logits).softmax(1))
        return with_versions(made, seen)


class AveragedDropout(AveragedVersions):
    """Monte Carlo dropout: what a network says with other activations left out each time.

    PyTorch computes it, whatever the runtime.

    Source: Y. Gal, Z. Ghahramani, "Dropout as a Bayesian Approximation", ICML 2016.

    Args:
        inferer: predicts one version, see `AveragedVersions`.
        samples: how many versions.
        seed: of what is left out.
        spread: see `AveragedVersions`.

    Raises:
        InputError: fewer than one sample; at the first image a network without dropout.
    """

    def __init__(self, inferer: Inferer, samples: int = 8, seed: int = 0, spread: bool = False) -> None:
        super().__init__(own_runtime(inferer, "torch"), spread)
        require_within("samples", samples, 1)
        self.samples = samples
        self.seed = seed

    def versions(
        self, images: torch.Tensor, network: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]
    ) -> Iterator[torch.Tensor]:
        """The probabilities of each sample."""
        modules = network.modules() if isinstance(network, nn.Module) else ()
        dropouts = [module for module in modules if isinstance(module, DROPOUTS) and module.p > 0]
        if not dropouts:
            raise InputError(
                "the network leaves nothing out, as it was made with a dropout of 0: train one with "
                "network_def::dropout above 0, or take configs/inferer/orientations.json"
            )
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            for _ in range(self.samples):
                for module in dropouts:
                    module.train()
                try:
                    probabilities = self.inferer(images, network, *args, **kwargs).softmax(1)
                finally:
                    for module in dropouts:
                        module.eval()
                yield probabilities


def with_versions(prediction: MetaTensor, seen: Versions) -> MetaTensor:
    """A prediction with what its versions say in its meta data."""
    if found := seen.found():
        prediction.meta = {**prediction.meta, VERSIONS: found}
    return prediction


def own_runtime(inferer: Inferer, runtime: str | None = None) -> Inferer:
    """An inferer like another, whose runtime converts a network of its own.

    Args:
        inferer: stays as it is.
        runtime: another one than that of the inferer, or None.
    """
    made = copy.copy(inferer)
    if isinstance(made, SlabInferer):
        made.runtime = Runtime(runtime or made.runtime.runtime, made.runtime.amp)
        made._sizes = None
    return made


def of_members(inferer: Inferer, spread: bool) -> Inferer:
    """What also says how far the networks of an ensemble lie apart, where that is asked for.

    Args:
        inferer: predicts an image.
        spread: whether it is asked for; if not, the inferer comes back as it is.
    """
    return MembersApart(inferer) if spread else inferer


def uncalibrated(inferer: Inferer) -> tuple[Inferer, Calibration | None]:
    """An inferer that leaves logits as they are, and what scaled them: of a mean that alone is scaled.

    Args:
        inferer: predicts what enters the mean.
    """
    calibration = getattr(inferer, "calibration", None)
    if calibration is None:
        return inferer, None
    bare: Any = copy.copy(inferer)  # shares the runtime
    bare.calibration = None
    return bare, calibration


def most_probable(logits: torch.Tensor) -> torch.Tensor:
    """Class with the largest value, the first of several: argmax, which PyTorch computes far more slowly.

    Args:
        logits: (classes, *spatial), or probabilities.

    Returns:
        (*spatial), uint8.
    """
    classes = torch.zeros(logits.shape[1:], dtype=torch.uint8, device=logits.device)
    step = max(AT_ONCE // max(classes[:1].numel(), 1), 1)
    for start in range(0, len(classes), step):  # what is compared stays in the processor's cache
        some = slice(start, start + step)
        best = logits[0, some].clone()
        for index in range(1, len(logits)):
            classes[some].masked_fill_(logits[index, some] > best, index)
            torch.maximum(best, logits[index, some], out=best)
    return classes


def _device(network: Callable[..., Any], source: Source) -> torch.device:
    """Where the network's weights lie; for a network without weights where the image lies."""
    weight = next(network.parameters(), None) if isinstance(network, nn.Module) else None
    holder = source if weight is None else weight
    return holder.device if isinstance(holder, torch.Tensor) else torch.device("cpu")


def _starts(length: int, window: int, overlap: float) -> list[int]:
    """Where MONAI's windows start along an axis; the padding before a short axis counts as negative."""
    if length <= window:
        return [-((window - length) // 2)]
    step = max(int(window * (1 - overlap)), 1)
    return [part.start for (part,) in dense_patch_slices((length,), (window,), (step,))]


def _batches(count: int, batch_size: int, abreast: int) -> list[range]:
    """Which of so many windows pass the network together.

    Args:
        count: windows that start on a plane.
        batch_size: that was asked for.
        abreast: windows that are faster together; none is left to pass alone then.
    """
    if abreast <= batch_size:
        return [range(some, min(some + batch_size, count)) for some in range(0, count, batch_size)]
    ends = [count * part // (count // abreast) for part in range(count // abreast + 1)]
    return [range(*pair) for pair in pairwise(ends)]


def _from_the_middle(corners: Sequence[list[int]]) -> list[Axes]:
    """The corners of the windows nearest to the middle one, at most `MIDDLE_TILES`."""
    middle = [starts[len(starts) // 2] for starts in corners]
    return nsmallest(MIDDLE_TILES, product(*corners), key=lambda corner: math.dist(corner, middle))


def _box(corner: Sequence[int], size: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(start, start + n) for start, n in zip(corner, size, strict=True))


def _move_up(planes: torch.Tensor, done: int) -> None:
    """Move the planes after the first ``done`` to the front, in place, and clear what follows them."""
    kept = max(len(planes) - done, 0)
    for plane in range(kept):
        planes[plane] = planes[plane + done]
    planes[kept:] = 0


def read_tiles(
    source: Source, corners: Sequence[Sequence[int]], layout: Windows, device: torch.device
) -> torch.Tensor:
    """The tiles of some windows, (B, C, *tile), float32; only what lies within the image is read.

    Of a tensor with gradients the tiles have them too.
    """
    channels, *spatial = source.shape
    tiles = torch.zeros((len(corners), channels, *layout.tile), device=device)
    for index, corner in enumerate(corners):
        boxes, targets, folds = [slice(0, channels)], [slice(0, channels)], []
        for start, n, seen, predicted in zip(corner, spatial, layout.tile, layout.window, strict=True):
            start -= (seen - predicted) // 2
            if layout.mirrored:
                places = fold(torch.arange(start, start + seen), n)
                low, high = int(places.min()), int(places.max()) + 1
                targets.append(slice(0, seen))
                folds.append(places - low)
            else:
                low, high = max(start, 0), min(start + seen, n)
                targets.append(slice(low - start, high - start))
            boxes.append(slice(low, high))
        piece = source[tuple(boxes)]
        if not isinstance(piece, torch.Tensor):
            piece = torch.from_numpy(np.array(piece, dtype=np.float32))
        for axis, places in enumerate(folds, start=1):
            piece = piece.index_select(axis, places.to(piece.device))
        tiles[index][tuple(targets)] = piece
    return tiles
