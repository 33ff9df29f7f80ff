"""Cases beside each other: what runs while a case is predicted, and that nothing else changes by it."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.engines import SupervisedEvaluator
from monai.inferers import SimpleInferer
from monai.transforms import Compose, Transform

from scripts.compute.steps import CaseByCase
from scripts.data import CaseDataset, CaseLoader
from scripts.data.cases import InferenceCases
from scripts.errors import Fault, InputError
from tests.commands import input_error

#: Seconds after which something that should have happened has not.
LONG = 20.0

NAMES = ("a", "b", "c", "d")


class Diary:
    """What happened, in its order, and a way to wait for it."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.news = threading.Condition()

    def note(self, line: str) -> None:
        with self.news:
            self.lines.append(line)
            self.news.notify_all()

    def wait_for(self, line: str) -> bool:
        with self.news:
            return self.news.wait_for(lambda: line in self.lines, LONG)


class Step(Transform):
    """Notes the case that comes by, waits for what is to happen before it ends, and may fail."""

    def __init__(
        self, diary: Diary, name: str, before: Mapping[str, str], error: Exception | None = None
    ) -> None:
        self.diary, self.name, self.before, self.error = diary, name, before, error

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        case = str(data["case"])
        self.diary.note(f"{self.name} {case}")
        if case in self.before and not self.diary.wait_for(self.before[case]):
            self.diary.note(f"{self.name} {case} waited in vain")
        if self.error is not None and case == "b":
            raise self.error
        self.diary.note(f"{self.name} {case} done")
        return {**data, "image": torch.full((1, 2, 2), float(NAMES.index(case)))}


class Network(torch.nn.Module):
    def __init__(self, diary: Diary) -> None:
        super().__init__()
        self.diary = diary

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.diary.note(f"predict {NAMES[int(x.max())]}")
        return x + 1


def evaluate(
    diary: Diary,
    beside: bool,
    load: Mapping[str, str] | None = None,
    finish: Mapping[str, str] | None = None,
    error: Exception | None = None,
) -> tuple[InferenceCases, list[list[tuple[str, float]]]]:
    """Run a cohort; returns its cases, and for each iteration which handlers found, and their predictions."""
    cases = InferenceCases([{"case": name, "image": f"{name}.nii"} for name in NAMES], beside=beside)
    dataset = CaseDataset(cases.cases, Compose([Step(diary, "load", load or {})]))
    found: list[list[tuple[str, float]]] = []
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=CaseLoader(dataset, cases, batch_size=1),
        network=Network(diary),
        inferer=SimpleInferer(),
        iteration_update=CaseByCase(cases, Compose([Step(diary, "finish", finish or {}, error)])),
    )

    @evaluator.on(Events.ITERATION_COMPLETED)
    def look(engine: Any) -> None:
        pairs = zip(engine.state.batch, engine.state.output, strict=True)
        found.append([(given["case"], float(output["pred"].max())) for given, output in pairs])

    evaluator.run()
    return cases, found


def test_the_next_is_loaded_and_the_last_finished_meanwhile() -> None:
    diary = Diary()
    # a is not finished before b is predicted, and c is loaded before a is finished
    _, found = evaluate(diary, True, finish={"a": "predict b", "b": "load c done"})
    assert "waited in vain" not in " ".join(diary.lines)
    assert found == [[], [("a", 1.0)], [("b", 2.0)], [("c", 3.0), ("d", 4.0)]]


def test_no_more_than_one_ahead_and_one_behind() -> None:
    diary = Diary()
    evaluate(diary, True)
    for index, name in enumerate(NAMES):
        place = diary.lines.index(f"predict {name}")
        before, later = NAMES[: max(index - 1, 0)], NAMES[index + 2 :]
        assert all(diary.lines.index(f"finish {other} done") < place for other in before)
        assert all(diary.lines.index(f"load {other}") > place for other in later)


def test_one_after_the_other_where_there_is_no_room() -> None:
    diary = Diary()
    _, found = evaluate(diary, False)
    each = ("load {0}", "load {0} done", "predict {0}", "finish {0}", "finish {0} done")
    assert diary.lines == [line.format(name) for name in NAMES for line in each]
    assert found == [[("a", 1.0)], [("b", 2.0)], [("c", 3.0)], [("d", 4.0)]]


@pytest.mark.parametrize("beside", [False, True])
def test_what_fails_behind_is_told_of_its_own_case(beside: bool) -> None:
    cases, found = evaluate(Diary(), beside, error=Fault("a hole", "there is none", "fill it"))
    (problem,) = cases.problems
    assert (problem.case, problem.file, problem.found) == ("b", "b.nii", "a hole")
    assert [name for iteration in found for name, _ in iteration] == ["a", "c", "d"]


@pytest.mark.parametrize("beside", [False, True])
def test_what_all_would_meet_ends_the_run(beside: bool) -> None:
    diary = Diary()
    with pytest.raises(RuntimeError) as raised:  # MONAI's, around it
        evaluate(diary, beside, error=InputError("the disk is full"))
    assert input_error(raised.value) == "the disk is full"
    assert "finish a done" in diary.lines
    assert "finish c" not in diary.lines
    assert np.all([f"predict {name}" not in diary.lines for name in "d"])
