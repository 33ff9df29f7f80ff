"""A training that is killed or asked to end, and goes on, is the one that was left alone."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.faults.killing import Killer
from tests.faults.sameness import assert_same, killer

pytestmark = pytest.mark.workflow

#: Phases in which a training is killed, one after the other: within an epoch, at the end of one, between the
#: names of the four files of the best weights, in the checkpoint, in a validation and in the curve.
KILLS = {
    False: ("trainer EPOCH_COMPLETED", "rename metadata.json", "rename last.pt"),
    True: ("evaluator ITERATION_COMPLETED", "open half of last.pt", "rename learning_curve.csv"),
}


@pytest.fixture(scope="module", params=[False, True], ids=["float32", "bfloat16"])
def trainings(request: pytest.FixtureRequest, cells: Path) -> Iterator[tuple[bool, Killer]]:
    if request.param and not torch.cpu._is_avx512_bf16_supported():
        pytest.skip("this processor has no bfloat16")
    runs = killer(cells, request.param)
    yield request.param, runs
    runs.close()


def test_killed_again_and_again_it_ends_as_the_one_left_alone(
    trainings: tuple[bool, Killer], tmp_path: Path
) -> None:
    amp, runs = trainings
    assert runs.run(tmp_path / "alone").status == 0
    for phase in KILLS[amp]:
        ended = runs.run(tmp_path / "killed", phase=phase, more={"resume": True})
        assert (ended.status, phase in ended.phase) == (-signal.SIGKILL, True), ended
    # asked to end within an epoch, then left alone
    ended = runs.run(
        tmp_path / "killed", phase="trainer FORWARD_COMPLETED", signal=signal.SIGTERM, more={"resume": True}
    )
    assert ended.status == 143
    last = torch.load(tmp_path / "killed/checkpoints/last.pt", weights_only=True)
    assert last["iteration"] % 3, "not within an epoch"
    assert ended.said.splitlines()[-1] == (
        f"ended by SIGTERM: {tmp_path}/killed/checkpoints/last.pt has the training: the same command with "
        "--resume True goes on"
    )
    assert runs.run(tmp_path / "killed", more={"resume": True}).status == 0
    assert_same(tmp_path / "killed", tmp_path / "alone")
