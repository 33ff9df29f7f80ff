"""`python -m bundle study`: a training repeated with several seeds, and with settings changed one at a time.

Each training resumes where it was cut, and one that is judged is not repeated: a study that was interrupted
goes on when the same command is given again, and a variant, a seed or a data set more adds itself.

With minutes, every variant trains as many steps as fit into them (`bundle.runs.budget`). Variants are held
against the first one case by case (`bundle.runs.compare`), on the cases of the data set and on others that no
training saw: of another place, or changed ones (`bundle.data.corrupt`). What is there is used again where it
was made of what it would be made of now (`bundle.made_of`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import typer
from matplotlib.figure import Figure

from bundle.data.corrupt import STRENGTHS, corrupted_of, write_corrupted
from bundle.made_of import require_same, write_record
from bundle.runs.budget import plan_training, read_plan, seconds_a_case, write_plan
from bundle.runs.commands import run_bundle, say
from bundle.runs.compare import (
    OWN,
    comparison,
    comparison_table,
    draw_comparison,
    mean_over,
    read_cases,
)
from bundle.runs.experiments import parser_of, read_experiment
from bundle.runs.trainings import SHOWN, SUMMARY, config_of, minutes_of, score_section, warn
from bundle.runs.warm import Warm, imports_once
from scripts.compute.length import LENGTH
from scripts.data.cases import describe_cases
from scripts.data.datalist import cases_of, sections
from scripts.errors import InputError, few
from scripts.files import fingerprint, read_json, short_hash, write_csv
from scripts.judging.tables import read_means
from scripts.machine import machine
from scripts.pictures import save_figure
from scripts.tables import Row, number, table

#: The training without any change.
UNCHANGED = "unchanged"

#: What every variant costs, below the output folder.
PLAN = "plan.json"

#: In place of a seed: the mean of the probabilities of all seeds.
ENSEMBLE = "ensemble"


@dataclass(frozen=True)
class Trained:
    """What is judged: the network of one seed, or the mean of those of all.

    Attributes:
        variant: its name.
        seed: a seed, or ENSEMBLE.
        folder: where results go.
        checkpoints: weights, of each network.
        overlays: of its inference.
    """

    variant: str
    seed: int | str
    folder: Path
    checkpoints: list[str]
    overlays: Sequence[str] = ()

    @classmethod
    def all_of(cls, output_dir: Path, variants: Iterable[str], seeds: Sequence[int]) -> list[Trained]:
        """Every seed of every variant, seed by seed; of several the mean as well."""
        folders = {variant: output_dir / folder_name(variant) for variant in variants}
        single = [
            cls(variant, seed, folder / f"seed{seed}", [str(folder / f"seed{seed}" / "model.pt")])
            for seed in seeds
            for variant, folder in folders.items()
        ]
        inside = sorted(seeds)  # of other seeds, another one
        together = [
            cls(
                variant,
                ENSEMBLE,
                folder / "_".join([ENSEMBLE, *map(str, inside)]),
                [str(folder / f"seed{seed}" / "model.pt") for seed in inside],
                ["configs/ensemble.json"],
            )
            for variant, folder in folders.items()
        ]
        return single + together * (len(seeds) > 1)


@dataclass
class Judge:
    """How every training of a study is judged.

    Args:
        output_dir: the folder of the study.
        measure: one of SHOWN.
        section: whose cases are judged.
        inferer: an overlay for inference, or None.
        data: folders of the data sets by name, OWN first.
        plan: what each variant costs, where that was measured.
        warm: what runs the commands, as `run_python` takes it.

    Attributes:
        results: the folder of a judgement within that of a training.
        cases: those of each data set, described.
        rows: a line for each training and data set.
    """

    output_dir: Path
    measure: str
    section: str
    inferer: Path | None
    data: dict[str, Path]
    plan: dict[str, Row]
    warm: Warm | None = None
    rows: list[Row] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.results = self.section if self.inferer is None else f"{self.section}_{self.inferer.stem}"
        self.cases = {
            name: describe_cases(cases_of(sections(folder), self.section))
            for name, folder in self.data.items()
        }

    def names(self, trained: Trained) -> list[str]:
        """The data sets that it is judged on; the mean of several on its own alone."""
        return [OWN] if trained.seed == ENSEMBLE else list(self.data)

    def folder(self, trained: Trained, name: str) -> Path:
        """Where a training is judged on a data set."""
        return trained.folder / (self.results if name == OWN else f"{self.results}_{folder_name(name)}")

    def is_judged(self, trained: Trained, name: str) -> bool:
        """Whether that was done."""
        return (self.folder(trained, name) / SUMMARY).is_file()

    def made_of(self, trained: Trained, name: str) -> Row:
        """What a judgement depends on; weights that are there no more are what they were."""
        weights = [Path(file) for file in trained.checkpoints if Path(file).is_file()]
        return {
            "measure": self.measure,
            "section": self.section,
            "inferer": self.inferer and read_json(self.inferer),
            "cases": self.cases[name],
            **({"weights": [short_hash(fingerprint(file)) for file in weights]} if weights else {}),
        }

    def judge(self, trained: Trained, name: str) -> None:
        """Judge a training on a data set, unless that was done, and add its row to the tables."""
        judged = self.folder(trained, name)
        beside = str(Path(trained.checkpoints[0]).with_name("inference.json"))
        inferer = [] if self.inferer is None else [str(self.inferer.resolve())]
        configs = ["configs/inference.json", beside, *inferer, *trained.overlays]
        where: dict[str, Any] = {"section": self.section, "checkpoint": trained.checkpoints}
        where["dataset_dir"] = str(self.data[name])
        if not self.is_judged(trained, name):
            write_record(judged, self.made_of(trained, name))
            run_bundle(
                configs,
                **where,
                output_dir=str(judged),
                save_probabilities=self.measure == "membranes",
                warm=self.warm,
            )
            score_section(judged, where["dataset_dir"], self.section, self.measure, judged, self.warm)
        costs = self.plan.get(trained.variant, {})
        seconds = costs.get("seconds_a_case", {})
        if name == OWN and costs.get("machine") == machine() and self.results not in seconds:
            run = {"config_file": configs, **where, "output_dir": str(judged)}
            costs["seconds_a_case"] = {**seconds, self.results: seconds_a_case(run)}
            write_plan(self.output_dir / PLAN, self.plan)
        row: Row = {"variant": trained.variant, "seed": trained.seed, "data": name}
        self.rows.append({**row, **read_means(judged / SUMMARY), "minutes": minutes_of(trained.folder)})
        write(self.rows, self.output_dir / self.results, self.measure)

    def costs(self) -> dict[str, Row]:
        """The plan, with the seconds of a case as it is judged here."""
        return {
            variant: {**costs, "seconds_a_case": costs.get("seconds_a_case", {}).get(self.results)}
            for variant, costs in self.plan.items()
        }


class Reused:
    """What a study uses again, and what is to be told of it.

    Args:
        output_dir: the folder of the study.
    """

    def __init__(self, output_dir: Path) -> None:
        self.output_dir = output_dir
        self.told: dict[str, list[str]] = {}

    def take(self, folder: Path, made_of: Row) -> None:
        """Use a folder, if it was made of what it would be made of now.

        Raises:
            InputError: see `require_same`.
        """
        if found := require_same(folder, made_of):
            self.told.setdefault(found, []).append(str(folder.relative_to(self.output_dir)))

    def tell(self) -> None:
        """Warn of what another code or machine made."""
        for found, folders in self.told.items():
            warn(f"{few(folders)}: {found}; it stands as it is")


def study(
    args_file: Path,
    dataset_dir: Path,
    output_dir: Path,
    measure: str,
    seeds: list[int],
    variants: Path | None,
    section: str,
    inferer: Path | None,
    minutes: float | None,
    corrupt: list[str] | None,
    other: list[Path] | None,
    ids: dict[str, Any],
) -> None:
    """Carry out `bundle.cli.study`, whose arguments these are."""
    seeds = list(dict.fromkeys(seeds))
    changes = {variant: {**ids, **own} for variant, own in read_variants(variants).items()}
    for variant, change in changes.items():
        config = parser_of(read_experiment(args_file, change)).get()
        _require_no_length(variant, {**change, "minutes": config.get("minutes")}, minutes)
    output_dir = output_dir.resolve()
    places = {"args_file": str(args_file.resolve()), "dataset_dir": str(dataset_dir.resolve())}
    others = [folder.resolve() for folder in dict.fromkeys(other or ())]
    for folder in (dataset_dir, *others):
        cases_of(sections(folder), section)  # hours before they are segmented
    reused = Reused(output_dir)
    plan = {} if minutes is None else read_plan(output_dir / PLAN)
    for variant, change in changes.items():
        made_of = _training_of(args_file, change, dataset_dir, minutes)
        folder = output_dir / folder_name(variant)
        has_begun = any(folder.glob("seed*"))
        if has_begun:
            reused.take(folder, made_of)
        if minutes is not None:
            if not _is_planned(plan.get(variant), made_of):
                _require_not_begun(has_begun, variant, folder)
                _require_one_machine(variant, plan)
                say(f"{variant}: how long a step takes")
                planned = {**change, "dataset_dir": places["dataset_dir"]}
                plan[variant] = plan_training(args_file, planned, minutes)
                plan[variant]["of"] = _planned(plan[variant], made_of)
                write_plan(output_dir / PLAN, plan)
            changes[variant] = {**change, **{name: plan[variant][name] for name in LENGTH}}
        if not has_begun:
            write_record(folder, made_of)
    _warn_of_other_machines(plan, changes)
    data = _data_sets(dataset_dir, output_dir, section, corrupt or (), others, reused)
    judge = Judge(output_dir, measure, section, inferer, data, plan)
    trainings = Trained.all_of(output_dir, changes, seeds)
    for trained in trainings:
        for name in filter(partial(judge.is_judged, trained), judge.names(trained)):
            reused.take(judge.folder(trained, name), judge.made_of(trained, name))
    reused.tell()
    with imports_once() as judge.warm:
        for trained in trainings:
            if trained.seed == ENSEMBLE:
                say(f"{trained.variant}, mean of {len(seeds)} networks")
            elif not judge.is_judged(trained, OWN):
                say(f"{trained.variant}, seed {trained.seed}")
                own = {**places, **changes[trained.variant], "seed": trained.seed}
                run_bundle(**own, resume=True, output_dir=str(trained.folder), warm=judge.warm)
            for name in judge.names(trained):
                judge.judge(trained, name)
    typer.echo(f"\n{summary_table([row for row in judge.rows if row['data'] == OWN], measure)}")
    results = output_dir / judge.results
    if len(changes) > 1 or len(data) > 1:
        score = SHOWN[measure][0]
        scored = {
            name: {
                variant: mean_over(
                    [
                        read_cases(judge.folder(trained, name), score)
                        for trained in trainings
                        if trained.variant == variant and trained.seed != ENSEMBLE
                    ]
                )
                for variant in changes
            }
            for name in data
        }
        compared = comparison(scored, judge.costs())
        write_csv(results / "comparison.csv", compared)
        draw_comparison(compared, score, results / "comparison.png")
        typer.echo(f"\n{comparison_table(compared, score)}")
    typer.echo(f"\nTables and pictures: {results}")


def _training_of(args_file: Path, change: Row, dataset_dir: Path, minutes: float | None) -> Row:
    """What the trainings of a variant depend on: the minutes, the merged configs, and the cases."""
    cases = sections(dataset_dir)
    return {
        "minutes": minutes,
        "config": config_of(args_file, change),
        "cases": {name: describe_cases(cases[name]) for name in ("training", "validation")},
    }


def _planned(costs: Row, made_of: Row) -> str:
    """What a plan holds for: a training, and the length that it has."""
    return short_hash([made_of, *(costs[name] for name in LENGTH)])


def _is_planned(costs: Row | None, made_of: Row) -> bool:
    """Whether a plan is one of this training, as it was written."""
    return costs is not None and "of" in costs and costs["of"] == _planned(costs, made_of)


def _require_not_begun(has_begun: bool, variant: str, folder: Path) -> None:
    if has_begun:
        raise InputError(
            f"{PLAN} does not have the steps that {variant!r} was trained with in {folder}: put back the "
            "file as it was, remove that folder to have it trained again, or give another --output_dir"
        )


def _require_one_machine(variant: str, plan: Mapping[str, Row]) -> None:
    """Refuse to time a variant beside others that another machine timed: minutes would not be equal."""
    others = sorted({costs["machine"] for costs in plan.values()} - {machine()})
    if others:
        raise InputError(
            f"--minutes: {variant!r} has no plan yet, and {PLAN} was measured on another machine "
            f"({few(others)}; this is {machine()}), so that equal minutes are not equal compute: measure it "
            "there, or give another --output_dir"
        )


def _warn_of_other_machines(plan: Mapping[str, Row], variants: Iterable[str]) -> None:
    measured = {plan[variant]["machine"] for variant in variants if variant in plan}
    if others := sorted(measured - {machine()}):
        warn(
            f"{PLAN} was measured on {few(others)}, and this is {machine()}: the numbers of steps stay as "
            "they are, seconds are those of that machine, and no case is timed here"
        )


def _data_sets(
    dataset_dir: Path,
    output_dir: Path,
    section: str,
    corrupt: Sequence[str],
    others: Sequence[Path],
    reused: Reused,
) -> dict[str, Path]:
    """What is judged on, by name: the own data, those of other places, and changed ones, which are made."""
    data = {OWN: dataset_dir.resolve(), **{folder.name: folder for folder in others}}
    if len(data) <= len(others):
        raise InputError(f"--other {others[-1]}: several data sets have one name: rename their folders")
    for kind in dict.fromkeys(map(str, corrupt)):
        for strength in STRENGTHS:
            folder = output_dir / "data" / section / f"{kind}_{strength}"
            data[f"{kind} {strength}"] = folder
            if not folder.is_dir():
                write_corrupted(dataset_dir, folder, kind, strength, section)
            else:
                reused.take(folder, corrupted_of(dataset_dir, kind, strength, section))
    return data


def _require_no_length(variant: str, change: Row, minutes: float | None) -> None:
    given = next((name for name in ("minutes", *LENGTH) if change.get(name) is not None), None)
    if minutes is not None and given is not None:
        raise InputError(
            f"--minutes is {minutes:g}, and {variant!r} has {given} {change[given]}: the minutes say how "
            "long a training is; drop one"
        )


def read_variants(path: Path | None) -> dict[str, Row]:
    """Names of the variants and the ids that each changes; without a file the unchanged training alone.

    Args:
        path: {"common": {"id": value}, "variants": {"name": {"id": value}}}: what all change, and what each.

    Raises:
        InputError: another form, or two names that give one folder.
    """
    if path is None:
        return {UNCHANGED: {}}
    content = read_json(path)
    common, variants = content.get("common", {}), content.get("variants")
    objects = [common, variants, *(variants.values() if isinstance(variants, dict) else ())]
    if not variants or not all(isinstance(value, dict) for value in objects):
        raise InputError(
            f'{path} lists no variants: write {{"common": {{}}, "variants": {{"name": {{"id": value}}}}}}'
        )
    folders = [folder_name(variant) for variant in variants]
    clash = next((name for name in folders if folders.count(name) > 1 or not name), None)
    if clash is not None:
        raise InputError(f"{path} has several variants for the folder {clash!r}: give other names")
    return {variant: {**common, **overrides} for variant, overrides in variants.items()}


def folder_name(variant: str) -> str:
    """A variant's name as that of a folder."""
    return re.sub(r"\W+", "_", variant).strip("_").lower()


