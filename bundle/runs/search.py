"""A search for parameters: one at a time, on values that grow where the best lies at their end.

Two rules keep it honest. Between scores that are equal, to within TIE, a second measure decides, not the
order in which they were tried. And what changes a prediction afterwards is kept only where it helps by more
than its spread, see `helps`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from scripts.judging.tables import mean_of

#: Most combinations that are tried.
MAX_TRIALS = 100

#: Scores count as equal that differ by less than this share of the standard error of the best one's mean.
TIE = 0.05

#: Fewer cases tell no gain from chance.
FEWEST_CASES = 5

#: By so much may two sums of the same numbers differ.
ROUNDING = 1e-9

#: A value beyond the end of the others has this share of the last step to the limit at least.
SHORTEST_STEP = 0.25


@dataclass(frozen=True)
class Values:
    """Values of a parameter that are tried, and how far others may lie beyond them.

    Attributes:
        tried: ascending.
        low: others are this or more; None: there are none beyond.
        high: others are this or less.
        doubling: the next one is twice the last, a whole number; else as far away as the last two are apart.
    """

    tried: tuple[Any, ...]
    low: float | None = None
    high: float = math.inf
    doubling: bool = False

    def end(self, best: Any, tried: Sequence[Any]) -> str | None:
        """At which end of what was tried, ascending, the best lies where it could go on: "low" or "high"."""
        if self.low is None:
            return None
        if best == tried[-1]:
            return "high"
        return "low" if best == tried[0] and self.low < self.tried[0] else None

    def beyond(self, best: Any, tried: Sequence[Any]) -> Any | None:
        """The next value beyond the end of what was tried, ascending, at which the best lies.

        Returns:
            None where it lies elsewhere, or as good as at the limit.
        """
        end = self.end(best, tried)
        if end is None or self.low is None:
            return None
        limit, last = (self.high, self.tried[-2:]) if end == "high" else (self.low, self.tried[:2])
        step = best if self.doubling else last[-1] - last[0]
        if abs(limit - best) <= SHORTEST_STEP * step:
            return None
        value = best + step if end == "high" else best - step
        if not self.low <= value <= self.high:
            value = (best + limit) / 2
        return int(value) if self.doubling else round(value, 4)


Grid = Mapping[str, Values]


@dataclass(frozen=True)
class Trial:
    """One combination of parameters and what came of it.

    Attributes:
        parameters: name to value.
        scores: one a case, the higher the better; NaN says nothing.
        aside: decides between equal scores, the first number first, the higher the better.
        facts: what else tables show.
    """

    parameters: dict[str, Any]
    scores: tuple[float, ...]
    aside: tuple[float, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def score(self) -> float:
        """The mean over the cases."""
        return mean_of(self.scores)


Judge = Callable[[dict[str, Any]], Trial]


def search(judge: Judge, start: Mapping[str, Any], grid: Grid, limit: int = MAX_TRIALS) -> list[Trial]:
    """Try one parameter at a time, with the best values so far for the others, until nothing gets better.

    Args:
        judge: tries parameters.
        start: the parameters to begin with; those without an entry in ``grid`` stay as they are.
        grid: values of each parameter.
        limit: most combinations that are judged.

    Returns:
        The trials in their order, ``start`` first; no combination twice. `best_of` says which is the best.
    """
    trials: dict[tuple[Any, ...], Trial] = {}

    def attempt(parameters: dict[str, Any]) -> None:
        key = tuple(parameters[name] for name in grid)
        if key not in trials and len(trials) < limit:
            trials[key] = judge(parameters)

    def best() -> Trial:
        return best_of(list(trials.values()))

    attempt(dict(start))
    before = None
    while before is not best():
        before = best()
        for name, values in grid.items():
            others = best().parameters
            for value in values.tried:
                attempt({**others, name: value})
            while len(trials) < limit:
                found = best().parameters
                further = values.beyond(found[name], values_tried(name, trials.values()))
                if further is None:
                    break
                attempt({**found, name: further})
    return list(trials.values())


def values_tried(name: str, trials: Iterable[Trial]) -> list[Any]:
    """All values that a parameter had, ascending."""
    return sorted({trial.parameters[name] for trial in trials})


def best_of(trials: Sequence[Trial]) -> Trial:
    """The best trial: of those with the highest score, to within TIE, the one that `aside` puts first.

    Of equals in that too it is the one that was tried first.
    """
    top = max(trials, key=lambda trial: -math.inf if math.isnan(trial.score) else trial.score)
    scores = [score for score in top.scores if not math.isnan(score)]
    spread = float(np.std(scores, ddof=1)) / math.sqrt(len(scores)) if len(scores) > 1 else 0.0
    least = top.score - TIE * spread - ROUNDING
    return max((trial for trial in trials if trial is top or trial.score >= least), key=lambda t: t.aside)


def gain(one: Trial, other: Trial) -> tuple[float, float, int]:
    """How much better a trial is than another, case by case.

    Returns:
        The mean difference, its standard error (NaN of fewer than two cases), and the cases of which both say
        something.
    """
    differences = [
        a - b for a, b in zip(one.scores, other.scores, strict=True) if not (math.isnan(a) or math.isnan(b))
    ]
    count = len(differences)
    error = float(np.std(differences, ddof=1)) / math.sqrt(count) if count > 1 else math.nan
    return mean_of(differences), error, count


def helps(one: Trial, other: Trial) -> bool:
    """Whether a trial is better than another by more than its spread.

    It is where the mean of the differences, case by case, is above its own standard error, over
    FEWEST_CASES or more.
    """
    mean, error, count = gain(one, other)
    return count >= FEWEST_CASES and mean > error + ROUNDING


def kept(trials: list[Trial], neutral: Mapping[str, Any], judge: Judge) -> Trial:
    """What is worth keeping of the best trial: the parameters without each of which it is worse.

    The parameters are set back one by one, the last first, to what changes nothing, and stay so unless that
    is worse by more than its spread (`helps`). What is left must help against changing nothing, too.

    Args:
        trials: of a search; gets those that are made on the way.
        neutral: value of each parameter that changes nothing.
        judge: tries parameters.
    """

    def tried(parameters: dict[str, Any]) -> Trial:
        for trial in trials:
            if trial.parameters == parameters:
                return trial
        trials.append(judge(parameters))
        return trials[-1]

    best = best_of(trials)
    for name in reversed(list(neutral)):
        without = tried({**best.parameters, name: neutral[name]})
        best = best if helps(best, without) else without
    nothing = tried({**best.parameters, **neutral})
    return best if helps(best, nothing) else nothing


def notes(best: Trial, trials: Sequence[Trial], grid: Grid, limit: int = MAX_TRIALS) -> list[str]:
    """A sentence for each end at which a search had to stop."""
    said = []
    for name, values in grid.items():
        tried, value = values_tried(name, trials), best.parameters[name]
        if end := values.end(value, tried):
            which = "largest" if end == "high" else "smallest"
            said.append(
                f"{name}: the best, {value:g}, is the {which} that is tried; a better one may lie beyond"
            )
    if len(trials) >= limit:
        said.append(f"the search ended after {limit} combinations; a better one may be left")
    return said


def sizes_to_try(sizes: Sequence[int], least: int) -> Values:
    """Smallest sizes of objects that are worth a trial, from the sizes of the true ones.

    Args:
        sizes: voxels of each true object.
        least: what removes nothing.

    Returns:
        ``least``, shares of a small object (the 5 % quantile) that specks may have, that, and sizes up to the
        median; others up to the largest object.
    """
    if not sizes:
        return Values((least,))
    small, quarter, middle = np.quantile(sizes, (0.05, 0.25, 0.5))
    wanted = [*(small / part for part in (64, 16, 4, 2, 1)), quarter, middle]
    return Values(_whole(wanted, least), least, float(max(sizes)), doubling=True)


def holes_to_try(sizes: Sequence[int], holes: Sequence[int]) -> Values:
    """Largest holes that are worth filling, from the sizes of the true objects and holes.

    Args:
        sizes: voxels of each true object.
        holes: voxels of each hole in them.

    Returns:
        0, shares of a small object, and the quantiles of 5 and 50 % of the holes; others up to the largest
        object.
    """
    if not sizes:
        return Values((0,))
    wanted = [np.quantile(sizes, 0.05) / part for part in (64, 16, 4)]
    wanted += list(np.quantile(holes, (0.05, 0.5))) if holes else []
    return Values(_whole(wanted, 0), 0, float(max(sizes)), doubling=True)


def _whole(values: Sequence[float], least: int) -> tuple[int, ...]:
    """Whole numbers of two digits, ascending, from one that is among them."""
    return tuple(
        sorted({least, *(number for value in values if (number := int(float(f"{value:.2g}"))) > least)})
    )
