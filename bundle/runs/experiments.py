"""Experiments (args files), and the configs that they name as one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from scripts.errors import InputError
from scripts.files import read_json
from scripts.process import bundle_root
from scripts.recipe import Ids

#: Ids that say where data and results lie: each command has its own.
PLACES = ("dataset_dir", "output_dir", "checkpoint", "seed")


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
