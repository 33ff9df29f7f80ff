"""The main.py of a MONAI Label app that hands out images as `python -m bundle suggest` ranked them.

It adds the strategy "suggested" to the sample app `monaibundle`, which lies beside it under that name; see
docs/monai-label.md. The server reads `suggested.csv` in the folder of the app anew for each sample. Nothing
of this project is imported: the server's environment has none of it.
"""

from __future__ import annotations

import csv
import logging
from pathlib import Path
from typing import Any

import monaibundle
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.strategy import Strategy

logger = logging.getLogger(__name__)


class Suggested(Strategy):
    """The next image without label, in the order of a table; after all of these any other.

    Args:
        table: `suggested.csv`.
    """

    def __init__(self, table: Path) -> None:
        super().__init__("In the order of python -m bundle suggest")
        self.table = table

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any] | None:
        """The next sample, or None where every image has a label."""
        left = datastore.get_unlabeled_images()
        ranked = []
        if self.table.is_file():
            with self.table.open(encoding="utf-8", newline="") as file:
                ranked = [row["case"] for row in csv.DictReader(file)]
        else:
            logger.warning("%s is not there: python -m bundle suggest writes it", self.table)
        order = [name for name in ranked if name in left] + sorted(set(left) - set(ranked))
        return {"id": order[0]} if order else None


class App(monaibundle.MyApp, MONAILabelApp):  # the server looks for a class that derives the latter itself
    """The sample app with one strategy more."""

    def init_strategies(self) -> dict[str, Strategy]:
        """Its strategies, "suggested" first."""
        table = Path(self.app_dir) / "suggested.csv"
        return {"suggested": Suggested(table), **super().init_strategies()}
