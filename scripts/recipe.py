"""What belongs to weights: the config that segments with them, and what they were trained with.

Beside its weights a training writes two files. `inference.json` is a complete config for
`python -m monai.bundle run`: the bundle's own, with what configs, overlays and command line of the training
changed in it. `metadata.json` holds versions, facts about the data, and the SHA-256 of the files of weights
that both belong to. Inference and evaluation compare their config with it before they read an image.

`scripts.settings.running` finds the config, and its file, that is being run.
"""

from __future__ import annotations

import json
import logging
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import monai
import numpy as np
import torch
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.utils import CommonKeys as Keys
from monai.utils import ensure_tuple
from torch import nn
from torch.utils.data import Dataset

from scripts.checkpoints import is_first, save_weights, unwrap
from scripts.data.reader import read_spacing
from scripts.errors import InputError
from scripts.files import atomic_writes, is_as_written, read_json, sha256
from scripts.settings import CONFIGS, NotRunning, running

logger = logging.getLogger(__name__)

#: What lies beside weights.
RECIPE = ("inference.json", "metadata.json")

#: Ids that each run sets for itself: where things lie, which machine, what is done.
OF_EACH_RUN = (
    *("bundle_root", "dataset_dir", "output_dir", "checkpoint", "device", "amp", "memory_format", "runtime"),
    *("precision", "quantised", "memory_gb", "threads", "set_up", "network", "initialize", "run"),
)

#: Ids that training alone reads, null in inference: what a network began with is in its weights.
OF_TRAINING = ("pretrained", "initial_weights")

#: What weights depend on, with all that these ids refer to,
DEFINING = ("network_def", "labels", "preprocessing")

#: but for what reads a file, as a network trained on NIfTI segments DICOM, and for how much of a nested
#: decoder is used.
FREE = ("reader", "depth", "heads_mode")

#: What may be another when a training goes on, wherever it stands: how long and how fast it learns and when
#: it is judged, where things lie, which machine, what is told. All else of its config makes it what it is.
OF_EACH_RESUME = (
    *("minutes", "length", "max_epochs", "val_interval", "patience", "handlers"),
    *("learning_rate", "lr", "lr_scheduler"),
    *("bundle_root", "dataset_dir", "output_dir", "checkpoint", "pretrained"),
    *("initial_weights", "check"),
    *("device", "device_ids", "memory_format", "compile", "runtime", "precision", "quantised", "memory_gb"),
    *("threads", "cache_rate", "cache_gb", "cache_dir", "progress"),
    *("num_workers", "persistent_workers", "prefetch_factor", "pin_memory"),
)

#: Differences that are named in a refusal.
NAMED = 3

#: Says nothing to MONAI.
DESCRIPTION = "_desc_"

Ids = dict[str, Any]


@dataclass(frozen=True)
class Recipe:
    """What lies beside weights.

    Attributes:
        config: content of inference.json.
        facts: content of metadata.json.
    """

    config: Ids
    facts: Ids


