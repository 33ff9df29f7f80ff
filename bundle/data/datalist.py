"""`python -m bundle datalist` and `plan`: from folders of images and labels to the data list and the plan.

They read every file, list all problems at once, and write `dataset.json` (Medical Segmentation Decathlon
form with a `fold` per training case, read by `scripts.data.datalist`), `task.json` (the plan of
`bundle.data.plan`, an overlay on `configs/train.json`), `experiment.json` (an args file that names both) and
`fingerprint.json` (what was found in each case, see `bundle.data.fingerprint`).
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import shlex
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import typer

from bundle.data.attributes import SUBJECT, read_case_table, values_to_fold_by
from bundle.data.fingerprint import FILE as FINGERPRINT
from bundle.data.fingerprint import flipped, read_fingerprints
from bundle.data.nnunet import Imported, read_plans
from bundle.data.plan import ORIENT, REASONS, plan_task
from scripts.compute.length import LENGTH
from scripts.data.checks import Facts, Problem, check_cases, format_table
from scripts.data.datalist import (
    DEFAULT_FOLDS,
    assign_folds,
    dataset_labels,
    file_stem,
    named_images,
    read_entries,
    read_folds,
    read_splits_file,
    sections,
)
from scripts.data.names import composed, of_one_name
from scripts.data.reader import is_picture, read_dims
from scripts.errors import InputError, few
from scripts.files import atomic_write, read_json, require_nameable
from scripts.labels import (
    IGNORE_NAME,
    LARGEST_VALUE,
    class_names,
    name_values,
    parse_labels,
    with_ignored,
)
from scripts.machine import usable_cores
from scripts.sides import sided_names
from scripts.tables import table

FIX_VALUES = (
    "add --instances if they number objects, threshold them if masks were smoothed, or name them with "
    "--label_name"
)
SMALL_SHARE = 0.01  # of the largest class: what lies between it and the background may be its rim
THIN = 0.5  # of the patch: what is smaller along an axis is mostly padding there
WRITTEN = "written"  # key of dataset.json: who wrote the files, and their hashes
KEPT_KEYS = ("name", "description", "reference", "licence", "release")

_USUAL_ENDING = re.compile(r"(?:[_-](?:image|img|labels?|masks?|seg|gt|0000))+$", re.IGNORECASE)
_FIRST_FRAME = re.compile(r"^(.+?)_0000(?=$|[_-])")
_LATER_FRAME = re.compile(r"^(.+?)_(?!0000)\d{4}(?=$|[_-])")
_USUAL_BEGINNING = re.compile(r"^(?:image|img|labels?|masks?|seg|gt)(?:[_-]|(?=\d))", re.IGNORECASE)


@dataclass
class Source:
    """Cases of a source as they lie on the disk.

    Args:
        cases: `{"image", "label", "case"}`; a case whose partner is missing lacks that key.
        in_channels: as declared; None: to be seen from the files.
        labels: name to value as declared; None: to be seen from the files.
        about: keys that the new dataset.json keeps.
        problems: files that could not be matched.
        modality: what the channels are called.
    """

    cases: list[dict[str, Any]]
    in_channels: int | None = None
    labels: dict[str, int] | None = None
    about: dict[str, Any] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    modality: list[str] = field(default_factory=list)


def match_folders(images: Path, labels: Path) -> Source:
    """Pair two folders: by equal names, then without usual words such as `_mask` at the end or `img_` before.

    A file is called by its name, or where every case has a folder of its own by the folder's.

    Raises:
        InputError: if a folder is missing or empty, or both are the same, or that of a case does not hold one
            image.
    """
    if images.absolute() == labels.absolute():
        raise InputError(f"--images and --labels are both {images}; they must be two folders; move one kind.")
    left = {"image": _named(images, "--images"), "label": _named(labels, "--labels")}
    names = left["image"] | left["label"]
    frames = _frames(left["image"].values())
    cases: list[dict[str, Any]] = []

    def bare(name: str) -> str:
        return _bare(name, frames)

    for identify in (str, bare):
        groups = {kind: _group(left[kind], identify) for kind in left}
        for name in sorted(groups["image"].keys() & groups["label"].keys()):
            image, label = groups["image"][name], groups["label"][name]
            if len(image) == len(label) == 1:
                case_name = name if identify is str else _without_ending(names[image[0]], frames)
                cases.append({"image": str(image[0]), "label": str(label[0]), "case": case_name})
                del left["image"][image[0]], left["label"][label[0]]
    twice = {name for name, times in Counter(case["case"] for case in cases).items() if times > 1}
    for case in cases:
        if case["case"] in twice:
            case["case"] = names[Path(case["image"])]
    rivals = {kind: _group(left[kind], bare) for kind in left}
    problems = [
        _unmatched(file, name, kind, rivals["label" if kind == "image" else "image"].get(bare(name), []))
        for kind in left
        for file, name in left[kind].items()
    ]
    return Source(sorted(cases, key=lambda case: case["case"]), problems=problems)


def read_nnunet(folder: Path) -> Source:
    """Cases of an nnU-Net v1 or v2 raw data set: dataset.json, imagesTr and labelsTr.

    Raises:
        InputError: if the folder or its dataset.json is not usable.
    """
    path = folder / "dataset.json"
    description = read_json(path)
    channels = description.get("channel_names", description.get("modality"))
    if not channels or not isinstance(channels, dict | list):
        raise InputError(f"{path} has no 'channel_names' (v2) or 'modality' (v1); nnU-Net needs one; add it.")
    ending = str(description.get("file_ending", ".nii.gz"))
    images = {composed(file.name): file for file in _named(folder / "imagesTr", "--nnunet")}
    cases: list[dict[str, Any]] = []
    # A colour picture holds its channels in one file, although channel_names has three entries.
    single = not any(name.endswith(f"_0001{ending}") for name in images)
    expected = 1 if single else len(channels)
    for label in _named(folder / "labelsTr", "--nnunet"):
        name = file_stem(label).removesuffix(ending)
        files = [f"{name}_{channel:04d}{ending}" for channel in range(expected)]
        case: dict[str, Any] = {"label": str(label), "case": name}
        if any(file in images for file in files):
            paths = [str(images.pop(file, folder / "imagesTr" / file)) for file in files]
            case["image"] = paths if len(paths) > 1 else paths[0]
        cases.append(case)
    problems = [_unmatched(file, file_stem(file), "image", []) for file in images.values()]
    labels = dataset_labels(description, path) or None
    return Source(cases, len(channels), labels, _about(description), problems, _modality(description))


def read_msd(folder: Path) -> Source:
    """Labelled cases of a Medical Segmentation Decathlon folder: the `training` list of its dataset.json.

    Raises:
        InputError: if the folder or its dataset.json is not usable.
    """
    path = folder / "dataset.json"
    description = read_json(path)
    entries = read_entries(description, path)["training"]
    if not entries:
        raise InputError(
            f"{path} has no cases under 'training'; --msd needs some; for an nnU-Net v2 folder use --nnunet."
        )
    cases = [
        {str(key): entry[key] for key in ("image", "label", "case") if key in entry} for entry in entries
    ]
    modality = description.get("modality")
    channels = len(modality) if modality and isinstance(modality, dict | list) else None
    labels = dataset_labels(description, path) or None
    return Source(cases, channels, labels, _about(description), modality=_modality(description))


@dataclass(frozen=True)
class Listing:
    """How a source is split and labelled; see `bundle.cli.datalist`."""

    folds: int | None
    folds_by: str | None
    attributes: Path | None
    seed: int
    test_fraction: float
    subject_pattern: str | None
    subjects: Path | None
    splits: Path | None
    label_names: list[str] | None
    instances: bool
    ignore: int | None


class Dims(NamedTuple):
    """Of the images: 2 or 3, and their channels."""

    spatial_dims: int
    in_channels: int


@dataclass(frozen=True)
class Means:
    """What a training may take, for `bundle.data.plan.plan_task`: minutes, memory in GB, and cores; and the
    file and the configuration of nnU-Net's plans, if it is to be as they say."""

    minutes: float | None = None
    memory_gb: float | None = None
    cores: int = 1
    nnunet_plans: Path | None = None
    configuration: str = ""


