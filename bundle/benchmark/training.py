"""One step of training: forward pass, loss, backward pass, AdamW."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path

import torch
from monai.bundle import ConfigParser
from monai.losses import DiceCELoss
from torch import Tensor, nn

from bundle.benchmark import networks
from bundle.benchmark.networks import Build, Variant
from bundle.benchmark.runner import OURS, Contest, Entry, largest_difference, missing
from scripts.process import bundle_root

CLASSES = 3

#: Batch, voxels along every axis, channels of the levels; by number of axes.
SIZES = {3: (2, 64, (16, 32, 64, 128, 256)), 2: (1, 512, (32, 64, 128, 256, 512))}
SMALL = {3: (1, 32, (4, 4, 8, 8, 8)), 2: (1, 32, (4, 4, 8, 8, 8))}

#: Networks, whose they are, and the packages that they need.
NETWORKS: dict[str, tuple[str, Callable, tuple[str, ...]]] = {
    "PlainConvUNet": ("nnU-Net", networks.plain_conv_unet, (networks.NNUNET_NETWORKS,)),
    "DynUNet": ("MONAI", networks.dyn_unet, ()),
    "BasicUNet": ("MONAI", networks.basic_unet, ()),
    "UNet": (OURS, networks.unet, ()),
}


def contests(small: bool, device: torch.device) -> list[Contest]:
    """A step in three dimensions and one in two.

    Args:
        small: tiny sizes.
        device: where to train.
    """
    return [_contest(dims, small, device) for dims in (3, 2)]


def _contest(dims: int, small: bool, device: torch.device) -> Contest:
    batch, size, channels = (SMALL if small else SIZES)[dims]
    shape = (batch, 1, *[size] * dims)
    entries = networks.ceilings(dims, device, small)
    for name, (origin, make, needs) in NETWORKS.items():
        build = partial(make, dims, channels, CLASSES)
        work = 0.0 if missing(needs) else networks.operations(build, shape, training=True)
        runs = [(variant, "tuned") for variant in networks.variants(device)]
        if origin != OURS:
            runs = list(product(networks.peer_variants(device), networks.peer_allocators(device)))
        labels = [
            f"{name}, {variant.name}" + (f", {allocator}" if origin != OURS else "")
            for variant, allocator in runs
        ]
        for label, (variant, allocator) in zip(labels, runs, strict=True):
            entries[label] = Entry(
                partial(_step, build, shape, variant, device),
                origin,
                allocator,
                needs,
                work,
                ceiling=networks.ceiling(dims, variant.precision),
                reference=labels[0],
            )
    configured = partial(_configured_step, dims, channels, shape, device)
    precision = networks.precisions(device)[-1]
    entries["UNet, as configured"] = replace(
        entries["UNet, fp32"], make=configured, ceiling=networks.ceiling(dims, precision)
    )
    sizes = " x ".join(map(str, shape[2:]))
    return Contest(
        f"training: one step in {dims}D",
        f"batch {batch}, {sizes}, channels {channels[0]}..{channels[-1]}, {CLASSES} classes, Dice and cross "
        "entropy, AdamW; every entry against the first loss of the same network in its first line",
        entries,
        agreement="loss off by",
        compare=largest_difference,
    )


def _step(
    build: Build, shape: tuple[int, ...], variant: Variant, device: torch.device
) -> Callable[[], Tensor]:
    network = build().to(device).train()
    image = torch.rand(shape, device=device)
    label = torch.randint(CLASSES, shape, device=device)
    network = variant.prepare(network, image)
    return _work(network, torch.optim.AdamW(network.parameters(), lr=1e-4), image, label)


def _configured_step(
    dims: int, channels: Sequence[int], shape: tuple[int, ...], device: torch.device
) -> Callable[[], Tensor]:
    """With network and optimizer as `configs/train.json` has them for these sizes: what a training does."""
    parser = ConfigParser()
    parser.read_config(str(Path(bundle_root(), "configs", "train.json")))
    parser.update(
        {
            **{"spatial_dims": dims, "in_channels": shape[1], "channels": list(channels), "device": device},
            **{"batch_size": shape[0], "patch_size": list(shape[2:]), "out_channels": CLASSES},
        }
    )
    parser.get_parsed_content("network_def")
    image = torch.rand(shape, device=device)
    label = torch.randint(CLASSES, shape, device=device)
    network = parser.get_parsed_content("network").train()
    return _work(network, parser.get_parsed_content("optimizer"), image, label)


def _work(
    network: nn.Module, optimizer: torch.optim.Optimizer, image: Tensor, label: Tensor
) -> Callable[[], Tensor]:
    loss_function = DiceCELoss(to_onehot_y=True, softmax=True)

    def work() -> Tensor:
        optimizer.zero_grad()
        loss = loss_function(network(image), label)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return work
