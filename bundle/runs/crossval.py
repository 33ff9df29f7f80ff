"""`python -m bundle crossval`: a network for each fold, all cases judged by one that did not see them.

Each fold of the data list is trained without its cases, which its network then segments. Together these
predictions say how well the training does on all cases, as each comes from a network that has learnt nothing
from it or its subject; but the epoch that was kept was chosen on them. The networks of all folds are one
ensemble, judged once on the cases that were held out from all of them.

A cross-validation that was cut goes on when the same command is given again: a training from its last
checkpoint, a segmentation with the fold that it stopped in. What is there is used again where it was made of
what it would be made of now (`bundle.made_of`).
"""

from __future__ import annotations

import csv
import glob
import math
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import typer
from matplotlib.figure import Figure

from bundle.made_of import RECORD, require_same, was_made_of, write_record
from bundle.runs.calibrate import FACTS
from bundle.runs.commands import run_bundle, run_python, say
from bundle.runs.compare import interval, read_scores
from bundle.runs.experiments import parser_of, read_experiment
from bundle.runs.groups import summary_of_groups
from bundle.runs.search import FEWEST_CASES
from bundle.runs.trainings import IS_OF_CROSSVAL, SHOWN, SUMMARY, config_of, minutes_of, score_section, warn
from bundle.runs.warm import Warm, imports_once
from scripts.data.cases import describe_cases, problem_of
from scripts.data.checks import Problem, map_cases, read_label, require_sound
from scripts.data.datalist import file_stem, read_folds, read_subjects, sections
from scripts.data.names import output_name
from scripts.errors import Fault, InputError, few
from scripts.files import fingerprint, read_json, require_nameable, short_hash, write_csv, write_json
from scripts.judging.tables import OVERALL, mean_of, plain
from scripts.labels import IGNORE_NAME, class_names, parse_labels
from scripts.locks import hold
from scripts.pictures import save_figure
from scripts.recipe import RECIPE
from scripts.settings import CONFIGS
from scripts.tables import Row, table, with_interval

#: Folders below the output folder: predictions of all folds, their scores, those of held-out cases.
OUT_OF_FOLD, SCORES, TESTING = "out_of_fold", "scores", "testing"
CALIBRATED, TUNED = "calibrated", "tuned"

#: The args file that segments with the networks of all folds, below the output folder.
ENSEMBLE = "ensemble.json"

#: Ids that each fold has for itself.
OF_A_FOLD = ("fold", "checkpoint", "resume")

#: What a record of a segmentation says beside what it was made of.
MINUTES = "minutes"

#: Cases that are printed because they are the worst.
WORST = 5

Case = Mapping[str, Any]


@dataclass(frozen=True)
class Fold:
    """A fold of the data list.

    Attributes:
        number: as `--fold` takes it.
        folder: of its training.
        cases: those that validate.
    """

    number: int
    folder: Path
    cases: list[dict[str, Any]]

    @property
    def checkpoint(self) -> Path:
        """The weights of its training."""
        return self.folder / "model.pt"

    def made_of(self) -> Row:
        """What the predictions of its cases depend on."""
        return {"cases": describe_cases(self.cases), "weights": weights_of([self])}

    def minutes(self) -> float:
        """What training it and segmenting its cases took, as far as that is known."""
        record = self.folder / RECORD
        segmenting = read_json(record).get(MINUTES, 0.0) if record.is_file() else 0.0
        return (minutes_of(self.folder) or 0.0) + segmenting

    def is_done(self, pred: Path) -> bool:
        """Whether it is trained, and its cases are segmented by what it is now."""
        return (
            self.checkpoint.is_file()
            and was_made_of(self.folder, self.made_of())
            and not not_segmented(pred, self.cases)
        )


def weights_of(folds: Sequence[Fold]) -> list[str]:
    """A hash of the weights of each fold."""
    return [short_hash(fingerprint(fold.checkpoint)) for fold in folds]


def not_segmented(pred: Path, cases: Sequence[Case]) -> list[str]:
    """The ids of cases without a segmentation in a folder; a case's probabilities are written before it."""
    return [case["case"] for case in cases if not _results(pred, case, "seg")]


def _results(pred: Path, case: Case, kind: str) -> list[Path]:
    name = f"{output_name(case['case'])}_{kind}"
    return [file for file in pred.glob(f"{glob.escape(name)}.*") if file_stem(file) == name]


