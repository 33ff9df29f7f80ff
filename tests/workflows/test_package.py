"""`python -m bundle package`: what it writes runs alone, elsewhere, and says the same."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from monai.bundle import ConfigParser

import bundle.ship.package
from bundle.runs.experiments import parser_of, read_experiment
from bundle.ship.package import CARDS, by_epochs, list_large_files, metadata, read_card
from scripts.checkpoints import read_weights
from scripts.errors import InputError
from scripts.files import sha256
from scripts.networks import UNet
from scripts.recipe import Recipe, for_inference, read_recipe, write_weights
from scripts.settings import check
from tests.commands import (
    CONFIGS,
    TINY,
    as_options,
    bundle_run,
    command,
    config_files,
    forked,
    invoke,
    last_line,
    read_array,
    written,
)
from tests.workflows.packaging import CARD, package

pytestmark = pytest.mark.workflow


def test_what_leaves_the_house(packaged: Path) -> None:
    assert sorted(path.name for path in packaged.iterdir()) == [
        "LICENSE",
        "configs",
        "docs",
        "models",
        "scripts",
    ]
    names = ["inference.json", "metadata.json", "model.pt", "model.safetensors"]
    assert written(packaged / "models") == names
    assert not list(packaged.rglob("__pycache__"))
    state = torch.load(packaged / "models/model.pt", weights_only=True)
    assert all(isinstance(value, torch.Tensor) for value in state.values())


@pytest.mark.parametrize("files", [["train"], ["train", "evaluate"], ["inference"], ["inference", "dicom"]])
def test_a_package_knows_its_own_ids_and_no_others(files: list[str], packaged: Path, tmp_path: Path) -> None:
    """Of the configs that it has itself: the tasks and losses of this repository stay here."""
    configs = packaged / "configs"
    parser = ConfigParser()
    parser.read_config([configs / f"{name}.json" for name in files])
    parser["output_dir"] = str(tmp_path)
    check(parser, configs=[configs])
    parser["chanels"] = [4, 8]
    with pytest.raises(InputError, match=r"--chanels \[4, 8\]: no such id; did you mean channels"):
        check(parser, configs=[configs])


def test_codes_are_those_of_the_task(packaged: Path) -> None:
    """Of these labels nobody knows any; those of the hippocampus stay at home."""
    dicom, inference = (
        json.loads((packaged / f"configs/{name}.json").read_text()) for name in ("dicom", "inference")
    )
    assert "segments" not in dicom
    assert inference["segments"] == {}


def test_package_carries_the_recipe(packaged: Path) -> None:
    """The same tensors twice, and what they were trained with as far as it is known."""
    config = json.loads((packaged / "configs/inference.json").read_text())
    weights = [read_weights(packaged / "models" / name) for name in ("model.pt", "model.safetensors")]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    for name in ("model.pt", "model.safetensors"):
        recipe = read_recipe(packaged / "models" / name, config)
        assert recipe is not None
        assert recipe.config["network_def"] == config["network_def"]
        assert recipe.facts.keys() == {"weights"}  # nobody trained them


def test_an_experiment_that_contradicts_the_training_is_refused(
    packaged: Path, workshop: Path, tmp_path: Path
) -> None:
    """With the facts of the training where it agrees."""
    trained = tmp_path / "trained"
    experiment = json.loads((workshop / "experiment.json").read_text())
    weights = read_weights(packaged / "models/model.pt")
    config = for_inference(parser_of(experiment).get())
    write_weights(weights, trained / "model.pt", Recipe(config, {"version": "0.0.1"}))
    assert package(workshop, tmp_path / "a", checkpoint=trained / "model.safetensors").exit_code == 0
    facts = json.loads((tmp_path / "a" / CARD["folder"] / "models/metadata.json").read_text())
    assert facts["version"] == "0.0.1"
    other = tmp_path / "experiment.json"
    other.write_text(json.dumps({**experiment, "normalise": []}))
    result = package(workshop, tmp_path / "b", args_file=other, checkpoint=trained / "model.pt")
    assert "normalise was [NormalizeIntensityd] and is []; segment with" in str(result.exception)
    assert not (tmp_path / "b").exists()


@pytest.fixture(scope="module")
def ensemble(workshop: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An args file as `crossval` writes it: two networks that nobody trained, and what was tuned."""
    folder = tmp_path_factory.mktemp("folds")
    config = for_inference(parser_of(json.loads((workshop / "experiment.json").read_text())).get())
    network = ConfigParser(config).get_parsed_content("network_def")
    for fold in (0, 1):
        torch.manual_seed(fold)
        weights = {
            name: torch.randn_like(value) if value.is_floating_point() else value
            for name, value in network.state_dict().items()
        }
        write_weights(weights, folder / f"fold{fold}/model.pt", Recipe(config, {"version": "0.0.1"}))
    (folder / "tuned.json").write_text(json.dumps({"to_labels::0::min_size": 5}))
    checkpoints = [str(folder / f"fold{fold}/model.pt") for fold in (0, 1)]
    files = [str(folder / "fold0/inference.json"), "configs/ensemble.json", str(folder / "tuned.json")]
    (folder / "ensemble.json").write_text(json.dumps({"config_file": files, "checkpoint": checkpoints}))
    return folder / "ensemble.json"


