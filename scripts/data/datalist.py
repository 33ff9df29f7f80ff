"""Which cases train, validate and test, and which images to segment.

A data folder holds `dataset.json` in the form of the Medical Segmentation Decathlon (Antonelli et al. 2022,
Nat. Commun. 13:4128), with paths relative to it. The split comes from `splits.json` beside it, or from its
lists `training`, `validation` and `testing`, or from the `fold` of each training entry, or from folds made on
the fly.
The Decathlon's own `test` list has no labels and is left alone.

A case is known by its id, `case`, which is unique: from here on results, rows of tables and pictures are
named by it, never by a file.
"""

from __future__ import annotations

import logging
import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import Any

from monai.inferers import Inferer
from monai.transforms import Compose

from scripts.compute.classmaps import tile_of
from scripts.data.cases import InferenceCases, problem_of
from scripts.data.checks import (
    BACKGROUND_ALONE,
    Problem,
    check_image,
    check_series,
    describe,
    log_problems,
    map_cases,
    require_sound,
)
from scripts.data.names import composed, of_one_name, output_name, place, require_short
from scripts.data.reader import image_suffix, read_dims
from scripts.data.remembered import check_remembered
from scripts.data.room import Room
from scripts.dicom import DICOM_READER, SeriesFinder
from scripts.errors import Fault, InputError, few
from scripts.files import read_json
from scripts.labels import IGNORE_NAME

logger = logging.getLogger(__name__)

DEFAULT_FOLDS = 5

SIDECAR_SUFFIXES = (
    ".json",
    ".txt",
    ".md",
    ".html",
    ".csv",
    ".tsv",
    ".bval",
    ".bvec",
    ".xml",
    ".yaml",
    ".yml",
)
"""Files that often lie among images and are none."""

SPLITS = {"train": "training", "val": "validation", "test": "testing"}
"""Keys of splits.json, and the lists that they fill."""

_CHANNEL = re.compile(r"(.+)_(\d{4})")  # nnU-Net: case_0000.nii.gz is channel 0
_RESULT = re.compile(r"(.+)_(?:seg|prob|spread|mutual)")


def id_of(case: Mapping[Hashable, Any]) -> str:
    """The id of a case on its way through transforms.

    Args:
        case: with "case", as every list of this module has it, or, from a host, with an "image" that says
            which file it comes from.
    """
    return str(case["case"] if "case" in case else case_id(case["image"].meta["filename_or_obj"]))


def case_id(path: str | Path) -> str:
    """File name without its image suffix and without nnU-Net's `_0000` of the first channel."""
    return file_stem(path).removesuffix("_0000")


def file_stem(path: str | Path) -> str:
    """File name without the suffix of an image or of a volume (`.nii.gz` as a whole); other dots stay.

    Accents are `composed`.
    """
    return composed(Path(path).name.removesuffix(image_suffix(path)).removesuffix(".zarr"))


def list_images(folder: Path) -> list[Path]:
    """Files of a folder in sorted order, without hidden ones (`.DS_Store`) and `SIDECAR_SUFFIXES`.

    What is called like an image and is none is among them, to be told: a link to nothing, a folder.
    """
    return sorted(
        file
        for file in folder.iterdir()
        if not file.name.startswith(".")
        and (image_suffix(file) or (not file.is_dir() and file.suffix.lower() not in SIDECAR_SUFFIXES))
    )


def named_images(folder: Path, name: str) -> dict[Path, str]:
    """The images of a folder, or of its subfolders where it holds no others, and what they are called.

    A file is called by its name without the suffix, and by its folder where every case has one.

    Args:
        folder: of images, or of folders of one image each.
        name: of the argument, for messages.

    Raises:
        InputError: the folder of a case does not hold one image.
    """
    files = list_images(folder)
    inner = [] if files else sorted(path for path in folder.iterdir() if path.is_dir())
    inner = [path for path in inner if not path.name.startswith(".") and path.suffix.lower() != ".zarr"]
    found = {path: list_images(path) for path in inner}
    for path, held in found.items():
        if len(held) != 1:
            raise InputError(
                f"{name}: {path} holds {len(held)} images; the folder of a case holds one; move the others "
                "away, or list the files of each case in a dataset.json (and hand its folder to datalist as "
                "--msd, to an inference with --section)."
            )
    return {file: file_stem(file) for file in files} | {
        held[0]: composed(path.name) for path, held in found.items()
    }


