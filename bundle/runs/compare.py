"""Variants against the unchanged training, case by case: is a difference more than chance?

Two networks judged on the same cases differ in each case by the means over their seeds. Whether they
lie around zero is asked by Wilcoxon's signed rank test (Wilcoxon, 1945); several variants against one are
several chances to find something, for which p is raised after Holm, 1979. How large a difference is says the
mean over the cases, with a bootstrap interval over them.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy.stats import bootstrap, wilcoxon

from scripts.judging.tables import mean_of
from scripts.tables import Row

#: Above which p a difference may be chance.
LEVEL = 0.05

#: Draws of the bootstrap, its seed, and what the interval covers.
DRAWS, SEED, COVERED = 10_000, 0, 0.95


def read_cases(folder: Path, score: str) -> dict[str, float]:
    """A score of each case, the mean over its classes, from an evaluation's scores.csv; NaN is left out."""
    found: dict[str, list[float]] = {}
    with (folder / "scores.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            found.setdefault(row["case"], []).append(float(row[score] or math.nan))
    means = {case: mean_of(values) for case, values in found.items()}
    return {case: value for case, value in means.items() if not math.isnan(value)}


def mean_over(seeds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Of each case that every seed scored, the mean over the seeds."""
    shared = set(seeds[0]).intersection(*seeds)
    return {case: math.fsum(seed[case] for seed in seeds) / len(seeds) for case in sorted(shared)}


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Bootstrap interval of a mean (percentiles); of fewer than two values, or equal ones, no width."""
    if len(values) < 2 or min(values) == max(values):
        return values[0], values[-1]
    found = bootstrap(
        (np.asarray(values),),
        np.mean,
        n_resamples=DRAWS,
        confidence_level=COVERED,
        method="percentile",
        rng=np.random.default_rng(SEED),
    ).confidence_interval
    return float(found.low), float(found.high)


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
