"""`python -m bundle score`: predictions against the truth, file by file, with the measures of the challenges.

Classes get overlap and distances (`scripts.judging.classes`), numbered objects average precision, panoptic
quality and SEG (`scripts.judging.instances`), membranes the measures of the ISBI 2012 challenge
(`scripts.judging.membranes`).
"""

from __future__ import annotations

import csv
import itertools
import json
import math
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import typer
from monai.transforms import LoadImage
from PIL import Image
from skimage.measure import label as components
from tqdm import tqdm

from scripts.data.checks import (
    GRID_TOLERANCE,
    PICTURE_SUFFIXES,
    Problem,
    check_case,
    image_suffix,
    read_dims,
)
from scripts.data.datalist import file_stem, list_images
from scripts.errors import InputError
from scripts.files import atomic_write
from scripts.judging import (
    INSTANCE_SCORES,
    MEMBRANE_SCORES,
    SCORES,
    InstanceCounts,
    best_membrane_scores,
    case_scores,
    cells_apart,
    instance_counts,
    membrane_curves,
    summarize,
)
from scripts.labels import IGNORE_NAME, class_names, class_values, name_values, parse_labels
from scripts.pictures import draw_instances

FIX_VALUES = "name them with --label_name, or take --measure instances if they number objects"
DECIMALS = {"warping_error": 6}  # of scores for which the four of the others say too little
SUM_TOLERANCE = 1e-2  # how far from 1 the probabilities of the classes of a pixel may add up

Row = dict[str, Any]


@dataclass(frozen=True)
class Pair:
    """A prediction and its truth.

    Attributes:
        case: name of the case.
        pred: file of the prediction.
        truth: file of the truth.
    """

    case: str
    pred: Path
    truth: Path


class BadCase(Exception):
    """A case that cannot be scored; the argument says why."""

    def __init__(self, file: Path, found: str, rule: str, fix: str) -> None:
        super().__init__(Problem("", str(file), found, rule, fix).sentence())


@dataclass
class Outcome:
    """What came out of all cases.

    Attributes:
        columns: of the table of cases.
        rows: a row for each case (and class).
        closing: rows that stand below them in the printed table: means and sums.
        summary: what summary.json holds.
    """

    columns: Sequence[str]
    rows: Sequence[Row]
    closing: Sequence[Row]
    summary: Mapping[str, Any]


def score(
    pred: Path,
    truth: Path,
    measure: str,
    output_dir: Path | None,
    label_names: list[str] | None,
    tolerance: float,
    images: Path | None,
) -> None:
    """Carry out `bundle.cli.score`, whose arguments these are."""
    pairs, problems, left = find_pairs(pred, truth, measure)
    pictured = find_images(pairs, images) if images is not None else {}
    scorer, finish = _way(measure, pairs, label_names, tolerance)
    done = []
    for pair in tqdm(pairs, desc="scoring", disable=None):
        try:
            done.append((pair.case, scorer(pair)))
        except BadCase as bad:
            problems.append(str(bad))
        except InputError as error:
            problems.append(f"{pair.pred} and {pair.truth}: {error}.")
    if done:
        outcome = finish(done)
        typer.echo(table(outcome.columns, [*outcome.rows, *outcome.closing]))
        if output_dir is not None:
            about = {"measure": measure, "cases": len(done), "not_scored": len(problems)}
            write(output_dir, outcome, about | ({"tolerance": tolerance} if measure == "classes" else {}))
        if output_dir is not None and images is not None:
            draw_cases(done, {pair.case: pair for pair in pairs}, pictured, output_dir)
    if left:
        typer.echo(f"note: {left} file(s) of {truth} have no prediction and count nowhere", err=True)
    for problem in problems:
        typer.echo(f"error: {problem}", err=True)
    if problems:
        typer.echo(f"error: {len(problems)} case(s) were not scored, {len(done)} were", err=True)
        raise typer.Exit(1)


def _way(
    measure: str, pairs: Sequence[Pair], label_names: Sequence[str] | None, tolerance: float
) -> tuple[Callable[[Pair], Any], Callable[[Sequence[tuple[str, Any]]], Outcome]]:
    """What scores a case, and what sums up the names and scores of all."""
    if measure == "instances":
        return score_instances, instance_outcome
    if measure == "membranes":
        return score_membranes, membrane_outcome
    labels = parse_labels(label_names) if label_names else found_labels(pairs)
    return ClassScorer(labels, tolerance), class_outcome