def datalist(
    output_dir: Path,
    images: Path | None,
    labels: Path | None,
    nnunet: Path | None,
    msd: Path | None,
    folds: int | None,
    folds_by: str | None,
    attributes: Path | None,
    seed: int,
    test_fraction: float,
    subject_pattern: str | None,
    subjects: Path | None,
    splits: Path | None,
    label_names: list[str] | None,
    instances: bool,
    ignore: int | None,
) -> None:
    """Carry out `bundle.cli.datalist`, whose arguments these are."""
    listing = Listing(
        folds,
        folds_by,
        attributes,
        seed,
        test_fraction,
        subject_pattern,
        subjects,
        splits,
        label_names,
        instances,
        ignore,
    )
    _list(output_dir, read_source(images, labels, nnunet, msd), listing, Means(), "datalist")


def plan(
    output_dir: Path | None,
    images: Path | None,
    labels: Path | None,
    nnunet: Path | None,
    msd: Path | None,
    dataset_dir: Path | None,
    minutes: float | None,
    memory_gb: float | None,
    cores: int | None,
    nnunet_plans: Path | None,
    configuration: str | None,
    explain: bool,
    trial: bool,
    folds: int | None,
    folds_by: str | None,
    attributes: Path | None,
    seed: int,
    test_fraction: float,
    subject_pattern: str | None,
    subjects: Path | None,
    splits: Path | None,
    label_names: list[str] | None,
    instances: bool,
    ignore: int | None,
) -> None:
    """Carry out `bundle.cli.plan`, whose arguments these are."""
    means = Means(minutes, memory_gb, cores or usable_cores(), nnunet_plans, configuration or "")
    if dataset_dir is not None:
        output_dir = output_dir or dataset_dir
        task = _plan_listed(output_dir, dataset_dir, means)
    else:
        assert output_dir is not None  # bundle.cli sees to it
        listing = Listing(
            folds,
            folds_by,
            attributes,
            seed,
            test_fraction,
            subject_pattern,
            subjects,
            splits,
            label_names,
            instances,
            ignore,
        )
        task = _list(output_dir, read_source(images, labels, nnunet, msd), listing, means, "plan")
    if explain:
        typer.echo(explained(task, minutes))
    if trial:
        typer.echo(_time(output_dir / "experiment.json"))


def explained(task: Mapping[str, Any], minutes: float | None = None) -> str:
    """A plan as a table of choices, values and reasons; with minutes these say how long the training is."""
    rows = [
        {"choice": name, "value": told_value(task[name]), "why": why}
        for name, why in task[REASONS].items()
        if minutes is None or name not in LENGTH
    ]
    if minutes is not None:
        why = "as given: the training times its steps and plans its epochs and validations by them"
        rows.append({"choice": "minutes", "value": f"{minutes:g}", "why": why})
    return table(["choice", "value", "why"], rows, names=3)


