"""The JSON under configs agrees with itself: names exist, targets resolve, training and inference match."""

from __future__ import annotations

import inspect
import json
import pydoc
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ComponentLocator, ConfigParser

from bundle.runs.experiments import parser_of, read_experiment
from scripts.checkpoints import read_weights
from scripts.files import read_json, sha256
from scripts.recipe import for_inference
from tests.commands import CONFIGS, ROOT

pytestmark = pytest.mark.workflow

EVERY = sorted(CONFIGS.rglob("*.json"))
OVERLAYS = [
    file
    for folder in ("network", "loss", "inferer", "task")
    for file in sorted((CONFIGS / folder).glob("*.json"))
]
EXPERIMENTS = sorted((CONFIGS / "experiments").glob("*.json"))

BASES = ("train", "inference", "evaluate", "ensemble", "dicom", "exported", "multi_gpu_train")

#: Ids that an overlay adds on purpose; every other id of an overlay replaces one that is there.
ADDED = {
    "network/pretrained_efficientnet": {"decoder_channels", "pretrained"},
    "network/pretrained_resnet": {"decoder_channels", "pretrained"},
    "network/transunet": {"decoder_channels"},
    "network/unet3d2016": {"norm_affine"},
    "network/diffusion": {"noise_steps", "samples", "sampling_steps", "val_sampling_steps"},
    "network/dcsau": {"decoder_channels"},
    "network/fcdensenet": {"decoder_channels"},
    "network/unetplusplus": {"depth", "heads_mode"},
    "evaluate": {
        *("section", "tolerance", "cases", "dataset", "evaluator", "recipe"),
        *("validate::evaluator::iteration_update", "validate::dataloader::cases"),
    },
    "exported": set(),
    "loss/border_weights": {"w0", "sigma", "distance_to", "cells", "weigh", "join"},
    "multi_gpu_train": {"validate::sampler", "validate::dataloader::sampler"},
}

#: Ids of a task, or of an experiment, which no network brings along.
OF_A_TASK = {
    *("dataset_dir", "in_channels", "patch_size", "spacing", "geometry", "normalise", "seed", "fold"),
    *("batch_size", "samples_per_case", "steps_per_epoch", "learning_rate", "max_epochs", "val_interval"),
}

#: Ids of train.json and inference.json whose values differ on purpose.
DIFFERENT = {
    "to_labels",
    *("dataset_dir", "output_dir", "checkpoint", "interpolation", "run", "network", "runtime", "inferer"),
    "memory_format",
}


def read(name: str) -> dict[str, Any]:
    return json.loads((CONFIGS / f"{name}.json").read_text(encoding="utf-8"))


def name_of(file: Path) -> str:
    return str(file.relative_to(CONFIGS).with_suffix(""))


def components(config: Any) -> Iterator[dict[str, Any]]:
    """Every dictionary with a "_target_" inside a config."""
    if isinstance(config, dict):
        if "_target_" in config:
            yield config
        for value in config.values():
            yield from components(value)
    elif isinstance(config, list):
        for value in config:
            yield from components(value)


def has_id(config: dict[str, Any], key: str) -> bool:
    """Whether a config holds an id such as "train::trainer::max_epochs"."""
    here: Any = config
    for part in key.split("::"):
        if not isinstance(here, dict) or part not in here:
            return False
        here = here[part]
    return True


def test_there_are_configs_to_test() -> None:
    assert {name_of(file) for file in EVERY} >= {*BASES, "metadata"}
    assert len(OVERLAYS) >= 10
    assert len(EXPERIMENTS) >= 5


@pytest.mark.parametrize("file", EVERY, ids=name_of)
def test_json_is_an_object_without_double_keys(file: Path) -> None:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        assert len(keys) == len(set(keys)), f"{file.name} holds a key twice: {keys}"
        return dict(pairs)

    assert isinstance(json.loads(file.read_text(encoding="utf-8"), object_pairs_hook=once), dict)


@pytest.mark.parametrize("file", OVERLAYS, ids=name_of)
def test_overlay_replaces_only_ids_that_exist(file: Path) -> None:
    """MONAI adds a misspelt id in silence."""
    bases = (read("train"), read("inference"))
    unknown = {key for key in read(name_of(file)) if not any(has_id(base, key) for base in bases)}
    assert unknown == ADDED.get(name_of(file), set())


@pytest.mark.parametrize("name", [name for name in ADDED if not name.startswith("network/")])
def test_overlay_on_training_adds_only_what_it_means_to(name: str) -> None:
    assert {key for key in read(name) if not has_id(read("train"), key)} == ADDED[name]


