"""`python -m bundle study`: a training repeated with several seeds, and with settings changed one at a time.

Each training resumes where it was cut, and one that is judged is not repeated: a study that was interrupted
goes on when the same command is given again, and a variant, a seed or a data set more adds itself.

With minutes, every variant trains as many steps as fit into them (`bundle.runs.budget`). Variants are held
against the first one case by case (`bundle.runs.compare`), on the cases of the data set and on others that no
training saw: of another place, or changed ones (`bundle.data.corrupt`).
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import typer
from matplotlib.figure import Figure

from bundle.data.corrupt import STRENGTHS, write_corrupted
from bundle.runs.budget import plan_training, read_plan, seconds_a_case, write_plan
from bundle.runs.commands import run_bundle, run_python, say
from bundle.runs.compare import (
    OWN,
    comparison,
    comparison_table,
    draw_comparison,
    mean_over,
    read_cases,
)
from bundle.runs.experiments import read_experiment
from scripts.data.datalist import cases_of, sections
from scripts.errors import InputError
from scripts.files import read_json, write_csv
from scripts.judging.tables import read_means
from scripts.pictures import save_figure
from scripts.tables import Row, number, table

#: What the picture shows, and what the printed table begins with, of the scores of each measure.
SHOWN = {
    "classes": ("dice", "iou", "hd95"),
    "instances": ("ap50", "ap", "pq", "seg"),
    "membranes": ("v_rand", "v_info", "pixel_error", "warping_error"),
}

#: The training without any change.
UNCHANGED = "unchanged"

#: What every variant costs, below the output folder, and which of its ids `--minutes` sets.
PLAN, LENGTH = "plan.json", ("max_epochs", "val_interval")

#: In place of a seed: the mean of the probabilities of all seeds.
ENSEMBLE = "ensemble"


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
        read_experiment(args_file, change)
        _require_no_length(variant, change, minutes)
    results = section if inferer is None else f"{section}_{inferer.stem}"
    output_dir = output_dir.resolve()
    places = {"args_file": str(args_file.resolve()), "dataset_dir": str(dataset_dir.resolve())}
    others = [folder.resolve() for folder in dict.fromkeys(other or ())]
    for folder in (dataset_dir, *others):
        cases_of(sections(folder), section)  # hours before they are segmented
    data = _data_sets(dataset_dir, output_dir, section, corrupt or (), others)
    plan = read_plan(output_dir / PLAN)
    if minutes is not None:
        for variant, change in changes.items():
            known = plan.get(variant, {})
            if known.get("minutes") != minutes:
                _require_not_begun(output_dir / folder_name(variant), variant, known, minutes)
                say(f"{variant}: how long a step takes")
                planned = {**change, "dataset_dir": places["dataset_dir"]}
                plan[variant] = plan_training(args_file, planned, minutes)
                write_plan(output_dir / PLAN, plan)
            changes[variant] = {**change, **{name: plan[variant][name] for name in LENGTH}}
    rows: list[Row] = []

    def judge(variant: str, seed: int | str, folder: Path, checkpoint: list[str], *more: str) -> None:
        for name in [OWN] if seed == ENSEMBLE else data:
            judge_on(name, variant, seed, folder, checkpoint, *more)

    def judge_on(
        name: str, variant: str, seed: int | str, folder: Path, checkpoint: list[str], *more: str
    ) -> None:
        judged = _judged(folder, results, name)
        trained = str(Path(checkpoint[0]).with_name("inference.json"))
        overlays = [] if inferer is None else [str(inferer.resolve())]
        configs = ["configs/inference.json", trained, *overlays, *more]
        where: dict[str, Any] = {"section": section, "checkpoint": checkpoint}
        where["dataset_dir"] = str(data[name])
        if not (judged / "summary.json").is_file():
            run_bundle(configs, **where, output_dir=str(judged), save_probabilities=measure == "membranes")
            run_python(
                *("-m", "bundle", "score", str(judged), where["dataset_dir"], "--section", section),
                *("--measure", measure, "--output_dir", str(judged)),
            )
        if name == OWN and variant in plan and "seconds_a_case" not in plan[variant]:
            run = {"config_file": configs, **where, "output_dir": str(judged)}
            plan[variant]["seconds_a_case"] = seconds_a_case(run)
            write_plan(output_dir / PLAN, plan)
        scores = read_means(judged / "summary.json")
        rows.append({"variant": variant, "seed": seed, "data": name, **scores, "minutes": _minutes(folder)})
        write(rows, output_dir / results, measure)

    for seed in seeds:
        for variant, overrides in changes.items():
            folder = output_dir / folder_name(variant) / f"seed{seed}"
            if not (folder / results / "summary.json").is_file():
                say(f"{variant}, seed {seed}")
                run_bundle(**{**places, **overrides}, seed=seed, resume=True, output_dir=str(folder))
            judge(variant, seed, folder, [str(folder / "model.pt")])
    for variant in changes if len(seeds) > 1 else ():
        folder = output_dir / folder_name(variant)
        say(f"{variant}, mean of {len(seeds)} networks")
        checkpoints = [str(folder / f"seed{seed}" / "model.pt") for seed in seeds]
        together = folder / "_".join([ENSEMBLE, *map(str, sorted(seeds))])  # of other seeds, another one
        judge(variant, ENSEMBLE, together, checkpoints, "configs/ensemble.json")
    own = [row for row in rows if row["data"] == OWN]
    typer.echo(f"\n{summary_table(own, measure)}")
    if len(changes) > 1 or len(data) > 1:
        score = SHOWN[measure][0]
        scored = {
            name: {
                variant: mean_over(
                    [
                        read_cases(
                            _judged(output_dir / folder_name(variant) / f"seed{seed}", results, name), score
                        )
                        for seed in seeds
                    ]
                )
                for variant in changes
            }
            for name in data
        }
        compared = comparison(scored, plan)
        write_csv(output_dir / results / "comparison.csv", compared)
        draw_comparison(compared, score, output_dir / results / "comparison.png")
        typer.echo(f"\n{comparison_table(compared, score)}")
    typer.echo(f"\nTables and pictures: {output_dir / results}")


def _data_sets(
    dataset_dir: Path, output_dir: Path, section: str, corrupt: Sequence[str], others: Sequence[Path]
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
    return data


def _judged(training: Path, results: str, data: str) -> Path:
    """Where a training was judged on a data set."""
    return training / (results if data == OWN else f"{results}_{folder_name(data)}")


def _require_no_length(variant: str, change: Row, minutes: float | None) -> None:
    given = next((name for name in LENGTH if name in change), None)
    if minutes is not None and given is not None:
        raise InputError(
            f"--minutes is {minutes:g}, and {variant!r} has {given} {change[given]}: the minutes say how "
            "many epochs there are; drop one"
        )


def _require_not_begun(folder: Path, variant: str, known: Row, minutes: float) -> None:
    if any(folder.glob("seed*/checkpoints/last.pt")):
        before = f"{known['minutes']:g} minutes" if known else "no --minutes"
        raise InputError(
            f"--minutes is {minutes:g}, and {variant!r} was trained with {before} in {folder}: give what was "
            "given then, or another --output_dir"
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


def _minutes(folder: Path) -> float | None:
    """Minutes of a training, from its learning curve; None where there is none."""
    path = folder / "learning_curve.csv"
    if not path.is_file():
        return None
    with path.open() as file:
        return math.fsum(float(row["minutes"]) for row in csv.DictReader(file))
