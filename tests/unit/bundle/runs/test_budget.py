"""Minutes as steps, and steps as epochs."""

from __future__ import annotations

from bundle.runs.budget import FEWEST, MOST, whole_epochs


def test_epochs_make_as_many_steps_as_fit() -> None:
    for steps in (*range(1, 1200), 4999, 123_457):
        epochs, length = whole_epochs(steps)
        assert min(FEWEST, steps) <= epochs <= MOST
        lost = steps - epochs * length
        assert 0 <= lost <= steps / 60
        assert lost <= steps / 150 or steps < 1000
