"""Ignite handlers that judge what an evaluator predicts, in one process or several."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from monai.handlers import IgniteMetricHandler, from_engine
from monai.utils import CommonKeys as Keys
from monai.utils import ImageMetaKey

from scripts.checkpoints import is_first
from scripts.data.cases import InferenceCases
from scripts.data.datalist import id_of
from scripts.files import disk_space_for, workshop
from scripts.judging.case import Case, case_of
from scripts.judging.case_metric import CaseMetric
from scripts.judging.classes import SCORES, class_scores, mean_dice
from scripts.judging.tables import STANDS_ON, Row, annotated_share, mean_rows, summarize, write_scores
from scripts.labels import class_names
from scripts.pictures import Panel, draw_panels, draw_scores, shown
from scripts.process import gather
from scripts.tables import table
from scripts.transforms.instances import FOUND

logger = logging.getLogger(__name__)

Item = TypeVar("Item")


def evaluated(engine: Any) -> Iterator[tuple[Case, torch.Tensor]]:
    """The cases of an iteration, as class maps, each with its image, (channels, *spatial)."""
    for given, output in zip(engine.state.batch, engine.state.output, strict=True):
        case = case_of(id_of({**given, **output}), output[Keys.PRED], output[Keys.LABEL])
        yield case, output[Keys.IMAGE]


def panel_of(case: Case, image: torch.Tensor, title: str) -> Panel:
    """What is drawn of a case, in the colours of the file that its image was read from."""
    file = image.meta.get(ImageMetaKey.FILENAME_OR_OBJ, "") if isinstance(image, MetaTensor) else ""
    return Panel.of(case, shown(np.asarray(image.cpu()), str(file)), title)


def of_all_processes(items: list[Item]) -> list[Item]:
    """The items of this process and of the others, in every one of them."""
    return [item for part in gather(items) for item in part]


def key_metric(measure: str) -> dict[str, IgniteMetricHandler]:
    """What chooses the best epoch, as an evaluator's `key_val_metric`; a higher one is better.

    Args:
        measure: "dice", of the classes in "pred" and "label", or one of INSTANCE_SCORES, of what
            `scripts.transforms.FindObjectsd` made.

    Returns:
        The handler by its name in curves: "val_mean_dice", or "val_" and the score.
    """
    keys, name = ([Keys.PRED, Keys.LABEL], "mean_dice") if measure == "dice" else (FOUND, measure)
    return {f"val_{name}": IgniteMetricHandler(CaseMetric(measure), output_transform=from_engine(keys))}


class CasePictures:
    """After each validation, draw the cases with the worst and the best mean Dice.

    Args:
        output_dir: folder of the pictures, one a validation: epoch_0010.png.
    """

    def __init__(self, output_dir: str) -> None:
        self.output_dir = Path(output_dir)

    def attach(self, evaluator: Engine) -> None:
        """Register at every case and at the end."""
        evaluator.add_event_handler(Events.STARTED, self._open)
        evaluator.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        evaluator.add_event_handler(Events.COMPLETED, self._draw)

    def _open(self, evaluator: Engine) -> None:
        self.ends: list[tuple[float, Panel]] = []

    def _collect(self, evaluator: Engine) -> None:
        for case, image in evaluated(evaluator):
            dice = mean_dice(case)
            if np.isnan(dice):
                continue
            among = [end for end, _ in self.ends]
            if len(among) < 2 or not min(among) <= dice <= max(among):
                panel = panel_of(case, image, f"{case.id}: mean Dice {dice:.3f}")
                self.ends = _ends([*self.ends, (dice, panel)])

    def _draw(self, evaluator: Engine) -> None:
        ends = _ends(of_all_processes(self.ends))
        if ends and is_first():
            path = self.output_dir / f"epoch_{evaluator.state.epoch:04d}.png"
            draw_panels([panel for _, panel in ends], path)


def _ends(panels: list[tuple[float, Panel]]) -> list[tuple[float, Panel]]:
    """The worst and the best, if there are as many."""
    ranked = sorted(panels, key=lambda pair: pair[0])
    return ranked[:1] + ranked[1:][-1:]


class CaseScores:
    """Score every case and write scores.csv, summary.csv, summary.json, scores.png and cases.png.

    Of each case the scores stay in memory, and what might be drawn in a temporary folder.

    Args:
        output_dir: folder of the files.
        labels: the task's labels, class name to value on disk.
        tolerance: distance within which surfaces agree for the surface Dice, in mm (pixels for pictures).
        cases: those that are judged and, after them, those that were left out; None: none is.

    Raises:
        InputError: at the end, for two cases of one name.
    """

    def __init__(
        self,
        output_dir: str,
        labels: dict[str, int],
        tolerance: float = 1.0,
        cases: InferenceCases | None = None,
    ) -> None:
        self.output_dir = Path(output_dir)
        self.names = class_names(labels)
        self.tolerance = tolerance
        self.cases = cases

    def attach(self, evaluator: Engine) -> None:
        """Register at every case and at the end."""
        evaluator.add_event_handler(Events.STARTED, self._open)
        evaluator.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        evaluator.add_event_handler(Events.COMPLETED, self._write)

    def _open(self, evaluator: Engine) -> None:
        self.rows: list[Row] = []
        self.dice: dict[str, float] = {}
        self.shares: list[float] = []
        self.slices: dict[str, Path] = {}
        self.folder = ExitStack()
        self.place = self.folder.enter_context(workshop(self.output_dir))

    def _collect(self, evaluator: Engine) -> None:
        for case, image in evaluated(evaluator):
            scores = class_scores(case, len(self.names), self.tolerance)
            self.rows += [
                {"case": case.id, "class": name, **row}
                for name, row in zip(self.names[1:], scores, strict=True)
            ]
            self.dice[case.id] = mean_dice(case)
            self.shares.append(case.share())
            self.slices[case.id] = self.place / f"{len(self.slices)}.npz"
            with disk_space_for(self.slices[case.id]):
                np.savez(self.slices[case.id], **vars(panel_of(case, image, case.id)))

    def _write(self, evaluator: Engine) -> None:
        rows = sorted(of_all_processes(self.rows), key=lambda row: row["case"])
        ranked = sorted(
            (dice, name) for name, dice in of_all_processes(list(self.dice.items())) if not np.isnan(dice)
        )
        places = {0: "worst", len(ranked) // 2: "median", len(ranked) - 1: "best"} if ranked else {}
        chosen = [(place, *ranked[place]) for place in places]
        panels = dict(
            of_all_processes(
                [
                    (place, self._panel(name, f"{places[place]}: {name}: mean Dice {dice:.3f}"))
                    for place, dice, name in chosen
                    if name in self.slices
                ]
            )
        )
        self.folder.close()
        annotated = annotated_share(of_all_processes(self.shares))
        left_out = len(self.cases.failed()) if self.cases else 0
        if not is_first() or not rows:
            return
        summary = summarize(rows, SCORES)
        cases = len({row["case"] for row in rows})
        about = {"measure": "classes", "cases": cases, "not_scored": left_out, "tolerance": self.tolerance}
        write_scores(self.output_dir, rows, {**about, **annotated, "summary": summary})
        draw_scores(rows, self.output_dir / "scores.png")
        if panels:
            draw_panels([panels[place] for place in places], self.output_dir / "cases.png")
        logger.info("means over %d cases:\n%s", cases, table(("class", *SCORES), mean_rows(summary)))
        for share in annotated.values():
            logger.info(STANDS_ON, f"{share:.2%}")
        logger.info("tables and pictures: %s", self.output_dir)

    def _panel(self, name: str, title: str) -> Panel:
        """The slice of a case of this process."""
        with np.load(self.slices[name]) as kept:
            return Panel(kept["image"], kept["truth"], kept["pred"], title, kept["unknown"])
