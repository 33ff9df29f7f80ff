"""The table of how unsure a network is of each case."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from ignite.engine import Engine

from scripts.judging.uncertainty import ANY, TABLE, CaseUncertainty


def test_table_has_a_row_for_each_class_and_one_for_the_image(tmp_path: Path) -> None:
    cases = {
        "sure": torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]),
        "unsure": torch.tensor([[1.0, 0.5, 0.0], [0.0, 0.5, 1.0]]),
    }

    def step(engine: Engine, name: str) -> list[dict]:
        engine.state.batch = [{"case": name}]
        return [{"pred": cases[name]}]

    engine = Engine(step)  # type: ignore[arg-type]
    CaseUncertainty(str(tmp_path), {"background": 3, "cell": 7}).attach(engine)
    engine.run(list(cases), max_epochs=1)
    with (tmp_path / TABLE).open(newline="") as file:
        rows = {(row["case"], row["class"]): row for row in csv.DictReader(file)}
    assert list(rows) == [(case, name) for case in cases for name in ("background", "cell", ANY)]
    assert [float(rows["sure", name]["entropy"]) for name in ("background", "cell", ANY)] == [0, 0, 0]
    assert float(rows["unsure", ANY]["entropy"]) == pytest.approx(1 / 3)
    assert float(rows["unsure", "cell"]["entropy"]) == pytest.approx(0.5 / 1.5)
    assert [rows["sure", name]["voxels"] for name in ("background", "cell", ANY)] == ["2", "1", "3"]