@dataclass
class Crossval:
    """A cross-validation that goes on.

    Args:
        output_dir: its folder.
        dataset_dir: folder with dataset.json.
        measure: one of SHOWN.
        folds: of the data list.
        subjects: whom each case is of.
        testing: cases that are held out from all folds.
        labels: "name=value" of the classes, where classes are judged.
        minutes: of a training, where it has such.

    Attributes:
        warm: what runs the commands, as `run_python` takes it.
        failed: sentences on what was not done.
        found: what summary.json holds.
    """

    output_dir: Path
    dataset_dir: Path
    measure: str
    folds: list[Fold]
    subjects: Mapping[str, str]
    testing: list[dict[str, Any]]
    labels: list[str]
    minutes: float | None = None
    warm: Warm | None = None

    def __post_init__(self) -> None:
        self.failed: list[str] = []
        self.found: Row = {}

    def train(self, ids: Mapping[str, Any]) -> None:
        """Train every fold and segment its cases, but for those that are done.

        Args:
            ids: of all trainings, the args file among them.
        """
        pred = self.output_dir / OUT_OF_FOLD
        took: list[float] = []
        for place, fold in enumerate(self.folds):
            if not fold.is_done(pred):
                name, left = f"fold {fold.number} ({place + 1} of {len(self.folds)})", len(self.folds) - place
                spent = minutes_of(fold.folder) or 0.0
                known = took or ([] if self.minutes is None else [self.minutes])
                say(f"{name}: training on the cases of the others; {time_left(known, left, spent)}")
                where = {"dataset_dir": str(self.dataset_dir), "output_dir": str(fold.folder)}
                run_bundle(**ids, **where, fold=fold.number, resume=True, warm=self.warm)
                spent = minutes_of(fold.folder) or 0.0
                told = time_left(took or [spent], left, spent)
                say(f"{name}: segmenting its {len(fold.cases)} cases with probabilities; {told}")
                run: Row = {"config_file": [str(fold.folder / "inference.json")], "section": "validation"}
                run |= {"fold": fold.number, "seed": ids["seed"], "save_probabilities": True}
                self.segment(pred, fold.cases, fold.folder, fold.made_of(), run)
            took.append(fold.minutes())

    def segment(self, pred: Path, cases: Sequence[Case], record: Path, made_of: Row, run: Row) -> None:
        """Segment cases of the data set, and record what that was made of once all of them are there.

        Args:
            pred: where results go; older ones of these cases are removed first.
            cases: what the run segments.
            record: folder of the record.
            made_of: content of the record.
            run: arguments of `run_bundle`.

        Raises:
            InputError: none was segmented.
        """
        for case in cases:
            for file in (file for kind in ("seg", "prob") for file in _results(pred, case, kind)):
                file.unlink()
        begun = time.monotonic()
        try:
            run_bundle(**run, dataset_dir=str(self.dataset_dir), output_dir=str(pred), warm=self.warm)
        except InputError:
            left = not_segmented(pred, cases)
            if len(left) in (0, len(cases)):
                raise
            self.failed.append(f"{few(left)} were not segmented")
            return
        write_record(record, {**made_of, MINUTES: (time.monotonic() - begun) / 60})

    def score(self, pred: Path, section: str, output_dir: Path, made_of: Row) -> None:
        """Score the predictions of a section, unless that was done.

        Raises:
            InputError: none was scored.
        """
        summary = output_dir / SUMMARY
        if summary.is_file() and was_made_of(output_dir, made_of):
            return
        summary.unlink(missing_ok=True)
        try:
            score_section(
                pred, self.dataset_dir, section, self.measure, output_dir, self.warm, labels=self.labels
            )
        except InputError:
            if not summary.is_file():
                raise
            self.failed.append(f"not all cases of {section} were scored")
            return
        write_record(output_dir, made_of)

    def judge(self) -> None:
        """Score all cases, each predicted by the network of its fold; write and show what came out."""
        pred, scores = self.output_dir / OUT_OF_FOLD, self.output_dir / SCORES
        cases = [case for fold in self.folds for case in fold.cases]
        made_of = {"measure": self.measure, "cases": describe_cases(cases), "weights": weights_of(self.folds)}
        say(f"scoring the cases of all {len(self.folds)} folds")
        self.score(pred, "training", scores, made_of)
        fold_of = {case["case"]: fold.number for fold in self.folds for case in fold.cases}
        rows = summarise(scores, SHOWN[self.measure], self.subjects, fold_of)
        worst = worst_cases(scores, SHOWN[self.measure], fold_of)
        with (scores / "scores.csv").open(encoding="utf-8", newline="") as file:
            scored = list(csv.DictReader(file))
        of = [{"fold": fold_of[row["case"]], "subject": self.subjects[row["case"]]} for row in scored]
        listed = [{"case": row["case"], **more, **row} for row, more in zip(scored, of, strict=True)]
        write_csv(self.output_dir / "crossval.csv", listed)
        draw(rows, self.output_dir / "crossval.png")
        self.report(IS_OF_CROSSVAL, rows)
        self.report("worst", worst)
        typer.echo(f"\n{self.describe(list(fold_of))}, each judged by the network that did not see it:\n")
        typer.echo(f"{intervals_table(rows)}\n\n{folds_table(rows)}\n\n{worst_table(worst)}")

    def calibrate(self, args_file: Path, ids: Mapping[str, Any]) -> list[Path]:
        """Learn on all cases how to scale the probabilities; of few subjects nothing is learnt.

        Args:
            args_file: of the trainings.
            ids: of the trainings.

        Returns:
            An overlay for inference, or none where that fails, which is told at the end.
        """
        if len({self.subjects[case["case"]] for fold in self.folds for case in fold.cases}) < FEWEST_CASES:
            warn(f"of fewer than {FEWEST_CASES} subjects no calibration is learnt")
            return []
        return self.choose("calibrate", "calibration", CALIBRATED, args_file, ids)

    def tune(self, args_file: Path, ids: Mapping[str, Any]) -> list[Path]:
        """Choose the post-processing on all cases.

        Args:
            args_file: of the trainings.
            ids: of the trainings, and the calibration.

        Returns:
            An overlay for inference, or none where that fails, which is told at the end.
        """
        return self.choose("tune", "postprocessing", TUNED, args_file, ids)

    def choose(
        self, command: str, chosen: str, folder: str, args_file: Path, ids: Mapping[str, Any]
    ) -> list[Path]:
        """Have a command choose something by the predictions of all folds, unless that was done.

        Args:
            command: of the workbench, which takes `--pred`.
            chosen: the name of its overlay.
            folder: below the output folder.
            args_file: of the trainings.
            ids: of its configs.

        Returns:
            The overlay, or none where the command fails, which is told at the end.
        """
        output_dir = self.output_dir / folder
        overlay = output_dir / f"{chosen}.json"
        cases = [case for fold in self.folds for case in fold.cases]
        made_of = {"cases": describe_cases(cases), "weights": weights_of(self.folds), "ids": dict(ids)}
        if not overlay.is_file() or not was_made_of(output_dir, made_of):
            say(f"choosing the {chosen} on the predictions of all folds")
            try:
                run_python(
                    *("-m", "bundle", command, "--args_file", str(args_file.resolve())),
                    *("--dataset_dir", str(self.dataset_dir), "--pred", str(self.output_dir / OUT_OF_FOLD)),
                    *("--section", "training", "--output_dir", str(output_dir)),
                    *(part for key, value in ids.items() for part in (f"--{key}", str(value))),
                    warm=self.warm,
                )
            except InputError as error:
                self.failed.append(f"no {chosen} was chosen: {error}")
                return []
            write_record(output_dir, made_of)
        return [overlay]

    def test(self) -> None:
        """Judge the ensemble on the held-out cases, unless that was done, and show what came out."""
        pred, scores = self.output_dir / TESTING, self.output_dir / f"{TESTING}_{SCORES}"
        made_of: Row = {"cases": describe_cases(self.testing), "weights": weights_of(self.folds)}
        made_of["ensemble"] = read_json(self.output_dir / ENSEMBLE)
        say(f"the mean of {len(self.folds)} networks on the {len(self.testing)} held-out cases")
        if not_segmented(pred, self.testing) or not was_made_of(pred, made_of):
            run = {
                "args_file": str(self.output_dir / ENSEMBLE),
                "section": TESTING,
                "save_probabilities": True,
            }
            self.segment(pred, self.testing, pred, made_of, run)
        self.score(pred, TESTING, scores, {"measure": self.measure, **made_of})
        rows = summarise(scores, SHOWN[self.measure], self.subjects, {})
        self.report(TESTING, rows)
        cases = [case["case"] for case in self.testing]
        typer.echo(
            f"\n{self.describe(cases)}, held out from all folds, judged by the mean of all networks:\n"
        )
        typer.echo(intervals_table(rows))

    def describe(self, cases: Sequence[str]) -> str:
        """How many cases, and of how many subjects where some have several."""
        subjects = {self.subjects[case] for case in cases}
        return f"{len(cases)} cases" + (
            f" of {len(subjects)} subject(s)" if len(subjects) < len(cases) else ""
        )

    def report(self, name: str, content: Any) -> None:
        """Put something into summary.json."""
        self.found[name] = content
        folds = {str(fold.number): len(fold.cases) for fold in self.folds}
        write_json(self.output_dir / SUMMARY, {"measure": self.measure, "folds": folds, **self.found})

    def report_rest(self, learnt: Sequence[Path]) -> None:
        """Put into summary.json what was learnt of the predictions, what is known of groups, data, versions.

        Args:
            learnt: of `calibrate`.
        """
        for overlay in learnt:
            facts = read_json(overlay.with_name(FACTS))
            rest = [(name, facts.pop(name)) for name in ("review", "unlike") if name in facts]
            del facts["folds"]
            for name, content in [("calibration", facts), *rest]:
                self.report(name, content)
        for name, content in summary_of_groups(self.output_dir, self.output_dir / "crossval.csv").items():
            self.report(name, content)
        listed = read_json(self.dataset_dir / "dataset.json")
        cases = [case["case"] for fold in self.folds for case in fold.cases]
        about: Row = {key: listed[key] for key in ("name", "reference", "licence") if key in listed}
        about |= {"cases": len(cases), "subjects": len({self.subjects[case] for case in cases})}
        self.report("data", {**about, "held_out": len(self.testing)})
        facts = read_json(self.folds[0].checkpoint.with_name(RECIPE[1]))
        self.report("versions", {key: value for key, value in facts.items() if key.endswith("version")})