class WeightsWriter:
    """Writes the weights of a training and their recipe.

    Args:
        network: the network, or its DistributedDataParallel wrapper.
        path: the file, such as model.pt; see `write_weights`.
        training: the cases to train on, `{"image": path or list of paths}` in its `data`.
        validation: the cases to validate on.

    Attributes:
        written: the weights that were written last, which a checkpoint holds too; None before.
        training: what makes the training what it is, see `for_resume`.
    """

    def __init__(self, network: nn.Module, path: str, training: Dataset, validation: Dataset) -> None:
        self.network = network
        self.path = Path(path)
        self.counts = {"training": len(training), "validation": len(validation)}  # type: ignore[arg-type]
        self.images = [ensure_tuple(case[Keys.IMAGE])[0] for case in getattr(training, "data", ())]
        config = running(ConfigParser).get()
        self.config = for_inference(config)
        self.training = for_resume(config)
        self.facts: Ids = {}
        self.written: dict[str, torch.Tensor] | None = None

    def write(self) -> None:
        """Write the network's weights, in the first of several processes."""
        if is_first():
            weights = unwrap(self.network).state_dict()
            self.write_again({name: value.detach().cpu().clone() for name, value in weights.items()})

    def write_again(self, weights: dict[str, torch.Tensor]) -> None:
        """Write weights that were written before, in the first of several processes."""
        if is_first():
            self.facts = self.facts or self._facts()
            write_weights(weights, self.path, Recipe(self.config, self.facts))
            self.written = weights

    def _facts(self) -> Ids:
        data = {key: self.config.get(key) for key in ("spatial_dims", "in_channels", "labels")}
        spacings = [spacing for spacing in map(read_spacing, self.images) if spacing]
        spacing = [median(axis) for axis in zip(*spacings, strict=True)] if spacings else None
        return {
            "version": read_json(CONFIGS / "metadata.json")["version"],
            "monai_version": monai.__version__,
            "pytorch_version": torch.__version__,
            "numpy_version": np.__version__,
            "python_version": platform.python_version(),
            "data": {**data, "spacing": spacing, **self.counts},
        }


def write_weights(weights: Mapping[str, torch.Tensor], path: Path, recipe: Recipe) -> None:
    """Write weights twice, as PyTorch's file and as safetensors, with their recipe: all of it or nothing.

    A process that dies while the four files get their names leaves hashes that tell which belong together.

    Args:
        weights: a plain state dictionary.
        path: model.pt; beside it go model.safetensors, inference.json and metadata.json.
        recipe: `weights` and `checkpoint` of it are set here.
    """
    files = [path, path.with_suffix(".safetensors")]
    with atomic_writes(*files, *map(path.with_name, RECIPE)) as (*made, config, facts):
        for file in made:
            save_weights(weights, file)
        _write_recipe(recipe, dict(zip(files, made, strict=True)), config, facts)


def write_recipe(recipe: Recipe, files: Sequence[Path]) -> None:
    """Write inference.json and metadata.json beside files that they belong to.

    Args:
        recipe: its `checkpoint` becomes the first of the files, its `weights` their hashes; what a host set
            to something that JSON does not know becomes text.
        files: in one folder.
    """
    with atomic_writes(*map(files[0].with_name, RECIPE)) as (config, facts):
        _write_recipe(recipe, dict(zip(files, files, strict=True)), config, facts)


def _write_recipe(recipe: Recipe, files: Mapping[Path, Path], config: Path, facts: Path) -> None:
    """Write a recipe in place.

    Args:
        recipe: see `write_recipe`.
        files: what it belongs to, and where that lies at present.
        config: becomes inference.json.
        facts: becomes metadata.json.
    """
    checkpoint = {"_target_": "scripts.recipe.beside_config", "name": next(iter(files)).name}
    hashes = {file.name: sha256(made) for file, made in files.items()}
    for file, content in (
        (config, {**recipe.config, "checkpoint": checkpoint}),
        (facts, {**recipe.facts, "weights": hashes}),
    ):
        file.write_text(json.dumps(content, indent=4, default=str) + "\n", encoding="utf-8")


def check_recipe(checkpoint: str | Sequence[str], tuned_for: Sequence[str] = ()) -> None:
    """Refuse the config that is being run where it contradicts what its weights were trained with.

    Args:
        checkpoint: the file of weights, or several.
        tuned_for: SHA-256 of the weights that an overlay was tuned for, see `hashes_of`; () holds for any.

    Raises:
        InputError: see `read_recipe`; an overlay that was tuned for other weights.
    """
    config = running(ConfigParser).get()
    given = for_inference(config) if "train" in config else config
    for path in ensure_tuple(checkpoint):
        read_recipe(Path(path), given)
    for path in ensure_tuple(checkpoint) if tuned_for else ():
        if not set(hashes_of(Path(path))) & set(tuned_for):
            raise InputError(
                f"{path}: not the weights that the overlay was tuned for, by their SHA-256, so that neither "
                "its speed nor its loss is known: run python -m bundle tune --speed with these, or leave it "
                "out"
            )


