"""What a folder of results holds, whichever command wrote it.

All of it is read from files as they lie there. What should be there and is not is told (`Found.missing`): a
run that was cut is worth a report too.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from bundle.made_of import RECORD
from bundle.runs.budget import read_plan
from bundle.runs.compare import read_scores
from bundle.runs.crossval import ENSEMBLE, OUT_OF_FOLD, SCORES, TESTING, summarise
from bundle.runs.score import MEASURES
from bundle.runs.study import PLAN, folder_name
from bundle.runs.trainings import SUMMARY
from scripts.checkpoints import read_checkpoint
from scripts.compute.length import FILE as LENGTH_FILE
from scripts.data.checks import read_label
from scripts.data.datalist import file_stem, found_images, list_images, read_subjects, sections
from scripts.data.names import output_name
from scripts.errors import Fault, InputError, few
from scripts.files import read_json
from scripts.judging.tables import OVERALL
from scripts.labels import class_names
from scripts.recipe import RECIPE

Row = dict[str, Any]

#: Key of what `auto` records.
OPTIONS = "options of plan"

#: What each command leaves, for the message where nothing of it is there.
LEFT_BY = (
    "crossval or data (of auto), fold0 (of crossval), a folder with study.csv (of study), learning_curve.csv "
    "or model.pt (of a training), CASE_seg files (of an inference)"
)


@dataclass(frozen=True)
class Data:
    """The data of a run.

    Attributes:
        folder: with dataset.json, or of images; None where it is not known.
        about: content of dataset.json.
        sections: "training", "validation" and "testing" to the ids of their cases.
        cases: id to `{"case", "image"}`, with "label" where there is one.
        subjects: id to whom it is of.
        plan: content of the task.json beside dataset.json.
    """

    folder: Path | None = None
    about: Row = field(default_factory=dict)
    sections: dict[str, list[str]] = field(default_factory=dict)
    cases: dict[str, Row] = field(default_factory=dict)
    subjects: dict[str, str] = field(default_factory=dict)
    plan: Row = field(default_factory=dict)

    def section_of(self, cases: Sequence[str]) -> str:
        """The section that has all of these cases, or ""."""
        return next((name for name, ids in self.sections.items() if cases and set(cases) <= set(ids)), "")


@dataclass(frozen=True)
class Training:
    """A training.

    Attributes:
        name: "fold 0", "plain, seed 0"; "" where it is the only one.
        folder: of it.
        curve: rows of learning_curve.csv, numbers as numbers.
        metric: the column of its validation.
        config: what it learns with, its references not resolved; empty where nothing says so.
        recipe: content of inference.json.
        facts: content of metadata.json.
        length: content of length.json.
        planned: epochs that it should have; None where nothing says so.
        at_work: something is at work in its folder, or was killed there.
        broken: why its checkpoint cannot be read; "" where it can, or was not needed.
    """

    name: str
    folder: Path
    curve: list[Row]
    metric: str
    config: Row
    recipe: Row
    facts: Row
    length: Row
    planned: int | None
    at_work: bool
    broken: str = ""

    @property
    def epochs(self) -> int:
        """That are behind it."""
        return int(self.curve[-1]["epoch"]) if self.curve else 0

    @property
    def best(self) -> Row | None:
        """The row of the epoch whose weights were kept."""
        judged = [row for row in self.curve if not math.isnan(row.get(self.metric, math.nan))]
        return max(judged, key=lambda row: row[self.metric]) if judged else None

    @property
    def minutes(self) -> float:
        """That it took so far."""
        return math.fsum(row["minutes"] for row in self.curve)

    def missing(self) -> Iterator[str]:
        """Sentences on what is not there."""
        name = self.name or "the training"
        if self.broken:
            yield f"{name}: how it learnt is not known, as its checkpoint cannot be read ({self.broken})"
        if not self.curve:
            yield f"{name}: no epoch is behind it, there is no learning curve"
        elif self.planned is not None and self.epochs < self.planned:
            why = (
                "it is still at work or was cut"
                if self.at_work
                else "it was cut, or ended as nothing improved"
            )
            yield f"{name}: {self.epochs} of {self.planned} epochs were trained; {why}"
        if not (self.folder / "model.pt").is_file():
            yield f"{name}: there are no weights yet (model.pt)"


@dataclass(frozen=True)
class Judged:
    """Cases that were judged together.

    Attributes:
        name: of its section in the report, such as "evaluation".
        who: what cases these are and what judged them, to follow "120 cases".
        folder: with scores.csv and summary.json.
        about: content of summary.json.
        subjects: id of a case to whom it is of.
        fold_of: id of a case to the fold in which it validated.
        pred: folder of their segmentations; None where none were kept.
        training: that has the weights which segment them, where it is one.
    """

    name: str
    who: str
    folder: Path
    about: Row
    subjects: Mapping[str, str]
    fold_of: Mapping[str, int]
    pred: Path | None = None
    training: Training | None = None

    @property
    def measure(self) -> str:
        """What is judged, one of MEASURES."""
        return str(self.about["measure"])

    @cached_property
    def rows(self) -> list[Row]:
        """Rows of scores.csv: "case", perhaps "class", and numbers, NaN where there is none."""
        return read_rows(self.folder / "scores.csv", ("case", "class"))

    @property
    def scores(self) -> list[str]:
        """Columns that are scores, the one that counts first."""
        return [score for score in (*MEASURES[self.measure], "auc") if score in self.rows[0]]

    @cached_property
    def means(self) -> list[Row]:
        """Rows of `summarise` of each class and score, with "median", "min" and "max"."""
        rest = {(row["class"], row["score"]): row for row in self.about["summary"]}
        return [
            {**{key: rest[row["class"], row["score"]][key] for key in ("median", "min", "max")}, **row}
            for row in summarise(self.folder, self.scores, self.subjects, self.fold_of)
        ]

    @cached_property
    def ranked(self) -> dict[str, float]:
        """Id to the first score, the mean over the classes of the case, from the worst to the best."""
        values = read_scores(self.folder / "scores.csv", self.scores[0])[OVERALL]
        known = {case: value for case, value in values.items() if not math.isnan(value)}
        return dict(sorted(known.items(), key=lambda item: item[1]))

    @property
    def cases(self) -> list[str]:
        """Their ids."""
        return list(dict.fromkeys(row["case"] for row in self.rows))

    @property
    def main(self) -> Row:
        """The mean over all classes of the score that counts, with its interval."""
        return [row for row in self.means if row["score"] == self.scores[0]][-1]


@dataclass
class Found:
    """What a folder holds.

    Attributes:
        kind: "auto", "crossval", "study", "training" or "inference".
        run: the folder.
        data: of the run.
        trainings: of it.
        judged: cases that were judged, those that tell the most first.
        config: what was learnt with, see `Training`.
        recipe: the config that segments; empty where there is none.
        recipe_file: where it lies, if not in the run.
        facts: what lies beside it: versions, data.
        compared: rows of a study, one a variant.
        seeds: rows of a study, one a training.
        options: of the command that made it, where they were recorded.
        pred: segmentations that nobody judged.
        sizes: of these, see `sizes`.
        ensemble: args file that segments with all networks.
        output: where the report goes; None: to its usual place.
        missing: sentences on what is not there.
    """

    kind: str
    run: Path
    data: Data
    trainings: list[Training] = field(default_factory=list)
    judged: list[Judged] = field(default_factory=list)
    config: Row = field(default_factory=dict)
    recipe: Row = field(default_factory=dict)
    recipe_file: Path | None = None
    facts: Row = field(default_factory=dict)
    compared: list[Row] = field(default_factory=list)
    seeds: list[Row] = field(default_factory=list)
    options: list[str] = field(default_factory=list)
    pred: Path | None = None
    sizes: list[Row] = field(default_factory=list)
    ensemble: Path | None = None
    output: Path | None = None
    missing: list[str] = field(default_factory=list)

    @property
    def settings(self) -> Row:
        """What is known of the config: that of the training, else that of the inference."""
        return self.config or self.recipe

    @cached_property
    def applied(self) -> Row:
        """The config of what a user segments with: the recipe, of an ensemble with its overlays on top."""
        if self.ensemble is None:
            return self.recipe
        files = [Path(file) for file in _json(self.ensemble).get("config_file", [])[1:]]
        learnt = {key: value for file in files if file.is_file() for key, value in _json(file).items()}
        return {**self.recipe, **learnt}

    @property
    def name(self) -> str:
        """What the data set is called; "" where that is the name of its folder alone."""
        name = str(self.data.about.get("name", ""))
        return "" if self.data.folder is not None and name == self.data.folder.name else name

    @property
    def plan(self) -> Row:
        """Ids of the plan with their reasons."""
        return self.config.get("_reasons") or self.data.plan.get("_reasons", {})

    @property
    def labels(self) -> dict[str, int]:
        """Name to value of the classes; empty where nothing names them."""
        return dict(self.settings.get("labels", {}))

    @property
    def instances(self) -> bool:
        """Whether labels number objects."""
        given = self.config.get("instances", self.data.about.get("instances"))
        objects = "WatershedInstancesd" in str(self.recipe.get("to_labels", ""))
        return bool(given) if isinstance(given, bool) else objects

    def of_which(self, judged: Judged) -> list[str]:
        """Cases of the section of these that were not judged."""
        ids = self.data.sections.get(self.data.section_of(judged.cases), [])
        ids = [case for case in self.data.cases if case in judged.fold_of] if judged.fold_of else ids
        return [case for case in ids if case not in set(judged.cases)]


def gather(run: Path, dataset_dir: Path | None, recipe: Path | None) -> Found:
    """Read what a folder holds.

    Args:
        run: output of `auto`, `crossval`, `study`, of a training, or of an inference.
        dataset_dir: folder with dataset.json, or for an inference its images; None: that of `auto`.
        recipe: the inference.json that segmented; None: that of the run.

    Raises:
        InputError: there is no such folder, or nothing of that in it; see `read_data`.
    """
    if not run.is_dir():
        raise InputError(f"{run} is no folder; RUN is what a command wrote; give its --output_dir.")
    if recipe is not None and not recipe.is_file():
        raise InputError(f"--recipe {recipe} is no file; it is an inference.json beside weights; correct it.")
    record = _json(run / RECORD)
    if OPTIONS in record or (run / "crossval").is_dir():
        own = run / "data"
        data = read_data(dataset_dir or (own if (own / "dataset.json").is_file() else None))
        found = _crossval(run / "crossval", data)
        found.kind, found.run, found.options = "auto", run, list(record.get(OPTIONS, []))
    elif any(run.glob("fold*/")) or (run / "crossval.csv").is_file():
        found = _crossval(run, read_data(dataset_dir))
    elif any(run.glob("*/study.csv")) or any(run.glob("*/seed*/")):
        found = _study(run, read_data(dataset_dir))
    elif any(
        (run / name).exists() for name in ("learning_curve.csv", "model.pt", "checkpoints", *RECIPE[:1])
    ):
        found = _training(run, read_data(dataset_dir))
    elif segmented(run):
        given = _json(recipe) if recipe else {}
        channels = given.get("in_channels", 1)
        data = read_data(dataset_dir, channels if isinstance(channels, int) else 1)
        found = Found("inference", run, data, pred=run)
    else:
        raise InputError(f"{run} holds nothing to report; a run has {LEFT_BY}; give the --output_dir of one.")
    if recipe is not None:
        require_recipe(recipe)
        found.recipe, found.facts = _json(recipe), _json(recipe.with_name(RECIPE[1]))
        found.recipe_file = recipe.resolve()
    return found


def require_recipe(path: Path) -> None:
    """Refuse an args file, which names configs and says nothing of the network itself."""
    if "config_file" in _json(path):
        raise InputError(
            f"--recipe {path} is an args file, which names configs: name the inference.json beside the "
            "weights, of an ensemble that of one of its networks"
        )


def read_data(folder: Path | None, in_channels: int = 1) -> Data:
    """What a data folder lists, without a look at its images.

    Args:
        folder: with dataset.json, or of images; None: nothing is known.
        in_channels: files that a case may have in a folder of images.

    Raises:
        InputError: it cannot be used.
    """
    if folder is None:
        return Data()
    folder = folder.expanduser().resolve()
    file = folder / "dataset.json"
    if not file.is_file():
        if not folder.is_dir():
            raise InputError(
                f"--dataset_dir {folder} is no folder; it has dataset.json, or images; correct it."
            )
        cases = {case["case"]: case for case in found_images(folder, in_channels)}
        return Data(folder, cases=cases, subjects={case: case for case in cases})
    listed = sections(folder)
    return Data(
        folder,
        read_json(file),
        {name: [case["case"] for case in cases] for name, cases in listed.items()},
        {case["case"]: case for cases in listed.values() for case in cases},
        read_subjects(folder),
        _json(folder / "task.json"),
    )


def segmented(folder: Path | None) -> dict[str, Path]:
    """The segmentations of a folder, by the beginning of their names (`output_name` of the case)."""
    files = list_images(folder) if folder is not None and folder.is_dir() else []
    return {file_stem(file).removesuffix("_seg"): file for file in files if file_stem(file).endswith("_seg")}


def read_rows(path: Path, names: Sequence[str] = ()) -> list[Row]:
    """A CSV file with numbers as numbers and NaN for what is empty, but for some columns of names.

    Raises:
        InputError: no table of that kind.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return [
                {key: value if key in names else float(value or math.nan) for key, value in row.items()}
                for row in csv.DictReader(file)
            ]
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"{path} cannot be read ({' '.join(str(error).split())}): it is a table that a command wrote; "
            "put it back, or have it written again"
        ) from error


