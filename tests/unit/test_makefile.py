"""What `make env` would run."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from tests.commands import ROOT


@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
def test_pytorch_comes_first_from_an_index_that_is_named() -> None:
    def installs(*options: str) -> list[str]:
        command = ["make", "--dry-run", "--always-make", "env", *options]
        own = {key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "TORCH_INDEX")}
        done = subprocess.run(command, cwd=ROOT, env=own, capture_output=True, text=True, check=True)
        return [line for line in done.stdout.splitlines() if "pip install" in line]

    pin = next(line.split()[0] for line in (ROOT / "requirements.txt").open() if line.startswith("torch=="))
    (everything,) = installs()
    assert everything.endswith("-r requirements-dev.txt")
    assert "index" not in everything
    first, second = installs("TORCH_INDEX=https://x/cpu")
    assert first.endswith(f" {pin} --index-url https://x/cpu")
    assert second == everything
