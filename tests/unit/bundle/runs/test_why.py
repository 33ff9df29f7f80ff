"""Maps of what a network looked at, on discs whose class a mark elsewhere decides."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from torch import Tensor, nn

import bundle.runs.why as module
from bundle.data.phantom import draw_cue
from bundle.runs.why import METHODS, Preference, ask, half_within, middle_of, occlusion, window_around
from scripts.compute.inferers import OverlapTileInferer, SlidingWindowSlabInferer
from scripts.errors import InputError
from scripts.networks import UNet

SIZE = (32, 32)
NAMES = ("background", "bright", "dark")


def picture(index: int) -> tuple[Tensor, Tensor]:
    """A disc, (1, X, Y), about as it is normalised, and its classes, (X, Y)."""
    image, label = (torch.from_numpy(part.astype(np.float32).T.copy()) for part in draw_cue(0, index, SIZE))
    return (image[None] - 110) / 30, label.long()


@pytest.fixture(scope="module")
def networks() -> tuple[UNet, UNet]:
    """One that has learnt to tell the discs apart, and as it was before."""
    torch.manual_seed(0)
    network = UNet(spatial_dims=2, in_channels=1, out_channels=3, channels=[8, 16, 16, 16], strides=2)
    untrained = copy.deepcopy(network).eval()
    images, labels = (torch.stack(parts) for parts in zip(*map(picture, range(48)), strict=True))
    optimizer = torch.optim.Adam(network.parameters(), 5e-3)
    loss = nn.CrossEntropyLoss(torch.tensor([0.1, 1, 1]))
    for step in range(121):
        some = torch.arange(4 * step, 4 * step + 4) % 48
        optimizer.zero_grad()
        loss(network(images[some]), labels[some]).backward()
        optimizer.step()
    network.eval()
    found = network(images).argmax(1)[labels > 0]
    assert (found == labels[labels > 0]).float().mean() > 0.9
    return network, untrained


@pytest.mark.parametrize("method", list(METHODS))
def test_the_map_finds_the_cue_and_that_of_an_untrained_network_does_not(
    networks: tuple[UNet, UNet], method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HIDDEN", 1 / 4)  # more than the mark
    shares: list[list[float]] = [[], []]
    for index in (60, 61, 63, 64):
        image, label = picture(index)
        far = torch.zeros(SIZE, dtype=torch.bool)
        far[SIZE[0] // 2 :] = True
        mark = nn.functional.max_pool2d(((image[0].abs() > 2) & far)[None, None].float(), 5, 1, 2)[0, 0] > 0
        for network, found in zip(networks, shares, strict=True):
            asked = Preference(network, int(label.max()), label > 0)
            drawn = METHODS[method](asked, image[None])[0, 0]
            found.append(float(drawn[mark].abs().sum() / drawn[far].abs().sum()))
            if method == "occlusion" and network is networks[0]:
                assert drawn[mark].max() > asked(image[None])[0, 0] / 2  # without its mark it is no such disc
    trained, untrained = map(np.mean, shares)
    assert trained > 1.5 * int(mark.sum()) / int(far.sum())
    assert trained > 1.3 * untrained


def test_occlusion_is_what_hiding_each_block_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HIDDEN", 1 / 4)
    image, label = picture(60)
    network = nn.Sequential(nn.Conv2d(1, 4, 5, padding=2), nn.BatchNorm2d(4), nn.Conv2d(4, 3, 5, padding=2))
    asked = Preference(network.eval(), 1, label > 0)
    step, side = 4, 8
    expected, count = torch.zeros(SIZE), torch.zeros(SIZE)
    with torch.no_grad():
        whole = asked(image[None])
        for x in range(0, SIZE[0] - side + 1, step):
            for y in range(0, SIZE[1] - side + 1, step):
                hidden = image[None].clone()
                hidden[..., x : x + side, y : y + side] = image.mean()
                expected[x : x + side, y : y + side] += (whole - asked(hidden)).item()
                count[x : x + side, y : y + side] += 1
    torch.testing.assert_close(occlusion(asked, image[None])[0, 0], expected / count, rtol=1e-3, atol=1e-4)
    assert not network.training


class Shift(nn.Module):
    """A class for each of two channels, its logit that of the voxel two further along."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, 3 * x.roll(-2, 2)], 1)


