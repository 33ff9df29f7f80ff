"""`python -m bundle suggest`: which images to annotate next, by what a network trained so far is unsure of.

Follows
- Lüth, Traub et al., 2026, "Finally outshining the random baseline", arXiv 2601.13677 (ClaSP PE): predictive
  entropy, ranked class by class so that small classes get their turn, with power noise (Kirsch et al., 2021)
  on its logarithm, which keeps early choices apart from each other and falls from round to round;
- Lüth et al., 2025, "nnActive", arXiv 2511.19183: two of three draws for the foreground classes, in ClaSP PE
  and in the random draw that it is held against.

The text of the papers was not at hand. Known from the authors' public code as it was before the paper: the
score of a class is the entropy times the probability of the class; two of three draws are shared evenly by
the foreground classes, and the third goes by the entropy whatever the class; the noise on log(score) has
Gumbel's distribution with the scale 1 / beta.

A guess, or another than theirs: they choose patches of one size, by the mean over the patch; here whole
images are annotated, of any size, so that the mean is over where the class lies (`class_entropies`). The
power beta is 1 in the first round, which draws in proportion to the score, and BETA times as large in each
further one; of their schedules we know the names alone. Classes take turns in an order that is drawn. One
network answers where they have the mean of several; an ensemble answers as the mean of its own.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import typer

from bundle.runs.commands import run_bundle
from bundle.runs.experiments import parser_of, read_experiment, with_ids
from bundle.runs.warm import Warm
from scripts.data.datalist import group_channels, named_images, without_results
from scripts.errors import InputError, few
from scripts.files import read_json, workshop, write_csv
from scripts.judging.uncertainty import ANY, TABLE
from scripts.labels import class_names
from scripts.recipe import Ids
from scripts.tables import Row, table

#: By how much the noise on the logarithm of a score falls from round to round.
BETA = 4.0

#: Of so many draws the last goes by the whole image, the others by the foreground classes in turn.
OF_CLASSES = 3

#: Takes the place of a score of 0, whose logarithm is no number.
LEAST = 1e-12

#: What `suggest` writes, and its columns.
SUGGESTED, COLUMNS = "suggested.csv", ("rank", "case", "file", "class", "score")

#: What goes on top of the configs that segment.
OVERLAY = "configs/suggest.json"

Case = Mapping[str, Any]


def suggest(
    recipe: Path,
    images: Path,
    output_dir: Path,
    labels: Path | None,
    number: int,
    round_number: int,
    seed: int,
    strategy: str,
    ids: dict[str, Any],
) -> None:
    """Carry out `bundle.cli.suggest`, whose arguments these are."""
    experiment = read_segmenter(recipe, ids)
    cases = not_labelled(images, labels, parser_of(experiment).get()["in_channels"])
    drawn, problem = suggested(recipe, cases, output_dir, number, round_number, seed, strategy, ids)
    typer.echo(f"\n{table(['rank', 'case', 'class', 'score'], drawn)}\n\n{output_dir / SUGGESTED}")
    if problem:
        raise problem


def read_segmenter(recipe: Path, ids: Mapping[str, Any]) -> Ids:
    """The configs that segment: an inference.json, or what an args file names, with ids on top.

    Raises:
        InputError: they do not segment, or cannot be read.
    """
    if not recipe.is_file():
        raise InputError(
            f"--recipe {recipe} is no file: name the inference.json beside the weights of a training, or an "
            "args file that segments, such as the ensemble.json of crossval"
        )
    if "config_file" in read_json(recipe):
        experiment = read_experiment(recipe, ids)
    else:
        experiment = with_ids({"config_file": [str(recipe.resolve())]}, ids)
    config = parser_of(experiment).get()
    if "train" in config or "restore" not in config:
        raise InputError(
            f"--recipe {recipe} does not segment images: name the inference.json beside the weights of a "
            "training, or an args file that segments, such as the ensemble.json of crossval"
        )
    return experiment


def not_labelled(images: Path, labels: Path | None, in_channels: int) -> list[dict[str, Any]]:
    """The images of a folder that have no label yet.

    Args:
        images: folder of the images.
        labels: folder of the labels so far, called as their images; None: there are none.
        in_channels: see `group_channels`.

    Returns:
        `{"image": path or list of paths, "case": id}` of each.

    Raises:
        InputError: no such folder, no image in it, labels of other images, or none of them is left.
    """
    for name, folder in (("--images", images), ("--labels", labels)):
        if folder is not None and not folder.is_dir():
            raise InputError(f"{name} {folder} is no folder; it must exist; correct the path.")
    cases = group_channels(without_results(named_images(images, "--images")), in_channels)
    if not cases:
        raise InputError(f"--images {images} holds no images; put some in or hand another folder.")
    done = set() if labels is None else set(named_images(labels, "--labels").values())
    if done and not done & {case["case"] for case in cases}:
        raise InputError(
            f"--labels {labels} holds {few(sorted(done))}, none of which is called as an image of {images}; "
            "a label has the name of its image; rename them or hand another folder."
        )
    left = [case for case in cases if case["case"] not in done]
    if not left:
        raise InputError(
            f"--labels {labels} has a label for each of the {len(cases)} images of {images}; nothing is left "
            "to suggest; add images."
        )
    return left


def suggested(
    recipe: Path,
    cases: Sequence[Case],
    output_dir: Path,
    number: int,
    round_number: int,
    seed: int,
    strategy: str,
    ids: Mapping[str, Any],
    warm: Warm | None = None,
) -> tuple[list[Row], InputError | None]:
    """Have a network look at images, draw from them and write SUGGESTED.

    Args:
        recipe: see `read_segmenter`.
        cases: the images without label.
        output_dir: where the tables go.
        number: how many are drawn; where fewer are left, these.
        round_number: see `draw`.
        seed: see `draw`.
        strategy: "entropy" or "random", see `scores_of`.
        ids: on top of the recipe.
        warm: what runs the command, as `run_python` takes it.

    Returns:
        What was drawn, in order, by COLUMNS; and what is to be told if some images could not be looked at.

    Raises:
        InputError: the network could look at none.
    """
    output_dir = output_dir.resolve()
    experiment, problem = read_segmenter(recipe, ids), None
    with workshop(output_dir) as folder:
        listed = {"validation": [{"image": case["image"], "case": case["case"]} for case in cases]}
        (folder / "dataset.json").write_text(json.dumps(listed), encoding="utf-8")
        for name in (TABLE, SUGGESTED):
            (output_dir / name).unlink(missing_ok=True)
        given = {} if "config_file" not in read_json(recipe) else {"args_file": str(recipe.resolve())}
        places = {"dataset_dir": str(folder), "output_dir": str(output_dir)}
        try:
            files = [*experiment["config_file"], OVERLAY]
            run_bundle(files, **{**given, **ids, **places}, warm=warm)
        except InputError as error:
            if not (output_dir / TABLE).is_file():
                raise
            problem = error
    names = class_names(parser_of(experiment).get()["labels"])
    scores = scores_of(output_dir / TABLE, names, strategy)
    images = {case["case"]: case["image"] for case in cases}
    rows = [
        {"rank": rank, "case": case, "file": _first(images[case]), "class": name, "score": scores[name][case]}
        for rank, (case, name) in enumerate(draw(scores, number, round_number, seed), start=1)
    ]
    write_csv(output_dir / SUGGESTED, rows, COLUMNS)
    return rows, problem


def scores_of(path: Path, names: Sequence[str], strategy: str) -> dict[str, dict[str, float]]:
    """What images are drawn by, for each foreground class and, last, whatever the class.

    Args:
        path: the table of `CaseUncertainty`.
        names: the classes, the background first.
        strategy: "entropy"; or "random": 1 for each image in which the class is found, else 0.

    Returns:
        Class, or ANY, to case to score.
    """
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return {
        name: {
            row["case"]: float(row["entropy"]) if strategy == "entropy" else float(int(row["voxels"]) > 0)
            for row in rows
            if row["class"] == name
        }
        for name in (*names[1:], ANY)
    }


def draw(
    scores: Mapping[str, Mapping[str, float]], number: int, round_number: int, seed: int
) -> list[tuple[str, str]]:
    """Draw cases one after the other, each by the scores of one class.

    Args:
        scores: class to case to score, 0 or more; the last entry is that of all classes.
        number: how many are drawn, if there are as many.
        round_number: from 1; with each the power of the scores grows, that is the noise falls.
        seed: seed of noise and turns.

    Returns:
        Cases, each with the class that it was drawn for.
    """
    generator = np.random.default_rng([seed, round_number])
    *classes, whole = scores
    turns = cycle([classes[index] for index in generator.permutation(len(classes))])
    scale = 1 / BETA ** (round_number - 1)
    noisy = {
        name: {
            case: math.log(max(score, LEAST)) + generator.gumbel(0, scale) for case, score in found.items()
        }
        for name, found in scores.items()
    }
    drawn: dict[str, str] = {}
    while len(drawn) < min(number, len(scores[whole])):
        name = whole if (len(drawn) + 1) % OF_CLASSES == 0 else next(turns)
        left = (case for case in noisy[name] if case not in drawn)
        drawn[max(left, key=noisy[name].__getitem__)] = name
    return list(drawn.items())


def _first(image: Any) -> str:
    """The file of an image, of several channels the first."""
    return str(image if isinstance(image, str) else image[0])
