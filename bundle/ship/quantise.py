"""int8 after training: what passes through a network is measured on training tiles, then rounded to 8 bits.

nncf, the companion of OpenVINO, puts the rounding into the graph and corrects the biases for it. Where the
classes of training tiles change by more than inference would allow, the layers to blame stay in float.
Source: https://docs.openvino.ai, "Basic Quantization Flow" and "Quantizing with Accuracy Control".
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import Dataset
from monai.utils import CommonKeys as Keys
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from scripts.compute.quantised import OWN, WEIGHTS, digest, int8_files
from scripts.compute.runtimes import (
    MEAN_DIFFERENCE,
    SAME_CLASS,
    agreement,
    keep_signal_stack,
    openvino_core,
)
from scripts.data.checks import Problem
from scripts.data.dataset import PROBLEM
from scripts.errors import InputError
from scripts.files import sha256
from scripts.labels import IGNORE_LABEL
from scripts.networks.heads import main_logits
from scripts.progress import progress

logger = logging.getLogger(__name__)

#: Tiles that are measured at most,
TILES = 128

#: voxels of all of these, as long as the cases are enough: 400 MB, and minutes of computing,
VOXELS = 100_000_000

#: and cases whose voxels vary, at least: of fewer the ranges are those of a few scans.
LEAST_CASES = 8

#: Of the tiles at most so many are compared with the network in float, and of their logits so many numbers,
JUDGED = 32
LOGITS = 30_000_000

#: by fewer layers are ranked where some have to stay in float,
RANKED = 8

#: and of what inference allows to differ this share is allowed here.
SHARE = 0.5


def calibration_tiles(
    network: nn.Module,
    cases: Sequence[dict[str, Any]] | Dataset,
    inferer: Callable[..., Tensor],
    patch: Sequence[int],
) -> list[Tensor]:
    """Tiles of some cases as inference hands them to the network, around all kinds of foreground.

    Args:
        network: in PyTorch; stays as it is.
        cases: preprocessed, image and label (C, *spatial); one that cannot be loaded is told.
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
        for index in progress(torch.randperm(len(cases), generator=generator).tolist(), "calibrating"):
            case = cases[index]
            if PROBLEM in case:
                logger.error(Problem(**case[PROBLEM]).sentence())
                continue
            image, label = (torch.as_tensor(case[key]) for key in (Keys.IMAGE, Keys.LABEL))
            if not image.min() < image.max():  # constant, or NaN
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


def quantise(
    source: Path, network: nn.Module, tiles: Sequence[Tensor], folder: Path, share: float = SHARE
) -> None:
    """Write model.int8.xml and model.int8.bin; layers that would change the classes stay in float.

    Args:
        source: the network in a file that OpenVINO reads, for tiles of any size.
        network: the same in PyTorch.
        tiles: of `calibration_tiles`.
        folder: where the files go.
        share: of what `scripts.compute.runtimes` allows to differ from float, this may; more than that and
            layers stay in float. Infinity: none does.

    Raises:
        InputError: all layers would have to stay in float.
    """
    openvino_core()  # before nncf, which else reports its use
    import nncf
    import openvino

    logging.getLogger("nncf").setLevel(logging.ERROR)
    model = openvino_core().read_model(source)
    any_size = model.input().partial_shape
    lengths = zip(*(tile.shape for tile in tiles), strict=True)
    model.reshape([axis[0] if len(set(axis)) == 1 else -1 for axis in lengths])
    judged = list(_judged(network.eval(), tiles))
    with keep_signal_stack():
        quantised = nncf.quantize_with_accuracy_control(
            model,
            nncf.Dataset([tile.numpy() for tile in tiles]),
            nncf.Dataset(judged, lambda item: item[0]),
            _alike,
            max_drop=share,
            subset_size=len(tiles),
            advanced_accuracy_restorer_parameters=nncf.AdvancedAccuracyRestorerParameters(
                ranking_subset_size=RANKED
            ),
            # Processors without VNNI add two products in 16 bits: weights of 7 bits cannot overflow them
            advanced_quantization_parameters=nncf.AdvancedQuantizationParameters(
                overflow_fix=nncf.OverflowFix.ENABLE
            ),
        )
    if not any(operation.get_type_name() == "FakeQuantize" for operation in quantised.get_ops()):
        raise InputError(
            "no layer can be rounded to 8 bits without changing the classes of training tiles: "
            "use another --format"
        )
    quantised.reshape(any_size)
    xml, binary = int8_files(folder / "model.pt")
    quantised.set_rt_info(digest(network), WEIGHTS)
    openvino.save_model(quantised, xml, compress_to_fp16=False)
    quantised.set_rt_info(sha256(binary), OWN)
    openvino.save_model(quantised, xml, compress_to_fp16=False)


def _judged(network: nn.Module, tiles: Sequence[Tensor]) -> Iterator[tuple[np.ndarray, Tensor]]:
    """Some of the tiles, spread over all, and their logits in float."""
    numbers = 0
    with torch.no_grad():
        for tile in tiles[:: math.ceil(len(tiles) / JUDGED)]:
            if numbers >= LOGITS:
                return
            logits = main_logits(network(tile))
            numbers += logits.numel()
            yield tile.numpy(), logits


def _alike(model: Any, judged: Iterable[tuple[np.ndarray, Tensor]]) -> tuple[float, None]:
    """How much of what may differ from float a compiled network leaves: 1 all of it, 0 none, below it more.

    Args:
        model: in OpenVINO.
        judged: tiles and their logits in float.
    """
    pairs = [(torch.from_numpy(model(tile)[0]), logits) for tile, logits in judged]
    found, reference = (
        torch.cat([logits.movedim(1, 0).flatten(1) for logits in some], 1)[None]
        for some in zip(*pairs, strict=True)
    )
    worst = max(
        max((1 - dice) / (1 - SAME_CLASS), apart / MEAN_DIFFERENCE)
        for dice, apart in agreement(found, reference).values()
    )
    return 1 - worst, None


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