# Files


def find_pairs(pred: Path, truth: Path, measure: str) -> tuple[list[Pair], list[str], int]:
    """Pair two folders by name, or take two files as they are.

    A prediction is called as its truth, or so with `_seg` (labels) or `_prob` (probabilities) at the end. Of
    several for one case membranes take the probabilities, and all measures `_seg` before the bare name.

    Args:
        pred: folder or file.
        truth: folder or file, as `pred`.
        measure: classes, instances or membranes.

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
    for file in list_images(truth):
        truths[file_stem(file)].append(file)
    found: dict[str, dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
    for file in list_images(pred):
        stem = file_stem(file)
        ending = re.search("_(seg|prob)$", stem) if stem not in truths else None
        case, kind = (stem[: ending.start()], ending[1]) if ending else (stem, "")
        found[case][kind].append(file)
    pairs, problems = [], []
    for case, kinds in sorted(found.items()):
        wanted = ("prob", "seg", "") if measure == "membranes" else ("seg", "")
        files = next((kinds[kind] for kind in wanted if kind in kinds), [])
        try:
            pairs.append(_pair(case, files, truths.get(case, []), kinds, truth))
        except BadCase as bad:
            problems.append(str(bad))
    if not pairs:
        some, others = (", ".join(file.name for file in list_images(folder)[:3]) for folder in (pred, truth))
        raise InputError(
            f"no file of {pred} ({some or 'empty'}) goes with a truth of {truth} ({others or 'empty'}); "
            "a prediction is called as its truth, with _seg or _prob (probabilities, for membranes) at the "
            "end or without; rename the files."
        )
    return pairs, problems, len(truths.keys() - found.keys())


def _pair(
    case: str, files: Sequence[Path], truths: Sequence[Path], kinds: Mapping[str, list[Path]], folder: Path
) -> Pair:
    """The pair of a case, if it has one prediction and one truth."""
    if not files:
        file = next(iter(kinds.values()))[0]
        raise BadCase(file, "probabilities alone", "this measure compares labels", f"add {case}_seg")
    if not truths:
        raise BadCase(files[0], f"no truth '{case}' in {folder}", "each prediction needs one", "add it")
    for rivals in (files, truths):
        if len(rivals) > 1:
            found = f"{len(rivals)} files of one case ({', '.join(file.name for file in rivals)})"
            raise BadCase(rivals[0], found, "one is expected", "keep one")
    return Pair(case, files[0], truths[0])


@dataclass(frozen=True)
class LabelFile:
    """Labels as they lie in a file.

    Attributes:
        values: whole numbers, (x, y[, z]), pictures (width, height).
        spacing: voxel edges, in mm, 1 for pictures.
        affine: voxel to mm, or None for pictures.
    """

    values: np.ndarray
    spacing: tuple[float, ...]
    affine: np.ndarray | None


def read_labels(path: Path, labels: Mapping[str, int] | None = None, instances: bool = False) -> LabelFile:
    """Read a label file whole.

    Args:
        path: picture or NIfTI file.
        labels: name to value of what it may hold; None: anything.
        instances: it numbers objects.

    Raises:
        BadCase: for what `scripts.data.checks` finds wrong with it.
    """
    dims = read_dims(path)
    problems = check_case(
        {"image": str(path), "label": str(path), "case": ""},
        spatial_dims=dims[0] if dims else 2,
        in_channels=1,
        labels=labels,
        instances=instances,
    )
    # what is said of the label comes last; a palette is refused in images alone
    errors = [p for p in problems if p.severity == "error" and not p.found.startswith("a palette picture")]
    if errors:
        raise BadCase(path, errors[-1].found, errors[-1].rule, errors[-1].fix)
    if image_suffix(path).lower() in PICTURE_SUFFIXES:
        with Image.open(path) as picture:
            values = np.asarray(picture).swapaxes(0, 1)
        return LabelFile(_whole(values), (1.0, 1.0), None)
    image: Any = nib.load(path)
    values = np.asarray(image.dataobj)
    values = values[..., 0] if values.ndim == 4 else values
    return LabelFile(_whole(values), tuple(map(float, image.header.get_zooms()[: values.ndim])), image.affine)


def _whole(values: np.ndarray) -> np.ndarray:
    return values.astype(np.int64) if values.dtype.kind == "f" else values


def read_pair(
    pair: Pair, labels: Mapping[str, int] | None = None, instances: bool = False
) -> tuple[LabelFile, LabelFile]:
    """Prediction and truth, on one grid.

    Raises:
        BadCase: an unsound file, two sizes, or two grids.
    """
    pred, truth = (read_labels(path, labels, instances) for path in (pair.pred, pair.truth))
    _same_shape(pair, pred.values, truth.values)
    if pred.affine is not None and truth.affine is not None:
        last = [(0, size - 1) for size in truth.values.shape] + [(0,)] * (3 - truth.values.ndim)
        corners = np.array([(*corner, 1) for corner in itertools.product(*last)])  # (8, 4), voxels
        apart = np.linalg.norm(corners @ (pred.affine - truth.affine).T, axis=1).max()
        if apart > GRID_TOLERANCE * min(truth.spacing):
            raise BadCase(
                pair.pred,
                f"a grid up to {apart:.3g} mm away from that of {pair.truth}",
                "both must have the same affine",
                "resample it or correct its header",
            )
    return pred, truth


def _same_shape(pair: Pair, pred: np.ndarray, truth: np.ndarray) -> None:
    if pred.shape != truth.shape:
        raise BadCase(
            pair.pred,
            f"shape {pred.shape} where {pair.truth} has {truth.shape}",
            "both must lie on one grid",
            "resample it or pair it with the right one",
        )


# Classes


def found_labels(pairs: Sequence[Pair]) -> dict[str, int]:
    """Names for the values of all truths: the lowest is the background.

    Raises:
        InputError: see `name_values`.
    """
    values: set[int] = set()
    for pair in tqdm(pairs, desc="looking for classes", disable=None):
        try:
            values |= set(np.unique(read_labels(pair.truth).values).tolist())
        except BadCase:
            continue  # it will be told when its turn comes
    return name_values(values, FIX_VALUES)


class ClassScorer:
    """Scores of the classes of a case.

    Args:
        labels: class name to value on disk.
        tolerance: of the surface Dice.
    """

    def __init__(self, labels: dict[str, int], tolerance: float) -> None:
        self.labels = labels
        self.tolerance = tolerance

    def __call__(self, pair: Pair) -> list[Row]:
        """A row for each class but the background."""
        pred, truth = read_pair(pair, self.labels)
        counted = truth.values != self.labels.get(IGNORE_NAME, -1)
        found, true = (self._classes(file.values, counted) for file in (pred, truth))
        names = class_names(self.labels)
        scores = case_scores(found, true, len(names), truth.spacing, self.tolerance)
        return [{"class": name, **row} for name, row in zip(names[1:], scores, strict=True)]

    def _classes(self, values: np.ndarray, counted: np.ndarray) -> np.ndarray:
        """Class indices of the values; background where nothing counts."""
        classes = np.zeros(values.shape, np.int32)
        for index, value in enumerate(class_values(self.labels)):
            classes[counted & (values == value)] = index
        return classes


def class_outcome(done: Sequence[tuple[str, list[Row]]]) -> Outcome:
    """Rows of all cases and classes, and the mean of each class."""
    rows = [{"case": case, **row} for case, scores in done for row in scores]
    summary = summarize(rows)
    means: dict[str, Row] = defaultdict(dict)
    for entry in summary:
        means[entry["class"]][entry["score"]] = entry["mean"]
    closing = [{"case": "mean", "class": "all" if name == "mean" else name, **means[name]} for name in means]
    return Outcome(("case", "class", *SCORES), rows, closing, {"summary": summary})


# Instances


def score_instances(pair: Pair) -> InstanceCounts:
    """Matches of a case.

    Raises:
        BadCase: an unsound file, two sizes, or a map whose objects are not numbered.
    """
    pred, truth = read_pair(pair, instances=True)
    for file, path in ((pred, pair.pred), (truth, pair.truth)):
        ids = np.unique(file.values[file.values > 0])
        parts = int(components(file.values > 0, connectivity=file.values.ndim).max()) if len(ids) == 1 else 1
        if parts > 1:
            raise BadCase(
                path,
                f"{parts} separate objects that all have the number {ids[0]}",
                "instances have a number each",
                "number them, for example with skimage.measure.label, or take --measure classes",
            )
    return instance_counts(pred.values, truth.values)


def instance_outcome(done: Sequence[tuple[str, InstanceCounts]]) -> Outcome:
    """Scores of each case, their mean, and the scores of all instances together."""
    rows = [_instance_row(case, counts) for case, counts in done]
    together = _instance_row("all instances", sum((counts for _, counts in done), InstanceCounts()))
    mean = mean_row(rows, INSTANCE_SCORES)
    summary = {"mean": _plain(mean), "all_instances": _plain(together)}
    return Outcome(tuple(together), rows, [mean, together], summary)


def _instance_row(name: str, counts: InstanceCounts) -> Row:
    return {"case": name, **counts.scores(), "predicted": counts.predicted, "true": counts.true}


def find_images(pairs: Sequence[Pair], folder: Path) -> dict[str, Path]:
    """The image of each case, named as its truth.

    Raises:
        InputError: no folder, or a case without one.
    """
    if not folder.is_dir():
        raise InputError(f"--images '{folder}' is no folder; it holds the image of each case; correct it.")
    files = {file_stem(file): file for file in list_images(folder)}
    missing = [pair.case for pair in pairs if pair.case not in files]
    if missing:
        raise InputError(
            f"--images '{folder}' has no image of {missing[0]}, {len(missing)} missing in all; an image is "
            "called as its truth; add or rename them."
        )
    return files


def draw_cases(
    done: Sequence[tuple[str, InstanceCounts]],
    pairs: Mapping[str, Pair],
    images: Mapping[str, Path],
    output_dir: Path,
) -> None:
    """Draw the worst, the median and the best case by AP at IoU 0.5, with what is wrong in each.

    Args:
        done: case and matches.
        pairs: case to its files.
        images: case to its image.
        output_dir: where worst.png, median.png and best.png go.

    Raises:
        InputError: an image of another shape.
    """
    scores = {case: counts.scores()["ap50"] for case, counts in done}
    order = sorted((case for case in scores if not math.isnan(scores[case])), key=scores.__getitem__)
    chosen = (("worst", 0), ("median", len(order) // 2), ("best", -1)) if order else ()
    for name, place in chosen:
        case = order[place]
        pred, truth = read_pair(pairs[case], instances=True)
        picture = image_suffix(images[case]).lower() in PICTURE_SUFFIXES
        reader = LoadImage("PILReader" if picture else "NibabelReader", ensure_channel_first=True)
        image = reader(images[case]).mean(dim=0).numpy()
        if image.shape != truth.values.shape:
            raise InputError(
                f"{images[case]} has shape {image.shape} where {pairs[case].truth} has {truth.values.shape}; "
                "an image lies on the grid of its truth; name the folder of the right images."
            )
        errors = draw_instances(image, truth.values, pred.values, output_dir / f"{name}.png")
        typer.echo(f"{output_dir / name}.png: {case}, {errors}")


# Membranes


def score_membranes(pair: Pair) -> dict[str, np.ndarray]:
    """Scores of a section at each threshold.

    Raises:
        BadCase: an unsound file, two sizes, or a volume.
    """
    truth = read_labels(pair.truth).values
    if truth.ndim != 2:
        found = f"{truth.ndim} dimensions"
        raise BadCase(pair.truth, found, "membranes are scored in 2D", "save each section to a file")
    probability = read_probability(pair.pred)
    _same_shape(pair, probability, truth)
    return membrane_curves(probability, cells_apart(truth))


def read_probability(path: Path) -> np.ndarray:
    """The probability of "cell".

    Labels, where the name ends with `_seg` or the file holds integers of more than 8 bits, are 1 in cells
    and 0 in membranes and where two numbers touch. 8-bit pictures hold 0 to 255, or 0 and 1. NIfTI files
    `_prob` hold a channel for each class, of which the first is the membrane, or that of the cell alone.

    Returns:
        (width, height), in [0, 1] where the file is sound.

    Raises:
        BadCase: a file that cannot be read, or channels that are no probabilities of classes.
    """
    stem = file_stem(path)
    if stem.endswith("_seg") or not (stem.endswith("_prob") or _holds_grey_values(path)):
        return cells_apart(read_labels(path).values).astype(float)
    try:
        if image_suffix(path).lower() in PICTURE_SUFFIXES:
            with Image.open(path) as picture:
                values = np.asarray(picture).swapaxes(0, 1)
        else:
            values = np.asarray(nib.load(path).dataobj)  # type: ignore[attr-defined]
    except Exception as error:
        raise BadCase(path, f"no image ({error})", "a file must be readable", "write it again") from error
    if values.ndim == 4 and values.shape[2] == 1:
        values = values[:, :, 0]  # (x, y, classes)
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[:, :, 0]
    if values.ndim == 3 and np.abs(values.sum(axis=2) - 1).max() < SUM_TOLERANCE:
        values = 1 - values[:, :, 0]
    if values.ndim != 2:
        raise BadCase(
            path,
            f"shape {values.shape}",
            "a section has one grey channel, or a channel for each class that add up to 1",
            "save the probability of cell as one channel",
        )
    return values / 255 if values.dtype == np.uint8 and values.max() > 1 else values.astype(float)


def _holds_grey_values(path: Path) -> bool:
    """Whether a file holds floats or 8-bit integers, by its header; True where it cannot be read."""
    try:
        if image_suffix(path).lower() in PICTURE_SUFFIXES:
            with Image.open(path) as picture:
                return not picture.mode.startswith("I")
        return nib.load(path).get_data_dtype().kind == "f"  # type: ignore[attr-defined]
    except Exception:
        return True  # reading it will say why


def membrane_outcome(done: Sequence[tuple[str, dict[str, np.ndarray]]]) -> Outcome:
    """The best scores of each section, their mean, and the best mean at one threshold, as the challenge's."""
    rows = [{"case": case, **best_membrane_scores(curves)} for case, curves in done]
    mean = mean_row(rows, MEMBRANE_SCORES)
    curves = {name: [curves[name] for _, curves in done] for name in MEMBRANE_SCORES}
    means = {
        name: np.array([mean_of(values) for values in zip(*table, strict=True)])
        for name, table in curves.items()
    }
    shared = {"case": "one threshold", **best_membrane_scores(means)}
    summary = {"mean": _plain(mean), "one_threshold": _plain(shared)}
    return Outcome(tuple(shared), rows, [mean, shared], summary)