def crossval(
    args_file: Path, output_dir: Path, dataset_dir: Path | None, measure: str | None, ids: dict[str, Any]
) -> None:
    """Carry out `bundle.cli.crossval`, whose arguments these are."""
    experiment = read_experiment(args_file, ids)
    parser = parser_of(experiment)
    if "train" not in parser:
        raise InputError(f"{args_file} names no config of a training: put configs/train.json first")
    given = next((name for name in OF_A_FOLD if name in experiment), None)
    if given is not None:
        raise InputError(
            f"{given} is {experiment[given]!r}, and crossval sets it for each fold: leave it out"
        )
    labels, instances = parser.get_parsed_content("labels"), parser.get_parsed_content("instances")
    measure = measure or ("instances" if instances else "classes")
    names = [f"{name}={value}" for name, value in labels.items()] if measure == "classes" else []
    if names:
        parse_labels(names)
    seed = parser.get_parsed_content("seed")
    data = (dataset_dir or Path(parser.get_parsed_content("dataset_dir"))).expanduser().resolve()
    output_dir = output_dir.resolve()
    require_nameable(output_dir, "--output_dir")
    require_nameable(data, "--dataset_dir")
    folds = [
        Fold(number, output_dir / f"fold{number}", cases) for number, cases in _folds_of(data, seed).items()
    ]
    testing = _held_out(data, folds[0].number, seed)
    made_of = {
        "seed": seed,
        "config": config_of(args_file, ids),
        "cases": {f"fold {fold.number}": describe_cases(fold.cases) for fold in folds},
    }
    if any(output_dir.glob("fold*")):
        if told := require_same(output_dir, made_of):
            warn(f"{output_dir}: {told}; it stands as it is")
    else:
        require_classes({fold.number: fold.cases for fold in folds}, labels, instances, data)
        write_record(output_dir, made_of)
    run = Crossval(
        output_dir,
        data,
        measure,
        folds,
        read_subjects(data),
        testing,
        names,
        parser.get_parsed_content("minutes"),
    )
    hold(output_dir, "cross-validation", run)
    with imports_once() as run.warm:
        run.train({"args_file": str(args_file.resolve()), **ids, "seed": seed})
        run.judge()
        learnt, of_tune = run.calibrate(args_file, ids), dict(ids)
        for file in learnt:
            of_tune["calibration"] = read_json(file)["calibration"]
        write_ensemble(output_dir / ENSEMBLE, folds, *learnt, *run.tune(args_file, of_tune))
        if testing:
            run.test()
        run.report_rest(learnt)
    typer.echo(f"\nTables and picture: {output_dir / 'crossval.csv'}, .png and {SUMMARY}")
    segment = f"python -m monai.bundle run --args_file {shlex.quote(str(output_dir / ENSEMBLE))}"
    typer.echo(f"To segment with the mean of all networks:\n{segment} --dataset_dir FOLDER --output_dir OUT")
    if run.failed:
        raise InputError(
            f"{'; '.join(run.failed)}; the lines above say why: mend them and give the same command again"
        )


