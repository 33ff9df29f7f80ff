"""Left and right in the names of classes, which a mirror image turns wrong."""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from monai.transforms import RandAxisFlipd, RandFlipd
from monai.utils import ensure_tuple

from scripts.errors import few

logger = logging.getLogger(__name__)

#: The spatial axis from left to right: of volumes in RAS orientation, and of pictures.
LEFT_RIGHT = 0

#: Words for left and right, each a word of its own in the name of a class.
SIDE_WORDS = frozenset(
    (
        *("left", "right", "sinister", "sinistra", "sinistrum", "dexter", "dextra", "dextrum"),  # and Latin
        *("links", "linke", "linker", "linkes", "rechts", "rechte", "rechter", "rechtes"),  # German, Dutch
        *("gauche", "droit", "droite", "izquierdo", "izquierda", "derecho", "derecha"),  # French, Spanish
        *("sinistro", "destro", "destra", "esquerdo", "esquerda", "direito", "direita"),  # Italian, Portug.
    )
)

#: Abbreviations of them, which count where a class has the same name with the other side.
SIDE_LETTERS = (("l", "r"), ("lt", "rt"), ("lh", "rh"), ("li", "re"), ("sin", "dx"), ("sin", "dex"))

_CAMEL = re.compile("(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")  # lung|Left, L|Kidney
_WORD = re.compile(r"[^\W_]+")


def sided_names(labels: Iterable[str]) -> list[str]:
    """The names of classes that say left or right: what a mirror image shows has another name.

    Args:
        labels: names, such as "kidney_left", "Left-Hippocampus", "lungR" beside "lungL".

    Returns:
        Those with one of SIDE_WORDS, or of SIDE_LETTERS with its counterpart, in their order.
    """
    words = {name: tuple(word.lower() for word in _WORD.findall(_CAMEL.sub(" ", name))) for name in labels}
    swap: dict[str, set[str]] = defaultdict(set)
    for left, right in SIDE_LETTERS:
        swap[left].add(right)
        swap[right].add(left)
    known = set(words.values())

    def is_sided(parts: tuple[str, ...]) -> bool:
        return any(
            part.strip("0123456789") in SIDE_WORDS  # but the L1 of a vertebra is no left
            or any((*parts[:place], other, *parts[place + 1 :]) in known for other in swap.get(part, ()))
            for place, part in enumerate(parts)
        )

    return [name for name, parts in words.items() if is_sided(parts)]


def warn_of_mirrored_sides(augment: Sequence[Any], labels: Mapping[str, int]) -> None:
    """Say so if images are mirrored from left to right while the names of classes say left or right.

    Args:
        augment: the random transforms of a training, MONAI's flips among them.
        labels: class name to value on disk.
    """
    sided = sided_names(labels)
    if sided and any(LEFT_RIGHT in _mirrored_axes(transform) for transform in augment):
        logger.warning(
            "%s say left or right, and the augmentation mirrors images from left to right without changing "
            'the names: train with --flip_axes "[]", or leave axis %d out of the flips of your overlay',
            few(sided),
            LEFT_RIGHT,
        )


def _mirrored_axes(transform: Any) -> Sequence[int]:
    """The spatial axes that a random transform flips."""
    if isinstance(transform, RandAxisFlipd):
        return (LEFT_RIGHT,)
    if isinstance(transform, RandFlipd):
        axes = transform.flipper.spatial_axis
        return (LEFT_RIGHT,) if axes is None else ensure_tuple(axes)
    return getattr(transform, "flip_axes", ())
