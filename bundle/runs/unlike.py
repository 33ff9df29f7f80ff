"""What `python -m bundle calibrate` learns of sound cases, so that each inference says what is unlike them.

The ranges are those of all of them: the numbers of an image also of images that the network was trained on,
those of a prediction of cases that it did not see. The limit comes from cases of folds that the ranges were
not learnt on. How many sound cases are flagged is measured on a fold that both left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
import typer
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from scipy.stats import binomtest

from scripts.data.cases import InferenceCases
from scripts.data.datalist import sections
from scripts.progress import progress
from scripts.recipe import for_inference
from scripts.review import conformal_quantile, features
from scripts.tables import Row
from scripts.unlike import LIMIT, OUTLINE, RANGES, Description, beyond_ranges, describe

#: How many sound cases are not to be flagged, and the fewest subjects for which that can be said.
LIKE, FEWEST_SOUND = 0.95, 20

#: Images of the training that ranges are learnt from too, at most.
IMAGES = 200


@dataclass(frozen=True)
class Sound:
    """A sound case that the network did not see.

    Attributes:
        case: its id.
        group: what is left out with it.
        description: of its image and prediction.
    """

    case: str
    group: int
    description: Description


class Inputs:
    """Images as an inference has them when it looks at them.

    Args:
        parser: the configs of the training.
    """

    def __init__(self, parser: ConfigParser) -> None:
        self.preprocessing = ConfigParser(for_inference(parser.get())).get_parsed_content("preprocessing")
        self.places = [parser.get_parsed_content(key) for key in ("dataset_dir", "fold", "seed")]

    def describe(
        self, case: Mapping[str, Any], prediction: MetaTensor | None = None, names: Sequence[str] = ()
    ) -> Description:
        """A case.

        Args:
            case: with "image".
            prediction: probabilities on the grid of the file, (classes, *spatial).
            names: of the classes, the background first.
        """
        image = self.preprocessing({"image": case["image"]})["image"]
        return describe(image, prediction, names, () if prediction is None else features(prediction.numpy()))

    def of_training(self, but: Set[str], done: InferenceCases) -> list[Description]:
        """Images of the training, IMAGES at most, evenly chosen.

        Args:
            but: ids of cases that are not to be among them.
            done: gets those that cannot be read.
        """
        cases = [case for case in sections(*self.places)["training"] if case["case"] not in but]
        found = []
        for case in progress(cases[:: -(-len(cases) // IMAGES) or 1], "images"):
            with done.attempt(case):
                found.append(self.describe(case))
        return found


def learn_ranges(descriptions: Sequence[Description]) -> tuple[dict[str, list[float]], np.ndarray]:
    """The lowest and the highest of each number, in the order of their names, and the mean outline."""
    outline = np.asarray(np.mean([each.outline for each in descriptions], axis=0, dtype=np.float64)).round(3)
    held: dict[str, list[float]] = {}
    for each in descriptions:
        for name, value in each.with_fit(outline).items():
            held.setdefault(name, []).append(value)
    return {name: [_short(min(held[name])), _short(max(held[name]))] for name in sorted(held)}, outline


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def farthest(description: Description, ranges: Mapping[str, Sequence[float]], outline: np.ndarray) -> float:
    """How far a case lies beyond the worst of some ranges."""
    return max(beyond_ranges(description.with_fit(outline), ranges).values())


def learn_fingerprint(sound: Sequence[Sound], images: Sequence[Description]) -> dict[str, Any] | None:
    """What `review` has under "fingerprint"; None of too few cases or a single group.

    Args:
        sound: cases that the network did not see.
        images: of others, without predictions.
    """
    groups = sorted({each.group for each in sound})
    if len(groups) < 2:
        return None
    apart = []
    for group in groups:
        known = learn_ranges([*(each.description for each in sound if each.group != group), *images])
        apart += [farthest(each.description, *known) for each in sound if each.group == group]
    limit = conformal_quantile(apart, LIKE)
    if limit is None:
        return None
    ranges, outline = learn_ranges([*(each.description for each in sound), *images])
    return {LIMIT: _short(limit + 5e-4), OUTLINE: outline.ravel().tolist(), RANGES: ranges}


def flagged(sound: Sequence[Sound], images: Sequence[Description]) -> dict[str, bool]:
    """Whether each sound case is flagged by what was learnt without its fold; nothing of too few others."""
    found = {}
    for group in sorted({each.group for each in sound}):
        learnt = learn_fingerprint([each for each in sound if each.group != group], images)
        for each in sound if learnt else ():
            if each.group == group:
                outline = np.array(learnt[OUTLINE]).reshape(each.description.outline.shape)  # type: ignore[index]
                found[each.case] = farthest(each.description, learnt[RANGES], outline) > learnt[LIMIT]  # type: ignore[index]
    return found


def summarise_flagged(found: Mapping[str, bool]) -> Row:
    """How many sound cases are flagged, of how many, and the exact 95 % binomial interval of that share."""
    ends = binomtest(sum(found.values()), len(found)).proportion_ci() if found else None
    return {
        "flagged": sum(found.values()),
        "cases": len(found),
        "low": float(ends.low) if ends else float("nan"),
        "high": float(ends.high) if ends else float("nan"),
    }


def tell_flagged(row: Row, images: int) -> None:
    """Print how many sound cases are flagged."""
    if row["cases"]:
        typer.echo(
            f"\nUnlike the others: {row['flagged']} of {row['cases']} sound cases, each by what was learnt "
            f"without its fold (95 % binomial interval {row['low']:.3f} to {row['high']:.3f}, made for "
            f"{1 - LIKE:.0%} at most); ranges of images are those of {images} cases of the training too."
        )
    else:
        typer.echo(
            "\nHow many sound cases are unlike the others is not known: too few are left without a fold."
        )
