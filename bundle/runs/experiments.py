"""Experiments (args files), and the configs that they name as one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser
from monai.bundle.utils import merge_kv

from scripts import settings
from scripts.errors import InputError
from scripts.files import read_json
from scripts.process import bundle_root
from scripts.recipe import Ids
from scripts.settings import CONFIGS

#: Arguments of `monai.bundle run` that are no ids of a config.
OF_THE_RUN = ("config_file", "meta_file", "logging_file", "tracking", "run_id", "init_id", "final_id")

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
        InputError: see `parser_of`.
    """
    merged = {**experiment, **ids}
    parser_of(merged)
    return merged


def parser_of(experiment: Mapping[str, Any]) -> ConfigParser:
    """The configs of an experiment on top of each other, and its ids on top of them.

    Nothing of them is evaluated.

    Args:
        experiment: content of its args file: "config_file", a list of paths, relative to the bundle or
            absolute, and ids with their values; "a::b" goes down.

    Raises:
        InputError: a config that cannot be read, an id that goes down into what is not there, or see
            `scripts.settings.check`.
    """
    parser = ConfigParser({})
    files = [Path(bundle_root(), name) for name in experiment["config_file"]]
    given = {key: value for key, value in experiment.items() if key not in OF_THE_RUN}
    for source, content in [*((file, _read(file)) for file in files), ("", given)]:
        for key, value in content.items():
            try:
                merge_kv(parser, key, value)
            except (KeyError, ValueError) as error:
                place = f"{source}: " if source else "--"
                raise InputError(
                    f"{place}{key} {value}: no such id, as nothing is there that it could lie in "
                    f"({error.args[0]}): correct its name"
                ) from error
    own = [folder for folder in {file.parent for file in files[:1]} if folder.name == CONFIGS.name]
    settings.check(parser, configs=[CONFIGS, *own], trusted=False)
    return parser


def _read(file: Path) -> Ids:
    """A config file, JSON or YAML as MONAI reads it."""
    if file.suffix == ".json":
        read_json(file)  # has a sentence for what is wrong
    try:
        return ConfigParser.load_config_file(str(file))
    except Exception as error:
        raise InputError(
            f"{file} cannot be read ({' '.join(str(error).split())}): correct the path or the file"
        ) from error