def _folds_of(dataset_dir: Path, seed: int) -> dict[int, list[dict[str, Any]]]:
    """The folds of a data folder, two or more."""
    folds = read_folds(dataset_dir, seed)
    if not folds:
        raise InputError(
            f"{dataset_dir} has no folds, as splits.json or the list 'validation' of dataset.json fixes who "
            "validates: list the data with python -m bundle datalist --folds, without --splits, or train once"
        )
    if len(folds) < 2:
        raise InputError(
            f"{dataset_dir / 'dataset.json'} has all cases in fold {next(iter(folds))}, so that nothing is "
            "left to train on: list the data with python -m bundle datalist --folds"
        )
    return folds


def _held_out(dataset_dir: Path, fold: int, seed: int) -> list[dict[str, Any]]:
    """The cases of a data folder that no fold has; one fold is as good as another to ask for them."""
    cases = sections(dataset_dir, fold, seed)[TESTING]
    if unlabelled := [case["case"] for case in cases if "label" not in case]:
        raise InputError(
            f"{dataset_dir / 'dataset.json'} has {few(unlabelled)} under 'testing' without a label, by which "
            "they would be judged: add the labels, or move these cases to 'test'"
        )
    return cases


def require_classes(
    folds: Mapping[int, Sequence[Case]], labels: Mapping[str, int], instances: bool, dataset_dir: Path
) -> None:
    """Refuse folds in which a class is in no case: it could not be judged there.

    Where each fold has every class, the cases of the other folds, which train, have it too.

    Args:
        folds: to the cases that validate.
        labels: name to value, the background first.
        instances: labels number the objects, of which each fold needs one.
        dataset_dir: for messages.

    Raises:
        InputError: such a fold; a label that cannot be read.
    """
    cases = [case for held in folds.values() for case in held]
    found = map_cases(
        lambda case: _values(case, labels, instances), cases, "Looking for classes in the folds"
    )
    require_sound([values for values in found if isinstance(values, Problem)])
    shown = {case["case"]: values for case, values in zip(cases, found, strict=True)}
    lacking = {}
    for fold, held in folds.items():
        values = set[int]().union(*(shown[case["case"]] for case in held))  # type: ignore[arg-type]
        if instances:
            missing = [] if values - {0, labels.get(IGNORE_NAME)} else ["an object"]
        else:
            missing = [name for name in class_names(dict(labels))[1:] if labels[name] not in values]
        if missing:
            lacking[fold] = missing
    if lacking:
        which = "; ".join(f"no case of fold {fold} shows {few(names)}" for fold, names in lacking.items())
        raise InputError(
            f"{dataset_dir / 'dataset.json'}: {which}; every fold needs a case of each class; "
            "list the data with another --seed or fewer --folds of python -m bundle datalist, or add cases"
        )