def without_results(named: Mapping[Path, str]) -> dict[Path, str]:
    """Files of a folder but for results that an inference wrote beside its images; the log names these.

    A result is called as `output_path` calls it, after another file or its case: `a_seg`, `a_prob`,
    `a_spread` or `a_mutual` where `a` lies too.

    Args:
        named: files, and what they are called.
    """
    cases = {output_name(case) for name in named.values() for case in (name, _CHANNEL.sub(r"\1", name))}
    results = {file for file, name in named.items() if (made := _RESULT.fullmatch(name)) and made[1] in cases}
    if results:
        logger.warning(
            "%s: left out, as results of the images beside them: %s",
            min(results).parent,
            few([file.name for file in sorted(results)]),
        )
    return {file: name for file, name in named.items() if file not in results}


def dataset_labels(description: Mapping[str, Any], path: Path) -> dict[str, int]:
    """Name to value of the labels that a dataset.json declares, in the order of the values.

    Args:
        description: its content; `labels` is `{"0": "background"}` (Decathlon, nnU-Net v1) or
            `{"background": 0}` (nnU-Net v2).
        path: the file, for messages.

    Returns:
        The labels; empty if none are declared.

    Raises:
        InputError: if an entry is not one name with one whole number, or a name or value comes twice.
    """
    declared = description.get("labels", {})
    if not isinstance(declared, dict):
        raise InputError(
            f"{path} has 'labels' that are a {type(declared).__name__}; names with their values are "
            'expected, {"0": "background", "1": "organ"}; correct them.'
        )
    pairs = []
    for key, value in declared.items():
        number, name = (key, value) if isinstance(value, str) else (value, key)
        if isinstance(number, bool) or not isinstance(number, int | str) or not str(number).isdecimal():
            raise InputError(
                f"{path} declares the label '{key}': {value!r}; a label is one name with one whole number "
                "from 0 up (regions of several labels are not supported); list the single labels."
            )
        pairs.append((int(number), name))
    labels = {name: number for number, name in sorted(pairs)}
    if len(labels) != len(pairs) or len(set(labels.values())) != len(pairs):
        raise InputError(f"{path} declares a label name or value twice; each must be unique; rename one.")
    return labels


def assign_folds(
    ids: Iterable[str], folds: int, seed: int, subjects: Mapping[str, str] | None = None
) -> dict[str, int]:
    """Spread cases over folds, all cases of a subject in the same one.

    Subjects are sorted, shuffled by `random.Random(seed)` and, those with most cases first, each given to the
    fold that is smallest so far. Where every case is its own subject that deals them out in turn.

    Args:
        ids: case ids.
        folds: number of folds, at least 2.
        seed: seed of the shuffle.
        subjects: case id to subject; None: every case is its own.

    Returns:
        Case id to fold, 0 to `folds - 1`.

    Raises:
        InputError: if there are fewer subjects than folds.
    """
    members: defaultdict[str, list[str]] = defaultdict(list)
    for case in sorted(ids):
        members[subjects[case] if subjects else case].append(case)
    if not 2 <= folds <= len(members):
        raise InputError(
            f"{folds} folds cannot be made of {len(members)} subjects; there must be at least 2 folds and no "
            "more than subjects; give --folds a number of 2 to their number, or add cases."
        )
    order = sorted(members)
    random.Random(seed).shuffle(order)
    sizes = [0] * folds
    fold_of: dict[str, int] = {}
    for subject in sorted(order, key=lambda name: -len(members[name])):
        fold = sizes.index(min(sizes))
        sizes[fold] += len(members[subject])
        fold_of.update(dict.fromkeys(members[subject], fold))
    return fold_of


def read_splits_file(path: Path, ids: Iterable[str]) -> dict[str, list[str]]:
    """Read `{"train": [ids], "val": [ids], "test": [ids]}`; `test` may be absent.

    Args:
        path: the file.
        ids: all case ids that there are.

    Returns:
        Ids of `training`, `validation` and `testing`.

    Raises:
        InputError: if a list is missing or no list of ids, an id has no case or is in two lists.
    """
    content = read_json(path)
    known = set(ids)
    splits: dict[str, list[str]] = {}
    for key, name in SPLITS.items():
        listed = content.get(key, [])
        if not isinstance(listed, list) or not all(isinstance(case, str) for case in listed):
            raise InputError(f"{path} has '{key}' that is no list of case ids; write a list of strings.")
        splits[name] = [composed(case) for case in listed]
        if key != "test" and not splits[name]:
            raise InputError(f"{path} has no cases under '{key}'; 'train' and 'val' need some; add case ids.")
        unknown = sorted(set(splits[name]) - known)
        if unknown:
            raise InputError(
                f"{path} names {few(unknown)} under '{key}', for which the data set has no case; "
                "correct the ids or add the cases."
            )
    _require_unique((case for cases in splits.values() for case in cases), path)
    return splits


