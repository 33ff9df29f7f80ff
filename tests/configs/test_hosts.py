"""What MONAI, the Model Zoo's checks and MONAI Label look for in configs/."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.transforms import Invertd, SaveImaged

from bundle.data.phantom import Kind, write_phantom
from bundle.runs.experiments import parser_of
from bundle.ship.package import leave_probabilities_to_scoring
from scripts.networks import UNet
from tests.commands import CONFIGS, ROOT, TINY, read_array, run

pytestmark = pytest.mark.workflow

TRAIN, INFERENCE, METADATA = (
    json.loads((CONFIGS / f"{name}.json").read_text(encoding="utf-8"))
    for name in ("train", "inference", "metadata")
)

#: Packages that metadata.json names by keys of their own.
OWN_KEYS = {"torch": "pytorch_version", "monai": "monai_version", "numpy": "numpy_version"}


#: Each task as small as can be: its dimensions, its overlays and its generated data.
TASKS = {
    2: (["configs/task/phantom_cells.json"], Kind.CELLS, (64, 80)),
    3: ([], Kind.ORGAN, (24, 25, 26)),
}

#: The same sums in the server and here, whatever the processor.
EXACT = {"runtime": "torch", "amp": False}


def at(config: dict[str, Any], key: str) -> Any:
    """The value of an id such as "train::trainer::max_epochs"; KeyError where there is none."""
    here: Any = config
    for part in key.split("::"):
        here = here[part]
    return here


@pytest.mark.parametrize(
    "key",
    [
        *("bundle_root", "device", "dataset_dir", "network_def", "network", "output_dir", "val_interval"),
        *("train::trainer", "train::dataset", "train::inferer", "train::handlers"),
        *("train::trainer::max_epochs", "train::dataset::data"),
        *("validate::evaluator", "validate::handlers", "validate::dataset", "validate::dataset::data"),
    ],
)
def test_training_has_the_ids_that_hosts_override(key: str) -> None:
    assert at(TRAIN, key) is not None


@pytest.mark.parametrize(
    "key",
    [
        *("bundle_root", "device", "dataset_dir", "network_def", "output_dir", "inferer"),
        *("evaluator", "preprocessing", "postprocessing", "dataset", "dataset::data", "handlers"),
    ],
)
def test_inference_has_the_ids_that_hosts_override(key: str) -> None:
    assert at(INFERENCE, key) is not None


def test_transforms_are_compose() -> None:
    for config, key in [
        *((TRAIN, f"{part}::preprocessing") for part in ("train", "validate")),
        (TRAIN, "validate::postprocessing"),
        *((INFERENCE, key) for key in ("preprocessing", "postprocessing")),
    ]:
        assert at(config, key)["_target_"] == "Compose", key


@pytest.mark.parametrize(
    ("name", "kind", "data"), [("train", "train", "."), ("inference", "infer", "imagesTs")]
)
def test_monai_finds_its_properties(name: str, kind: str, data: str, tmp_path: Path) -> None:
    """MONAI's own list of what a bundle for training or inference defines."""
    write_phantom(Kind.ORGAN, tmp_path / "phantom", cases=4, size=(24, 24, 24))
    workflow = ConfigWorkflow(
        config_file=str(CONFIGS / f"{name}.json"),
        meta_file=str(CONFIGS / "metadata.json"),
        logging_file=False,
        workflow_type=kind,
        dataset_dir=str(tmp_path / "phantom" / data),
        output_dir=str(tmp_path / "output"),
    )
    workflow.initialize()
    assert workflow.check_properties() == []


def test_handlers_are_dictionaries() -> None:
    """MONAI Label calls .get on each entry."""
    for handlers in (TRAIN["train"]["handlers"], TRAIN["validate"]["handlers"], INFERENCE["handlers"]):
        assert handlers
        assert all(isinstance(handler, dict) and "_target_" in handler for handler in handlers)


def test_network_takes_the_dropout_that_scoring_sets() -> None:
    for config in (TRAIN, INFERENCE):
        assert config["network_def"]["_target_"] == "scripts.networks.UNet"
    assert "dropout" in inspect.signature(UNet).parameters


def test_configs_are_self_contained() -> None:
    """A "%file" reference resolves against the host's working directory."""
    for config in (TRAIN, INFERENCE):
        assert not re.search(r'"[^"]*%', json.dumps(config))


def test_version_is_in_the_changelog() -> None:
    assert METADATA["version"] in METADATA["changelog"]
    assert f'version = "{METADATA["version"]}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_packages_are_those_of_requirements() -> None:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    pinned = dict(re.findall(r"^([\w-]+)==([\w.]+)", "\n".join(lines), flags=re.MULTILINE))
    for package, key in OWN_KEYS.items():
        assert METADATA[key] == pinned.pop(package), package
    assert METADATA["required_packages_version"] == pinned
    assert METADATA["optional_packages_version"] == pinned  # the name that older MONAI reads


def test_data_format_is_that_of_the_configs() -> None:
    inputs, outputs = (METADATA["network_data_format"][part] for part in ("inputs", "outputs"))
    assert (list(inputs), list(outputs)) == (["image"], ["pred"])
    image, pred = inputs["image"], outputs["pred"]
    assert image["num_channels"] == INFERENCE["in_channels"]
    assert len(image["spatial_shape"]) == INFERENCE["spatial_dims"]
    assert pred["num_channels"] == len(INFERENCE["labels"])
    assert list(pred["channel_def"].items()) == [(str(i), name) for i, name in enumerate(INFERENCE["labels"])]


