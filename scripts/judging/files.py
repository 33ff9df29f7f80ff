"""Cases that lie in files: predictions and truths, paired by name and read."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from skimage.measure import label as components
from tqdm import tqdm

from scripts.data.checks import read_label
from scripts.data.datalist import cases_of, file_stem, list_images, named_images, read_folds, sections
from scripts.data.names import output_name
from scripts.data.pictures import Picture
from scripts.data.reader import columns_first, grid_of, is_picture, read_file
from scripts.errors import Fault, InputError, few
from scripts.judging.case import Case, objects_of
from scripts.judging.membranes import cells_apart, section
from scripts.labels import IGNORE_NAME, class_values, name_values

#: How far from 1 the probabilities of the classes of a pixel may add up.
SUM_TOLERANCE = 1e-2


@dataclass(frozen=True)
class Pair:
    """A prediction and its truth.

    Attributes:
        case: id of the case.
        pred: file of the prediction.
        truth: file of the truth.
        probabilities: file of them, where there are labels as well; or None.
    """

    case: str
    pred: Path
    truth: Path
    probabilities: Path | None = None


def find_pairs(
    pred: Path, truth: Path, probabilities: bool = False, section: str | None = None
) -> tuple[list[Pair], list[str], int]:
    """Pair two folders by name, or take two files as they are.

    A prediction is called as its truth, or so with `_seg` (labels) or `_prob` (probabilities) at the end. Of
    several for one case `_seg` comes before the bare name. What ends in `_spread` or `_mutual` is none.

    Args:
        pred: folder or file.
        truth: folder or file, as `pred`.
        probabilities: whether `_prob` will do, and comes first.
        section: the truths are those of a section of a data set, called by the ids of their cases: "testing",
            "validation" or "training", where there are folds that of all folds; ``truth`` is then the folder
            with dataset.json.

    Returns:
        The pairs, a sentence for each prediction without one, and the number of truths without prediction.

    Raises:
        InputError: a path that does not exist, a folder with a file, or folders without any pair.
    """
    for path in (pred, truth):
        if not path.exists():
            raise InputError(
                f"{path} does not exist; PRED and TRUTH are two folders or two files; correct it."
            )
    if pred.is_file() != truth.is_file():
        raise InputError(
            f"{pred} and {truth} are a file and a folder; both are of one kind; give two files or folders."
        )
    if truth.is_file():
        return [Pair(file_stem(truth), pred, truth)], [], 0
    truths: dict[str, list[Path]] = defaultdict(list)
    ids: dict[str, str] = {}
    for case in [] if section is None else _cases(truth, section):
        ids[output_name(case["case"])] = case["case"]
        truths[output_name(case["case"])].append(Path(case["label"]))
    for file, name in named_images(truth, "TRUTH").items() if section is None else ():
        truths[name].append(file)
    found: dict[str, dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
    for file in list_images(pred):
        stem = file_stem(file)
        ending = re.search("_(seg|prob|spread|mutual)$", stem) if stem not in truths else None
        if ending and ending[1] in ("spread", "mutual"):
            continue
        name, kind = (stem[: ending.start()], ending[1]) if ending else (stem, "")
        found[name][kind].append(file)
    wanted = ("prob", "seg", "") if probabilities else ("seg", "")
    pairs, problems = [], []
    for name, kinds in sorted(found.items()):
        files = next((kinds[kind] for kind in wanted if kind in kinds), [])
        try:
            pairs.append(_pair(ids.get(name, name), files, truths.get(name, []), kinds, truth))
        except Fault as fault:
            problems.append(str(fault))
    alone = [kinds["prob"][0] for name, kinds in found.items() if set(kinds) == {"prob"} and name in truths]
    if not pairs and alone:
        raise InputError(
            f"{pred} holds probabilities alone, such as {alone[0].name}, and this measure compares labels: "
            "segment the images again, which writes CASE_seg beside CASE_prob"
        )
    if not pairs:
        some, others = few([file.name for file in list_images(pred)]), few(list(truths))
        raise InputError(
            f"no file of {pred} ({some or 'empty'}) goes with a truth of {truth} ({others or 'empty'}); "
            "a prediction is called as its truth, with _seg or _prob (probabilities, for membranes) at the "
            "end or without; rename the files."
        )
    return pairs, problems, len(truths.keys() - found.keys())


def _cases(folder: Path, section: str) -> list[dict[str, Any]]:
    """Cases of a section of a data set; with folds every case is one to train on."""
    folds = read_folds(folder) if section == "training" else {}
    return [case for cases in folds.values() for case in cases] or cases_of(sections(folder), section)


def _pair(
    case: str, files: Sequence[Path], truths: Sequence[Path], kinds: Mapping[str, list[Path]], folder: Path
) -> Pair:
    """The pair of a case, if it has one prediction and one truth."""
    if not files:
        file = next(iter(kinds.values()))[0]
        raise Fault("probabilities alone", "this measure compares labels", f"add {case}_seg", file)
    if not truths:
        raise Fault(f"no truth '{case}' in {folder}", "each prediction needs one", "add it", files[0])
    for rivals in (files, truths):
        if len(rivals) > 1:
            found = f"{len(rivals)} files of one case ({', '.join(file.name for file in rivals)})"
            raise Fault(found, "one is expected", "keep one", rivals[0])
    beside = [file for file in kinds.get("prob", ()) if file not in files]
    return Pair(case, files[0], truths[0], beside[0] if len(beside) == 1 else None)


def found_labels(pairs: Collection[Pair], ignored: int | None = None) -> dict[str, int]:
    """Names for the values of all truths: the lowest is the background.

    Args:
        pairs: the files.
        ignored: the value of what nobody annotated, or None.

    Raises:
        InputError: too few or too many values to be classes.
    """
    values: set[int] = set()
    for pair in tqdm(pairs, desc="looking for classes", disable=None):
        try:
            values |= set(np.unique(read_label(pair.truth)[0]).tolist())
        except Fault:
            continue  # it will be told when its turn comes
    fix = "take --measure instances if they number objects, or name them with --label_name"
    return name_values(values, fix, ignored)


def read_values(pair: Pair, labels: Mapping[str, int] | None = None, instances: bool = False) -> Case:
    """The values of prediction and truth as they lie in the files, on one grid.

    Args:
        pair: the files.
        labels: name to value of what they may hold; None: anything. Of instances the entry "ignore" is used,
            for the truth.
        instances: they number objects.

    Raises:
        Fault: an unsound file, two sizes, or two grids.
    """
    truth, grid = read_label(pair.truth, labels, instances)
    named = None if instances else labels
    pred, _ = read_label(pair.pred, named, instances, grid, f"truth {pair.truth}")
    return Case(pair.case, pred, truth, spacing=grid.spacing)


def read_classes(pair: Pair, labels: Mapping[str, int]) -> Case:
    """Class maps; see `read_values`.

    Args:
        pair: the files.
        labels: class name to value; an entry "ignore" names the value that nobody annotated.

    Raises:
        Fault: also for probabilities of another grid, or other classes.
    """
    case = read_values(pair, labels)
    mask = case.truth != labels[IGNORE_NAME] if IGNORE_NAME in labels else None
    pred, truth = (_classes(values, labels) for values in (case.pred, case.truth))
    case = replace(case, pred=pred, truth=truth, mask=mask)
    if pair.probabilities is None:
        return case
    file = read_file(pair.probabilities)
    values = columns_first(file) if is_picture(pair.truth) else file.values
    wanted = (*truth.shape, len(class_values(dict(labels))))
    if values.shape == truth.shape and wanted[-1] == 2:  # of the foreground alone
        values = np.stack((1 - values, values), axis=-1)
    if values.shape != wanted:
        raise Fault(
            f"shape {values.shape} where {pair.truth} and the classes make {wanted}",
            "probabilities lie on the grid of the truth, with one channel a class",
            "remove it, or save it again",
            pair.probabilities,
        )
    return replace(case, probabilities=np.moveaxis(values, -1, 0))


def _classes(values: np.ndarray, labels: Mapping[str, int]) -> np.ndarray:
    """Class indices of the values, (*spatial); 0 for what is no class."""
    classes = np.zeros(values.shape, np.int32)
    for index, value in enumerate(class_values(dict(labels))):
        classes[values == value] = index
    return classes


def read_instances(pair: Pair, ignored: int | None = None) -> Case:
    """Numbered objects; see `read_values`.

    Args:
        pair: the files.
        ignored: the number that the truth has where nobody annotated, or None.

    Raises:
        Fault: also for a map whose objects are not numbered.
    """
    case = read_values(pair, {} if ignored is None else {IGNORE_NAME: ignored}, instances=True)
    if ignored is not None:
        case = objects_of(case.id, case.pred, case.truth, case.spacing, ignored)
    for values, path in ((case.pred, pair.pred), (case.truth, pair.truth)):
        ids = np.unique(values[values > 0])
        parts = int(components(values > 0, connectivity=values.ndim).max()) if len(ids) == 1 else 1
        if parts > 1:
            raise Fault(
                f"{parts} separate objects that all have the number {ids[0]}",
                "instances have a number each",
                "number them, for example with skimage.measure.label, or take --measure classes",
                path,
            )
    return case


def read_section(pair: Pair) -> Case:
    """A section of cells and membranes: in the truth 0 is membrane, all else cell.

    Raises:
        Fault: an unsound file, two sizes, or a volume.
        InputError: numbers that are no probabilities.
    """
    truth, _ = read_label(pair.truth)
    if truth.ndim != 2:
        found = f"{truth.ndim} dimensions"
        raise Fault(found, "membranes are scored in 2D", "save each section to a file", pair.truth)
    probability = read_probability(pair.pred, is_picture(pair.truth))
    if probability.shape != truth.shape:
        raise Fault(
            f"shape {probability.shape} where {pair.truth} has {truth.shape}",
            "both must lie on one grid",
            "resample it or pair it with the right one",
            pair.pred,
        )
    return section(pair.case, probability, cells_apart(truth))


def read_image(path: Path) -> np.ndarray:
    """Values of an image, (channels, *spatial)."""
    file = read_file(path)
    values = file.values.astype(np.float32)
    return np.moveaxis(values, -1, 0) if values.ndim > len(grid_of(file).shape) else values[None]


def read_probability(path: Path, of_picture: bool = True) -> np.ndarray:
    """The probability of "cell".

    Labels, where the name ends with `_seg` or the file holds integers of more than 8 bits, are 1 in cells
    and 0 in membranes and where two numbers touch. 8-bit pictures hold 0 to 255, or 0 and 1. NIfTI files
    `_prob` hold a channel for each class, of which the first is the membrane, or that of the cell alone.

    Args:
        path: the file.
        of_picture: it lies on the grid of a picture, and not of a NIfTI file.

    Returns:
        (width, height), in [0, 1] where the file is sound.

    Raises:
        Fault: a file that cannot be read, or channels that are no probabilities of classes.
    """
    stem = file_stem(path)
    file = read_file(path)
    values = columns_first(file) if of_picture else file.values
    grey = values.dtype.kind == "f" or (isinstance(file, Picture) and values.itemsize == 1)
    if stem.endswith("_seg") or not (stem.endswith("_prob") or grey):
        return cells_apart(read_label(path)[0]).astype(float)
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[:, :, 0]
    if values.ndim == 3 and np.abs(values.sum(axis=2) - 1).max() < SUM_TOLERANCE:
        values = 1 - values[:, :, 0]
    if values.ndim != 2:
        raise Fault(
            f"shape {values.shape}",
            "a section has one grey channel, or a channel for each class that add up to 1",
            "save the probability of cell as one channel",
            path,
        )
    return values / 255 if values.dtype == np.uint8 and values.max() > 1 else values.astype(float)
