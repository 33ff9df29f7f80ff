"""What sizes a network takes and gives, and how far it sees, found by trying: true for any network.

Sizes are tried on tensors without data. How far a voxel sees is tried with one tile of data, in which a few
planes are NaN: whatever they reach becomes NaN, by whichever path.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from scripts.errors import InputError
from scripts.networks.blocks import Axes
from scripts.networks.heads import main_logits

#: How far from a size that is illegal others are tried, in voxels.
SEARCHED = 512

#: So many sizes that fail with the same words say that it is not the size: more than the strides of networks.
REPEATED = 33

#: Share of its length to which an axis is cut down at most in one step.
CUT = 7 / 8

#: How far tiles may lie from one piece, as a share of the largest logit: single precision.
TOLERANCE = 1e-4

#: Layers that keep the size of a map, whatever it is: most of the time that a map without data takes.
KEPT = {
    *(nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid),
    *(nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm),
}

#: Norms that may take their statistics from the image they see.
NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


class IllegalLength(InputError):
    """A feature map of a length that a part of the network cannot take.

    Args:
        message: the sentence.
        axis: spatial axis of the length, counted from 0.
    """

    def __init__(self, message: str, axis: int) -> None:
        super().__init__(message)
        self.axis = axis


def require_multiple(x: Tensor, stride: Axes) -> None:
    """Refuse a map that a stride does not divide: skips would lie askew.

    Args:
        x: (B, C, *spatial).
        stride: one entry per axis.

    Raises:
        IllegalLength: such a length.
    """
    for axis, (length, step) in enumerate(zip(x.shape[2:], stride, strict=True)):
        if length % step:
            what = f"{length} voxels along axis {axis} of a feature map meet the stride {step}"
            raise IllegalLength(f"{what}: use a multiple of it", axis)


class Sizes:
    """The sizes of one network; each is tried once.

    Args:
        network: takes (B, C, *spatial), gives what `main_logits` reads; stays as it is. Of a wrapper that
            computes elsewhere (`prototype`) and of DistributedDataParallel the network inside is tried.
        channels: channels of its images; None takes its `in_channels`, or those of its first convolution.
    """

    def __init__(self, network: nn.Module, channels: int | None = None) -> None:
        if isinstance(network, nn.parallel.DistributedDataParallel):
            network = network.module
        self.network: nn.Module = getattr(network, "prototype", network)
        first = next((m for m in self.network.modules() if isinstance(m, nn.Conv2d | nn.Conv3d)), None)
        told = getattr(self.network, "in_channels", None)
        guess = first.in_channels if first is not None else 1
        self.channels = channels or (told if isinstance(told, int) else guess)
        self.slice_axis: int | None = getattr(self.network, "slice_axis", None)
        guessed = None if first is None else first.weight.ndim - 2
        self.dims = guessed if self.slice_axis is None else 3
        self._tried: dict[Axes, tuple[Axes, Axes] | Exception] = {}
        self._grid: dict[int, int | None] = {}
        self._margins: dict[int, int] = {}
        self._bare: nn.Module | None = None
        self._weightless = _clone(self.network, lambda tensor: torch.empty_like(tensor, device="meta"))
        self._smallest: list[int] = []
        for module in self._weightless.modules():
            module.register_forward_hook(self._note)
            if isinstance(module, nn.InstanceNorm2d | nn.InstanceNorm3d):
                module.forward = partial(_sized, module)  # type: ignore[method-assign]
            if type(module) in KEPT:  # a subclass may do something else
                module.forward = _same  # type: ignore[method-assign]
            if isinstance(module, nn.GroupNorm):
                module.register_forward_pre_hook(_require_statistics)

    def output(self, size: Sequence[int]) -> Axes:
        """Spatial size of the logits of an image.

        Args:
            size: spatial size of the image, in voxels.

        Raises:
            InputError: the size is illegal; the message names the nearest legal lengths of each axis.
        """
        self.check(size)
        return cast("tuple[Axes, Axes]", self._try(size))[0]

    def is_legal(self, size: Sequence[int]) -> bool:
        """Whether the network takes an image of a spatial size."""
        return not isinstance(self._try(size), Exception)

    def _is_alike(self, size: Axes, legal: Sequence[int]) -> bool:
        """Whether a size is legal and loses on each axis as much as another one."""
        return self.is_legal(size) and all(
            n - left == m - kept
            for n, left, m, kept in zip(size, self.output(size), legal, self.output(legal), strict=True)
        )

    def check(self, size: Sequence[int], cause: Exception | None = None) -> None:
        """Refuse an illegal size.

        Args:
            size: spatial size of an image, in voxels.
            cause: what the network said about it.

        Raises:
            InputError: see `output`.
        """
        size = tuple(int(length) for length in size)
        if self.dims not in (None, len(size)):
            raise InputError(
                f"input size {size} has {len(size)} spatial axes, the network has {self.dims}: "
                f"hand in a batch with {self.dims + 2} dimensions, batch and channels first"
            ) from cause
        why = self._try(size)
        if not isinstance(why, Exception):
            return
        refused = isinstance(why, InputError) and not isinstance(why, IllegalLength)
        if refused:
            raise InputError(str(why)) from cause
        is_about_size = isinstance(why, RuntimeError | ValueError)
        base = self._legal_above(size) if is_about_size else None
        if base is None:
            reason = (str(why).strip().splitlines() or [type(why).__name__])[0]
            raise InputError(
                f"input size {size} does not fit the network ({reason}), and no larger one was found that "
                "does: give the network other arguments"
            ) from cause or why
        illegal = [axis for axis, length in enumerate(size) if not self.is_legal(_with(base, axis, length))]
        nearest = "; ".join(f"axis {axis}: {self._nearest(base, axis, size[axis])}" for axis in illegal)
        raise InputError(
            f"input size {size} does not fit the network: use a nearest legal size, {nearest or base}"
        ) from cause

    def covering(self, spatial: Sequence[int], legal: Sequence[int]) -> Axes:
        """The smallest input whose logits are as large as an image, or larger.

        Args:
            spatial: spatial size of the image, in voxels.
            legal: any legal input size.

        Returns:
            Spatial size of the input, in voxels; axes are independent.
        """
        covering = []
        for axis, wanted in enumerate(int(n) for n in spatial):
            least = wanted + legal[axis] - self.output(legal)[axis]
            lengths = range(least, least + SEARCHED)
            found = next((n for n in lengths if self._is_alike(_with(legal, axis, n), legal)), None)
            if found is None:
                raise InputError(
                    f"no input of the network covers {wanted} voxels of axis {axis}: use smaller tiles"
                )
            covering.append(found)
        return tuple(covering)

    def smaller(self, tile: Sequence[int], axis: int) -> Axes | None:
        """A tile with one axis cut down, by an eighth or more, to a length that the network takes.

        Args:
            tile: voxels, one number an axis, legal for the network.
            axis: the axis to cut down.

        Returns:
            The smaller tile, or None if there is none.
        """
        cut = (_with(tile, axis, length) for length in range(int(tile[axis] * CUT), 0, -1))
        return next((size for size in cut if self._is_alike(size, tile)), None)

    def grid(self, tile: Sequence[int]) -> Axes:
        """By how many voxels an axis grows for the smallest feature map to grow by one.

        Tiles that start on this grid meet the same pooling windows as the image in one piece.

        Args:
            tile: a legal size.

        Raises:
            InputError: no map grows: one of them sums up the whole image.
        """
        grids = []
        for axis in range(len(tile)):
            if axis not in self._grid:
                self._grid[axis] = self._measure_grid(tile, axis)
            grid = self._grid[axis]
            if grid is None:
                raise InputError(
                    f"{type(self.network).__name__} sums up the whole image along axis {axis}, so that tiles "
                    "give something else: use SlidingWindowSlabInferer"
                )
            grids.append(grid)
        return tuple(grids)

    def margin(self, tile: Sequence[int], axis: int) -> int:
        """How many voxels at the rim of a padded network's tile depend on what lies beyond, norms left out.

        Args:
            tile: a legal size.
            axis: spatial axis, counted from 0.

        Returns:
            Voxels, rounded up to the grid.

        Raises:
            InputError: the network sees further than half of the tile; or see `require_exact_tiles`.
        """
        if axis == self.slice_axis:
            return 0
        if axis not in self._margins:
            margin = self._measure_margin(tile, axis)
            self.require_exact_tiles(tile, {axis: margin})
            self._margins[axis] = margin
        return self._margins[axis]

    def require_exact_tiles(self, tile: Sequence[int], margins: Mapping[int, int]) -> None:
        """Hold two tiles, a step of the grid apart, against one piece, on a small image of noise.

        Args:
            tile: a legal size.
            margins: what does not count at the rim, for each axis along which the tiles lie apart.

        Raises:
            InputError: they differ: the network looks at the whole image, at the place in it, or beyond what
                it predicts.
        """
        wanted = [1] * len(tile)
        for axis, margin in margins.items():
            wanted[axis] = 2 * margin + 1
        size = self.covering(wanted, tile)
        grid = self.grid(tile)
        apart = [grid[axis] * (axis in margins) for axis in range(len(tile))]
        whole = self.covering([n + step for n, step in zip(self.output(size), apart, strict=True)], size)
        noise = torch.randn((1, self.channels, *whole), generator=torch.Generator().manual_seed(0))
        expected = self._plain(noise)
        tolerance = TOLERANCE * float(expected.abs().max())
        for second in (False, True):
            part, piece = noise, expected
            for axis, step in enumerate(apart, start=2):
                start = step * second
                part = part.narrow(axis, start, size[axis - 2])
                piece = piece.narrow(axis, start, self.output(size)[axis - 2])
            found = self._plain(part)
            for axis, margin in margins.items():
                # the outer rim is that of the piece too
                kept = found.shape[axis + 2] - margin
                found, piece = (x.narrow(axis + 2, margin * second, kept) for x in (found, piece))
            if not torch.allclose(found, piece, rtol=0, atol=tolerance):
                raise InputError(
                    f"{type(self.network).__name__} gives something else in tiles than in one piece: it "
                    "looks at the whole image, at the place in it or beyond what it predicts; use "
                    "SlidingWindowSlabInferer, or the image in one piece"
                )

    def _measure_margin(self, tile: Sequence[int], axis: int) -> int:
        """How far NaN get that fill one step of the grid."""
        grid, small = self.grid(tile)[axis], self.covering([1] * len(tile), tile)
        length = 2 * grid
        while length < tile[axis]:
            length = min(2 * length, tile[axis])
            size = self.covering(_with(small, axis, length), tile)
            start = (size[axis] // grid - 1) // 2 * grid
            image = torch.zeros((1, self.channels, *size))
            image.movedim(axis + 2, 0)[start : start + grid] = torch.nan
            planes = self._plain(image).movedim(axis + 2, 0).flatten(1)
            reached = planes.isnan().any(1).nonzero().flatten().tolist()
            if reached and reached[0] > 0 and reached[-1] < size[axis] - 1:
                furthest = max(start - reached[0], reached[-1] - (start + grid - 1))
                return -(-furthest // grid) * grid
        raise InputError(
            f"tiles have {tile[axis]} voxels along axis {axis}, and the network sees further than half of "
            "that: use larger ones, or SlidingWindowSlabInferer"
        )

    def _plain(self, image: Tensor) -> Tensor:
        """The logits of an image in single precision, without norms, dropout and what makes it fast."""
        if self._bare is None:
            self._bare = _clone(self.network, _with_data).eval()
            for module in list(self._bare.modules()):
                module.__dict__.pop("forward", None)
                for name, child in module.named_children():
                    if isinstance(child, NORMS):
                        setattr(module, name, nn.Identity())
        weight = next(self._bare.parameters(), image)
        with torch.no_grad(), _eager():
            return main_logits(self._bare(image.to(weight.device)))

    def _try(self, size: Sequence[int]) -> tuple[Axes, Axes] | Exception:
        """Sizes of the logits and of the smallest feature map, or why the network refuses an image."""
        size = tuple(int(length) for length in size)
        if size not in self._tried:
            self._tried[size] = self._run(size)
        return self._tried[size]

    def _run(self, size: Axes) -> tuple[Axes, Axes] | Exception:
        if min(size, default=0) < 1:
            return ValueError(f"{size} holds no voxel")
        self._smallest[:] = size
        try:
            with torch.no_grad(), _eager():
                # two images: a norm over a batch in training takes any size
                logits = main_logits(self._weightless(torch.empty((2, self.channels, *size), device="meta")))
        except Exception as error:  # each network has its own
            return error
        if logits.ndim != len(size) + 2:
            return TypeError(f"it gives logits of {logits.ndim} axes for an image of {len(size) + 2}")
        return tuple(logits.shape[2:]), tuple(self._smallest)

    def _note(self, module: nn.Module, inputs: Any, output: Any) -> None:
        """Keep the size of the smallest feature map."""
        for leaf in tree_leaves(output):
            size = list(leaf.shape[2:]) if isinstance(leaf, Tensor) else []
            if self.slice_axis is not None and len(size) == 2:  # of a slice
                size.insert(self.slice_axis, self._smallest[self.slice_axis])
            if size and len(size) == len(self._smallest):
                self._smallest[:] = map(min, self._smallest, size)

    def _legal_above(self, size: Axes) -> Axes | None:
        """A legal size with no axis shorter; a failure lengthens its axis, or makes a cube."""
        size = tuple(max(length, 1) for length in size)
        said: list[str] = []
        longest = max(size) + SEARCHED
        while max(size) <= longest:
            why = self._try(size)
            if not isinstance(why, Exception):
                return size
            if isinstance(why, IllegalLength):
                axis = why.axis + (self.slice_axis is not None and why.axis >= self.slice_axis)
                size = _with(size, axis, size[axis] + 1)
                continue
            said = [*said, str(why)] if str(why) in said else [str(why)]
            if len(said) == REPEATED:
                return None
            size = (max(size) + 1,) * len(size)
        return None

    def _nearest(self, base: Axes, axis: int, length: int) -> str:
        lower = (n for n in range(length - 1, 0, -1) if self.is_legal(_with(base, axis, n)))
        below = next(lower, None)
        above = next(
            n for n in range(max(length + 1, 1), base[axis] + 1) if self.is_legal(_with(base, axis, n))
        )
        return f"{above}, the smallest" if below is None else f"{below} or {above}"

    def _measure_grid(self, tile: Sequence[int], axis: int) -> int | None:
        """From where the smallest map grows to where it grows again."""
        grown: list[tuple[int, int]] = []
        smallest = None
        for length in range(tile[axis], tile[axis] + SEARCHED):
            found = self._try(_with(tile, axis, length))
            if isinstance(found, Exception):
                continue
            if smallest is not None and found[1][axis] > smallest:
                grown.append((length, found[1][axis]))
                if len(grown) == 2:
                    (here, before), (there, after) = grown
                    return (there - here) // (after - before)
            smallest = found[1][axis]
        return None


def output_size(network: nn.Module, input_size: Sequence[int]) -> Axes:
    """Spatial size of a network's logits; see `Sizes.output`."""
    return Sizes(network).output(input_size)


