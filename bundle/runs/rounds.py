"""`python -m bundle rounds`: annotation in rounds, played on cases whose labels are there.

A network is trained on the first few cases, says which ones it wants labelled next (`bundle.runs.suggest`),
and the next network is trained on all labels so far, from the start. The first cases of a seed are the same
for all strategies. What is validated is what a training validates; the last network of each strategy is
judged on the testing cases. Only training cases are drawn from.

Rounds that were cut go on when the same command is given again; seeds can be added.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import typer
from matplotlib.figure import Figure

from bundle.made_of import RECORD, require_same, write_record
from bundle.runs.commands import run_bundle, say
from bundle.runs.experiments import read_experiment
from bundle.runs.suggest import SUGGESTED, suggested
from bundle.runs.trainings import SUMMARY, config_of, minutes_of, warn
from bundle.runs.warm import Warm, imports_once
from scripts.data.cases import describe_cases
from scripts.data.datalist import sections
from scripts.errors import InputError
from scripts.files import atomic_write, write_csv
from scripts.judging.tables import read_means
from scripts.locks import hold
from scripts.pictures import save_figure
from scripts.recipe import Ids
from scripts.tables import Row, number, table

#: The training cases of a network, an overlay, and what says that it is trained; both beside it.
CASES, TRAINED = "cases.json", "trained"

#: Colours of the strategies, in their order.
COLOURS = ("#0072b2", "#d55e00")

Case = dict[str, Any]


@dataclass
class Player:
    """Trains, asks and judges.

    Args:
        args_file: the experiment.
        experiment: its content, with ids on top.
        ids: of the command line.
        dataset_dir: folder with dataset.json.
        output_dir: the folder of all.
        split: the cases of the data set.

    Attributes:
        warm: what runs the commands, as `run_python` takes it.
        rows: a line for each network.
    """

    args_file: Path
    experiment: Ids
    ids: Mapping[str, Any]
    dataset_dir: Path
    output_dir: Path
    split: Mapping[str, list[Case]]
    warm: Warm | None = None
    rows: list[Row] = field(default_factory=list)

    def train(self, folder: Path, seed: int, cases: Sequence[Case]) -> float:
        """Train on some cases, unless that was done; gives the best validation."""
        if not (folder / TRAINED).is_file():
            say(f"{folder.relative_to(self.output_dir)}: {len(cases)} cases")
            with atomic_write(folder / CASES) as temporary:
                temporary.write_text(json.dumps({"train::dataset::data": list(cases)}, indent=1), "utf-8")
            self._run(folder, seed, str(folder / CASES), resume=True)
            (folder / TRAINED).touch()
        return best_validation(folder)

    def judge(self, folder: Path, seed: int) -> float | None:
        """The mean Dice of a network on the testing cases, if there are some."""
        if not self.split["testing"]:
            return None
        summary = folder / "evaluation" / SUMMARY
        if not summary.is_file():
            self._run(folder, seed, "configs/evaluate.json", section="testing")
        return read_means(summary)["dice"]

    def _run(self, folder: Path, seed: int, overlay: str, **more: Any) -> None:
        places = {"dataset_dir": str(self.dataset_dir), "output_dir": str(folder)}
        files = [*self.experiment["config_file"], overlay]
        own = {**self.ids, **places, **more, "seed": seed}
        run_bundle(files, args_file=str(self.args_file), **own, warm=self.warm)

    def ask(
        self, folder: Path, strategy: str, drawn: Sequence[Case], count: int, turn: int, seed: int
    ) -> list[Case]:
        """The cases that a network wants labelled next."""
        known = {case["case"] for case in drawn}
        pool = [case for case in self.split["training"] if case["case"] not in known]
        place = folder / f"next_{strategy}"
        if not (place / SUGGESTED).is_file():
            recipe = folder / "inference.json"
            _, problem = suggested(
                recipe, pool, place, count, turn, seed, strategy, {"runtime": "torch"}, self.warm
            )
            if problem:
                raise problem
        with (place / SUGGESTED).open(encoding="utf-8", newline="") as file:
            names = [row["case"] for row in csv.DictReader(file)]
        by_name = {case["case"]: case for case in pool}
        return [by_name[name] for name in names]

    def add(self, strategy: str, seed: int, cases: int, folder: Path, **scores: float | None) -> None:
        """Add a line, and write all of them."""
        row: Row = {"strategy": strategy, "seed": seed, "cases": cases, **scores}
        self.rows.append({**row, "minutes": minutes_of(folder)})
        write_csv(self.output_dir / "rounds.csv", self.rows)
        draw_rounds(self.rows, self.output_dir / "rounds.png")


def rounds(
    args_file: Path,
    dataset_dir: Path,
    output_dir: Path,
    sizes: list[int],
    seeds: list[int],
    strategies: list[str],
    ids: dict[str, Any],
) -> None:
    """Carry out `bundle.cli.rounds`, whose arguments these are."""
    strategies = [str(strategy) for strategy in dict.fromkeys(strategies)]
    experiment = read_experiment(args_file, ids)
    split = sections(dataset_dir)
    if sizes[-1] > len(split["training"]):
        raise InputError(
            f"--size is {sizes[-1]}, and {dataset_dir / 'dataset.json'} has {len(split['training'])} "
            "training cases to draw from: give fewer"
        )
    output_dir = output_dir.resolve()
    made_of = {
        "config": config_of(args_file, ids),
        "cases": {name: describe_cases(cases) for name, cases in split.items()},
        "sizes": sizes,
    }
    if (output_dir / RECORD).is_file():
        if said := require_same(output_dir, made_of):
            warn(f"{output_dir}: {said}; what is there stands as it is")
    else:
        write_record(output_dir, made_of)
    hold(output_dir, "rounds", rounds)  # to the end of the process
    player = Player(args_file.resolve(), experiment, ids, dataset_dir.resolve(), output_dir, split)
    with imports_once() as player.warm:
        for seed in dict.fromkeys(seeds):
            play(player, seed, sizes, strategies)
    typer.echo(f"\n{rounds_table(player.rows)}\n\nTable and picture: {output_dir}")


def play(player: Player, seed: int, sizes: Sequence[int], strategies: Sequence[str]) -> None:
    """All rounds of one seed; what is there is not done again."""
    pool = player.split["training"]
    chosen = np.random.default_rng(seed).choice(len(pool), sizes[0], replace=False)
    first, start = [pool[index] for index in chosen], player.output_dir / f"seed{seed}" / "start"
    for strategy in strategies:
        cases, folder = first, start
        for turn, size in enumerate(sizes):
            if turn:
                more = player.ask(folder, strategy, cases, size - len(cases), turn, seed)
                cases, folder = [*cases, *more], player.output_dir / f"seed{seed}" / f"{strategy}{size}"
            validation = player.train(folder, seed, cases)
            testing = player.judge(folder, seed) if size == sizes[-1] else None
            player.add(strategy, seed, size, folder, validation=validation, testing=testing)


def best_validation(folder: Path) -> float:
    """The best validation of a training, from its learning curve."""
    with (folder / "learning_curve.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return max(
        float(value) for row in rows for name, value in row.items() if name.startswith("val_") and value
    )


def rounds_table(rows: Sequence[Row]) -> str:
    """A line for each strategy and number of cases: means over the seeds, and their standard deviation."""
    lines = []
    for strategy, cases in dict.fromkeys((row["strategy"], row["cases"]) for row in rows):
        own = [row for row in rows if (row["strategy"], row["cases"]) == (strategy, cases)]
        line: Row = {"strategy": strategy, "cases": cases, "seeds": len(own)}
        for score in ("validation", "testing"):
            values = [row[score] for row in own if row[score] is not None]
            spread = f" ± {number(score, stdev(values))}" if len(values) > 1 else ""
            line[score] = f"{number(score, fmean(values))}{spread}" if values else "-"
        lines.append(line)
    return table(list(lines[0]), lines)


def draw_rounds(rows: Sequence[Row], path: Path) -> None:
    """Save the validation over the number of cases: a thin line for each seed, a thick one for their mean.

    Args:
        rows: with "strategy", "seed", "cases", "validation".
        path: the PNG to write.
    """
    figure = Figure(figsize=(5.5, 3.6), layout="constrained")
    axis = figure.subplots()
    for strategy, colour in zip(dict.fromkeys(row["strategy"] for row in rows), COLOURS, strict=False):
        own = [row for row in rows if row["strategy"] == strategy]
        for seed in dict.fromkeys(row["seed"] for row in own):
            line = [(row["cases"], row["validation"]) for row in own if row["seed"] == seed]
            axis.plot(*zip(*line, strict=True), color=colour, linewidth=0.8, alpha=0.5, marker=".")
        sizes = sorted({row["cases"] for row in own})
        means = [fmean(row["validation"] for row in own if row["cases"] == size) for size in sizes]
        axis.plot(sizes, means, color=colour, linewidth=2, label=strategy)
    axis.set_xlabel("training cases with a label")
    axis.set_ylabel("validation")
    axis.grid(alpha=0.3)
    axis.legend()
    figure.suptitle("thin: a seed; thick: their mean", fontsize=9)
    save_figure(figure, path)