def told_value(value: Any) -> str:
    """A value for the table: of components what sets them apart."""
    if isinstance(value, list) and value and all(isinstance(part, dict) for part in value):
        return ", ".join(map(told_value, value))
    if isinstance(value, dict) and "_target_" in value:
        return str(value["_target_"]).rpartition(".")[2]
    return json.dumps(value)


def _time(file: Path) -> str:
    """How long the training is going to take here, by a few real steps."""
    from bundle.doctor.trial import minutes
    from bundle.runs.budget import ask_doctor
    from bundle.runs.experiments import read_experiment

    try:
        found = ask_doctor(read_experiment(file, {}))
    except InputError as error:
        return f"warning: how long a training takes here could not be tried: {error}"
    return (
        f"The training is going to take about {minutes(found['seconds']['total'])} here: {found['epochs']} "
        f"epochs of {found['steps']} steps, {found['seconds']['step']:.2g} s each"
    )


def _list(output_dir: Path, source: Source, listing: Listing, means: Means, command: str) -> dict[str, Any]:
    """Write the data list of a source, and the plan and the experiment for it; the plan.

    Args:
        output_dir: where they go.
        source: of the data.
        listing: how they are split and labelled.
        means: of the training.
        command: that is carried out.
    """
    instances = listing.instances
    require_nameable(output_dir.resolve(), "--output_dir")
    _require_no_other_splits(output_dir, listing.splits)
    _require_own(output_dir, ["dataset.json", "task.json", "experiment.json"])
    named = parse_labels(listing.label_names) if listing.label_names else source.labels
    declared = with_ignored({} if instances else named or {}, listing.ignore) or None
    dims = _dims(source)
    imported = _imported(means, dims)
    subject_of, subject_problems = subjects_of(source.cases, listing.subject_pattern, listing.subjects)
    value_of = {}
    if listing.folds_by is not None and listing.attributes is not None:
        ids = [case["case"] for case in source.cases]
        value_of = values_to_fold_by(listing.attributes, listing.folds_by, ids, subject_of)
    inspected, fingerprint = read_fingerprints(
        source.cases, output_dir, **dims._asdict(), labels=declared, instances=instances
    )
    problems = source.problems + [problem for found, _ in inspected for problem in found]
    problems += [] if instances else _too_large(source.cases, [case_facts for _, case_facts in inspected])
    _report(problems + subject_problems + _repeated_ids(source.cases))
    facts = [case_facts for _, case_facts in inspected if case_facts is not None]
    _require_somewhere(listing.ignore, facts)
    names = _names(facts, declared, instances)
    facts = [without_ignored(found, names, instances) for found in facts]

    lists = _split(source.cases, listing, subject_of, value_of)
    dataset = _describe(source, lists, output_dir, dims, names, instances)
    learnt = {case["case"] for part in ("training", "validation") for case in lists[part]}
    of_learnt = [own for case, own in zip(source.cases, facts, strict=True) if case["case"] in learnt]
    task = _task(source, of_learnt, dims, names, instances, means, imported)
    contents = {
        "dataset.json": dataset,
        "task.json": task,
        "experiment.json": _experiment(output_dir, output_dir, means),
    }
    hashes = {name: _hash(content) for name, content in contents.items()}
    by = {"by": f"python -m bundle {command}", **hashes}
    contents["dataset.json"] = {**dataset, WRITTEN: by}
    _write(output_dir, contents, fingerprint)
    for line in _summary(source.cases, lists, facts, names, instances):
        typer.echo(line)
    held = {case["case"]: case_facts for case, case_facts in zip(source.cases, facts, strict=True)}
    fold_of = {case["case"]: case["fold"] for case in lists["training"] if "fold" in case}
    for warning in _warnings(lists, fold_of, held, names, task, instances, named is None):
        typer.echo(f"warning: {warning}", err=True)
    if sided := sided_names(names):
        typer.echo(
            f'{few(sided)} say left or right: task.json has "flip_axes": [], so that training '
            "does not mirror images from left to right"
        )
    _tell(output_dir, contents)
    return task


def _plan_listed(output_dir: Path, dataset_dir: Path, means: Means) -> dict[str, Any]:
    """Write the plan and the experiment for a data set that has its list; the plan."""
    require_nameable(output_dir.resolve(), "--output_dir")
    require_nameable(dataset_dir.resolve(), "--dataset_dir")
    _require_own(output_dir, ["task.json", "experiment.json"])
    path = dataset_dir / "dataset.json"
    description = read_json(path)
    split = sections(dataset_dir)
    cases = [case for part in split.values() for case in part]
    source = Source(cases, labels=dataset_labels(description, path) or None, modality=_modality(description))
    instances = bool(description.get("instances"))
    dims = _dims(source)
    imported = _imported(means, dims)
    inspected, fingerprint = read_fingerprints(
        cases, output_dir, **dims._asdict(), labels=source.labels, instances=instances
    )
    _report([problem for found, _ in inspected for problem in found])
    facts = [case_facts for _, case_facts in inspected if case_facts is not None]
    names = _names(facts, source.labels, instances)
    facts = [without_ignored(found, names, instances) for found in facts]
    learnt = len(split["training"]) + len(split["validation"])  # the first sections
    task = _task(source, facts[:learnt], dims, names, instances, means, imported)
    contents = {"task.json": task, "experiment.json": _experiment(output_dir, dataset_dir, means)}
    fingerprint[WRITTEN] = {name: _hash(content) for name, content in contents.items()}
    _write(output_dir, contents, fingerprint)
    held = {case["case"]: case_facts for case, case_facts in zip(cases, facts, strict=True)}
    fold_of = {case["case"]: fold for fold, part in read_folds(dataset_dir).items() for case in part}
    for warning in _warnings(split, fold_of, held, names, task, instances, source.labels is None):
        typer.echo(f"warning: {warning}", err=True)
    _tell(output_dir, contents)
    return task