def package_ensemble(workshop: Path, ensemble: Path, output: Path) -> Path:
    options = {"args_file": ensemble, "card": workshop / "card.json", "output_dir": output}
    result = invoke("package", *as_options(**options))
    assert result.exit_code == 0, result.output + str(result.exception)
    return output / CARD["folder"]


@pytest.mark.long
def test_an_ensemble_is_packaged_as_one_network(
    workshop: Path, ensemble: Path, cells: Path, tmp_path: Path
) -> None:
    """It segments as the ensemble does, passes `verify`, and has nothing of a training."""
    made = package_ensemble(workshop, ensemble, tmp_path / "dist")
    names = ["dicom.json", "exported.json", "inference.json", "logging.conf", "metadata.json"]
    assert written(made / "configs") == names
    assert written(made / "models") == ["inference.json", "metadata.json", "model.pt", "model.safetensors"]
    config = json.loads((made / "configs/inference.json").read_text())
    assert config["network_def"]["_target_"] == "scripts.networks.Ensemble"
    assert config["to_labels"][0]["min_size"] == 5
    facts = json.loads((made / "models/metadata.json").read_text())
    assert facts["members"] == [sha256(ensemble.parent / f"fold{fold}/model.pt") for fold in (0, 1)]
    card = (made / "docs/README.md").read_text()
    assert "the mean of 2 of scripts.networks.UNet" in card
    assert "train" not in card.partition("## MONAI Bundle Commands")[2]

    args = json.loads(ensemble.read_text())
    for name, folder, files, options in (
        ("folds", CONFIGS.parent, args["config_file"], ("--checkpoint", str(args["checkpoint"]))),
        ("package", made, ["configs/inference.json"], ()),
    ):
        where = ("--dataset_dir", str(cells / "imagesTs"), "--output_dir", str(tmp_path / name))
        probabilities = ("--save_probabilities", "True")
        done = forked(*bundle_run(*where, *probabilities, *options, files=files), cwd=folder)
        assert done.returncode == 0, done.stderr
    images = written(tmp_path / "folds")
    assert images == written(tmp_path / "package")
    for image in images:
        one, other = (read_array(tmp_path / name / image) for name in ("folds", "package"))
        assert np.array_equal(one, other), image
        assert len(np.unique(one)) > 1

    checked = invoke("verify", made)
    assert checked.exit_code == 0, checked.output
    more = as_options(bundle=made, format="pt2", output_dir=tmp_path / "more", dataset_dir=cells)
    assert "the configs only segment" in str(invoke("export", *more).exception)


def test_one_file_that_is_named_twice_is_two_members(workshop: Path, ensemble: Path, tmp_path: Path) -> None:
    args = json.loads(ensemble.read_text())
    (tmp_path / "args.json").write_text(json.dumps({**args, "checkpoint": 2 * args["checkpoint"][:1]}))
    made = package_ensemble(workshop, tmp_path / "args.json", tmp_path / "dist")
    weights = read_weights(made / "models/model.pt")
    assert {name.split(".")[1] for name in weights} == {"0", "1"}


def test_an_ensemble_that_cannot_be_packaged(workshop: Path, ensemble: Path, tmp_path: Path) -> None:
    args = json.loads(ensemble.read_text())

    def refusal(command: str, **change: object) -> str:
        given = {key: value for key, value in {**args, **change}.items() if value is not None}
        (tmp_path / "args.json").write_text(json.dumps(given))
        options = {"args_file": tmp_path / "args.json", "output_dir": tmp_path / command}
        card = {"card": workshop / "card.json"} if command == "package" else {}
        return str(invoke(command, *as_options(**options, **card)).exception)

    assert "names no checkpoint: give --checkpoint" in refusal("package", checkpoint=None)
    missing = [args["checkpoint"][0], str(tmp_path / "none.pt")]
    assert "none.pt" in refusal("package", checkpoint=missing)
    trained = json.loads((workshop / "experiment.json").read_text())
    assert "trains one network, and checkpoint names 2" in refusal("package", **trained)
    assert not (tmp_path / "package").exists()
    assert "names the checkpoints of an ensemble" in refusal("export")


