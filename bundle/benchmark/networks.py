"""The networks that inference and training run, and what the machine could do with them at best."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch
from monai.bundle import ConfigParser
from monai.networks.nets import BasicUNet, DynUNet
from torch import Tensor, nn

from bundle.benchmark.runner import CEILING, Entry
from scripts.compute import memory
from scripts.compute.acceleration import accelerate, mixed_precision
from scripts.files import read_json
from scripts.networks import UNet
from scripts.process import bundle_root

Build = Callable[[], nn.Module]

#: Package of nnU-Net's networks.
NNUNET_NETWORKS = "dynamic_network_architectures"

#: Half precisions by their names in the tables.
HALF = {torch.bfloat16: "bf16", torch.float16: "fp16"}


@dataclass(frozen=True)
class Variant:
    """How a network is made fast: arguments of `scripts.compute.acceleration.accelerate`, and of a GPU.

    Attributes:
        precision: one of `precisions`.
        channels_last: memory format.
        compile: torch.compile.
        graph: a GPU replays its kernels as one CUDA graph.
    """

    precision: str = "fp32"
    channels_last: bool = False
    compile: bool = False
    graph: bool = False

    @property
    def name(self) -> str:
        """For the table."""
        extras = {
            "channels last": self.channels_last,
            "compile": self.compile,
            "CUDA graph": self.graph,
        }
        return ", ".join([self.precision, *(extra for extra, there in extras.items() if there)])

    def prepare(self, network: nn.Module, image: Tensor) -> nn.Module:
        """Make a network fast, in training mode or not as it is now, for images like this one."""
        if image.device.type == "cuda":
            set_tf32(self.precision == "TF32")
        network = accelerate(
            network,
            image.device,
            amp=self.precision in HALF.values(),
            memory_format="channels_last" if self.channels_last else "contiguous",
            compile=self.compile,
        )
        if self.graph:  # a module comes back as the same module
            torch.cuda.make_graphed_callables(network, (image,))
        return network


def precisions(device: torch.device) -> list[str]:
    """What a device multiplies in, from slow to fast: fp32, a GPU's TF32, the hardware's half precision."""
    dtype = mixed_precision(device)
    tf32 = ["TF32"] if device.type == "cuda" else []
    return ["fp32", *tf32, *([HALF[dtype]] if dtype else [])]


def variants(device: torch.device) -> list[Variant]:
    """What the device can do, from the plainest to the fastest."""
    chosen = []
    for precision in precisions(device):
        chosen += [
            Variant(precision),
            Variant(precision, channels_last=True),
            Variant(precision, channels_last=True, compile=True),
        ]
        chosen += [Variant(precision, channels_last=True, graph=True)] if device.type == "cuda" else []
    return chosen


def peer_variants(device: torch.device) -> list[Variant]:
    """How a device runs a network by default, and how nnU-Net's and MONAI's own training do on a GPU."""
    if device.type != "cuda":
        return [Variant()]
    half = precisions(device)[-1]
    return [Variant("TF32"), Variant(half), Variant(half, compile=True)]


def peer_allocators(device: torch.device) -> list[str]:
    """The C library's allocator as it comes, then tuned; on a GPU it hardly matters."""
    return ["default"] if device.type == "cuda" else ["default", "tuned"]


def set_tf32(allowed: bool) -> None:
    """Let this process's GPU round the factors of float32 products to TF32, or not."""
    precision = "tf32" if allowed else "ieee"
    torch.backends.cuda.matmul.fp32_precision = precision
    torch.backends.cudnn.conv.fp32_precision = precision  # type: ignore[attr-defined]
    torch.backends.cudnn.rnn.fp32_precision = precision  # type: ignore[attr-defined]  # export wants one for all


def unet(dims: int, channels: Sequence[int], classes: int) -> nn.Module:
    """Ours, with the defaults of `configs/train.json`."""
    return UNet(dims, in_channels=1, out_channels=classes, channels=channels, strides=2)