def _eager() -> Any:
    """A network that is compiled runs as it was written; without an import of the compiler where none is."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


def _clone(network: nn.Module, convert: Callable[[Tensor], Tensor]) -> nn.Module:
    """A copy of a network whose weights and buffers are converted ones, without a copy on the way."""
    memo: dict[int, Any] = {}
    for tensor in [*network.parameters(), *network.buffers()]:
        made = convert(tensor)
        is_new = isinstance(tensor, nn.Parameter) and made is not tensor
        memo[id(tensor)] = nn.Parameter(made, tensor.requires_grad) if is_new else made
    return copy.deepcopy(network, memo)


def _same(x: Tensor) -> Tensor:
    return x


def _sized(norm: nn.InstanceNorm2d | nn.InstanceNorm3d, x: Tensor) -> Tensor:
    """An instance norm of a map without data. PyTorch's own imports its compiler for that, half a second.

    Raises:
        ValueError: a single voxel, of which there are no statistics.
    """
    if x.shape[2:].numel() == 1 and (norm.training or not norm.track_running_stats):
        raise ValueError(f"an instance norm of a single voxel, {tuple(x.shape)}")
    return x


def _require_statistics(norm: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Refuse a single value in a group: a group norm gives its bias for it, whatever the image shows.

    Raises:
        ValueError: such a map.
    """
    (x,) = inputs
    if isinstance(norm, nn.GroupNorm) and x[0].numel() == norm.num_groups:
        raise ValueError(f"a group norm of single values, {tuple(x.shape)}")


def _with_data(tensor: Tensor) -> Tensor:
    """A tensor, or noise in place of one that has a size alone."""
    if not tensor.is_meta:
        return tensor
    incoming = max(tensor.numel() // max(len(tensor), 1), 1) if tensor.ndim else 1
    noise = torch.randn(tensor.shape, device="cpu", generator=torch.Generator().manual_seed(0))
    return (noise / incoming**0.5).to(tensor.dtype)


def _with(size: Sequence[int], axis: int, length: int) -> Axes:
    return (*size[:axis], length, *size[axis + 1 :])
