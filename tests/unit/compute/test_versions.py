"""Members of an ensemble, samples of dropout: their mean, and how far they lie apart."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor, decollate_batch

from scripts.calibration import Calibration
from scripts.compute.inferers import (
    AveragedDropout,
    AveragedOrientations,
    SlidingWindowSlabInferer,
    of_members,
)
from scripts.errors import InputError
from scripts.networks import Ensemble, UNet
from scripts.transforms import TakeVersionsd
from scripts.transforms.versions import TOLD
from scripts.uncertainty import MUTUAL, VERSIONS, VOXELS, predictive_entropy

LABELS = {"background": 0, "organ": 1, "vessel": 2}


def network(dims: int = 2, dropout: float = 0.0) -> UNet:
    torch.manual_seed(0)
    return UNet(dims, 1, 3, [4, 8], norm=None, dropout=dropout).eval()


def ensemble(count: int) -> Ensemble:
    made = Ensemble(network(), ["a"] * count).eval()
    for index, member in enumerate(made.members):
        torch.manual_seed(index)
        for weight in member.parameters():
            torch.nn.init.normal_(weight, std=0.3)
    return made


def image(dims: int = 2) -> MetaTensor:
    values = torch.randn((1, 1, *(20, 18, 22)[:dims]), generator=torch.Generator().manual_seed(0))
    return MetaTensor(
        values, affine=torch.diag(torch.tensor([2.0, 2.0, 5.0, 1.0], dtype=torch.float64))[None]
    )


@pytest.mark.parametrize("runtime", ["torch", "openvino"])
def test_the_networks_of_an_ensemble_lie_apart_and_it_says_what_it_said(runtime: str) -> None:
    if runtime != "torch":
        pytest.importorskip(runtime)
    together, given = ensemble(3), image()
    window = SlidingWindowSlabInferer((16, 16), runtime=runtime, calibration=Calibration((1.5,)))
    plain = window(given, together)
    for _ in range(2):  # the second time by what was converted
        found = of_members(window, True)(given, together)
        torch.testing.assert_close(found.as_tensor(), plain.as_tensor())
    bare = SlidingWindowSlabInferer((16, 16))
    singles = torch.stack([bare(given, member).as_tensor().softmax(1) for member in together.members])
    apart = predictive_entropy(singles.mean(0), 1)
    apart -= torch.stack([predictive_entropy(one, 1) for one in singles]).mean(0)
    assert apart.max() > 0.01
    torch.testing.assert_close(found.meta[VERSIONS][MUTUAL], apart, atol=1e-4, rtol=1e-3)
    counts = torch.stack([one.argmax(1).flatten().bincount(minlength=3) for one in singles])
    assert (found.meta[VERSIONS][VOXELS][0] - counts).abs().max() <= 2


def test_where_nobody_asks_the_inferer_stays() -> None:
    window = SlidingWindowSlabInferer((16, 16))
    assert of_members(window, False) is window
    assert VERSIONS not in of_members(window, True)(image(), network()).meta


def test_orientations_lie_apart_where_that_is_asked() -> None:
    window = SlidingWindowSlabInferer((16, 16))
    quiet, told = (
        AveragedOrientations(window, [0, 1], spread=spread)(image(), network()) for spread in (False, True)
    )
    assert torch.equal(quiet.as_tensor(), told.as_tensor())
    assert VERSIONS not in quiet.meta
    assert told.meta[VERSIONS][VOXELS].shape == (1, 4, 3)
    assert told.meta[VERSIONS][VOXELS].sum(2).unique().tolist() == [20 * 18]


def test_dropout_draws_other_samples_and_the_same_again() -> None:
    window, leaving = SlidingWindowSlabInferer((16, 16), runtime="auto"), network(dropout=0.5)
    inferer = AveragedDropout(window, samples=4, seed=1, spread=True)
    one, same = inferer(image(), leaving), inferer(image(), leaving)
    assert torch.equal(one.as_tensor(), same.as_tensor())
    assert one.meta[VERSIONS][MUTUAL].max() > 1e-4
    assert not any(module.training for module in leaving.modules())
    other = AveragedDropout(window, samples=4, seed=2)(image(), leaving)
    assert not torch.equal(one.as_tensor(), other.as_tensor())
    assert window.runtime.runtime == "auto"
    with pytest.raises(
        InputError, match="the network leaves nothing out, as it was made with a dropout of 0"
    ):
        inferer(image(), network())
    with pytest.raises(InputError, match="samples is 0: use 1 or more"):
        AveragedDropout(window, samples=0)


@pytest.mark.parametrize("dims", [2, 3])
def test_they_become_a_map_and_volumes(dims: int) -> None:
    given = image(dims)
    inferer = AveragedOrientations(SlidingWindowSlabInferer((16,) * dims), [0, 1], spread=True)
    made = inferer(given, network(dims))
    versions = made.meta[VERSIONS]
    (pred,) = decollate_batch(made)
    case = TakeVersionsd("pred", LABELS)({"pred": pred, "case": "a"})
    assert VERSIONS not in case["pred"].meta
    np.testing.assert_allclose(case[MUTUAL], versions[MUTUAL][0])
    assert np.array_equal(case[MUTUAL].affine, given.affine[0] if given.affine.ndim == 3 else given.affine)
    size, unit = (2 * 2 * 5 / 1000, "ml") if dims == 3 else (1, "pixels")
    voxels = versions[VOXELS][0, :, 1].numpy() * size
    assert case[TOLD][f"organ {unit}"] == pytest.approx(voxels.mean(), abs=5e-5)
    assert case[TOLD][f"organ {unit} sd"] == pytest.approx(voxels.std(ddof=1), abs=5e-5)
    assert list(case[TOLD]) == [
        f"{name} {unit}{more}" for name in ("organ", "vessel") for more in ("", " sd")
    ]


def test_what_has_no_versions_stays_as_it_is() -> None:
    case = {"pred": MetaTensor(torch.zeros(3, 4, 4)), "case": "a"}
    assert TakeVersionsd("pred", LABELS)(case) == case
