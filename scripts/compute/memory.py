"""How much memory the process holds, and what a forward pass is going to need: memory and arithmetic."""

from __future__ import annotations

import os
import weakref
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from scripts.networks.heads import main_logits

#: Channels of a block in the layout of oneDNN with AVX-512 (nCdhw16c); other processors take smaller ones.
CHANNEL_BLOCK = 16


def resident_bytes() -> int:
    """Memory of this process that lies in RAM; where the system does not tell, the most that ever did."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS counts in bytes


def forward_bytes(
    network: nn.Module, size: Sequence[int], dtype: torch.dtype | None = None
) -> tuple[int, int]:
    """Most memory that the tensors of a forward pass on the CPU take up at one time; nothing is computed.

    A convolution counts its input and its output twice: the library copies them to a layout of its own, with
    channels in blocks.

    Args:
        network: takes (B, C, *spatial), gives what `scripts.networks.heads.main_logits` reads.
        size: (B, C, *spatial).
        dtype: type of mixed precision, or None for float32.

    Returns:
        Bytes, and the classes of the logits.
    """
    counter = _LiveBytes()
    mixed = torch.autocast("cpu", dtype) if dtype else nullcontext()
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad(), counter, mixed:
        logits = main_logits(network(torch.empty(tuple(size))))
        return counter.peak, logits.shape[1]


def training_bytes(network: nn.Module, size: Sequence[int], device: torch.device | str = "cpu") -> int:
    """Most memory that the tensors of a training step take up at one time, weights left out.

    Args:
        network: as training has it, with what `scripts.compute.acceleration.accelerate` put around it.
        size: (B, C, *spatial) of a batch.
        device: where the network lies.
    """
    counter = _LiveBytes()
    with FakeTensorMode(allow_non_fake_inputs=True):
        own = _without_data(network)  # to which gradients go, not to the weights
        batch = torch.empty(tuple(size), device=device)
        with counter, torch.enable_grad():
            logits = main_logits(torch.func.functional_call(network, own, (batch,), tie_weights=False))
            logits.softmax(1).sum().backward()
    return counter.peak


def dry_run(network: nn.Module, size: Sequence[int]) -> Any:
    """The output of a network for an image, as tensors that have a size and no data.

    Args:
        network: stays as it is; its weights are not read.
        size: (B, C, *spatial) of the image.
    """
    image = torch.empty(tuple(size), device="meta")
    return torch.func.functional_call(network, _without_data(network, "meta"), (image,), tie_weights=False)


def _without_data(network: nn.Module, device: str | None = None) -> dict[str, torch.Tensor]:
    """A tensor without data for each parameter and buffer, by one of its names.

    Each place that holds one is named once. PyTorch's own list of names has one for each tensor, and ties the
    others; where a module goes by two names, as in MONAI's DynUNet, its weights would not come back.
    """
    made: dict[int, torch.Tensor] = {}
    named = {}
    for prefix, module in network.named_modules():
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None:
                if id(tensor) not in made:
                    made[id(tensor)] = torch.empty_like(
                        tensor, device=device, requires_grad=tensor.requires_grad
                    )
                named[f"{prefix}.{name}".removeprefix(".")] = made[id(tensor)]
    return named


def operations(network: nn.Module, size: Sequence[int], training: bool = False) -> float:
    """Floating point operations of the convolutions of a forward pass, or of forward and backward.

    Args:
        network: see `dry_run`.
        size: (B, C, *spatial) of the image.
        training: count the backward pass too.
    """
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(training):
        output = dry_run(network, size)
        if training:
            main_logits(output).sum().backward()
    return float(counter.get_total_flops())


class _LiveBytes(TorchDispatchMode):
    """Adds up the storages of the tensors that operations make, while these live.

    Attributes:
        peak: the most bytes at one time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for storage in _storages(result):
            key, size = storage._cdata, storage.nbytes()
            if key not in self.known:
                self.known.add(key)
                self.now += size
                weakref.finalize(storage, self._forget, key, size)
        copies = 0
        if func is torch.ops.aten.convolution.default:
            for copied in (args[0], result):
                blocks = -(-copied.shape[1] // CHANNEL_BLOCK)
                copies += copied.nbytes * blocks * CHANNEL_BLOCK // copied.shape[1]
        self.peak = max(self.peak, self.now + copies)
        return result

    def _forget(self, key: int, size: int) -> None:
        self.known.remove(key)
        self.now -= size


def _storages(tree: Any) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