def read_split(
    dataset_dir: str | Path,
    *,
    spatial_dims: int,
    in_channels: int,
    labels: Mapping[str, int],
    instances: bool = False,
    fold: int = 0,
    seed: int = 0,
    check: str = "always",
) -> dict[str, list[dict[str, Any]]]:
    """Read the cases of a data folder and check their files.

    Args:
        dataset_dir: folder with dataset.json, relative to the working directory or absolute.
        spatial_dims: 2 or 3.
        in_channels: channels that the network takes.
        labels: name to value, as in `check_case`.
        instances: labels number the instances; then `labels` is not compared with the files.
        fold: the fold that validates, where neither splits.json nor a validation list says what does.
        seed: seed of the folds made on the fly.
        check: whether every file is read and bad ones refused: "always"; "remembered", only what has not
            passed before or has changed since, see `scripts.data.remembered`; or "never".

    Returns:
        `training`, `validation` and `testing`: lists of `{"image", "label", "case"}` with absolute paths.

    Raises:
        InputError: if the folder, dataset.json, the split or a file is not usable.
    """
    path = _existing_folder(dataset_dir) / "dataset.json"
    if not instances:
        _compare_labels(dataset_labels(_description(path), path), labels, path)
    result = sections(dataset_dir, fold, seed)
    cases = [case for name in SPLITS.values() for case in result[name]]
    problems = check_remembered(
        cases,
        path.parent,
        check,
        spatial_dims=spatial_dims,
        in_channels=in_channels,
        labels=labels,
        instances=instances,
    )
    require_sound(problems)
    empty = {problem.case for problem in problems if problem.found == BACKGROUND_ALONE}
    if result["validation"] and empty >= {case["case"] for case in result["validation"]}:
        logger.warning(
            "none of the %d validation cases of %s shows anything but background: no epoch of a training can "
            "be judged by them, which keeps its last weights; choose another --fold or add such cases",
            len(result["validation"]),
            path,
        )
    logger.info("%s: %s", path, ", ".join(f"{len(result[name])} {name}" for name in result))
    return result


def cases_of(split: Mapping[str, list[dict[str, Any]]], section: str) -> list[dict[str, Any]]:
    """Cases of one section of a split, to be judged.

    Args:
        split: what `read_split` returned.
        section: "training", "validation" or "testing".

    Raises:
        InputError: if there is no such section, or no case in it.
    """
    filled = [name for name, cases in split.items() if cases]
    if section not in filled:
        raise InputError(
            f"section is '{section}', which holds no case; {' and '.join(filled)} hold some; set --section "
            "to one of these, or hold test cases out with 'python -m bundle datalist --test_fraction 0.2'."
        )
    return split[section]


def _description(path: Path) -> dict[str, Any]:
    """The content of a dataset.json."""
    if not path.is_file():
        raise InputError(
            f"dataset_dir {path.parent} has no dataset.json; it lists the images and labels; make one with "
            f"'python -m bundle datalist --images DIR --labels DIR --output_dir {path.parent}'."
        )
    return read_json(path)


def sections(dataset_dir: str | Path, fold: int = 0, seed: int = 0) -> dict[str, list[dict[str, Any]]]:
    """The cases of a data folder as they are listed, without a look at their files; see `read_split`."""
    path, lists = _lists(dataset_dir)
    split = _split(path.parent, lists, fold, seed)
    _require_whole_subjects(path, split)
    return {name: [_plain(entry) for entry in split[name]] for name in SPLITS.values()}


