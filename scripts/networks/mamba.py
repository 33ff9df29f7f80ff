"""Mamba in plain PyTorch: selective scans over the voxels of a feature map, and the parts made of them.

Follows
- Gu and Dao, 2023, "Mamba: linear-time sequence modeling with selective state spaces", arXiv 2312.00752:
  the scan (`S6`) and the layer around it (`Mamba`);
- Dao and Gu, 2024, "Transformers are SSMs", arXiv 2405.21060: the scan with one decay a head, computed by
  matrix products inside blocks of steps (`SSD`);
- Ma, Li and Wang, 2024, "U-Mamba", arXiv 2401.04722: a layer norm and one Mamba layer at the lowest
  resolution, without a sum around them (`MambaBottleneck`);
- Liu et al., 2024, "VMamba", arXiv 2401.10166: scans along every axis, there and back, each with projections
  of its own, summed (`VisualMamba`).

After "PUNet: a lightweight parallel U-Net architecture integrating Mamba-CNN", Scientific Reports, 2025,
10.1038/s41598-025-22862-x, whose text could not be read (`ParallelBlock`, `SqueezeExcite`): its abstract
names two branches, depthwise separable convolution and visual Mamba, and squeeze-and-excitation on the skips.
The rest is ours to guess: widths, levels, convolutions where channels change, the sum of both branches and
the input, the form of the scan, the excitation's reduction and activation.

Layers are computed in single precision, as in U-Mamba, whatever the network around them is.

Departs
- `SSD` stands in the layer of the 2023 paper: Δ, B and C are projections of its sequence, no norm follows;
- voxels follow each other row by row, and in 3D there are six scans where VMamba has four;
- the optimizer of train.json decays A and D as it does all weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from monai.networks.layers.factories import Conv
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from scripts.errors import InputError
from scripts.machine import available_memory, gigabytes
from scripts.networks.blocks import Concatenate, Layers, PlainBlock, Stage

#: Steps of a linear recurrence that are taken one after the other, in all chunks at once.
CHUNK = 16

#: Levels of chunks of an exported scan, whose length is left open: it takes CHUNK ** LEVELS steps at most.
LEVELS = 4

#: Steps that `ssd` joins in one matrix product.
BLOCK = 64

#: Floats that a scan holds for each of its states while it trains, at most.
HELD = 10

#: Steps Δ at the start, drawn log-uniformly between these (Gu and Dao, 2023, section 3.6).
STEPS = (0.001, 0.1)

#: Channels of a head of `SSD` at most, and decays at the start, drawn uniformly.
HEAD, DECAYS = 64, (1.0, 16.0)


def linear_scan(decay: Tensor, inputs: Tensor, from_end: bool = False, level: int = 1) -> Tensor:
    """The states of a linear recurrence, `h[t] = decay[t] * h[t - 1] + inputs[t]` from `h[-1] = 0`.

    Exact for any length: chunks are gone through one step after the other, all of them at once; their ends
    are a recurrence again, of a sixteenth of the length.

    Args:
        decay: (B, L, F).
        inputs: (B, L, F).
        from_end: go from the last step to the first, `h[t] = decay[t] * h[t + 1] + inputs[t]`.
        level: of the recurrence of ends of chunks of ends.

    Returns:
        (B, L, F).
    """
    if inputs.is_meta:  # tensors without data, of which one step for all of them says as much
        return decay * inputs
    batch, length, features = inputs.shape
    chunks = (length + CHUNK - 1) // CHUNK
    missing = chunks * CHUNK - length
    left_open = torch.compiler.is_exporting()  # of an exported graph the steps do not depend on the length
    if left_open:
        torch._check(length <= CHUNK ** (LEVELS + 1 - level))
    if left_open or missing:
        decay = F.pad(decay, (0, 0, 0, missing), value=1.0)
        inputs = F.pad(inputs, (0, 0, 0, missing))
    decay = decay.view(batch, chunks, CHUNK, features)
    inputs = inputs.view(batch, chunks, CHUNK, features)
    steps = list(zip(decay.unbind(2), inputs.unbind(2), strict=True))  # (B, chunks, F) each
    if from_end:
        steps.reverse()
    kept, states = [steps[0][0]], [steps[0][1]]
    for left, entering in steps[1:]:
        states.append(torch.addcmul(entering, left, states[-1]))
        kept.append(left * kept[-1])
    if level < LEVELS if left_open else chunks > 1:
        ends = linear_scan(kept[-1], states[-1], from_end, level + 1)  # (B, chunks, F)
        start = _shifted(ends, from_end)
        states = [torch.addcmul(state, left, start) for state, left in zip(states, kept, strict=True)]
    if from_end:
        states.reverse()
    return torch.stack(states, 2).view(batch, chunks * CHUNK, features)[:, :length]


def _shifted(states: Tensor, from_end: bool = False) -> Tensor:
    """(B, L, ...), what each step starts from: the state of the step before it, or after it."""
    steps = (0, 0) * (states.ndim - 2)
    return F.pad(states[:, 1:], (*steps, 0, 1)) if from_end else F.pad(states[:, :-1], (*steps, 1, 0))


def s6(x: Tensor, step: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """The selective scan of Mamba: `h = exp(step * a) * h + step * b * x`, `y = c . h`, in single precision.

    Args:
        x: (B, L, D).
        step: Δ, (B, L, D), above 0.
        a: A, (D, N), below 0.
        b: B, (B, L, N).
        c: C, (B, L, N).

    Returns:
        y, (B, L, D), float32.
    """
    given = [tensor.float() for tensor in (x, step, a, b, c)]
    with _full_precision(x):
        return _S6.apply(*given) if torch.is_grad_enabled() else _s6(*given)[0]


def _s6(x: Tensor, step: Tensor, a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`s6`, its decays and its states, (B, L, D, N) each."""
    decay = (step[..., None] * a).exp()
    inputs = (step * x)[..., None] * b[:, :, None]
    states = linear_scan(decay.flatten(2), inputs.flatten(2)).unflatten(2, a.shape)
    return (states * c[:, :, None]).sum(-1), decay, states