def _json(path: Path) -> Row:
    return read_json(path) if path.is_file() else {}


def read_training(folder: Path, name: str, config: Row | None = None, planned: int | None = None) -> Training:
    """What a training left.

    Args:
        folder: of it.
        name: see `Training`.
        config: what it learns with; None: its checkpoint says.
        planned: epochs that it should have; None: as its files say.
    """
    curve = folder / "learning_curve.csv"
    rows = read_rows(curve) if curve.is_file() else []
    length = _json(folder / LENGTH_FILE)
    epochs: Any = planned or length.get("max_epochs")
    last, broken = folder / "checkpoints" / "last.pt", ""
    if config is None and last.is_file():
        try:
            state = read_checkpoint(last)
        except InputError as error:
            state, broken = {}, str(error)
        schedule = state.get("lr_scheduler", {})
        config = {**state.get("training", {}).get("config", {})}
        epochs = epochs or schedule.get("T_max")
        if rates := schedule.get("base_lrs"):
            config["learning_rate"] = rates[0]
    config = dict(config or {})
    epochs = epochs or config.get("max_epochs")
    return Training(
        name,
        folder,
        rows,
        next((key for row in rows[:1] for key in row if key.startswith("val_")), ""),
        config,
        _json(folder / RECIPE[0]),
        _json(folder / RECIPE[1]),
        length,
        epochs if isinstance(epochs, int) else None,
        (folder / ".training.lock").is_file(),
        broken,
    )


