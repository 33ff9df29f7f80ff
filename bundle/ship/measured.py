"""What was measured of a network, from a summary.json, for those who get it: figures and what is not known.

Such a file is one of an evaluation or of `score`, with the mean of each score, or one of `crossval`, with
intervals, calibration, predicted Dice and groups as well. What leaves the house names no case.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bundle.runs.groups import summary_of_groups
from bundle.runs.trainings import IS_OF_CROSSVAL
from scripts.errors import InputError
from scripts.files import read_json
from scripts.judging.reliability import MEASURES
from scripts.judging.tables import OVERALL, read_means
from scripts.tables import Row, number

#: Lists of scores in a summary.json of `crossval`, those that tell the most first, and what they are of.
JUDGED = {
    "testing": "held out from all folds, judged by the mean of all networks",
    IS_OF_CROSSVAL: "each judged by the network that did not see it; the epoch of that was chosen on them",
}

#: Where nothing says it, in a table and as a sentence.
NOT_STATED, NOTHING = "not stated", "Not stated."


def read_measured(path: Path | None) -> Row:
    """Content of a summary.json without the names of cases, with the groups beside it; empty without one.

    Raises:
        InputError: another file.
    """
    if path is None:
        return {}
    content: Row = without_cases(read_json(path))
    if IS_OF_CROSSVAL not in content:
        read_means(path)
        content |= summary_of_groups(path.parent, path.with_name("scores.csv"))
    elif not all(_is_list_of_scores(content[name]) for name in JUDGED if name in content):
        raise InputError(
            f"{path} has no scores with a mean: name the summary.json of crossval as it was written"
        )
    return content


def _is_list_of_scores(rows: Any) -> bool:
    wanted = {"class", "score", "mean", "low", "high", "cases", "subjects"}
    return (
        isinstance(rows, list)
        and bool(rows)
        and all(isinstance(row, dict) and wanted <= row.keys() for row in rows)
    )


def without_cases(content: Any) -> Any:
    """Content of JSON without what is under "case"."""
    if isinstance(content, dict):
        return {key: without_cases(value) for key, value in content.items() if key != "case"}
    return [without_cases(value) for value in content] if isinstance(content, list) else content


def means_of(content: Mapping[str, Any]) -> dict[str, float]:
    """The mean of each score over all classes, of held-out cases where there are some."""
    name = next((name for name in JUDGED if name in content), "")
    if name:
        found = {row["score"]: row["mean"] for row in content[name]}  # the mean over all classes is last
    else:
        entries = content.get("summary", [])
        found = {row["score"]: row["mean"] for row in entries if row["class"] == OVERALL}
    return {score: mean for score, mean in found.items() if mean is not None}


def performance(content: Mapping[str, Any]) -> Iterator[str]:
    """Lines of a model card on how good it is, with intervals where they are known."""
    names = [name for name in JUDGED if name in content]
    for name in names:
        cases, subjects = (max(row[key] for row in content[name]) for key in ("cases", "subjects"))
        yield from (f"{cases} cases of {subjects} subjects, {JUDGED[name]}:", "")
        yield from (*_scores(content[name]), "")
    if not names and content:
        rows = [
            row for row in content["summary"] if row["class"] == OVERALL or row["score"] == _first(content)
        ]
        yield from ("Means over the cases that were judged:", "", *_scores(rows), "")
    if not content:
        yield from (NOTHING, "")
    yield "### Worst cases"
    yield ""
    yield from (_table(content["worst"]) if content.get("worst") else _least(content))
    yield ""


def _first(content: Mapping[str, Any]) -> str:
    """The score that counts."""
    return next((str(row["score"]) for row in content.get("summary", [])), "")


def _scores(rows: Sequence[Row]) -> Iterator[str]:
    """Means as a table; an interval that is not known is said to be not stated."""
    yield from ("| score | mean | 95 % interval | class | cases |", "|---|---|---|---|---|")
    for row in (row for row in rows if row["mean"] is not None):
        ends = [number(row["score"], row[end]) for end in ("low", "high") if row.get(end) is not None]
        between = " to ".join(ends) or NOT_STATED
        name = "all" if row["class"] == OVERALL else row["class"]
        cases = row.get("cases", NOT_STATED)
        yield f"| {row['score']} | {number(row['score'], row['mean'])} | {between} | {name} | {cases} |"


def _least(content: Mapping[str, Any]) -> list[str]:
    """The least and the most of the score that counts, where no worst cases are listed."""
    score = _first(content)
    for row in content.get("summary", []):
        if row["class"] == OVERALL and row["score"] == score and row.get("min") is not None:
            least, most = (number(score, row[key]) for key in ("min", "max"))
            return [f"The {score} of a case is {least} at least and {most} at most."]
    return [NOTHING]


def _table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Rows as a table in Markdown."""
    columns = list(rows[0])
    lines = [
        columns,
        ["---"] * len(columns),
        *([_cell(name, row.get(name)) for name in columns] for row in rows),
    ]
    return [f"| {' | '.join(line)} |" for line in lines]


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "-"
    text = number(name, value) if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")


