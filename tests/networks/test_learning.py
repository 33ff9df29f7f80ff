"""What the demo promises, on volumes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.workflows.test_learning import check_beats_thresholding

pytestmark = pytest.mark.workflow


def test_network_beats_thresholding(tmp_path: Path) -> None:
    check_beats_thresholding("phantom_organ", tmp_path)
