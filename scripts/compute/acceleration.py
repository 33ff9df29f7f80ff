"""Mixed precision, memory format and compilation of a network, where the machine has what they need."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from torch import nn
from torch.utils._pytree import tree_map

from scripts.errors import InputError

logger = logging.getLogger(__name__)

_Convolution = nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d

MEMORY_FORMATS = ("contiguous", "channels_last")

#: Names of oneDNN's instruction sets hold one of these where they have AVX-512, where they multiply bfloat16,
#: and where they have AMX.
_AVX512 = ("AVX512", "AVX10", "ALL", "DEFAULT")
_BF16 = ("BF16", "FP16", "AMX", "AVX10", "ALL", "DEFAULT")
_AMX = ("AMX", "ALL", "DEFAULT")


def limit() -> str:
    """The instruction set that the user allows oneDNN at most, by its name; "ALL" without a limit."""
    names = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
    return next((os.environ[name].upper() for name in names if os.environ.get(name)), "ALL")


def has_avx512() -> bool:
    """Whether PyTorch and its oneDNN use AVX-512 here: the processor has it, and no limit forbids it."""
    able = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return able and any(name in limit() for name in _AVX512)


def has_amx() -> bool:
    """Whether oneDNN multiplies in tiles here: the processor has AMX, and no limit forbids it."""
    return torch.cpu._is_amx_tile_supported() and any(name in limit() for name in _AMX)


def mixed_precision(device: torch.device) -> torch.dtype | None:
    """The type in which a device multiplies faster than in float32, or None.

    bfloat16 on processors that multiply it in hardware (AVX-512 BF16, AMX) and on GPUs from Ampere on;
    float16, which needs a loss scaler in training, on older GPUs. A processor that only emulates bfloat16
    is slower with it; so is one whose instructions ONEDNN_MAX_CPU_ISA limits.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
    has = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    if device.type == "cpu" and has and any(name in limit() for name in _BF16):
        return torch.bfloat16
    return None


def needs_scaler(amp: bool, device: torch.device | str) -> bool:
    """Whether mixed precision on this device is float16, whose small gradients vanish unless scaled.

    This is what the `amp` of MONAI's trainer stands for here: it brings the scaler, and it opens autocast on
    a GPU alone; `accelerate` opens it everywhere.
    """
    return amp and mixed_precision(torch.device(device)) == torch.float16


def can_compile(device: torch.device) -> bool:
    """Whether torch.compile finds what it generates code with: a C++ compiler, or Triton on a GPU."""
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        return has_triton()
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return False
    return True


def accelerate(
    network: nn.Module,
    device: torch.device | str,
    amp: bool = False,
    memory_format: str = "contiguous",
    compile: bool = False,
) -> nn.Module:
    """Move a network to a device and make its forward pass as fast as the machine allows.

    The network stays the same object with the same state dictionary. Inputs and outputs stay float32.

    Args:
        network: takes and gives (B, C, *spatial), float32; may give a list of them.
        device: where it runs; a string, as MONAI Label hands it in, is fine.
        amp: mixed precision, see `mixed_precision`; where the device has none, one log line says so.
        memory_format: "contiguous", or "channels_last", the order in which convolutions and pooling are
            faster on processors, and on GPUs with tensor cores. A network with strided 1x1 convolutions keeps
            "contiguous" in mixed precision on the CPU: oneDNN's backward pass of those (brgconv_strided in
            bfloat16, channels last, fewer than 16 channels, batch of one) writes beyond its memory.
        compile: fuse the layers with torch.compile at the first step of every input size, which takes a
            minute; where the machine has no compiler, one log line says so.

    Returns:
        ``network``.

    Raises:
        InputError: an unknown memory format; no network.
    """
    if not isinstance(network, nn.Module):
        raise InputError(
            f"network_def is {network!r:.60}, which is no network: give it a _target_, as configs/network do"
        )
    if memory_format not in MEMORY_FORMATS:
        raise InputError(f"memory_format is {memory_format!r}: give one of {', '.join(MEMORY_FORMATS)}")
    device = torch.device(device)
    dtype = mixed_precision(device) if amp else None
    if amp and dtype is None:
        logger.info("amp: this processor has no half precision in hardware; going on in float32")
    if memory_format not in memory_formats(network, device, dtype):
        logger.info("memory_format: the network has strided 1x1 convolutions; going on with contiguous")
        memory_format = "contiguous"
    if compile and can_compile(device):
        logger.info("compile: the first step at each size of input takes a minute")
    elif compile:
        logger.info("compile: no compiler was found; going on without")
    return prepare(network, device, dtype, memory_format, compile)