def _training(run: Path, data: Data) -> Found:
    training = read_training(run, "")
    found = Found("training", run, data, [training], config=training.config)
    found.recipe, found.facts = training.recipe, training.facts
    found.missing += training.missing()
    for file in sorted(run.glob(f"*/{SUMMARY}"), key=lambda file: (file.parent.name != "evaluation", file)):
        found.judged.append(_judged(file.parent.name, "", file.parent, data, training=training))
    if not found.judged:
        found.missing.append(
            "no case was judged: the same command with configs/evaluate.json at the end of --config_file does"
            " that"
        )
    return found


def _judged(
    name: str,
    who: str,
    folder: Path,
    data: Data,
    pred: Path | None = None,
    training: Training | None = None,
    table: Sequence[Row] = (),
) -> Judged:
    """Judged cases.

    Args:
        name: see `Judged`.
        who: see `Judged`; "": by the section of the data that has them.
        folder: see `Judged`.
        data: of the run.
        pred: see `Judged`.
        training: see `Judged`.
        table: rows with "case", "fold" and "subject".
    """
    about = read_json(folder / SUMMARY)
    if about.get("measure") not in MEASURES or not isinstance(about.get("summary"), list):
        raise InputError(
            f"{folder / SUMMARY} is no summary of scores: it has 'measure' and 'summary', as an evaluation "
            "or score writes them; have it written again"
        )
    cases = [row["case"] for row in read_rows(folder / "scores.csv", ("case", "class"))]
    subjects = {row["case"]: row["subject"] for row in table} or data.subjects
    return Judged(
        name,
        who or WHO[data.section_of(cases)],
        folder,
        about,
        {case: subjects.get(case, case) for case in cases},
        {row["case"]: int(row["fold"]) for row in table},
        pred,
        training,
    )