def summary_table(rows: Sequence[Row], measure: str) -> str:
    """A line for each variant: the mean over the seeds, their standard deviation, and the ensemble."""
    lines = []
    for variant, own in _by_variant(rows).items():
        seeds = [row for row in own if row["seed"] != ENSEMBLE]
        line: Row = {"variant": variant, "seeds": len(seeds)}
        for score in SHOWN[measure]:
            values = [row[score] for row in seeds if row[score] is not None]
            spread = f" ± {number(score, stdev(values))}" if len(values) > 1 else ""
            line[score] = f"{number(score, fmean(values))}{spread}" if values else "-"
        line["minutes"] = f"{fmean(row['minutes'] for row in seeds):.1f}"
        together = next((row[SHOWN[measure][0]] for row in own if row["seed"] == ENSEMBLE), math.nan)
        line[f"{SHOWN[measure][0]} of {ENSEMBLE}"] = together
        lines.append(line)
    return table(list(lines[0]), lines)


def write(rows: Sequence[Row], output_dir: Path, measure: str) -> None:
    """Write study.csv, a row for each training and data set, and study.png, of the own data alone."""
    write_csv(output_dir / "study.csv", rows)
    draw([row for row in rows if row["data"] == OWN], SHOWN[measure], output_dir / "study.png")


