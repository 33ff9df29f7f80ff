"""What OpenVINO has compiled is loaded again, and never anything else than that."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from scripts.compute import kept
from scripts.compute.runtimes import Runtime
from scripts.networks import UNet

pytestmark = pytest.mark.skipif(not find_spec("openvino"), reason="openvino is not installed")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "unet-bundle/openvino"


def logits(seed: int = 0) -> torch.Tensor:
    """Of a network that is converted anew."""
    torch.manual_seed(seed)
    network = UNet(2, 1, 2, [4, 8]).eval()
    return Runtime("openvino")(network, torch.ones(1, 1, 16, 24).cumsum(3) / 24)


def blobs(place: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in place.glob("*.blob")}


def test_the_next_time_it_is_loaded(place: Path) -> None:
    first = logits()
    (name,) = written = blobs(place)
    when = (place / name).stat().st_mtime_ns
    assert torch.equal(logits(), first)
    assert blobs(place) == written
    assert (place / name).stat().st_mtime_ns == when


def test_other_weights_are_another_network(place: Path) -> None:
    first, other = logits(), logits(1)
    assert (first - other).abs().max() > 0.01
    assert len(blobs(place)) == 2
    assert torch.equal(logits(1), other)
    assert torch.equal(logits(), first)


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b[:-9] + b"x" * 9])
def test_what_was_damaged_is_written_anew(place: Path, damage) -> None:
    first = logits()
    ((name, content),) = blobs(place).items()
    (place / name).chmod(0o600)
    (place / name).write_bytes(damage(content))
    assert torch.equal(logits(), first)
    assert blobs(place)[name] != damage(content)
    (place / kept.SUMS).write_text("{")
    assert torch.equal(logits(), first)


def test_a_place_that_takes_no_files_keeps_nothing(place: Path) -> None:
    place.parent.mkdir()
    place.write_text("a file where the folder should be")
    assert torch.equal(logits(), logits())


def test_the_oldest_go(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logits()
    (old,) = blobs(place)
    monkeypatch.setattr(kept, "MOST_BYTES", int(1.5 * (place / old).stat().st_size))
    logits(1)
    logits(1)
    (new,) = blobs(place)
    assert new != old
