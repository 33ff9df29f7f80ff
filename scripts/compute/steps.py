"""Steps of an evaluator."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any

from monai.engines import SupervisedEvaluator
from monai.engines.utils import engine_apply_transform

from scripts.compute.classmaps import straight
from scripts.data.cases import InferenceCases
from scripts.data.checks import Problem
from scripts.data.dataset import PROBLEM

#: Cases as MONAI's engine has them, a list of dictionaries for the batch and one for the output.
Done = tuple[list[Any], list[Any]]


class CaseByCase:
    """MONAI's step of an evaluator, which leaves out a case that fails and lets the others be done.

    For `iteration_update` of SupervisedEvaluator, which leaves the postprocessing to it. Where there is
    memory for it (`InferenceCases.beside`) a case goes through the postprocessing, which writes its files,
    while the next one is predicted. The batch and the output that handlers find are those of the cases that
    were done in the meantime: none, one, or in the last step two.

    Args:
        cases: gets what was wrong with the cases that were left out.
        postprocessing: what is done with what the network gives; None: the evaluator sees to it, before the
            next case.
    """

    def __init__(self, cases: InferenceCases, postprocessing: Callable | None = None) -> None:
        self.cases = cases
        self.postprocessing = postprocessing
        self.follows: Any = None  # what is left of the postprocessing after the inferer
        self.coming: Future[Done] | None = None

    def __call__(self, engine: SupervisedEvaluator, batch: dict[str, Any]) -> Any:
        """Predict and save the cases of a batch, one as a rule, as `scripts.data.CaseDataset` gives them.

        Args:
            engine: the evaluator.
            batch: the cases.

        Returns:
            The outputs of the cases that are done now.
        """
        if self.follows is None and self.postprocessing is not None:
            engine.inferer, self.follows = straight(engine.inferer, self.postprocessing)
        case = self._predict(engine, batch)
        predicted: Done = (engine.state.batch, engine.state.output) if case else ([], [])
        batches, outputs = self._collect()
        last = engine.state.iteration % engine.state.epoch_length == 0
        if case and self.cases.aside and not last:
            self.coming = self.cases.aside.submit(self._finish, case, *predicted)
        elif case:
            now = self._finish(case, *predicted)
            batches, outputs = batches + now[0], outputs + now[1]
        engine.state.batch, engine.state.output = batches, outputs
        return engine.state.output

    def _predict(self, engine: SupervisedEvaluator, batch: dict[str, Any]) -> Mapping[str, Any] | None:
        """Predict a batch; gives its case, or None where that is left out."""
        if PROBLEM in batch:
            fields = {name: values[0] for name, values in batch[PROBLEM].items()}
            self.cases.leave_out(Problem(**fields))
            return None
        (case,) = (case for case in self.cases.cases if case["case"] == batch["case"][0])
        with self.cases.attempt(case):
            engine._iteration(engine, batch)
            return case
        return None

    def _finish(self, case: Mapping[str, Any], batch: list[Any], output: list[Any]) -> Done:
        """The postprocessing of a predicted case."""
        if self.follows is None:
            return batch, output
        with self.cases.attempt(case):
            pairs = zip(batch, output, strict=True)
            done = [engine_apply_transform(b, o, self.follows) for b, o in pairs]
            return [b for b, _ in done], [o for _, o in done]
        return [], []

    def _collect(self) -> Done:
        """What has gone through the postprocessing, as soon as it has."""
        coming, self.coming = self.coming, None
        return coming.result() if coming else ([], [])