def _names(facts: Iterable[Facts], declared: dict[str, int] | None, instances: bool) -> dict[str, int]:
    """The classes: as declared, or named by the values that the labels hold."""
    ignored = (declared or {}).get(IGNORE_NAME)
    if instances:
        return {"background": 0, **({} if ignored is None else {IGNORE_NAME: ignored})}
    if declared and class_names(declared):
        return declared
    return name_values({value for case in facts for value in case.voxels}, FIX_VALUES, ignored)


def _require_somewhere(ignored: int | None, facts: Sequence[Facts]) -> None:
    """Refuse a value of `--ignore` that no label has.

    Raises:
        InputError: says which values there are.
    """
    found = sorted({value for case in facts for value in case.voxels})
    if ignored is not None and ignored not in found:
        raise InputError(
            f"--ignore is {ignored}, which no label holds, but {few(found)}; it is the value of what nobody "
            "annotated; correct it, or drop it where all is annotated."
        )


def without_ignored(facts: Facts, labels: Mapping[str, int], instances: bool) -> Facts:
    """What is in a case whose labels number objects, without the number of what nobody annotated."""
    if not instances or IGNORE_NAME not in labels:
        return facts
    return replace(
        facts, voxels={value: n for value, n in facts.voxels.items() if value != labels[IGNORE_NAME]}
    )


def _imported(means: Means, dims: Dims) -> Imported | None:
    """nnU-Net's plans, if the training is to be as they say; what has no counterpart is told."""
    if means.nnunet_plans is None:
        return None
    imported = read_plans(means.nnunet_plans, means.configuration, dims.spatial_dims)
    for phrase in imported.left:
        typer.echo(f"not as in {imported.name}: {phrase}")
    return imported


def _task(
    source: Source,
    facts: Sequence[Facts],
    dims: Dims,
    names: Mapping[str, int],
    instances: bool,
    means: Means,
    imported: Imported | None,
) -> dict[str, Any]:
    """The plan for a source, by the facts of the cases to learn from."""
    return plan_task(
        facts,
        **dims._asdict(),
        labels=names,
        instances=instances,
        pictures=all(is_picture(_first_file(case)) for case in source.cases),
        modality=source.modality,
        minutes=means.minutes,
        memory_gb=means.memory_gb,
        cores=means.cores,
        imported=imported,
    )


def _experiment(output_dir: Path, dataset_dir: Path, means: Means) -> dict[str, Any]:
    """The content of experiment.json."""
    folder = output_dir.resolve()
    experiment: dict[str, Any] = {
        "config_file": ["configs/train.json", str(folder / "task.json")],
        "dataset_dir": str(dataset_dir.resolve()),
        "output_dir": f"$@bundle_root + {f'/runs/{folder.name}'!r}",
    }
    if means.minutes is not None:
        experiment["minutes"] = means.minutes
    return experiment


def _write(output_dir: Path, contents: Mapping[str, Any], fingerprint: Mapping[str, Any]) -> None:
    with ExitStack() as stack:
        for name, content in {**contents, FINGERPRINT: fingerprint}.items():
            file = stack.enter_context(atomic_write(output_dir / name))
            file.write_text(
                json.dumps(content, indent=1 if name == FINGERPRINT else 2) + "\n", encoding="utf-8"
            )


def _tell(output_dir: Path, contents: Mapping[str, Any]) -> None:
    typer.echo(f"Wrote {', '.join([*contents, FINGERPRINT])} into {output_dir}. To train:")
    typer.echo(f"python -m monai.bundle run --args_file {shlex.quote(str(output_dir / 'experiment.json'))}")


def read_source(images: Path | None, labels: Path | None, nnunet: Path | None, msd: Path | None) -> Source:
    if images is not None and labels is not None:
        return match_folders(images, labels)
    return read_nnunet(nnunet) if nnunet is not None else read_msd(msd)  # type: ignore[arg-type]


def _named(folder: Path, option: str) -> dict[Path, str]:
    """See `named_images`.

    Raises:
        InputError: no folder, or one without images.
    """
    found = named_images(folder, option) if folder.is_dir() else {}
    if not found:
        reason = "holds no images" if folder.is_dir() else "is no folder"
        raise InputError(f"{option}: {folder} {reason}; image files are expected in it; correct the path.")
    return found


def _frames(names: Iterable[str]) -> set[str]:
    """How the names of numbered frames begin: beside `x_0001` `x_0000` is one of them, and no channel."""
    return {match[1] for match in map(_LATER_FRAME.search, names) if match}


def _bare(name: str, frames: Collection[str]) -> str:
    """A name without usual words at its end and beginning."""
    return _USUAL_BEGINNING.sub("", _without_ending(name, frames))