def calibration(content: Mapping[str, Any]) -> Iterator[str]:
    """Lines on whether probabilities mean what they say, on the predicted Dice and on unlike images."""
    yield from ("### Calibration", "")
    facts = content.get("calibration")
    if not facts:
        yield NOTHING
    else:
        used = "is used" if facts["helps"] else "is not used, as it made nothing better"
        yield (
            f"Learnt on {facts['cases']} cases of {facts['subjects']} subjects: "
            f"`{json.dumps(facts['calibration'])}`, which {used}. "
            "Errors of probabilities (0 is best) of folds that it was not learnt on:"
        )
        rows = [
            {"where": row["region"], "measure": MEASURES.get(row["measure"], row["measure"])}
            | {when: _with_ends(row, when) for when in ("before", "after")}
            for row in facts["measures"]
        ]
        yield from ("", *_table(rows))
    yield from ("", "### Predicted Dice", "")
    if content.get("review"):
        yield "How often the true Dice lay in its interval (within) and the margin covered it (covered):"
        yield from ("", *_table(content["review"]))
    else:
        yield NOTHING
    yield from ("", "### Images unlike those of the training", "")
    if unlike := content.get("unlike"):
        yield (
            f"Of {unlike['cases']} sound cases {unlike['flagged']} are taken for unlike the others "
            f"(95 % binomial interval {unlike['low']:.3f} to {unlike['high']:.3f})."
        )
    else:
        yield NOTHING
    yield ""


def _with_ends(row: Mapping[str, Any], when: str) -> str:
    mean, low, high = (row.get(key) for key in (when, f"{when}_low", f"{when}_high"))
    if mean is None:
        return "-"
    return f"{mean:.4f}" + ("" if None in (low, high) else f" ({low:.4f} to {high:.4f})")


def groups(content: Mapping[str, Any]) -> Iterator[str]:
    """Lines on the groups of cases."""
    yield from ("### Groups", "")
    facts = content.get("groups")
    if facts:
        for sentence in facts["told"]:
            yield from (sentence, "")
        rows = [
            row for each in facts["attributes"] for row in each["groups"] if row["class"] == facts["class"]
        ]
        keep = ("attribute", "group", "score", "mean", "low", "high", "cases", "subjects")
        yield from _table([{key: row[key] for key in keep} for row in rows])
    else:
        yield NOTHING
    yield ""


def not_known(content: Mapping[str, Any], limits: Sequence[str]) -> Iterator[str]:
    """Points on what these figures do not say, and the limits that a card names."""
    if not content:
        yield "How good it is: not stated."
    elif "testing" not in content and IS_OF_CROSSVAL in content:
        yield "How good it is on cases that were used for nothing: none were held out."
    elif IS_OF_CROSSVAL not in content:
        yield "How far chance moves the means: intervals are not stated."
    if "calibration" not in content:
        yield "Whether its probabilities mean what they say: not stated."
    if "unlike" not in content:
        yield "How often it warns of images unlike those of the training: not stated."
    if "review" not in content:
        yield "Which of its results are good without a look at the truth: not stated."
    if "groups" not in content:
        yield "Whether it is better for some groups of cases than for others: not stated."
    yield "How good it is on images of another kind, place or device than those that were judged."
    yield from limits