#: Who the cases of a section are.
WHO = {
    "": "",
    "training": "on which the network was trained",
    "validation": "by which the epoch was chosen",
    "testing": "held out for testing, which the training has not seen",
}


def _crossval(folder: Path, data: Data) -> Found:
    record = _json(folder / RECORD)
    config = record.get("config", {})
    listed = [name.removeprefix("fold ") for name in record.get("cases", {}) if name.startswith("fold ")]
    there = [path.name.removeprefix("fold") for path in folder.glob("fold*/")]
    numbers = sorted({int(number) for number in (*listed, *there) if number.isdecimal()})
    found = Found("crossval", folder, data, config=config)
    found.trainings = [read_training(folder / f"fold{n}", f"fold {n}", config) for n in numbers]
    found.missing += [sentence for training in found.trainings for sentence in training.missing()]
    if not numbers:
        found.missing.append("no fold was begun")
    with_recipe = [training for training in found.trainings if training.recipe]
    if with_recipe:
        found.recipe, found.facts = with_recipe[0].recipe, with_recipe[0].facts
    scores, table = folder / SCORES, folder / "crossval.csv"
    if (scores / SUMMARY).is_file():
        rows = read_rows(table, ("case", "class", "subject")) if table.is_file() else []
        who = "each judged by the network that did not see it"
        found.judged.append(_judged("out_of_fold", who, scores, data, folder / OUT_OF_FOLD, table=rows))
    else:
        found.missing.append("the cases of the folds were not judged yet: the same command again goes on")
        found.pred = folder / OUT_OF_FOLD if segmented(folder / OUT_OF_FOLD) else None
    scores = folder / f"{TESTING}_{SCORES}"
    if (scores / SUMMARY).is_file():
        who = f"held out from all folds, judged by the mean of {len(numbers)} networks"
        found.judged.append(_judged("held_out", who, scores, data, folder / TESTING))
    elif data.sections.get("testing"):
        found.missing.append("the held-out cases were not judged yet")
    found.ensemble = folder / ENSEMBLE if (folder / ENSEMBLE).is_file() else None
    if found.ensemble is None:
        found.missing.append("there is no ensemble of the networks yet (ensemble.json)")
    return found


