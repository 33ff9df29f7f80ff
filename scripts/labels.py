"""What label values mean: values declared on disk, class indices in the network, what nobody annotated."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from scripts.errors import InputError

#: Class index of voxels that nobody annotated: loss and metrics leave them out. Classes are 0 to 254.
IGNORE_LABEL = 255

#: Name under which a task's ``labels`` may declare the value of unannotated voxels on disk.
IGNORE_NAME = "ignore"

#: Number of what nobody annotated beside numbered objects, once they are loaded: 255 may be one of them.
UNKNOWN_OBJECT = -1

#: More values than this are no classes that somebody forgot to name.
MAX_UNNAMED = 64

#: How far from a whole number a label value may lie: by rounding, as with a slope of 1/255 in float32.
WHOLE_TOLERANCE = 1e-3

#: The largest value of a class: float32, in which labels are resampled, holds every whole number up to it.
LARGEST_VALUE = 2**24

#: Names of classes that say in which direction something lies: at lower or at higher indices of an axis.
DIRECTION = re.compile(r"(lower|higher)_([0-2])")

#: Names of classes that say how far it is along a ray: of n of them, number k leaves at the angle 2 pi k / n
#: from the second axis towards the first.
RAY = re.compile(r"star_ray_(0|[1-9][0-9]*)")

#: Classes before those of the rays: background, interior and border.
BEFORE_RAYS = 3

#: A distance of so many pixels is as probable as the interior: those of objects that fit a patch are less so.
RAY_UNIT = 1000.0

#: Integer types of label maps, in the order in which they are tried.
LABEL_TYPES = (np.uint8, np.uint16, np.int32, np.int64)


def parse_labels(pairs: Sequence[str]) -> dict[str, int]:
    """Names and values from a command line, `["background=0", "cell=255"]`, in their order.

    Raises:
        InputError: no name=value pairs, a name or value twice, or fewer than two classes.
    """
    given = " --label_name ".join(["", *pairs]).strip()
    parts = [[part.strip() for part in pair.rpartition("=")] for pair in pairs]
    if not all(re.fullmatch(r"[^=,]+", name) and number.isdecimal() for name, _, number in parts):
        raise InputError(
            f"{given} is not understood: give name=value pairs with whole numbers, "
            "--label_name background=0 --label_name cell=255"
        )
    labels = {name: int(number) for name, _, number in parts}
    if not len(pairs) == len(labels) == len(set(labels.values())) or len(class_names(labels)) < 2:
        raise InputError(f"{given} has a name or value twice or fewer than two classes: name each class once")
    return labels


def name_values(values: Collection[int], fix: str, ignored: int | None = None) -> dict[str, int]:
    """Names for values that nobody named: the lowest is the background.

    Args:
        values: all that the labels hold.
        fix: how to name them, for messages.
        ignored: the value among them of what nobody annotated, or None.

    Raises:
        InputError: fewer than 2 or more than MAX_UNNAMED.
    """
    values = set(values) - {ignored}
    if len(values) == 1:
        where = "everywhere" if ignored is None else f"wherever they do not hold {ignored}, that of --ignore"
        raise InputError(
            f"the labels hold the value {min(values)} {where}; classes are 2 to {MAX_UNNAMED} values; "
            "annotate something in them, or name other label files."
        )
    if not 2 <= len(values) <= MAX_UNNAMED:
        raise InputError(
            f"the labels hold {len(values)} different value(s); classes are 2 to {MAX_UNNAMED} values; {fix}."
        )
    names = {f"label{index}" if index else "background": value for index, value in enumerate(sorted(values))}
    return names if ignored is None else {**names, IGNORE_NAME: ignored}


def with_ignored(labels: Mapping[str, int], value: int | None) -> dict[str, int]:
    """The classes, and beside them the value of what nobody annotated, where there is one.

    Args:
        labels: name to value; empty where nobody named them.
        value: as `--ignore` says; None: as ``labels`` says, if at all.

    Raises:
        InputError: a negative value, one that has another name, or another one under IGNORE_NAME.
    """
    if value is None:
        return dict(labels)
    if value < 0:
        raise InputError(f"--ignore is {value}; label values are whole numbers of 0 or more; correct it.")
    for name, own in labels.items():
        if (name == IGNORE_NAME) != (own == value):
            raise InputError(
                f"--ignore is {value}, and the labels have {name}={own}; a value is a class, or that of what "
                "nobody annotated; drop one of the two."
            )
    return {**labels, IGNORE_NAME: value}


def class_names(labels: dict[str, int]) -> list[str]:
    """Names of the classes in the order of their indices (the order of ``labels``, without "ignore")."""
    return [name for name in labels if name != IGNORE_NAME]


def class_values(labels: dict[str, int]) -> list[int]:
    """Values on disk of the classes in the order of their indices.

    Raises:
        InputError: one above LARGEST_VALUE.
    """
    for name, value in labels.items():
        if value > LARGEST_VALUE:
            raise InputError(
                f"labels has {name} = {value}; the value of a class is at most {LARGEST_VALUE} (2^24); "
                "give it a smaller one, in the label files too"
            )
    return [labels[name] for name in class_names(labels)]


def count_classes(labels: dict[str, int]) -> int:
    """Number of classes, background included: the network's ``out_channels``."""
    return len(class_names(labels))


