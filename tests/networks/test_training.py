"""Every network and loss on both tasks: an epoch of training, a validation, of networks an inference."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.configs.test_matrix import DIMS, LOSSES, NETWORKS, TASKS, segment, tiny_phantoms, train
from tests.configs.test_networks import ONLY

pytestmark = pytest.mark.workflow


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return tiny_phantoms(tmp_path_factory.mktemp("phantoms"))


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("network", NETWORKS)
def test_network_trains_and_segments(
    task: str, network: str, phantoms: dict[str, Path], tmp_path: Path
) -> None:
    if ONLY.get(network, DIMS[task]) != DIMS[task]:
        pytest.skip("refused, as tests/configs/test_networks.py says")
    train(task, network, None, phantoms[task], tmp_path)
    segment(task, network, phantoms[task], tmp_path)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("loss", LOSSES)
def test_loss_trains(task: str, loss: str, phantoms: dict[str, Path], tmp_path: Path) -> None:
    train(task, None, loss, phantoms[task], tmp_path)
