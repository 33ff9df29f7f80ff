"""`python -m bundle report`: what a run gave, as one HTML file that is opened without a network.

`gather` reads what lies in the folder, `words` says it in sentences, `layers` makes cases ready to be looked
at, and `page` fills in the template. Nothing is trained or scored; of a training alone three cases are
segmented, as it keeps no segmentations.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from bundle.report.gather import Found, Judged, gather, sizes
from bundle.report.layers import Shown, read_shown
from bundle.report.page import MOST_BYTES, render
from bundle.report.words import called
from bundle.runs.commands import run_bundle
from scripts.data.datalist import file_stem, list_images
from scripts.data.names import output_name
from scripts.errors import InputError
from scripts.files import atomic_write
from scripts.tables import number

Row = dict[str, Any]

#: Name of the report where no other is given.
NAME = "report.html"

#: Files of a case, by the end of their names.
KINDS = ("seg", "prob", "spread")


def report(run: Path, dataset_dir: Path | None, recipe: Path | None, output: Path | None) -> None:
    """Carry out `bundle.cli.report`, whose arguments these are."""
    run = run.resolve()
    found = gather(run, dataset_dir, recipe)
    found.output = output.absolute() if output else None
    if not found.judged:
        found.sizes = sizes(found)
    chosen, told = choose(found)
    with segmented_by(found, chosen) as files:
        shown = list(_read(found, chosen, files))
    page = render(found, shown, told).encode()
    if len(page) > MOST_BYTES:
        typer.echo(
            f"warning: the report has {len(page) / 1e6:.0f} MB, as its text and tables are long", err=True
        )
    place = found.output or (run / NAME).absolute()
    with atomic_write(place) as temporary:
        temporary.write_bytes(page)
    for sentence in found.missing:
        typer.echo(f"note: {sentence}", err=True)
    typer.echo(f"{place}: {len(page) / 1e6:.1f} MB, {len(shown)} cases to look at; open it in a browser")


def choose(found: Found) -> tuple[dict[str, str], str]:
    """The cases to look at.

    Returns:
        Their ids by their roles, and a sentence on what they are.
    """
    judged = first_judged(found)
    if judged:
        ids = list(judged.ranked)
        roles = ("worst", "median", "best")
        told = f"The worst, the median and the best case by {called(judged.scores[0])}."
    else:
        key = "size"
        rows = sorted((row for row in found.sizes if row[key] is not None), key=lambda row: row[key])
        ids, roles = [row["case"] for row in rows], ("smallest", "median", "largest")
        told = "The cases with the least, a median and the most of what was found."
    if not ids:
        return {}, ""
    places = dict(zip(roles, (0, len(ids) // 2, len(ids) - 1), strict=True))
    chosen: dict[str, str] = {}
    for role, place in sorted(places.items(), key=lambda item: item[0] == "median"):
        if ids[place] not in chosen.values():
            chosen[role] = ids[place]
    kept = {role: chosen[role] for role in roles if role in chosen}
    if not judged:
        return kept, f"{told} Filled: what was found."
    return kept, f"{told} Filled: prediction. Outline: truth."


def first_judged(found: Found) -> Judged | None:
    """The judged cases of which some are looked at."""
    return next((judged for judged in found.judged if judged.ranked), None)


@contextmanager
def segmented_by(found: Found, chosen: Mapping[str, str]) -> Iterator[dict[str, dict[str, Path]]]:
    """The files of chosen cases: those that were kept, else what the weights of the training make of them.

    Args:
        found: what the run holds; what cannot be had is told there.
        chosen: ids by role.

    Yields:
        By id the files of KINDS.
    """
    judged = first_judged(found)
    kept = judged.pred if judged else found.pred
    with tempfile.TemporaryDirectory() as folder:
        if chosen and kept is None:
            kept = _segment(found, list(chosen.values()), judged, Path(folder))
        yield {case: files_of(kept, case) for case in chosen.values()} if kept else {}


def files_of(folder: Path, case: str) -> dict[str, Path]:
    """The files of a case in a folder of results, by KINDS."""
    names = {f"{output_name(case)}_{kind}": kind for kind in KINDS}
    files = list_images(folder) if folder.is_dir() else []
    return {names[file_stem(file)]: file for file in files if file_stem(file) in names}


def _segment(found: Found, cases: Sequence[str], judged: Judged | None, folder: Path) -> Path | None:
    """Segment cases with the weights of a training: the folder of the results, None where that fails."""
    training = judged.training if judged else None
    known = [found.data.cases[case] for case in cases if case in found.data.cases]
    if training is None or not training.recipe or not (training.folder / "model.pt").is_file():
        found.missing.append("no pictures of cases: there are neither segmentations nor weights to make some")
        return None
    if not known:
        where = (
            "gives them" if found.data.folder is None else f"is {found.data.folder}, which has other cases"
        )
        found.missing.append(f"no pictures of cases, as their images are not known: --dataset_dir {where}")
        return None
    listed = {
        "training": [{**case, "fold": 0} for case in known],
        "labels": found.data.about.get("labels", {}),
    }
    (folder / "dataset.json").write_text(json.dumps(listed), encoding="utf-8")
    run: Row = {
        "section": "validation",
        "fold": 0,
        "dataset_dir": str(folder),
        "output_dir": str(folder / "out"),
    }
    if "save_spread" in training.recipe:  # earlier versions had none
        run["save_spread"] = True
    try:
        run_bundle([str(training.folder / "inference.json")], **run)
    except InputError as error:
        found.missing.append(f"no pictures of cases, as they could not be segmented: {error}")
        return None
    return folder / "out"


def _read(
    found: Found, chosen: Mapping[str, str], files: Mapping[str, Mapping[str, Path]]
) -> Iterator[tuple[Shown, str]]:
    """The chosen cases, each with what is said of it; one that cannot be read is told."""
    judged = first_judged(found)
    dims = None
    for role, case in chosen.items():
        kept = files.get(case, {})
        if "seg" not in kept:
            if files:
                found.missing.append(f"no picture of {case}: its segmentation is not there")
            continue
        listed = found.data.cases.get(case, {"case": case})
        try:
            shown = read_shown(role, listed, kept, found.labels, found.instances)
        except InputError as error:
            found.missing.append(f"no picture of {case}: {error}")
            continue
        if shown.image is None:
            found.missing.append(f"{case} is shown without its image: --dataset_dir says where it lies")
        if dims is not None and shown.is_volume != dims:
            found.missing.append(f"{case} is not shown: it has other dimensions than the case before it")
            continue
        dims = shown.is_volume
        said = ""
        if judged:
            score = judged.scores[0]
            said = f"{called(score)} {number(score, judged.ranked[case])}"
        yield shown, said
