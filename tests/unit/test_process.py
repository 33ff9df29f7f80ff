"""What a run says of itself before anything takes time."""

from __future__ import annotations

import warnings

import pytest
import torch
from monai.transforms import Compose, LoadImage

from scripts.process import set_up
from tests.commands import unchanged_process


def test_a_run_says_that_it_starts(caplog: pytest.LogCaptureFixture) -> None:
    with unchanged_process(), caplog.at_level("INFO"):
        set_up(3)
    assert torch.initial_seed() == 3
    assert caplog.messages == [
        f"starting: PyTorch {torch.__version__} on {torch.get_num_threads()} threads, seed 3"
    ]


def test_nothing_is_said_of_a_reader_of_monai_that_reads_nothing_here(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """LoadImage makes all of them, whichever it is told to take."""
    with unchanged_process(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        set_up(3)
        caplog.clear()
        LoadImage(reader="scripts.data.ImageReader")
    assert [str(warning.message) for warning in caught] == []
    assert caplog.messages == []


def test_nothing_is_said_of_pictures_whose_grid_nothing_changes() -> None:
    with unchanged_process(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        set_up(3)
        Compose([]).inverse({"image": torch.zeros(1)})
    assert not caught
