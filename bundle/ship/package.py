"""`python -m bundle package`: a trained experiment as a bundle of its own, in the form of MONAI's Model Zoo.

The overlays of the experiment are resolved into one train.json and one inference.json, of an experiment that
only segments, such as an ensemble, into the latter alone; metadata, model card
and licence of the data come from a card (`bundle/ship/cards`), the rest from the run and from the network
itself. What leaves the house is `configs`, `models`, `scripts`, `docs` and `LICENSE`, and the same again as a
zip that is the same byte for byte when it is made again.
"""

from __future__ import annotations

import json
import re
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import typer
from monai.bundle import ConfigParser
from monai.utils import ensure_tuple
from torch import Tensor

from bundle.runs.experiments import PLACES, parser_of, read_experiment
from bundle.runs.trainings import IS_OF_CROSSVAL, SUMMARY
from bundle.ship.audit import audit_experiment
from bundle.ship.measured import (
    calibration,
    groups,
    means_of,
    not_known,
    performance,
    read_measured,
)
from scripts.checkpoints import check_weights, read_weights
from scripts.compute.length import FILE, read_plan
from scripts.compute.quantised import int8_files
from scripts.errors import InputError
from scripts.files import atomic_write, read_json, replace_folder, sha256, workshop, write_json
from scripts.labels import class_names
from scripts.networks import Ensemble
from scripts.networks.sizes import Sizes
from scripts.process import bundle_root
from scripts.recipe import OF_TRAINING, Recipe, for_inference, read_recipe, with_references, write_weights
from scripts.settings import CONFIGS

CARDS = Path(__file__).with_name("cards")

#: What a card says; the first of them goes into metadata.json as it stands, and holds at least ABOUT.
CARD = ("metadata", "folder", "modality", "data", "limits", "data_license")
ABOUT = (
    *("name", "task", "description", "authors", "copyright", "data_source", "data_type"),
    *("image_classes", "label_classes", "pred_classes", "intended_use", "references"),
)

#: Files of the repository that go along unchanged; overlays on train.json where there is one.
TAKEN_ALONG = ("LICENSE", "configs/logging.conf", "configs/exported.json", "configs/dicom.json")
WITH_TRAINING = ("configs/evaluate.json", "configs/multi_gpu_train.json", "configs/ensemble.json")

#: The Model Zoo's limit; what is larger is named in large_files.yml.
LARGE_FILE = 25 * 1024**2

#: The earliest time that a zip file can hold.
ZIP_TIME = (1980, 1, 1, 0, 0, 0)


def package(
    args_file: Path,
    output_dir: Path,
    checkpoint: Path | None,
    card: Path | None,
    scores: Path | None,
    large_files_url: str | None,
    ids: dict[str, Any],
) -> None:
    """Carry out `bundle.cli.package`, whose arguments these are."""
    experiment = read_experiment(args_file, ids)
    checkpoints = [checkpoint] if checkpoint else _named(args_file, experiment)
    if len(checkpoints) == 1:
        experiment = by_epochs(experiment, checkpoints[0])
    audit_experiment(experiment, ids)
    texts = read_card(card or CARDS / args_file.name)
    own = (*PLACES, *OF_TRAINING)
    config = parser_of({key: value for key, value in experiment.items() if key not in own}).get()
    train = with_references(config, list(read_json(CONFIGS / "train.json"))) if "train" in config else None
    if train and len(checkpoints) > 1:
        raise InputError(
            f"{args_file} trains one network, and checkpoint names {len(checkpoints)}: give one, or for an "
            "ensemble the ensemble.json of crossval"
        )
    inference = for_inference(config) if train else segmenting(config)
    network = _network(inference)
    weights = [read_weights(path) for path in checkpoints]
    recipes = [read_recipe(path, inference) for path in checkpoints]
    for path, member in zip(checkpoints, weights, strict=True):
        check_weights(network, member, path)
    facts = {} if recipes[0] is None else recipes[0].facts
    if len(checkpoints) > 1:
        inference["network_def"] = _ensemble(inference["network_def"], len(checkpoints))
        network = _network(inference)
        facts = {**facts, "members": [sha256(path) for path in checkpoints]}
    recipe = Recipe(dict(inference), facts)
    leave_probabilities_to_scoring(inference)
    require_classes(texts, inference, card or CARDS / args_file.name)
    measured = read_measured(scores or of_run(args_file))

    place = output_dir / texts["folder"]
    if place.exists() and not (place / "configs" / "metadata.json").is_file() and any(place.iterdir()):
        raise InputError(f"{place} holds something other than an earlier package: give another --output_dir")
    with workshop(output_dir) as folder:
        made = folder / texts["folder"]
        for name in (*TAKEN_ALONG, *(WITH_TRAINING if train else ())):
            _copy(Path(bundle_root(), name), made / name)
        for source in sorted(Path(bundle_root(), "scripts").rglob("*.py")):
            _copy(source, made / source.relative_to(bundle_root()))
        for name, config in (
            ("train", train),
            ("inference", inference),
            ("metadata", metadata(texts, inference, network, means_of(measured))),
        ):
            if config is not None:
                (made / "configs" / f"{name}.json").write_text(json.dumps(config, indent=4) + "\n", "utf-8")
        (made / "docs").mkdir()
        model = made / "models" / "model.pt"
        write_weights(joined(weights), model, recipe)
        for path in checkpoints if len(checkpoints) == 1 else ():
            for source, target in zip(int8_files(path), int8_files(model), strict=True):
                if source.is_file():
                    _copy(source, target)
        readme = model_card(texts, train or inference, network, measured, sha256(model))
        (made / "docs" / "README.md").write_text(readme, encoding="utf-8")
        if measured:
            write_json(made / "docs" / SUMMARY, measured)
        (made / "docs" / "data_license.txt").write_text(_lines(texts["data_license"]), encoding="utf-8")
        list_large_files(made, large_files_url)
        replace_folder(made, place)
    with atomic_write(output_dir / f"{texts['folder']}.zip") as temporary:
        write_zip(place, temporary)
    typer.echo(f"Wrote {place} and {output_dir / texts['folder']}.zip")


