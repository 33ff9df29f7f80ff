"""The search for parameters: what it tries, where it goes on, how ties end, and what is worth keeping."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from bundle.runs.search import (
    MAX_TRIALS,
    Grid,
    Trial,
    Values,
    best_of,
    gain,
    helps,
    holes_to_try,
    kept,
    notes,
    search,
    sizes_to_try,
)

GRID_OF_TWO: Grid = {"a": Values((1, 2, 3, 4)), "b": Values((0, 10, 20))}


def judged(score: Any, aside: Any = lambda p: ()) -> Any:
    """A judge of one case."""
    return lambda p: Trial(p, (float(score(p)),), aside(p))


def test_search_finds_the_best_where_parameters_act_alone() -> None:
    judge = judged(lambda p: -((p["a"] - 3) ** 2) - (p["b"] - 10) ** 2)
    trials = search(judge, {"a": 1, "b": 0, "c": "x"}, GRID_OF_TWO)
    assert trials[0].parameters == {"a": 1, "b": 0, "c": "x"}
    assert best_of(trials) == Trial({"a": 3, "b": 10, "c": "x"}, (0.0,))
    tried = [(t.parameters["a"], t.parameters["b"]) for t in trials]
    # the first round: a with b = 0, b with a = 3; the second: a with b = 10, without what was tried
    assert tried == [(1, 0), (2, 0), (3, 0), (4, 0), (3, 10), (3, 20), (1, 10), (2, 10), (4, 10)]


def test_search_goes_on_while_a_round_makes_it_better() -> None:
    """b = 20 is better only once a is 4, which is better only once b is 10."""
    score = {(1, 0): 1, (1, 10): 2, (4, 10): 3, (4, 20): 4}
    trials = search(judged(lambda p: score.get((p["a"], p["b"]), 0)), {"a": 1, "b": 0}, GRID_OF_TWO)
    assert best_of(trials).parameters == {"a": 4, "b": 20}


def test_search_keeps_the_start_among_equals_and_its_limit() -> None:
    start = {"a": 2, "b": 5}  # 5 is not in the grid
    trials = search(judged(lambda p: 1.0), start, GRID_OF_TWO)
    assert best_of(trials).parameters == start
    assert len(trials) == 1 + 3 + 3
    limited = search(judged(lambda p: p["a"] * p["b"]), start, GRID_OF_TWO, limit=4)
    assert len(limited) == 4
    assert notes(best_of(limited), limited, GRID_OF_TWO, limit=4) == [
        "the search ended after 4 combinations; a better one may be left"
    ]


@pytest.mark.parametrize(
    ("values", "best", "ends_at"),
    [
        (Values((1, 10, 100), 1, 5000, doubling=True), 700, 800),  # cells that are larger than the grid
        (Values((0.3, 0.5, 0.7), 0.01, 0.99), 0.92, 0.9),
        (Values((0.3, 0.5, 0.7), 0.01, 0.99), 0.1, 0.1),
        (Values((0, 1, 3), 0, 40), 12.5, 13),
        (Values((0, 1, 3), 0, 40), 0, 0),
    ],
)
def test_search_goes_beyond_the_end_where_the_best_lies(values: Values, best: float, ends_at: float) -> None:
    grid = {"size": values}
    trials = search(judged(lambda p: -abs(p["size"] - best)), {"size": values.tried[1]}, grid)
    found = best_of(trials).parameters["size"]
    assert found == pytest.approx(ends_at)
    assert notes(best_of(trials), trials, grid) == []


def test_search_says_where_its_limit_ends_it() -> None:
    """The best is beyond what may be: the largest object, a probability of 1."""
    sizes = {"min_size": Values((1, 10, 100), 1, 900, doubling=True), "largest": Values((False, True))}
    trials = search(judged(lambda p: p["min_size"]), {"min_size": 1, "largest": False}, sizes)
    tried = [trial.parameters["min_size"] for trial in trials if not trial.parameters["largest"]]
    assert tried == [1, 10, 100, 200, 400, 800]
    assert notes(best_of(trials), trials, sizes) == [
        "min_size: the best, 800, is the largest that is tried; a better one may lie beyond"
    ]
    shares = {"threshold": Values((0.3, 0.5, 0.7), 0.01, 0.99)}
    trials = search(judged(lambda p: -p["threshold"]), {"threshold": 0.5}, shares)
    assert min(trial.parameters["threshold"] for trial in trials) < 0.1
    assert len(trials) < 10
    assert "is the smallest that is tried" in notes(best_of(trials), trials, shares)[0]
    trials = search(judged(lambda p: -p["min_size"]), {"min_size": 1, "largest": False}, sizes)
    assert notes(best_of(trials), trials, sizes) == []  # 1 removes nothing: there is nothing beyond


def test_equal_scores_are_told_apart_by_what_is_aside() -> None:
    """147 objects of 97 have the same SEG, which asks of each true object alone what became of it."""
    scores = (0.8, 0.9, 0.7, 0.85)
    inventing = Trial({"min_size": 1}, scores, (0.6, -147, 1))
    apt = Trial({"min_size": 50}, scores, (0.8, -97, 50))
    same = Trial({"min_size": 80}, scores, (0.8, -97, 80))
    assert best_of([inventing, apt]) is apt
    assert best_of([inventing, apt, same]) is same
    nearly = Trial({"min_size": 1}, tuple(score + 1e-4 for score in scores), (0.6, -147, 1))
    assert best_of([apt, nearly]) is apt  # far less than its standard error of 0.04
    better = Trial({"min_size": 1}, tuple(score + 0.01 for score in scores), (0.6, -147, 1))
    assert best_of([apt, better]) is better


def test_what_says_nothing_is_never_the_best() -> None:
    nothing = Trial({"a": 1}, (math.nan, math.nan), (9,))
    assert best_of([nothing, something := Trial({"a": 2}, (0.1, math.nan), (0,))]) is something
    assert best_of([nothing]) is nothing


def test_a_gain_is_told_case_by_case() -> None:
    one = Trial({}, (0.9, 0.8, 0.7, math.nan))
    other = Trial({}, (0.8, 0.8, 0.5, 0.1))
    mean, error, count = gain(one, other)
    differences = np.array([0.1, 0, 0.2])
    assert (mean, count) == (pytest.approx(0.1), 3)
    assert error == pytest.approx(differences.std(ddof=1) / math.sqrt(3))
    assert not helps(one, other)  # three cases say nothing


@pytest.mark.parametrize(
    ("gains", "expected"),
    [
        ((0.01,) * 5, True),
        ((0.01,) * 4, False),  # too few cases
        ((0.0,) * 9, False),
        ((0.5, 0, 0, 0, 0, 0), False),  # one case alone: the mean is its standard error
        ((0.5, 0.4, 0, 0, 0, 0), True),
        ((0.5, -0.4, 0.1, -0.2, 0.1, 0), False),
    ],
)
def test_what_helps_does_so_by_more_than_its_spread(gains: tuple[float, ...], expected: bool) -> None:
    base = np.linspace(0.2, 0.4, len(gains))
    assert helps(Trial({}, tuple(base + gains)), Trial({}, tuple(base))) is expected


def test_only_what_helps_is_kept_of_the_best() -> None:
    """`largest` helps; `min_size` does no more beside it, and `max_hole` by chance in one case."""
    neutral = {"largest": False, "min_size": 0, "max_hole": 0}
    grid = {"largest": Values((False, True)), "min_size": Values((0, 5)), "max_hole": Values((0, 9))}

    def judge(p: dict[str, Any]) -> Trial:
        scores = np.linspace(0.5, 0.7, 6)
        scores += 0.1 * p["largest"] or 0.05 * (p["min_size"] > 0)
        scores[2] += 0.01 * (p["max_hole"] > 0)
        return Trial(p, tuple(scores), (0, p["min_size"]))

    trials = search(judge, neutral, grid)
    assert best_of(trials).parameters == {"largest": True, "min_size": 5, "max_hole": 9}
    assert kept(trials, neutral, judge).parameters == {"largest": True, "min_size": 0, "max_hole": 0}
    few = search(lambda p: Trial(p, judge(p).scores[:4]), neutral, grid)
    assert kept(few, neutral, lambda p: Trial(p, judge(p).scores[:4])).parameters == neutral


def test_sizes_follow_those_of_the_true_objects() -> None:
    cells = list(range(4000, 6001, 20))
    sizes = sizes_to_try(cells, 1)
    assert sizes.tried[0] == 1
    assert {4100, 5000} <= set(sizes.tried)
    assert any(10 < size < 100 for size in sizes.tried)  # specks
    assert sizes.high == 6000
    assert sizes_to_try([2, 2, 3], 1).tried == (1, 2)
    assert sizes_to_try([], 0) == Values((0,))
    holes = holes_to_try(cells, [50, 60, 70])
    assert holes.tried[0] == 0
    assert {51, 60} <= set(holes.tried)
    assert max(holes_to_try(cells, []).tried) < 4000
    assert holes_to_try([], []) == Values((0,))


def test_values_that_grow_stay_within_the_limit_of_trials() -> None:
    sizes = {"size": Values((0, 1), 0, 1e9)}
    assert len(search(judged(lambda p: p["size"]), {"size": 0}, sizes)) == MAX_TRIALS
