"""Steps of an evaluator."""

from __future__ import annotations

from typing import Any

from monai.engines import SupervisedEvaluator

from scripts.data.cases import InferenceCases
from scripts.data.checks import Problem
from scripts.data.dataset import PROBLEM


class CaseByCase:
    """MONAI's step of an evaluator, which leaves out a case that fails and lets the others be done.

    For `iteration_update` of SupervisedEvaluator. Handlers find no case in the batch and in the output of a
    step that failed.

    Args:
        cases: gets what was wrong with the cases that were left out.
    """

    def __init__(self, cases: InferenceCases) -> None:
        self.cases = cases

    def __call__(self, engine: SupervisedEvaluator, batch: dict[str, Any]) -> Any:
        """Predict and save the cases of a batch, one as a rule, as `scripts.data.CaseDataset` gives them.

        Args:
            engine: the evaluator.
            batch: the cases.

        Returns:
            What MONAI's step gives; [] if it failed.
        """
        if PROBLEM in batch:
            fields = {name: values[0] for name, values in batch[PROBLEM].items()}
            self.cases.leave_out(Problem(**fields))
        else:
            (case,) = (case for case in self.cases.cases if case["case"] == batch["case"][0])
            with self.cases.attempt(case):
                return engine._iteration(engine, batch)
        engine.state.batch, engine.state.output = [], []
        return []
