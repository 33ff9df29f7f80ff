"""The report as one file: the template filled in, with all that it shows inside it.

Nothing is loaded from elsewhere, and a Content-Security-Policy in the page forbids it: only the scripts that
are written here run, by their hashes. What comes from files is escaped by Jinja2.
"""

from __future__ import annotations

import base64
import csv
import datetime
import hashlib
import math
import platform
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import monai
import nibabel as nib
import numpy as np
from markupsafe import Markup
from PIL import Image

from bundle.made_of import here
from bundle.report import words
from bundle.report.gather import Found, Judged, read_rows
from bundle.report.layers import LAYERS, UNSURE, Shown, fitted, palette, png
from bundle.runs.compare import draw_comparison
from bundle.runs.crossval import CALIBRATED
from bundle.runs.crossval import draw as draw_intervals
from bundle.runs.study import draw as draw_seeds
from bundle.runs.trainings import SHOWN
from scripts.errors import InputError, few
from scripts.files import read_json, sha256
from scripts.labels import class_names
from scripts.pictures import (
    CLASS_COLOURS,
    Panel,
    draw_found,
    draw_instances,
    draw_learning_curve,
    draw_panels,
    draw_scores,
)
from scripts.tables import number

Row = dict[str, Any]

FOLDER = Path(__file__).resolve().parent

#: The viewer, what it is, and its licence.
VENDORED, SCRIPT, LICENCE = (
    FOLDER / "vendored" / name for name in ("vendored.json", "niivue.umd.js", "LICENSE")
)

#: Bytes of a report, and of them what is kept for text and tables that the pictures must leave.
MOST_BYTES, SPARE = 25_000_000, 200_000

#: Rows of a table of all cases, of any other long table, and learning curves that are drawn.
MOST_ROWS, MOST_LISTED, MOST_CURVES = 1000, 200, 12

#: Bytes of a picture of a case.
MOST_PICTURE = 1_200_000

#: What a section shows where a file of that name is there: name, heading, what it says, table, picture.
EXTRAS = (
    (
        "calibration",
        "Calibration",
        "Whether probabilities mean what they say: of voxels of probability 0.8, 80 % should be right.",
        "calibration.csv",
        "reliability.png",
    ),
    (
        "groups",
        "Groups",
        "Whether it is better for some groups of cases than for others.",
        "groups.csv",
        "groups.png",
    ),
    (
        "why",
        "What the network looked at",
        "For one place: what of the image moved the answer there. It is no proof: a network that has not "
        "learnt anything looks at what is near, too.",
        "why.csv",
        "why.png",
    ),
    ("review", "To be looked at", "Cases that somebody should look at first.", "review.csv", "review.png"),
)


def render(found: Found, shown: Sequence[tuple[Shown, str]], section: str) -> str:
    """The report.

    Args:
        found: what the run holds.
        shown: cases to look at, and what is said of each.
        section: what these cases are, a sentence.

    Returns:
        HTML, of MOST_BYTES at most.
    """
    volumes = bool(shown) and shown[0][0].is_volume
    viewer = ("volume" if volumes else "picture") if shown else ""
    with tempfile.TemporaryDirectory() as folder:
        content = _content(found, Path(folder))
        cases = [_case(case, said, Path(folder)) for case, said in shown]
    content |= {"viewer": viewer, "cases": cases, "legend": _legend(found, [case for case, _ in shown])}
    content["layers"] = [name for name in LAYERS if any(_has(case, name) for case, _ in shown)]
    unsure = " Uncertainty: bright is not sure." if volumes and "uncertainty" in content["layers"] else ""
    content["cases_told"], content["viewer_data"] = section + unsure, {}
    content["sections"] = [(name, heading) for name, heading in _sections(content) if heading]
    room = MOST_BYTES - len(_page(content).encode()) - SPARE
    layers, step = fitted([case for case, _ in shown], room) if shown else ([], 1)
    for case, own in zip(cases, layers, strict=True):
        case["layers"] = own
    if step > 1:
        content["cases_told"] += (
            f" The viewer shows one of {step} voxels along each long axis, so that this file stays below "
            f"{MOST_BYTES // 10**6} MB; scores are of all voxels."
        )
    if viewer:
        content["viewer_data"] = {
            "palette": palette(),
            "cases": [_without(case, () if volumes else ("layers",)) for case in cases],
        }
    return _page(content)