def test_metadata_and_model_card(packaged: Path) -> None:
    about = json.loads((packaged / "configs/metadata.json").read_text())
    ours = json.loads((CONFIGS / "metadata.json").read_text())
    assert about["version"] == ours["version"] in about["changelog"]
    assert about["changelog"]["0.0.1"] == "older"
    assert about["required_packages_version"] == ours["required_packages_version"]
    assert about["eval_metrics"] == {"ap50": 0.5}
    formats = about["network_data_format"]
    assert formats["inputs"]["image"]["spatial_shape"] == ["16*n", "16*n"]
    assert formats["outputs"]["pred"]["channel_def"] == {"0": "background", "1": "interior", "2": "border"}
    readme = (packaged / "docs/README.md").read_text()
    for heading in (
        "# Model Overview",
        "## Data",
        "## Training configuration",
        "## Performance",
        "# License",
    ):
        assert f"{heading}\n" in readme
    assert sha256(packaged / "models/model.pt") in readme
    assert "| ap50 | 0.5000 | not stated | all | not stated |" in readme
    for heading in (
        "Worst cases",
        "Calibration",
        "Predicted Dice",
        "Images unlike those of the training",
        "Groups",
    ):
        assert f"### {heading}\n\nNot " in readme
    assert "- Whether it is better for some groups of cases than for others: not stated.\n" in readme
    assert "- Knows nothing else.\n" in readme


def test_postprocessing_leaves_probabilities_to_scoring(packaged: Path) -> None:
    config = json.loads((packaged / "configs/inference.json").read_text())
    assert config["postprocessing"]["transforms"] == (
        "$@restore + @maps + @to_labels + @save + @deliver if @network_def::dropout == 0.0 else @restore"
    )


def test_the_format_of_our_own_metadata_is_what_the_network_says() -> None:
    ours = json.loads((CONFIGS / "metadata.json").read_text())
    experiment = read_experiment(CONFIGS / "experiments/hippocampus.json", {})
    inference = for_inference(parser_of(experiment).get())
    network = ConfigParser(inference).get_parsed_content("network_def")
    made = metadata(read_card(CARDS / "hippocampus.json"), inference, network, ours["eval_metrics"])
    assert made["network_data_format"] == ours["network_data_format"]
    assert {**made, "changelog": ours["changelog"]} == ours


def test_valid_convolutions_have_their_own_sizes() -> None:
    experiment = read_experiment(CONFIGS / "experiments/unet2015_em.json", {})
    inference = for_inference(parser_of(experiment).get())
    with torch.device("meta"):
        network = ConfigParser(inference).get_parsed_content("network_def")
    formats = bundle.ship.package.data_format(inference, network, "EM")
    assert formats["inputs"]["image"]["spatial_shape"] == [572, 572]
    assert formats["outputs"]["pred"]["spatial_shape"] == [388, 388]


def test_zip_is_the_folder_and_the_same_again(workshop: Path, packaged: Path, tmp_path: Path) -> None:
    assert package(workshop, tmp_path).exit_code == 0
    assert package(workshop, tmp_path).exit_code == 0  # an earlier package is replaced
    again = tmp_path / "cells_segmentation_unet.zip"
    assert again.read_bytes() == packaged.with_suffix(".zip").read_bytes()
    with zipfile.ZipFile(again) as archive:
        assert archive.namelist() == [f"{packaged.name}/{name}" for name in written(packaged)]
        for name in archive.namelist():
            assert archive.read(name) == (packaged.parent / name).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == [packaged.name, again.name]


