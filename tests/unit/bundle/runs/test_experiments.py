"""Experiments: args files, and the configs that they name as one."""

from __future__ import annotations

import json
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


@pytest.mark.parametrize(
    ("key", "sentence"),
    [
        ("max_epoch", "--max_epoch 1: no such id; did you mean max_epochs"),
        ("patches::elastic_prob", "--patches::elastic_prob 1: no such id, as nothing is there that it could"),
        ("train::trainers::max_epochs", "--train::trainers::max_epochs 1: no such id"),
        ("patch::elastic_pro", "takes no such argument; did you mean elastic_prob"),
    ],
)
def test_ids_that_the_configs_lack_are_refused(key: str, sentence: str, tmp_path: Path) -> None:
    """Those of the command line, and those of the args file."""
    with pytest.raises(InputError, match=sentence):
        read_experiment(CONFIGS / "experiments/nuclei.json", {key: 1})
    (tmp_path / "a.json").write_text(json.dumps({"config_file": ["configs/train.json"], key: 1}))
    with pytest.raises(InputError, match=sentence):
        read_experiment(tmp_path / "a.json", {})


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("none.json", None, r"none\.json does not exist"),
        ("a.json", '{"labels": {"background": 0},}', r"a\.json cannot be read \(.*line 1 column 30"),
        ("a.json", "[1]", r"a\.json holds a list"),
        ("a.json", '{"patches::prob": 1}', r"a\.json: patches::prob 1: no such id"),
        ("a.yaml", "seed: [", r"a\.yaml cannot be read"),
        ("a.txt", "seed", r"a\.txt cannot be read"),
    ],
)
def test_a_config_that_cannot_be_read_is_named(
    name: str, text: str | None, sentence: str, tmp_path: Path
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=sentence):
        parser_of({"config_file": ["configs/train.json", str(tmp_path / name)]})


def test_an_overlay_may_be_yaml_and_text_is_taken_as_it_is_meant(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("seed: 7\namp: 'false'\n")
    parser = parser_of({"config_file": ["configs/train.json", str(tmp_path / "a.yaml")], "fold": "2"})
    assert [parser[key] for key in ("seed", "amp", "fold")] == [7, False, 2]