# Tables


def mean_of(values: Sequence[float]) -> float:
    """The mean of what is not NaN; NaN where nothing is."""
    counted = [float(value) for value in values if not math.isnan(value)]
    return math.fsum(counted) / len(counted) if counted else math.nan


def mean_row(rows: Sequence[Row], names: Sequence[str]) -> Row:
    """The mean of each score over the cases that have it."""
    return {"case": "mean", **{name: mean_of([row[name] for row in rows]) for name in names}}


def table(columns: Sequence[str], rows: Sequence[Row]) -> str:
    """A plain table: names to the left, numbers to the right, a dash for what is missing."""
    texts = [list(columns), *([_cell(name, row.get(name)) for name in columns] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    left = sum(name in ("case", "class", "variant", "format", "file") for name in columns)
    return "\n".join(
        "  ".join(
            cell.ljust(width) if index < left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in texts
    )


def number(score: str, value: float) -> str:
    """A score as tables show it."""
    return f"{value:.{DECIMALS.get(score, 4)}f}"


def _cell(name: str, value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    return number(name, value) if isinstance(value, float) else str(value)


def _plain(row: Row) -> Row:
    """A row for JSON, which knows no NaN, without the name of its case."""
    return {
        name: None if isinstance(value, float) and math.isnan(value) else value
        for name, value in row.items()
        if name != "case"
    }


def write(output_dir: Path, outcome: Outcome, about: Mapping[str, Any]) -> None:
    """Write scores.csv (the rows of the cases) and summary.json."""
    with atomic_write(output_dir / "scores.csv") as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(outcome.columns))
        writer.writeheader()
        writer.writerows(outcome.rows)
    with atomic_write(output_dir / "summary.json") as temporary:
        temporary.write_text(json.dumps({**about, **outcome.summary}, indent=1, allow_nan=False) + "\n")
