"""How much memory the process holds, and what a forward pass is going to need: memory and arithmetic."""

from __future__ import annotations

import os
import weakref
from collections.abc import Sequence
from contextlib import nullcontext
from itertools import chain
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
    tensors = [*network.named_parameters(), *network.named_buffers()]
    with FakeTensorMode(allow_non_fake_inputs=True):
        # gradients go to copies without data, not to the weights
        own = {name: torch.empty_like(tensor, requires_grad=tensor.requires_grad) for name, tensor in tensors}
        batch = torch.empty(tuple(size), device=device)
        with counter, torch.enable_grad():
            main_logits(torch.func.functional_call(network, own, (batch,))).softmax(1).sum().backward()
    return counter.peak


def dry_run(network: nn.Module, size: Sequence[int]) -> Any:
    """The output of a network for an image, as tensors that have a size and no data.

    Args:
        network: stays as it is; its weights are not read.
        size: (B, C, *spatial) of the image.
    """
    tensors = chain(network.named_parameters(), network.named_buffers())
    weightless = {
        name: torch.empty_like(tensor, device="meta", requires_grad=tensor.requires_grad)
        for name, tensor in tensors
    }
    return torch.func.functional_call(network, weightless, (torch.empty(tuple(size), device="meta"),))


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
