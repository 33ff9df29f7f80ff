"""Scores by group: counted by hand, held against Fairlearn and all permutations, and false alarms counted."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from bundle.runs.groups import (
    NOT_STATED,
    SEVERAL,
    Scored,
    band_of,
    compare_groups,
    permuted_gaps,
    read_bands,
)
from scripts.errors import InputError
from scripts.files import write_csv
from scripts.judging.tables import OVERALL
from tests.commands import as_options, workbench

#: What Fairlearn 0.15 says of these cases. It is no requirement of the tests: it brings pandas, which MONAI
#: imports at each start wherever it is installed. `MetricFrame(metrics={"dice": lambda t, p: np.mean(p),
#: "n": count}, y_true=np.zeros(18), y_pred=dice, sensitive_features=site)`: by_group, overall,
#: difference(method="between_groups").
DICE = {
    "north": [0.91, 0.84, 0.88, 0.79, 0.93, 0.95],
    "south": [0.71, 0.82, 0.66, 0.78, 0.9],
    "east": [0.87, 0.85, 0.92, 0.8, 0.89, 0.83, 0.94],
}
BY_GROUP = {"east": 0.8714285714285713, "north": 0.8833333333333333, "south": 0.7739999999999999}
COUNTS = {"east": 7, "north": 6, "south": 5}
DIFFERENCE = 0.1093333333333334


def scored(values: Sequence[float], subjects: Sequence[str] = ()) -> Scored:
    """Cases c0, c1, ... of one class."""
    cases = {f"c{n}": float(value) for n, value in enumerate(values)}
    people = dict(zip(cases, subjects or cases, strict=True))
    return Scored(Path("scores.csv"), "dice", OVERALL, {OVERALL: cases}, people)


def by_case(groups: Sequence[str]) -> dict[str, str]:
    return {f"c{n}": group for n, group in enumerate(groups)}


def test_groups_are_those_of_fairlearn() -> None:
    values = [value for held in DICE.values() for value in held]
    sites = [site for site, held in DICE.items() for _ in held]
    (found,), left = compare_groups({"site": by_case(sites)}, scored(values))
    assert left == []
    assert {row["group"]: row["mean"] for row in found["groups"]} == pytest.approx(BY_GROUP)
    assert {row["group"]: row["cases"] for row in found["groups"]} == COUNTS
    assert found["gap"] == pytest.approx(DIFFERENCE)
    assert (found["highest"], found["lowest"]) == ("north", "south")


def test_p_is_that_of_all_ways_to_deal_subjects_out() -> None:
    """Of twelve subjects with one to three cases, five in one group: 792 ways."""
    rng = np.random.default_rng(0)
    subjects = [f"s{n}" for n in range(12) for _ in range(n % 3 + 1)]
    values = rng.random(len(subjects))
    of = ["a" if int(subject[1:]) < 5 else "b" for subject in subjects]
    (found,), _ = compare_groups({"site": by_case(of)}, scored(values, subjects))
    numbers = np.array([int(subject[1:]) for subject in subjects])
    gaps = []
    for chosen in combinations(range(12), 5):
        inside = np.isin(numbers, chosen)
        gaps.append(abs(values[inside].mean() - values[~inside].mean()))
    inside = numbers < 5
    gap = abs(values[inside].mean() - values[~inside].mean())
    assert found["gap"] == pytest.approx(gap)
    assert found["p"] == pytest.approx(np.mean(np.array(gaps) >= gap - 1e-12), abs=0.02)
    assert found["chance"] == pytest.approx(np.quantile(gaps, 0.95), rel=0.05)


def test_draws_in_parts_are_as_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bundle.runs.groups.HELD", 45)
    gaps = permuted_gaps(np.arange(10.0), np.ones(10), np.arange(10) % 2, 9)
    assert gaps.shape == (9,)
    assert len(set(gaps.tolist())) > 1


def alarms(gap: float, draws: int, alike: bool = False, groups: int = 2) -> float:
    """How often a gap is found: 30 subjects of 1 to 5 cases, whose means differ by 0.05 (standard deviation).

    Args:
        gap: that is planted in one group.
        draws: how many.
        alike: cases stand for subjects, as if nobody had said whose they are.
        groups: of the subjects.
    """
    rng = np.random.default_rng(3)
    subjects = [n for n in range(30) for _ in range(n % 5 + 1)]
    found = 0
    for _ in range(draws):
        group = rng.permutation(np.arange(30) % groups)
        means = 0.85 + rng.normal(0, 0.05, 30) - gap * (group == 0)
        values = [means[n] + rng.normal(0, 0.01) for n in subjects]
        people = () if alike else [f"s{n}" for n in subjects]
        of = by_case([f"g{group[n]}" for n in subjects])
        (row,), _ = compare_groups({"site": of}, scored(values, people), permutations=199)
        found += row["differs"]
    return found / draws


def test_a_planted_gap_is_found_and_chance_seldom_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of draws without a gap one in twenty is an alarm, by subject; by case it would be every second."""
    monkeypatch.setattr("bundle.runs.groups.interval", lambda *_: (0.0, 1.0))  # which takes the most time
    assert 0.01 < alarms(0, 200) < 0.10
    assert 0.01 < alarms(0, 200, groups=3) < 0.10
    assert alarms(0, 60, alike=True) > 0.2
    assert alarms(0.1, 60) > 0.9


