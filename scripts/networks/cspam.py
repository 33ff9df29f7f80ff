"""Attention to channels, to places, and of each place to all others, between encoder and decoder.

After Wang et al., 2025, "Diffusion-CSPAM U-Net: a U-Net model integrated hybrid attention mechanism and
diffusion model for segmentation of computed tomography images of brain metastases", Radiation Oncology 20:50,
10.1186/s13014-025-02622-x, of which the abstract alone could be read: it names channel, spatial and
positional attention. The same authors' network before it (10.21037/qims-23-1627) has position attention in
the layer between encoder and decoder.

Ours to guess: that all three stand there, one after the other in the order of their name; each in the form
from which it is best known: channel and spatial attention of Woo et al., 2018, "CBAM" (arXiv 1807.06521),
position attention of Fu et al., 2019, "Dual attention network for scene segmentation" (arXiv 1809.02983);
their reductions, 16 and 8; widths and levels. Diffusion is apart: `scripts.networks.diffusion`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from monai.networks.layers.factories import Conv
from torch import Tensor, nn

from scripts.networks.blocks import Layers, Stage

#: By how much the layers that weigh channels are narrower (Woo et al., 2018), and queries and keys of places
#: (Fu et al., 2019).
CHANNELS, PLACES = 16, 8

#: Kernel of the convolution that weighs places (Woo et al., 2018).
KERNEL = 7


class ChannelAttention(nn.Module):
    """Weigh each channel by its mean and its largest value, 0 to 1.

    Args:
        channels: of input and output.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = max(channels // CHANNELS, 1)
        self.weigh = nn.Sequential(nn.Linear(channels, inner), nn.ReLU(), nn.Linear(inner, channels))

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, channels, *spatial)` to the same size."""
        flat = x.flatten(2)
        weight = torch.sigmoid(self.weigh(flat.mean(2)) + self.weigh(flat.amax(2)))
        return (flat * weight[:, :, None]).reshape(x.shape)


class SpatialAttention(nn.Module):
    """Weigh each place by the mean and the largest value of its channels and of those around it, 0 to 1.

    Args:
        layers: what layers are made of.
    """

    def __init__(self, layers: Layers) -> None:
        super().__init__()
        self.weigh = Conv[Conv.CONV, layers.spatial_dims](2, 1, KERNEL, padding=KERNEL // 2)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, channels, *spatial)` to the same size."""
        seen = torch.cat((x.mean(1, keepdim=True), x.amax(1, keepdim=True)), dim=1)
        return x * torch.sigmoid(self.weigh(seen))


class PositionAttention(nn.Module):
    """Add to each place what it finds in all others, by a weight that is learnt and begins at 0.

    Args:
        layers: what layers are made of.
        channels: of input and output.
    """

    def __init__(self, layers: Layers, channels: int) -> None:
        super().__init__()
        convolution = Conv[Conv.CONV, layers.spatial_dims]
        inner = max(channels // PLACES, 1)
        self.query = convolution(channels, inner, 1)
        self.key = convolution(channels, inner, 1, bias=False)  # which softmax would not see
        self.value = convolution(channels, channels, 1)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, channels, *spatial)` to the same size."""
        query, key, value = _places(self.query(x)), _places(self.key(x)), _places(self.value(x))
        found = F.scaled_dot_product_attention(query, key, value, scale=1.0)[:, 0]
        return x + self.gamma * found.transpose(1, 2).reshape(x.shape)


def _places(x: Tensor) -> Tensor:
    """The places of a map as a sequence, `(B, 1, places, channels)`: ONNX asks for the axis of heads."""
    return x.flatten(2).transpose(1, 2)[:, None]


class ChannelSpatialPositional(Stage):
    """The three attentions one after the other.

    Args:
        layers: what layers are made of.
        in_channels: channels of the input, and of the output.
    """

    def __init__(self, layers: Layers, in_channels: int) -> None:
        super().__init__(in_channels)
        self.attentions = nn.Sequential(
            ChannelAttention(in_channels), SpatialAttention(layers), PositionAttention(layers, in_channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, in_channels, H, W[, D])` to the same size."""
        return self.attentions(x)
