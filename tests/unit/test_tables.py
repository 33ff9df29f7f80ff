"""Plain tables."""

from __future__ import annotations

from scripts.tables import table


def test_names_stand_left_and_numbers_right() -> None:
    rows = [{"case": "a", "dice": 0.25, "n": 3}, {"case": "a long name", "dice": float("nan"), "n": None}]
    assert table(["case", "dice", "n"], rows).splitlines() == [
        "case           dice  n",
        "a            0.2500  3",
        "a long name       -  -",
    ]


def test_small_errors_are_shown() -> None:
    _, line = table(
        ("case", "v_rand", "warping_error"), [{"case": "a", "v_rand": 0.5, "warping_error": 0.00013}]
    ).splitlines()
    assert line.split() == ["a", "0.5000", "0.000130"]