def read_folds(dataset_dir: str | Path, seed: int = 0) -> dict[int, list[dict[str, Any]]]:
    """The cases of a data folder by the fold in which they validate, without a look at their files.

    Args:
        dataset_dir: see `read_split`.
        seed: seed of the folds made on the fly.

    Returns:
        Fold to its cases, in order; empty where splits.json or a validation list fixes the split.

    Raises:
        InputError: if the folder, dataset.json or the split is not usable, or a subject has cases in two
            folds, or in one and among those held out.
    """
    path, lists = _lists(dataset_dir)
    if _fixed_by(path.parent, lists):
        return {}
    fold_of = _folds(path, lists["training"], seed)
    folds: dict[int, list[dict[str, Any]]] = {fold: [] for fold in sorted(set(fold_of.values()))}
    for entry in lists["training"]:
        folds[fold_of[entry["case"]]].append(entry)
    named = {f"fold {fold}": entries for fold, entries in folds.items()}
    _require_whole_subjects(path, {**named, "testing": lists["testing"]})
    return {fold: [_plain(entry) for entry in entries] for fold, entries in folds.items()}


def read_subjects(dataset_dir: str | Path) -> dict[str, str]:
    """The subject of each case of a data folder: as listed, else the case itself."""
    _, lists = _lists(dataset_dir)
    entries = [entry for listed in lists.values() for entry in listed]
    return {entry["case"]: entry.get("subject", entry["case"]) for entry in entries}


def _lists(dataset_dir: str | Path) -> tuple[Path, dict[str, list[dict[str, Any]]]]:
    """The dataset.json of a folder, and the entries of its lists."""
    path = _existing_folder(dataset_dir) / "dataset.json"
    lists = read_entries(_description(path), path)
    entries = [entry for listed in lists.values() for entry in listed]
    if not entries:
        raise InputError(
            f"{path} lists no cases under 'training'; there must be some; make the list with "
            f"'python -m bundle datalist --images DIR --labels DIR --output_dir OUT' (or --nnunet, --msd)."
        )
    _require_unique((entry["case"] for entry in entries), path)
    return path, lists


