"""Attention U-Net: gates that look at the coarser map before a skip is let through, and fused heads.

Follows
- Oktay et al., 2018, "Attention U-Net: learning where to look for the pancreas" (arXiv 1804.03999), and
  Schlemper et al., 2019, "Attention gated networks: learning to leverage salient regions in medical images",
  with the numbers of the authors' own network: gates with a strided theta on all levels but the highest, the
  deepest one guided by a 1x1x1 convolution of the bottleneck; one gate or two a level; up-steps without
  parameters; a head on every level of the decoder, fused into one, without losses of their own.

Departs: weights are drawn as everywhere here, norms start at one; the skip comes before the map from below.
Ours: two dimensions, strides other than two, dropout.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from monai.networks.layers.factories import Conv
from torch import Tensor, nn

from scripts.errors import InputError, require_within
from scripts.networks.blocks import Axes, Concatenate, Layers, Stage
from scripts.networks.unet import Decoder, Level, Part

#: Kernel and stride of theta, which brings the skip to the grid of the coarser map.
THETA_STRIDE = 2


class Gate(nn.Module):
    """How much of the skip counts at each place, 0 to 1, by the skip and by the coarser map.

    Args:
        layers: what layers are made of; the norm follows the gated skip, not what is inside of the gate.
        skip_channels: channels of the skip, of the output, and within.
        signal_channels: channels of the coarser map.
    """

    def __init__(self, layers: Layers, skip_channels: int, signal_channels: int) -> None:
        super().__init__()
        convolution = Conv[Conv.CONV, layers.spatial_dims]
        self.theta = convolution(skip_channels, skip_channels, THETA_STRIDE, stride=THETA_STRIDE, bias=False)
        self.phi = convolution(signal_channels, skip_channels, 1)
        self.psi = convolution(skip_channels, 1, 1)
        self.out = layers.convolution(skip_channels, skip_channels, 1, act=False)
        self.mode = "bilinear" if layers.spatial_dims == 2 else "trilinear"

    def forward(self, skip: Tensor, signal: Tensor) -> Tensor:
        """Map the skip, `(B, skip_channels, H, W[, D])`, and the coarser map to the gated skip."""
        theta = self.theta(skip)
        phi = F.interpolate(self.phi(signal), size=theta.shape[2:], mode=self.mode, align_corners=False)
        alpha = torch.sigmoid(self.psi(torch.relu(theta + phi)))
        return self.out(skip * F.interpolate(alpha, size=skip.shape[2:], mode=self.mode, align_corners=False))


class AttentionGate(Concatenate):
    """Gate the skip, then put it beside the map from below.

    Args:
        layers: what layers are made of.
        skip_channels: channels of the skip.
        up_channels: channels of the map from below, enlarged.
        below_channels: its channels before the up-step.
        gates: number of gates side by side, whose outputs a 1x1 convolution joins.
        guides: whether the coarser map passes a 1x1 convolution on its way to the gates.

    Raises:
        InputError: no gate.
    """

    def __init__(
        self,
        layers: Layers,
        skip_channels: int,
        up_channels: int,
        below_channels: int,
        gates: int = 1,
        guides: bool = False,
    ) -> None:
        super().__init__(layers, skip_channels, up_channels, below_channels)
        require_within("gates", gates, 1)
        self.guide: nn.Module = nn.Identity()
        if guides:
            self.guide = layers.convolution(below_channels, below_channels, 1)
        self.gates = nn.ModuleList(Gate(layers, skip_channels, below_channels) for _ in range(gates))
        self.mix = layers.convolution(gates * skip_channels, skip_channels, 1)

    def forward(self, skip: Tensor, up: Tensor, below: Tensor) -> Tensor:
        """Merge maps to `(B, out_channels, *size)`, see `Concatenate`."""
        signal = self.guide(below)
        gated = torch.cat([gate(skip, signal) for gate in self.gates], dim=1)
        return self.join(self.mix(gated), up)


class AttentionDecoder(Decoder):
    """A decoder that gates every skip but the highest.

    Args:
        layers: see `Decoder`, as are the others.
        in_channels: channels of the encoder's levels.
        strides: their strides.
        levels: from high to low resolution.
        up: class of the up-steps.
        merge: class of the gated merges, made as `AttentionGate` is.

    Raises:
        InputError: a network of two levels, in which there is no skip to gate.
    """

    def __init__(
        self,
        layers: Layers,
        in_channels: Sequence[int],
        strides: Sequence[Axes],
        levels: Sequence[Level],
        up: Part,
        merge: Part,
    ) -> None:
        if len(levels) < 2:
            raise InputError(
                f"channels has {len(levels) + 1} levels, and an Attention U-Net gates all skips but the "
                "highest: give it 3 or more"
            )
        merges: list[Part] = [Concatenate, *[merge] * (len(levels) - 2), partial(merge, guides=True)]
        super().__init__(layers, in_channels, strides, levels, up, merges)


class FusedHeads(Stage):
    """A 1x1 convolution to the classes on every map of the decoder, and one that joins them, enlarged.

    Args:
        layers: what layers are made of.
        in_channels: channels of the decoder's maps, from low to high resolution.
        out_channels: channels of the logits.
    """

    def __init__(self, layers: Layers, in_channels: Sequence[int], out_channels: int) -> None:
        super().__init__(out_channels)
        convolution = Conv[Conv.CONV, layers.spatial_dims]
        self.heads = nn.ModuleList(convolution(channels, out_channels, 1) for channels in in_channels)
        self.main = convolution(len(in_channels) * out_channels, out_channels, 1)
        self.mode = "bilinear" if layers.spatial_dims == 2 else "trilinear"

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Logits of all maps together, `(B, out_channels, *size)` of the highest."""
        size = maps[-1].shape[2:]
        logits: list[Tensor] = []
        for index, head in enumerate(self.heads):
            logits.append(F.interpolate(head(maps[index]), size=size, mode=self.mode, align_corners=False))
        return self.main(torch.cat(logits, dim=1))
