"""What is killed or asked to end leaves whole files, and a training that goes on is the one left alone."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.commands import TINY, config_files, read_array, written
from tests.faults.killing import Killer
from tests.faults.sameness import assert_same, train

pytestmark = pytest.mark.workflow

#: Phases in which a training is killed, one after the other: at the end of an epoch, in a validation, in a
#: checkpoint, and between the names of the four files of the best weights.
KILLS = {
    False: ("trainer EPOCH_COMPLETED", "rename metadata.json"),
    True: ("evaluator ITERATION_COMPLETED", "rename last.pt"),
}

#: Epochs, the second of which is validated; the full tier trains longer.
EPOCHS = 2


@pytest.fixture(scope="module")
def runs() -> Iterator[Killer]:
    killer = Killer()
    yield killer
    killer.close()


@pytest.mark.long
@pytest.mark.parametrize("amp", [False, True], ids=["float32", "bfloat16"])
def test_killed_again_and_again_it_ends_as_the_one_left_alone(
    amp: bool, runs: Killer, cells: Path, tmp_path: Path
) -> None:
    if amp and not torch.cpu._is_avx512_bf16_supported():
        pytest.skip("this processor has no bfloat16")
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    assert train(runs, cells, alone, amp, EPOCHS).status == 0
    for phase in KILLS[amp]:
        ended = train(runs, cells, killed, amp, EPOCHS, phase=phase)
        assert (ended.status, phase in ended.phase) == (-signal.SIGKILL, True), ended
    ended = train(runs, cells, killed, amp, EPOCHS, phase="trainer FORWARD_COMPLETED", signal=signal.SIGTERM)
    assert ended.status == 143
    assert ended.said.splitlines()[-1] == (
        f"ended by SIGTERM: {killed}/checkpoints/last.pt has the training: the same command with "
        "--resume True goes on"
    )
    last = torch.load(killed / "checkpoints/last.pt", weights_only=True)
    assert last["iteration"] % 4, "not within an epoch"
    assert train(runs, cells, killed, amp, EPOCHS).status == 0
    assert_same(killed, alone)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_inference_leaves_whole_files(
    number: int, status: int, runs: Killer, workshop: Path, cells: Path, tmp_path: Path
) -> None:
    ids = {**TINY[2], "dataset_dir": str(cells / "imagesTr"), "checkpoint": str(workshop / "model.pt")}
    ended = runs.run(
        tmp_path / "out",
        config_files("inference", "task/phantom_cells"),
        ids={key: value for key, value in ids.items() if key != "samples_per_case"},
        phase="rename cells_002_seg",
        signal=number,
    )
    assert ended.status == status, ended
    found = written(tmp_path / "out")  # the last may be finished beside what the signal found
    assert found in [[f"cells_00{number}_seg.png" for number in range(count)] for count in (2, 3)]
    assert all(read_array(tmp_path / "out" / name).any() for name in found)
    assert ended.said.splitlines()[-1].endswith(": what was not finished is not there")
