"""`python -m bundle score`: predictions against the truth, file by file, with the measures of the challenges.

Classes get overlap and distances (`scripts.judging.classes`), numbered objects average precision, panoptic
quality and SEG (`scripts.judging.instances`), membranes the measures of the ISBI 2012 challenge
(`scripts.judging.membranes`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import typer
from tqdm import tqdm

from scripts.data.cases import problem_of
from scripts.data.datalist import dataset_labels, named_images
from scripts.errors import Fault, InputError
from scripts.files import read_json
from scripts.judging import (
    INSTANCE_SCORES,
    MEMBRANE_SCORES,
    SCORES,
    InstanceCounts,
    best_membrane_scores,
    class_scores,
    confusion,
    instance_counts,
    membrane_curves,
    overlap_scores,
    ranking,
    roc_auc,
)
from scripts.judging.files import (
    Pair,
    find_pairs,
    found_labels,
    read_classes,
    read_image,
    read_instances,
    read_section,
)
from scripts.judging.tables import (
    STANDS_ON,
    annotated_share,
    mean_of,
    mean_rows,
    plain,
    summarize,
    write_scores,
)
from scripts.labels import IGNORE_NAME, class_names, parse_labels, with_ignored
from scripts.pictures import draw_instances, shown
from scripts.tables import Row, table

#: The scores of each measure.
MEASURES = {"classes": SCORES, "instances": INSTANCE_SCORES, "membranes": MEMBRANE_SCORES}


def score(
    pred: Path,
    truth: Path,
    measure: str,
    output_dir: Path | None,
    label_names: list[str] | None,
    tolerance: float,
    images: Path | None,
    section: str | None,
    ignore: int | None,
) -> None:
    """Carry out `bundle.cli.score`, whose arguments these are."""
    pairs, problems, left = find_pairs(pred, truth, measure == "membranes", section)
    if not all(pair.probabilities for pair in pairs):
        pairs = [replace(pair, probabilities=None) for pair in pairs]
    pictured = find_images(pairs, images) if images is not None else {}
    if ignore is None and section is not None:
        path = truth / "dataset.json"
        ignore = dataset_labels(read_json(path), path).get(IGNORE_NAME)
    judge = _judge(measure, pairs, label_names, tolerance, ignore)
    done: dict[str, Any] = {}
    shares: dict[str, float] = {}
    for pair in tqdm(pairs, desc="scoring", disable=None):
        try:
            done[pair.case], shares[pair.case] = judge(pair)
        except Fault as fault:
            problems.append(str(fault))
        except InputError as error:
            problems.append(f"{pair.pred} and {pair.truth}: {error}.")
        except Exception as error:  # of these files; the others are scored
            problems.append(problem_of({"case": pair.case, "image": str(pair.pred)}, error).sentence())
    not_scored = len(problems)
    if done:
        rows, together = _rows(measure, done)
        summary = summarize(rows, [score for score in (*MEASURES[measure], "auc") if score in rows[0]])
        names = 2 if measure == "classes" else 1
        typer.echo(table(list(rows[0]), [*rows, *mean_rows(summary), *together], names))
        annotated = annotated_share(list(shares.values()))
        for share in annotated.values():
            typer.echo(f"note: {STANDS_ON % f'{share:.2%}'}")
        if output_dir is not None:
            about: Row = {"measure": measure, "cases": len(done), "not_scored": not_scored, **annotated}
            about |= {"tolerance": tolerance} if measure == "classes" else {}
            if together:
                about["together"] = plain(together[0]) if measure != "classes" else [*map(plain, together)]
            write_scores(output_dir, rows, {**about, "summary": summary})
        if output_dir is not None and images is not None:
            problems += draw_cases(done, {pair.case: pair for pair in pairs}, pictured, output_dir, ignore)
    if left:
        typer.echo(f"note: {left} file(s) of {truth} have no prediction and count nowhere", err=True)
    for problem in problems:
        typer.echo(f"error: {problem}", err=True)
    if not_scored:
        typer.echo(f"error: {not_scored} case(s) were not scored, {len(done)} were", err=True)
    if problems:
        raise typer.Exit(1)


def _judge(
    measure: str,
    pairs: Sequence[Pair],
    label_names: Sequence[str] | None,
    tolerance: float,
    ignored: int | None,
) -> Callable[[Pair], tuple[Any, float]]:
    """What reads a case and gives its classes, counts of its instances, or curves of a section, and
    `Case.share`."""
    if measure == "instances":

        def judge_instances(pair: Pair) -> tuple[InstanceCounts, float]:
            case = read_instances(pair, ignored)
            return instance_counts(case), case.share()

        return judge_instances
    if measure == "membranes":
        return lambda pair: (membrane_curves(read_section(pair)), 1.0)
    labels = with_ignored(parse_labels(label_names), ignored) if label_names else found_labels(pairs, ignored)
    names = class_names(labels)

    def judge(pair: Pair) -> tuple[JudgedClasses, float]:
        case = read_classes(pair, labels)
        ranked = None if case.probabilities is None else ranking(case)
        scores = class_scores(case, len(names), tolerance)
        return JudgedClasses(names, scores, confusion(case, len(names)), ranked), case.share()

    return judge


@dataclass(frozen=True)
class JudgedClasses:
    """A case of classes, or several whose voxels are counted together.

    Attributes:
        names: of all classes, the background first.
        scores: of each foreground class, of the one case.
        counts: confusion matrix.
        ranked: of `ranking`, or None.
    """

    names: Sequence[str]
    scores: Sequence[Row]
    counts: np.ndarray
    ranked: np.ndarray | None

    def __add__(self, other: JudgedClasses) -> JudgedClasses:
        """The voxels of both."""
        ranked = None if self.ranked is None or other.ranked is None else self.ranked + other.ranked
        return JudgedClasses(self.names, (), self.counts + other.counts, ranked)

    def rows(self, case: str) -> list[Row]:
        """A row for each foreground class of the case."""
        return [
            {"case": case, "class": name, **row, **self._auc(index)}
            for index, (name, row) in enumerate(zip(self.names[1:], self.scores, strict=True), start=1)
        ]

    def of_all_voxels(self) -> list[Row]:
        """A row for each foreground class, of all voxels as if they were of one case."""
        scores = overlap_scores(self.counts)
        return [
            {"case": "all voxels", "class": name}
            | {score: float(values[index]) for score, values in scores.items()}
            | self._auc(index)
            for index, name in enumerate(self.names[1:], start=1)
        ]

    def _auc(self, index: int) -> Row:
        return {} if self.ranked is None else {"auc": roc_auc(self.ranked[index])}


def _rows(measure: str, done: Mapping[str, Any]) -> tuple[list[Row], list[Row]]:
    """A row for each case, or case and class; and, but for classes, one of all cases together."""
    if measure == "classes":
        first, *others = done.values()
        together = sum(others, first)
        return [row for case, judged in done.items() for row in judged.rows(case)], together.of_all_voxels()
    if measure == "instances":
        counts = {**done, "all instances": sum(done.values(), InstanceCounts())}
        rows = [
            {"case": name, **count.scores(), "predicted": count.predicted, "true": count.true}
            for name, count in counts.items()
        ]
        return rows[:-1], rows[-1:]
    rows = [{"case": case, **best_membrane_scores(curves)} for case, curves in done.items()]
    means = {
        name: np.array([mean_of(values) for values in np.stack([curves[name] for curves in done.values()]).T])
        for name in MEMBRANE_SCORES
    }  # at each threshold
    return rows, [{"case": "one threshold", **best_membrane_scores(means)}]


def find_images(pairs: Sequence[Pair], folder: Path) -> dict[str, Path]:
    """The image of each case, named as its truth.

    Raises:
        InputError: no folder, or a case without one.
    """
    if not folder.is_dir():
        raise InputError(f"--images '{folder}' is no folder; it holds the image of each case; correct it.")
    files = {name: file for file, name in named_images(folder, "--images").items()}
    missing = [pair.case for pair in pairs if pair.case not in files]
    if missing:
        raise InputError(
            f"--images '{folder}' has no image of {missing[0]}, {len(missing)} missing in all; an image is "
            "called as its truth; add or rename them."
        )
    return files


def draw_cases(
    done: Mapping[str, InstanceCounts],
    pairs: Mapping[str, Pair],
    images: Mapping[str, Path],
    output_dir: Path,
    ignored: int | None,
) -> list[str]:
    """Draw the worst, the median and the best case by AP at IoU 0.5, with what is wrong in each.

    Args:
        done: case and matches.
        pairs: case to its files.
        images: case to its image.
        output_dir: where worst.png, median.png and best.png go.
        ignored: the number of what nobody annotated, or None.

    Returns:
        A sentence for each image that could not be drawn.
    """
    scores = {case: counts.scores()["ap50"] for case, counts in done.items()}
    order = sorted((case for case in scores if not math.isnan(scores[case])), key=scores.__getitem__)
    chosen = (("worst", 0), ("median", len(order) // 2), ("best", -1)) if order else ()
    problems = []
    for name, place in chosen:
        case = order[place]
        judged = read_instances(pairs[case], ignored)
        try:
            image = read_image(images[case])
            if image.shape[1:] != judged.truth.shape:
                raise Fault(
                    f"shape {image.shape[1:]} where {pairs[case].truth} has {judged.truth.shape}",
                    "an image lies on the grid of its truth",
                    "name the folder of the right images",
                    images[case],
                )
        except Fault as fault:
            problems.append(str(fault))
            continue
        errors = draw_instances(shown(image, images[case]), judged, output_dir / f"{name}.png")
        typer.echo(f"{output_dir / name}.png: {case}, {errors}")
    return problems
