"""What the commands share that train an experiment more than once: what trainings are made of, and scores."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from bundle.runs.commands import run_python
from bundle.runs.experiments import PLACES, parser_of, read_experiment
from bundle.runs.warm import Warm
from scripts.tables import Row

#: What pictures show, and printed tables begin with, of the scores of each measure; the first one counts.
SHOWN = {
    "classes": ("dice", "iou", "hd95"),
    "instances": ("ap50", "ap", "pq", "seg"),
    "membranes": ("v_rand", "v_info", "pixel_error", "warping_error"),
}

#: What `score` writes last, and `crossval`, whose own has this key.
SUMMARY, IS_OF_CROSSVAL = "summary.json", "out_of_fold"

#: Ids that each training has for itself, or that say where things lie.
OF_A_TRAINING = (*PLACES, "bundle_root", "resume")


def config_of(args_file: Path, ids: dict[str, Any]) -> Row:
    """The merged configs of an experiment, but for OF_A_TRAINING."""
    config = parser_of(read_experiment(args_file, ids)).get()
    return {key: value for key, value in config.items() if key not in OF_A_TRAINING}


def score_section(
    pred: Path,
    dataset_dir: str | Path,
    section: str,
    measure: str,
    output_dir: Path,
    warm: Warm | None,
    labels: Sequence[str] = (),
) -> None:
    """Run `python -m bundle score` on cases of a data set.

    Args:
        pred: folder of the predictions.
        dataset_dir: folder with dataset.json.
        section: of it.
        measure: one of SHOWN.
        output_dir: where the scores go.
        warm: what runs it, as `run_python` takes it.
        labels: "name=value" of the classes; none: those found in the files.

    Raises:
        InputError: a case was not scored; what the others gave is written.
    """
    names = [part for label in labels for part in ("--label_name", label)]
    run_python(
        *("-m", "bundle", "score", str(pred), str(dataset_dir), "--section", section),
        *("--measure", measure, *names, "--output_dir", str(output_dir)),
        warm=warm,
    )


def minutes_of(folder: Path) -> float | None:
    """Minutes of a training so far, from its learning curve; None where there is none."""
    path = folder / "learning_curve.csv"
    if not path.is_file():
        return None
    with path.open() as file:
        return math.fsum(float(row["minutes"]) for row in csv.DictReader(file))


def warn(what: str) -> None:
    """Say what should be known, and go on."""
    typer.echo(f"warning: {what}", err=True)