def _without(case: Row, names: Sequence[str]) -> Row:
    """What the script needs of a case."""
    kept = {"role", "id", "said", "at", "layers"} - set(names)
    return {name: value for name, value in case.items() if name in kept}


def _page(content: Mapping[str, Any]) -> str:
    """The template filled in."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["figure"] = figure
    parts = ["page.js", *(["viewer.js"] if content["viewer"] else [])]
    scripts = [(FOLDER / name).read_text(encoding="utf-8") for name in parts]
    if content["viewer"] == "volume":
        scripts.insert(0, vendored_script())
    texts = [as_script(script) for script in scripts]
    style = (FOLDER / "style.css").read_text(encoding="utf-8")
    return environment.get_template("template.html").render(
        content, scripts=[Markup(text) for text in texts], style=Markup(style), policy=policy(texts)
    )


def vendored_script() -> str:
    """NiiVue, as it was vendored.

    Raises:
        InputError: the file is another one.
    """
    if sha256(SCRIPT) != read_json(VENDORED)["sha256"]:
        raise InputError(f"{SCRIPT} is not the file that {VENDORED} names by its SHA-256; put it back.")
    return SCRIPT.read_text(encoding="utf-8")


def as_script(text: str) -> str:
    r"""JavaScript so that no HTML parser finds its end, or a comment, within it.

    Both can only stand in its texts and regular expressions, where a backslash before them says nothing.
    """
    return re.sub(r"<(/script|!--)", r"<\\\1", text, flags=re.IGNORECASE)


def policy(scripts: Sequence[str]) -> str:
    """The Content-Security-Policy: these scripts run, nothing is loaded but what the page holds."""
    hashes = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts)
    allowed = " ".join(f"'sha256-{each}'" for each in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "connect-src data: blob:; base-uri 'none'; form-action 'none'"
    )


def figure(value: Any, score: str = "") -> str:
    """A value of a table as text: numbers as all tables of this project show them."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    return number(score, value) if isinstance(value, float) else str(value)


