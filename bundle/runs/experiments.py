"""Experiments (args files), and the configs that they name as one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser
from monai.bundle.utils import merge_kv
from monai.data import Dataset
from torch import Tensor

from scripts import settings
from scripts.data.cases import InferenceCases
from scripts.data.checks import Problem
from scripts.data.dataset import PROBLEM
from scripts.errors import InputError, root_cause
from scripts.files import read_json
from scripts.process import bundle_root
from scripts.recipe import Ids
from scripts.settings import CONFIGS
from scripts.tables import Row

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
    files = [Path(bundle_root(), name) for name in experiment["config_file"]]
    given = {key: value for key, value in experiment.items() if key not in OF_THE_RUN}
    parser = merged([*((f"{file}: ", _read(file)) for file in files), ("--", given)])
    own = [folder for folder in {file.parent for file in files[:1]} if folder.name == CONFIGS.name]
    settings.check(parser, configs=[CONFIGS, *own], trusted=False)
    return parser


def merged(configs: Iterable[tuple[str, Mapping[str, Any]]]) -> ConfigParser:
    """Configs on top of each other, as `monai.bundle run` merges them.

    Args:
        configs: each with what stands before its ids in messages; it is not changed.

    Raises:
        InputError: an id that goes down into what is not there.
    """
    parser = ConfigParser({})
    for place, content in configs:
        for key, value in content.items():
            try:
                merge_kv(parser, key, copy.deepcopy(value))
            except (KeyError, ValueError) as error:
                raise InputError(
                    f"{place}{key} {value}: no such id, as nothing is there that it could lie in "
                    f"({error.args[0]}): correct its name"
                ) from error
    return parser


@dataclass(frozen=True)
class Evaluation:
    """Cases and how they are segmented and judged, as `configs/evaluate.json` has it.

    Attributes:
        cases: what is wrong with those that are left out goes there.
        dataset: cases, each a dictionary of image and label.
        inferer: from an image, (B, C, *spatial), and a network to logits.
        postprocessing: from logits to classes on the grid of the file.
    """

    cases: InferenceCases
    dataset: Dataset
    inferer: Callable[..., Tensor]
    postprocessing: Callable[[Row], Row]

    def sound(self) -> Iterator[Row]:
        """The cases; one that cannot be loaded is told and left out from then on."""
        index = 0
        while index < len(self.dataset):
            case = self.dataset[index]
            if PROBLEM in case:
                self.cases.leave_out(Problem(**case[PROBLEM]))
                self.dataset.data = [*self.dataset.data[:index], *self.dataset.data[index + 1 :]]
            else:
                yield case
                index += 1


def read_evaluation(experiment: Ids, dataset_dir: Path, section: str, cases: int | None) -> Evaluation:
    """Cases of a section of a data set, on the CPU in single precision.

    Args:
        experiment: its configs say how cases are read.
        dataset_dir: folder with dataset.json.
        section: "testing", "validation" or "training".
        cases: how many of them, or None for all.

    Raises:
        InputError: no data set, no such section, bad cases; configs that only segment.
    """
    if "train" not in parser_of(experiment).get():
        raise InputError(
            f"--dataset_dir is {dataset_dir}, and the configs only segment, without saying how cases are "
            "judged: leave it out, or give the experiment of a training"
        )
    files = [*experiment["config_file"], "configs/evaluate.json"]
    places = {"dataset_dir": str(dataset_dir), "section": section}
    plain = {"runtime": "torch", "amp": False, "memory_gb": None, "device": "$torch.device('cpu')"}
    parser = parser_of({**experiment, "config_file": files, **places, **plain})
    try:
        parser.get_parsed_content("set_up")
        checked = parser.get_parsed_content("cases")
        parser["validate::dataset::data"] = checked.cases[:cases]
        return Evaluation(
            checked,
            parser.get_parsed_content("validate::dataset"),
            parser.get_parsed_content("validate::inferer"),
            parser.get_parsed_content("validate::postprocessing"),
        )
    except Exception as error:
        root = root_cause(error)
        if isinstance(root, InputError):
            raise root from None
        raise InputError(
            f"--dataset_dir is {dataset_dir}, whose cases cannot be read ({' '.join(str(root).split())}): "
            "leave it out, or correct the data or the configs"
        ) from error


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
