"""Several networks that answer as one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from ignite.engine import Engine
from torch import nn

from scripts.compute.acceleration import accelerate
from scripts.compute.inferers import OverlapTileInferer
from scripts.errors import InputError
from scripts.handlers import WeightsLoader
from scripts.networks import Ensemble, UNet, output_size


def unet(seed: int, padding: str = "same") -> UNet:
    torch.manual_seed(seed)
    network = UNet(spatial_dims=2, in_channels=1, out_channels=3, channels=(2, 4), padding=padding, norm=None)
    return network.eval()


def start(*loaders: WeightsLoader) -> None:
    """Load weights as an engine does that starts."""
    engine = Engine(lambda engine, batch: None)
    for loader in loaders:
        loader.attach(engine)
    engine.run([0])


@pytest.fixture
def files(tmp_path) -> list[str]:
    """Checkpoints of the networks of seeds 1 and 2."""
    paths = [str(tmp_path / f"{seed}.pt") for seed in (1, 2)]
    for seed, path in enumerate(paths, start=1):
        torch.save(unet(seed).state_dict(), path)
    return paths


@pytest.fixture
def image() -> torch.Tensor:
    return torch.randn(2, 1, 16, 24, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("prepare", [lambda network: network, lambda n: accelerate(n, torch.device("cpu"))])
def test_probabilities_are_averaged(prepare: Callable, files, image):
    ensemble = prepare(Ensemble(unet(0), files)).eval()
    start(WeightsLoader(files, ensemble))
    with torch.no_grad():
        expected = (unet(1)(image).softmax(1) + unet(2)(image).softmax(1)) / 2
        averaged = ensemble(image)
    assert torch.allclose(averaged.exp(), expected, atol=1e-6)
    assert not torch.allclose(expected, unet(1)(image).softmax(1), atol=1e-2)


def test_impossible_class_stays_finite():
    class Certain(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([x, x + 1e4], 1)

    assert torch.isfinite(Ensemble(Certain(), ["a.pt", "b.pt"])(torch.zeros(1, 1, 4, 4))).all()


def test_sizes_are_those_of_the_members(image):
    valid = unet(0, "valid")
    assert output_size(Ensemble(valid, ["a.pt"]), (20, 24)) == output_size(valid, (20, 24)) != (20, 24)
    padded = Ensemble(unet(0), ["a.pt"]).eval()
    with torch.no_grad():
        tiled = OverlapTileInferer(tile_size=[24, 24])(image.repeat(1, 1, 3, 2), padded)
        assert torch.allclose(tiled, padded(image.repeat(1, 1, 3, 2)), atol=1e-5)


@pytest.mark.parametrize("checkpoints", ["model.pt", []])
def test_one_name_is_no_list(checkpoints):
    with pytest.raises(InputError, match=r"checkpoint is .*: give an ensemble a list"):
        Ensemble(unet(0), checkpoints)


@pytest.mark.parametrize("network", [unet(0), Ensemble(unet(0), ["a.pt"])])
def test_files_and_networks_are_equally_many(network, files):
    with pytest.raises(InputError, match=r"2 files for 1 network.*configs/ensemble\.json"):
        start(WeightsLoader(files, network))


def test_file_of_another_network_is_named(files, tmp_path):
    torch.save(unet(0, "valid").encoder.state_dict(), tmp_path / "other.pt")
    with pytest.raises(InputError, match=r"other\.pt: a checkpoint of another network"):
        start(WeightsLoader([files[0], str(tmp_path / "other.pt")], Ensemble(unet(0), files)))
