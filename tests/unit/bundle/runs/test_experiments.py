"""What of an experiment concerns training and what inference."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from monai.bundle import ConfigParser

from bundle.runs.experiments import for_inference, parser_of, read_experiment, resolved
from scripts.errors import InputError
from tests.commands import CONFIGS

EXPERIMENTS = sorted((CONFIGS / "experiments").glob("*.json"))


def test_inference_gets_what_it_knows() -> None:
    experiment = json.loads((CONFIGS / "experiments/unet2015_em.json").read_text())
    files, shared = for_inference({**experiment, "window_inferer::mirror": False, "w0": 0.0, "seed": 1})
    assert files == [
        "configs/inference.json",
        "configs/task/em_membrane.json",
        "configs/network/unet2015.json",
    ]
    assert shared == {"patch_size": [572, 572], "window_inferer::mirror": False}


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda file: file.stem)
def test_one_config_says_what_several_say(file: Path) -> None:
    """The network, the patch and the data of training and inference come out alike, without further files."""
    experiment = read_experiment(file, {})
    files = experiment.pop("config_file")
    train = resolved(files, experiment)
    inference = resolved(*for_inference({"config_file": files, **experiment}))
    parser = ConfigParser()
    parser.read_config([CONFIGS.parent / name for name in files])
    parser.update(experiment)
    for config in (train, inference):
        alone = ConfigParser(json.loads(json.dumps(config)))
        for key in ("patch_size", "labels", "out_channels", "channels", "spatial_dims"):
            assert alone.get_parsed_content(key) == parser.get_parsed_content(key)
        assert alone["network_def"] == parser["network_def"]
        assert alone["inferer"] == parser["inferer"]
    assert train["augment"] == parser["augment"]
    assert "augment" not in inference
    assert inference["dataset_dir"].endswith("/data/images'")


def test_only_what_is_referred_to_stays() -> None:
    border = resolved(["configs/train.json", "configs/loss/border_weights.json"], {})
    assert {"w0", "sigma", "cells", "weigh", "join"} <= border.keys()
    task = resolved(["configs/inference.json", "configs/task/nuclei.json"], {"labels::border": 7})
    assert "samples_per_case" not in task
    assert task["labels"]["border"] == 7


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
