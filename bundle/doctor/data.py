"""The cases of a run: whether their files are sound, and whether the configs suit them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from monai.utils import ensure_tuple

from bundle.data.plan import PATCH_STEP
from bundle.doctor.report import Finding, Report
from bundle.doctor.runs import Run
from scripts.compute.classmaps import tile_of
from scripts.data.checks import describe
from scripts.data.datalist import dataset_labels, list_images, read_images, sections
from scripts.data.reader import image_suffix, read_dims, read_spacing
from scripts.data.remembered import check_remembered
from scripts.data.room import Grids, Room
from scripts.dicom import DICOM_READER, SeriesFinder
from scripts.errors import InputError
from scripts.files import read_json
from scripts.labels import count_classes

PART = "data"

#: A voxel size this many times that of most images, or a part of it, is a slip.
FAR = 3.0

Case = Mapping[str, Any]


@dataclass(frozen=True)
class Cases:
    """The sound cases of a run.

    Attributes:
        lists: by section; of an inference "images" alone.
        grids: of every case by its id, those of the file and of what the network sees; none where a header
            does not tell.
        room: says how much memory a case takes.
        beside: cases are loaded and finished while others are predicted.
    """

    lists: dict[str, list[Case]]
    grids: dict[str, Grids]
    room: Room
    beside: bool = False

    def known(self, section: str) -> list[tuple[Case, Grids]]:
        """Cases of a section whose grids are known, from small to large."""
        found = [
            (case, self.grids[case["case"]]) for case in self.lists[section] if case["case"] in self.grids
        ]
        return sorted(found, key=lambda pair: math.prod(pair[1].seen_shape))


def check(report: Report, run: Run) -> Cases | None:
    """Read the files as the run would, and compare them with the configs; None where no case is usable."""
    cases = None
    report.begin(PART, "reading the files of cases that have not passed before")
    with report.check(PART, "files") as row:
        cases = _read(run, row)
    if cases is None:
        return None
    used = [case for name, listed in cases.lists.items() if name != "testing" for case in listed]
    grids = [cases.grids[case["case"]] for case in used if case["case"] in cases.grids]
    if run.kind == "training":
        with report.check(PART, "split") as row:
            _split(cases, row)
    if grids:
        with report.check(PART, "image size") as row:
            _sizes(run, grids, row)
        if run.resampled():
            with report.check(PART, "spacing") as row:
                _spacing(run, [ensure_tuple(case["image"])[0] for case in used], row)
    return cases


def check_folder(report: Report, folder: Path) -> None:
    """Check a data folder that no config says anything about: a data set, or images alone."""
    report.begin(PART, "reading the files of cases that have not passed before")
    with report.check(PART, "files") as row:
        if not (folder / "dataset.json").is_file():
            images = list_images(folder) if folder.is_dir() else []
            spatial_dims, channels = next((dims for file in images if (dims := read_dims(file))), (3, 1))
            unknown = bool(images) and not any(map(image_suffix, images))
            reader = DICOM_READER if unknown else "scripts.data.ImageReader"
            found = read_images(folder, spatial_dims=spatial_dims, in_channels=channels, reader=reader)
            _tell(row, {"images": found.cases}, found.problems)
            return
        path = folder / "dataset.json"
        lists = sections(folder)
        cases = [case for listed in lists.values() for case in listed]
        first = cases[0]["image"]
        spatial_dims, channels = read_dims(ensure_tuple(first)[0]) or (3, 1)
        channels = channels if isinstance(first, str) else len(first)
        description = read_json(path)
        labels = dataset_labels(description, path) or None
        problems = check_remembered(
            cases,
            path.parent.absolute(),
            "remembered",
            spatial_dims=spatial_dims,
            in_channels=channels,
            labels=labels,
            instances=bool(description.get("instances")),
        )
        _tell(row, lists, problems)


def _read(run: Run, row: Finding) -> Cases:
    """The cases of a run, as its configs read them."""
    labelled = run.kind in ("training", "evaluation")
    if run.kind == "training":
        lists = dict(run.part("split"))
        problems: Sequence[Any] = ()
        tile, beside = None, False
    else:
        found = run.part("cases")
        lists, problems, beside = {"images": found.cases}, found.problems, found.beside
        after = run.part("validate::postprocessing" if labelled else "postprocessing")
        tile = tile_of(run.part("inferer"), after)
    _tell(row, lists, problems)
    dicom = run.has("reader") and run.part("reader") == DICOM_READER and not labelled
    room = Room(
        run.part("validate::preprocessing" if labelled else "preprocessing"),
        classes=0 if run.kind == "training" else count_classes(run.part("labels")),
        labelled=labelled,
        finder=SeriesFinder() if dicom else None,
        tile=tile,
    )
    every = [case for listed in lists.values() for case in listed]
    grids = {case["case"]: grids for case in every if (grids := room.grids(case)) is not None}
    return Cases(lists, grids, room, beside)


def _tell(row: Finding, lists: Mapping[str, Sequence[Case]], problems: Sequence[Any]) -> None:
    """How many cases there are, and what is wrong with some."""
    counts = {name: len(listed) for name, listed in lists.items()}
    row.values = {"cases": counts, "problems": [problem.sentence() for problem in problems]}
    row.found = (
        "; ".join(f"{name}: {count} case(s)" for name, count in counts.items())
        + ", read to their end now or before"
    )
    errors = [problem for problem in problems if problem.severity == "error"]
    if problems:
        row.status = "error" if errors else "warning"
        row.found += "\n" + describe(problems, f"{len(problems)} problems:")
        row.fix = "mend the files, or take them away: the others are sound"


def _split(cases: Cases, row: Finding) -> None:
    """Whether there is something to train on, and to choose the best weights by."""
    train, held = len(cases.lists["training"]), len(cases.lists["validation"])
    if not train:
        raise InputError("no case is left to train on: give dataset.json more, or another --fold")
    row.found = f"{train} case(s) to train on, {held} to choose the best weights by"
    if not held:
        row.status, row.fix = "warning", "without one the last weights are kept: list some under validation"


def _sizes(run: Run, grids: Sequence[Grids], row: Finding) -> None:
    """The patch against the images as the network sees them."""
    shapes = [grid.seen_shape for grid in grids]
    middle = [round(median(lengths)) for lengths in zip(*shapes, strict=True)]
    patch = [int(n) for n in run.part("patch_size")]
    smaller = [any(n < seen for n, seen in zip(shape, patch, strict=False)) for shape in shapes]
    row.found = f"the median image has {middle} voxels where the network sees it, a patch {patch}"
    row.values = {"median_shape": middle, "patch_size": patch, "smaller_than_patch": sum(smaller)}
    too_large = sum(
        any(seen > math.ceil(n / PATCH_STEP) * PATCH_STEP for n, seen in zip(shape, patch, strict=False))
        for shape in shapes
    )
    if 2 * too_large > len(shapes):
        row.status = "warning"
        row.found += (
            f"; it is larger than {too_large} of {len(shapes)} images along an axis, beyond rounding up"
        )
        row.fix = "the rest is padding: lower --patch_size, or the --spacing"
    elif any(smaller):
        row.found += f"; {sum(smaller)} of {len(shapes)} images are smaller along an axis, and padded"


def _spacing(run: Run, images: Sequence[str], row: Finding) -> None:
    """The voxel size of the configs against that of the files."""
    wanted = [float(edge) for edge in run.part("spacing")]
    edges = [edges for path in images if (edges := read_spacing(path))]
    if not edges:
        return
    middle = [float(f"{median(axis):.4g}") for axis in zip(*edges, strict=True)]
    row.found = f"images have voxels of {middle} mm in the median, and are brought to {wanted}"
    row.values = {"median_spacing": middle, "spacing": wanted}
    far = [axis for axis, (a, b) in enumerate(zip(middle, wanted, strict=True)) if max(a / b, b / a) > FAR]
    if far:
        row.status = "warning"
        row.found += f", more than {FAR:g} times another size along axis {', '.join(map(str, far))}"
        row.fix = f'set --spacing "{middle}", or correct the headers'
