"""Variants against the unchanged training, case by case: is a difference more than chance?

Two networks judged on the same cases differ in each case by the means over their seeds. Whether they
lie around zero is asked by Wilcoxon's signed rank test (Wilcoxon, 1945); several variants against one are
several chances to find something, for which p is raised after Holm, 1979. How large a difference is says the
mean over the cases, with a bootstrap interval over them.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import wilcoxon

from scripts.judging.tables import OVERALL, mean_of
from scripts.pictures import save_figure
from scripts.tables import Row, table

#: The data set that is trained on.
OWN = "own"

#: Columns of a comparison that the first variant has no values for, and those of what a variant costs.
COMPARED = ("difference", "low", "high", "p", "p_holm", "differs")
COSTS = ("parameters", "multiply_adds", "step_bytes", "seconds_a_step", "seconds_a_case", "steps")

#: Above which p a difference may be chance.
LEVEL = 0.05

#: Draws of the bootstrap, its seed, and what the interval covers.
DRAWS, SEED, COVERED = 10_000, 0, 0.95

#: Inches of a line of names beside the picture.
LINE = 0.17

#: From a name to its point, and colours that are told apart side by side.
LEADER = {"arrowstyle": "-", "linewidth": 0.6, "alpha": 0.6, "relpos": (0, 0.5), "shrinkA": 1, "shrinkB": 4}
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#000000", "#e69f00", "#56b4e9")


def read_scores(file: Path, score: str) -> dict[str, dict[str, float]]:
    """A score by class and case, from a table of cases; OVERALL is the mean over a case's classes.

    Args:
        file: scores.csv of an evaluation, or crossval.csv.
        score: its column; what is empty there is NaN.
    """
    found: dict[str, dict[str, float]] = {}
    with file.open(encoding="utf-8", newline="") as opened:
        for row in csv.DictReader(opened):
            found.setdefault(row.get("class", OVERALL), {})[row["case"]] = float(row[score] or math.nan)
    cases = dict.fromkeys(case for column in found.values() for case in column)
    means = {case: mean_of([column[case] for column in found.values() if case in column]) for case in cases}
    return {**found, OVERALL: means}


def read_cases(folder: Path, score: str) -> dict[str, float]:
    """A score of each case, the mean over its classes, from an evaluation's scores.csv; NaN is left out."""
    means = read_scores(folder / "scores.csv", score)[OVERALL]
    return {case: value for case, value in means.items() if not math.isnan(value)}


