"""Experiments (args files): what of them concerns training and what inference."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from scripts.errors import InputError
from scripts.files import read_json
from scripts.process import bundle_root

#: Ids that say where data and results lie: each command has its own.
PLACES = ("dataset_dir", "output_dir", "checkpoint", "seed")

Ids = dict[str, Any]


def read_experiment(args_file: Path, ids: Mapping[str, Any]) -> Ids:
    """An args file of `monai.bundle run`, with ids of the command line on top.

    Raises:
        InputError: it does not name a list of configs, or see `with_ids`.
    """
    experiment = read_json(args_file)
    files = experiment.get("config_file")
    if not isinstance(files, list) or not all(isinstance(name, str) for name in files):
        raise InputError(
            f"{args_file} has no list under 'config_file': name an args file such as those of "
            "configs/experiments"
        )
    return with_ids(experiment, ids)


def with_ids(experiment: Mapping[str, Any], ids: Mapping[str, Any]) -> Ids:
    """An experiment with ids on top.

    Raises:
        InputError: an id that its configs do not have; MONAI would add it in silence.
    """
    merged = {**experiment, **ids}
    parser = parser_of({**experiment, "config_file": merged["config_file"]})
    for key in ids.keys() - {"config_file"}:
        parent, _, leaf = key.rpartition("::")
        try:
            around = parser[parent] if parent else parser.get()
        except KeyError:
            around = {}
        if leaf not in around and "_target_" not in around:
            raise InputError(f"--{key} is neither an option nor an id of the configs: correct its name")
    return merged


def parser_of(experiment: Mapping[str, Any]) -> ConfigParser:
    """The configs of an experiment on top of each other, and its ids on top of them.

    Args:
        experiment: content of its args file: "config_file", a list of paths, relative to the bundle or
            absolute, and ids with their values; "a::b" goes down.
    """
    parser = ConfigParser()
    parser.read_config([str(Path(bundle_root(), name)) for name in experiment["config_file"]])
    parser.update({key: value for key, value in experiment.items() if key != "config_file"})
    return parser


def for_inference(experiment: Mapping[str, Any]) -> tuple[list[str], Ids]:
    """What of an experiment concerns inference.

    Args:
        experiment: content of its args file, "config_file" among it, and overrides.

    Returns:
        The configs, with inference.json in place of train.json and without what changes the loss; and the ids
        that inference.json knows, without PLACES.
    """
    files = [
        name.replace("configs/train.json", "configs/inference.json")
        for name in experiment["config_file"]
        if Path(name).parent.name != "loss"
    ]
    known = read_json(Path(bundle_root(), "configs/inference.json"))
    return files, {
        key: value for key, value in experiment.items() if key.split("::")[0] in known and key not in PLACES
    }


def resolved(files: list[str], overrides: Mapping[str, Any]) -> Ids:
    """Configs on top of each other and overrides on top of them, as one config.

    Args:
        files: the complete one first; relative to the bundle or absolute.
        overrides: ids and their values; "a::b" goes down.

    Returns:
        The ids of the first file, and those that they refer to.
    """
    parser = ConfigParser()
    parser.read_config([str(Path(bundle_root(), name)) for name in files])
    parser.update(dict(overrides))
    config = parser.get()
    wanted = list(read_json(Path(bundle_root(), files[0])))
    for key in wanted:  # grows on the way
        wanted += [name for name in _references(config[key]) if name in config and name not in wanted]
    return {key: config[key] for key in wanted}


def _references(value: Any) -> list[str]:
    """Top-level ids that a part of a config refers to, in their order."""
    if isinstance(value, dict):
        return [name for part in value.values() for name in _references(part)]
    if isinstance(value, list):
        return [name for part in value for name in _references(part)]
    return list(dict.fromkeys(re.findall(r"@(\w+)", value))) if isinstance(value, str) else []
