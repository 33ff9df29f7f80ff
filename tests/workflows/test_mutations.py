"""A few of the mutations of `python -m tests.mutations`, at a seed of their own."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.commands import ROOT

pytestmark = [
    pytest.mark.workflow,
    pytest.mark.skipif(sys.platform != "linux", reason="it forks, and reads /proc"),
]

SEED, COUNT = 7, 22  # one of each kind


@pytest.mark.long
def test_a_few_broken_inputs_are_refused_or_done_rightly() -> None:
    """In a process of its own: one that runs tests has threads, which a fork would lose."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.mutations", f"--seed={SEED}", f"--count={COUNT}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{COUNT} mutations" in done.stdout