def test_several_attributes_are_several_chances() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(0.8, 0.05, 40) - 0.1 * (np.arange(40) % 2)
    sites = by_case([f"g{n % 2}" for n in range(40)])
    (alone,), _ = compare_groups({"site": sites}, scored(values))
    more = {
        f"other {n}": by_case(rng.permutation([f"g{k % 2}" for k in range(40)]).tolist()) for n in range(9)
    }
    first, *others = compare_groups({"site": sites, **more}, scored(values))[0]
    assert len(others) == 9
    assert first["p"] == alone["p"] == alone["p_holm"]
    assert first["p_holm"] == pytest.approx(min(10 * alone["p"], 1))


def test_bands() -> None:
    assert read_bands(["age=40,60", "a=b=-1.5"]) == {"age": [40, 60], "a=b": [-1.5]}
    names = [band_of(value, [40, 60]) for value in (39.9, 40, 59, 60)]
    assert names == ["below 40", "40 to below 60", "40 to below 60", "60 and more"]
    for text in ("age", "age=", "age=60,40", "age=40,40", "age=nan", "=1"):
        with pytest.raises(InputError, match="is not understood; it is NAME=NUMBER"):
            read_bands([text])


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """What an evaluation of two classes leaves: 24 cases of 12 people, those of site B worse by 0.2."""
    rng = np.random.default_rng(0)
    rows = [
        {"case": f"c{n}", "class": name, "dice": 0.9 - 0.2 * (n // 2 % 2) + rng.normal(0, 0.01), "iou": 0.5}
        for n in range(24)
        for name in ("outer", "inner")
    ]
    write_csv(tmp_path / "run/scores.csv", rows)
    return tmp_path / "run"


def listed(path: Path, columns: str, *change: str) -> Path:
    """A table with some of: case, subject, site (A or B), sex (of few cases), age, one (value), name."""
    rows = []
    for n in range(24):
        row = {
            "case": f"c{n}",
            "subject": f"s{n // 2}",
            "site": "AB"[n // 2 % 2],
            "age": str(20 + n // 2 * 4),
        }
        row |= {"sex": "FM"[n // 12] if n % 8 else "n/a", "one": "x", "name": f"name {n}"}
        rows.append({**row, "side": "lr"[n % 2], "scanner": "XYZ"[min(n // 10, 2)]})
    path.write_text(
        "\n".join([columns, *(",".join(row[c] for c in columns.split(",")) for row in rows), *change])
    )
    return path


def groups(run: Path, table: Path, **options: object) -> str:
    return workbench("groups", *as_options(scores=run, attributes=table, **options))


def test_command(run: Path, tmp_path: Path) -> None:
    table = listed(
        tmp_path / "who.csv", "case,subject,site,sex,age,one,name,side,scanner", "c99,s99,A,F,1,x,n,l,X"
    )
    said = groups(run, table, bands="age=40,50")
    assert "site: mean dice is highest in A (0.90" in said
    assert "apart; groups drawn by chance" in said
    assert "The gap is more than chance." in said
    assert "sex: not stated for 3 of 24 cases." in said
    assert "scanner: fewer than 5 subjects are in Z, too few to tell." in said
    assert "warning: 1 case(s) have no score and count nowhere: c99" in said
    assert "warning: one has one value, x, alone; it is left out" in said
    assert "warning: name has 24 values for 12 subjects, which makes no groups; it is left out" in said
    assert "side: 12 subject(s) have images that differ in it; they count in no group." in said
    assert "warning: side differs between images of s0, s1" in said
    with (run / "groups.csv").open() as file:
        rows = list(csv.DictReader(file))
    site = {(row["group"], row["class"]): row for row in rows if row["attribute"] == "site"}
    assert list(site) == [(group, name) for group in "AB" for name in ("outer", "inner", "mean")]
    assert site["B", "mean"]["subjects"] == "6"
    assert float(site["B", "mean"]["low"]) < float(site["B", "mean"]["mean"]) == pytest.approx(0.7, abs=0.02)
    order = [row["group"] for row in rows if row["attribute"] == "age" and row["class"] == "mean"]
    assert order == ["below 40", "40 to below 50", "50 and more"]
    assert [row["group"] for row in rows if row["attribute"] == "sex" and row["class"] == "mean"][
        -1
    ] == NOT_STATED
    assert [row["group"] for row in rows if row["attribute"] == "side" and row["class"] == "mean"] == [
        SEVERAL
    ]
    facts = json.loads((run / "groups.json").read_text())
    by = {each["attribute"]: each for each in facts["attributes"]}
    assert by["site"]["differs"]
    assert by["site"]["p_holm"] == pytest.approx(3 * by["site"]["p"])  # site, sex, scanner
    assert by["side"]["p"] is None
    assert not any(f"s{n} " in " ".join(facts["told"]) for n in range(12))  # nobody is named there
    assert (run / "groups.png").is_file()


def test_one_class_and_another_score(run: Path, tmp_path: Path) -> None:
    table = listed(tmp_path / "who.csv", "case,site,sex")
    said = groups(
        run, table, attribute="site", score="iou", output_dir=tmp_path / "out", **{"class": "outer"}
    )
    assert "mean iou of outer is highest in" in said
    assert "sex" not in said
    assert json.loads((tmp_path / "out/groups.json").read_text())["attributes"][0]["p"] == 1


def test_subjects_of_crossval_count(run: Path, tmp_path: Path) -> None:
    with (run / "scores.csv").open() as file:
        rows = [
            {"subject": f"s{int(row['case'][1:]) // 2}", "fold": 0, **row} for row in csv.DictReader(file)
        ]
    write_csv(tmp_path / "folds/crossval.csv", rows)
    groups(tmp_path / "folds", listed(tmp_path / "who.csv", "case,site"))
    assert json.loads((tmp_path / "folds/groups.json").read_text())["subjects"] == 12
    write_csv(tmp_path / "folds/crossval.csv", [{**row, "subject": row["case"]} for row in rows])
    groups(tmp_path / "folds", listed(tmp_path / "who.csv", "case,subject,site"))
    assert json.loads((tmp_path / "folds/groups.json").read_text())["subjects"] == 12
    write_csv(tmp_path / "folds/crossval.csv", rows)
    (tmp_path / "other.csv").write_text("case,subject,site\nc0,somebody,A\nc3,s1,B\n")
    assert "has the subject somebody for c0, and" in groups(tmp_path / "folds", tmp_path / "other.csv")


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ("id,site\nc0,A\n", "has the columns ['id', 'site']; 'case' are needed; add a first line 'case'"),
        ("case\nc0\n", "has no column beside 'case'; add one for each attribute"),
        ("case,site\nx0,A\nx1,B\n", "has no case of"),
        ("case,site\nc0,A\nc0,B\n", "has the case c0 with the sites A and B; a case has one"),
        ("case,site,site\nc0,A,B\n", "has the column 'site' twice"),
        ("case,site\n,A\nc0,B\n", "names no case in row 2"),
        ("case,site\nc0,A\nc1,A\n", "site has one value, A, alone; nothing is left to compare"),
        ("case,site\nc0,n/a\nc1,\n", "site has no value for any of these cases; nothing is left"),
        ("", "has the columns []"),
    ],
)
def test_tables_that_are_refused(run: Path, tmp_path: Path, table: str, told: str) -> None:
    (tmp_path / "who.csv").write_text(table)
    assert told in groups(run, tmp_path / "who.csv")
    assert not (run / "groups.csv").exists()


def test_arguments_that_are_refused(run: Path, tmp_path: Path) -> None:
    table = listed(tmp_path / "who.csv", "case,site,age,sex")
    for options, told in (
        ({"attribute": "place"}, "--attribute place: "),
        ({"bands": "sex=1,2"}, "has 'F' for c1, which is no number"),
        ({"bands": "weight=1,2"}, "--bands weight: "),
        (
            {"attribute": "age"},
            "age has 12 different numbers, which need bands, such as --bands age=34.7,49.3",
        ),
        ({"score": "much"}, "has no score 'much', but dice, iou"),
        ({"class": "middle"}, "has no such class, but outer, inner, mean"),
    ):
        assert told in groups(run, table, **options)
    assert "has no scores.csv or crossval.csv" in groups(tmp_path, table)
    (run / "scores.csv").write_text("case,dice\nc0,much\n")
    assert "scores.csv cannot be read" in groups(run, table)
    assert "does not exist" in groups(run, tmp_path / "none.csv")
    assert not (run / "groups.csv").exists()