def mean_over(seeds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Of each case that every seed scored, the mean over the seeds."""
    shared = set(seeds[0]).intersection(*seeds)
    return {case: math.fsum(seed[case] for seed in seeds) / len(seeds) for case in sorted(shared)}


def interval(values: Sequence[float], subjects: Sequence[Hashable] = ()) -> tuple[float, float]:
    """Bootstrap interval of a mean (percentiles).

    Args:
        values: at least one.
        subjects: whom each is of: they are drawn with all their values, as values of one are alike; none:
            each value is of its own.

    Returns:
        The lower and the upper end; of fewer than two subjects, or equal values, both are the mean.
    """
    own: dict[Hashable, list[float]] = {}
    for subject, value in zip(subjects or range(len(values)), values, strict=True):
        own.setdefault(subject, []).append(value)
    if len(own) < 2 or min(values) == max(values):
        return mean_of(values), mean_of(values)
    sums, counts = (np.array([of(held) for held in own.values()], float) for of in (math.fsum, len))
    drawn = np.random.default_rng(SEED).integers(0, len(own), (DRAWS, len(own)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.percentile(means, [50 * (1 - COVERED), 50 * (1 + COVERED)])
    return float(low), float(high)


def compare(cases: Mapping[str, Mapping[str, float]]) -> list[Row]:
    """Every variant against the first one, on the cases that both have.

    Args:
        cases: of each variant the score of each case, larger is better or smaller alike.

    Returns:
        A row for each variant but the first: "variant", "cases", "difference" (its mean minus that of the
        first), "low" and "high" of its interval, "p" of Wilcoxon's test, "p_holm", and "differs", whether
        this is below LEVEL.
    """
    (_, first), *others = cases.items()
    rows = []
    for variant, scores in others:
        shared = [case for case in first if case in scores]
        apart = [scores[case] - first[case] for case in shared]
        low, high = interval(apart) if apart else (math.nan, math.nan)
        p = float(wilcoxon(apart).pvalue) if any(apart) else 1.0
        row: Row = {"variant": variant, "cases": len(shared), "difference": mean_of(apart)}
        rows.append({**row, "low": low, "high": high, "p": p})
    for row, raised in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row |= {"p_holm": raised, "differs": raised < LEVEL}
    return rows


def holm(ps: Sequence[float]) -> list[float]:
    """Probabilities raised for their number: the smallest times all, the next times all but one, and so on.

    None is smaller than one before it, and none above 1 (Holm, 1979).
    """
    raised, most = [0.0] * len(ps), 0.0
    for rank, index in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        most = max(most, min((len(ps) - rank) * ps[index], 1.0))
        raised[index] = most
    return raised


def comparison(scored: Mapping[str, Mapping[str, Mapping[str, float]]], plan: Mapping[str, Row]) -> list[Row]:
    """A row for each variant on each data set: its mean, its drop, its difference from the first, its cost.

    Args:
        scored: by data set, OWN first, and variant, the score of each case.
        plan: what each variant costs, where that was measured.
    """
    rows = []
    for data, variants in scored.items():
        against = {row["variant"]: row for row in compare(variants)}
        for variant, cases in variants.items():
            values = list(cases.values())
            low, high = interval(values)
            own = mean_of(list(scored[OWN][variant].values()))
            row: Row = {"data": data, "variant": variant, "mean": mean_of(values), "mean_low": low}
            row |= {"mean_high": high, "drop": own - mean_of(values)}
            row |= against.get(variant, dict.fromkeys(COMPARED))
            row["cases"] = len(values)
            rows.append({**row, **{name: plan.get(variant, {}).get(name) for name in COSTS}})
    return rows


def comparison_table(rows: Sequence[Row], score: str) -> str:
    """A line for each variant: in the domain with its difference from the first, out of it the mean drop."""
    lines = []
    for variant in dict.fromkeys(row["variant"] for row in rows):
        own, *shifted = [row for row in rows if row["variant"] == variant]
        line: Row = {"variant": variant}
        line[f"{score} (95 %)"] = f"{own['mean']:.4f} ({own['mean_low']:.4f} to {own['mean_high']:.4f})"
        if own["difference"] is not None:
            line["difference (95 %)"] = f"{own['difference']:+.4f} ({own['low']:+.4f} to {own['high']:+.4f})"
            line["p, Holm"] = f"{own['p_holm']:.3g}"
            line["differs"] = "yes" if own["differs"] else "no"
        else:
            line |= {"difference (95 %)": "-", "p, Holm": "-", "differs": "-"}
        if shifted:
            line["elsewhere"] = f"{mean_of([row['mean'] for row in shifted]):.4f}"
        if own["parameters"] is not None:
            line["parameters, M"] = f"{own['parameters'] / 1e6:.2f}"
            line["multiply-adds, G"] = f"{own['multiply_adds'] / 1e9:.2f}"
            line["step, GiB"] = f"{own['step_bytes'] / 2**30:.2f}"
            line["s a step"] = f"{own['seconds_a_step']:.3g}"
            line["s a case"] = "-" if own["seconds_a_case"] is None else f"{own['seconds_a_case']:.3g}"
        lines.append(line)
    return table(list(lines[0]), lines)


def draw_comparison(rows: Sequence[Row], score: str, path: Path) -> None:
    """Save the score of every variant against the seconds of a step, in and out of the domain.

    Args:
        rows: from `comparison`.
        score: its name.
        path: the PNG to write.
    """
    variants = list(dict.fromkeys(row["variant"] for row in rows))
    height = max(5.0, 1.5 + LINE * len(variants))
    width = 7 + 0.07 * max(map(len, variants))
    figure = Figure(figsize=(width, height), layout="constrained")
    axis = figure.subplots()
    timed = all(row["seconds_a_step"] is not None for row in rows)
    points = {}
    order = sorted(variants, key=lambda name: next(row["mean"] for row in rows if row["variant"] == name))
    colours = {variant: COLOURS[place % len(COLOURS)] for place, variant in enumerate(order)}
    for place, variant in enumerate(variants):
        own, *shifted = [row for row in rows if row["variant"] == variant]
        x = own["seconds_a_step"] if timed else place
        if not math.isnan(own["mean"]):
            points[variant] = (x, own["mean"])
        axis.errorbar(
            x,
            own["mean"],
            yerr=[[own["mean"] - own["mean_low"]], [own["mean_high"] - own["mean"]]],
            fmt="o",
            color=colours[variant],
            capsize=3,
        )
        if shifted:
            elsewhere = mean_of([row["mean"] for row in shifted])
            axis.scatter(x, elsewhere, s=34, facecolors="none", edgecolors=colours[variant])
    _name_points(axis, points, colours, LINE / (height - 1.2))
    axis.set_xlabel("seconds a step, here" if timed else "variant")
    if not timed:
        axis.set_xticks([])
    axis.set_ylabel(score)
    axis.grid(alpha=0.3)
    axis.set_title(
        "filled: the data of the training, 95 % over its cases; hollow: mean over all other data", fontsize=9
    )
    save_figure(figure, path)


def _name_points(
    axis: Axes, points: Mapping[str, tuple[float, float]], colours: Mapping[str, str], apart: float
) -> None:
    """Write the names of points on the right of a picture, in the order of their heights.

    Args:
        axis: with all points in it, whose limits stay.
        points: name to x and y.
        colours: name to that of its point.
        apart: of two names, at least, as a share of the height.
    """
    low, high = axis.get_ylim()
    axis.set_ylim(low, high)
    names = sorted(points, key=lambda name: points[name][1])
    places = spread([(points[name][1] - low) / (high - low) for name in names], apart)
    for name, place in zip(names, places, strict=True):
        axis.annotate(
            name,
            points[name],
            (1.03, place),
            textcoords="axes fraction",
            va="center",
            fontsize=8,
            color=colours[name],
            arrowprops={**LEADER, "color": colours[name]},
        )


def spread(places: Sequence[float], apart: float) -> list[float]:
    """Places in rising order, from 0 to 1, moved as far as it takes for any two to be so far apart."""
    found: list[float] = []
    for place in places:
        found.append(max(place, found[-1] + apart) if found else place)
    end = 1.0
    for index in reversed(range(len(found))):
        found[index] = end = min(found[index], end)
        end -= apart
    return found
