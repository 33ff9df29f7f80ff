"""`python -m bundle groups`: is a network better for some groups of cases than for others?

Scores of cases that were judged before are held against attributes of these cases, such as site, scanner, sex
or age: the mean of each group with a bootstrap interval over its subjects, and how far the best and the worst
group lie apart. Whether that is more than chance is asked by a permutation test (Fisher, 1935): the values of
the attribute are dealt out anew among the subjects, each with all its cases, and how often groups lie as far
apart then is counted. Several attributes are several chances to find something, for which p is raised after
Holm, 1979.
"""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import typer
from matplotlib.figure import Figure

from bundle.data.attributes import (
    CASE,
    OPTION,
    SUBJECT,
    attributes_of,
    is_stated,
    read_case_table,
    require_column,
)
from bundle.runs.compare import LEVEL, SEED, holm, interval, read_scores
from bundle.runs.trainings import IS_OF_CROSSVAL, SHOWN, SUMMARY, warn
from scripts.data.names import composed
from scripts.errors import InputError, few
from scripts.files import read_json, sha256, write_csv, write_json
from scripts.judging.tables import OVERALL, mean_of, plain
from scripts.pictures import save_figure
from scripts.tables import Row, number, table, with_interval

#: What it writes.
TABLE, FACTS, PICTURE = "groups.csv", "groups.json", "groups.png"

#: Tables of scored cases in a folder, those that say the most first: of auto, crossval, an evaluation.
SCORED = ("crossval/crossval.csv", "crossval.csv", "scores.csv")

#: Columns of such a table that are neither scores nor attributes.
CLASS = "class"

#: Groups of cases that belong to none: nothing is stated, or the images of a subject differ in it.
NOT_STATED, SEVERAL = "not stated", "several"

#: Subjects of a group, below which it is too small to tell.
FEWEST_SUBJECTS = 5

#: Different numbers of an attribute, above which it needs bands.
MOST_NUMBERS = 10

#: Draws of the permutation test, the numbers that are held in memory for it, and what chance exceeds in one
#: of 20 draws.
PERMUTATIONS, HELD, CHANCE = 9_999, 2_000_000, 0.95


@dataclass(frozen=True)
class Scored:
    """Cases that were judged.

    Attributes:
        file: their table.
        score: that is compared.
        name: of the class that is compared, OVERALL for the mean over all of a case.
        classes: name to case and score, OVERALL last; of a single class that one is left out.
        subjects: case to whom it is of.
    """

    file: Path
    score: str
    name: str
    classes: Mapping[str, Mapping[str, float]]
    subjects: Mapping[str, str]

    @property
    def values(self) -> Mapping[str, float]:
        """What is compared, case by case."""
        return self.classes[self.name]


def groups(
    scores: Path,
    attributes: Path,
    output_dir: Path | None,
    attribute: list[str] | None,
    bands: list[str] | None,
    score: str | None,
    class_name: str | None,
) -> None:
    """Carry out `bundle.cli.groups`, whose arguments these are."""
    rows = read_case_table(attributes, OPTION)
    edges = read_bands(bands or ())
    for name in (*(attribute or ()), *edges):
        require_column(rows, name, attributes, "--attribute" if name in (attribute or ()) else "--bands")
    scored = read_scored(scores, score, class_name, rows, attributes)
    if not rows.keys() & scored.values.keys():
        raise InputError(
            f"{OPTION} {attributes} has no case of {scored.file}: {few(list(rows)) or 'none'} there, "
            f"{few(list(scored.values)) or 'none with a score'} here; use the ids of the cases."
        )
    names = list(dict.fromkeys(attribute or attributes_of(rows)))
    values = {name: values_of(rows, name, scored.values, edges.get(name), attributes) for name in names}
    if not values:
        raise InputError(f"{OPTION} {attributes} has no column beside {CASE!r}; add one for each attribute.")
    found, left = compare_groups(values, scored)
    if not found:
        raise InputError(f"{OPTION} {attributes}: {'; '.join(left)}; nothing is left to compare.")
    output_dir = output_dir or scored.file.parent
    listed = [row for each in found for row in each["groups"]]
    about: Row = {
        "of": sha256(scored.file),
        "score": scored.score,
        "class": scored.name,
        "cases": len(scored.values),
        "subjects": len({scored.subjects[case] for case in scored.values}),
        "attributes": found,
        "left_out": left,
        "told": [sentence for each in found for sentence in told(each, scored)],
    }
    write_csv(output_dir / TABLE, listed)
    draw(found, scored, output_dir / PICTURE)
    write_json(output_dir / FACTS, about)
    summary = output_dir / SUMMARY
    held = read_json(summary) if output_dir == scored.file.parent and summary.is_file() else {}
    if IS_OF_CROSSVAL in held:
        write_json(summary, {**held, **summary_of_groups(output_dir, scored.file)})
    for each in found:
        typer.echo(f"{groups_table(each, scored)}\n")
    for sentence in about["told"]:
        typer.echo(sentence)
    typer.echo(f"\nWrote {TABLE}, {FACTS} and {PICTURE} into {output_dir}")
    unscored = [case for case in rows if case not in scored.subjects]
    unlisted = [case for case in scored.values if case not in rows]
    for cases, what in (
        (unscored, "have no score and count nowhere"),
        (unlisted, f"are not in {attributes}"),
    ):
        if cases:
            warn(f"{len(cases)} case(s) {what}: {few(cases)}")
    for name, stated in values.items():
        if differing := differing_subjects(stated, scored.subjects):
            warn(f"{name} differs between images of {few(differing)}: a group of their own, without a test")
    for sentence in left:
        warn(f"{sentence}; it is left out")


