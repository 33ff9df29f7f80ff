"""What is in each case of a data set, read once while it is checked, and remembered in `fingerprint.json`.

Intensities of each channel (in the foreground, in the body, in the background and in all of it), how dark the
picture is, components and widths of classes, contacts of objects: what `bundle.data.plan` decides by. And how
well labels fit the edges of their images, as they lie and mirrored.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, combinations
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from scipy import ndimage

from scripts.data.checks import Facts, Problem, inspect_cases
from scripts.data.grids import Grid
from scripts.data.remembered import CODE, case_hash
from scripts.errors import InputError
from scripts.files import read_json, sha256
from scripts.labels import IGNORE_NAME
from scripts.transforms.sparse import far_from_foreground

FILE = "fingerprint.json"

#: Voxels of a case whose intensities are looked at, evenly spread; of a larger one every second, third, ...
SAMPLED = 1_000_000

#: Of a larger case no components are counted and no widths measured: it would take minutes.
MEASURED = 1 << 25

#: Digits of what is written down.
DIGITS = 6

#: Percentiles of intensities.
PERCENTILES = (0.5, 50, 99.5)

#: Places along each axis, at most, at which a label is held against its image; voxels to what lies beside.
EDGES, BESIDE = 2000, 4

#: Mirrored labels are said to fit better from so many cases on, where this share of them say so, by a mean of
#: so many standard errors; the image then changes at their edges so much more than beside them (logarithm),
#: and at those of the labels as they lie not half of that more.
FLIPPED_CASES, FLIPPED_SHARE, FLIPPED_ERRORS, FLIPPED_FIT = 4, 0.9, 3.5, 0.1

Inspected = tuple[list[Problem], Facts | None]


def read_fingerprints(
    cases: Sequence[Mapping[str, Any]],
    folder: Path,
    *,
    spatial_dims: int,
    in_channels: int,
    labels: Mapping[str, int] | None,
    instances: bool,
) -> tuple[list[Inspected], dict[str, Any]]:
    """`inspect_cases`, with what is in each case; a sound case that has not changed is not read again.

    Args:
        cases: see `scripts.data.checks`, as are those not named here.
        folder: holds `fingerprint.json`, or will.

    Returns:
        Problems and facts of each case, in their order, and what belongs into the file.
    """
    settings: dict[str, Any] = {
        "spatial_dims": spatial_dims,
        "in_channels": in_channels,
        "labels": dict(labels) if labels else None,
        "instances": instances,
    }
    rules = [*map(sha256, [*CODE, Path(__file__)]), settings]
    known = _read(folder / FILE)
    keys = [case_hash(case, folder, rules) for case in cases]
    new = [case for case, key in zip(cases, keys, strict=True) if key not in known]
    ignored = (labels or {}).get(IGNORE_NAME)

    def look(channels: Sequence[np.ndarray], label: np.ndarray, grid: Grid) -> dict[str, Any]:
        return look_at(channels, label, grid, instances, ignored)

    read = iter(inspect_cases(new, **settings, look=look))
    inspected = [([], known[key]) if key in known else next(read) for key in keys]
    held = {
        str(case["case"]): {"key": key, **_written(facts)}
        for case, key, (problems, facts) in zip(cases, keys, inspected, strict=True)
        if facts is not None and not problems
    }
    about = "what is in each case, by which `python -m bundle plan` decides; it may be deleted at any time"
    return inspected, {"about": about, "cases": held}


def look_at(
    channels: Sequence[np.ndarray],
    label: np.ndarray,
    grid: Grid,
    instances: bool = False,
    ignored: int | None = None,
) -> dict[str, Any]:
    """What is in a case.

    Args:
        channels: of its files, each (*spatial, channel).
        label: whole numbers, (*spatial).
        grid: where it lies.
        instances: the label numbers objects.
        ignored: the value of what nobody annotated.

    Returns:
        "channels": for each "foreground", "body" (what is not 0), "background" and "whole" with "mean",
        "std", "percentiles" (PERCENTILES) and "voxels" (that were looked at), None where there are none;
        "zero" (the share of exactly 0), "whole_numbers"; "axes", of a volume, where they lead, such as "LPS";
        "components" and "widths", of classes; "far", where they are sparse, the voxels that cannot be
        foreground (see `scripts.transforms.sparse`); "touching", of objects; "fit", see `edge_fit`.
    """
    known = label if ignored is None else label[label != ignored]
    background = int(known.min()) if known.size else 0
    step = -(-label.size // SAMPLED)
    flat = label.reshape(-1)[::step]
    annotated = flat != ignored if ignored is not None else np.ones(flat.shape, bool)
    inside = (flat != (0 if instances else background)) & annotated
    found: dict[str, Any] = {"channels": []}
    for file in channels:
        for channel in np.moveaxis(file, -1, 0):
            values = channel.reshape(-1)[::step].astype(np.float64)
            found["channels"].append(
                {
                    "foreground": _intensities(values[inside]),
                    "body": _intensities(values[values != 0]),
                    "background": _intensities(values[~inside & annotated]),
                    "whole": _intensities(values),
                    "zero": _short(np.mean(values == 0)),
                    "whole_numbers": bool((values == np.round(values)).all()),
                }
            )
    if grid.affine is not None and len(grid.shape) == 3:
        found["axes"] = "".join(nib.aff2axcodes(grid.affine))
    if label.size > MEASURED:
        return found
    order = grid.canonical_axes()
    fit = edge_fit(channels[0], label, ignored)
    found["fit"] = {"".join(sorted(str(order[axis]) for axis in axes)): _short(x) for axes, x in fit.items()}
    if instances:
        return found | {"touching": touching(np.where(label == ignored, 0, label))}
    there = label != ignored
    if not there.all():
        away = far_from_foreground(there & (label != background), there, grid.spacing)
        found["far"] = int(away.sum())
    return found | _classes(label, background, ignored)


def edge_fit(
    image: np.ndarray, label: np.ndarray, ignored: int | None = None
) -> dict[tuple[int, ...], float]:
    """How well a label fits the edges of its image, as it lies and mirrored.

    Args:
        image: (*spatial, channel).
        label: whole numbers, (*spatial).
        ignored: the value of what nobody annotated.

    Returns:
        For each set of axes that the label is mirrored along, () for none, the logarithm of how much more the
        image changes from voxel to voxel where the label does than a few voxels beside: 0 for no fit at all.
        Nothing where the label has no edge, or the image none there.
    """
    pairs = list(_edges(label, ignored))
    if not pairs:
        return {}
    ends = np.array(label.shape)[:, None] - 1
    here, there = (np.concatenate(side, axis=1) for side in zip(*pairs, strict=True))
    beside = [
        sign * max(min(BESIDE, size // 4), 1) * np.eye(label.ndim, dtype=int)[axis]
        for axis, size in enumerate(label.shape)
        for sign in (-1, 1)
    ]

    def change(mirrored: np.ndarray, shift: np.ndarray) -> float:
        """The mean difference of the image over all pairs of voxels that lie within it."""
        one, other = (np.where(mirrored, ends - side, side) + shift[:, None] for side in (here, there))
        inside = ((one >= 0) & (one <= ends) & (other >= 0) & (other <= ends)).all(axis=0)
        values = (image[tuple(side[:, inside])].astype(float) for side in (one, other))
        return float(np.abs(np.subtract(*values)).mean()) if inside.any() else np.nan

    fit = {}
    axes = range(label.ndim)
    for chosen in chain.from_iterable(combinations(axes, number) for number in range(label.ndim + 1)):
        mirrored = np.isin(axes, chosen)[:, None]
        at = change(mirrored, np.zeros(label.ndim, int))
        around = np.nanmean([change(mirrored, shift) for shift in beside])
        if not (at > 0 and around > 0):
            return {}
        fit[chosen] = float(np.log(at / around))
    return fit


def _edges(label: np.ndarray, ignored: int | None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Places of neighbours that differ, (axes, places) each, evenly chosen among those along each axis."""
    for axis in range(label.ndim):
        first, second = (np.moveaxis(label, axis, 0)[part] for part in (np.s_[:-1], np.s_[1:]))
        differ = first != second
        if ignored is not None:
            differ &= (first != ignored) & (second != ignored)
        places = np.flatnonzero(differ)
        if places.size:
            found = np.unravel_index(places[:: -(-places.size // EDGES)], differ.shape)
            here = np.stack([*found[1 : axis + 1], found[0], *found[axis + 1 :]])
            step = np.zeros((label.ndim, 1), int)
            step[axis] = 1
            yield here, here + step


def flipped(facts: Sequence[Facts]) -> str | None:
    """A sentence if the labels of most cases fit their images distinctly better mirrored; see `edge_fit`.

    Args:
        facts: of all cases, with what `look_at` found.
    """
    fits = [case.found["fit"] for case in facts if case.found.get("fit")]
    if len(fits) < FLIPPED_CASES:
        return None
    means = {axes: float(np.mean([fit[axes] for fit in fits])) for axes in fits[0]}
    best = max(means, key=means.__getitem__)
    gains = np.array([fit[best] - fit[""] for fit in fits])
    error = gains.std(ddof=1) / len(gains) ** 0.5
    if (
        means[best] < FLIPPED_FIT
        or means[""] > means[best] / 2
        or np.mean(gains > 0) < FLIPPED_SHARE
        or gains.mean() < FLIPPED_ERRORS * error
    ):
        return None
    many = "axes " if len(best) > 1 else "axis "
    return (
        f"the labels look flipped along {many}{' and '.join(best)}: mirrored, {np.sum(gains > 0)} of "
        f"{len(gains)} fit the edges of their images better; look at an image with its label, and write the "
        "labels on the grid of their images"
    )


def touching(instances: np.ndarray) -> int:
    """How many objects have a pixel or voxel that borders on another object, along an axis or a diagonal.

    Args:
        instances: (*spatial), 0 background.
    """
    counted = np.where(instances > 0, instances, instances.max(initial=0))
    met = (instances > 0) & (ndimage.minimum_filter(counted, 3) != ndimage.maximum_filter(instances, 3))
    return len(np.unique(instances[met]))


def _classes(label: np.ndarray, background: int, ignored: int | None) -> dict[str, Any]:
    """The components of each class but the background, and in pictures how wide each class is, in pixels.

    The mean distance to the outside is a quarter of the width of a long strip, and a sixth of the diameter of
    a disk: four times as much says how wide what is thin is.
    """
    components, widths = {}, {}
    for value in map(int, np.unique(label)):
        if value == ignored:
            continue
        own = label == value
        if value != background:
            box = ndimage.find_objects(own.astype(np.uint8))[0]
            components[str(value)] = int(ndimage.label(own[box])[1])
        if label.ndim == 2 and not own.all():
            widths[str(value)] = _short(4 * ndimage.distance_transform_edt(own)[own].mean())
    return {"components": components, "widths": widths}


def _intensities(values: np.ndarray) -> dict[str, Any] | None:
    if not values.size:
        return None
    return {
        "mean": _short(values.mean()),
        "std": _short(values.std()),
        "percentiles": [_short(value) for value in np.percentile(values, PERCENTILES)],
        "voxels": int(values.size),
    }


def _short(value: float | np.floating) -> float:
    return float(f"{value:.{DIGITS}g}")


def _written(facts: Facts) -> dict[str, Any]:
    return {"shape": facts.shape, "spacing": facts.spacing, "voxels": facts.voxels, "found": facts.found}


def _read(path: Path) -> dict[str, Facts]:
    """Facts by the hash of their case; nothing of a file that is missing or not to be read."""
    try:
        cases = read_json(path)["cases"].values()
        return {
            case["key"]: Facts(
                tuple(case["shape"]),
                tuple(case["spacing"]) if case["spacing"] else None,
                {int(value): count for value, count in case["voxels"].items()},
                case["found"],
            )
            for case in cases
        }
    except (InputError, AttributeError, KeyError, TypeError, ValueError):
        return {}