def test_packaged_bundle_runs_alone(packaged: Path, workshop: Path, cells: Path, tmp_path: Path) -> None:
    """From another folder: it segments as the repository does, and it trains."""
    images = cells / "imagesTs"
    options = ["--dataset_dir", str(images), "--output_dir", str(tmp_path / "alone"), "--runtime", "torch"]
    done = command(*bundle_run(*options, files=[str(packaged / "configs/inference.json")]), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    here = {key: TINY[2][key] for key in ("patch_size", "channels")}
    here |= {"dataset_dir": images, "output_dir": tmp_path / "here", "runtime": "torch"}
    here |= {"checkpoint": workshop / "model.pt"}
    options = [part for key, value in here.items() for part in (f"--{key}", str(value))]
    files = config_files("inference", "task/phantom_cells")
    done = command(*bundle_run(*options, files=files), cwd=tmp_path)  # both on one thread
    assert done.returncode == 0, done.stderr
    assert written(tmp_path / "alone") == written(tmp_path / "here") != []
    for name in written(tmp_path / "alone"):
        assert (read_array(tmp_path / "alone" / name) == read_array(tmp_path / "here" / name)).all()
    options = ["--dataset_dir", str(cells), "--output_dir", str(tmp_path / "trained"), "--max_epochs", "1"]
    done = command(*bundle_run(*options, files=[str(packaged / "configs/train.json")]), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "trained/checkpoints/last.pt").is_file()


@pytest.mark.parametrize("whose", ["packaged", "our own"])
def test_monai_verifies_input_and_output(whose: str, packaged: Path) -> None:
    root = packaged if whose == "packaged" else CONFIGS.parent
    files = {"config_file": "configs/inference.json", "meta_file": "configs/metadata.json"}
    options = [part for key, value in files.items() for part in (f"--{key}", value)]
    done = command("-m", "monai.bundle", "verify_net_in_out", "network_def", *options, cwd=root)
    assert done.returncode == 0, done.stderr


def test_minutes_are_packaged_as_epochs(tmp_path: Path) -> None:
    """Hosts set a number of epochs."""
    experiment = {"config_file": ["configs/train.json", "configs/task/phantom_cells.json"]}
    model, last = tmp_path / "model.pt", tmp_path / "checkpoints/last.pt"
    assert by_epochs(experiment, model) == experiment
    timed = {**experiment, "minutes": 30}
    with pytest.raises(InputError, match=r"sets minutes, and .*model\.pt has no length\.json beside it"):
        by_epochs(timed, model)
    planned = {"max_epochs": 25, "steps_per_epoch": 7, "val_interval": 5}
    (tmp_path / "length.json").write_text(json.dumps({"minutes": 30, **planned}))
    for checkpoint in (model, last):
        assert by_epochs(timed, checkpoint) == {**experiment, "minutes": None, **planned}


def test_large_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models/model.pt").write_bytes(b"x" * 100)
    (tmp_path / "small.txt").write_bytes(b"x" * 10)
    list_large_files(tmp_path, None)
    assert not (tmp_path / "large_files.yml").exists()
    monkeypatch.setattr(bundle.ship.package, "LARGE_FILE", 50)
    with pytest.raises(InputError, match=r"model\.pt has .*give --large_files_url"):
        list_large_files(tmp_path, None)
    list_large_files(tmp_path, "https://example.org/files/")
    (entry,) = yaml.safe_load((tmp_path / "large_files.yml").read_text())["large_files"]
    assert entry == {
        "path": "models/model.pt",
        "url": "https://example.org/files/models/model.pt",
        "hash_val": sha256(tmp_path / "models/model.pt"),
        "hash_type": "sha256",
    }


def test_weights_of_another_network_leave_nothing_behind(workshop: Path, tmp_path: Path) -> None:
    other = UNet(spatial_dims=2, in_channels=1, out_channels=3, channels=(4, 8))
    torch.save(other.state_dict(), tmp_path / "other.pt")
    result = package(workshop, tmp_path / "dist", checkpoint=tmp_path / "other.pt")
    assert isinstance(result.exception, InputError)
    assert "a checkpoint of another network" in str(result.exception)
    assert not (tmp_path / "dist").exists()


def test_foreign_folder_stays(workshop: Path, tmp_path: Path) -> None:
    (tmp_path / CARD["folder"]).mkdir()
    (tmp_path / CARD["folder"] / "mine.txt").write_text("mine")
    result = package(workshop, tmp_path)
    assert "holds something other than an earlier package" in str(result.exception)
    assert written(tmp_path) == [f"{CARD['folder']}/mine.txt"]


def test_cards_are_complete(tmp_path: Path) -> None:
    for file in CARDS.glob("*.json"):
        read_card(file)
    (tmp_path / "card.json").write_text(json.dumps({**CARD, "limits": []}))
    with pytest.raises(InputError, match=r"card\.json has no 'limits': give metadata, folder"):
        read_card(tmp_path / "card.json")
    (tmp_path / "card.json").write_text(json.dumps({**CARD, "metadata": {"name": "Cells"}}))
    with pytest.raises(InputError, match=r"card\.json has no 'task' in 'metadata': give name, task"):
        read_card(tmp_path / "card.json")
    with pytest.raises(InputError, match=r"none\.json is not there: write the texts"):
        read_card(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("classes", "told"),
    [
        (
            "3 channels of logits: background, anterior, posterior",
            "and the network tells background, interior",
        ),
        (
            "4 channels: background, interior, border, other",
            "take the card of this model, or write '3 channels",
        ),
        ("2 channels: interior and border", "interior, border apart"),
    ],
)
def test_the_card_of_another_model_is_refused(
    workshop: Path, tmp_path: Path, classes: str, told: str
) -> None:
    card = {**CARD, "metadata": {**CARD["metadata"], "pred_classes": classes}}
    (tmp_path / "card.json").write_text(json.dumps(card))
    assert told in str(package(workshop, tmp_path / "dist", card=tmp_path / "card.json").exception)
    assert not (tmp_path / "dist").exists()


def test_figures_of_crossval_go_along(workshop: Path, ensemble: Path, tmp_path: Path) -> None:
    """Those beside the ensemble, with intervals, calibration and groups, and without the name of a case."""
    row = {"class": "mean", "score": "ap50", "mean": 0.81, "low": 0.7, "high": 0.9, "cases": 8, "subjects": 4}
    group = {"attribute": "site", "group": "A", **row}
    measure = {"region": "overall", "measure": "ece", "before": 0.2, "before_low": 0.1, "before_high": 0.3}
    measure |= {"after": 0.02, "after_low": None, "after_high": None}
    content = {
        "measure": "instances",
        "folds": {"0": 4, "1": 4},
        "out_of_fold": [{**row, "folds": {"0": 0.8, "1": 0.82}}],
        "worst": [{"case": "jane", "fold": 1, "ap50": 0.25}],
        "testing": [{**row, "mean": 0.77}],
        "calibration": {"cases": 8, "subjects": 4, "helps": True, "calibration": {}, "measures": [measure]},
        "unlike": {"flagged": 1, "cases": 8, "low": 0.003, "high": 0.527},
        "groups": {"class": "mean", "told": ["site: no gap."], "attributes": [{"groups": [group]}]},
        "data": {"name": "mine", "cases": 8, "subjects": 4, "held_out": 2},
        "versions": {"version": "0.0.1", "monai_version": "1.6.1"},
    }
    for file in ensemble.parent.glob("*.json"):
        (tmp_path / file.name).write_text(file.read_text())
    (tmp_path / "summary.json").write_text(json.dumps(content))
    made = package_ensemble(workshop, tmp_path / "ensemble.json", tmp_path / "dist")
    assert json.loads((made / "configs/metadata.json").read_text())["eval_metrics"] == {"ap50": 0.77}
    held = json.loads((made / "docs/summary.json").read_text())
    assert held == {**content, "worst": [{"fold": 1, "ap50": 0.25}]}
    readme = (made / "docs/README.md").read_text()
    for line in (
        "8 cases of 4 subjects in 2 folds, 2 more held out. Made with version 0.0.1; monai 1.6.1.",
        "| ap50 | 0.7700 | 0.7000 to 0.9000 | all | 8 |",
        "| ap50 | 0.8100 | 0.7000 to 0.9000 | all | 8 |",
        "| 1 | 0.2500 |",
        "Of 8 sound cases 1 are taken for unlike the others (95 % binomial interval 0.003 to 0.527).",
        "| overall | expected calibration error | 0.2000 (0.1000 to 0.3000) | 0.0200 |",
        "| site | A | ap50 | 0.8100 | 0.7000 | 0.9000 | 8 | 4 |",
        "- Which of its results are good without a look at the truth: not stated.",
    ):
        assert f"{line}\n" in readme
    assert "jane" not in readme
    (tmp_path / "summary.json").write_text(json.dumps({"out_of_fold": []}))
    options = {"args_file": tmp_path / "ensemble.json", "card": workshop / "card.json"}
    refused = invoke("package", *as_options(**options, output_dir=tmp_path / "no"))
    assert "summary.json has no scores with a mean" in str(refused.exception)


def test_command_says_what_is_wrong_in_a_sentence(workshop: Path, tmp_path: Path) -> None:
    given = ["--args_file", workshop / "experiment.json", "--checkpoint", tmp_path / "none.pt"]
    done = forked("-m", "bundle", "package", *map(str, given), "--output_dir", "out", cwd=CONFIGS.parent)
    assert done.returncode == 1
    assert last_line(done).startswith("error: ")