def _without_ending(name: str, frames: Collection[str]) -> str:
    first = _FIRST_FRAME.search(name)
    if first and first[1] in frames:
        return first[1] + "_0000" + _USUAL_ENDING.sub("", name[first.end() :])
    return _USUAL_ENDING.sub("", name)


def _group(named: Mapping[Path, str], identify: Callable[[str], str]) -> dict[str, list[Path]]:
    groups: defaultdict[str, list[Path]] = defaultdict(list)
    for file, name in named.items():
        groups[identify(name)].append(file)
    return groups


def _unmatched(file: Path, name: str, kind: str, rivals: Sequence[Path]) -> Problem:
    other = "label" if kind == "image" else "image"
    found = f"{'an' if kind == 'image' else 'a'} {kind} without {'a' if other == 'label' else 'an'} {other}"
    if rivals:
        found += f" of its own ({', '.join(file.name for file in rivals)} could belong to several)"
    return Problem(
        name,
        str(file),
        found,
        "each image needs one label, each label one image",
        f"add or rename its {other}, or move it away (channels in files of their own: --nnunet)",
    )


def _modality(description: Mapping[str, Any]) -> list[str]:
    """What a dataset.json calls its channels."""
    names = description.get("channel_names", description.get("modality")) or []
    return [str(name) for name in (names.values() if isinstance(names, dict) else names)]


def _about(description: Mapping[str, Any]) -> dict[str, Any]:
    return {key: description[key] for key in KEPT_KEYS if key in description}


def _first_file(case: Mapping[str, Any]) -> str:
    image = case.get("image", "")
    return image[0] if isinstance(image, list) else image


def _dims(source: Source) -> Dims:
    """Spatial dimensions and channels: as declared, else those that most images have."""
    seen = [(case, read_dims(_first_file(case))) for case in source.cases]
    dims = Counter((found[0], _channel_files(case) or found[1]) for case, found in seen if found)
    if not dims:
        found = check_cases(source.cases, spatial_dims=3, in_channels=1, labels=None)
        _report(source.problems + found)
        raise InputError("the source has no case; images with labels are expected; correct the paths.")
    spatial_dims, in_channels = dims.most_common(1)[0][0]
    return Dims(spatial_dims, source.in_channels or in_channels)


def _channel_files(case: Mapping[str, Any]) -> int:
    return len(case["image"]) if isinstance(case["image"], list) else 0


def subjects_of(
    cases: Sequence[Mapping[str, Any]], pattern: str | None, table: Path | None
) -> tuple[dict[str, str], list[Problem]]:
    """Case id to subject; a case is its own subject if neither pattern nor table is given."""
    ids = [case["case"] for case in cases]
    if pattern is not None:
        try:
            regex = re.compile(pattern)
        except re.error as error:
            raise InputError(f"--subject_pattern '{pattern}' is no regex ({error}); correct it.") from error
        if not regex.groups:
            raise InputError(
                f"--subject_pattern '{pattern}' has no group; the first group is the subject; put the "
                "subject's part in parentheses."
            )
        matches = {case: regex.search(case) for case in ids}
        known = {case: match[1] for case, match in matches.items() if match and match[1]}
        rule, fix = f"--subject_pattern '{pattern}' must match every case id", "widen the pattern"
    elif table is not None:
        listed = read_case_table(table, "--subjects", [SUBJECT])
        known = {case: listed[case][SUBJECT] for case in ids if listed.get(case, {}).get(SUBJECT)}
        rule, fix = f"{table} must name the subject of every case", "add a line for it"
    else:
        return {case: case for case in ids}, []
    problems = [
        Problem(case["case"], _first_file(case), "no subject", rule, fix)
        for case in cases
        if case["case"] not in known
    ]
    return known, problems


def _repeated_ids(cases: Sequence[Mapping[str, Any]]) -> list[Problem]:
    rivals = set(of_one_name(case["case"] for case in cases))
    return [
        Problem(
            case["case"],
            _first_file(case),
            f"the case id '{case['case']}' more than once, or ids that some file system takes for it",
            "a case id is unique, as results are named by it",
            "rename the file or drop the entry",
        )
        for case in cases
        if case["case"] in rivals
    ]


def _too_large(cases: Sequence[Mapping[str, Any]], facts: Sequence[Facts | None]) -> list[Problem]:
    """Labels whose values no network can be trained with as classes."""
    large = [
        (case, [value for value in case_facts.voxels if value > LARGEST_VALUE])
        for case, case_facts in zip(cases, facts, strict=True)
        if case_facts is not None
    ]
    return [
        Problem(
            case["case"],
            case["label"],
            f"label values {few(values)}",
            f"the value of a class is at most {LARGEST_VALUE} (2^24)",
            "give the classes smaller values, or add --instances if they number objects",
        )
        for case, values in large
        if values
    ]


