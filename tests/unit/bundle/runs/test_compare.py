"""Variants against the first one: values counted by hand, and how often chance is taken for a difference."""

from __future__ import annotations

import math
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text

from bundle.runs import compare as module
from bundle.runs.compare import compare, draw_comparison, holm, interval, mean_over, read_cases, spread
from scripts.files import write_csv


def test_holm_by_hand() -> None:
    """Sorted 0.01, 0.02, 0.03, 0.5: times 4, 3, 2, 1, and none below the one before."""
    assert holm([0.03, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_wilcoxon_by_hand() -> None:
    """Six differences of one sign: of 2^6 ways to sign them two are as far out."""
    first = {f"c{i}": 0.5 for i in range(6)}
    better = {f"c{i}": 0.5 + 0.01 * (i + 1) for i in range(6)}
    (row,) = compare({"first": first, "better": better})
    assert row["p"] == pytest.approx(2 / 64)
    assert row["difference"] == pytest.approx(0.035)
    assert row["low"] > 0.01
    assert row["differs"]


def test_more_variants_are_more_chances() -> None:
    first = {f"c{i}": 0.5 for i in range(6)}
    better = {f"c{i}": 0.5 + 0.01 * (i + 1) for i in range(6)}
    *_, row = compare({"first": first, "same": first, "better": better})
    assert row["p_holm"] == pytest.approx(4 / 64)
    assert not row["differs"]


def test_equal_scores_do_not_differ() -> None:
    cases = {"a": 0.1, "b": 0.2}
    (row,) = compare({"first": cases, "same": dict(cases)})
    assert (row["difference"], row["p"], row["low"], row["high"]) == (0, 1, 0, 0)


def test_cases_of_both_alone_count() -> None:
    (row,) = compare({"first": {"a": 0.1, "b": 0.2}, "other": {"b": 0.4, "c": 0.9}})
    assert row["cases"] == 1
    assert row["difference"] == pytest.approx(0.2)
    (row,) = compare({"first": {"a": 0.1}, "other": {"c": 0.9}})
    assert row["cases"] == 0
    assert math.isnan(row["difference"])
    assert not row["differs"]


def test_chance_is_seldom_taken_for_a_difference() -> None:
    """Of 300 pairs without a difference one in twenty differs; with one as large as the spread most do."""
    draw = np.random.default_rng(1)

    def share(shift: float) -> float:
        found = 0
        for _ in range(300):
            one, other = draw.normal(0, 1, (2, 30))
            pair = {"a": one, "b": other + shift}
            (row,) = compare({name: {str(i): v for i, v in enumerate(pair[name])} for name in pair})
            found += row["differs"]
        return found / 300

    assert 0.02 < share(0) < 0.09
    assert share(1.0) > 0.9


def test_interval_covers_as_often_as_it_says() -> None:
    draw = np.random.default_rng(2)
    covered = [low < 0 < high for low, high in (interval(draw.normal(0, 1, 40)) for _ in range(100))]
    assert 85 <= sum(covered) <= 100
    assert interval([0.25]) == (0.25, 0.25)


def test_cases_are_read_as_the_mean_over_their_classes(tmp_path: Path) -> None:
    rows = [("a", "x", 0.5), ("a", "y", 0.7), ("b", "x", math.nan), ("b", "y", 0.4), ("c", "x", math.nan)]
    write_csv(
        tmp_path / "scores.csv", [{"case": case, "class": name, "dice": dice} for case, name, dice in rows]
    )
    assert read_cases(tmp_path, "dice") == {"a": pytest.approx(0.6), "b": 0.4}
    assert mean_over([{"a": 0.2, "b": 1}, {"a": 0.4}]) == {"a": pytest.approx(0.3)}


def test_the_interval_draws_subjects_with_all_their_cases() -> None:
    """Held against every way to draw four subjects, 256 in all."""
    subjects = {"a": [0.1, 0.2, 0.15], "b": [0.9], "c": [0.5, 0.7], "d": [0.4, 0.45]}
    means = []
    for drawn in product(subjects, repeat=4):
        means.append(np.mean([value for subject in drawn for value in subjects[subject]]))
    values = [value for held in subjects.values() for value in held]
    of = [subject for subject, held in subjects.items() for _ in held]
    found = interval(values, of)
    assert found == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=0.01)
    assert found[1] - found[0] > 1.2 * np.subtract(*interval(values)[::-1])  # cases of one are alike


def test_one_subject_has_no_interval() -> None:
    assert interval([0.2, 0.4], ["a", "a"]) == (pytest.approx(0.3), pytest.approx(0.3))


def test_places_are_moved_as_far_as_it_takes() -> None:
    assert spread([0.1, 0.5, 0.9], 0.1) == [0.1, 0.5, 0.9]
    assert spread([0.5, 0.5, 0.5], 0.1) == pytest.approx([0.5, 0.6, 0.7])
    assert spread([0.98, 0.99, 1.0], 0.1) == pytest.approx([0.8, 0.9, 1.0])


@pytest.mark.parametrize("timed", [True, False])
@pytest.mark.parametrize("count", [3, 30])
def test_names_in_the_comparison_can_be_read(
    count: int, timed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No name lies on another one, or beyond the picture."""
    figures: list[Figure] = []
    monkeypatch.setattr(module, "save_figure", lambda figure, path: figures.append(figure))
    rng = np.random.default_rng(0)
    rows = [
        {
            **{"variant": f"variant with a name {n}", "mean": mean, "mean_low": mean - 0.02},
            **{"mean_high": mean + 0.02, "seconds_a_step": 0.1 + rng.random() / 20 if timed else None},
        }
        for n, mean in enumerate(0.88 + rng.normal(0, 0.003, count))
    ]
    draw_comparison(rows, "dice", tmp_path / "comparison.png")
    (figure,) = figures
    figure.draw_without_rendering()
    names = [child for child in figure.axes[0].get_children() if isinstance(child, Annotation)]
    boxes = sorted(
        (Text.get_window_extent(name) for name in names if name.get_text()), key=lambda box: box.y0
    )
    assert len(boxes) == count
    assert all(below.y1 <= above.y0 + 1 for below, above in pairwise(boxes))
    assert all(box.x0 >= 0 and box.x1 <= figure.bbox.width and box.y0 >= 0 for box in boxes)
