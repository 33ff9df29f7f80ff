"""Names and values of labels."""

from __future__ import annotations

import pytest

from scripts.errors import InputError
from scripts.labels import MAX_UNNAMED, name_values, parse_labels, turned_classes


def test_labels_keep_their_order() -> None:
    parsed = parse_labels(["cell=3", " outer ring = 0", "ignore=255"])
    assert list(parsed.items()) == [("cell", 3), ("outer ring", 0), ("ignore", 255)]
    assert list(parse_labels(["a=0", "wall/left (outer)=1"])) == ["a", "wall/left (outer)"]


@pytest.mark.parametrize(
    "text", ["cell", "cell=x", "cell=-1", "=1 a=2", "a=1", "a=1 a=2", "a=1 b=1", "a=0 ignore=1", "a=0,b=1"]
)
def test_what_makes_no_classes_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=f"--label_name {text.split()[0]}"):
        parse_labels(text.split())


def test_values_without_names() -> None:
    assert name_values({7, 0, 3}, "") == {"background": 0, "label1": 3, "label2": 7}
    with pytest.raises(InputError, match=r"hold the value 5 everywhere.*annotate something"):
        name_values({5}, "name them")
    with pytest.raises(InputError, match=f"hold {MAX_UNNAMED + 1} different value.*; name them.$"):
        name_values(range(MAX_UNNAMED + 1), "name them")


def test_directions_by_hand_in_a_turned_image() -> None:
    names = ["background", "lower_0", "higher_0", "lower_1", "higher_1"]
    assert turned_classes(names, []) == [0, 1, 2, 3, 4]
    assert turned_classes(names, [1]) == [0, 1, 2, 4, 3]
    assert turned_classes(names, [], transposed=True) == [0, 3, 4, 1, 2]
    assert turned_classes(names, [0], transposed=True) == [0, 3, 4, 2, 1]  # what lay along 1 is mirrored
    assert turned_classes(["background", "cell"], [0, 1], transposed=True) == [0, 1]
    with pytest.raises(InputError, match="labels has lower_0, which is higher_0 in a turned image"):
        turned_classes(["background", "lower_0"], [0])


def test_rays_by_hand_in_a_turned_image() -> None:
    names = ["background", *(f"star_ray_{k}" for k in range(8))]
    assert turned_classes(names, []) == list(range(9))
    assert turned_classes(names, [0]) == [0, 1, 8, 7, 6, 5, 4, 3, 2]  # right stays, down is up
    assert turned_classes(names, [1]) == [0, 5, 4, 3, 2, 1, 8, 7, 6]
    assert turned_classes(names, [], transposed=True) == [0, 3, 2, 1, 8, 7, 6, 5, 4]  # right is down
    assert turned_classes(names, [0], transposed=True) == [0, 7, 8, 1, 2, 3, 4, 5, 6]
    with pytest.raises(InputError, match="a multiple of 4 rays from star_ray_0 on"):
        turned_classes(names[:-2], [], transposed=True)
    with pytest.raises(InputError, match="labels has star_ray_4, which is star_ray_0 in a turned image"):
        turned_classes(names[2:6], [0])
