"""Averaging over orientations."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import SimpleInferer

from scripts.compute.inferers import AveragedOrientations
from scripts.errors import InputError
from scripts.transforms.directions import directions
from scripts.transforms.stars import star_distances


def directed(x: torch.Tensor) -> torch.Tensor:
    """Two classes, from differences along every axis: what it says depends on the image's orientation."""
    shift = sum((axis + 1) * torch.roll(x, 1, dims=axis + 2) for axis in range(x.ndim - 2))
    return torch.cat([x, shift], dim=1)


def test_square_has_eight_orientations():
    image = torch.randn(1, 1, 6, 5, generator=torch.Generator().manual_seed(0))
    expected = np.zeros((2, 6, 5))
    for turns, flipped in product(range(4), (False, True)):
        turned = np.rot90(image[0, 0].numpy(), turns)
        turned = np.flip(turned, 1) if flipped else turned
        one = directed(torch.from_numpy(turned.copy())[None, None]).softmax(1)[0].numpy()
        one = np.flip(one, 2) if flipped else one
        expected += np.rot90(one, -turns, axes=(1, 2)) / 8
    averaged = AveragedOrientations(SimpleInferer(), flip_axes=[0, 1], transpose=True)(image, directed)
    assert np.allclose(averaged.softmax(1)[0], expected, atol=1e-6)


def test_volume_has_eight_flips():
    image = torch.randn(2, 1, 4, 5, 3, generator=torch.Generator().manual_seed(0))
    expected = torch.zeros(2, 2, 4, 5, 3)
    for flips in ([], [2], [3], [4], [2, 3], [2, 4], [3, 4], [2, 3, 4]):
        expected += directed(image.flip(flips)).softmax(1).flip(flips) / 8
    averaged = AveragedOrientations(SimpleInferer(), flip_axes=[0, 1, 2])(image, directed)
    assert torch.allclose(averaged.softmax(1), expected, atol=1e-6)


def test_without_axes_nothing_changes_but_the_scale():
    image = torch.randn(1, 1, 4, 4)
    averaged = AveragedOrientations(SimpleInferer(), flip_axes=[])(image, directed)
    assert torch.allclose(averaged, directed(image).log_softmax(1), atol=1e-5)


def test_impossible_class_stays_finite():
    averaged = AveragedOrientations(SimpleInferer(), [0])(
        torch.zeros(1, 1, 4, 4), lambda x: torch.cat([x, x + 1e4], 1)
    )
    assert torch.isfinite(averaged).all()


def test_metadata_stays():
    image = MetaTensor(torch.zeros(1, 1, 4, 4), meta={"filename_or_obj": "a.png"})
    averaged = AveragedOrientations(SimpleInferer(), [0])(image, directed)
    assert averaged.meta["filename_or_obj"] == "a.png"


@pytest.mark.parametrize("axes", [[0, 0], [-1]])
def test_axes_named_badly_are_refused(axes):
    with pytest.raises(InputError, match="name each spatial axis at most once"):
        AveragedOrientations(SimpleInferer(), axes)


def test_axes_that_the_image_lacks_are_refused():
    with pytest.raises(InputError, match="the images have the axes 0 to 1"):
        AveragedOrientations(SimpleInferer(), [2])(torch.zeros(1, 1, 4, 4), directed)


@pytest.mark.parametrize("shape", [(24, 30), (14, 12, 16)])
def test_directions_are_turned_with_the_image(shape: tuple[int, ...]) -> None:
    """Of a network that finds the exact directions in whatever version it sees, the mean is what it finds."""
    places = np.stack(np.indices(shape), -1)
    image = torch.zeros(1, 1, *shape)
    for number, centre in enumerate(([6, 7, 6], [6, 19, 11]), start=1):
        image[0, 0][np.linalg.norm(places - centre[: len(shape)], axis=-1) < 4.4] = number

    def network(version: torch.Tensor) -> torch.Tensor:
        _, vectors = directions(version[0, 0].numpy().astype(int))
        parts = np.stack([np.maximum(sign * axis, 0) for axis in vectors for sign in (-1, 1)])
        return torch.from_numpy(np.concatenate([np.asarray(version[0] == 0), 5 * parts]))[None].float()

    names = ["background", *(f"{side}_{axis}" for axis in range(len(shape)) for side in ("lower", "higher"))]
    labels = {name: value for value, name in enumerate(names)}
    expected = network(image).softmax(1)
    averaged = AveragedOrientations(SimpleInferer(), range(len(shape)), transpose=True, labels=labels)
    torch.testing.assert_close(averaged(image, network).softmax(1), expected)
    plain = AveragedOrientations(SimpleInferer(), range(len(shape)), transpose=True)
    assert float((plain(image, network).softmax(1) - expected).abs().max()) > 0.1


def test_rays_are_turned_with_the_image() -> None:
    """Of a network that finds the exact distances in whatever version it sees, the mean is what it finds."""
    places = np.stack(np.indices((24, 30)), -1)
    image = torch.zeros(1, 1, 24, 30)
    for number, centre in enumerate(([6, 7], [9, 14], [20, 28]), start=1):
        image[0, 0][np.linalg.norm(places - centre, axis=-1) < 4.4] = number

    def network(version: torch.Tensor) -> torch.Tensor:
        distances = np.abs(star_distances(version[0, 0].numpy().astype(int), 8))
        return torch.from_numpy(np.concatenate([np.asarray(version[0] == 0), distances]))[None].float()

    labels = {name: value for value, name in enumerate(["background", *(f"star_ray_{k}" for k in range(8))])}
    expected = network(image).softmax(1)
    averaged = AveragedOrientations(SimpleInferer(), range(2), transpose=True, labels=labels)
    torch.testing.assert_close(averaged(image, network).softmax(1), expected)
    plain = AveragedOrientations(SimpleInferer(), range(2), transpose=True)
    assert float((plain(image, network).softmax(1) - expected).abs().max()) > 0.1
