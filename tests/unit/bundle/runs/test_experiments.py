"""Experiments: args files, and the configs that they name as one."""

from __future__ import annotations

from pathlib import Path

import pytest

from bundle.runs.experiments import parser_of, read_experiment
from scripts.errors import InputError
from tests.commands import CONFIGS


def test_ids_lie_on_top_of_the_configs() -> None:
    files = ["configs/train.json", "configs/task/nuclei.json"]
    parser = parser_of({"config_file": files, "labels::border": 7, "fold": 2})
    assert parser["labels"] == {"background": 0, "interior": 1, "border": 7}
    assert (parser["fold"], parser["seed"]) == (2, 0)


def test_experiment_names_configs(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"config_file": "configs/train.json"}')
    with pytest.raises(InputError, match=r"a\.json has no list under 'config_file'"):
        read_experiment(tmp_path / "a.json", {})


def test_ids_of_the_command_line_win() -> None:
    file = CONFIGS / "experiments/unet2015_em.json"
    ids = {"max_epochs": 3, "patch::elastic_prob": 0.25, "patch::foreground_prob": 0.5, "batch_size": 7}
    experiment = parser_of(read_experiment(file, ids))
    assert {key: experiment[key] for key in ids} == ids
    assert experiment["patch::rotate_range"] == 3.14
    files = {"config_file": ["configs/train.json", "configs/network/residual.json"]}
    other = parser_of(read_experiment(CONFIGS / "experiments/hippocampus.json", files))
    assert other["network_def"]["heads"]["deep_supervision"] == 2


@pytest.mark.parametrize("key", ["max_epoch", "patches::elastic_prob", "train::trainers::max_epochs"])
def test_ids_that_the_configs_lack_are_refused(key: str) -> None:
    with pytest.raises(InputError, match=f"--{key} is neither an option nor an id of the configs"):
        read_experiment(CONFIGS / "experiments/nuclei.json", {key: 1})
