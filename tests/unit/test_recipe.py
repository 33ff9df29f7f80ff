"""Weights and their recipe: what of a training concerns inference, and what contradicts it."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from torch import nn

from bundle.runs.experiments import parser_of, read_experiment
from scripts.data.reader import read_spacing
from scripts.errors import InputError
from scripts.files import sha256
from scripts.recipe import RECIPE, Recipe, contradictions, for_inference, read_recipe, write_weights
from tests.commands import CONFIGS, input_error, run

TRAIN, INFERENCE = (json.loads((CONFIGS / f"{name}.json").read_text()) for name in ("train", "inference"))
EXPERIMENTS = sorted((CONFIGS / "experiments").glob("*.json"))


def training(*overlays: str, **ids: Any) -> dict[str, Any]:
    """A config of a training; `a__b` stands for the id `a::b`."""
    files = ["configs/train.json", *(f"configs/{name}.json" for name in overlays)]
    return parser_of(
        {"config_file": files, **{key.replace("__", "::"): value for key, value in ids.items()}}
    ).get()


def inference(*overlays: str, **ids: Any) -> dict[str, Any]:
    files = ["configs/inference.json", *(f"configs/{name}.json" for name in overlays)]
    return parser_of(
        {"config_file": files, **{key.replace("__", "::"): value for key, value in ids.items()}}
    ).get()


def test_a_training_that_changes_nothing_is_segmented_by_inference_json() -> None:
    assert for_inference(TRAIN) == INFERENCE


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda file: file.stem)
def test_it_is_what_the_overlays_make_of_inference_json(file: Path) -> None:
    """Id for id as `monai.bundle run` merges them, but for what the training alone knows."""
    experiment = read_experiment(file, {})
    made = for_inference(parser_of(experiment).get())
    names = [name.replace("train.json", "inference.json") for name in experiment["config_file"]]
    names = [name for name in names if "/loss/" not in name]
    expected = parser_of({"config_file": names}).get()
    ids = [key for key in experiment if key in INFERENCE and key not in ("dataset_dir", "output_dir")]
    expected |= {key: experiment[key] for key in ids}
    assert made == {key: expected[key] for key in made}
    assert made.keys() >= INFERENCE.keys()
    assert not made.keys() & {"augment", "optimizer", "loss", "train", "batch_size"}
    assert json.loads(json.dumps(made)) == made


def test_what_changes_the_machine_or_the_training_alone_stays_out() -> None:
    assert for_inference(training("multi_gpu_train", "loss/border_weights")) == INFERENCE
    alone = {"device": "cpu", "runtime": "openvino", "amp": False, "output_dir": "x", "checkpoint": "y"}
    assert for_inference(training(**alone, max_epochs=1, optimizer__lr=1.0, w0=0.0)) == INFERENCE


def test_single_values_go_over_where_both_configs_differ() -> None:
    """`interpolation` of a training names the label too, which inference has none of."""
    made = for_inference(training(interpolation__image="nearest", load__0__reader="ITKReader", seed=3))
    assert made["interpolation"] == {"image": "nearest"}
    assert made["load"][0] == {**INFERENCE["load"][0], "reader": "ITKReader"}
    assert made["seed"] == 3


def test_what_an_id_refers_to_goes_along() -> None:
    made = for_inference(
        training(normalise="@brightness", brightness="$[@bright]", bright=2, learning_rate="@other", other=1)
    )
    assert (made["brightness"], made["bright"]) == ("$[@bright]", 2)
    assert "other" not in made


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A network of one layer with the recipe of the phantom organ."""
    config = for_inference(training("task/phantom_organ"))
    path = tmp_path / "trained/model.pt"
    write_weights(nn.Linear(2, 1).state_dict(), path, Recipe(config, {"version": "1"}))
    return path


def test_both_files_of_weights_have_the_recipe(trained: Path) -> None:
    names = ["inference.json", "metadata.json", "model.pt", "model.safetensors"]
    assert sorted(file.name for file in trained.parent.iterdir()) == names
    for name in names[2:]:
        recipe = read_recipe(trained.with_name(name), inference("task/phantom_organ"))
        assert recipe is not None
        assert recipe.facts["version"] == "1"
        assert recipe.facts["weights"][name] == sha256(trained.with_name(name))
        assert recipe.config["spacing"] == [1.0, 1.0, 1.5]