def test_codes_are_those_of_the_task() -> None:
    """A task without any says so: those of inference.json are for the hippocampus alone."""
    inference = read("inference")
    assert inference["segments"].keys() == inference["labels"].keys() - {"background"}
    tasks = [name for name in map(name_of, OVERLAYS) if name.startswith("task/")]
    assert tasks
    for task in tasks:
        labels = read(task).get("labels", inference["labels"])
        assert read(task)["segments"].keys() in (set(), labels.keys() - {next(iter(labels))})
    assert "segments" not in read("dicom")


@pytest.mark.parametrize("name", [*BASES, *map(name_of, OVERLAYS)])
def test_every_target_resolves_and_takes_its_keywords(name: str) -> None:
    locator = ComponentLocator()
    for component in components(read(name)):
        target = component["_target_"]
        module = target if "." in target else locator.get_component_module_name(target)
        assert isinstance(module, str), f"{target}: MONAI knows {module}"
        found = pydoc.locate(module if "." in target else f"{module}.{target}")
        assert callable(found), f"{target} is not there"
        parameters = inspect.signature(found).parameters.values()
        if any(p.kind is p.VAR_KEYWORD for p in parameters):
            continue
        given = {key for key in component if not key.startswith("_")}
        assert given <= {p.name for p in parameters}, f"{target} does not take {given}"


def test_a_misspelt_target_would_be_found() -> None:
    assert ComponentLocator().get_component_module_name("SlidingWindowInferrer") is None
    assert pydoc.locate("scripts.networks.UNett") is None


@pytest.mark.parametrize("file", EXPERIMENTS, ids=name_of)
def test_experiment_names_files_and_ids_that_exist(file: Path) -> None:
    experiment = read(name_of(file))
    files = experiment.pop("config_file")
    assert files[0] == "configs/train.json"  # its folder fixes the bundle's root and the logging
    missing = [name for name in files if not (ROOT / name).is_file()]
    unknown = [key for key in experiment if not has_id(read("train"), key)]
    assert (missing, unknown) == ([], [])
    assert experiment["output_dir"] == f"$@bundle_root + '/runs/{file.stem}'"


def test_training_and_inference_share_their_values() -> None:
    train, inference = read("train"), read("inference")
    shared = train.keys() & inference.keys()
    assert {key for key in shared if train[key] != inference[key]} == DIFFERENT
    assert shared >= {
        *("spatial_dims", "in_channels", "labels", "out_channels", "network_def", "channels", "patch_size"),
        *("spacing", "window_inferer", "inferer", "geometry", "normalise", "amp"),
    }


@pytest.mark.parametrize(
    ("folder", "name"), [(ROOT / "models", "hippocampus"), (ROOT / "models/nuclei", "nuclei")]
)
def test_published_weights_have_the_recipe_of_their_experiment(folder: Path, name: str) -> None:
    """After a change of the configs: `write_recipe(Recipe(config, facts), files)` of what stands here."""
    files = [folder / "model.pt", folder / "model.safetensors"]
    config = for_inference(parser_of(read_experiment(CONFIGS / f"experiments/{name}.json", {})).get())
    facts = json.loads((folder / "metadata.json").read_text(encoding="utf-8"))
    assert facts["weights"] == {file.name: sha256(file) for file in files}
    checkpoint = {"_target_": "scripts.recipe.beside_config", "name": "model.pt"}
    assert read_json(folder / "inference.json") == {**config, "checkpoint": checkpoint}
    one, other = map(read_weights, files)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("name", ["inference", "evaluate", "large_volume"])
def test_the_recipe_is_compared_before_anything_is_read(name: str) -> None:
    assert read(name)["run"][:2] == ["$@set_up", "$@recipe"]


def merged(*names: str, **overrides: Any) -> ConfigParser:
    """Config files on top of each other, as the command line merges them, with overrides on top."""
    parser = ConfigParser()
    parser.read_config([CONFIGS / f"{name}.json" for name in names])
    parser.update(overrides)
    return parser


def count_parameters(parser: ConfigParser) -> int:
    with torch.device("meta"):  # shapes without the time and memory of 100 million weights
        network = parser.get_parsed_content("network_def")
    return sum(weights.numel() for weights in network.parameters())


@pytest.mark.parametrize(
    ("base", "file"),
    [("train", file) for file in OVERLAYS]
    + [("inference", file) for file in OVERLAYS if file.parent.name != "loss"],
    ids=lambda value: value if isinstance(value, str) else name_of(value),
)
def test_overlay_resolves(base: str, file: Path) -> None:
    """Network, loss and inferer of every overlay, on 16 channels or what the overlay says."""
    name = name_of(file)
    size = {
        "network/fcdensenet": [32, 64, 32],
        "network/mss": [192, 192, 48],
        **dict.fromkeys(("network/pretrained_efficientnet", "network/pretrained_resnet"), [64] * 3),
        "network/resenc": [64] * 3,
        "network/star_convex": [64] * 2,
        "network/swinunetr": [64] * 3,
        "network/unet2015": [188] * 3,
        "network/unet3d2016": [132, 132, 116],
    }.get(name)
    parser = merged(base, name, **({"patch_size": size, "spatial_dims": len(size)} if size else {}))
    assert count_parameters(parser) > 1e5
    of_training = ("loss", "label_size", "augment", "targets")
    for key in ("inferer", *(of_training if base == "train" else ("to_labels",))):
        assert parser.get_parsed_content(key) is not None


