"""What MONAI, the Model Zoo's checks and MONAI Label look for in configs/."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest
from monai.bundle import ConfigWorkflow

from bundle.phantom import Kind, write_phantom
from scripts.networks import UNet
from tests.commands import CONFIGS, ROOT

pytestmark = pytest.mark.workflow

TRAIN, INFERENCE, METADATA = (
    json.loads((CONFIGS / f"{name}.json").read_text(encoding="utf-8"))
    for name in ("train", "inference", "metadata")
)

#: Packages that metadata.json names by keys of their own.
OWN_KEYS = {"torch": "pytorch_version", "monai": "monai_version", "numpy": "numpy_version"}


def at(config: dict[str, Any], key: str) -> Any:
    """The value of an id such as "train::trainer::max_epochs"; KeyError where there is none."""
    here: Any = config
    for part in key.split("::"):
        here = here[part]
    return here


@pytest.mark.parametrize(
    "key",
    [
        *("bundle_root", "device", "dataset_dir", "network_def", "output_dir", "val_interval"),
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
