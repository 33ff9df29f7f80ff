"""Whether an image, and what a network makes of it, look like those that it was learnt from.

Numbers with a meaning are taken of the image as the network sees it, of its header and of the prediction, see
MEASURES. A fingerprint holds the range of each over sound cases. How far a case lies beyond the worst of its
ranges, as a share of that range, is one number, `beyond`; from held-out sound cases comes how large that may
be (split conformal prediction, see `scripts.review`), so that the false alarms of all measures together are
few. `python -m bundle calibrate` learns it, into the `review` of a recipe.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations, product
from typing import Any

import nibabel as nib
import numpy as np
from monai.data import MetaTensor
from monai.utils import MetaKeys
from scipy import ndimage
from skimage.measure import label as components

from scripts.calibration import is_number
from scripts.errors import InputError

#: Content of a fingerprint.
LIMIT, RANGES, OUTLINE = "limit", "ranges", "outline"

#: Voxels of an image that are looked at, of a larger one evenly spread lines.
LOOKED_AT = 1 << 22

#: Percentiles of intensities.
PERCENTILES = (1, 25, 50, 75, 99)

#: An outline has so many blocks along each axis.
BLOCKS = 5

#: What is less than this counts as nothing: of changes as a share of the standard deviation.
NOTHING = 1e-3

#: Sentences that are told of a case, of different measures.
TOLD = 3

#: An image is said to be turned where, turned back, it fits the outline as sound images do, where these do at
#: all, and by so much more correlation than as it lies.
FITS, BETTER = 0.5, 0.2

#: The first, second and third axis of the body.
DIRECTIONS = ("left-right", "back-front", "foot-head")


@dataclass(frozen=True)
class Measure:
    """A number of a case.

    Attributes:
        text: what it is, for a sentence, with {where}.
        below: what it may mean where it is too small.
        above: the same, too large.
        floor: the least width of a range, in the unit of the measure, of the logarithm where there is one.
        log: ranges are those of its logarithm.
    """

    text: str
    below: str
    above: str
    floor: float
    log: bool = False

    def scaled(self, value: float) -> float:
        """The value, or its logarithm."""
        return math.log(max(value, 1e-6)) if self.log else value


_TURNED = "it may be flipped or turned, or show something else"
_GREY = "it may be inverted, clipped, padded or of another modality"
_PLANES = "its slices lie another way, or the header may be wrong"
_HEADER = "the header may be wrong, or it was sampled otherwise"
_UNSURE = "the network is less sure than it should be"

#: Of a header and an image, by what stands before the colon in the name of a number; behind it stands where.
OF_IMAGE: dict[str, Measure] = {
    "spacing": Measure("the size of a voxel along {where}, in mm,", _HEADER, _HEADER, 0.1, log=True),
    "axes": Measure("the direction of {where} of the file", _PLANES, _PLANES, 0.1),
    "size": Measure(
        "the length along {where}, in mm or pixels,",
        "it may be cropped",
        "it may be padded, or of a wrong spacing",
        0.1,
        log=True,
    ),
    "percentile": Measure("the {where} percentile of the intensities", _GREY, _GREY, 0.1),
    "darkest": Measure("the share that is darkest{where}", _GREY, "it may be empty, padded or clipped", 0.01),
    "brightest": Measure("the share that is brightest{where}", _GREY, "it may be clipped or empty", 0.01),
    "flat": Measure(
        "the share of neighbours that are alike along {where}",
        "it may be noisy",
        "it may be padded or clipped, or slices may be missing or repeated",
        0.01,
    ),
    "jagged": Measure(
        "the change to the next voxel over that to the one after next along {where}",
        "it may be blurred, or sampled from fewer slices",
        "it may be noisy, or slices may be missing",
        0.02,
    ),
    "change": Measure(
        "the change along {where}", "it may be blurred", "it may be noisy or ghosted", 0.1, True
    ),
    "noise": Measure("the noise along {where}", "it may be blurred", "it may be noisy", 0.1, True),
    "jump": Measure(
        "the largest change from slice to slice along {where}",
        _TURNED,
        "slices may be missing, or it may be padded",
        0.1,
        True,
    ),
    "still": Measure(
        "the smallest change from slice to slice along {where}",
        "slices may be repeated, or it may be padded",
        "it may be noisy",
        0.1,
        True,
    ),
    "comb": Measure(
        "how far every so many lines of its spectrum stand out along {where}", "", "it may be ghosted", 0.1
    ),
    "outline": Measure("how well it fits the outline of all, as a correlation{where},", _TURNED, "", 0.1),
}

#: Of a prediction, which follow from what is wrong with an image.
OF_PREDICTION: dict[str, Measure] = {
    "expected_dice": Measure("the Dice expected of {where}", _UNSURE, "it is too easy to be true", 0.02),
    "border_entropy": Measure("the doubt at the border of {where}", "it is too easy", _UNSURE, 0.02),
    "largest_piece": Measure("the share of the largest piece of {where}", "it is in pieces", "", 0.02),
    "log_ratio": Measure("expected over found {where}, as a logarithm,", _UNSURE, _UNSURE, 0.02),
    "volume": Measure(
        "the volume of {where}, in mL or as a share of the picture,",
        "nothing or too little is found",
        "too much is found",
        0.1,
        True,
    ),
    "pieces": Measure(
        "the number of pieces of {where}", "too few are found", "too many are found", 0.7, True
    ),
    "place": Measure("the place of {where}, as a share of the image,", _TURNED, _TURNED, 0.05),
    "extent": Measure("the standard deviation of {where}, in mm or pixels,", _TURNED, _TURNED, 0.1, True),
    "offset": Measure("how far from each other, in mm or pixels, lie {where}", _TURNED, _TURNED, 1.0),
}

MEASURES = OF_IMAGE | OF_PREDICTION


@dataclass(frozen=True)
class Description:
    """What is known of a case.

    Attributes:
        numbers: by "measure: where", see MEASURES, in a unit of theirs.
        outline: see `outline_of`.
    """

    numbers: Mapping[str, float]
    outline: np.ndarray

    def with_fit(self, outline: np.ndarray) -> dict[str, float]:
        """The numbers, and how well its outline fits another."""
        return {**self.numbers, "outline: ": float((self.outline * _unit(outline)).sum())}


def describe(
    image: MetaTensor,
    prediction: MetaTensor | None = None,
    names: Sequence[str] = (),
    told: Sequence[Mapping[str, float]] = (),
) -> Description:
    """The numbers and the outline of a case.

    Args:
        image: after the preprocessing, (C, *spatial).
        prediction: probabilities on the grid of the file, (classes, *spatial); None for those of the image.
        names: of the classes, the background first.
        told: of each class what `scripts.review.features` says of the prediction.
    """
    values = np.asarray(image.as_tensor().cpu(), dtype=np.float32)
    found = _of_grid(image)
    for number, channel in enumerate(values):
        of = f", channel {number}" if len(values) > 1 else ""
        found |= {f"{name}{of}": value for name, value in _of_channel(channel).items()}
    if prediction is not None:
        found |= _of_prediction(image, prediction, names, told)
    return Description(
        {name: float(f"{value:.5g}") for name, value in found.items()}, outline_of(values.mean(0))
    )


def outline_of(values: np.ndarray) -> np.ndarray:
    """The means of BLOCKS blocks along each axis, (BLOCKS, ...), less their mean, of length 1 or 0.

    Args:
        values: (*spatial); a shorter axis has some of its slices in several blocks.
    """
    for axis in range(values.ndim):
        long = np.repeat(values, -(-BLOCKS // values.shape[axis]), axis)
        values = np.stack([part.mean(axis) for part in np.array_split(long, BLOCKS, axis)], axis)
    return _unit(values - values.mean())


def _unit(values: np.ndarray) -> np.ndarray:
    return values / max(float(np.linalg.norm(values)), 1e-6)


def _of_grid(image: MetaTensor) -> dict[str, float]:
    """Of the header of a volume, and how long the image is."""
    dims = image.ndim - 1
    edges = image.pixdim.tolist()[:dims] if dims == 3 else [1.0] * dims
    found = {
        f"size: axis {axis}": size * edge
        for axis, (size, edge) in enumerate(zip(image.shape[1:], edges, strict=True))
    }
    affine = np.asarray(image.meta.get(MetaKeys.ORIGINAL_AFFINE, image.affine), dtype=np.float64)
    if dims < 3 or affine.shape != (4, 4):
        return found
    own = nib.orientations.io_orientation(affine)
    order = nib.orientations.ornt_transform(own, nib.orientations.io_orientation(np.asarray(image.affine)))
    spacing = nib.affines.voxel_sizes(affine)
    for axis in range(dims):
        found[f"spacing: axis {int(order[axis, 0])}"] = float(spacing[axis])
        # which end comes first is a custom of the format: DICOM's is not that of most NIfTI files
        found[f"axes: axis {axis}"] = float(own[axis, 0])
    return found


def _of_channel(values: np.ndarray) -> dict[str, float]:
    """Of one channel, (*spatial)."""
    some = values.reshape(-1)[:: -(-values.size // LOOKED_AT)]
    mean, deviation = float(some.mean()), max(float(some.std()), 1e-12)
    near = NOTHING * deviation
    found = {
        f"percentile: {part}": float(value)
        for part, value in zip(PERCENTILES, np.percentile(some, PERCENTILES), strict=True)
    }
    found["darkest: "] = float((some <= some.min() + near / 10).mean())
    found["brightest: "] = float((some >= some.max() - near / 10).mean())
    for axis, size in enumerate(values.shape):
        lines = (_lines(values, axis) - mean) / deviation  # (size, lines)
        name = f"axis {axis}"
        if size < 4:
            continue
        step, two = np.abs(np.diff(lines, axis=0)), lines[2:] - lines[:-2]
        found[f"flat: {name}"] = float((step < NOTHING / 10).mean())
        change = float((step**2).mean())
        found[f"jagged: {name}"] = change / max(float((two**2).mean()), 1e-9)
        found[f"change: {name}"] = math.sqrt(change) + NOTHING
        found[f"noise: {name}"] = float(np.median(np.abs(np.diff(step, axis=0)))) + NOTHING
        slices = step.mean(1) + NOTHING
        found[f"jump: {name}"] = float(slices.max() / np.median(slices))
        found[f"still: {name}"] = float(slices.min() / np.median(slices))
        found[f"comb: {name}"] = _comb((np.abs(np.fft.rfft(lines, axis=0)) ** 2).mean(1))
    return found


def _lines(values: np.ndarray, axis: int) -> np.ndarray:
    """Lines along an axis, (size, lines); of a large image evenly spread ones."""
    moved = np.moveaxis(values, axis, 0)
    apart = math.ceil((values.size / LOOKED_AT) ** (1 / (values.ndim - 1)))
    return moved[(slice(None), *[slice(None, None, apart)] * (values.ndim - 1))].reshape(len(moved), -1)


def _comb(power: np.ndarray) -> float:
    """How far every second, third ... seventh line of a spectrum stands out from its neighbours: ghosts."""
    logs = np.log(power[1:] + 1e-9)
    if len(logs) < 8:
        return 0.0
    rest = logs - ndimage.median_filter(logs, 5, mode="nearest")
    places = np.arange(1, len(logs) + 1)
    teeth = [places % every == 0 for every in range(2, 8)]
    return max(float(abs(rest[tooth].mean() - rest[~tooth].mean())) for tooth in teeth if tooth.sum() > 1)


def _of_prediction(
    image: MetaTensor, prediction: MetaTensor, names: Sequence[str], told: Sequence[Mapping[str, float]]
) -> dict[str, float]:
    """Of probabilities, the axes turned as those of the image; see `describe`."""
    values = np.asarray(prediction.as_tensor().cpu(), dtype=np.float32)
    dims = values.ndim - 1
    edges = [1.0] * dims
    if dims == 3:
        own, there = (
            nib.orientations.io_orientation(np.asarray(tensor.affine)) for tensor in (prediction, image)
        )
        turn = nib.orientations.ornt_transform(own, there)
        values = np.moveaxis(nib.orientations.apply_orientation(np.moveaxis(values, 0, -1), turn), -1, 0)
        order = np.argsort(turn[:, 0])
        edges = [prediction.pixdim.tolist()[axis] for axis in order]
    unit = math.prod(edges) / 1000 if dims == 3 else 1 / values[0].size
    best = values.argmax(0)
    found: dict[str, float] = {}
    middles: dict[str, list[float]] = {}
    for index, (name, of_class) in enumerate(zip(names, told, strict=True)):
        kept = ("expected_dice", "border_entropy", "largest_piece", "log_ratio")
        found |= {f"{kind}: {name}": of_class[kind] for kind in (kept if index else kept[1:2])}
        if not index:
            continue
        mask = best == index
        voxels = int(mask.sum())
        found[f"volume: {name}"] = voxels * unit
        boxes = ndimage.find_objects(mask.astype(np.uint8))
        found[f"pieces: {name}"] = float(components(mask[boxes[0]]).max()) if boxes else 0.5
        if not voxels:
            continue
        middles[name] = []
        for axis, edge in enumerate(edges):
            share = mask.sum(tuple(other for other in range(dims) if other != axis)) / voxels
            places = np.arange(len(share)) + 0.5
            middle = float(share @ places)
            found[f"place: {name}, axis {axis}"] = middle / len(share)
            found[f"extent: {name}, axis {axis}"] = (
                math.sqrt(float(share @ (places - middle) ** 2) + 1 / 12) * edge
            )
            middles[name].append(middle * edge)
    for number, (one, place) in enumerate(middles.items()):
        for other in list(middles)[:number]:
            for axis, (here, there) in enumerate(zip(place, middles[other], strict=True)):
                found[f"offset: {other} and {one}, axis {axis}"] = here - there
    return found


def beyond_ranges(found: Mapping[str, float], ranges: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """How far each number lies beyond its range, as a share of that; below 0 inside.

    Args:
        found: see `describe`; what no range is of, or what is not there, counts for nothing.
        ranges: lowest and highest by name.
    """
    result = {}
    for name, ends in ranges.items():
        if name in found:
            measure = MEASURES[name.partition(":")[0]]
            value, low, high = (measure.scaled(number) for number in (found[name], *ends))
            result[name] = max(low - value, value - high) / max(high - low, measure.floor)
    return result


def read_outline(fingerprint: Mapping[str, Any], dims: int) -> np.ndarray:
    """The outline of a fingerprint, (BLOCKS, ...)."""
    return np.array(fingerprint[OUTLINE], dtype=np.float64).reshape((BLOCKS,) * dims)


def judge(description: Description, fingerprint: Mapping[str, Any]) -> tuple[float, list[str]]:
    """Whether a case is unlike those learnt from.

    Args:
        description: of it.
        fingerprint: see `require_fingerprint`.

    Returns:
        How far it lies beyond the worst range, as a share of that, and where this is above the limit what is
        unlike, a sentence each, those of the image first, the worst first.
    """
    outline = read_outline(fingerprint, description.outline.ndim)
    found, ranges = description.with_fit(outline), fingerprint[RANGES]
    beyond = beyond_ranges(found, ranges)
    worst: dict[str, str] = {}
    for name in sorted(beyond, key=lambda name: (name.partition(":")[0] in OF_PREDICTION, -beyond[name])):
        if beyond[name] > fingerprint[LIMIT]:
            worst.setdefault(name.partition(":")[0], name)
    told = [sentence(name, found[name], ranges[name]) for name in list(worst.values())[:TOLD]]
    rest = len(worst) - len(told)
    told += [f"{rest} more such number{'s' if rest > 1 else ''}"] if rest > 0 else []
    turned = looks_turned(description.outline, outline, ranges["outline: "][0]) if worst else ""
    return max(beyond.values()), [turned, *told] if turned else told


def sentence(name: str, value: float, ends: Sequence[float]) -> str:
    """What a number beyond its range says."""
    kind, _, where = name.partition(": ")
    measure = MEASURES[kind]
    low, high = ends
    meaning = measure.below if measure.scaled(value) < measure.scaled(low) else measure.above
    shown = [_direction(number) if kind == "axes" else f"{number:.3g}" for number in (value, low, high)]
    text = measure.text.format(where=where)
    learnt = f"{shown[1]} to {shown[2]}" if shown[1] != shown[2] else shown[1]
    return f"{text} is {shown[0]}, and {learnt} in the cases learnt from: {meaning}"


def _direction(value: float) -> str:
    """The name of an axis of the body."""
    return DIRECTIONS[int(value)]


def looks_turned(found: np.ndarray, learnt: np.ndarray, least: float) -> str:
    """A sentence where an image fits the outline of the others only flipped or rotated; else nothing.

    Args:
        found: outline of the image, (BLOCKS, ...).
        learnt: that of the others, the same shape.
        least: the lowest correlation of those.
    """
    if least < FITS:
        return ""
    learnt = _unit(learnt)
    axes = range(found.ndim)
    fits = {
        (order, signs): float(
            (np.flip(found.transpose(order), tuple(a for a in axes if signs[a])) * learnt).sum()
        )
        for order in permutations(axes)
        for signs in product((False, True), repeat=found.ndim)
    }
    order, signs = max(fits, key=fits.__getitem__)
    as_is = fits[tuple(axes), (False,) * found.ndim]
    if fits[order, signs] < least or fits[order, signs] < as_is + BETTER:
        return ""
    moved = [str(axis) for axis in axes if order[axis] != axis]
    how = (
        f"rotated in the plane of axes {' and '.join(moved)}"
        if len(moved) == 2
        else "turned, all axes with each other"
        if moved
        else f"flipped along axis {' and '.join(str(axis) for axis in axes if signs[axis])}"
    )
    return (
        f"the image looks {how}: turned back it fits the outline of the others by {fits[order, signs]:.2f}, "
        f"as it lies by {as_is:.2f}"
    )


def require_fingerprint(fingerprint: Any) -> None:
    """Refuse a fingerprint that was not learnt.

    Args:
        fingerprint: LIMIT, the largest `beyond` of a case like those learnt from; RANGES, lowest and highest
            by the names of `describe`; OUTLINE, the mean of all, a list in the order of C.

    Raises:
        InputError: it is something else.
    """
    fix = "give what python -m bundle calibrate wrote for these weights, or leave it out"
    if not isinstance(fingerprint, Mapping) or set(fingerprint) != {LIMIT, RANGES, OUTLINE}:
        raise InputError(f"review::fingerprint has not {LIMIT}, {RANGES} and {OUTLINE}: {fix}")
    ranges, outline = fingerprint[RANGES], fingerprint[OUTLINE]
    sound = isinstance(ranges, Mapping) and all(
        str(name).partition(":")[0] in MEASURES
        and isinstance(ends, list)
        and len(ends) == 2
        and all(map(is_number, ends))
        for name, ends in ranges.items()
    )
    numbers = isinstance(outline, list) and all(map(is_number, outline))
    if not sound or "outline: " not in ranges or not numbers or not is_number(fingerprint[LIMIT]):
        raise InputError(f"review::fingerprint holds what is no range of a number: {fix}")
    if len(outline) not in (BLOCKS**2, BLOCKS**3):
        raise InputError(f"review::fingerprint::{OUTLINE} has {len(outline)} numbers: {fix}")
