"""The memory format of a training, found by trying: which is faster depends on processor, network and patch.

A processor with AVX2 alone takes half as long again for a step in two dimensions with channels last; one with
AVX-512 is faster with them. So a training begins with some steps on noise in each format, on copies of the
network, and goes on with the faster one. Weights and random generators stay as they were.

What was found is kept in `memory_formats.json` in the user's cache folder, by everything that it depends on.
Rounding differs between formats: a training that is resumed keeps the one that its checkpoint names.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from scripts.checkpoints import is_first, read_checkpoint
from scripts.compute import acceleration
from scripts.compute.acceleration import limit, memory_formats, mixed_precision, prepare
from scripts.errors import InputError
from scripts.files import atomic_write, sha256, user_cache
from scripts.machine import processor
from scripts.process import gather

logger = logging.getLogger(__name__)

#: Every format gets a step to warm up and one that counts; then they take turns for so many seconds at most,
#: and so many rounds.
SECONDS, ROUNDS = 2.0, 5

#: A format whose step to warm up takes so many times as long as another one's is out.
LOST = 1.5

#: The first format is kept unless another takes less than this share of its time.
GAIN = 0.97

#: Where choices are remembered in the user's cache folder, and how many: the latest.
FILE, KEPT = "memory_formats.json", 1000

#: What times depend on: with other code they are taken anew.
CODE = [Path(__file__), Path(acceleration.__file__)]


def choose(
    network: nn.Module,
    device: torch.device | str,
    input_size: Sequence[int],
    amp: bool = False,
    compile: bool = False,
    checkpoint: str | None = None,
) -> str:
    """The memory format for a training, see `scripts.compute.acceleration.accelerate`.

    On a GPU "contiguous". Several processes take the same one, by the sum of their times.

    Args:
        network: as its classes make it; stays as it is.
        device: where it is going to be trained.
        input_size: (B, C, *spatial) of a batch.
        amp: mixed precision.
        compile: whether the network is going to be compiled; a trial then takes minutes.
        checkpoint: of the training that goes on, or None; its format is taken.

    Raises:
        InputError: the checkpoint cannot be read.
    """
    device = torch.device(device)
    dtype = mixed_precision(device) if amp else None
    formats = memory_formats(network, device, dtype) if isinstance(network, nn.Module) else ("contiguous",)
    if device.type != "cpu" or len(formats) == 1:
        return "contiguous"
    if checkpoint is not None and Path(checkpoint).exists():
        before = read_checkpoint(Path(checkpoint)).get("memory_format")
        if before in formats:
            return before
    key = _key(network, input_size, dtype, compile)
    known, *_ = gather(_remembered().get(key))
    if known in formats:
        logger.info("memory_format: %s, as tried before on this processor", known)
        return known
    with torch.random.fork_rng(devices=[]):
        times = try_out(network, device, dtype, compile, formats, input_size)
    everywhere = gather(times)
    total = {name: sum(each[name] for each in everywhere) for name in formats}
    fastest = formats[0]
    for name in formats[1:]:
        fastest = name if total[name] < GAIN * total[fastest] else fastest
    logger.info(
        "memory_format: %s, as a step takes %s here",
        fastest,
        " and ".join(f"{seconds:.3g} s {name}" for name, seconds in times.items()),
    )
    if is_first():
        _remember(key, fastest)
    return fastest


def try_out(
    network: nn.Module,
    device: torch.device,
    dtype: torch.dtype | None,
    compile: bool,
    formats: Sequence[str],
    input_size: Sequence[int],
) -> dict[str, float]:
    """Seconds of the fastest step in each format; of one that was clearly slower, of its only one.

    Args:
        network: stays as it is.
        device: where to try.
        dtype: of mixed precision, or None for float32.
        compile: whether to compile.
        formats: to try.
        input_size: (B, C, *spatial) of a batch.
    """
    batch = torch.randn(tuple(input_size), generator=torch.Generator().manual_seed(0)).to(device)
    times: dict[str, float] = {}
    copies: dict[str, nn.Module] = {}
    for name in formats:
        tried = prepare(copy.deepcopy(network), device, dtype, name, compile).train()
        times[name] = _step(tried, batch)
        if compile or times[name] < LOST * min(times.values()):
            times[name] = _step(tried, batch)
            copies[name] = tried
    begun = perf_counter()
    for _ in range(ROUNDS - 1 if len(copies) > 1 else 0):
        if perf_counter() - begun > SECONDS:
            break
        for name, tried in copies.items():
            times[name] = min(times[name], _step(tried, batch))
    return times


def _step(network: nn.Module, batch: torch.Tensor) -> float:
    """Seconds of a forward pass, a loss and a backward pass."""
    begun = perf_counter()
    loss = sum(leaf.square().mean() for leaf in tree_leaves(network(batch)))
    loss.backward()  # type: ignore[union-attr]
    seconds = perf_counter() - begun
    network.zero_grad()
    return seconds


def _key(network: nn.Module, input_size: Sequence[int], dtype: torch.dtype | None, compile: bool) -> str:
    """A hash of what the times depend on."""
    described: list[Any] = [
        *(processor(), torch.get_num_threads(), torch.backends.cpu.get_cpu_capability(), limit()),
        *(torch.__version__, [sha256(file) for file in CODE]),
        *(str(network), [tuple(weight.shape) for weight in network.parameters()]),
        *(tuple(input_size), str(dtype), compile),
    ]
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()[:32]


def _remembered() -> Mapping[str, Any]:
    """The choices until now; none if their file is missing or not to be read."""
    try:
        chosen = json.loads((user_cache() / FILE).read_text(encoding="utf-8"))["chosen"]
    except (OSError, ValueError, KeyError, TypeError, RuntimeError):
        return {}
    return chosen if isinstance(chosen, dict) else {}


def _remember(key: str, chosen: str) -> None:
    """Add a choice; that it cannot be written is no reason to stop."""
    text = "memory formats that were faster in a trial; delete this file to have them tried again"
    try:
        with atomic_write(user_cache() / FILE) as temporary:
            kept = dict(list({**_remembered(), key: chosen}.items())[-KEPT:])
            content = {"about": text, "chosen": kept}
            temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    except (OSError, RuntimeError, InputError):  # of a user without a home, too
        return