def _values(case: Case, labels: Mapping[str, int], instances: bool) -> set[int] | Problem:
    """The values of a label file, or what is wrong with it."""
    try:
        values = read_label(Path(case.get("label", "")), labels, instances)[0]
    except Fault as fault:
        return problem_of(case, fault)
    return set(np.unique(values).tolist())


def time_left(took: Sequence[float], folds: int, minutes: float) -> str:
    """What is told of the time that is left.

    Args:
        took: minutes of each fold that is done.
        folds: how many are not.
        minutes: that were spent on one of these.
    """
    if not took:
        return "how long all of it takes is known after this fold"
    left = max(folds * fmean(took) - minutes, 0.0)
    return f"a fold takes {fmean(took):.1f} minutes, about {left:.1f} are left"


def write_ensemble(path: Path, folds: Sequence[Fold], *overlays: Path) -> None:
    """Write an args file of `monai.bundle run` that segments with the networks of all folds, and overlays."""
    files = [str(file) for file in (folds[0].folder / "inference.json", CONFIGS / "ensemble.json", *overlays)]
    write_json(path, {"config_file": files, "checkpoint": [str(fold.checkpoint) for fold in folds]})


def summarise(
    folder: Path, scores: Sequence[str], subjects: Mapping[str, str], fold_of: Mapping[str, int]
) -> list[Row]:
    """The mean of each score of each class with its interval, and that of each fold.

    Args:
        folder: of an evaluation, with scores.csv.
        scores: which of them.
        subjects: whom each case is of.
        fold_of: in which fold it validated; of cases that are held out nothing.

    Returns:
        A row for each class and score, and for the mean over several classes (OVERALL): "class", "score",
        "mean", "low" and "high" of its 95 % interval (bootstrap over the subjects; None for one subject),
        "cases" and "subjects" that have the score, and "folds", the mean of each.
    """
    rows: list[Row] = []
    for score in scores:
        columns = read_scores(folder / "scores.csv", score)
        if len(columns) == 2:  # the mean over one class
            del columns[OVERALL]
        for name, column in columns.items():
            cases = {case: value for case, value in column.items() if not math.isnan(value)}
            of = [subjects[case] for case in cases]
            low, high = interval(list(cases.values()), of) if len(set(of)) > 1 else (math.nan, math.nan)
            folds = {
                str(fold): mean_of([value for case, value in cases.items() if fold_of[case] == fold])
                for fold in sorted(set(fold_of.values()))
            }
            row: Row = {"class": name, "score": score, "mean": mean_of(list(cases.values()))}
            row |= {"low": low, "high": high, "cases": len(cases), "subjects": len(set(of))}
            rows.append({**plain(row), "folds": plain(folds)})
    return rows


