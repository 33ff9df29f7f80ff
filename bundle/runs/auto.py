"""`python -m bundle auto`: from images and labels to an ensemble, its scores, and the way to segment with it.

It calls `plan` for the data and `crossval` for the networks, and says each command before it runs, so that
each can be given alone. How many folds there are, and whether cases are held out, follow from the minutes and
from the number of cases.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from bundle.cli import BEGUN
from bundle.data.datalist import read_source, subjects_of
from bundle.made_of import RECORD, require_same, write_record
from bundle.runs.commands import run_python, say
from bundle.runs.crossval import OF_A_FOLD
from bundle.runs.experiments import read_experiment
from bundle.runs.trainings import minutes_of
from scripts.errors import InputError
from scripts.files import read_json, require_nameable
from scripts.locks import hold
from scripts.settings import CONFIGS

#: Options of plan: it prints its reasons, and does not try how long a training takes, which minutes say.
SHOWN = ("--explain", "--no-trial")

#: What is not training: reading the data, segmenting, choosing and judging. Of few minutes this share, of
#: many so many and this share.
REST, REST_MINUTES, REST_OF_MANY = 0.2, 2.0, 0.08

#: Minutes that a fold should have, at least; and the least and the most folds.
A_FOLD, FEWEST, MOST = 15, 3, 5

#: Minutes that a fold has at least.
LEAST = 0.5

#: From so many subjects on some are held out, and which share of them.
MANY, HELD_OUT = 40, 0.15

#: What more than this share of the minutes is over the time.
OVER = 1.15

#: Key of the record: minutes of a fold.
MINUTES = "minutes of a fold"


def training_of(minutes: float) -> float:
    """The minutes of all trainings together; what is left is for the rest."""
    return minutes - min(REST * minutes, REST_MINUTES + REST_OF_MANY * minutes)


def folds_of(minutes: float, subjects: int) -> int:
    """How many folds: more where each still has A_FOLD minutes, and never more than subjects.

    Raises:
        InputError: fewer than two subjects, which leave none to judge by.
    """
    if subjects < 2:
        raise InputError(
            f"auto needs 2 cases or more, some to learn from and some to judge by, and finds {subjects} (of "
            "one subject all count as one): add cases, or cut the image into several"
        )
    return min(max(math.floor(training_of(minutes) / A_FOLD), FEWEST), MOST, subjects)


def auto(
    output_dir: Path,
    minutes: float,
    images: Path | None,
    labels: Path | None,
    nnunet: Path | None,
    msd: Path | None,
    memory_gb: float | None,
    subject_pattern: str | None,
    subjects: Path | None,
    label_names: list[str] | None,
    instances: bool,
    ignore: int | None,
    ids: dict[str, Any],
) -> None:
    """Carry out `bundle.cli.auto`, whose arguments these are."""
    output_dir = output_dir.resolve()
    require_nameable(output_dir, "--output_dir")
    cases = read_source(images, labels, nnunet, msd).cases
    people = len(set(subjects_of(cases, subject_pattern, subjects)[0].values()))
    folds = folds_of(minutes, people)
    a_fold = round(training_of(minutes) / folds, 2)
    _require_enough(a_fold, folds, minutes)
    _require_known(ids)
    hold(output_dir, "auto", auto)  # to the end of the process
    given = {
        **{"images": images, "labels": labels, "nnunet": nnunet, "msd": msd, "instances": instances},
        **{"subject_pattern": subject_pattern, "subjects": subjects, "label_name": label_names},
        "ignore": ignore,
    }
    chosen = {"folds": folds, "test_fraction": HELD_OUT if people >= MANY else 0, "minutes": a_fold}
    planned = as_options({**given, "memory_gb": memory_gb, **chosen})
    of = "" if people == len(cases) else f" of {people} subject(s)"
    say(
        f"{len(cases)} cases{of}, {minutes:g} minutes: {folds} folds of {a_fold:g} minutes of training each, "
        f"and {minutes - folds * a_fold:.3g} for the rest"
    )
    made_of = {"options of plan": planned, "ids": ids}
    crossval = output_dir / "crossval"
    experiment = output_dir / "data" / "experiment.json"
    before = trained_minutes(crossval)
    if experiment.is_file() and any(crossval.glob("fold*")):
        require_same(output_dir, made_of)
        a_fold = read_json(output_dir / RECORD).get(MINUTES, a_fold)
    else:
        write_record(output_dir, made_of)
        run_python("-m", "bundle", "plan", "--output_dir", str(experiment.parent), *planned, *SHOWN)
        a_fold = left_of_fold(a_fold, folds, minutes, _spent())
        write_record(output_dir, {**made_of, MINUTES: a_fold})
    reading = _spent()
    files = as_options({"args_file": experiment, "output_dir": crossval})
    set_ids = [
        part for name, value in {**ids, "minutes": a_fold}.items() for part in (f"--{name}", str(value))
    ]
    run_python("-m", "bundle", "crossval", *files, *set_ids)
    typer.echo(told(minutes, _spent(), reading, trained_minutes(crossval) - before, folds * a_fold))


def _require_enough(a_fold: float, folds: int, minutes: float) -> None:
    """Refuse minutes that leave a fold fewer than LEAST."""
    if a_fold < LEAST:
        least = math.ceil(LEAST * folds / (1 - REST))
        raise InputError(
            f"--minutes is {minutes:g}, which leaves each of {folds} folds {a_fold:g} minutes of training: "
            f"give {least} or more"
        )


def _spent() -> float:
    """Minutes since this process began."""
    return (time.monotonic() - BEGUN) / 60


def left_of_fold(a_fold: float, folds: int, minutes: float, spent: float) -> float:
    """Minutes of a fold once the data are read and planned: fewer where that took most of the rest.

    Args:
        a_fold: as was planned.
        folds: how many.
        minutes: of the whole.
        spent: of them by now; half of the rest is kept for what follows the trainings.
    """
    rest = minutes - training_of(minutes)
    return max(min(a_fold, round((minutes - spent - rest / 2) / folds, 2)), LEAST)


def trained_minutes(crossval: Path) -> float:
    """Minutes of all trainings of a cross-validation so far."""
    return math.fsum(minutes_of(folder) or 0.0 for folder in crossval.glob("fold*"))


def told(minutes: float, spent: float, reading: float, training: float, planned: float) -> str:
    """How long it took, and of what; where that is over its time, what took more than was planned.

    Args:
        minutes: that all of it might take.
        spent: minutes that it took, this time.
        reading: of them until the first training.
        training: of them in trainings.
        planned: minutes of all trainings.
    """
    rest = spent - reading - training
    text = (
        f"\nThis took {_rounded(spent)} minutes of {minutes:g}: {_rounded(reading)} to read and plan, "
        f"{_rounded(training)} to train ({_rounded(planned)} planned), {_rounded(rest)} to segment, choose "
        "and judge"
    )
    if spent <= OVER * minutes:
        return text
    late = {"training": training - planned, "the rest": reading + rest - (minutes - planned)}
    most = max(late, key=late.__getitem__)
    why = {
        "training": "as this machine became busier than it was when steps were timed",
        "the rest": "as it has more or larger cases than that time is for, or the machine was busy",
    }[most]
    over, of_it = _rounded(spent - minutes), _rounded(late[most])
    return f"{text}.\nThat is {over} minutes over, {of_it} of them {most}, {why}"


def _rounded(minutes: float) -> str:
    return f"{round(minutes, 1):g}"


def _require_known(ids: Mapping[str, Any]) -> None:
    """Refuse ids that crossval would refuse once the data are read.

    Raises:
        InputError: an unknown id, or one that auto sets.
    """
    read_experiment(CONFIGS / "experiments" / "hippocampus.json", ids)
    given = next((name for name in ("minutes", *OF_A_FOLD) if name in ids), None)
    if given is not None:
        raise InputError(f"{given} is {ids[given]!r}, and auto sets it: leave it out")


def as_options(values: Mapping[str, Any]) -> list[str]:
    """Options of a command line: a list repeats its option, True is a flag, None and False are left out."""
    options: list[str] = []
    for name, value in values.items():
        for item in value if isinstance(value, list) else [value]:
            if item is True:
                options.append(f"--{name}")
            elif item is not None and item is not False:
                options += [f"--{name}", str(item.resolve() if isinstance(item, Path) else item)]
    return options
