"""Files of weights."""

from __future__ import annotations

import pickletools
import zipfile
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from torch import nn

from scripts.checkpoints import check_weights, read_weights, save_weights
from scripts.errors import InputError


def network() -> nn.Module:
    """Dense tensors in another order of the memory, integers, and one tensor under two names."""
    torch.manual_seed(0)
    made = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(4, 4), nn.Linear(4, 4))
    made[3].weight = made[2].weight
    return made.to(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
def test_weights_come_back_as_they_were(name: str, tmp_path: Path) -> None:
    weights = network().state_dict()
    save_weights(weights, tmp_path / name)
    found = read_weights(tmp_path / name)
    assert found.keys() == weights.keys()
    for key, value in weights.items():
        assert found[key].dtype == value.dtype
        assert torch.equal(found[key], value)
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_safetensors_is_read_by_its_own_library_and_holds_no_pickle(tmp_path: Path) -> None:
    weights = network().state_dict()
    save_weights(weights, tmp_path / "model.safetensors")
    with safetensors.safe_open(tmp_path / "model.safetensors", "pt") as opened:
        assert set(opened.keys()) == set(weights)
    assert not zipfile.is_zipfile(tmp_path / "model.safetensors")
    with pytest.raises(ValueError):  # noqa: PT011
        pickletools.dis((tmp_path / "model.safetensors").read_bytes())


def test_what_is_no_safetensors_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"something else")
    with pytest.raises(InputError, match=r"a\.safetensors: not a readable checkpoint \(SafetensorError\)"):
        read_weights(tmp_path / "a.safetensors")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(tmp_path: Path, value: float) -> None:
    network = torch.nn.Linear(2, 1)
    weights = {"weight": torch.tensor([[1.0, value]]), "bias": torch.zeros(1)}
    with pytest.raises(InputError, match=r"a\.pt: weights that are no finite numbers \(weight\)"):
        check_weights(network, weights, tmp_path / "a.pt")


@pytest.mark.parametrize("content", [{"network": -1}, {"model": [torch.zeros(1)]}, {1: torch.zeros(1)}])
def test_a_dictionary_without_weights_is_refused(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(InputError, match=r"a\.pt: holds no weights by their names"):
        read_weights(tmp_path / "a.pt")


def test_the_bytes_are_those_that_pytorch_writes_for_model_pt(tmp_path: Path) -> None:
    weights = network().state_dict()
    torch.save(dict(weights), tmp_path / "model.pt")
    save_weights(weights, tmp_path / "other.pt")
    assert (tmp_path / "other.pt").read_bytes() == (tmp_path / "model.pt").read_bytes()
    assert len(list(tmp_path.iterdir())) == 2
