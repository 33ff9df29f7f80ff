"""The trap of scribbles, which close around an object, and the rule that leads out of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy.spatial import cKDTree

from bundle.data.sparsify import KINDS
from scripts.judging import CaseMetric
from scripts.labels import IGNORE_LABEL
from scripts.losses import WeightedDiceCELoss
from scripts.networks import UNet
from scripts.transforms import CountClassesd, FarBackgroundd, RandSpatialPatchd
from scripts.transforms.sparse import TAKEN, _of_label, far_from_foreground, likely_background

SIZE = 80


def ellipse(shape: tuple[int, ...], centre: np.ndarray, radii: np.ndarray | float) -> np.ndarray:
    away = (np.moveaxis(np.indices(shape), 0, -1) - centre) / radii
    return (away**2).sum(-1) <= 1


def field(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """An organ in a large field, with smaller look-alikes far from it: image and truth, (X, Y)."""
    rng = np.random.default_rng(seed)
    shape = (SIZE, SIZE)
    image = rng.normal(0, 0.15, shape)
    centre = rng.uniform(18, SIZE - 18, 2)
    organ = ellipse(shape, centre, rng.uniform(7, 10, 2))
    image[organ] += 1
    found = 0
    while found < 5:
        at = rng.uniform(4, SIZE - 4, 2)
        if np.hypot(*(at - centre)) > 26:
            image[ellipse(shape, at, rng.uniform(2, 4, 2))] += 1
            found += 1
    return ((image - image.mean()) / image.std()).astype(np.float32), organ.astype(np.int32)


def scribbled(truth: np.ndarray, seed: int, kind: str = "scribbles") -> np.ndarray:
    """Classes where somebody annotated, as `python -m bundle sparsify` leaves them."""
    kept = KINDS[kind](truth, 5, np.random.default_rng(seed))
    return np.where(kept, truth, IGNORE_LABEL).astype(np.int32)


def as_data(image: np.ndarray, label: np.ndarray) -> dict[str, torch.Tensor]:
    return {"image": torch.from_numpy(image)[None], "label": torch.from_numpy(label)[None]}


def dice_of_training(cured: bool) -> tuple[float, float, float]:
    """Dice of a network taught by scribbles in new images: on their scribbles, as a validation takes it, and
    on the whole truth."""
    torch.manual_seed(0)
    network, loss = UNet(2, 1, 2, [8, 16, 32]), WeightedDiceCELoss()
    optimizer = torch.optim.AdamW(network.parameters(), 5e-3)
    patch = RandSpatialPatchd(["image", "label"], ["bilinear", "nearest"], [48, 48], foreground_prob=0.33)
    patch.set_random_state(0)
    data = []
    for seed in range(6):
        image, truth = field(seed)
        case = as_data(image, scribbled(truth, seed))
        data.append(CountClassesd("label")(FarBackgroundd("label")(case) if cured else case))
    for step in range(120):
        drawn = [patch(data[(2 * step + place) % len(data)]) for place in range(2)]
        images, labels = (torch.stack([case[key] for case in drawn]) for key in ("image", "label"))
        optimizer.zero_grad()
        loss(network(images), labels).backward()
        optimizer.step()
    network.eval()
    judged, validated, hidden = CaseMetric("dice"), CaseMetric("dice"), CaseMetric("dice")
    for seed in range(100, 106):
        image, truth = field(seed)
        with torch.no_grad():
            pred = network(torch.from_numpy(image)[None, None]).argmax(1, keepdim=True)
        label = scribbled(truth, seed)
        everywhere = np.where(label == IGNORE_LABEL, 0, label)
        known = torch.from_numpy(label)[None, None] != IGNORE_LABEL
        judged(pred * known, torch.from_numpy(everywhere)[None, None])
        validated(pred, torch.from_numpy(label)[None, None])
        hidden(pred, torch.from_numpy(truth)[None, None])
    scores = [float(metric.aggregate()) for metric in (judged, validated, hidden)]
    return scores[0], scores[1], scores[2]


def test_trap_of_scribbles_and_the_way_out() -> None:
    """Without the rule a network that is right on all scribbles is wrong nearly everywhere else."""
    judged, validated, hidden = dice_of_training(cured=False)
    assert judged > 0.9
    assert hidden < 0.25
    assert validated < 0.5  # which tells
    judged, _, hidden = dice_of_training(cured=True)
    assert judged > 0.9
    assert hidden > 0.6


def test_distances_are_those_of_brute_force() -> None:
    """In mm, where voxels are no cubes."""
    rng = np.random.default_rng(0)
    label = np.full((12, 14, 9), IGNORE_LABEL, np.int32)
    places = rng.integers(3, 6, (9, 3))
    label[tuple(places[:6].T)], label[tuple(places[6:].T)] = 0, 2
    spacing = np.array([1.0, 0.5, 2.0])
    tree = cKDTree(np.argwhere(label == 2) * spacing)
    away = tree.query(np.argwhere(label >= 0) * spacing)[0].reshape(label.shape)
    annotated = label != IGNORE_LABEL
    expected = away > away[annotated].max() + 2 * 0.5  # strokes of one voxel, 0.5 mm wide
    background = np.argwhere(label == 0)
    near, which = cKDTree(background * spacing).query(np.argwhere(label >= 0) * spacing)
    beyond = away > away[tuple(background[which].T)].reshape(label.shape)
    expected |= (1.5 * near.reshape(label.shape) < away) & beyond
    expected &= ~annotated
    assert 0.05 < expected.mean() < 0.95
    made = MetaTensor(torch.from_numpy(label)[None], affine=torch.diag(torch.tensor([*spacing, 1.0])))
    np.testing.assert_array_equal(_of_label(likely_background, made), expected)
    changed = FarBackgroundd("label")({"label": made})["label"][0].numpy()
    taken = changed != label
    assert not changed[taken].any()
    assert not taken[~expected].any()
    assert taken.sum() == TAKEN * annotated.sum() < expected.sum()


def test_the_rim_of_a_wide_object_is_left_to_it() -> None:
    """Which lies further from the stroke in its middle than from those in the background."""
    truth = ellipse((60, 60), np.array([30, 30]), np.array([16, 9]))
    label = scribbled(truth.astype(np.int32), 0)
    taken = likely_background(label == 1, label != IGNORE_LABEL)
    assert taken[truth].mean() < 0.01
    assert taken[~truth].mean() > 0.7


def test_nothing_is_known_without_foreground_or_without_background() -> None:
    annotated = np.zeros((9, 9), dtype=bool)
    annotated[4, 4:6] = True
    assert not far_from_foreground(annotated, annotated).any()
    assert not far_from_foreground(np.zeros_like(annotated), annotated).any()
    assert far_from_foreground(np.arange(81).reshape(9, 9) == 40, annotated).sum() == 81 - 29


@pytest.mark.parametrize(
    ("kind", "least", "most", "lost"),
    [("scribbles", 0.3, 1, 0), ("slices", 0, 0.01, 0), ("planes", 0, 0.01, 0), ("boxes", 0, 0.5, 0.02)],
)
def test_rule_is_right_and_does_nothing_where_slices_are_annotated(
    kind: str, least: float, most: float, lost: float
) -> None:
    """A box may cut an object, of which a few voxels are lost."""
    taken, wrong = [], []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        truth = ellipse((40, 44, 36), rng.uniform(12, 24, 3), rng.uniform(4, 9, 3)).astype(np.int32)
        label = scribbled(truth, seed, kind)
        far = far_from_foreground(label == 1, label != IGNORE_LABEL)
        taken.append(far.mean())
        wrong.append((far & (truth > 0)).sum() / truth.sum())
    assert least <= np.mean(taken) <= most
    assert np.mean(wrong) <= lost