def odd_labels(
    voxels: Mapping[str, Mapping[int, int]], labels: Mapping[str, int], guessed: bool
) -> Iterable[str]:
    """What looks wrong about the values of all labels together, a sentence each.

    Args:
        voxels: case id to voxels of each value.
        labels: name to value, the first one the background; an entry "ignore" does not count.
        guessed: the names were made from the values.
    """
    named = {value: name for name, value in labels.items() if name != IGNORE_NAME}
    background, *foreground = named
    cases = {value: [case for case in voxels if value in voxels[case]] for value in named}
    for value in foreground:
        if not cases[value]:
            yield f"{named[value]} = {value} is declared and occurs in no case; correct names or files"
        elif len(cases[value]) == 1 and len(voxels) > 1:
            yield (
                f"{named[value]} = {value} occurs in one case only, {cases[value][0]}: it is trained or "
                "judged, never both; add cases or leave the class out"
            )
    if not guessed:
        return
    groups = _never_together([set(found) & set(foreground) for found in voxels.values()])
    if len(groups) > 1:
        told = [
            f"{few(sorted(group))} (in {len(members)} files such as that of {members[0]})"
            for group in groups
            for members in [[case for case in voxels if group & voxels[case].keys()]]
        ]
        yield (
            f"the values {' and '.join(told)} never occur in the same file and look like one class stored in "
            "two ways; if so store all masks alike, for example with 1 in place of 255, else name them with "
            "--label_name"
        )
    missing = [case for case in voxels if background not in voxels[case] and len(voxels[case]) > 1]
    if missing:
        yield (
            f"{background}, taken for the background, does not occur in the labels of {few(missing)}, which "
            "hold several other values; if they have another background store all labels alike"
        )
    total = {value: sum(found.get(value, 0) for found in voxels.values()) for value in named}
    largest = max(foreground, key=total.__getitem__)
    rim = [value for value in foreground if value < largest and total[value] < SMALL_SHARE * total[largest]]
    if rim and sorted(named) != list(range(min(named), max(named) + 1)):
        yield (
            f"the values {few(rim)} are less than {SMALL_SHARE:.0%} of {largest} each and look like the rim "
            f"of a smoothed mask; if so threshold the masks, for example at {(background + largest) / 2:g}, "
            "else name them with --label_name"
        )


def _warnings(
    lists: Mapping[str, Sequence[Mapping[str, Any]]],
    fold_of: Mapping[str, int],
    facts: Mapping[str, Facts],
    labels: Mapping[str, int],
    task: Mapping[str, Any],
    instances: bool,
    guessed: bool,
) -> Iterable[str]:
    """What looks wrong about all cases together, a sentence each.

    Args:
        lists: of the split.
        fold_of: in which fold a case validates, where there are folds.
        facts: of each case, by its id.
        labels: name to value.
        task: the plan.
        instances: labels number the objects.
        guessed: the names were made from the values.
    """
    voxels = {case: found.voxels for case, found in facts.items()}
    yield from _no_numbers(voxels) if instances else odd_labels(voxels, labels, guessed)
    yield from _empty_parts(lists, voxels, labels)
    if not instances:
        yield from _untrained(lists, voxels, labels)
        yield from _unjudged(fold_of, voxels, labels)
    yield from _thin(facts, task)
    yield from filter(None, [flipped(list(facts.values()))])


def _thin(facts: Mapping[str, Facts], task: Mapping[str, Any]) -> Iterable[str]:
    """Cases that are much smaller than the patch: most of what is learnt from them is padding."""
    patch, spacing = task["patch_size"], task.get("spacing")
    if len(patch) == 3 and task.get("geometry", [ORIENT])[0] != ORIENT:
        return  # facts are along axes of the body, the patch is along those of the files
    thin = []
    for case, found in facts.items():
        seen = np.array(found.shape, dtype=float)
        if spacing is not None:
            seen *= np.divide(found.spacing or (1.0,) * len(patch), spacing)
        axis = int(np.argmin(seen / patch))
        if seen[axis] < THIN * patch[axis]:
            thin.append(f"{case} with {max(round(seen[axis]), 1)} of {patch[axis]} along axis {axis}")
    if thin:
        yield (
            f"{len(thin)} of {len(facts)} cases have less than half of the patch's voxels along an axis "
            f"({few(thin)}); the rest is padding: lower patch_size in task.json, or leave them out"
        )


def _unjudged(
    fold_of: Mapping[str, int], voxels: Mapping[str, Mapping[int, int]], labels: Mapping[str, int]
) -> Iterable[str]:
    """Classes of several cases that a fold does not show, though another one does."""
    folds = sorted(set(fold_of.values()))
    for name, value in list(labels.items())[1:]:
        shown = [fold for case, fold in fold_of.items() if value in voxels[case]]
        without = [fold for fold in folds if fold not in shown]
        if name != IGNORE_NAME and len(set(shown)) > 1 and without:
            yield (
                f"no case of fold {' and '.join(map(str, without))} shows {name} = {value}, which "
                f"{len(shown)} cases have: it cannot be judged there; choose another --seed or fewer --folds"
            )


def _no_numbers(voxels: Mapping[str, Mapping[int, int]]) -> Iterable[str]:
    """Whether the labels look like masks where they should number objects."""
    if max(sum(value > 0 for value in found) for found in voxels.values()) < 2:
        yield (
            "no label numbers more than one object; if they are masks of several number these, for example "
            "with skimage.measure.label, or leave out --instances"
        )


def _never_together(sets: Iterable[set[int]]) -> list[set[int]]:
    """The values in groups: those of one group are linked by files that hold several of them."""
    groups: list[set[int]] = []
    for found in sets:
        linked = [group for group in groups if group & found]
        groups = [group for group in groups if group not in linked] + [found.union(*linked)]
    return sorted((group for group in groups if group), key=min)