def summary_of_groups(folder: Path, scores: Path) -> Row:
    """What a summary.json says of groups: content of groups.json, if it is of these scores, else nothing."""
    file = folder / FACTS
    content = read_json(file) if file.is_file() and scores.is_file() else {}
    return {"groups": content} if content and content.get("of") == sha256(scores) else {}


def read_scored(
    place: Path,
    score: str | None,
    name: str | None,
    rows: Mapping[str, Mapping[str, str]],
    attributes: Path,
) -> Scored:
    """Read cases that were judged.

    Args:
        place: a table as `score`, an evaluation or `crossval` write it, or a folder that has one.
        score: a column; None: the one that counts.
        name: of a class; None: the mean over all of a case.
        rows: of the table of attributes, which may name the subjects.
        attributes: that table, for messages.

    Raises:
        InputError: no such table, score or class, or two subjects for a case.
    """
    files = [file for part in SCORED if (file := place / part).is_file()] if place.is_dir() else [place]
    if not files or not files[0].is_file():
        raise InputError(
            f"--scores {place} has no {' or '.join(reversed(SCORED))}; it is what score, an evaluation or "
            "crossval wrote; correct it."
        )
    file = files[0]
    try:
        with file.open(encoding="utf-8", newline="") as opened:
            reader = csv.DictReader(opened)
            columns = list(reader.fieldnames or ())
            listed = [(row[CASE], row.get(SUBJECT)) for row in reader] if CASE in columns else []
        known = [each for each in columns if each not in (CASE, CLASS, SUBJECT, "fold")]
        score = score or next((shown[0] for shown in SHOWN.values() if shown[0] in known), None)
        if not listed or score not in known:
            what = f"no score {score!r}, but {few(known) or 'none'}" if listed else "no rows of cases"
            raise InputError(f"--scores {file} has {what}; name a table of scores, and its --score.")
        classes = read_scores(file, score)
    except (OSError, ValueError, TypeError, csv.Error) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"--scores {file} cannot be read ({reason}); name a table of scores.") from error
    if len(classes) == 2:  # the mean over one class
        del classes[OVERALL]
    compared = name or list(classes)[-1]
    if compared not in classes:
        raise InputError(
            f"--class {compared}: {file} has no such class, but {few(list(classes))}; correct it."
        )
    judged = {
        each: {composed(case): value for case, value in column.items() if not math.isnan(value)}
        for each, column in classes.items()
    }
    subjects: dict[str, str] = {}
    for case, subject in ((composed(case), subject) for case, subject in listed):
        other = rows.get(case, {}).get(SUBJECT)
        subject = None if subject == case else subject  # nobody said whose it is
        if subject and other and subject != other:
            raise InputError(
                f"{OPTION} {attributes} has the subject {other} for {case}, and {file} has {subject}; a case "
                "is of one; correct the table."
            )
        subjects[case] = subject or other or case
    return Scored(file, score, compared, judged, subjects)


def read_bands(texts: Sequence[str]) -> dict[str, list[float]]:
    """`["age=40,60"]` as `{"age": [40, 60]}`.

    Raises:
        InputError: another form, numbers that do not rise, or an attribute twice.
    """
    found: dict[str, list[float]] = {}
    for text in texts:
        name, _, given = text.rpartition("=")
        try:
            edges = [float(part) for part in given.split(",")]
        except ValueError:
            edges = []
        rising = all(map(math.isfinite, edges)) and edges == sorted(set(edges))
        if not name or not edges or not rising or name in found:
            raise InputError(
                f"--bands {text!r} is not understood; it is NAME=NUMBER,NUMBER, rising, each name once; an "
                "example is age=40,60."
            )
        found[name] = edges
    return found