class _S6(torch.autograd.Function):
    """`s6` with a gradient that is a scan from the end; keeps decays and states alone."""

    @staticmethod
    def forward(ctx: Any, *given: Tensor) -> Tensor:
        """See `s6`."""
        y, decay, states = _s6(*given)
        ctx.save_for_backward(*given, decay, states)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        """The gradients of all arguments: g[t] = c[t] gradient[t] + decay[t + 1] g[t + 1] of the states."""
        x, step, a, b, c, decay, states = ctx.saved_tensors
        with _full_precision(x):
            of_states = (gradient[..., None] * c[:, :, None]).flatten(2)
            following = _shifted(decay, from_end=True).flatten(2)
            of_states = linear_scan(following, of_states, from_end=True).unflatten(2, a.shape)
            of_c = (gradient[:, :, None] @ states)[:, :, 0]
            of_b = ((step * x)[:, :, None] @ of_states)[:, :, 0]
            of_inputs = (of_states @ b[..., None])[..., 0]
            of_exponent = _shifted(states).mul_(of_states).mul_(decay)  # of step * a
            of_a = torch.einsum("bldn,bld->dn", of_exponent, step)
            of_step = (of_exponent * a).sum(-1) + of_inputs * x
            return of_inputs * step, of_step, of_a, of_b, of_c