def turned_classes(names: Sequence[str], flips: Collection[int], transposed: bool = False) -> list[int]:
    """Where an image that was turned shows each class: itself, but for a DIRECTION or a RAY.

    Args:
        names: of all classes, in their order.
        flips: spatial axes that were mirrored.
        transposed: whether the first two spatial axes were exchanged, before they were mirrored.

    Returns:
        For each class the index of the one that a network finds in the turned image.

    Raises:
        InputError: a direction whose opposite, or other axis, no class has; rays that are no
            multiple of 4, or not numbered from 0 on.
    """
    found = []
    rays = sum(RAY.fullmatch(name) is not None for name in names)
    for name in names:
        shown = name
        if said := DIRECTION.fullmatch(name):
            side, axis = said[1], int(said[2])
            axis = 1 - axis if transposed and axis < 2 else axis
            opposite = {"lower": "higher", "higher": "lower"}[side]
            shown = f"{opposite if axis in flips else side}_{axis}"
        elif said := RAY.fullmatch(name):
            shown = f"star_ray_{_turned_ray(int(said[1]), rays, flips, transposed)}"
        if shown not in names:
            raise InputError(
                f"labels has {name}, which is {shown} in a turned image: name both directions of each axis, "
                "and a multiple of 4 rays from star_ray_0 on"
            )
        found.append(list(names).index(shown))
    return found


def _turned_ray(number: int, rays: int, flips: Collection[int], transposed: bool) -> int | float:
    """Where a ray points in an image that was turned, see `turned_classes`; a fraction where no ray does."""
    quarter = rays / 4
    place = quarter - number if transposed else number
    place = -place if 0 in flips else place
    place = 2 * quarter - place if 1 in flips else place
    place %= rays
    return int(place) if place == int(place) else place


def nearest_whole(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The integers nearest to label values, and the values that are none.

    Args:
        values: numbers of any shape and type.

    Returns:
        Integers of the same shape; and, ascending, the different values further than WHOLE_TOLERANCE from
        the nearest integer, or that int64 does not hold.
    """
    values = np.asarray(values)
    if values.dtype == bool:
        return values.astype(np.int32), values[:0].ravel()
    if np.issubdtype(values.dtype, np.integer):
        return values, values[:0].ravel()
    with np.errstate(invalid="ignore"):
        nearest = np.rint(values)
        broken = ~((np.abs(values - nearest) <= WHOLE_TOLERANCE) & (np.abs(values) < 2.0**63))
        return nearest.astype(np.int64), np.unique(values[broken])


def show_value(value: float) -> str:
    """A label value with the digits that tell it from a whole number."""
    return np.format_float_positional(value, precision=4, trim="-")


def whole_numbers(values: np.ndarray, name: str) -> np.ndarray:
    """The values as integers from 0, to within WHOLE_TOLERANCE.

    Args:
        values: numbers of any shape and type.
        name: what they are of, for messages.

    Raises:
        InputError: any fraction or negative number.
    """
    whole, broken = nearest_whole(values)
    if broken.size:
        raise InputError(f"{name} holds the value {show_value(broken[0])}: give whole numbers from 0")
    if whole.size and whole.min() < 0:
        raise InputError(f"{name} holds the value {whole.min()}: give whole numbers from 0")
    return whole


def label_type(labels: np.ndarray) -> type[np.integer]:
    """The first of LABEL_TYPES that holds every value of an integer array."""
    low, high = int(labels.min()), int(labels.max())
    return next(t for t in LABEL_TYPES if np.iinfo(t).min <= low and high <= np.iinfo(t).max)