def band_of(value: float, edges: Sequence[float]) -> str:
    """The band of a number: below the first edge, from one to below the next, or from the last one on."""
    place = int(np.searchsorted(edges, value, side="right"))
    if place == 0:
        return f"below {edges[0]:g}"
    if place == len(edges):
        return f"{edges[-1]:g} and more"
    return f"{edges[place - 1]:g} to below {edges[place]:g}"


def values_of(
    rows: Mapping[str, Mapping[str, str]],
    name: str,
    cases: Mapping[str, float],
    edges: Sequence[float] | None,
    path: Path,
) -> dict[str, str]:
    """What is stated of each case, NOT_STATED where nothing is; numbers in their bands, in rising order.

    Raises:
        InputError: bands of what is no number.
    """
    stated = {case: rows.get(case, {}).get(name, "") for case in cases}
    stated = {case: value if is_stated(value) else NOT_STATED for case, value in stated.items()}
    numbers = {case: _as_number(value) for case, value in stated.items() if value != NOT_STATED}
    if edges is None:
        return stated
    if wrong := [case for case, value in numbers.items() if value is None]:
        raise InputError(
            f"--bands {name}: {path} has {stated[wrong[0]]!r} for {wrong[0]}, which is no number; correct "
            "the table, or leave out the bands."
        )
    return {
        case: band_of(found, edges) if (found := numbers.get(case)) is not None else NOT_STATED
        for case in stated
    }


def _as_number(value: str) -> float | None:
    try:
        found = float(value)
    except ValueError:
        return None
    return found if math.isfinite(found) else None


def _in_order(names: Sequence[str]) -> list[str]:
    """Groups in the order of their numbers or of the alphabet, those that are none last."""

    def place(group: str) -> tuple[bool, bool, float, str]:
        parts = [found for part in group.split() if (found := _as_number(part)) is not None]
        number_ = (parts[0] - (group.startswith("below "))) if parts else math.inf
        return group in (NOT_STATED, SEVERAL), not parts, number_, group

    return sorted(set(names), key=place)


def differing_subjects(stated: Mapping[str, str], subjects: Mapping[str, str]) -> list[str]:
    """Subjects whose images differ in an attribute."""
    found: dict[str, set[str]] = {}
    for case, value in stated.items():
        if value != NOT_STATED:
            found.setdefault(subjects[case], set()).add(value)
    return [subject for subject, values in found.items() if len(values) > 1]


def compare_groups(
    values: Mapping[str, Mapping[str, str]], scored: Scored, permutations: int = PERMUTATIONS
) -> tuple[list[Row], list[str]]:
    """Hold the groups of each attribute against each other.

    Args:
        values: of each attribute and case, NOT_STATED where nothing is.
        scored: the cases.
        permutations: draws of each test.

    Returns:
        For each attribute that can be compared "attribute", "groups" (of `group_rows`), and "gap" between
        "highest" and "lowest" of the groups that are large enough, what it reaches by "chance", "p",
        "p_holm" and "differs", whether this is below LEVEL; None where there are not two such groups. And a
        sentence on each of the others.
    """
    found, left = [], []
    for name, stated in values.items():
        if reason := unusable(name, stated, scored.subjects):
            left.append(reason)
            continue
        differing = set(differing_subjects(stated, scored.subjects))
        of = {
            case: SEVERAL if value != NOT_STATED and scored.subjects[case] in differing else value
            for case, value in stated.items()
        }
        rows = group_rows(name, of, scored)
        row: Row = {"attribute": name, "groups": rows}
        found.append({**row, **largest_gap(rows, of, scored, permutations)})
    tested = [row for row in found if row["p"] is not None]
    for row, raised in zip(tested, holm([row["p"] for row in tested]), strict=True):
        row |= {"p_holm": raised, "differs": raised < LEVEL}
    return found, left