def ssd(x: Tensor, step: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """The scan of Mamba-2, as `s6` with one decay a head: matrix products inside blocks of steps.

    Args:
        x: (B, L, H, P), of H heads.
        step: Δ, (B, L, H), above 0.
        a: A, (H), below 0.
        b: B, (B, L, N), shared by the heads.
        c: C, (B, L, N).

    Returns:
        y, (B, L, H, P), float32.
    """
    with _full_precision(x):
        x, step, a, b, c = (tensor.float() for tensor in (x, step, a, b, c))
        _, length, heads, channels = x.shape
        blocks = (length + BLOCK - 1) // BLOCK

        def in_blocks(tensor: Tensor) -> Tensor:
            """(B, L, H, n) as (B, blocks, H, BLOCK, n)."""
            tensor = F.pad(tensor, (0, 0, 0, 0, 0, blocks * BLOCK - length))
            return tensor.unflatten(1, (blocks, BLOCK)).transpose(2, 3)

        inputs = in_blocks(x * step[..., None])
        b, c = in_blocks(b[:, :, None]), in_blocks(c[:, :, None])
        # logarithm of what is left of each step (column) at each one (row) of its block, summed from small to
        # large: differences of long sums would lose it. (B, blocks, H, BLOCK, BLOCK)
        decay = in_blocks((step * a)[..., None])
        place = torch.arange(BLOCK, device=x.device)
        earlier, same = place[:, None] < place, place[:, None] == place
        left = decay.masked_fill(earlier | same, 0.0).cumsum(3).masked_fill(earlier, -math.inf).exp()
        inside = _product(_product(c, b.transpose(3, 4)) * left, inputs)
        # what each block leaves, (B, blocks, H, P, N), and what it starts from
        ends = _product(
            (inputs * left[:, :, :, -1, :, None]).transpose(3, 4), b.expand(-1, -1, heads, -1, -1)
        )
        since = decay.cumsum(3).exp()  # what is left at each step of what the block starts from
        start = linear_scan(since[:, :, :, -1:].expand_as(ends).flatten(2), ends.flatten(2))
        start = _shifted(start).unflatten(2, (heads, channels, b.shape[4]))
        before = _product(c.expand(-1, -1, heads, -1, -1), start.transpose(3, 4)) * since
        return _copied((inside + before).transpose(2, 3)).flatten(1, 2)[:, :length]


def _product(one: Tensor, other: Tensor) -> Tensor:
    """Matrix products of (B, blocks, H, i, j) and (B, blocks, H, j, k), without a broadcast."""
    if torch.compiler.is_exporting():
        one, other = _copied(one), _copied(other)
    made = torch.bmm(one.flatten(0, 2), other.flatten(0, 2))
    return made.unflatten(0, one.shape[:3])


def _copied(x: Tensor) -> Tensor:
    """The same in the order of its axes: whether axes can be joined does not hang on their lengths then."""
    return x.clone(memory_format=torch.contiguous_format)


def _full_precision(x: Tensor) -> Any:
    """A context without autocast, where there is any."""
    mixed = not x.is_meta and torch.is_autocast_enabled(x.device.type)
    return torch.autocast(x.device.type, enabled=False) if mixed else nullcontext()


def require_room(x: Tensor, states: int) -> None:
    """Refuse a sequence whose scan takes more memory than there is.

    Args:
        x: (B, L, D).
        states: numbers that are kept for each of its B * L steps.

    Raises:
        InputError: such a sequence; says its length and what to do. Or a trace, which holds for one length.
    """
    if torch.jit.is_tracing():
        raise InputError("a network with Mamba layers is not traced: use runtime torch, or an exported file")
    if x.is_meta or isinstance(x, FakeTensor) or torch.compiler.is_exporting():
        return
    cuda = x.device.type == "cuda"
    room = torch.cuda.mem_get_info(x.device)[0] if cuda else available_memory()
    needed = 4.0 * HELD * x.shape[0] * x.shape[1] * states
    if needed > room:
        raise InputError(
            f"a Mamba layer scans {len(x)} sequences of {x.shape[1]} voxels, which takes {gigabytes(needed)} "
            f"of {gigabytes(room)}: use a smaller patch_size or batch_size, or Mamba layers at lower "
            "resolution alone"
        )


class S6(nn.Module):
    """`s6` with its parameters, of which Δ, B and C follow from the sequence (Gu and Dao, 2023, algorithm 2).

    Args:
        channels: D, of the sequence.
        state: N, states of a channel.
        rank: of the projection to Δ.
    """

    def __init__(self, channels: int, state: int, rank: int) -> None:
        super().__init__()
        self.sizes = [rank, state, state]
        self.project = nn.Linear(channels, sum(self.sizes), bias=False)
        self.step = nn.Linear(rank, channels)
        nn.init.uniform_(self.step.weight, -(rank**-0.5), rank**-0.5)
        with torch.no_grad():
            self.step.bias.copy_(_first_steps(channels))
        self.a_log = nn.Parameter(torch.arange(1.0, state + 1).log().repeat(channels, 1))
        self.skip = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, L, channels) to (B, L, channels)."""
        require_room(x, self.a_log.numel())
        step, b, c = self.project(x).split(self.sizes, -1)
        return s6(x, F.softplus(self.step(step).float()), -self.a_log.exp(), b, c) + self.skip * x


class SSD(nn.Module):
    """`ssd` with its parameters, of which Δ, B and C follow from the sequence.

    Args:
        channels: of the sequence: heads of 64, or of the largest divisor of both.
        state: N, states of a channel.
        rank: has no part in it.
    """

    def __init__(self, channels: int, state: int, rank: int) -> None:
        super().__init__()
        self.heads = channels // math.gcd(channels, HEAD)
        self.sizes = [self.heads, state, state]
        self.project = nn.Linear(channels, sum(self.sizes), bias=False)
        self.step_bias = nn.Parameter(_first_steps(self.heads))
        self.a_log = nn.Parameter(torch.empty(self.heads).uniform_(*DECAYS).log())
        self.skip = nn.Parameter(torch.ones(self.heads))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, L, channels) to (B, L, channels)."""
        require_room(x, self.heads * BLOCK + x.shape[-1])
        step, b, c = self.project(x).split(self.sizes, -1)
        each = x.unflatten(-1, (self.heads, -1))  # (B, L, H, P)
        y = ssd(each, F.softplus(step.float() + self.step_bias), -self.a_log.exp(), b, c)
        return (y + self.skip[:, None] * each).flatten(2)


