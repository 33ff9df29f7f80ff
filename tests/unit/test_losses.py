"""The loss against MONAI, PyTorch and a number counted by hand; what nobody annotated teaches nothing."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.bundle import ConfigParser
from monai.losses import DiceLoss

from scripts.errors import InputError
from scripts.labels import IGNORE_LABEL, RAY_UNIT
from scripts.losses import (
    DirectionsLoss,
    ExpLogLoss,
    ForegroundLoss,
    GatedCRFLoss,
    HeadsLoss,
    HeadTerm,
    KnownMSELoss,
    StarsLoss,
    WeightedDiceCELoss,
)
from tests.commands import CONFIGS

SHAPES = [(2, 3, 6, 5), (2, 4, 4, 5, 3), (1, 2, 4, 4)]


def make_batch(shape: tuple[int, ...], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (B, classes, *spatial) and a fully annotated target (B, 1, *spatial)."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(shape, generator=generator)
    target = torch.randint(0, shape[1], (shape[0], 1, *shape[2:]), generator=generator).float()
    return logits, target


def with_holes(target: torch.Tensor, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """The target with a third of its voxels ignored, and where."""
    ignored = torch.rand(target.shape, generator=torch.Generator().manual_seed(seed)) < 1 / 3
    return torch.where(ignored, float(IGNORE_LABEL), target), ignored


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("include_background", [False, True])
@pytest.mark.parametrize("batch", [False, True])
def test_annotated_batch_equals_monai_and_pytorch(shape, alpha, include_background, batch):
    logits, target = make_batch(shape)
    dice = DiceLoss(include_background, to_onehot_y=True, softmax=True, batch=batch)(logits, target)
    expected = alpha * F.cross_entropy(logits, target[:, 0].long()) + (1 - alpha) * dice
    loss = WeightedDiceCELoss(alpha, include_background=include_background, batch=batch)(logits, target)
    torch.testing.assert_close(loss, expected)


def test_value_counted_by_hand():
    """Four voxels, two classes; the third voxel is ignored. Probabilities of class 1: 1/2, 3/4, any, 1/4."""
    logits = torch.tensor([[[[0.0, 0.0, 9.0, 0.0]], [[0.0, math.log(3), 0.0, -math.log(3)]]]])
    target = torch.tensor([[[[1.0, 1.0, IGNORE_LABEL, 0.0]]]])
    cross_entropy = -(math.log(1 / 2) + math.log(3 / 4) + math.log(3 / 4)) / 3
    dice = 1 - 2 * (1 / 2 + 3 / 4) / ((1 / 2 + 3 / 4 + 1 / 4) + 2)
    for alpha in (0, 0.25, 1):
        loss = WeightedDiceCELoss(alpha)(logits, target)
        assert loss.item() == pytest.approx(alpha * cross_entropy + (1 - alpha) * dice, abs=1e-5)


def test_weighted_value_counted_by_hand():
    """The voxels of the case above with the weights 3, 0.5, 7 (ignored) and 0; Dice knows no weights."""
    logits = torch.tensor([[[[0.0, 0.0, 9.0, 0.0]], [[0.0, math.log(3), 0.0, -math.log(3)]]]])
    target = torch.tensor([[[[1.0, 1.0, IGNORE_LABEL, 0.0]], [[3.0, 0.5, 7.0, 0.0]]]])
    cross_entropy = -(3 * math.log(1 / 2) + 0.5 * math.log(3 / 4)) / 3
    dice = 1 - 2 * (1 / 2 + 3 / 4) / ((1 / 2 + 3 / 4 + 1 / 4) + 2)
    for alpha in (0, 0.25, 1):
        loss = WeightedDiceCELoss(alpha)(logits, target)
        assert loss.item() == pytest.approx(alpha * cross_entropy + (1 - alpha) * dice, abs=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_gradient_of_a_voxel_is_proportional_to_its_weight(shape):
    logits, classes = make_batch(shape)
    logits.requires_grad_()
    weight = torch.rand(classes.shape, generator=torch.Generator().manual_seed(2))
    (plain,) = torch.autograd.grad(WeightedDiceCELoss(1.0)(logits, classes), logits)
    (weighted,) = torch.autograd.grad(
        WeightedDiceCELoss(1.0)(logits, torch.cat([classes, weight], 1)), logits
    )
    torch.testing.assert_close(weighted, plain * weight)


def test_several_heads_take_weights():
    """HeadsLoss brings the target to the size of each head, weights and classes alike."""
    logits, classes = make_batch((2, 3, 8, 8))
    target = torch.cat([classes, torch.full_like(classes, 2.0)], 1)
    heads = {"main": logits, "deep1": logits[..., ::2, ::2]}
    one, two = (HeadsLoss(WeightedDiceCELoss(1.0))(heads, t) for t in (classes, target))
    torch.testing.assert_close(two, 2 * one)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("batch", [False, True])
def test_ignored_voxels_count_as_if_they_were_cut_out(shape, batch):
    """With a whole column ignored, the loss is that of the smaller picture, of MONAI and PyTorch."""
    logits, target = make_batch(shape)
    target[..., 0] = IGNORE_LABEL
    seen, known = logits[..., 1:], target[..., 1:]
    dice = DiceLoss(False, to_onehot_y=True, softmax=True, batch=batch)(seen, known)
    expected = 0.4 * F.cross_entropy(seen, known[:, 0].long()) + 0.6 * dice
    torch.testing.assert_close(WeightedDiceCELoss(0.4, batch=batch)(logits, target), expected)


@settings(max_examples=25, deadline=None)
@given(st.floats(-1e4, 1e4), st.sampled_from([0.0, 0.5, 1.0]), st.booleans())
def test_ignored_logits_change_nothing_and_get_no_gradient(value, alpha, include_background):
    logits, target = make_batch((2, 3, 5, 4))
    target, ignored = with_holes(target)
    loss = WeightedDiceCELoss(alpha, include_background=include_background)
    expected = loss(logits, target)
    replaced = torch.where(ignored, value * torch.tensor([1.0, -1, 0.5])[None, :, None, None], logits)
    replaced.requires_grad_()
    found = loss(replaced, target)
    torch.testing.assert_close(found, expected)
    found.backward()
    gradient = replaced.grad
    assert not gradient[ignored.expand_as(gradient)].any()
    assert gradient[~ignored.expand_as(gradient)].all()


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_nothing_annotated_teaches_nothing(alpha):
    logits, target = make_batch((2, 3, 4, 4))
    logits.requires_grad_()
    loss = WeightedDiceCELoss(alpha)(logits, torch.full_like(target, IGNORE_LABEL))
    assert loss.item() == 0
    loss.backward()
    assert not logits.grad.any()


@pytest.mark.parametrize("alpha", [-0.01, 1.01, float("nan")])
def test_alpha_out_of_range_is_refused(alpha):
    with pytest.raises(InputError, match=rf"alpha is {alpha}: give .* from 0 to 1"):
        WeightedDiceCELoss(alpha)


def test_class_absent_from_truth_costs_what_is_predicted_of_it():
    """Truth is class 1 alone: one sure voxel of class 2 loses its Dice, none of it wins it."""
    target = torch.ones(1, 1, 4, 4)
    sure = torch.full((1, 3, 4, 4), -30.0)
    sure[:, 1] = 30
    assert WeightedDiceCELoss(0)(sure, target).item() == pytest.approx(0, abs=1e-3)
    unsure = sure.clone()
    unsure[..., 0, 0] = torch.tensor([-30.0, -30, 30])[None, :]
    loss = WeightedDiceCELoss(0)(unsure, target)
    # class 1: 2 * 15 / (15 + 16), class 2: nothing, both halves of the mean
    assert loss.item() == pytest.approx(1 - (30 / 31 + 0) / 2, abs=1e-4)
    logits = torch.zeros(1, 3, 4, 4, requires_grad=True)
    found = WeightedDiceCELoss(0.5)(logits, torch.zeros(1, 1, 4, 4))
    found.backward()
    assert 0 < found.item() < 2
    assert torch.isfinite(logits.grad).all()


def test_class_weights_scale_each_voxel_whatever_their_type():
    logits, target = make_batch((2, 3, 6, 5))
    target, _ = with_holes(target)
    classes = target[:, 0].long()
    voxelwise = F.cross_entropy(logits, classes, ignore_index=IGNORE_LABEL, reduction="none")
    weight = (classes == 0) * 1.0 + (classes == 1) * 4.0 + (classes == 2) * 2.0
    expected = (weight * voxelwise).sum() / (classes != IGNORE_LABEL).sum()
    torch.testing.assert_close(WeightedDiceCELoss(1, class_weights=[1, 4, 2])(logits, target), expected)
    torch.testing.assert_close(
        WeightedDiceCELoss(1, class_weights=[1, 4, 2])(logits.double(), target), expected.double()
    )


@pytest.mark.parametrize(
    ("spatial", "sizes"),
    [((8, 12), [(8, 12), (4, 6), (2, 3)]), ((8, 4, 8), [(8, 4, 8), (4, 2, 4)])],
)
def test_deep_supervision_is_the_weighted_sum_over_picked_voxels(spatial, sizes):
    target, _ = with_holes(make_batch((2, 3, *spatial))[1])
    outputs = [make_batch((2, 3, *size), seed)[0] for seed, size in enumerate(sizes)]
    loss = WeightedDiceCELoss(0.5)
    expected, declared = torch.zeros(()), {0.0, 1.0, 2.0, float(IGNORE_LABEL)}
    for level, (logits, size) in enumerate(zip(outputs, sizes, strict=True)):
        picked = target
        for axis, (whole, part) in enumerate(zip(spatial, size, strict=True), start=2):
            centres = [int((i + 0.5) * whole / part) for i in range(part)]  # the voxel under each centre
            picked = picked.index_select(axis, torch.tensor(centres))
        assert set(F.interpolate(target, size, mode="nearest-exact").unique().tolist()) <= declared
        expected = expected + 0.5**level * loss(logits, picked)
    heads = {f"head{index}": output for index, output in enumerate(outputs)}
    torch.testing.assert_close(HeadsLoss(loss, weight_mode="exp")(heads, target), expected)
    torch.testing.assert_close(HeadsLoss(loss)(outputs[0], target), loss(outputs[0], target))


def configured(name: str) -> torch.nn.Module:
    """The loss of a file in configs/loss, with half of it the cross entropy where it is a sum."""
    parser = ConfigParser({"alpha": 0.5})
    parser.update({"loss": ConfigParser.load_config_file(CONFIGS / f"loss/{name}.json")["loss"]})
    return parser.get_parsed_content("loss")


@pytest.mark.parametrize("name", sorted(file.stem for file in (CONFIGS / "loss").glob("*.json")))
def test_every_loss_leaves_out_what_nobody_annotated(name):
    """Neither the value nor the gradient knows of an ignored voxel; every other voxel teaches something."""
    loss = configured(name)
    for shape in ((2, 3, 6, 5), (1, 4, 4, 5, 3)):
        logits, target = make_batch(shape)
        target, ignored = with_holes(target)
        everywhere = ignored.expand_as(logits)
        found = []
        for other in (logits, torch.where(everywhere, 50 * logits.flip(1), logits)):
            other = other.clone().requires_grad_()
            value = loss(other, target)
            found.append((value, torch.autograd.grad(value, other)[0]))
        (value, gradient), (value_too, gradient_too) = found
        torch.testing.assert_close(value, value_too)
        torch.testing.assert_close(gradient, gradient_too)
        assert value.isfinite()
        assert not gradient[everywhere].any()
        assert gradient[~everywhere].any()
        nothing = torch.full_like(target, IGNORE_LABEL)
        (still,) = torch.autograd.grad(loss(logits.requires_grad_(), nothing), logits)
        assert not still.any()


#: Three voxels that count, of the classes 1, 1 and 0, and the probabilities of class 1 at them.
THREE = [1 / 2, 3 / 4, 1 / 4]


def three_voxels() -> tuple[torch.Tensor, torch.Tensor]:
    """The case of `test_value_counted_by_hand`, in which the third of four voxels is ignored."""
    logits = torch.tensor([[[[0.0, 0.0, 9.0, 0.0]], [[0.0, math.log(3), 0.0, -math.log(3)]]]])
    return logits, torch.tensor([[[[1.0, 1.0, IGNORE_LABEL, 0.0]]]])


def by_hand() -> dict[str, float]:
    right = [THREE[0], THREE[1], 1 - THREE[2]]  # the probability of the class that is there
    inside = THREE[0] + THREE[1]
    dice = (2 * inside + 1) / (sum(THREE) + 2 + 1)
    cross = {power: sum((-math.log(p)) ** power for p in right) / 3 for power in (0.3, 1)}
    both = inside / 2**2 + right[2] / 1**2
    sums = (sum(THREE) + 2) / 2**2 + (3 - sum(THREE) + 1) / 1**2
    return {
        "focal": sum((1 - p) ** 2 * -math.log(p) for p in right) / 3,
        "vnet_dice": 1 - 2 * inside / (sum(p**2 for p in THREE) + 2),
        "generalised_dice": 1 - 2 * both / sums,
        "exponential_logarithmic": 0.5 * cross[0.3] + 0.5 * (-math.log(dice)) ** 0.3,
        "mss": 0.5 * cross[1] + 0.5 * (-math.log(dice)) ** 0.3,
    }


@pytest.mark.parametrize("name", sorted(by_hand()))
def test_losses_of_the_field_counted_by_hand(name):
    assert configured(name)(*three_voxels()).item() == pytest.approx(by_hand()[name], abs=1e-5)


def test_generalised_dice_is_the_same_in_a_large_image():
    """1 / voxels squared is far below the 1e-5 that MONAI adds to both sums."""
    logits, target = make_batch((1, 3, 6, 5))
    target[..., 0] = IGNORE_LABEL
    small = configured("generalised_dice")(logits, target)
    large = configured("generalised_dice")(logits.repeat(1, 1, 200, 100), target.repeat(1, 1, 200, 100))
    assert large.item() == pytest.approx(small.item(), rel=1e-3)


def test_weights_of_the_exponential_logarithmic_loss():
    logits, target = make_batch((2, 3, 6, 5))
    one, two = (ExpLogLoss(0.0, dice_weights=weights)(logits, target) for weights in ([1, 0], [0, 1]))
    both = ExpLogLoss(0.0, dice_weights=[0.4, 0.6])(logits, target)
    torch.testing.assert_close(both, 0.4 * one + 0.6 * two)
    plain = ExpLogLoss(1.0, gamma_cross=1.0, class_weights=[1, 4, 2])(logits, target)
    torch.testing.assert_close(plain, WeightedDiceCELoss(1.0, class_weights=[1, 4, 2])(logits, target))
    with pytest.raises(InputError, match=r"dice_weights \[0.4, 0.6, 1\] has 3 entries: give 2"):
        ExpLogLoss(dice_weights=[0.4, 0.6, 1])(logits, target)
    with pytest.raises(InputError, match="gamma is 0: use a power above 0"):
        ExpLogLoss(gamma=0)


def test_a_sure_answer_has_a_finite_slope():
    """Powers below one are vertical at 0, where all is right."""
    target = torch.zeros(1, 1, 4, 4)
    target[..., 2:] = 1
    logits = torch.cat([1 - target, target], 1) * 200
    logits.requires_grad_()
    ExpLogLoss()(logits, target).backward()
    assert logits.grad.isfinite().all()


def test_heads_have_losses_targets_and_weights_of_their_own():
    """A mask and distances from channels of one target; a head of weight 0 is held to nothing."""
    mask, classes = make_batch((2, 1, 6, 5))[0], make_batch((2, 3, 6, 5), 1)[1]
    classes, ignored = with_holes(classes)
    distance = torch.rand(classes.shape, generator=torch.Generator().manual_seed(3))
    predicted = torch.rand(classes.shape, generator=torch.Generator().manual_seed(4))
    target = torch.cat([classes, torch.where(ignored, float(IGNORE_LABEL), distance)], 1)
    loss = HeadsLoss(
        WeightedDiceCELoss(1.0),
        {
            "main": HeadTerm(weight=0),
            "mask": HeadTerm(ForegroundLoss(WeightedDiceCELoss(1.0)), channel=0, weight=1.5),
            "distance": HeadTerm(KnownMSELoss(), channel=1, weight=0.25),
        },
    )
    known = ~ignored
    expected = 1.5 * F.binary_cross_entropy_with_logits(mask[known], (classes[known] > 0).float())
    expected = expected + 0.25 * F.mse_loss(predicted[known], distance[known])
    heads = {"main": torch.full((2, 3, 6, 5), torch.nan), "mask": mask, "distance": predicted}
    torch.testing.assert_close(loss(heads, target), expected)
    with pytest.raises(InputError, match="held to channel 1 of a target that has 1: add the transforms"):
        loss(heads, target[:, :1])
    with pytest.raises(InputError, match="channel 2 of the target teaches no head: name it"):
        loss(heads, torch.cat([target, classes], 1))
    with pytest.raises(InputError, match="heads names distance, and the network's heads are main, mask: "):
        loss({"main": mask, "mask": mask}, target)


def test_heads_weigh_the_same_where_asked():
    logits, target = make_batch((2, 3, 6, 5))
    loss = WeightedDiceCELoss()
    heads = dict.fromkeys(("main", "deep1", "deep2"), logits)
    torch.testing.assert_close(HeadsLoss(loss, weight_mode="same")(heads, target), 3 * loss(logits, target))
    with pytest.raises(InputError, match="weight_mode is 'two'"):
        HeadsLoss(loss, weight_mode="two")
    with pytest.raises(InputError, match="weight is -1"):
        HeadTerm(weight=-1)


@pytest.mark.parametrize("dims", [2, 3])
def test_directions_are_a_soft_cross_entropy_over_the_objects(dims):
    shape = (2, 1, *(6, 5, 4)[:dims])
    generator = torch.Generator().manual_seed(2)
    classes = torch.randint(0, 3, shape, generator=generator).float()
    classes, ignored = with_holes(classes)
    objects = (classes > 0) & ~ignored
    vectors = torch.randn((2, dims, *shape[2:]), generator=generator) * objects
    logits = torch.randn((2, 1 + 2 * dims, *shape[2:]), generator=generator)
    # PyTorch's cross entropy with shares as its target, of the voxels of objects one by one
    rows = logits.movedim(1, -1)[objects[:, 0]][:, 1:]
    parts = vectors.movedim(1, -1)[objects[:, 0]]
    shares = torch.stack([-parts, parts], -1).clamp(min=0).flatten(1)
    expected = 0.5 * F.cross_entropy(rows, shares / shares.sum(1, keepdim=True))
    background = logits.softmax(1)[:, :1]
    mask = F.binary_cross_entropy(1 - background[~ignored], (classes[~ignored] > 0).float())
    target = torch.cat([classes, vectors], 1)
    loss = DirectionsLoss(WeightedDiceCELoss(1.0), weight=0.5)
    torch.testing.assert_close(loss(logits, target), expected + mask)
    ignoring = torch.where(ignored, logits + 7, logits)
    torch.testing.assert_close(loss(ignoring, target), expected + mask)


def test_directions_of_other_channels_are_refused():
    loss, logits = DirectionsLoss(WeightedDiceCELoss()), torch.zeros(1, 5, 4, 4)
    for classes, channels in ((3, 3), (5, 2), (5, 1)):
        with pytest.raises(InputError, match="directions in 2 dimensions are 5 classes, and the target"):
            loss(logits[:, :classes], torch.zeros(1, channels, 4, 4))
    assert loss(logits, torch.full((1, 3, 4, 4), float(IGNORE_LABEL))) == 0


def all_pairs(logits: torch.Tensor, image: torch.Tensor, radius: list[int], sigma: float) -> float:
    """The energy of the paper, over every neighbour of every voxel, counted one by one."""
    p, means = logits.softmax(1), []
    reach = [range(-r, r + 1) for r in radius]
    for steps in itertools.product(*reach):
        if any(steps):
            sizes = logits.shape[2:]
            pairs = [
                (place, tuple(n + step for n, step in zip(place, steps, strict=True)))
                for place in itertools.product(*map(range, sizes))
            ]
            inside = [
                (a, b) for a, b in pairs if all(0 <= n < size for n, size in zip(b, sizes, strict=True))
            ]
            energies = []
            for a, b in inside:
                here, there = (0, slice(None), *a), (0, slice(None), *b)
                alike = math.exp(-float((image[here] - image[there]).square().sum()) / (2 * sigma**2))
                energies.append(alike * (1 - float((p[here] * p[there]).sum())))
            means.append(sum(energies) / len(energies))
    return sum(means) / len(means)


@pytest.mark.parametrize(("sizes", "radius"), [((4, 5), [1, 2]), ((3, 4, 2), [1, 1, 0]), ((6, 1), [2, 2])])
def test_energy_of_pairs_is_that_of_all_neighbours_on_average(sizes, radius):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn((1, 3, *sizes), generator=generator)
    image = torch.randn((1, 2, *sizes), generator=generator)
    target = torch.cat([torch.full((1, 1, *sizes), float(IGNORE_LABEL)), image], dim=1)
    loss = GatedCRFLoss(WeightedDiceCELoss(), radius=radius, weight=1.0, sigma=0.8, pairs=4000)
    torch.manual_seed(0)
    reach = [min(r, size - 1) for r, size in zip(radius, sizes, strict=True)]
    assert float(loss(logits, target)) == pytest.approx(all_pairs(logits, image, reach, 0.8), rel=0.03)


def test_a_rim_costs_least_where_the_image_has_its_edge():
    image = torch.zeros(1, 1, 8, 8)
    image[..., 4:] = 3
    rims = {}
    for rim in (2, 3, 4, 5):
        logits = torch.zeros(1, 2, 8, 8)
        logits[:, 1, :, rim:], logits[:, 0, :, :rim] = 9, 9
        target = torch.cat([torch.full_like(image, IGNORE_LABEL), image], dim=1)
        torch.manual_seed(0)
        rims[rim] = float(GatedCRFLoss(WeightedDiceCELoss(), radius=2)(logits, target))
    assert min(rims, key=rims.__getitem__) == 4
    assert rims[4] < 0.01 < rims[3]


def test_without_weight_or_neighbours_it_is_the_loss_alone():
    logits = torch.randn(1, 2, 4, 4)
    target = torch.cat([torch.randint(2, (1, 1, 4, 4)).float(), torch.randn(1, 1, 4, 4)], dim=1)
    alone = WeightedDiceCELoss()(logits, target[:, :1])
    for settings_ in ({"weight": 0.0}, {"radius": 0}):
        assert torch.equal(GatedCRFLoss(WeightedDiceCELoss(), **settings_)(logits, target), alone)


@pytest.mark.parametrize(
    "wrong", [{"radius": -1}, {"radius": [1, -1]}, {"weight": -0.1}, {"sigma": 0}, {"pairs": 0}]
)
def test_neighbours_out_of_range_are_refused(wrong):
    with pytest.raises(InputError, match=f"{next(iter(wrong))} is"):
        GatedCRFLoss(WeightedDiceCELoss(), **wrong)
    with pytest.raises(InputError, match="radius is"):
        GatedCRFLoss(WeightedDiceCELoss(), radius=[1, 1, 1])(torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 4, 4))


def test_stars_are_a_mask_a_depth_and_ratios_of_distances():
    """Each part by itself, from probabilities, voxel by voxel."""
    generator = torch.Generator().manual_seed(2)
    shape, rays = (2, 1, 6, 5), 8
    classes = torch.randint(0, 3, shape, generator=generator).float()
    classes, ignored = with_holes(classes)
    objects = (classes > 0) & ~ignored
    depth = torch.rand(shape, generator=generator) * objects
    distances = (1 + 20 * torch.rand((2, rays, 6, 5), generator=generator)) * objects
    distances *= torch.where(torch.rand(distances.shape, generator=generator) < 0.3, -1, 1)
    logits = torch.randn((2, 3 + rays, 6, 5), generator=generator)
    probabilities = logits.softmax(1)
    mask = F.binary_cross_entropy(1 - probabilities[:, :1][~ignored], (classes[~ignored] > 0).float())
    share = 1 - probabilities[:, 2:3] / (1 - probabilities[:, :1])
    entropy = F.binary_cross_entropy(share[objects], depth[objects])
    total = 0.0
    for b, row, column in objects[:, 0].nonzero().tolist():
        found = RAY_UNIT * probabilities[b, 3:, row, column] / probabilities[b, 1, row, column]
        true = distances[b, :, row, column]
        error = (found.log() - true.abs().log()).abs()
        error[(true < 0) & (found > -true)] = 0  # at least so far
        total += float(depth[b, 0, row, column] * error.mean())
    expected = mask + 0.3 * entropy + 0.7 * total / depth.sum()
    target = torch.cat([classes, depth, distances], 1)
    loss = StarsLoss(WeightedDiceCELoss(1.0), depth_weight=0.3, distance_weight=0.7)
    torch.testing.assert_close(loss(logits, target), expected)
    torch.testing.assert_close(loss(torch.where(ignored, logits + 7, logits), target), expected)


def test_stars_of_other_channels_are_refused():
    loss, logits = StarsLoss(WeightedDiceCELoss()), torch.zeros(1, 11, 4, 4)
    for classes, channels in ((11, 9), (11, 2), (10, 10)):
        with pytest.raises(InputError, match=f"gives {classes} channels for a target of {channels}"):
            loss(logits[:, :classes], torch.zeros(1, channels, 4, 4))
    assert loss(logits, torch.full((1, 10, 4, 4), float(IGNORE_LABEL))) == 0
