"""Rounds of annotation: what is summed up, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bundle.runs.rounds import best_validation, draw_rounds, rounds_table
from tests.commands import workbench

ROWS = [
    {"strategy": strategy, "seed": seed, "cases": cases, "validation": 0.5 + seed / 10, "testing": testing}
    for strategy in ("entropy", "random")
    for seed in (0, 1)
    for cases, testing in ((2, None), (4, 0.7 + seed / 5))
]


def test_table_has_means_and_spread_of_the_seeds() -> None:
    lines = [line.split() for line in rounds_table(ROWS).splitlines()]
    assert lines[0] == ["strategy", "cases", "seeds", "validation", "testing"]
    assert lines[1] == ["entropy", "2", "2", "0.5500", "±", "0.0707", "-"]
    assert lines[2] == ["entropy", "4", "2", "0.5500", "±", "0.0707", "0.8000", "±", "0.1414"]
    assert len(lines) == 5


def test_picture_is_drawn(tmp_path: Path) -> None:
    draw_rounds(ROWS, tmp_path / "rounds.png")
    assert (tmp_path / "rounds.png").stat().st_size > 1000


def test_best_validation_is_read_from_the_curve(tmp_path: Path) -> None:
    (tmp_path / "learning_curve.csv").write_text(
        "epoch,loss,val_mean_dice,minutes\n1,2,,1\n2,1,0.4,1\n3,1,0.3,1\n"
    )
    assert best_validation(tmp_path) == 0.4


@pytest.mark.parametrize(
    ("sizes", "message"),
    [((3, 2), "--size is 3, 2: give numbers that grow"), ((1, 9), "--size is 9, and"), ((2, 2), "that grow")],
)
def test_sizes_that_cannot_be_are_refused(sizes: tuple[int, ...], message: str, tmp_path: Path) -> None:
    cases = [{"image": f"{name}.nii.gz", "label": f"{name}.nii.gz"} for name in "abc"]
    (tmp_path / "dataset.json").write_text(json.dumps({"training": cases[:2], "validation": cases[2:]}))
    options = [part for size in sizes for part in ("--size", size)]
    places = ("--args_file", "configs/experiments/hippocampus.json", "--dataset_dir", tmp_path)
    assert message in workbench("rounds", *places, "--output_dir", tmp_path / "out", *options)
    assert not (tmp_path / "out").exists()