def draw(rows: Sequence[Row], scores: Sequence[str], path: Path) -> None:
    """Save the scores of every training: a panel for each score, a line for each variant, from top to bottom.

    Args:
        rows: with "variant", "seed" and the scores.
        scores: which of them.
        path: the PNG to write.
    """
    variants = _by_variant(rows)
    figure = Figure(figsize=(1.8 + 2.6 * len(scores), 1.2 + 0.4 * len(variants)), layout="constrained")
    for axis, score in zip(
        figure.subplots(1, len(scores), sharey=True, squeeze=False)[0], scores, strict=True
    ):
        for line, own in enumerate(variants.values()):
            seeds = [row[score] for row in own if row["seed"] != ENSEMBLE and row[score] is not None]
            axis.scatter(seeds, [line] * len(seeds), s=18, color="#0072b2", alpha=0.7)
            if len(seeds) > 1:
                axis.vlines(fmean(seeds), line - 0.3, line + 0.3, color="black")
            together = [row[score] for row in own if row["seed"] == ENSEMBLE and row[score] is not None]
            axis.scatter(together, [line] * len(together), s=30, marker="D", color="#d55e00")
        axis.set_xlabel(score)
        axis.locator_params(axis="x", nbins=4)
        axis.grid(axis="x", alpha=0.3)
    first = figure.axes[0]
    first.set_yticks(range(len(variants)), list(variants))
    first.set_ylim(len(variants) - 0.5, -0.5)
    figure.suptitle("point: a seed; line: their mean; diamond: mean of their probabilities", fontsize=9)
    save_figure(figure, path)


def _by_variant(rows: Sequence[Row]) -> dict[str, list[Row]]:
    return {
        variant: [row for row in rows if row["variant"] == variant]
        for variant in dict.fromkeys(row["variant"] for row in rows)
    }