def worst_cases(folder: Path, scores: Sequence[str], fold_of: Mapping[str, int]) -> list[Row]:
    """The WORST cases by the first score, each with its fold and the mean of its classes in all scores."""
    means = {score: read_scores(folder / "scores.csv", score)[OVERALL] for score in scores}
    judged = {case: value for case, value in means[scores[0]].items() if not math.isnan(value)}
    return [
        {"case": case, **plain({"fold": fold_of[case], **{score: means[score][case] for score in scores}})}
        for case in sorted(judged, key=judged.__getitem__)[:WORST]
    ]


def intervals_table(rows: Sequence[Row]) -> str:
    """A line for each class: the mean of each score and its interval."""
    lines: dict[str, Row] = {}
    for row in rows:
        line = lines.setdefault(row["class"], {"class": row["class"]})
        line[f"{row['score']} (95 %)"] = with_interval(row["score"], row["mean"], row["low"], row["high"])
    return table(list(next(iter(lines.values()))), list(lines.values()))


def folds_table(rows: Sequence[Row]) -> str:
    """A line for each class: the mean of each fold in the first score."""
    first = [row for row in rows if row["score"] == rows[0]["score"]]
    lines = [
        {f"{row['score']} of": row["class"], **{f"fold {fold}": mean for fold, mean in row["folds"].items()}}
        for row in first
    ]
    return table(list(lines[0]), lines)


def worst_table(worst: Sequence[Row]) -> str:
    """The worst cases, or that none has a score."""
    return table(list(worst[0]), worst) if worst else "no case has a score"


def draw(rows: Sequence[Row], path: Path) -> None:
    """Save the scores: a panel for each, in it a line for each class, from top to bottom.

    Args:
        rows: of `summarise`.
        path: the PNG to write.
    """
    classes = list(dict.fromkeys(row["class"] for row in rows))
    scores = list(dict.fromkeys(row["score"] for row in rows))
    figure = Figure(figsize=(1.8 + 2.6 * len(scores), 1.4 + 0.5 * len(classes)), layout="constrained")
    axes = figure.subplots(1, len(scores), sharey=True, squeeze=False)[0]
    for axis, score in zip(axes, scores, strict=True):
        for row in (row for row in rows if row["score"] == score and row["cases"]):
            line = classes.index(row["class"])
            folds = [mean for mean in row["folds"].values() if mean is not None]
            axis.scatter(folds, [line - 0.15] * len(folds), s=18, color="#0072b2", alpha=0.7)
            ends = (row["low"], row["high"])
            around = None if None in ends else [[abs(end - row["mean"])] for end in ends]
            axis.errorbar(row["mean"], line + 0.15, xerr=around, fmt="o", color="black", capsize=3)
        axis.set_xlabel(score)
        axis.locator_params(axis="x", nbins=4)
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(classes)), classes)
    axes[0].set_ylim(len(classes) - 0.5, -0.5)
    figure.suptitle("blue: mean of a fold; black: mean of all cases and its 95 % interval", fontsize=9)
    save_figure(figure, path)