def of_run(args_file: Path) -> Path | None:
    """The summary.json of `crossval` beside its `ensemble.json`; None of any other args file."""
    summary = args_file.with_name(SUMMARY)
    return summary if summary.is_file() and IS_OF_CROSSVAL in read_json(summary) else None


def joined(members: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The weights of one network, or those of an `Ensemble` of several.

    Args:
        members: state dictionaries of networks of one kind.
    """
    if len(members) == 1:
        return dict(members[0])
    return {
        f"members.{index}.{name}": value
        for index, member in enumerate(members)
        for name, value in member.items()
    }


def _named(args_file: Path, experiment: Mapping[str, Any]) -> list[Path]:
    """The files of weights that an args file names.

    Raises:
        InputError: it names none.
    """
    named = ensure_tuple(experiment.get("checkpoint") or ())
    if not named or not all(isinstance(path, str) for path in named):
        raise InputError(f"{args_file} names no checkpoint: give --checkpoint, the model.pt of the training")
    return [Path(bundle_root(), path) for path in named]


def segmenting(config: Mapping[str, Any]) -> dict[str, Any]:
    """The inference config of an experiment that only segments, for weights in one file, `models/model.pt`.

    Args:
        config: inference.json with overlays and ids on top.
    """
    own = read_json(CONFIGS / "inference.json")
    return with_references({**config, **{key: own[key] for key in ("checkpoint", "network")}}, list(own))


def _ensemble(network_def: Mapping[str, Any], count: int) -> dict[str, Any]:
    """The `network_def` of several networks as one, with `dropout` where hosts look for it."""
    names = [f"network {number}" for number in range(1, count + 1)]
    made = {"_target_": "scripts.networks.Ensemble", "network": dict(network_def), "checkpoints": names}
    if "dropout" in network_def:
        made |= {"network": {**network_def, "dropout": "@network_def::dropout"}}
        made |= {"dropout": network_def["dropout"]}
    return made


def by_epochs(experiment: dict[str, Any], checkpoint: Path) -> dict[str, Any]:
    """An experiment whose length is said in epochs, in which hosts set it; for minutes, what was planned.

    Args:
        experiment: with the ids of its training.
        checkpoint: beside which, or above whose folder, `length.json` lies.

    Raises:
        InputError: it was trained for some minutes, and there is no `length.json`.
    """
    if parser_of(experiment).get().get("minutes") is None:
        return experiment
    folders = (checkpoint.parent, checkpoint.parent.parent)
    file = next((folder / FILE for folder in folders if (folder / FILE).is_file()), None)
    if file is None:
        raise InputError(
            f"the experiment sets minutes, and {checkpoint} has no {FILE} beside it, which says how many "
            "epochs that were: give the checkpoint in the folder of its training"
        )
    return {**experiment, "minutes": None, **asdict(read_plan(file))}


def read_card(path: Path) -> dict[str, Any]:
    """The texts of a bundle that no run can tell.

    Raises:
        InputError: it is missing, or lacks one of CARD or ABOUT.
    """
    if not path.is_file():
        raise InputError(
            f"{path} is not there: write the texts of your bundle into a file after one of {CARDS}, and name "
            "it with --card"
        )
    card = read_json(path)
    for what, texts, keys in (("", card, CARD), (" in 'metadata'", card.get("metadata", {}), ABOUT)):
        missing = [key for key in keys if not texts.get(key)]
        if missing:
            raise InputError(f"{path} has no {missing[0]!r}{what}: give {', '.join(keys)}")
    return card


def require_classes(card: Mapping[str, Any], inference: Mapping[str, Any], path: Path) -> None:
    """Refuse the card of a model with other classes.

    Args:
        card: see `read_card`.
        inference: the resolved inference.json.
        path: of the card, for messages.

    Raises:
        InputError: its `pred_classes` lists others, or none.
    """
    names = class_names(ConfigParser(dict(inference)).get_parsed_content("labels"))
    told = str(card["metadata"]["pred_classes"])
    said, meant = (re.sub(r",?\s+and\s+", ", ", text.lower()) for text in (told, ", ".join(names)))
    if not re.search(rf"(^|:\s*){re.escape(meant)}\s*\.?$", said):
        raise InputError(
            f"{path} has {told!r} for 'pred_classes', and the network tells {', '.join(names)} apart: "
            f"take the card of this model, or write '{len(names)} channels of logits: {', '.join(names)}'"
        )


def metadata(
    card: Mapping[str, Any], inference: Mapping[str, Any], network: torch.nn.Module, scores: Mapping[str, Any]
) -> dict[str, Any]:
    """Content of metadata.json.

    Args:
        card: see `read_card`.
        inference: the resolved inference.json.
        network: the network of it.
        scores: name to value of what was measured.
    """
    ours = read_json(Path(bundle_root(), "configs/metadata.json"))
    own = card["metadata"]
    version = own.get("version", ours["version"])
    changelog = {version: "first release", **own.get("changelog", {})}
    about = {
        **{
            key: value
            for key, value in ours.items()
            if key.endswith(("_version", "schema", "supported_apps"))
        },
        **own,
        **{"version": version, "changelog": changelog},
    }
    if scores:
        about["eval_metrics"] = dict(scores)
    return {**about, "network_data_format": data_format(inference, network, card["modality"])}


def data_format(inference: Mapping[str, Any], network: torch.nn.Module, modality: str) -> dict[str, Any]:
    """What goes into the network and what comes out, as the Model Zoo's metadata describe it.

    Args:
        inference: the resolved inference.json.
        network: the network of it.
        modality: of the images.
    """
    parser = ConfigParser(dict(inference))
    patch = tuple(parser.get_parsed_content("patch_size"))
    names = class_names(parser.get_parsed_content("labels"))
    sizes = Sizes(network)
    seen, predicted = map(list[Any], (patch, sizes.output(patch)))
    with suppress(InputError):  # a network that sums up the image has no grid
        # twice the grid: of a single voxel on the lowest level an instance norm can take no statistics
        double = [2 * factor for factor in sizes.grid(patch)]
        if seen == predicted and list(sizes.output(double)) == double:
            seen = predicted = [f"{length}*n" for length in double]
    common = {"type": "image", "dtype": "float32", "value_range": [], "is_patch_data": True}
    channels = parser.get_parsed_content("in_channels")
    image = {
        **{"format": "magnitude", "modality": modality, "num_channels": channels, "spatial_shape": seen},
        "channel_def": {str(i): "image" if channels == 1 else f"image {i}" for i in range(channels)},
    }
    pred = {
        **{"format": "segmentation", "num_channels": len(names), "spatial_shape": predicted},
        "channel_def": {str(i): name for i, name in enumerate(names)},
    }
    return {"inputs": {"image": {**common, **image}}, "outputs": {"pred": {**common, **pred}}}


def leave_probabilities_to_scoring(inference: dict[str, Any]) -> None:
    """Have the postprocessing stop at probabilities where a host raised the dropout of the network.

    MONAI Label does so to score how sure the network is of an image: by the entropy of what the whole
    postprocessing gives, which of labels says nothing.

    Args:
        inference: the resolved inference.json; is changed in place.
    """
    if "dropout" in inference["network_def"]:
        dropout = ConfigParser(dict(inference)).get_parsed_content("network_def::dropout")
        post = inference["postprocessing"]
        post["transforms"] += f" if @network_def::dropout == {dropout} else @restore"


def model_card(
    card: Mapping[str, Any],
    config: Mapping[str, Any],
    network: torch.nn.Module,
    measured: Mapping[str, Any],
    digest: str,
) -> str:
    """docs/README.md, under the headings of the Model Zoo.

    Args:
        card: see `read_card`.
        config: the resolved train.json, or inference.json where there is none.
        network: the network of it.
        measured: see `read_measured`.
        digest: SHA-256 of models/model.pt.
    """
    parser = ConfigParser(dict(config))
    about, value = card["metadata"], parser.get_parsed_content
    parameters = sum(weights.numel() for weights in network.parameters())
    run = "python -m monai.bundle run --config_file"
    network_def, batch, training, commands = config["network_def"], "", [], []
    kind = network_def["_target_"]
    if isinstance(network, Ensemble):
        kind = f"the mean of {len(network.members)} of {network_def['network']['_target_']}"
        training = ["- Each was trained on other cases; see `models/metadata.json`"]
    if "train" in config:
        batch = f"; batch size {value('batch_size')}"
        optimizer = config["optimizer"]["_target_"].rpartition(".")[2]
        training = [
            f"- {value('max_epochs')} epochs; optimizer {optimizer}, "
            f"learning rate {value('learning_rate')}; the weights with the best validation are kept"
        ]
        commands = [
            *("#### Execute training:", "", "```bash"),
            *(f"{run} configs/train.json --dataset_dir DATA --output_dir OUT", "```", ""),
            *("#### Override the `train` config to execute evaluation with the trained model:", ""),
            "```bash",
            f"{run} \"['configs/train.json','configs/evaluate.json']\" --dataset_dir DATA --output_dir OUT "
            "--checkpoint models/model.pt",
            *("```", ""),
        ]
    return _lines(
        [
            *("# Model Overview", "", about["description"], ""),
            *("## Intended use", "", about["intended_use"], ""),
            *(
                "## Data",
                "",
                *card["data"],
                "",
                *_learnt_from(measured),
                "",
                "See [data_license.txt](data_license.txt).",
                "",
            ),
            *("## Training configuration", ""),
            f"- Network: {kind}, {parameters:,} parameters",
            f"- Patch: {' x '.join(map(str, value('patch_size')))}{batch}",
            *training,
            *(f"- SHA-256 of `models/model.pt`: `{digest}`", ""),
            *("### Input", "", about["image_classes"], ""),
            *("### Output", "", about["pred_classes"], ""),
            *("## Performance", "", *performance(measured), *calibration(measured), *groups(measured)),
            *("## What is not known", "", *(f"- {line}" for line in not_known(measured, card["limits"])), ""),
            *("## MONAI Bundle Commands", "", *commands, "#### Execute inference:", "", "```bash"),
            *(f"{run} configs/inference.json --dataset_dir IMAGES --output_dir OUT", "```", ""),
            *("# References", ""),
            *(f"[{i}] {reference}\n" for i, reference in enumerate(about["references"], start=1)),
            *("# License", "", "The code is licensed under the Apache License, Version 2.0; see ../LICENSE."),
        ]
    )


def list_large_files(folder: Path, url: str | None) -> None:
    """Write large_files.yml where a file is larger than the Model Zoo takes.

    Args:
        folder: the bundle.
        url: where these files will lie.

    Raises:
        InputError: there is such a file and no address.
    """
    files = (file for file in sorted(folder.rglob("*")) if file.is_file())
    large = [file for file in files if file.stat().st_size > LARGE_FILE]
    if not large:
        return
    if url is None:
        raise InputError(
            f"{large[0].name} has {large[0].stat().st_size / 1024**2:.0f} MB and the Model Zoo takes 25: "
            "give --large_files_url, the address below which it will lie"
        )
    lines = ["large_files:"]
    for file in large:
        path = file.relative_to(folder).as_posix()
        lines += [f'- path: "{path}"', f'  url: "{url.rstrip("/")}/{path}"']
        lines += [f'  hash_val: "{sha256(file)}"', '  hash_type: "sha256"']
    (folder / "large_files.yml").write_text(_lines(lines), encoding="utf-8")


def write_zip(folder: Path, path: Path) -> None:
    """A folder as a zip: sorted, without times and owners, so that equal content gives equal bytes.

    Args:
        folder: becomes the only folder at the top of the zip.
        path: the file to write.
    """
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                entry = zipfile.ZipInfo(file.relative_to(folder.parent).as_posix(), ZIP_TIME)
                entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
                archive.writestr(entry, file.read_bytes(), compresslevel=6)


def _network(inference: Mapping[str, Any]) -> torch.nn.Module:
    """The network of a config, without weights."""
    with torch.device("meta"):
        network: torch.nn.Module = ConfigParser(dict(inference)).get_parsed_content("network_def")
    return network


def _learnt_from(measured: Mapping[str, Any]) -> list[str]:
    """How many cases it was trained on and judged by, and what made it."""
    data, versions = measured.get("data", {}), measured.get("versions", {})
    if not data:
        return ["Numbers of cases and subjects of the training: not stated by the run."]
    made = "; ".join(f"{name.removesuffix('_version')} {version}" for name, version in versions.items())
    return [
        f"{data['cases']} cases of {data['subjects']} subjects in {len(measured['folds'])} folds, "
        f"{data['held_out']} more held out. Made with {made or 'versions that are not stated'}."
    ]


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _lines(lines: Sequence[str]) -> str:
    return "\n".join(lines) + "\n"