@pytest.mark.parametrize(
    ("overlays", "patch_size", "label_size", "parameters"),
    [
        # Ronneberger et al., 2015, figure 1
        (["task/phantom_cells", "network/unet2015"], [572, 572], (388, 388), None),
        # Cicek et al., 2016, figure 2 and section 2: 19069955 parameters for 3 channels and 3 classes
        (["network/unet3d2016"], [132, 132, 116], (44, 44, 28), 19_069_955),
    ],
    ids=["2015", "2016"],
)
def test_published_networks(
    overlays: list[str], patch_size: list[int], label_size: tuple[int, ...], parameters: int | None
) -> None:
    parser = merged("train", *overlays, patch_size=patch_size, in_channels=3)
    assert parser.get_parsed_content("label_size") == label_size
    assert parameters is None or count_parameters(parser) == parameters
    # beyond the image lies its mirror, in patches as in tiles
    assert parser.get_parsed_content("patch").mirrored
    assert parser.get_parsed_content("inferer").mirror


def test_one_number_of_a_list_is_changed_by_name() -> None:
    """In an overlay, an args file or a variant; what surrounds it stays."""
    parser, unchanged = merged("train", **{"patch::elastic_prob": 0.75}), merged("train")
    ours, theirs = (config.get_parsed_content("patch") for config in (parser, unchanged))
    assert (ours.elastic_prob, theirs.elastic_prob) == (0.75, 0.3)
    assert ours.affine_prob == theirs.affine_prob
    assert [type(step).__name__ for step in parser.get_parsed_content("augment")] == [
        *("CountClassesd", "RandSpatialPatchd", "RandGaussianNoised", "RandGaussianSmoothd"),
        *("RandScaleIntensityd", "RandShiftIntensityd", "RandAdjustContrastd"),
    ]


@pytest.mark.parametrize(
    "file", [*EVERY, *sorted((ROOT / "bundle/runs/variants").glob("*.json"))], ids=lambda file: file.stem
)
def test_no_config_names_a_place_in_a_list(file: Path) -> None:
    """A place names something else as soon as a list grows; slices with a step choose cases, not parts."""
    assert re.findall(r"@[\w:]+\[:?-?\d|::\d", re.sub(r"\[::\d+\]", "", file.read_text())) == []


def test_orientations_turn_whatever_predicts_the_windows() -> None:
    """A network with valid convolutions keeps its overlap-tile under the mean over the orientations."""
    tiny = {"patch_size": [104, 104], "channels": [2, 4, 4], "runtime": "torch", "amp": False}
    parser = merged(
        *("inference", "task/phantom_cells", "network/unet2015", "inferer/orientations"),
        **tiny,
        device="cpu",
    )
    torch.manual_seed(0)
    image = torch.randn(1, 1, 40, 52)
    network = parser.get_parsed_content("network_def").eval()
    tile = parser.get_parsed_content("window_inferer")
    expected = torch.zeros(1, 3, 40, 52)
    for turns in range(4):
        turned = image.rot90(turns, (2, 3))
        expected += tile(turned, network).softmax(1).rot90(-turns, (2, 3)) / 8
        expected += tile(turned.flip(2), network).softmax(1).flip(2).rot90(-turns, (2, 3)) / 8
    averaged = parser.get_parsed_content("inferer")(image, network).softmax(1)
    torch.testing.assert_close(averaged, expected, atol=1e-5, rtol=0)


def test_heads_of_mss_weigh_as_published() -> None:
    """Zhao et al., 2020: 0.6 for the highest, 0.1 for each of the four others."""
    parser = merged("train", "network/mss", patch_size=[64, 64, 16], channels=[4] * 6)
    with torch.device("meta"):
        outputs = parser.get_parsed_content("network_def")(torch.empty(2, 1, 64, 64, 16))
    weights = {name: term.weight for name, term in parser.get_parsed_content("heads_loss").heads.items()}
    assert weights == dict(zip(outputs, [0.6, 0.1, 0.1, 0.1, 0.1], strict=True))


@pytest.mark.parametrize("file", sorted((CONFIGS / "network").glob("*.json")), ids=name_of)
def test_a_network_leaves_to_a_task_what_is_the_tasks(file: Path) -> None:
    assert not OF_A_TASK & set(read(name_of(file)))
