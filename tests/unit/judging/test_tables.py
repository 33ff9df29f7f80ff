"""Scores of many cases, summed up by hand; what is written is read again."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest

from scripts.errors import InputError
from scripts.judging import SCORES
from scripts.judging.tables import mean_rows, read_means, summarize, write_scores

NAN = float("nan")


def make_rows(table: dict[tuple[str, str], float]) -> list[dict]:
    return [
        {"case": case, "class": name, **dict.fromkeys(SCORES, value)} for (case, name), value in table.items()
    ]


ROWS = make_rows(
    {("a", "x"): 0.2, ("a", "y"): 0.6, ("b", "x"): 0.8, ("b", "y"): NAN, ("c", "x"): NAN, ("c", "y"): NAN}
)


def test_summary_counts_and_means_by_hand() -> None:
    found = {(entry["class"], entry["score"]): entry for entry in summarize(ROWS, SCORES)}
    assert len(found) == 3 * len(SCORES)
    for score in SCORES:
        assert found["x", score] == {
            "class": "x",
            "score": score,
            "mean": pytest.approx(0.5),
            "std": pytest.approx(math.sqrt(0.18)),  # (0.3**2 + 0.3**2) / (2 - 1)
            "median": pytest.approx(0.5),
            "min": 0.2,
            "max": 0.8,
            "cases": 2,
        }
        once = {"mean": 0.6, "std": None, "median": 0.6, "min": 0.6, "max": 0.6, "cases": 1}
        assert found["y", score] == {"class": "y", "score": score, **once}
        mean = found["mean", score]  # of a: (0.2 + 0.6) / 2, of b: 0.8, of c: nothing
        assert [mean[key] for key in ("mean", "cases", "min", "max")] == pytest.approx([0.6, 2, 0.4, 0.8])


def test_summary_of_a_class_nobody_has() -> None:
    (entry, *_) = summarize(make_rows({("a", "x"): NAN}), SCORES)
    assert entry["cases"] == 0
    assert [entry[name] for name in ("mean", "std", "median", "min", "max")] == [None] * 5


def test_rows_without_classes() -> None:
    (entry,) = summarize(
        [{"case": "a", "pq": 0.2}, {"case": "b", "pq": 0.4}, {"case": "c", "pq": NAN}], ["pq"]
    )
    assert (entry["class"], entry["mean"], entry["cases"]) == ("mean", pytest.approx(0.3), 2)


def test_two_cases_of_one_name_are_refused() -> None:
    """Their scores would be merged, or counted for one."""
    with pytest.raises(InputError, match="several cases are called 'a': give each an id of its own"):
        summarize([*ROWS, *ROWS[:2]], SCORES)
    with pytest.raises(InputError, match="several cases are called 'a'"):
        summarize([{"case": "a", "pq": 0.2}, {"case": "a", "pq": 0.4}], ["pq"])


def test_means_as_rows() -> None:
    x, y, mean = mean_rows(summarize(ROWS, SCORES))
    assert (x["case"], x["class"], x["dice"]) == ("mean", "x", pytest.approx(0.5))
    assert (y["class"], y["dice"]) == ("y", 0.6)
    assert (mean["class"], mean["dice"]) == ("all", pytest.approx(0.6))


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    summary = summarize(ROWS, SCORES)
    write_scores(tmp_path, ROWS, {"measure": "classes", "cases": 3, "not_scored": 0, "summary": summary})
    assert read_means(tmp_path / "summary.json") == pytest.approx(dict.fromkeys(SCORES, 0.6))
    with (tmp_path / "scores.csv").open() as file:
        assert [(row["case"], row["class"], float(row["dice"])) for row in csv.DictReader(file)][:2] == [
            ("a", "x", 0.2),
            ("a", "y", 0.6),
        ]
    with (tmp_path / "summary.csv").open() as file:
        assert [row["cases"] for row in csv.DictReader(file)][:3] == ["2", "1", "2"]
    (tmp_path / "other.json").write_text(json.dumps({"mean": {"dice": 1}}))
    with pytest.raises(InputError, match=r"other\.json has no list under 'summary'"):
        read_means(tmp_path / "other.json")
