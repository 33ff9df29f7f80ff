"""What `python -m bundle calibrate` learns to say of a new case: a predicted Dice, its interval, a margin.

The regression is learnt on two thirds of the subjects, interval and margin on the others. How well that does
is measured on the fold that both left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import typer
from matplotlib.figure import Figure
from scipy.stats import binomtest

from scripts.labels import IGNORE_LABEL
from scripts.pictures import save_figure
from scripts.review import (
    CLASSES,
    COVERAGE,
    COVERED,
    FEATURES,
    conformal_quantile,
    features,
    margin_needed,
    predicted_dice,
)
from scripts.tables import Row, table

#: How often interval and margin are to hold, and how much of the truth a margin covers.
NOMINAL, SHARE = 0.9, 0.99

#: A review that predicts no class.
NOTHING: Row = {COVERAGE: NOMINAL, COVERED: SHARE, CLASSES: {}}

#: The share of the subjects that a regression is learnt on; fewer subjects leave too few others.
TAUGHT = 2 / 3
FEWEST_SUBJECTS = 30

#: Pulls the weights of a regression on standardised features towards 0.
RIDGE = 1.0

#: A case is to be looked at where its predicted Dice is among this share of the lowest.
LOOKED_AT = 0.1


@dataclass(frozen=True)
class Observed:
    """A class of a case.

    Attributes:
        case: its id.
        subject: whom it is of.
        group: what is left out with it.
        name: of the class.
        features: see `scripts.review.features`.
        dice: of the most probable class with the truth.
        margin: voxels that cover SHARE of the truth.
    """

    case: str
    subject: str
    group: int
    name: str
    features: Mapping[str, float]
    dice: float
    margin: float


def observe(
    case: str, subject: str, group: int, probabilities: np.ndarray, truth: np.ndarray, names: Sequence[str]
) -> list[Observed]:
    """The classes of a case, but those that are neither found nor true.

    Args:
        case: its id.
        subject: whom it is of.
        group: what is left out with it.
        probabilities: (classes, *spatial).
        truth: class indices, (*spatial), IGNORE_LABEL where nobody annotated.
        names: of the classes, the background first.
    """
    known, best = truth != IGNORE_LABEL, probabilities.argmax(0)
    told = features(probabilities)
    found = []
    for index, name in enumerate(names[1:], start=1):
        mask, true = best == index, truth == index
        both = int((mask & known).sum() + true.sum())
        if both:
            dice = 2 * int((mask & true).sum()) / both
            needed = margin_needed(mask, true, SHARE)
            found.append(Observed(case, subject, group, name, told[index], dice, needed))
    return found


def learn_class(observed: Sequence[Observed], seed: int) -> Row | None:
    """What `review` says of a class.

    Args:
        observed: the class of several cases.
        seed: of who teaches what.

    Returns:
        See `scripts.review.OF_A_CLASS`; None of too few subjects, or of what is not found in half of them.
    """
    people = np.random.default_rng(seed).permutation(sorted({each.subject for each in observed})).tolist()
    taught = set(people[: int(len(people) * TAUGHT)])
    learning = [each for each in observed if each.subject in taught]
    held = [each for each in observed if each.subject not in taught]
    found = [each for each in observed if each.features["log_voxels"] > 0]
    if len(learning) <= len(FEATURES) or len(found) < len(observed) / 2:
        return None
    values = np.array([[each.features[name] for name in FEATURES] for each in learning])
    dice = np.array([each.dice for each in learning])
    mean, deviation = values.mean(0), values.std(0)
    deviation[deviation < 1e-9] = 1
    scaled = (values - mean) / deviation
    solved = np.linalg.solve(
        scaled.T @ scaled + RIDGE * np.eye(len(FEATURES)), scaled.T @ (dice - dice.mean())
    )
    weights = solved / deviation
    learnt: Row = {
        "intercept": round(float(dice.mean() - weights @ mean), 6),
        "weights": {name: round(float(weight), 6) for name, weight in zip(FEATURES, weights, strict=True)},
        "ranges": {
            name: [round(float(low), 6), round(float(high), 6)]
            for name, low, high in zip(FEATURES, values.min(0), values.max(0), strict=True)
        },
    }
    predicted = [predicted_dice(each.features, learnt) for each in held]
    apart = [abs(each.dice - value) for each, value in zip(held, predicted, strict=True)]
    width = conformal_quantile(apart, NOMINAL)
    if width is None:
        return None
    margin = conformal_quantile([each.margin for each in held], NOMINAL)
    look_below = round(float(np.quantile(predicted, LOOKED_AT)), 6)
    return {**learnt, "half_width": round(width + 5e-7, 6), "margin": margin, "look_below": look_below}


def learn_review(observed: Sequence[Observed], seed: int) -> Row | None:
    """The value of the id `review`; None of too few subjects."""
    classes = {name: learn_class(held, seed) for name, held in _by_name(observed).items()}
    learnt = {name: found for name, found in classes.items() if found is not None}
    return {COVERAGE: NOMINAL, COVERED: SHARE, CLASSES: learnt} if learnt else None


def judged_rows(observed: Sequence[Observed], seed: int) -> list[Row]:
    """Each class of each case by what was learnt without its fold."""
    rows = []
    for name, held in _by_name(observed).items():
        for group in sorted({each.group for each in held}):
            learnt = learn_class([each for each in held if each.group != group], seed)
            for each in held if learnt else ():
                if each.group == group:
                    rows.append(_row(each, name, learnt))  # type: ignore[arg-type]
    return rows


def _row(each: Observed, name: str, learnt: Mapping[str, Any]) -> Row:
    value = predicted_dice(each.features, learnt)
    low, high = (
        float(end) for end in np.clip([value - learnt["half_width"], value + learnt["half_width"]], 0, 1)
    )
    margin = learnt["margin"]
    return {
        **{
            "case": each.case,
            "class": name,
            "fold": each.group,
            "predicted": value,
            "low": low,
            "high": high,
        },
        **{"dice": each.dice, "within": bool(low <= each.dice <= high), "margin": margin},
        **{"needed": each.margin, "covered": None if margin is None else bool(each.margin <= margin)},
    }


def summary_rows(rows: Sequence[Row]) -> list[Row]:
    """A row for each class: correlation of predicted and true Dice, how often interval and margin hold."""
    found = []
    for name in dict.fromkeys(row["class"] for row in rows):
        held = [row for row in rows if row["class"] == name]
        predicted, dice = (np.array([row[key] for row in held]) for key in ("predicted", "dice"))
        varies = len(held) > 1 and predicted.std() > 0 and dice.std() > 0
        row: Row = {"class": name, "cases": len(held), "dice": float(dice.mean())}
        row["correlation"] = float(np.corrcoef(predicted, dice)[0, 1]) if varies else float("nan")
        row["mean error"] = float(np.abs(predicted - dice).mean())
        row["mean width"] = float(np.mean([each["high"] - each["low"] for each in held]))
        row |= _share("within", [each["within"] for each in held])
        row |= _share("covered", [each["covered"] for each in held if each["covered"] is not None])
        found.append(row)
    return found


def _share(name: str, held: Sequence[bool]) -> Row:
    """A share and its exact 95 % binomial interval."""
    if not held:
        return {name: float("nan"), f"{name} low": float("nan"), f"{name} high": float("nan")}
    ends = binomtest(sum(held), len(held)).proportion_ci()
    return {name: sum(held) / len(held), f"{name} low": float(ends.low), f"{name} high": float(ends.high)}


def _by_name(observed: Sequence[Observed]) -> dict[str, list[Observed]]:
    found: dict[str, list[Observed]] = {}
    for each in observed:
        found.setdefault(each.name, []).append(each)
    return found


def tell_review(rows: Sequence[Row], review: Mapping[str, Any]) -> None:
    """Print what came out."""
    typer.echo("\nPredicted Dice of each fold, learnt on the others:\n")
    typer.echo(table(list(rows[0]), rows))
    typer.echo(
        f"\nwithin: the true Dice lies in the interval, made for {NOMINAL:.0%}; covered: the margin covers "
        f"{SHARE:.0%} of the truth, made for {NOMINAL:.0%}; low and high: 95 % binomial interval. "
        + "; ".join(
            f"{name}: half width {learnt['half_width']:.3f}, margin {_voxels(learnt['margin'])}"
            for name, learnt in review[CLASSES].items()
        )
    )


def _voxels(margin: float | None) -> str:
    return "none, as too often nothing is found" if margin is None else f"{margin:g} voxels"


def draw_review(rows: Sequence[Row], path: Path) -> None:
    """Save predicted against true Dice with intervals, a panel for each class.

    Args:
        rows: of `judged_rows`.
        path: the PNG to write.
    """
    names = list(dict.fromkeys(row["class"] for row in rows))
    figure = Figure(figsize=(4.6 * len(names), 4.8), layout="constrained")
    for axis, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        held = [row for row in rows if row["class"] == name]
        for within, colour in ((True, "#0072b2"), (False, "#d55e00")):
            some = [row for row in held if row["within"] == within]
            predicted = np.array([row["predicted"] for row in some])
            ends = np.array([[row["predicted"] - row["low"], row["high"] - row["predicted"]] for row in some])
            axis.errorbar(
                predicted,
                [row["dice"] for row in some],
                xerr=ends.T if len(some) else None,
                fmt="o",
                markersize=3,
                color=colour,
                elinewidth=0.4,
                alpha=0.7,
                label=f"{'inside' if within else 'outside'} its interval: {len(some)}",
            )
        axis.axline((0, 0), slope=1, color="#999999", linewidth=1, linestyle="--")
        lowest = min(min(row["dice"], row["low"]) for row in held)
        axis.set_xlim(max(lowest - 0.05, 0), 1)
        axis.set_ylim(max(lowest - 0.05, 0), 1)
        axis.set_xlabel("predicted Dice, with its interval")
        axis.set_title(name, fontsize=10)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8, loc="upper left")
    figure.axes[0].set_ylabel("true Dice")
    save_figure(figure, path)
