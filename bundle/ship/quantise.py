"""int8 after training: what passes through a network is measured on training tiles, then rounded to 8 bits.

nncf, the companion of OpenVINO, puts the rounding into the graph and corrects the biases for it. Source: its
post-training quantisation, https://docs.openvino.ai ("Basic Quantization Flow").
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.data import Dataset
from monai.utils import CommonKeys as Keys
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from tqdm import tqdm

from scripts.compute.quantised import OWN, WEIGHTS, digest, int8_files
from scripts.compute.runtimes import openvino_core
from scripts.errors import InputError
from scripts.files import sha256
from scripts.labels import IGNORE_LABEL

#: Tiles that are measured at most,
TILES = 128

#: voxels of all of these, as long as the cases are enough: 400 MB, and minutes of computing,
VOXELS = 100_000_000

#: and cases whose voxels vary, at least: of fewer the ranges are those of a few scans.
LEAST_CASES = 8


def calibration_tiles(
    network: nn.Module,
    cases: Sequence[dict[str, Any]] | Dataset,
    inferer: Callable[..., Tensor],
    patch: Sequence[int],
) -> list[Tensor]:
    """Tiles of some cases as inference hands them to the network, around all kinds of foreground.

    Args:
        network: in PyTorch; stays as it is.
        cases: preprocessed, image and label (C, *spatial).
        inferer: from an image, (B, C, *spatial), and the network to logits.
        patch: spatial size of a patch in training; of each case a part half as long again is cut into tiles.

    Returns:
        Each (1, C, *spatial), float32.

    Raises:
        InputError: fewer than LEAST_CASES cases whose voxels vary, or none of them with foreground.
    """
    generator = torch.Generator().manual_seed(0)
    tiles: list[Tensor] = []

    def keep(module: nn.Module, given: tuple[Tensor, ...], output: Any) -> None:
        if not (isinstance(given[0], FakeTensor) or given[0].is_meta):  # by which sizes are tried
            tiles.extend(given[0].clone().split(1))

    varied = shown = 0
    handle = network.register_forward_hook(keep)
    try:
        # in random order, so that a list by hospital or scanner gives of each
        for index in tqdm(torch.randperm(len(cases), generator=generator).tolist(), "calibrating"):
            image, label = (torch.as_tensor(cases[index][key]) for key in (Keys.IMAGE, Keys.LABEL))
            if image.min() == image.max():
                continue
            place, found = _somewhere(label[0], [length + length // 2 for length in patch], generator)
            inferer(image[(slice(None), *place)][None], network)
            varied += 1
            shown += found
            if varied >= LEAST_CASES and shown and _enough(tiles):
                break
    finally:
        handle.remove()
    if varied < LEAST_CASES:
        raise InputError(
            f"the training section has {varied} cases whose voxels vary, and int8 is calibrated on "
            f"{LEAST_CASES} or more: give a --dataset_dir with as many"
        )
    if not shown:
        raise InputError(
            f"none of {varied} training cases has foreground, on which int8 is calibrated: give the data "
            "that the network was trained on"
        )
    return tiles


def quantise(source: Path, network: nn.Module, tiles: Sequence[Tensor], folder: Path) -> None:
    """Write model.int8.xml and model.int8.bin.

    Args:
        source: the network in a file that OpenVINO reads, for tiles of any size.
        network: the same in PyTorch.
        tiles: of `calibration_tiles`.
        folder: where the files go.
    """
    openvino_core()  # before nncf, which else reports its use
    import nncf
    import openvino

    logging.getLogger("nncf").setLevel(logging.ERROR)
    model = openvino_core().read_model(source)
    any_size = model.input().partial_shape
    model.reshape(list(tiles[0].shape))
    quantised = nncf.quantize(
        model,
        nncf.Dataset([tile.numpy() for tile in tiles]),
        subset_size=len(tiles),
        # Processors without VNNI add two products in 16 bits: weights of 7 bits cannot overflow them
        advanced_parameters=nncf.AdvancedQuantizationParameters(overflow_fix=nncf.OverflowFix.ENABLE),
    )
    quantised.reshape(any_size)
    xml, binary = int8_files(folder / "model.pt")
    quantised.set_rt_info(digest(network), WEIGHTS)
    openvino.save_model(quantised, xml, compress_to_fp16=False)
    quantised.set_rt_info(sha256(binary), OWN)
    openvino.save_model(quantised, xml, compress_to_fp16=False)


def _somewhere(
    label: Tensor, size: Sequence[int], generator: torch.Generator
) -> tuple[tuple[slice, ...], bool]:
    """A part of a case, around a voxel of one of its classes, each as likely as the others.

    Args:
        label: class indices, (*spatial).
        size: of the part, which is smaller where the case is.
        generator: draws class and voxel.

    Returns:
        A slice an axis, and whether there is foreground; without any the part lies in the middle.
    """
    classes = [value for value in label.unique().tolist() if value not in (0, IGNORE_LABEL)]
    centre = [length // 2 for length in label.shape]
    if classes:
        chosen = classes[int(torch.randint(len(classes), (), generator=generator))]
        voxels = (label == chosen).nonzero()
        centre = voxels[int(torch.randint(len(voxels), (), generator=generator))].tolist()
    starts = [
        max(min(c - n // 2, length - n), 0) for c, n, length in zip(centre, size, label.shape, strict=True)
    ]
    place = tuple(slice(start, start + n) for start, n in zip(starts, size, strict=True))
    return place, bool(classes)


def _enough(tiles: Sequence[Tensor]) -> bool:
    return len(tiles) >= TILES or sum(tile.numel() for tile in tiles) >= VOXELS