def inference(dims: int) -> dict[str, Any]:
    """The inference.json of a tiny package."""
    overrides = {key: TINY[dims][key] for key in ("patch_size", "channels")}
    files = ["configs/inference.json", *TASKS[dims][0]]
    config = parser_of({"config_file": files, **overrides, **EXACT}).get()
    leave_probabilities_to_scoring(config)
    return config


def served(config: dict[str, Any], weights: Path, image: Path, dropout: float = 0.0) -> Any:
    """What MONAI Label 0.8.5 makes of a bundle and an image (`BundleInferTask`), before it is written.

    Args:
        config: content of inference.json.
        weights: models/model.pt.
        image: the file.
        dropout: above 0 for scoring (`EpistemicScoring`), which samples and leaves out Invertd.
    """
    parser = ConfigParser(json.loads(json.dumps(config)))
    parser.config.update({"bundle_root": str(ROOT), "device": "cpu"})  # a string
    if dropout:
        parser.config["network_def"]["dropout"] = dropout
    network = parser.get_parsed_content("network_def").train(dropout > 0)
    network.load_state_dict(torch.load(weights, weights_only=True))
    data: Any = {"image": str(image), "image_path": str(image), "device": "cpu", "result_dtype": None}
    before = parser.get_parsed_content("preprocessing").transforms
    before[0]._loader.image_only = False
    for transform in before:
        data = transform(data)
    with torch.no_grad():
        data["pred"] = parser.get_parsed_content("inferer")(data["image"][None], network)[0]
    for transform in parser.get_parsed_content("postprocessing").transforms:
        if not isinstance(transform, (SaveImaged, Invertd) if dropout else SaveImaged):
            data = transform(data)
    return data["pred"]


@pytest.fixture(scope="module", params=TASKS)
def task(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Path, Path]:
    """Dimensions, a folder of generated data, and weights that nobody trained."""
    dims, folder = request.param, tmp_path_factory.mktemp("host")
    write_phantom(TASKS[dims][1], folder / "phantom", cases=6, size=TASKS[dims][2])
    torch.manual_seed(0)
    network = ConfigParser(inference(dims)).get_parsed_content("network_def")
    torch.save(network.state_dict(), folder / "model.pt")
    return dims, folder / "phantom", folder / "model.pt"


def test_served_is_what_our_inference_writes(task: tuple[int, Path, Path], tmp_path: Path) -> None:
    """On oblique and anisotropic volumes, and on pictures: in the smallest integers, without a third axis."""
    dims, data, weights = task
    tiny = {key: TINY[dims][key] for key in ("patch_size", "channels")}
    options = {"dataset_dir": str(data / "imagesTs"), "output_dir": str(tmp_path), "checkpoint": str(weights)}
    run("inference", *(str(ROOT / name) for name in TASKS[dims][0]), **options, **tiny, **EXACT)
    images = sorted((data / "imagesTs").iterdir())
    assert images
    for image in images:
        stem, dot, suffix = image.name.partition(".")
        own = read_array(tmp_path / f"{stem}_seg{dot}{suffix}")
        result = served(inference(dims), weights, image)
        assert isinstance(result, np.ndarray)
        assert result.dtype == own.dtype
        assert len(np.unique(own)) > 1
        np.testing.assert_array_equal(result.T if dims == 2 else result[0], own)


def test_scoring_gets_probabilities_of_a_sampling_network(task: tuple[int, Path, Path]) -> None:
    dims, data, weights = task
    image = min((data / "imagesTs").iterdir())
    samples = [served(inference(dims), weights, image, dropout=0.5) for _ in range(2)]
    for sample in samples:
        assert sample.shape[0] == 3
        assert torch.allclose(sample.sum(0), torch.ones(()), atol=1e-5)
    assert not torch.equal(*samples)


@pytest.mark.parametrize("validates", [True, False])
def test_host_trains(task: tuple[int, Path, Path], validates: bool, tmp_path: Path) -> None:
    """With the overrides of MONAI Label's `BundleTrainTask`, data alone, from the weights that are served.

    With fewer epochs than between two validations, and where no case was left to validate on.
    """
    dims, data, weights = task
    (tmp_path / "models").mkdir()
    (tmp_path / "models/model.pt").write_bytes(weights.read_bytes())
    labelled = [
        {"image": str(image), "label": str(data / "labelsTr" / image.name)}
        for image in sorted((data / "imagesTr").iterdir())
    ]
    loader = {
        "_target_": "CheckpointLoader",
        "load_path": str(tmp_path / "models/model.pt"),
        "load_dict": {"model": "$@network"},
        "strict": False,
    }
    run(
        "train",
        *(str(ROOT / name) for name in TASKS[dims][0]),
        **{
            "bundle_root": str(tmp_path),
            "device": "cpu",
            "train#trainer#max_epochs": 1,
            "train#dataset#data": labelled[1:],
            "validate#dataset#data": labelled[:1] if validates else [],
            "train#handlers": [loader, *TRAIN["train"]["handlers"]],
        },
        **TINY[dims],
        learning_rate=0.0,  # what is kept is what was loaded
    )
    before, after = (torch.load(file, weights_only=True) for file in (weights, tmp_path / "models/model.pt"))
    assert (tmp_path / "models/model.pt").read_bytes() != weights.read_bytes()
    assert list(after) == list(before)
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, msg=name)
