"""Files of weights: written whole, read without running code, held against the network."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.distributed as dist
from torch import Tensor, nn

from scripts.errors import InputError, few
from scripts.files import disk_space_for, workshop

#: What the weights of heads were called before version 0.8, and are called now.
RENAMED = {f"head.{kind}": f"heads.main.{kind}" for kind in ("weight", "bias")} | {
    f"deep_heads.{index}.{kind}": f"heads.deep.deep{index + 1}.{kind}"
    for index in range(8)
    for kind in ("weight", "bias")
}
#: The folder in PyTorch's file of weights that all its parts lie in, whatever the file is called.
ROOT = "model"

#: Ends a file that holds tensors and nothing that could run.
SAFETENSORS = ".safetensors"


def read_checkpoint(path: Path) -> dict:
    """Read a checkpoint without running code from it.

    Raises:
        InputError: the file is missing, or not a checkpoint of weights.
    """
    if not os.path.isfile(path):  # of a name that no file can have, too
        raise InputError(f"{path}: no such checkpoint; train first, or name one with --checkpoint")
    try:
        if path.suffix == SAFETENSORS:
            return safetensors.torch.load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(
            f"{path}: not a readable checkpoint ({type(error).__name__}); "
            "name the model.pt or model.safetensors that a training wrote, or for what `export` wrote add "
            "configs/exported.json to the configs"
        ) from error
    if not isinstance(state, dict):
        raise InputError(f"{path}: holds a {type(state).__name__}; a checkpoint is a dictionary of weights")
    return state


def read_weights(path: Path) -> dict:
    """The network's weights in a checkpoint.

    Args:
        path: `model.pt`, `model.safetensors`, `last.pt`, or what MONAI's CheckpointSaver wrote.

    Raises:
        InputError: see `read_checkpoint`.
    """
    state = read_checkpoint(path)
    weights = state.get("network", state.get("model", state))
    if not isinstance(weights, Mapping) or not all(isinstance(name, str) for name in weights):
        raise InputError(
            f"{path}: holds no weights by their names; name the model.pt or model.safetensors that a "
            "training wrote"
        )
    return {RENAMED.get(name, name): value for name, value in weights.items()}


@contextmanager
def taken_whole(path: Path) -> Iterator[None]:
    """Say in one sentence that a checkpoint is broken, if that is why it cannot be gone on from.

    Args:
        path: the checkpoint.

    Raises:
        InputError: an entry is missing, or holds something else.
    """
    try:
        yield
    except InputError:
        raise
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(
            f"{path}: an entry is missing or holds something else ({type(error).__name__}); resume from the "
            "last.pt that a training wrote, or start afresh with --resume False"
        ) from error


def check_weights(network: nn.Module, weights: dict, path: Path) -> None:
    """Refuse weights that do not belong to the network.

    Raises:
        InputError: names the first differences and the fix.
    """
    own = {name: tuple(value.shape) for name, value in unwrap(network).state_dict().items()}
    given = {name: tuple(value.shape) for name, value in weights.items() if isinstance(value, torch.Tensor)}
    differences = [
        f"{name} is {list(given[name]) if name in given else 'missing'} in the file"
        f" and {list(own[name]) if name in own else 'missing'} in the network"
        for name in [*own, *(name for name in given if name not in own)]
        if own.get(name) != given.get(name)
    ]
    if differences:
        raise InputError(
            f"{path}: a checkpoint of another network ({len(differences)} of {len(own)} weights differ: "
            f"{'; '.join(differences[:2])}); give the same network and task overlays as in training"
        )
    broken = [name for name in given if not weights[name].isfinite().all()]
    if broken:
        raise InputError(
            f"{path}: weights that are no finite numbers ({few(broken)}); the training diverged or the file "
            "is broken: take another, or train with a lower --learning_rate"
        )


def save_weights(weights: Mapping[str, Tensor], path: Path) -> None:
    """Write a plain state dictionary, as safetensors where the path ends so; the same bytes each time.

    Args:
        weights: the state dictionary.
        path: written in place: hand in what `scripts.files.atomic_write` yields.
    """
    if path.suffix == SAFETENSORS:  # takes dense tensors that share nothing
        dense = {
            name: value.cpu().clone(memory_format=torch.contiguous_format) for name, value in weights.items()
        }
        path.write_bytes(safetensors.torch.save(dense))
    else:
        with workshop(path.parent) as folder, disk_space_for(path):
            file = folder / f"{ROOT}.pt"  # PyTorch writes the name too
            torch.save(dict(weights), file)
            file.replace(path)


def save_checkpoint(state: Mapping[str, Any], path: Path) -> None:
    """Write what `read_checkpoint` reads; the name of the file does not go into it.

    Args:
        state: tensors, numbers, texts, and lists and dictionaries of these.
        path: written in place, as of `save_weights`.
    """
    content = io.BytesIO()  # PyTorch's own writer does not say why it could not write
    torch.save(dict(state), content)
    path.write_bytes(content.getbuffer())


def is_first() -> bool:
    """Whether this process is the only one, or the first of several."""
    return not (dist.is_initialized() and dist.get_rank() > 0)


def unwrap(network: nn.Module) -> nn.Module:
    """The network inside a DistributedDataParallel wrapper."""
    return network.module if isinstance(network, nn.parallel.DistributedDataParallel) else network