def _study(run: Path, data: Data) -> Found:
    found = Found("study", run, data)
    tables = sorted(run.glob("*/study.csv"))
    rows = [row for table in tables[:1] for row in read_rows(table, ("variant", "seed", "data"))]
    results = tables[0].parent.name if tables else ""
    if len(tables) > 1:
        names = few([table.parent.name for table in tables[1:]])
        found.missing.append(f"this report is of {results}; there are results of {names} too")
    found.seeds = rows
    variants = list(dict.fromkeys(row["variant"] for row in rows))
    begun = {path.parent.name for path in run.glob("*/seed*/")}
    folders = {folder_name(variant): variant for variant in variants}
    lengths = {folder_name(variant): costs for variant, costs in read_plan(run / PLAN).items()}
    for folder in (*folders, *sorted(begun - folders.keys())):
        config = _json(run / folder / RECORD).get("config", {})
        for seed in sorted((run / folder).glob("seed*/")):
            name = f"{folders.get(folder, folder)}, {seed.name.replace('seed', 'seed ')}"
            planned = lengths.get(folder, {}).get("max_epochs")
            training = read_training(seed, name, config, planned)
            found.trainings.append(training)
            found.missing += training.missing()
            if not found.judged and (seed / results / SUMMARY).is_file():
                found.config, found.recipe, found.facts = config, training.recipe, training.facts
                judged = seed / results
                found.judged.append(_judged(name, "", judged, data, judged, training))
    comparison = run / results / "comparison.csv"
    if comparison.is_file():
        found.compared = read_rows(comparison, ("data", "variant", "differs"))
    if not rows:
        found.missing.append("no training was judged yet: the same command again goes on")
    return found


def sizes(found: Found) -> list[Row]:
    """How much was found in each case that nobody judged.

    Args:
        found: what the run holds; a segmentation that cannot be read is told there.

    Returns:
        Rows with "case", of numbered objects "objects", for each class its amount under its name with the
        unit, mL of volumes and pixels of pictures, and "size", all of it together; None where it could not be
        read.
    """
    rows: list[Row] = []
    ids = {output_name(case): case for case in found.data.cases}
    for name, file in segmented(found.pred).items():
        case = ids.get(name, name)
        try:
            values, grid = read_label(file, None, found.instances)
        except Fault as fault:
            found.missing.append(str(fault))
            rows.append({"case": case, "size": None})
            continue
        counts = dict(zip(*(part.tolist() for part in np.unique(values, return_counts=True)), strict=True))
        volume = values.ndim == 3
        unit, voxel = ("mL", math.prod(grid.spacing) / 1000) if volume else ("pixels", 1)
        row: Row = {"case": case}
        if found.instances:
            row["objects"] = sum(value > 0 for value in counts)
            named = {"all objects": sum(count for value, count in counts.items() if value > 0)}
        else:
            classes = found.labels or {f"value {value}": value for value in counts}
            named = {each: counts.get(classes[each], 0) for each in class_names(classes) if classes[each]}
        row |= {f"{each}, {unit}": count * voxel for each, count in named.items()}
        rows.append({**row, "size": sum(named.values()) * voxel})
    columns = dict.fromkeys(key for row in rows for key in row if key != "size")
    return [{**{key: row.get(key) for key in columns}, "size": row["size"]} for row in rows]