def test_log_odds_of_a_class() -> None:
    x = torch.randn(2, 1, 6, 5)
    place = torch.zeros(6, 5, dtype=torch.bool)
    place[1, 2] = True
    chance = Shift()(x).softmax(1)[:, 1, 1, 2]
    torch.testing.assert_close(Preference(Shift(), 1, place)(x)[:, 0], (chance / (1 - chance)).log())


@pytest.mark.parametrize("at", [(0, 3), (9, 8), (29, 12)])
def test_a_map_lies_where_its_window_does(at: tuple[int, int]) -> None:
    image = torch.randn(1, 30, 13)
    network, inferer = Shift(), SlidingWindowSlabInferer((12, 16), overlap=0.5)
    window = window_around(inferer, network, (30, 13), at)
    mask = np.zeros((30, 13), dtype=bool)
    mask[at] = True
    place = torch.from_numpy(window.place(mask))
    assert place.sum() == 1
    found = window.back(METHODS["gradient"](Preference(network, 1, place), window.of(image)), image)
    (there,) = np.argwhere(found == found.max()).tolist()
    after = min(at[0] + 2, 29)  # the last window has its first voxel beyond its end
    assert there == [after, at[1]] or at[0] + 2 > 29


def test_what_was_mirrored_counts_where_it_came_from() -> None:
    network = UNet(
        spatial_dims=2, in_channels=1, out_channels=2, channels=[2, 2], strides=2, padding="valid"
    ).eval()
    inferer = OverlapTileInferer((20, 20))
    window = window_around(inferer, network, (7, 9), (3, 4))
    found = torch.rand(1, 1, 20, 20)
    back = window.back(found, torch.zeros(1, 7, 9))
    assert back.sum() == pytest.approx(float(found.sum()), rel=1e-5)


def test_half_of_a_map_lies_within_a_distance() -> None:
    found, place = np.zeros((9, 9)), np.zeros((9, 9), dtype=bool)
    place[4, 4] = True
    found[4, 5], found[4, 7], found[0, 4] = 1.0, -2.0, 1.0
    assert half_within(found, place, (1.0, 2.0)) == 4.0  # 1 within 2 mm, 1 at 4 mm, 2 at 6 mm: half is 2
    assert np.isnan(half_within(np.zeros((9, 9)), place, (1.0, 1.0)))


def test_the_middle_lies_within_the_largest_component() -> None:
    mask = np.zeros((20, 20), dtype=bool)
    mask[1:4, 1:4] = True
    mask[8:19, 8:11] = mask[16:19, 8:19] = True  # bent, so that its centre of mass lies outside
    at = middle_of(mask)
    assert mask[at]
    assert min(at) >= 9
    mask = np.zeros((20, 20), dtype=bool)
    mask[8:19, 8:11] = True
    assert middle_of(mask) == (13, 9)


@pytest.fixture
def case() -> dict[str, object]:
    pred = torch.zeros(3, 12, 10)
    pred[0] = 0.5
    pred[1, 2:5, 2:5] = 0.9
    image = MetaTensor(torch.randn(1, 12, 10), meta={"spatial_shape": (12, 10), "original_affine": np.eye(4)})
    return {"case": "a", "image": image, "pred": pred}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"label_name": "brigth"}, "did you mean bright"),
        ({"label_name": "bright", "rather_than": "bright"}, "is the class that is asked for"),
        ({}, "neither --label_name nor --at"),
        ({"label_name": "dark"}, "finds no dark"),
        ({"at": (12, 0)}, "no voxel of the image, which has 12 x 10"),
        ({"at": (1, 1, 1)}, "no voxel"),
        ({"at": (0, 0), "label_name": "bright", "component": True}, "where the network sees background"),
    ],
)
def test_questions_that_cannot_be_asked(case: dict, given: dict, said: str) -> None:
    options = {"label_name": None, "rather_than": None, "at": None, "component": False, **given}
    with pytest.raises(InputError, match=said):
        ask(case, **options, names=NAMES, inferer=SlidingWindowSlabInferer((8, 8)), network=linear())


def test_the_usual_question(case: dict) -> None:
    inferer = SlidingWindowSlabInferer((8, 8))
    asked = ask(case, "bright", None, None, False, NAMES, inferer, linear())
    assert (asked.at, asked.index, int(asked.place.sum())) == ((3, 3), 1, 1)
    assert ask(case, None, None, (11, 9), False, NAMES, inferer, linear()).name == "background"
    assert int(ask(case, None, None, (2, 2), True, NAMES, inferer, linear()).place.sum()) == 9


def linear() -> nn.Module:
    return nn.Conv2d(1, 3, 1)