def hashes_of(path: Path) -> list[str]:
    """SHA-256 of a file of weights, and of the other files with the same weights that its recipe names."""
    own, facts = sha256(path), path.with_name(RECIPE[1])
    beside = list(read_json(facts).get("weights", {}).values()) if facts.is_file() else []
    return sorted(beside) if own in beside else [own]


def read_recipe(path: Path, given: Mapping[str, Any]) -> Recipe | None:
    """The recipe beside a file of weights; None, and a line in the log, where none belongs to it.

    Args:
        path: the file of weights.
        given: the inference config that is to be used with them.

    Raises:
        InputError: the config contradicts the recipe; names the ids, both values and the fix.
    """
    files = [path.with_name(name) for name in RECIPE]
    if not (path.is_file() and all(file.is_file() for file in files)):
        logger.info("%s has no recipe beside it: the configs are not compared with its training", path)
        return None
    recipe = Recipe(*map(read_json, files))
    if sha256(path) not in recipe.facts.get("weights", {}).values():
        logger.warning(
            "the recipe in %s belongs to other weights than %s: the configs are not compared with it",
            path.parent,
            path.name,
        )
        return None
    differences = [
        f"{key} was {_brief(trained)} and is {_brief(now)}"
        for key, trained, now in contradictions(recipe.config, given)
    ]
    if differences:
        more = f"; {len(differences) - NAMED} more differ" if len(differences) > NAMED else ""
        raise InputError(
            f"{path} was trained with other settings: {'; '.join(differences[:NAMED])}{more}; segment with "
            f"--config_file {files[0]}, or give overlays and ids of the training"
        )
    return recipe


def for_inference(config: Mapping[str, Any], configs: Path = CONFIGS) -> Ids:
    """The inference config that belongs to a config of a training.

    Args:
        config: train.json with overlays and ids on top.
        configs: the folder with that train.json and its inference.json.

    Returns:
        inference.json with what differs from train.json, but for OF_EACH_RUN, and what that refers to.
    """
    train, inference = (read_json(configs / f"{name}.json") for name in ("train", "inference"))
    made = {
        key: _carry(train.get(key), config[key], own) if key in config and key not in OF_EACH_RUN else own
        for key, own in inference.items()
    }
    alone = {key: None for key in OF_TRAINING if key in config}
    return with_references({**config, **made, **alone}, list(made))


def for_resume(config: Mapping[str, Any]) -> Ids:
    """What of a training's config makes it what it is: `train`, `validate` and what they refer to, as JSON.

    Args:
        config: train.json with overlays and ids on top.

    Returns:
        The ids without those of OF_EACH_RESUME, at any depth.
    """
    given: Ids = json.loads(json.dumps(_without(config, OF_EACH_RESUME), default=str))
    return with_references(given, ["train", "validate"])


