"""A training killed again and again at moments drawn from a seed ends as the one that was left alone."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.commands import bundle_run, config_files
from tests.faults.killing import Killer
from tests.faults.sameness import assert_same, train

#: Kills in each precision.
KILLS = int(os.environ.get("FAULTS_KILLS", "50"))

#: Share of the kills at an instant; the others fall between two steps of the run, writes among them.
AT_AN_INSTANT = 0.4

#: Part of a training within which a run is killed, so that a training is killed several times.
SOON = 0.6

#: Share of the signals that only ask a run to end.
ASKED = 0.1

#: Where a run was, by what its phase has in it, the first that fits.
KINDS = {
    "checkpoint": ("last.pt", "checkpoints"),
    "weights and recipe": ("model.", "inference.json", "metadata.json"),
    "learning curve": ("learning_curve",),
    "scalars": ("events", "tensorboard"),
    "pictures": ("epoch_", "pictures"),
    "validation": ("evaluator",),
    "end of an epoch": ("trainer EPOCH_COMPLETED",),
    "start": ("start", "trainer STARTED", "trainer EPOCH_STARTED"),
    "end of the training": ("trainer COMPLETED",),
    "steps": ("trainer",),
}


def kind_of(phase: str) -> str:
    return next((kind for kind, parts in KINDS.items() if any(part in phase for part in parts)), "else")


@pytest.mark.parametrize("amp", [False, True], ids=["float32", "bfloat16"])
def test_killed_at_any_moment(
    amp: bool, runs: Killer, cells: Path, seed: int, report: Callable[..., None], tmp_path: Path
) -> None:
    if amp and not torch.cpu._is_avx512_bf16_supported():
        pytest.skip("this processor has no bfloat16")
    draw = random.Random(f"{seed} {amp}")
    whole = train(runs, cells, tmp_path / "alone", amp)
    assert whole.status == 0, whole
    kinds: Counter[str] = Counter()
    kills, asked, trainings = 0, 0, 0
    while kills < KILLS:
        output, status = tmp_path / f"killed{trainings}", 1
        while status:
            how: dict[str, Any] = {"moment": draw.randrange(2, int(SOON * whole.moments))}
            if draw.random() < AT_AN_INSTANT:
                how = {"seconds": draw.uniform(0, SOON * whole.seconds)}
            number = signal.SIGTERM if draw.random() < ASKED else signal.SIGKILL
            ended = train(runs, cells, output, amp, signal=number, **how)
            status = ended.status
            assert status in (0, 143, -signal.SIGKILL, -signal.SIGTERM), ended
            if status == -signal.SIGKILL:
                kills += 1
                kinds[kind_of(ended.phase)] += 1
            asked += status in (143, -signal.SIGTERM)
        assert_same(output, tmp_path / "alone")
        trainings += 1
    assert {"checkpoint", "validation"} <= kinds.keys() or kills < 20
    name = "bfloat16" if amp else "float32"
    report(
        "",
        f"## Killed trainings, {name}",
        "",
        f"{kills} times SIGKILL and {asked} times SIGTERM in {trainings} trainings of {whole.moments} "
        "moments each, which went on after each. All ended with the weights, moments, best epoch, recipe, "
        "learning curve and scalars of the one that was left alone, bit by bit, and with the same files.",
        "",
        "| killed in | times |",
        "|---|---|",
        *(f"| {kind} | {count} |" for kind, count in kinds.most_common()),
    )


def test_killed_while_it_starts(cells: Path, seed: int, report: Callable[..., None], tmp_path: Path) -> None:
    """A process of its own, killed while it imports and begins."""
    draw = random.Random(seed)
    arguments = bundle_run(
        *("--dataset_dir", str(cells), "--output_dir", str(tmp_path / "out"), "--max_epochs", "1"),
        *("--channels", "[4,8]", "--patch_size", "[16,16]", "--resume", "True"),
        files=config_files("train", "task/phantom_cells"),
    )
    for _ in range(3):
        process = subprocess.Popen([sys.executable, *arguments], cwd=tmp_path, stderr=subprocess.DEVNULL)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(draw.uniform(0.2, 3.0))
        process.kill()
        process.wait()
    assert subprocess.run([sys.executable, *arguments], cwd=tmp_path, check=False).returncode == 0
    assert (tmp_path / "out/model.pt").is_file()
    report("", "Three more were killed while they imported their libraries, and began anew.")
