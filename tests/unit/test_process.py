"""What a run says of itself before anything takes time."""

from __future__ import annotations

import pytest
import torch

from scripts.process import set_up
from tests.commands import unchanged_process


def test_a_run_says_that_it_starts(caplog: pytest.LogCaptureFixture) -> None:
    with unchanged_process(), caplog.at_level("INFO"):
        set_up(3)
    assert torch.initial_seed() == 3
    assert caplog.messages == [
        f"starting: PyTorch {torch.__version__} on {torch.get_num_threads()} threads, seed 3"
    ]
