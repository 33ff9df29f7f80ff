"""int8: a network whose layers multiply whole numbers of 8 bits, in a pair of files beside its weights.

`python -m bundle export --format openvino-int8` writes the pair, `model.int8.xml` and `model.int8.bin` beside
`model.pt`. In it stands which weights it was made of. Inference with `precision` "fast" may take it.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from scripts.errors import InputError
from scripts.files import sha256

logger = logging.getLogger(__name__)

PRECISIONS = ("exact", "fast")

#: Name of the option that makes the files.
FORMAT = "openvino-int8"

#: Where the file says what it was made of: digests of the network's weights and of its own .bin.
WEIGHTS, OWN = ["unet", "weights"], ["unet", "bin"]

#: How to get a file that fits.
AGAIN = f"run python -m bundle export --format {FORMAT} with these weights"


def int8_files(checkpoint: Path) -> tuple[Path, Path]:
    """The pair of files that belongs to a file of weights: model.int8.xml and model.int8.bin for model.pt."""
    return checkpoint.with_suffix(".int8.xml"), checkpoint.with_suffix(".int8.bin")


def for_precision(precision: str, checkpoint: str | Sequence[str]) -> Path | None:
    """What an inferer may take instead of the exact network.

    Args:
        precision: "exact"; or "fast", by which scores may differ in the third decimal.
        checkpoint: the file of weights; of several there is nothing to take.

    Returns:
        The .xml beside the weights, or None for "exact" and, with a line in the log, where there is none.

    Raises:
        InputError: another precision.
    """
    if precision not in PRECISIONS:
        raise InputError(f"precision is {precision!r}: use {' or '.join(map(repr, PRECISIONS))}")
    if precision == "exact":
        return None
    if not isinstance(checkpoint, str):
        logger.warning("precision 'fast': several checkpoints have no int8 file; going on exactly")
        return None
    file = int8_files(Path(checkpoint))[0]
    if file.is_file():
        return file
    logger.warning("precision 'fast': %s is not there: %s; going on exactly", file, AGAIN)
    return None


def digest(network: nn.Module) -> str:
    """SHA-256 of a network's weights: their names, shapes and values, whatever file they came from."""
    found = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        found.update(f"{name} {tuple(value.shape)} {value.dtype}\n".encode())
        found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def read_int8(path: Path, network: nn.Module) -> Any:
    """An int8 file that was made of the weights of a network.

    Args:
        path: the .xml; its .bin lies beside it.
        network: as it computes now.

    Returns:
        A model of OpenVINO, for batches and tiles of any legal size.

    Raises:
        InputError: the pair is damaged, no int8 file, or of other weights.
    """
    from scripts.compute.runtimes import openvino_core  # which reads int8 files too

    try:
        model = openvino_core().read_model(path)
        made_of, _ = (model.get_rt_info(place).value for place in (WEIGHTS, OWN))
        check_pair(model, path)
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"{path} is not an int8 file of this bundle, or is damaged ({type(error).__name__}): {AGAIN}"
        ) from error
    if made_of != digest(network):
        raise InputError(f"{path} was made of other weights, or of another network: {AGAIN}")
    return model


def check_pair(model: Any, path: Path) -> None:
    """Refuse an int8 file of this bundle whose .bin has changed.

    Args:
        model: of OpenVINO, as it was read.
        path: the .xml that it was read from.

    Raises:
        InputError: the .bin is another one.
    """
    if model.has_rt_info(OWN) and sha256(path.with_suffix(".bin")) != model.get_rt_info(OWN).value:
        raise InputError(f"{path.with_suffix('.bin')} is not what was written with {path.name}: {AGAIN}")


def multiplies_int8() -> bool:
    """Whether this processor has what OpenVINO's int8 is fast with: AVX2 or more."""
    return torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


def is_quantised(model: Any) -> bool:
    """Whether a model of OpenVINO rounds what passes through it."""
    return any(operation.get_type_name() == "FakeQuantize" for operation in model.get_ops())