def other_training(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Where two configs of `for_resume` differ: for each id a part of a sentence."""
    return [
        f"{name} was {_brief(there)} and is {_brief(here)}"
        for key in {**before, **now}
        for name, there, here in _differences(key, before.get(key), now.get(key))
    ]


def with_references(config: Mapping[str, Any], ids: Sequence[str]) -> Ids:
    """Some top-level ids of a config, and those that they refer to."""
    wanted = [key for key in ids if key in config]
    for key in wanted:  # grows on the way
        wanted += [name for name in _references(config[key]) if name in config and name not in wanted]
    return {key: config[key] for key in wanted}


def contradictions(trained: Mapping[str, Any], given: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Where two inference configs differ in what weights depend on: id and both values, None for none."""
    one, other = (with_references(config, DEFINING) for config in (trained, given))
    for key in {**one, **other}:
        found = _differences(key, one.get(key), other.get(key))
        yield from (part for part in found if part[0].rpartition("::")[2] not in FREE)


def beside_config(name: str) -> str:
    """The path of a file in the folder of the config that is being run.

    Raises:
        InputError: the config was not read by `monai.bundle run` or a ConfigWorkflow; the metadata.json
            beside it says that the file is not the one that the config was written for.
    """
    try:
        path = Path(running(ConfigWorkflow).config_root_path / name)
    except NotRunning as error:
        raise InputError(
            f"checkpoint is {name} in the folder of the config, which only monai.bundle knows: set checkpoint"
        ) from error
    if not is_as_written(path):
        raise InputError(
            f"{path}: not the weights that {RECIPE[0]} beside it was written for, by their SHA-256 in "
            f"{RECIPE[1]}: a training was cut while it wrote them, or a file was replaced; go on with the "
            "training (--resume True), or give --checkpoint if they do belong together"
        )
    return str(path)


def _carry(base: Any, given: Any, own: Any) -> Any:
    """A part of inference.json with what a training changed in the same part of train.json.

    Args:
        base: of train.json.
        given: of the training.
        own: of inference.json.
    """
    if _form(base) == _form(given):
        return own
    if _form(base) != _form(own):
        if all(isinstance(part, dict) for part in (base, given, own)):
            new = {key: value for key, value in given.items() if key not in base}
            kept = {key: _carry(base.get(key), given.get(key), value) for key, value in own.items()}
            return {**{key: value for key, value in kept.items() if key in given}, **new}
        if all(isinstance(part, list) for part in (base, given, own)) and len(base) == len(given) == len(own):
            return [_carry(*parts) for parts in zip(base, given, own, strict=True)]
    return given


def _differences(key: str, one: Any, other: Any) -> Iterator[tuple[str, Any, Any]]:
    """Where two parts of configs differ, as far down as they are of one form."""
    if _form(one) == _form(other):
        return
    if isinstance(one, dict) and isinstance(other, dict) and one.get("_target_") == other.get("_target_"):
        names = [name for name in {**one, **other} if name != DESCRIPTION]
        inside = [(name, one.get(name), other.get(name)) for name in names]
        found = [part for name, *both in inside for part in _differences(f"{key}::{name}", *both)]
        yield from found or [(key, list(one), list(other))]  # another order of the classes
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other) and _nested(one):
        for index, both in enumerate(zip(one, other, strict=True)):
            yield from _differences(f"{key}::{index}", *both)
    else:
        yield key, one, other


def _without(value: Any, names: Sequence[str]) -> Any:
    """A part of a config without what has one of some names."""
    if isinstance(value, Mapping):
        return {key: _without(part, names) for key, part in value.items() if key not in names}
    return [_without(part, names) for part in value] if isinstance(value, list | tuple) else value


def _nested(values: list) -> bool:
    return any(isinstance(value, dict | list) for value in values)


def _form(value: Any) -> Any:
    """A part of a config without what says nothing: descriptions, the order of keywords, tuples for lists."""
    if isinstance(value, Mapping):
        pairs = [(key, _form(part)) for key, part in value.items() if key != DESCRIPTION]
        return dict(pairs) if "_target_" in value else pairs  # the order of labels is that of the classes
    if isinstance(value, list | tuple):
        return [_form(part) for part in value]
    return value


def _brief(value: Any) -> str:
    """A value for a sentence: of a component its name."""
    if value is None:
        return "not set"
    if isinstance(value, dict) and "_target_" in value:
        return str(value["_target_"])
    if isinstance(value, list) and _nested(value):
        return f"[{', '.join(map(_brief, value))}]"
    return str(value)


def _references(value: Any) -> list[str]:
    """Top-level ids that a part of a config refers to, in their order."""
    if isinstance(value, dict):
        return [name for part in value.values() for name in _references(part)]
    if isinstance(value, list):
        return [name for part in value for name in _references(part)]
    return list(dict.fromkeys(re.findall(r"@(\w+)", value))) if isinstance(value, str) else []