def _empty_parts(
    lists: Mapping[str, Sequence[Mapping[str, Any]]],
    voxels: Mapping[str, Mapping[int, int]],
    labels: Mapping[str, int],
) -> Iterable[str]:
    """Folds and lists of a split of which no case shows anything but background."""
    background = next(value for name, value in labels.items() if name != IGNORE_NAME)
    empty = {background, labels.get(IGNORE_NAME, background)}
    parts = {name: list(cases) for name, cases in lists.items() if cases}
    for case in lists["training"]:
        if "fold" in case:
            parts.setdefault(f"fold {case['fold']}", []).append(case)
    for name, cases in parts.items():
        if all(set(voxels[case["case"]]) <= empty for case in cases):
            yield (
                f"no case of {name} ({few([case['case'] for case in cases])}) shows anything but background: "
                "nothing can be judged by it; choose another --seed or number of --folds, or add cases"
            )


def _untrained(
    lists: Mapping[str, Sequence[Mapping[str, Any]]],
    voxels: Mapping[str, Mapping[int, int]],
    labels: Mapping[str, int],
) -> Iterable[str]:
    """Classes of several cases, none of which trains."""
    folds = {case["case"]: case.get("fold") for case in lists["training"]}
    for name, value in labels.items():
        if name == IGNORE_NAME:
            continue
        cases = [case for listed in lists.values() for case in listed if value in voxels[case["case"]]]
        ids = [case["case"] for case in cases]
        trained = {folds[case] for case in ids if case in folds}
        if len(ids) > 1 and not trained:
            yield f"{name} = {value} occurs in no training case, but in {few(ids)}; choose another split"
        elif len(ids) > 1 and len(trained) == 1 and None not in trained:
            yield (
                f"{name} = {value} occurs in training cases of fold {trained.pop()} alone: nothing trains it "
                "where that fold validates; choose another --seed or number of --folds"
            )


def _report(problems: Sequence[Problem]) -> None:
    """Show all problems; leave with status 1 if there is an error."""
    errors = sum(problem.severity == "error" for problem in problems)
    if problems:
        typer.echo(format_table(problems), err=True)
    if errors:
        typer.echo(f"error: {errors} problem(s), nothing was written; mend them and run again.", err=True)
        raise typer.Exit(1)


def _hash(content: Mapping[str, Any]) -> str:
    """Of what a file of JSON holds, but for who wrote it."""
    text = json.dumps({key: value for key, value in content.items() if key != WRITTEN})
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _require_own(output_dir: Path, names: Sequence[str]) -> None:
    """Refuse to replace what another tool wrote, or what somebody changed since."""
    places = [output_dir / name for name in ("dataset.json", "task.json", "experiment.json", FINGERPRINT)]
    held: dict[str, dict[str, Any]] = {}
    for place in places:
        if place.exists():
            try:
                held[place.name] = read_json(place)
            except InputError:
                held[place.name] = {}
    known: dict[str, set[str]] = defaultdict(set)
    for holder in ("dataset.json", FINGERPRINT):
        written = held.get(holder, {}).get(WRITTEN)
        for name, own in (written if isinstance(written, dict) else {}).items():
            known[name].add(own)
    others = [
        str(output_dir / name) for name in names if name in held and _hash(held[name]) not in known[name]
    ]
    if others:
        raise InputError(
            f"{' and '.join(others)} would be replaced, and neither 'datalist' nor 'plan' wrote that, or "
            "somebody changed it since; move it away, or choose another --output_dir."
        )


def _require_no_other_splits(output_dir: Path, splits: Path | None) -> None:
    """A splits.json beside dataset.json wins over its folds, so it must be the one that is meant."""
    beside = output_dir / "splits.json"
    if beside.is_file() and (splits is None or splits.resolve() != beside.resolve()):
        raise InputError(
            f"{beside} exists and would win over the split made here; there can be one; hand it as "
            "--splits or choose another --output_dir."
        )


def _split(
    cases: Sequence[dict[str, Any]],
    listing: Listing,
    subject_of: Mapping[str, str],
    value_of: Mapping[str, str],
) -> dict[str, list[dict[str, Any]]]:
    """The lists of dataset.json; training entries have a `fold` unless `splits` fixes the validation.

    A case that is not its own subject has a `subject`. Where values make the folds, each has the name of its
    fold beside the number.
    """
    splits, seed, test_fraction = listing.splits, listing.seed, listing.test_fraction
    by_id = {
        name: case | ({"subject": subject_of[name]} if subject_of[name] != name else {})
        for name, case in ((case["case"], case) for case in cases)
    }
    if splits is not None:
        if test_fraction:
            raise InputError(f"--test_fraction {test_fraction} does not go with --splits {splits}; drop one.")
        ids = read_splits_file(splits, by_id)
        _require_whole_subjects(ids, subject_of, splits)
        return {name: [by_id[case] for case in ids[name]] for name in ids}
    if not 0 <= test_fraction < 1:
        raise InputError(f"--test_fraction {test_fraction} is outside [0, 1); it is a share; correct it.")
    held_out = hold_out(subject_of, test_fraction, seed)
    rest = [case for case in by_id if case not in held_out]
    if value_of:
        values = sorted({value_of[case] for case in rest})
        if len(values) < 2:
            raise InputError(
                f"--test_fraction {test_fraction} leaves {listing.folds_by} {few(values)} alone; "
                "--folds_by takes two values or more; hold fewer cases out."
            )
        fold_of = {case: values.index(value_of[case]) for case in rest}
        named = {case: {"fold_name": f"{listing.folds_by} {value_of[case]}"} for case in rest}
    else:
        folds = listing.folds or max(min(DEFAULT_FOLDS, len({subject_of[case] for case in rest})), 2)
        fold_of = assign_folds(rest, folds, seed, subject_of)
        named = {}
    return {
        "training": [by_id[case] | {"fold": fold_of[case]} | named.get(case, {}) for case in rest],
        "validation": [],
        "testing": [by_id[case] for case in by_id if case in held_out],
    }