def plain_conv_unet(dims: int, channels: Sequence[int], classes: int) -> nn.Module:
    """nnU-Net's default network, as its planner describes it: two convolutions a level, instance norm."""
    from dynamic_network_architectures.architectures.unet import PlainConvUNet

    levels = len(channels)
    return PlainConvUNet(
        input_channels=1,
        n_stages=levels,
        features_per_stage=list(channels),
        conv_op={2: nn.Conv2d, 3: nn.Conv3d}[dims],
        kernel_sizes=3,
        strides=[1] + [2] * (levels - 1),
        n_conv_per_stage=2,
        num_classes=classes,
        n_conv_per_stage_decoder=2,
        conv_bias=True,
        norm_op={2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}[dims],
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
    )


def dyn_unet(dims: int, channels: Sequence[int], classes: int) -> nn.Module:
    """MONAI's rendering of nnU-Net's network."""
    steps = [2] * (len(channels) - 1)
    return DynUNet(dims, 1, classes, [3] * len(channels), [1, *steps], steps, filters=channels)


def basic_unet(dims: int, channels: Sequence[int], classes: int) -> nn.Module:
    """MONAI's U-Net of five levels."""
    return BasicUNet(dims, 1, classes, features=(*channels, channels[0]))


def network_of_2015(channels: Sequence[int] | None = None) -> nn.Module:
    """The network of `configs/network/unet2015.json`, of one channel and two classes.

    Args:
        channels: other channels than the paper's.
    """
    overlay = read_json(Path(bundle_root(), "configs", "network", "unet2015.json"))
    sizes = {"spatial_dims": 2, "in_channels": 1, "out_channels": 2}
    parser = ConfigParser({**overlay, **sizes, **({"channels": list(channels)} if channels else {})})
    return parser.get_parsed_content("network_def")


def nnunet_or_ours(dims: int, channels: Sequence[int], classes: int) -> tuple[str, Build]:
    """nnU-Net's network where it is installed, ours otherwise, with a name for the table."""
    build = plain_conv_unet if find_spec(NNUNET_NETWORKS) else unet
    name = "nnU-Net's PlainConvUNet" if build is plain_conv_unet else "our UNet"
    return f"{name}, {channels[0]}..{channels[-1]} channels", partial(build, dims, channels, classes)


def operations(build: Build, shape: Sequence[int], training: bool = False) -> float:
    """Floating point operations of the network that is built, see `scripts.compute.memory.operations`."""
    with torch.device("meta"):
        network = build()
    return memory.operations(network, shape, training)


def ceilings(dims: int, device: torch.device, small: bool) -> dict[str, Entry]:
    """One large convolution in every precision of the device."""
    channels, size = (8, 16) if small else {2: (256, 128), 3: (128, 32)}[dims]
    batch = 8 if device.type == "cuda" else 1
    shape = (batch, channels, *[size] * dims)
    work = 2.0 * math.prod(shape) * channels * 3**dims
    return {
        ceiling(dims, precision): Entry(
            partial(_convolve, shape, precision, device), CEILING, allocator="tuned", work=work
        )
        for precision in precisions(device)
    }


def ceiling(dims: int, precision: str) -> str:
    """Name of the entry that shows what the machine can do at best."""
    return f"one {dims}D convolution, {precision}"


def _convolve(shape: tuple[int, ...], precision: str, device: torch.device) -> Callable[[], None]:
    dims, channels = len(shape) - 2, shape[1]
    if device.type == "cuda":
        set_tf32(precision == "TF32")
    dtype = {name: dtype for dtype, name in HALF.items()}.get(precision, torch.float32)
    layer = {2: nn.Conv2d, 3: nn.Conv3d}[dims](channels, channels, 3, padding=1).to(device, dtype)
    image = torch.rand(shape, device=device, dtype=dtype)

    def work() -> None:
        with torch.no_grad():
            layer(image)

    return work