def memory_formats(network: nn.Module, device: torch.device, dtype: torch.dtype | None) -> tuple[str, ...]:
    """The memory formats that a network may have, see `accelerate`.

    Args:
        network: as its classes make it.
        device: where it runs.
        dtype: of mixed precision, or None for float32.
    """
    broken = device.type == "cpu" and dtype is not None and _has_strided_points(network)
    return ("contiguous",) if broken else MEMORY_FORMATS


def prepare(
    network: nn.Module,
    device: torch.device,
    dtype: torch.dtype | None,
    memory_format: str,
    compile: bool,
) -> nn.Module:
    """As `accelerate`, with what is known to be possible, in silence.

    Args:
        network: see `accelerate`.
        device: see `accelerate`.
        dtype: of mixed precision, or None for float32.
        memory_format: one of `memory_formats`.
        compile: see `accelerate`.

    Returns:
        ``network``.
    """
    network = network.to(device)
    last = memory_format == "channels_last"
    if dtype == torch.bfloat16 and device.type == "cpu":
        for module in network.modules():
            if isinstance(module, _Convolution):
                module.forward = partial(_convolve, module)  # type: ignore[method-assign]
    if dtype is None and device.type == "cpu" and not has_avx512():
        for module in network.modules():
            if isinstance(module, nn.Conv3d) and _pads_depth(module):
                module.forward = partial(_convolve_volume, module)  # type: ignore[method-assign]
    if last:
        _to_channels_last(network, keep_norms=device.type == "cpu" and not compile)
    network.forward = _Forward(network.forward, device, dtype, last)  # type: ignore[method-assign]
    if compile and can_compile(device):
        network.compile()
    return network


def memory_format_of(network: nn.Module) -> str:
    """The memory format that `accelerate` gave a network; "contiguous" for any other."""
    forward = vars(network).get("forward")
    last = isinstance(forward, _Forward) and forward.channels_last
    return "channels_last" if last else "contiguous"


def unwrap(network: nn.Module) -> nn.Module:
    """The network as its classes compute it, on the same weights, without what `accelerate` put around it.

    For converters that read a network's layers. A layer that stands in two places still does.
    """
    bare: dict[nn.Module, nn.Module] = {}
    for module in network.modules():  # each once
        bare[module] = copy.copy(module)  # leaves out what Module.compile made
        bare[module].__dict__.pop("forward", None)
    for module in bare.values():
        children = module._modules.items()
        module._modules = {name: child if child is None else bare[child] for name, child in children}
    return bare[network]