@pytest.mark.parametrize(
    ("overlays", "ids", "sentence"),
    [
        ((), {}, r"spacing was \[1.0, 1.0, 1.5\] and is \[1.0, 1.0, 1.0\]"),
        (("task/phantom_organ",), {"in_channels": 2}, "in_channels was 1 and is 2"),
        (("task/phantom_organ",), {"channels": [8, 16]}, r"channels was \[.*\] and is \[8, 16\]"),
        (("task/phantom_organ",), {"labels__background": 5}, "labels::background was 0 and is 5"),
        (
            ("task/phantom_organ",),
            {"normalise__0__channel_wise": False},
            "channel_wise was True and is False",
        ),
        (("task/phantom_organ",), {"normalise": []}, r"normalise was \[NormalizeIntensityd\] and is \[\]"),
        (
            ("task/phantom_organ", "network/residual"),
            {},
            "network_def::block was not set and is scripts.networks.blocks.ResidualBlock",
        ),
        (
            ("task/phantom_organ", "network/segresnet"),
            {},
            "network_def was scripts.networks.UNet and is scripts.networks.of_monai.SegRes",
        ),
    ],
)
def test_a_contradiction_is_a_sentence(
    overlays: tuple[str, ...], ids: dict[str, Any], sentence: str, trained: Path
) -> None:
    with pytest.raises(InputError, match=sentence) as error:
        read_recipe(trained, inference(*overlays, **ids))
    assert str(error.value).startswith(f"{trained} was trained with other settings: ")
    assert f"segment with --config_file {trained.with_name('inference.json')}, or give" in str(error.value)


def test_classes_in_another_order_contradict(trained: Path) -> None:
    labels = read_recipe(trained, inference("task/phantom_organ")).config["labels"]
    background, *others = labels.items()
    turned = dict([background, *reversed(others)])
    with pytest.raises(InputError, match="labels was") as error:
        read_recipe(trained, inference("task/phantom_organ", labels=turned))
    assert str(list(turned)) in str(error.value)


def test_what_does_no_harm_may_differ(trained: Path) -> None:
    given = inference(
        *("task/phantom_organ", "inferer/orientations", "dicom", "large_volume", "exported"),
        **{
            "patch_size": [64, 64, 64],
            "to_labels": [],
            "output_ext": ".nii",
            "memory_gb": 2,
            "device": "cpu",
        },
    )
    given |= {"spacing": (1, 1, 1.5), "network_def": {**given["network_def"], "_desc_": "The same."}}
    assert read_recipe(trained, given) is not None
    evaluated = for_inference(training("task/phantom_organ", "evaluate", "loss/dice", max_epochs=3))
    assert read_recipe(trained, evaluated) is not None


def test_weights_without_a_recipe_of_theirs_are_said_to_be_so(
    trained: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The process died before the second file, or somebody put other weights there."""
    torch.save(nn.Linear(2, 1).state_dict(), trained)
    with caplog.at_level(logging.INFO):
        assert read_recipe(trained, INFERENCE) is None
        assert f"the recipe in {trained.parent} belongs to other weights than model.pt" in caplog.text
        trained.with_name("inference.json").unlink()
        assert read_recipe(trained, INFERENCE) is None
        assert f"{trained} has no recipe beside it" in caplog.text


def test_the_folder_of_the_config_is_what_monai_bundle_read() -> None:
    parser = ConfigParser({"checkpoint": {"_target_": "scripts.recipe.beside_config", "name": "model.pt"}})
    with pytest.raises(RuntimeError) as error:
        parser.get_parsed_content("checkpoint")
    assert "checkpoint is model.pt in the folder of the config, which only" in input_error(error.value)


@pytest.mark.parametrize("names", [1, 2, 3, 4])
def test_a_recipe_is_refused_with_weights_of_another_training(
    names: int, trained: Path, tmp_path: Path
) -> None:
    """The process died after so many of the four new files had got their names."""
    folder = tmp_path / "other"
    write_weights({"weight": torch.ones(1)}, folder / "model.pt", Recipe({"of": "the other"}, {}))
    for name in ("model.pt", "model.safetensors", *RECIPE)[:names]:
        (folder / name).replace(trained.with_name(name))
    (tmp_path / "only.json").write_text('{"only": ["@checkpoint"]}')
    files = [str(trained.with_name("inference.json")), str(tmp_path / "only.json")]
    if names == 4:
        run(*files, run_id="only")
        return
    with pytest.raises(RuntimeError) as error:
        run(*files, run_id="only")
    assert f"{trained}: not the weights that inference.json beside it" in input_error(error.value)


def test_spacing_by_the_header_follows_the_axes_of_the_patient(tmp_path: Path) -> None:
    affine = np.array([[0, 0, 3.0, 0], [-1.0, 0, 0, 0], [0, 2.0, 0, 0], [0, 0, 0, 1]])
    nib.save(nib.Nifti1Image(np.zeros((2, 2, 2), np.float32), affine), tmp_path / "a.nii.gz")
    assert read_spacing(tmp_path / "a.nii.gz") == [3.0, 1.0, 2.0]
    assert read_spacing(tmp_path / "a.png") is None


def test_a_nested_decoder_is_cut_at_inference():
    """Which of its heads are used, and how deep it is, does not touch the weights; its channels do."""
    trained = {"network_def": {"depth": "@depth", "mode": "@heads_mode", "channels": "@channels"}}
    trained |= {"depth": None, "heads_mode": "accurate", "channels": [4, 8]}
    given = {**trained, "depth": 1, "heads_mode": "fast", "channels": [4, 6]}
    assert list(contradictions(trained, given)) == [("channels", [4, 8], [4, 6])]
