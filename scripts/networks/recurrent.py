"""R2U-Net: blocks whose convolutions see their own output again, with a residual around them.

Follows
- Alom et al., 2018, "Recurrent residual convolutional neural network based on U-Net (R2U-Net) for medical
  image segmentation" (arXiv 1802.06955), section 3: two recurrent layers a block, each with weights for its
  input and others for its last output, both the same at every step.

With `shared` the layer has one set of weights for both, as a popular port has it: 39,091,393 parameters for 3
channels and 1 class. From that port, where the paper's equations say nothing: the 1x1 convolution to the
width of a level, batch norm, and up-steps that repeat voxels before a convolution. Ours to guess: a norm for
each step where weights are separate, since its statistics differ from step to step.
"""

from __future__ import annotations

from collections.abc import Sequence

from monai.networks.layers import get_norm_layer
from monai.networks.layers.factories import Conv
from torch import Tensor, nn

from scripts.errors import InputError, require_within
from scripts.networks.blocks import Layers, Stage


class RecurrentLayer(nn.Module):
    """A convolution of the input plus one of the last output, `steps` times after the first without it.

    Args:
        layers: what layers are made of.
        channels: channels of input and output.
        kernel_size: odd, one entry per axis.
        steps: how often the output comes back.
    """

    def __init__(self, layers: Layers, channels: int, kernel_size: Sequence[int], steps: int) -> None:
        super().__init__()
        convolution = Conv[Conv.CONV, layers.spatial_dims]
        kernel, padding = tuple(kernel_size), tuple(k // 2 for k in kernel_size)
        self.feed = convolution(channels, channels, kernel, padding=padding)
        self.recur = convolution(channels, channels, kernel, padding=padding, bias=False)
        self.first = self._after(layers, channels)
        self.after = nn.ModuleList(self._after(layers, channels) for _ in range(steps))

    @staticmethod
    def _after(layers: Layers, channels: int) -> nn.Sequential:
        """Norm and activation of one step."""
        unit = nn.Sequential()
        if layers.norm is not None:
            unit.append(get_norm_layer(layers.norm, layers.spatial_dims, channels))
        unit.append(layers.activation(channels))
        return unit

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, channels, H, W[, D])` to the same shape."""
        fed = self.feed(x)
        y = self.first(fed)
        for after in self.after:
            y = after(fed + self.recur(y))
        return y


class SharedRecurrentLayer(nn.Module):
    """A convolution of the input, then of the sum of input and last output. Arguments: `RecurrentLayer`."""

    def __init__(self, layers: Layers, channels: int, kernel_size: Sequence[int], steps: int) -> None:
        super().__init__()
        self.unit = layers.convolution(channels, channels, kernel_size)
        self.steps = steps

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, channels, H, W[, D])` to the same shape."""
        y = self.unit(x)
        for _ in range(self.steps):
            y = self.unit(x + y)
        return y


class RecurrentBlock(Stage):
    """A 1x1 convolution to the width, and a residual around recurrent layers: `x + layers(x)`.

    Args:
        layers: what layers are made of.
        in_channels: channels of the input.
        out_channels: channels of each recurrent layer, all the same; one entry per layer.
        kernel_size: odd kernel size, one entry per axis.
        stride: of the 1x1 convolution, one entry per axis.
        steps: how often the output of a layer comes back to it, the paper's t.
        shared: one set of weights for input and last output.

    Raises:
        InputError: layers of several widths, or valid padding, in which there is nothing to add to.
    """

    def __init__(
        self,
        layers: Layers,
        in_channels: int,
        out_channels: Sequence[int],
        kernel_size: Sequence[int],
        stride: Sequence[int],
        steps: int = 2,
        shared: bool = False,
    ) -> None:
        super().__init__(out_channels[-1])
        require_within("steps", steps, 0)
        if len(set(out_channels)) > 1:
            raise InputError(
                f"channels of a level are {list(out_channels)}: a recurrent layer adds its input and its "
                "output, so give the level one number"
            )
        if layers.padding == "valid":
            raise InputError(
                'padding is "valid": a recurrent layer adds its input and its output, which must be of one '
                'size, so use "same"'
            )
        kind = SharedRecurrentLayer if shared else RecurrentLayer
        convolution = Conv[Conv.CONV, layers.spatial_dims]
        self.enter = convolution(in_channels, self.out_channels, 1, stride=tuple(stride))
        self.layers = nn.Sequential(
            *(kind(layers, channels, kernel_size, steps) for channels in out_channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, in_channels, H, W[, D])` to `(B, out_channels, H', W'[, D'])`."""
        x = self.enter(x)
        return x + self.layers(x)