class _Forward:
    """A network's forward pass in a given precision and memory format."""

    def __init__(
        self, forward: Callable, device: torch.device, dtype: torch.dtype | None, channels_last: bool
    ) -> None:
        self.forward = forward
        self.device = device
        self.dtype = dtype
        self.channels_last = channels_last

    def __call__(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        # MetaTensor's bookkeeping at every layer costs time and stops the compiler
        x = x.as_tensor() if isinstance(x, MetaTensor) else x
        if self.channels_last:
            x = x.to(memory_format=_channels_last(x.ndim))
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
            output = self.forward(x, *args, **kwargs)
        return tree_map(lambda y: y.float() if isinstance(y, torch.Tensor) else y, output)


def _channels_last(ndim: int) -> torch.memory_format:
    return torch.channels_last if ndim == 4 else torch.channels_last_3d


def _has_strided_points(network: nn.Module) -> bool:
    return any(
        max(module.kernel_size) == 1 < max(module.stride)
        for module in network.modules()
        if isinstance(module, nn.Conv2d | nn.Conv3d)
    )


def _to_channels_last(network: nn.Module, keep_norms: bool) -> None:
    """Reorder the weights of every convolution, two- and three-dimensional alike.

    Args:
        network: is changed in place.
        keep_norms: let instance norms give the order that they get. PyTorch's copy to contiguous and give
            that, and every layer after them mixes two orders.
    """
    for parameter in network.parameters():
        if parameter.ndim in (4, 5):
            parameter.data = parameter.data.contiguous(memory_format=_channels_last(parameter.ndim))
    if keep_norms:
        for module in network.modules():
            if isinstance(module, nn.InstanceNorm2d | nn.InstanceNorm3d) and not module.track_running_stats:
                module.forward = partial(_instance_norm, module)  # type: ignore[method-assign]


def _convolve(convolution: _Convolution, x: torch.Tensor, *args: Any) -> torch.Tensor:
    """A convolution, in float32 where oneDNN reads memory in bfloat16 that nobody wrote.

    That is where the image is smaller than the kernel along an axis: now and then the gradient of the weights
    is NaN, whatever the memory format and the channels. And, with AMX, where a stride leads to, or a
    transposed convolution with a stride comes from, one voxel along the last axis: the small map, or its
    gradient, can hold any number.

    Args:
        convolution: for its weights and settings.
        x: (B, C, *spatial).
        *args: of a transposed convolution, the size of its output.
    """
    forward: Callable = type(convolution).forward
    if isinstance(convolution, nn.ConvTranspose2d | nn.ConvTranspose3d):
        whole = max(convolution.stride) == 1 or x.shape[-1] > 1
    else:
        fits = all(n >= k for n, k in zip(x.shape[2:], convolution.kernel_size, strict=True))
        whole = fits and not strides_to_one(convolution, x)
    if whole:
        return forward(convolution, x, *args)
    with torch.autocast("cpu", enabled=False):
        return forward(convolution, x.float(), *args)


def strides_to_one(convolution: nn.Conv2d | nn.Conv3d, x: torch.Tensor) -> bool:
    """Whether a convolution with a stride leaves one voxel along the last axis of an image."""
    if max(convolution.stride) == 1:
        return False
    around = 0 if isinstance(convolution.padding, str) else 2 * int(convolution.padding[-1])
    reach = convolution.dilation[-1] * (convolution.kernel_size[-1] - 1)
    return x.shape[-1] + around - reach <= convolution.stride[-1]


def _pads_depth(convolution: nn.Conv3d) -> bool:
    """Whether a convolution puts zeros before and behind a volume."""
    return (
        not isinstance(convolution.padding, str)
        and convolution.padding[0] > 0
        and convolution.padding_mode == "zeros"
    )


def _convolve_volume(convolution: nn.Conv3d, x: torch.Tensor) -> torch.Tensor:
    """A convolution in three dimensions, for processors without AVX-512.

    Args:
        convolution: for its weights and settings.
        x: (B, C, D, H, W).
    """
    settings = (convolution.stride, convolution.padding, convolution.dilation, convolution.groups)
    return _VolumeConvolution.apply(x, convolution.weight, convolution.bias, *settings)


class _VolumeConvolution(torch.autograd.Function):
    """A convolution whose weights get their gradient from a volume that was padded in depth before.

    oneDNN's kernel for AVX2 (jit:avx2, backward_weights) takes no padding in depth; what stands in for it is
    a matrix product over all voxels for each of the kernel's, 2 to 5 times as slow. Padded beforehand the
    volume is the same.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: Any, *settings: Any) -> torch.Tensor:
        """Convolve; ``settings`` are stride, padding, dilation and groups."""
        ctx.save_for_backward(x, weight)
        ctx.settings, ctx.bias = settings, None if bias is None else list(bias.shape)
        return F.conv3d(x, weight, bias, *settings)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple:  # type: ignore[override]
        """The gradients of image, weights and bias."""
        x, weight = ctx.saved_tensors
        stride, (depth, *others), dilation, groups = ctx.settings
        has_image, has_weight, has_bias = ctx.needs_input_grad[:3]

        def gradients(image: torch.Tensor, padding: list[int], mask: list[bool]) -> Any:
            end = (stride, padding, dilation, False, [0, 0, 0], groups, mask)
            return torch.ops.aten.convolution_backward(gradient, image, weight, ctx.bias, *end)

        of_image = gradients(x, [depth, *others], [True, False, False])[0] if has_image else None
        padded = F.pad(x, (0, 0, 0, 0, depth, depth))
        _, of_weight, of_bias = gradients(padded, [0, *others], [False, has_weight, has_bias])
        return of_image, of_weight, of_bias, None, None, None, None


def _instance_norm(norm: nn.InstanceNorm2d | nn.InstanceNorm3d, x: torch.Tensor) -> torch.Tensor:
    """Instance norm as one batch norm for each sample, which keeps channels last.

    Args:
        norm: for its weights and epsilon.
        x: (B, C, *spatial).
    """
    samples = [
        F.batch_norm(sample, None, None, norm.weight, norm.bias, training=True, eps=norm.eps)
        for sample in x.split(1)
    ]
    return torch.cat(samples) if len(samples) > 1 else samples[0]
