"""How unsure a network is of each image, class by class, for `python -m bundle suggest`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.utils import CommonKeys as Keys

from scripts.checkpoints import is_first
from scripts.data.datalist import id_of
from scripts.files import write_csv
from scripts.judging.handlers import of_all_processes
from scripts.labels import class_names
from scripts.tables import Row
from scripts.transforms.labels import plain
from scripts.uncertainty import class_entropies, predictive_entropy

#: What a table calls the whole image, whatever its classes.
ANY = "any"

#: The table, in the output folder.
TABLE, COLUMNS = "uncertainty.csv", ("case", "class", "entropy", "voxels")


class CaseUncertainty:
    """Write the entropies of every case to uncertainty.csv: a row for each class, one for the whole image.

    A class has the mean entropy of where it lies, see `class_entropies`, and the voxels of which it is the
    most probable one; the whole image, ANY, the mean over its voxels and their number. The voxels are those
    that the network sees.

    Args:
        output_dir: folder of the table.
        labels: the task's labels, class name to value on disk.
    """

    def __init__(self, output_dir: str, labels: dict[str, int]) -> None:
        self.output_dir = Path(output_dir)
        self.names = class_names(labels)

    def attach(self, evaluator: Engine) -> None:
        """Register at every case, whose "pred" are probabilities, (classes, *spatial), and at the end."""
        evaluator.add_event_handler(Events.STARTED, self._open)
        evaluator.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        evaluator.add_event_handler(Events.COMPLETED, self._write)

    def _open(self, evaluator: Engine) -> None:
        self.rows: list[Row] = []

    def _collect(self, evaluator: Any) -> None:
        for given, output in zip(evaluator.state.batch, evaluator.state.output, strict=True):
            probabilities = plain(output[Keys.PRED])
            case = id_of({**given, **output})
            voxels = torch.bincount(probabilities.argmax(0).flatten(), minlength=len(probabilities))
            found = zip(self.names, class_entropies(probabilities).tolist(), voxels.tolist(), strict=True)
            whole = float(predictive_entropy(probabilities).mean(dtype=torch.float64))
            self.rows += [
                dict(zip(COLUMNS, (case, *row), strict=True))
                for row in (*found, (ANY, whole, int(voxels.sum())))
            ]

    def _write(self, evaluator: Engine) -> None:
        rows = of_all_processes(self.rows)
        if is_first():
            write_csv(self.output_dir / TABLE, rows, COLUMNS)