def unusable(name: str, stated: Mapping[str, str], subjects: Mapping[str, str]) -> str:
    """Why the values of an attribute make no groups; "" where they do."""
    known = [value for value in stated.values() if value != NOT_STATED]
    different = set(known)
    people = len({subjects[case] for case in stated})
    if len(different) < 2:
        told = f"one value, {known[0]}, alone" if known else "no value for any of these cases"
        return f"{name} has {told}"
    numbers = [found for value in known if (found := _as_number(value)) is not None]
    if len(numbers) == len(known) and len(different) > MOST_NUMBERS:
        thirds = [f"{float(f'{edge:.3g}'):g}" for edge in np.quantile(numbers, [1 / 3, 2 / 3])]
        return (
            f"{name} has {len(different)} different numbers, which need bands, such as --bands "
            f"{name}={','.join(dict.fromkeys(thirds))} for thirds"
        )
    if len(different) > max(people / 2, 2):
        return f"{name} has {len(different)} values for {people} subjects, which makes no groups"
    return ""


def group_rows(name: str, of: Mapping[str, str], scored: Scored) -> list[Row]:
    """The mean of each group and class with its interval over the subjects.

    Args:
        name: of the attribute.
        of: case to group.
        scored: the cases.

    Returns:
        Rows with "attribute", "group", "class", "score", "mean", "low" and "high" (None for one subject),
        "cases" and "subjects" that have the score, and "small", whether these are too few to tell.
    """
    rows = []
    for group in _in_order(list(of.values())):
        for each, column in scored.classes.items():
            cases = [case for case in of if of[case] == group and case in column]
            people = [scored.subjects[case] for case in cases]
            values = [column[case] for case in cases]
            low, high = interval(values, people) if len(set(people)) > 1 else (math.nan, math.nan)
            row: Row = {"attribute": name, "group": group, CLASS: each, "score": scored.score}
            row |= {"mean": mean_of(values), "low": low, "high": high, "cases": len(cases)}
            row |= {"subjects": len(set(people)), "small": len(set(people)) < FEWEST_SUBJECTS}
            rows.append(plain(row))
    return rows


def largest_gap(rows: Sequence[Row], of: Mapping[str, str], scored: Scored, permutations: int) -> Row:
    """How far the highest and the lowest of the groups that are large enough lie apart, and by chance.

    Args:
        rows: of `group_rows`.
        of: case to group.
        scored: the cases.
        permutations: draws.
    """
    means = {
        row["group"]: row["mean"]
        for row in rows
        if row[CLASS] == scored.name and not row["small"] and row["group"] not in (NOT_STATED, SEVERAL)
    }
    nothing: Row = dict.fromkeys(("gap", "highest", "lowest", "chance", "p", "p_holm", "differs"))
    if len(means) < 2:
        return nothing
    group_of: dict[str, int] = {}
    sums: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    places = list(means)
    for case, value in scored.values.items():
        if of[case] in means:
            subject = scored.subjects[case]
            group_of[subject] = places.index(of[case])
            sums[subject] += value  # type: ignore[assignment]
            counts[subject] += 1
    people = list(group_of)
    gaps = permuted_gaps(
        np.array([sums[each] for each in people], float),
        np.array([counts[each] for each in people], float),
        np.array([group_of[each] for each in people]),
        permutations,
    )
    highest, lowest = (pick(means, key=means.__getitem__) for pick in (max, min))
    gap = means[highest] - means[lowest]
    p = (1 + int((gaps >= gap - 1e-12).sum())) / (1 + permutations)
    chance = float(np.quantile(gaps, CHANCE))
    return {**nothing, "gap": gap, "highest": highest, "lowest": lowest, "chance": chance, "p": p}