def _require_whole_subjects(path: Path, parts: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Refuse a subject of which one part of a split learns, or validates, what another is judged by."""
    seen: dict[str, tuple[str, str]] = {}
    for name, entries in parts.items():
        for entry in entries:
            if "subject" not in entry:
                continue
            before, case = seen.setdefault(entry["subject"], (name, entry["case"]))
            if before != name:
                raise InputError(
                    f"{path} has the subject '{entry['subject']}' in {before} ({case}) and in {name} "
                    f"({entry['case']}); all cases of a subject belong to one; list the data again with "
                    "'python -m bundle datalist --subjects', or move the cases together."
                )


def read_images(
    dataset_dir: str | Path,
    *,
    spatial_dims: int,
    in_channels: int,
    section: str | None = None,
    fold: int = 0,
    seed: int = 0,
    reader: str = "scripts.data.ImageReader",
    preprocessing: Compose | None = None,
    classes: int = 1,
    inferer: Inferer | None = None,
    postprocessing: Callable | None = None,
    to_dicom: bool = False,
) -> InferenceCases:
    """Find the images of a folder, or of a section of a data set, and check them.

    Bad images are logged and left out, and so are those that would take more memory than there is.

    Args:
        dataset_dir: folder of images, relative to the working directory or absolute. Where the network takes
            several channels and every file is named like nnU-Net's `case_0000.nii.gz`, `case_0001.nii.gz`,
            the files of a case belong together. With a ``section`` a folder with dataset.json. For DICOM a
            folder, with its subfolders, or a zip or multi-frame file, whose series are the cases.
        spatial_dims: 2 or 3.
        in_channels: channels that the network takes.
        section: "training", "validation" or "testing" of the data set, or None.
        fold: the fold that validates, see `read_split`.
        seed: seed of the folds made on the fly.
        reader: what the images are read with; scripts.dicom.DicomReader for DICOM.
        preprocessing: what brings an image to the network, for the memory that it takes; None does nothing.
        classes: that the network tells apart, for the same.
        inferer: what predicts, for the same, and so that cases may be loaded and finished
            while others are predicted; None: one after the other.
        postprocessing: what is done with what it gives, for the same.
        to_dicom: whether the results will be DICOM that refers to the images, whose headers must do for it.

    Returns:
        The sound images and the problems of the others.

    Raises:
        InputError: if the folder is missing or holds no images, two files have the same case id, or no image
            is sound; if the data set is not usable or the section holds no case.
    """
    kind = {"spatial_dims": spatial_dims, "in_channels": in_channels}
    tile = tile_of(inferer, postprocessing)
    if reader == DICOM_READER:
        folder, finder = Path(dataset_dir).expanduser().absolute(), SeriesFinder()
        cases = _series(folder, finder, section)
        room = Room(preprocessing, classes, finder=finder, tile=tile)

        def check(case: Mapping[str, Any]) -> list[Problem]:
            return check_series(case, finder, to_dicom=to_dicom, **kind)

    else:
        folder, room = _existing_folder(dataset_dir), Room(preprocessing, classes, tile=tile)
        if section is None:
            cases = found_images(folder, in_channels)
        else:
            listed = cases_of(sections(folder, fold, seed), section)
            cases = [{key: case[key] for key in ("image", "case")} for case in listed]

        def check(case: Mapping[str, Any]) -> list[Problem]:
            return check_image(case, **kind)

    checked = map_cases(lambda case: _problems(case, room, check), cases, "Checking images")
    problems = [problem for problems in checked for problem in problems]
    found = _sound(cases, problems, f"images in {folder}", beside=_beside(room, inferer))
    return replace(found, dicom=reader == DICOM_READER)


def sound_cases(
    split: Mapping[str, list[dict[str, Any]]],
    section: str,
    dataset_dir: str | Path,
    *,
    spatial_dims: int,
    in_channels: int,
    labels: Mapping[str, int],
    instances: bool = False,
    check: str = "always",
    preprocessing: Compose | None = None,
    classes: int = 1,
    inferer: Inferer | None = None,
    postprocessing: Callable | None = None,
    work: str = "judged",
) -> InferenceCases:
    """Check the cases of a section of a split, to be judged.

    Bad ones are logged and left out, and so are those that would take more memory than there is.

    Args:
        split: what `read_split` gave, with ``check`` "never".
        section: "training", "validation" or "testing".
        dataset_dir: see `read_split`.
        spatial_dims: 2 or 3.
        in_channels: channels that the network takes.
        labels: see `read_split`.
        instances: see `read_split`.
        check: see `read_split`.
        preprocessing: what brings a case to the network, for the memory that it takes; None does nothing.
        classes: that the network tells apart, for the same.
        inferer: see `read_images`.
        postprocessing: see `read_images`.
        work: what is done to a case, for messages.

    Returns:
        The sound cases and the problems of the others.

    Raises:
        InputError: the section holds no case, or none that is sound.
    """
    cases, folder = cases_of(split, section), Path(dataset_dir).expanduser().absolute()
    room = Room(preprocessing, classes, labelled=True, tile=tile_of(inferer, postprocessing))
    problems = [problem for case in cases for problem in room.problems(case)]
    large = {problem.case for problem in problems if problem.severity == "error"}
    problems += check_remembered(
        [case for case in cases if case["case"] not in large],
        folder,
        check,
        spatial_dims=spatial_dims,
        in_channels=in_channels,
        labels=labels,
        instances=instances,
    )
    place = f"cases of the section '{section}' of {folder}"
    return _sound(cases, problems, place, work, _beside(room, inferer))


def split_images(
    dataset_dir: str | Path,
    *,
    spatial_dims: int,
    in_channels: int,
    held_out: float = 0.1,
    fold: int = 0,
    seed: int = 0,
) -> dict[str, list[dict[str, Any]]]:
    """Images to learn from without labels, and those to validate on, after a look at every file.

    Bad images are logged and left out: nobody went through the images of a folder one by one, as those do
    who annotate.

    Args:
        dataset_dir: folder of images, see `read_images`; or folder with dataset.json, of which training and
            validation cases are taken without their labels, and no testing cases.
        spatial_dims: 2 or 3.
        in_channels: channels that the network takes.
        held_out: share of the images of a folder that validate, at least one.
        fold: the fold that validates, see `read_split`.
        seed: seed of the share, or of folds made on the fly.

    Returns:
        `training` and `validation`, as of `read_split`, without labels.

    Raises:
        InputError: if the folder or dataset.json is not usable, fewer than two images of a folder are, or
            none of a list.
    """
    folder = _existing_folder(dataset_dir)
    listed = sections(folder, fold, seed) if (folder / "dataset.json").is_file() else None
    cases = found_images(folder, in_channels) if listed is None else listed["training"] + listed["validation"]
    everything = [{key: case[key] for key in ("image", "case")} for case in cases]

    def check(case: Mapping[str, Any]) -> list[Problem]:
        return check_image(case, spatial_dims=spatial_dims, in_channels=in_channels)

    problems = [problem for found in map_cases(check, everything, "Checking images") for problem in found]
    bad = {problem.case for problem in problems if problem.severity == "error"}
    sound = [case for case in everything if case["case"] not in bad]
    if listed is None:
        random.Random(seed).shuffle(sound)
        count = min(max(round(held_out * len(sound)), 1), len(sound) - 1)
        split = {"training": sound[count:], "validation": sound[:count]}
    else:
        validating = {case["case"] for case in listed["validation"]}
        split = {
            "training": [case for case in sound if case["case"] not in validating],
            "validation": [case for case in sound if case["case"] in validating],
        }
    if bad and not all(split.values()):
        require_sound(problems)
    log_problems(problems)
    if listed is None and len(everything) == 1:
        raise InputError(
            f"dataset_dir {folder} holds one image; one to learn from and one to validate on are needed; "
            "put more in or hand another folder."
        )
    if bad:
        logger.warning("%d of %d images are left out: %s", len(bad), len(everything), few(sorted(bad)))
    logger.info(
        "%s: %s images without labels", folder, ", ".join(f"{len(split[name])} {name}" for name in split)
    )
    return split


def _problems(
    case: Mapping[str, Any], room: Room, check: Callable[[Mapping[str, Any]], list[Problem]]
) -> list[Problem]:
    """What is wrong with a case; it is read only if there is room for it."""
    found = room.problems(case)
    if any(problem.severity == "error" for problem in found):
        return found
    try:
        return found + check(case)
    except InputError:
        raise
    except Exception as error:  # of this file
        return [*found, problem_of(case, error)]


def _beside(room: Room, inferer: Inferer | None) -> bool:
    """Whether cases are loaded and finished while others are predicted: a budget counts one case alone."""
    predicts = getattr(inferer, "inferer", inferer)
    return predicts is not None and getattr(predicts, "memory_gb", None) is None and room.beside()


def _sound(
    cases: Sequence[dict[str, Any]],
    problems: Sequence[Problem],
    place: str,
    work: str = "segmented",
    beside: bool = False,
) -> InferenceCases:
    """Leave out the cases that have errors, and say what they are."""
    bad = {problem.case for problem in problems if problem.severity == "error"}
    sound = [case for case in cases if str(case["case"]) not in bad]
    if not sound:
        raise InputError(describe(problems, f"None of the {len(cases)} {place} is usable:"))
    log_problems(problems)
    return InferenceCases(sound, list(problems), work, beside)


def found_images(folder: Path, in_channels: int) -> list[dict[str, Any]]:
    """Cases of a folder of images: `{"image": path or list of paths, "case": id}`, see `group_channels`.

    Raises:
        InputError: no images lie in it directly.
    """
    inner = [name for name in ("imagesTs", "imagesTr") if (folder / name).is_dir()]
    if inner:
        raise InputError(
            f"dataset_dir {folder} is a data set, not a folder of images; images must lie in it directly; "
            f"hand {' or '.join(str(folder / name) for name in inner)}, or set --section testing."
        )
    named = without_results(named_images(folder, "dataset_dir"))
    if not named:
        raise InputError(f"dataset_dir {folder} holds no images; put some in or hand another folder.")
    return group_channels(named, in_channels)


def _series(place: Path, finder: SeriesFinder, section: str | None) -> list[dict[str, Any]]:
    """Cases of a folder or a zip file of DICOM; says how many, and what is no image."""
    if section is not None:
        raise InputError(
            f"section is '{section}' and the images are DICOM, of which no dataset.json lists any; leave out "
            "--section and hand the folder of the series."
        )
    found = finder.look(place)
    sizes = ", ".join(f"{name} ({len(files)} files)" for name, files in found.series.items())
    logger.info("%s: %d series: %s", place, len(found.series), sizes)
    if found.left_out:
        logger.warning("%s: left out: %s", place, found.describe())
    return [{"image": str(place / name), "case": name} for name in found.series]


def _existing_folder(dataset_dir: str | Path) -> Path:
    folder = Path(dataset_dir).expanduser().absolute()
    if not folder.is_dir():
        raise InputError(f"dataset_dir {folder} is no folder; it must exist; hand the folder of the data.")
    if not any(folder.iterdir()):
        raise InputError(f"dataset_dir {folder} is empty; it must hold the data; hand another folder.")
    return folder


def _compare_labels(declared: Mapping[str, int], labels: Mapping[str, int], path: Path) -> None:
    optional = {labels[IGNORE_NAME]} if IGNORE_NAME in labels else set()
    if declared and set(declared.values()) - optional != set(labels.values()) - optional:
        raise InputError(
            f"{path} declares the labels {dict(declared)} and the config has {dict(labels)}; the values must "
            "be the same; hand the task.json that `python -m bundle datalist` wrote as an overlay, or set "
            "--labels."
        )


def read_entries(description: Mapping[str, Any], path: Path) -> dict[str, list[dict[str, Any]]]:
    """Read the lists of a dataset.json.

    Args:
        description: its content.
        path: the file, for messages and as the place that relative paths start from.

    Returns:
        Entries of `training`, `validation` and `testing` with absolute paths and a `case` id; where the file
        gives none it is made of the path of the image.

    Raises:
        InputError: if an entry is no object with an image, or its id is no text.
    """
    lists = {}
    for name in SPLITS.values():
        listed = description.get(name, [])
        if not isinstance(listed, list) or not all(map(_is_entry, listed)):
            raise InputError(
                f"{path} has an entry under '{name}' without an image; each must be "
                '{"image": path, "label": path}, a list of paths for several channels; correct the entry.'
            )
        for entry, key in ((entry, key) for entry in listed for key in ("case", "subject") if key in entry):
            if not isinstance(entry[key], str) or not entry[key]:
                raise InputError(
                    f"{path} has the {key} {entry[key]!r} under '{name}'; an id is a text; quote it."
                )
        lists[name] = [_absolute(entry, path.parent) for entry in listed]
    _name_cases([entry for listed in lists.values() for entry in listed if "case" not in entry])
    return lists


def _is_entry(entry: Any) -> bool:
    """Whether an entry has the paths of an image, and of a label if it has one."""
    if not isinstance(entry, dict):
        return False
    image, label = entry.get("image"), entry.get("label") or "none"
    files = [*(image if isinstance(image, list) else [image]), label]
    return len(files) > 1 and all(isinstance(file, str) and file for file in files)


def _absolute(entry: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    image = entry["image"]
    files = [place(folder, file) for file in (image if isinstance(image, list) else [image])]
    result = {**entry, "image": files if isinstance(image, list) else files[0]}
    if entry.get("label"):
        result["label"] = place(folder, entry["label"])
    if "case" in entry:
        result["case"] = composed(entry["case"])
    return result


def _name_cases(entries: Sequence[dict[str, Any]]) -> None:
    """Give cases an id: the name of the image, or where images share one what differs in their paths.

    `x_0000` is the first channel of `x`, but a frame where another case begins with `x_0001`.
    """
    paths = [Path(_first_image(entry)) for entry in entries]
    numbered = [(path.parent, match) for path in paths if (match := _CHANNEL.fullmatch(file_stem(path)))]
    frames = {(folder, match[1]) for folder, match in numbered if match[2] != "0000"}
    bare = [path.parent / case_id(path) for path in paths]
    paths = [
        path.parent / file_stem(path) if (name.parent, name.name) in frames else name
        for path, name in zip(paths, bare, strict=True)
    ]
    count = Counter(path.name for path in paths)
    shared = [path.parts for path in paths if count[path.name] > 1]
    start = _shared_start(shared)
    end = _shared_start([parts[start:][::-1] for parts in shared])
    for entry, path in zip(entries, paths, strict=True):
        differing = path.parts[start : len(path.parts) - end] if count[path.name] > 1 else ()
        entry["case"] = composed("_".join(differing)) or path.name


def _shared_start(rows: Sequence[Sequence[str]]) -> int:
    """How many of their first parts all rows have alike."""
    columns = zip(*rows, strict=False)  # as long as the shortest
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))


def _first_image(entry: Mapping[str, Any]) -> str:
    return entry["image"][0] if isinstance(entry["image"], list) else entry["image"]


def _plain(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: entry[key] for key in ("image", "label", "case") if key in entry}


def _require_unique(ids: Iterable[str], path: Path) -> None:
    """Refuse ids that are equal, too long, or that would give their results one name on any file system."""
    listed = list(ids)
    for case in listed:
        try:
            require_short(case)
        except Fault as fault:
            raise fault.of(path) from None
    clashes = of_one_name(listed)
    if clashes:
        raise InputError(
            f"{path} lists {few(clashes)} more than once, or their results would have one name; each case "
            'has an id of its own ("case" of an entry) and belongs to one split; rename or remove the others.'
        )


def _split(
    folder: Path,
    lists: Mapping[str, list[dict[str, Any]]],
    fold: int,
    seed: int,
) -> Mapping[str, list[dict[str, Any]]]:
    """Apply the first rule of the module that fits."""
    fixed, path = _fixed_by(folder, lists), folder / "dataset.json"
    if fixed and fold != 0:
        logger.warning("fold=%d has no effect: %s fixes the split", fold, fixed)
    if fixed == path:
        return lists
    if fixed:
        by_id = {entry["case"]: entry for listed in lists.values() for entry in listed}
        splits = read_splits_file(fixed, by_id)
        left_out = len(by_id) - sum(map(len, splits.values()))
        if left_out:
            logger.warning("%s leaves out %d of %d cases", fixed, left_out, len(by_id))
        return {name: [by_id[case] for case in ids] for name, ids in splits.items()}
    fold_of = _folds(path, lists["training"], seed)
    known = sorted(set(fold_of.values()))
    if fold not in known:
        raise InputError(f"fold={fold} does not exist in {path}; it has {known}; set --fold to one of them.")
    return {
        "training": [entry for entry in lists["training"] if fold_of[entry["case"]] != fold],
        "validation": [entry for entry in lists["training"] if fold_of[entry["case"]] == fold],
        "testing": lists["testing"],
    }


def _fixed_by(folder: Path, lists: Mapping[str, Sequence[Mapping[str, Any]]]) -> Path | None:
    """The file that says which cases validate, so that there are no folds; None where there are."""
    file = folder / "splits.json"
    return file if file.is_file() else folder / "dataset.json" if lists["validation"] else None


def _folds(path: Path, training: Sequence[Mapping[str, Any]], seed: int) -> Mapping[str, int]:
    """The fold of each training case, as listed or made on the fly."""
    fold_of = {entry["case"]: entry["fold"] for entry in training if "fold" in entry}
    wrong = next((case for case in fold_of if type(fold_of[case]) is not int), None)
    if wrong is not None:
        raise InputError(
            f"{path} has the fold {fold_of[wrong]!r} of {wrong}; a fold is a whole number; write one."
        )
    if fold_of and len(fold_of) != len(training):
        raise InputError(
            f"{path} has 'fold' in {len(fold_of)} of {len(training)} training entries; all or none need it; "
            "add the missing ones."
        )
    if not fold_of:
        if len(training) < 2:
            raise InputError(
                f"{path} lists {len(training)} case under 'training' and none under 'validation'; each "
                "needs one; add cases."
            )
        fold_of = assign_folds((entry["case"] for entry in training), min(DEFAULT_FOLDS, len(training)), seed)
        logger.info("%s has no folds: made %d with seed %d", path, len(set(fold_of.values())), seed)
    return fold_of


def group_channels(named: Mapping[Path, str], in_channels: int) -> list[dict[str, Any]]:
    """Cases of the files of a folder.

    Where the name of every file says which channel it is (`_0000`, below ``in_channels``) and none holds
    several, a case is called by the name without it, and its files go together, which the log tells; else
    every file is a case: colour pictures with such names are frames.

    Args:
        named: files in order, and what they are called.
        in_channels: files that a case may have.

    Returns:
        `{"image": path or list of paths, "case": id}` of each case.

    Raises:
        InputError: if the results of two files would have one name.
    """
    clashes = set(of_one_name(named.values()))
    if clashes:
        files = [file for file, name in named.items() if name in clashes]
        raise InputError(
            f"{few(files)} have the same case id, or ids that some file system takes for one; their results "
            "would have the same name; rename or remove the others."
        )
    matches = [_CHANNEL.fullmatch(name) for name in named.values()]
    ids = [match[1] for match in matches if match and int(match[2]) < in_channels]
    if len(ids) < len(named) or (in_channels > 1 and any(_channels(file) > 1 for file in named)):
        ids = list(named.values())
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for name, file in zip(ids, named, strict=True):
        groups[name].append(str(file))
    if len(groups) < len(named):
        logger.info(
            "%d files are taken for the channels of %d cases, by their names", len(named), len(groups)
        )
    return [{"image": paths if len(paths) > 1 else paths[0], "case": name} for name, paths in groups.items()]


def _channels(file: Path) -> int:
    """How many channels a file holds by its header; 1 where that cannot be read."""
    return (read_dims(file) or (0, 1))[1]