def _first_steps(count: int) -> Tensor:
    """Biases whose softplus is log-uniform within STEPS."""
    low, high = map(math.log, STEPS)
    step = torch.empty(count).uniform_(low, high).exp()
    return step + (-torch.expm1(-step)).log()  # the inverse of softplus


Scan = Callable[..., nn.Module]  # S6, SSD, or like them


class Mamba(nn.Module):
    """The layer of Gu and Dao, 2023, figure 3: causal convolution and scan, and a gate beside them.

    Args:
        channels: of the sequence.
        scan: class of the scan, `S6` or `SSD`.
        state: N, states of a channel.
        expand: by how much the scan is wider than the sequence.
        kernel_size: of the convolution.
    """

    def __init__(
        self, channels: int, scan: Scan = S6, state: int = 16, expand: int = 2, kernel_size: int = 4
    ) -> None:
        super().__init__()
        inner = expand * channels
        self.enter = nn.Linear(channels, 2 * inner, bias=False)
        self.convolution = nn.Conv1d(inner, inner, kernel_size, padding=kernel_size - 1, groups=inner)
        self.scan = scan(inner, state, -(-channels // 16))
        self.leave = nn.Linear(inner, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, L, channels) to (B, L, channels), each step from those before it."""
        with _full_precision(x):
            y, gate = self.enter(x.float()).chunk(2, -1)
            y = self.convolution(y.transpose(1, 2))[..., : x.shape[1]].transpose(1, 2)
            return self.leave(self.scan(F.silu(y)) * F.silu(gate))


class VisualMamba(nn.Module):
    """The layer of VMamba: scans along every axis, there and back, and a gate beside them.

    Args:
        layers: what layers are made of.
        channels: of the feature map.
        scan: class of the scans, `S6` or `SSD`.
        state: N, states of a channel.
        expand: by how much the scans are wider than the map.
    """

    def __init__(
        self, layers: Layers, channels: int, scan: Scan = SSD, state: int = 16, expand: int = 2
    ) -> None:
        super().__init__()
        inner, rank = expand * channels, -(-channels // 16)
        self.enter = nn.Linear(channels, 2 * inner, bias=False)
        self.convolution = Conv[Conv.CONV, layers.spatial_dims](inner, inner, 3, padding=1, groups=inner)
        self.there = nn.ModuleList(scan(inner, state, rank) for _ in range(layers.spatial_dims))
        self.back = nn.ModuleList(scan(inner, state, rank) for _ in range(layers.spatial_dims))
        self.norm = nn.LayerNorm(inner)
        self.leave = nn.Linear(inner, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, channels, *spatial) to the same size."""
        with _full_precision(x):
            y, gate = self.enter(sequence(x).float()).chunk(2, -1)
            y = F.silu(self.convolution(feature_map(y, x)))
            scanned = torch.zeros_like(y)
            for axis, (there, back) in enumerate(zip(self.there, self.back, strict=True), start=2):
                turned = y.movedim(axis, -1)
                steps = sequence(turned)
                found = there(steps) + back(steps.flip(1)).flip(1)
                scanned = scanned + feature_map(found, turned).movedim(-1, axis)
            return feature_map(self.leave(self.norm(sequence(scanned)) * F.silu(gate)), x)


def sequence(x: Tensor) -> Tensor:
    """(B, C, *spatial) as (B, L, C), the last axis fastest."""
    return x.flatten(2).transpose(1, 2)


def feature_map(x: Tensor, like: Tensor) -> Tensor:
    """(B, L, C) as (B, C, *spatial) with the spatial size of another map."""
    return x.transpose(1, 2).unflatten(2, like.shape[2:])


class MambaBottleneck(Stage):
    """Layer norm and one Mamba layer over all voxels of the deepest map, row by row (U-Mamba).

    Args:
        layers: what layers are made of.
        in_channels: channels of the input, and of the output.
        scan: see `Mamba`.
        state: see `Mamba`.
    """

    def __init__(self, layers: Layers, in_channels: int, scan: Scan = S6, state: int = 16) -> None:
        super().__init__(in_channels)
        self.norm = nn.LayerNorm(in_channels)
        self.mamba = Mamba(in_channels, scan, state)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, in_channels, H, W[, D])` to the same size."""
        return feature_map(self.mamba(self.norm(sequence(x))), x)


class MambaBlock(PlainBlock):
    """A plain block, to which a Mamba layer over all of its voxels adds: `y + mamba(norm(y))`.

    Arguments are those of `PlainBlock`, and those of `MambaBottleneck`.
    """

    def __init__(
        self,
        layers: Layers,
        in_channels: int,
        out_channels: Sequence[int],
        kernel_size: Sequence[int],
        stride: Sequence[int],
        scan: Scan = SSD,
        state: int = 16,
    ) -> None:
        super().__init__(layers, in_channels, out_channels, kernel_size, stride)
        self.mamba = MambaBottleneck(layers, self.out_channels, scan, state)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, in_channels, H, W[, D])` to `(B, out_channels[-1], H', W'[, D'])`."""
        y = self.convolutions(x)
        return y + self.mamba(y)


class ParallelUnit(nn.Module):
    """Separable convolution and visual Mamba beside each other: `x + separable(x) + mamba(norm(x))`.

    Args:
        layers: what layers are made of.
        channels: of input and output.
        kernel_size: of the depthwise convolution, one entry per axis.
        scan: see `VisualMamba`.
        state: see `VisualMamba`.
    """

    def __init__(
        self, layers: Layers, channels: int, kernel_size: Sequence[int], scan: Scan, state: int
    ) -> None:
        super().__init__()
        margin = tuple(k // 2 for k in kernel_size)
        depthwise = Conv[Conv.CONV, layers.spatial_dims]
        self.separable = nn.Sequential(
            depthwise(channels, channels, tuple(kernel_size), padding=margin, groups=channels),
            layers.convolution(channels, channels, 1),
        )
        self.norm = nn.LayerNorm(channels)
        self.mamba = VisualMamba(layers, channels, scan, state)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, channels, H, W[, D])` to the same size."""
        normed = feature_map(self.norm(sequence(x)), x)
        return x + self.separable(x) + self.mamba(normed)


class ParallelBlock(Stage):
    """Parallel units, after PUNet, each behind a convolution where the channels or the size change.

    A 1x1 convolution of an image of one channel would give one map several times over, and the norm of the
    channels of each voxel nothing but rounding errors.

    Args:
        layers: what layers are made of.
        in_channels: channels of the input.
        out_channels: channels of each unit.
        kernel_size: of the convolutions, one entry per axis.
        stride: of the first unit, one entry per axis.
        scan: see `VisualMamba`.
        state: see `VisualMamba`.
    """

    def __init__(
        self,
        layers: Layers,
        in_channels: int,
        out_channels: Sequence[int],
        kernel_size: Sequence[int],
        stride: Sequence[int],
        scan: Scan = SSD,
        state: int = 16,
    ) -> None:
        super().__init__(out_channels[-1])
        self.steps = nn.Sequential()
        for channels in out_channels:
            if channels != in_channels or max(stride) > 1:
                self.steps.append(layers.convolution(in_channels, channels, kernel_size, stride))
            self.steps.append(ParallelUnit(layers, channels, kernel_size, scan, state))
            in_channels, stride = channels, (1,) * layers.spatial_dims

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, in_channels, H, W[, D])` to `(B, out_channels[-1], H', W'[, D'])`."""
        return self.steps(x)


class SqueezeExcite(Concatenate):
    """Weigh the channels of the skip by what the whole of it holds, then concatenate, after Hu et al., 2018.

    Args:
        layers: see `Concatenate`.
        skip_channels: channels of the skip.
        up_channels: channels of the map from below, enlarged.
        below_channels: its channels before the up-step.
        reduction: of the channels between the two layers that weigh.
    """

    def __init__(
        self,
        layers: Layers,
        skip_channels: int,
        up_channels: int,
        below_channels: int,
        reduction: int = 4,
    ) -> None:
        super().__init__(layers, skip_channels, up_channels, below_channels)
        inner = max(skip_channels // reduction, 1)
        self.weigh = nn.Sequential(
            nn.Linear(skip_channels, inner), nn.SiLU(), nn.Linear(inner, skip_channels), nn.Sigmoid()
        )

    def forward(self, skip: Tensor, up: Tensor, below: Tensor) -> Tensor:
        """Merge maps to `(B, out_channels, *size)`, see `Concatenate`."""
        weight = self.weigh(skip.flatten(2).mean(2))
        return super().forward(skip * weight.unflatten(1, (-1, *(1,) * (skip.ndim - 2))), up, below)