def _sections(content: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names and headings of the sections that there are; "" of those that are not."""
    there = {
        "summary": "Summary",
        "plan": "Plan" if content["plan"] else "",
        "curves": "Curves" if content["curves"] else "",
        "compared": "Variants" if content["compared"] else "",
        "scores": "Scores" if content["scores"] else "",
        "found": "What was found" if content["volumes"] else "",
        "cases": "Cases" if content["cases"] else "",
        **{extra["name"]: extra["heading"] for extra in content["extras"]},
        "failures": "Failures",
        "how": "How it was made",
    }
    return list(there.items())


def _content(found: Found, folder: Path) -> Row:
    """What the template is filled in with, but for the cases to look at."""
    failures = list(words.failures(found))
    volumes = [{key: value for key, value in row.items() if key != "size"} for row in found.sizes]
    by = here()
    curved = [training for training in found.trainings if training.curve]
    return {
        "title": f"Segmentation report: {found.name or found.run.name}",
        "found": found,
        "date": f"{datetime.date.today():%Y-%m-%d}",
        "version": by["version"],
        "figures": [_headline(judged) for judged in found.judged],
        "summary": list(words.summary(found)),
        "caution": list(words.caution(found)),
        "plan": list(words.plan_rows(found)),
        "curves": [
            {
                "title": words.curve_title(training),
                "source": _chart(folder, draw_learning_curve, _gaps(training.curve), training.metric),
            }
            for training in curved[:MOST_CURVES]
        ],
        "curves_left": max(len(curved) - MOST_CURVES, 0),
        "compared": _compared(found, folder),
        "scores": [_scores(found, judged, folder) for judged in found.judged],
        "volumes": volumes[:MOST_ROWS],
        "volumes_left": max(len(volumes) - MOST_ROWS, 0),
        "extras": list(filter(None, (_extra(found, *extra) for extra in EXTRAS))),
        "failures": failures[:MOST_LISTED],
        "failures_left": max(len(failures) - MOST_LISTED, 0),
        "no_failures": _no_failures(found),
        "methods": list(words.methods(found)),
        "commands": list(words.commands(found)),
        "versions": _versions(found, by),
        "older": _older(found, by),
        "data_told": list(_data_told(found)),
        "vendored": read_json(VENDORED),
        "licence": LICENCE.read_text(encoding="utf-8"),
    }


def _no_failures(found: Found) -> str:
    """What is said where no failure is listed."""
    if found.judged:
        return "Every case was segmented and scored, and in each something of every class was found right."
    if found.data.cases and found.sizes:
        return "Every image has its segmentation."
    return "Which cases there should be is not known here."


def _headline(judged: Judged) -> Row:
    main = judged.main
    told = words.with_interval(main)
    mean, _, between = told.partition(" (")
    return {
        "who": words.cases_of(judged),
        "name": words.called(judged.scores[0]),
        "mean": mean,
        "between": between.rstrip(")"),
    }


def _gaps(curve: Sequence[Row]) -> list[Row]:
    """A curve with None where there is no number, and whole epochs."""
    rows = [{key: None if math.isnan(value) else value for key, value in row.items()} for row in curve]
    return [{**row, "epoch": int(row["epoch"] or 0)} for row in rows]


def _chart(folder: Path, draw: Callable[..., object], *content: Any, **options: Any) -> str:
    """The address of the SVG that a function draws, which takes its path after the content."""
    path = folder / "chart.svg"
    draw(*content, path, **options)
    return f"data:image/svg+xml;base64,{base64.b64encode(path.read_bytes()).decode()}"


def _compared(found: Found, folder: Path) -> list[Row]:
    """Tables and pictures of a study."""
    if not found.judged:
        return []
    measure = found.judged[0].measure
    score = SHOWN[measure][0]
    parts: list[Row] = []
    own = [row for row in found.seeds if row["data"] == "own"]
    if own:
        rows = [
            {"variant": row["variant"], "seed": row["seed"], **{s: row[s] for s in SHOWN[measure]}}
            for row in own
        ]
        known = [{key: None if value != value else value for key, value in row.items()} for row in rows]
        parts.append(
            {
                "heading": "Each training, on the data set that it was made for",
                "rows": rows,
                "source": _chart(folder, draw_seeds, known, SHOWN[measure]),
            }
        )
    if found.compared:
        columns = {
            "variant": "variant",
            "data": "data",
            "mean": "mean",
            "mean_low": "low",
            "mean_high": "high",
            "difference": "difference",
            "low": "low of it",
            "high": "high of it",
            "p_holm": "p, Holm",
            "differs": "differs",
        }
        said = {"True": "yes", "False": "no", "": "–"}
        rows = [{title: row[key] for key, title in columns.items()} for row in found.compared]
        for row in rows:
            row["differs"] = said.get(row["differs"], row["differs"])
            row["p, Holm"] = None if math.isnan(row["p, Holm"]) else f"{row['p, Holm']:.2g}"
        drawn = [
            {key: None if value != value else value for key, value in row.items()} for row in found.compared
        ]
        parts.append(
            {
                "heading": f"Mean {words.called(score)}, its 95 % interval, the difference from the first",
                "rows": rows,
                "source": _chart(folder, draw_comparison, drawn, score),
            }
        )
    return parts


def _scores(found: Found, judged: Judged, folder: Path) -> Row:
    """Tables and charts of judged cases."""
    unit, first = words.unit_of(found), judged.scores[0]
    tables = []
    for score in judged.scores:
        rows = [
            {**row, "label": "all classes" if row["class"] == "mean" else row["class"]}
            for row in judged.means
            if row["score"] == score
        ]
        if "class" not in judged.rows[0]:
            rows = [
                {**row, "label": "all objects" if judged.measure == "instances" else "all cells"}
                for row in rows
            ]
        tables.append(
            {
                "first": score in SHOWN[judged.measure],
                "name": score,
                "called": words.called(score),
                "meaning": words.meaning(score, judged, unit),
                "rows": rows,
                "folds": list(rows[0]["folds"]),
            }
        )
    order = {case: place for place, case in enumerate(judged.ranked)}
    by_case = sorted(judged.rows, key=lambda row: order.get(row["case"], len(order)))
    drawn = [{"class": "all", **row} for row in judged.rows]
    charts = [
        (
            _chart(folder, draw_scores, drawn, score=first),
            f"{words.called(first)} of each case (points) and the mean (line)",
        )
    ]
    if judged.fold_of:
        shown = [row for row in judged.means if row["score"] in SHOWN[judged.measure]]
        charts.append(
            (
                _chart(folder, draw_intervals, shown),
                "Mean of each fold (blue), and the mean of all cases with its 95 % interval (black)",
            )
        )
    return {
        "name": judged.name,
        "heading": words.cases_of(judged),
        "of": "class" if "class" in judged.rows[0] else "what",
        "tables": tables,
        "charts": charts,
        "rows": by_case[:MOST_ROWS],
        "left": max(len(by_case) - MOST_ROWS, 0),
        "file": judged.folder / "scores.csv",
    }


def _has(case: Shown, layer: str) -> bool:
    given = {
        "image": case.image is not None,
        "truth": case.judged,
        "uncertainty": case.uncertainty is not None,
    }
    return given.get(layer, True)


def _case(shown: Shown, said: str, folder: Path) -> Row:
    """What the template shows of a case, but for its layers."""
    case = shown.case
    filled = np.argwhere(case.truth > 0) if (case.truth > 0).any() else np.argwhere(case.pred > 0)
    middle = filled.mean(axis=0) if len(filled) else (np.array(case.pred.shape) - 1) / 2
    at = _canonical((middle + 0.5) / np.array(case.pred.shape), shown.affine)
    image = np.zeros(case.pred.shape, np.float32) if shown.image is None else shown.image
    path, pictures = folder / "case.png", []
    if shown.judged and shown.instances:
        said = "; ".join(filter(None, [said, str(draw_instances(image, case, path))]))
        pictures.append((path, "image, true objects, predicted objects and errors"))
    elif shown.judged:
        draw_panels([Panel.of(case, image, "image")], path)
        pictures.append((path, "image, truth, prediction and error"))
    sources = [(_plate(path), text) for path, text in pictures]
    if not shown.judged or shown.uncertainty is not None:
        draw_found(image, case, shown.uncertainty, shown.instances, path)
        sources.append((_plate(path), "image, what was found and how sure"))
    return {"role": shown.role, "id": case.id, "said": said, "at": at, "pictures": sources, "layers": {}}


def _canonical(shares: np.ndarray, affine: np.ndarray | None) -> list[float]:
    """Where a point of a volume lies along left to right, back to front, bottom to top, 0 to 1."""
    if affine is None or len(shares) != 3:
        return shares.tolist()
    orientation = nib.io_orientation(affine)
    found = [0.5] * 3
    for axis, (onto, sign) in enumerate(orientation):
        found[int(onto)] = float(shares[axis] if sign > 0 else 1 - shares[axis])
    return found


def _plate(path: Path) -> str:
    with Image.open(path) as picture:
        return f"data:image/png;base64,{png(picture.convert('RGB'), MOST_PICTURE)}"


def _legend(found: Found, shown: Sequence[Shown]) -> list[tuple[str, str]]:
    """Classes and their colours, and that of what is not sure in a picture."""
    if not shown:
        return []
    colours = CLASS_COLOURS[1:]
    names = [] if found.instances else class_names(found.labels)[1:]
    legend = [(name, colours[place % len(colours)]) for place, name in enumerate(names)]
    if any(case.uncertainty is not None and not case.is_volume for case in shown):
        legend.append(("not sure", "#{:02x}{:02x}{:02x}".format(*UNSURE)))
    return legend


def _extra(found: Found, name: str, heading: str, told: str, table: str, picture: str) -> Row | None:
    """A section of files that another command wrote; None where there are none."""
    parts = []
    runs = [found.run, found.run / "crossval"] if found.kind == "auto" else [found.run]
    learnt = [run / CALIBRATED for run in runs]
    asked = [folder for run in runs for folder in sorted(run.glob("why*/"))]
    for folder in dict.fromkeys([*runs, *learnt, *asked, *(judged.folder for judged in found.judged)]):
        file, drawn = folder / table, folder / picture
        rows = _rows_of(file) if file.is_file() else []
        source = ""
        if drawn.is_file():
            with Image.open(drawn) as image:
                source = f"data:image/png;base64,{png(image.convert('RGB'), MOST_PICTURE)}"
        if rows or source:
            left = max(len(rows) - MOST_LISTED, 0)
            beside = file.with_suffix(".json")
            said = read_json(beside).get("told", []) if beside.is_file() else []
            part = {"file": str(file), "rows": rows[:MOST_LISTED], "left": left, "source": source}
            parts.append({**part, "said": said})
    return {"name": name, "heading": heading, "told": told, "parts": parts} if parts else None


def _rows_of(file: Path) -> list[Row]:
    """A table of any columns, numbers as numbers where a column has nothing else."""
    with file.open(encoding="utf-8", newline="") as opened:
        names = list(next(csv.reader(opened), []))
    texts = names[:1]
    for name in names[1:]:
        try:
            read_rows(file, [*(other for other in names if other != name)])
        except InputError:
            texts.append(name)
    return read_rows(file, texts)


def _versions(found: Found, by: Mapping[str, str]) -> list[Row]:
    names = {
        "version": "unet-bundle",
        "monai_version": "MONAI",
        "pytorch_version": "PyTorch",
        "numpy_version": "NumPy",
        "python_version": "Python",
    }
    own = {
        "version": by["version"],
        "monai_version": monai.__version__,
        "pytorch_version": by["pytorch"],
        "numpy_version": np.__version__,
        "python_version": platform.python_version(),
    }
    rows = [
        {"part": said, "results": found.facts.get(key, "–"), "report": own[key]}
        for key, said in names.items()
    ]
    machines = dict.fromkeys(
        machine for training in found.trainings if (machine := training.length.get("machine"))
    )
    rows.append({"part": "machine", "results": few(list(machines)) or "–", "report": by["machine"]})
    return rows


def _older(found: Found, by: Mapping[str, str]) -> str:
    """What is told of a recipe of another version."""
    version = found.facts.get("version")
    if version is None or version == by["version"]:
        return ""
    return (
        f"The weights were trained by version {version}, and this report is made by {by['version']}: what "
        "later versions write beside weights may be missing here."
    )


def _data_told(found: Found) -> Sequence[str]:
    about = found.data.about
    told = []
    if found.data.folder is None:
        return [
            "Where the data lie is not written beside these results: --dataset_dir says it, and adds cases."
        ]
    told.append(f"{about.get('name', 'Data')}, in {found.data.folder}.")
    told += [str(about[key]) for key in ("description", "reference", "release") if about.get(key)]
    licence = about.get("licence") or about.get("license")
    told.append(
        f"Licence: {licence}."
        if licence
        else "No licence is named beside them: what may be done with these data must be known from elsewhere."
    )
    return told