def hold_out(subject_of: Mapping[str, str], fraction: float, seed: int) -> set[str]:
    """Cases of whole subjects, drawn until `fraction` of the cases is reached.

    Args:
        subject_of: case id to subject.
        fraction: share of cases, in [0, 1).
        seed: seed of the draw.

    Returns:
        Ids of the held-out cases.
    """
    order = sorted(set(subject_of.values()))
    random.Random(seed).shuffle(order)
    held_out: set[str] = set()
    for subject in order:
        if len(held_out) >= round(fraction * len(subject_of)):
            break
        held_out |= {case for case in subject_of if subject_of[case] == subject}
    return held_out


def _require_whole_subjects(
    splits: Mapping[str, Sequence[str]], subject_of: Mapping[str, str], path: Path
) -> None:
    seen: dict[str, str] = {}
    for name, ids in splits.items():
        for case in ids:
            if seen.setdefault(subject_of[case], name) != name:
                raise InputError(
                    f"{path} has cases of subject '{subject_of[case]}' under {seen[subject_of[case]]} and "
                    f"{name}; a subject belongs to one split; move its cases together."
                )


def _describe(
    source: Source,
    lists: Mapping[str, Sequence[Mapping[str, Any]]],
    output_dir: Path,
    dims: Dims,
    labels: Mapping[str, int],
    instances: bool,
) -> dict[str, Any]:
    """The content of dataset.json."""
    entries = {name: [_entry(case, output_dir.absolute()) for case in lists[name]] for name in lists}
    return {
        "name": output_dir.absolute().name,
        **source.about,
        "tensorImageSize": f"{dims.spatial_dims}D",
        "modality": {str(channel): f"channel {channel}" for channel in range(dims.in_channels)},
        "labels": {str(value): name for name, value in labels.items()},
        **({"instances": True} if instances else {}),
        "numTraining": len(entries["training"]),
        "numTest": 0,
        "training": entries["training"],
        **{name: entries[name] for name in ("validation", "testing") if entries[name]},
        "test": [],
    }


def _entry(case: Mapping[str, Any], output_dir: Path) -> dict[str, Any]:
    image = case["image"]
    paths = [_listed(file, output_dir) for file in (image if isinstance(image, list) else [image])]
    entry = {"case": case["case"], "image": paths if isinstance(image, list) else paths[0]}
    entry["label"] = _listed(case["label"], output_dir)
    return entry | {key: case[key] for key in ("subject", "fold", "fold_name") if key in case}


def _listed(path: str, output_dir: Path) -> str:
    """A path as dataset.json holds it: relative to its folder if beneath it, else absolute."""
    absolute = Path(path).absolute()
    beneath = absolute.is_relative_to(output_dir)
    return (absolute.relative_to(output_dir) if beneath else absolute).as_posix()


def _summary(
    cases: Sequence[Mapping[str, Any]],
    lists: Mapping[str, Sequence[Mapping[str, Any]]],
    facts: Sequence[Facts],
    labels: Mapping[str, int],
    instances: bool,
) -> Iterable[str]:
    """What was found, in a few lines."""
    counts = ", ".join(f"{len(entries)} {name}" for name, entries in lists.items() if entries)
    yield f"{len(cases)} cases: {counts}"
    left_out = len(cases) - sum(map(len, lists.values()))
    if left_out:
        yield f"{left_out} cases are in no split and were left out"
    folds = Counter(case["fold"] for case in lists["training"] if "fold" in case)
    if folds:
        subjects = {case.get("subject", case["case"]) for case in lists["training"]}
        of = "subject" if len(subjects) < folds.total() else "case"
        each = f", one for each {of}, as there are no more" if len(folds) == len(subjects) else ""
        yield f"{len(folds)} folds of {', '.join(str(folds[fold]) for fold in sorted(folds))} cases{each}"
        names = {case["fold"]: case["fold_name"] for case in lists["training"] if "fold_name" in case}
        yield from (f"fold {fold}: {names[fold]}, {folds[fold]} cases" for fold in sorted(names))
    yield f"shape: {_span([case.shape for case in facts])}"
    spacings = [case.spacing for case in facts if case.spacing is not None]
    if spacings:
        yield f"spacing in mm: {_span(spacings)}"
    voxels: Counter[int] = Counter()
    for case in facts:
        voxels.update(case.voxels)
    if instances:
        per_case = [sum(value > 0 for value in case.voxels) for case in facts]
        yield f"{sum(per_case)} instances, {min(per_case)} to {max(per_case)} a case"
    for name, value in labels.items():
        yield f"label {name} = {value}: {voxels[value] / voxels.total():.2%} of voxels"


def _span(rows: Sequence[Sequence[float]]) -> str:
    """Median, lowest and highest of each axis."""
    table = np.array(rows)
    low, middle, high = (
        " x ".join(f"{value:.4g}" for value in row)
        for row in (table.min(axis=0), np.median(table, axis=0), table.max(axis=0))
    )
    return middle if low == high else f"median {middle}, from {low} to {high} on each axis"