def permuted_gaps(sums: np.ndarray, counts: np.ndarray, groups: np.ndarray, draws: int) -> np.ndarray:
    """The largest difference between means of groups whose members are drawn by chance.

    Args:
        sums: of the values of each subject, (subjects,).
        counts: of these values, (subjects,).
        groups: 0 to their number less one, (subjects,).
        draws: how many.

    Returns:
        (draws,).
    """
    rng = np.random.default_rng(SEED)
    found = []
    at_once = max(HELD // len(groups), 1)
    for begin in range(0, draws, at_once):
        drawn = rng.permuted(np.tile(groups, (min(at_once, draws - begin), 1)), axis=1)
        means = np.stack(
            [(drawn == group) @ sums / ((drawn == group) @ counts) for group in range(groups.max() + 1)]
        )
        found.append(np.ptp(means, axis=0))
    return np.concatenate(found)


def told(found: Row, scored: Scored) -> list[str]:
    """Sentences on the groups of an attribute, without the name of a case or subject.

    Args:
        found: of `compare_groups`.
        scored: the cases.
    """
    name, own = found["attribute"], _compared(found, scored)
    what = scored.score + ("" if scored.name == OVERALL else f" of {scored.name}")
    means = {row["group"]: number(scored.score, row["mean"]) for row in own if row["mean"] is not None}
    sentences = []
    if found["p"] is None:
        sentences.append(
            f"{name}: no two groups have {FEWEST_SUBJECTS} subjects, so that nothing can be said of a gap."
        )
    else:
        gap, chance = (number(scored.score, found[key]) for key in ("gap", "chance"))
        raised = "" if found["p_holm"] == found["p"] else f", {found['p_holm']:.2g} after Holm"
        verdict = (
            "The gap is more than chance."
            if found["differs"]
            else "The gap may be chance, which is no proof that there is none."
        )
        sentences.append(
            f"{name}: mean {what} is highest in {found['highest']} ({means[found['highest']]}) and lowest in "
            f"{found['lowest']} ({means[found['lowest']]}), {gap} apart; groups drawn by chance lie up to "
            f"{chance} apart in 95 of 100 draws (p = {found['p']:.2g}{raised}). {verdict}"
        )
    small = [row["group"] for row in own if row["small"] and row["group"] not in (NOT_STATED, SEVERAL)]
    if small and found["p"] is not None:
        sentences.append(
            f"{name}: fewer than {FEWEST_SUBJECTS} subjects are in {few(small)}, too few to tell."
        )
    for row in own:
        if row["group"] == NOT_STATED:
            sentences.append(f"{name}: not stated for {row['cases']} of {len(scored.values)} cases.")
        if row["group"] == SEVERAL:
            sentences.append(
                f"{name}: {row['subjects']} subject(s) have images that differ in it; they count in no group."
            )
    return sentences


def _compared(found: Row, scored: Scored) -> list[Row]:
    """The rows of what is compared, of those of an attribute."""
    return [row for row in found["groups"] if row[CLASS] == scored.name]


def groups_table(found: Row, scored: Scored) -> str:
    """A line for each group of an attribute: its size, and the mean of each class with its interval."""
    lines: dict[str, Row] = {}
    for row in found["groups"]:
        blank = {"cases": 0, "subjects": 0}
        line = lines.setdefault(row["group"], {found["attribute"]: row["group"], **blank})
        if row[CLASS] == scored.name:
            line |= {"cases": row["cases"], "subjects": row["subjects"]}
        of = "" if row[CLASS] == OVERALL else f" of {row[CLASS]}"
        line[f"{scored.score}{of} (95 %)"] = with_interval(scored.score, row["mean"], row["low"], row["high"])
        if row[CLASS] == scored.name:
            line[" "] = "too few to tell" if row["small"] else ""
    columns = list(next(iter(lines.values())))
    return table([*(name for name in columns if name != " "), " "], list(lines.values()))


def draw(found: Sequence[Row], scored: Scored, path: Path) -> None:
    """Save the groups: a panel for each attribute, in it a line for each group, from top to bottom.

    Args:
        found: of `compare_groups`.
        scored: the cases.
        path: the PNG to write.
    """
    sizes = [len(_compared(each, scored)) for each in found]
    figure = Figure(figsize=(7, 1 + sum(0.7 + 0.3 * size for size in sizes)), layout="constrained")
    axes = figure.subplots(len(found), 1, sharex=True, squeeze=False, height_ratios=[1 + s for s in sizes])
    everything = mean_of(list(scored.values.values()))
    for axis, each in zip(axes[:, 0], found, strict=True):
        own = _compared(each, scored)
        axis.axvline(everything, color="#999999", linewidth=1, linestyle="--")
        for line, row in enumerate(own):
            if row["mean"] is None:
                continue
            ends = (row["low"], row["high"])
            around = None if None in ends else [[abs(end - row["mean"])] for end in ends]
            colour = "#999999" if row["small"] or row["group"] in (NOT_STATED, SEVERAL) else "#0072b2"
            axis.errorbar(row["mean"], line, xerr=around, fmt="o", color=colour, capsize=3)
        axis.set_yticks(
            range(len(own)), [f"{row['group']} ({row['subjects']})" for row in own], parse_math=False
        )
        axis.set_ylim(len(own) - 0.5, -0.5)
        axis.grid(axis="x", alpha=0.3)
        p = "" if each["p_holm"] is None else f", p = {each['p_holm']:.2g}"
        axis.set_title(f"{each['attribute']}{p}", fontsize=10, loc="left", parse_math=False)
    axes[-1, 0].set_xlabel(scored.score + ("" if scored.name == OVERALL else f" of {scored.name}"))
    figure.suptitle(
        "mean and 95 % interval of each group (subjects); grey: too few, or no group; dashed: all cases",
        fontsize=9,
    )
    save_figure(figure, path)
