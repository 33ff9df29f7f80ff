"""Losses that leave out what nobody annotated: of classes, of distances, and their sum over several heads.

Sources:
    O. Ronneberger, P. Fischer, T. Brox, "U-Net: Convolutional Networks for Biomedical Image Segmentation",
    MICCAI 2015, equation 1: the sum of w(x) log p(x) over the pixels; here divided by their number.
    C. H. Sudre et al., "Generalised Dice Overlap as a Deep Learning Loss Function for Highly Unbalanced
    Segmentations", DLMIA 2017.
    K. C. L. Wong, M. Moradi, H. Tang, T. Syeda-Mahmood, "3D Segmentation with Exponential Logarithmic Loss
    for Highly Unbalanced Object Sizes", MICCAI 2018.
    W. Zhao, D. Jiang, J. Pena Queralta, T. Westerlund, "MSS U-Net: 3D segmentation of kidneys and tumors from
    CT images with a multi-scale supervised U-Net", Informatics in Medicine Unlocked 19, 2020.
    U. Schmidt, M. Weigert, C. Broaddus, G. Myers, "Cell Detection with Star-convex Polygons", MICCAI 2018.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from monai.losses import DiceLoss, GeneralizedDiceLoss
from monai.networks import one_hot
from torch import nn

from scripts.errors import InputError, require_one_of, require_within
from scripts.labels import BEFORE_RAYS, IGNORE_LABEL, RAY_UNIT
from scripts.networks.heads import MAIN_HEAD

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

#: Generalised Dice divides sums over the square of a class's voxels: MONAI's 1e-5 would drown those of large
#: ones. This is below the share of a class that fills a volume of 1000 x 1000 x 1000.
GENERALISED_SMOOTH = 1e-12

#: Voxels that Dice takes for granted in the exponential logarithmic loss (Wong et al., 2018, equation 3).
PSEUDOCOUNT = 1.0

#: By the exponential of so many times the loss the energy of pairs is held back.
HELD_BACK = 10.0

#: Logarithms below this count as this: a power below one has no bounded slope at 0.
LEAST_LOGARITHM = 1e-6


@dataclass(frozen=True)
class HeadTerm:
    """What one head of a network is held to.

    Attributes:
        loss: takes the head's logits and a target; None takes that of `HeadsLoss`.
        channel: the channel of the target that it is held to, counted from 0; None takes all of them.
        weight: 0 or more; with 0 the head is not held to anything.
    """

    loss: Loss | None = None
    channel: int | None = None
    weight: float = 1.0

    def __post_init__(self) -> None:
        require_within("weight", self.weight, 0)
        if self.channel is not None:
            require_within("channel", self.channel, 0)


class HeadsLoss(nn.Module):
    """The weighted sum of the losses of a network's heads, each against a target of the head's size.

    Args:
        loss: of every head that ``heads`` does not name, against the whole target.
        heads: `HeadTerm` of each head that is to have a loss, a target or a weight of its own, by its name;
            a network with one head gives "main".
        weight_mode: weights of the heads that ``heads`` does not name: "same" for 1, or "exp" for 1 for the
            first head, and half of the one before for each that follows.

    Raises:
        InputError: another ``weight_mode``.
    """

    def __init__(
        self, loss: Loss, heads: Mapping[str, HeadTerm] | None = None, weight_mode: str = "exp"
    ) -> None:
        super().__init__()
        require_one_of("weight_mode", weight_mode, ("exp", "same"))
        self.loss = loss
        self.heads = dict(heads or {})
        self.decay = 0.5 if weight_mode == "exp" else 1.0

    def forward(
        self, logits: torch.Tensor | Mapping[str, torch.Tensor], target: torch.Tensor
    ) -> torch.Tensor:
        """Loss of a batch.

        Args:
            logits: (B, classes, *spatial); or those of several heads by name, from high to low resolution.
            target: (B, channels, *spatial), see the losses; shrunk for smaller heads by taking the nearest.

        Returns:
            A scalar.

        Raises:
            InputError: a list, of which nothing says what each entry is; ``heads`` names a head that is not
                there, or a channel that the target lacks; a channel of the target that no head is held to.
        """
        if isinstance(logits, list | tuple):
            raise InputError(
                f"the network gives a {type(logits).__name__} of {len(logits)} outputs, and nothing says "
                "what they are: have it give a dictionary by name, or set train::loss_function to MONAI's "
                "DeepSupervisionLoss if they are its levels"
            )
        heads = logits if isinstance(logits, Mapping) else {MAIN_HEAD: logits}
        terms = {
            name: self.heads.get(name, HeadTerm(weight=self.decay**place)) for place, name in enumerate(heads)
        }
        self._check(terms, target)
        total = target.new_zeros(())
        for name, term in terms.items():
            if term.weight > 0:
                part = target if term.channel is None else target[:, term.channel : term.channel + 1]
                if part.shape[2:] != heads[name].shape[2:]:
                    part = F.interpolate(part, heads[name].shape[2:], mode="nearest-exact")
                total = total + term.weight * (term.loss or self.loss)(heads[name], part)
        return total

    def _check(self, terms: Mapping[str, HeadTerm], target: torch.Tensor) -> None:
        if missing := self.heads.keys() - terms.keys():
            raise InputError(
                f"heads names {', '.join(sorted(missing))}, and the network's heads are {', '.join(terms)}: "
                "name only those"
            )
        given = set(range(target.shape[1]))
        held = {term.channel for term in terms.values() if term.weight > 0}
        channels = {channel for channel in held if channel is not None} | (given if None in held else set())
        if channels - given:
            raise InputError(
                f"a head is held to channel {max(channels)} of a target that has {len(given)}: add the "
                "transforms that make it; an overlay that has them, as configs/network/dual_decoder.json, "
                "goes after the task in the list of configs"
            )
        if given - channels:
            raise InputError(
                f"channel {max(given - channels)} of the target teaches no head: name it in heads, or leave "
                "out the overlay that makes it"
            )


class ForegroundLoss(nn.Module):
    """A loss of two classes, background and all others, of one logit a voxel: that of the others.

    Args:
        loss: takes logits (B, 2, *spatial) and a target (B, 1, *spatial) of the classes 0 and 1.
        ignore_label: class index of voxels that nobody annotated; stays as it is.
    """

    def __init__(self, loss: Loss, ignore_label: int = IGNORE_LABEL) -> None:
        super().__init__()
        self.loss = loss
        self.ignore_label = ignore_label

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Loss of a batch.

        Args:
            logits: (B, 1, *spatial); the sigmoid is the probability of the foreground.
            target: (B, 1, *spatial), class indices or ``ignore_label``.

        Returns:
            A scalar.
        """
        mask = torch.where(target == self.ignore_label, target, target.clamp(max=1))
        # the softmax of 0 and a logit is the sigmoid of the logit
        return self.loss(torch.cat([torch.zeros_like(logits), logits], dim=1), mask)


class DirectionsLoss(nn.Module):
    """A loss of the foreground, and the cross entropy of the direction in which the middle of an object lies.

    A direction between two axes asks for a share of both, as `InstancesFromDirectionsd` reads it.

    Args:
        loss: takes logits (B, 2, *spatial) and a target (B, 1, *spatial) of the classes 0 and 1, as
            `ForegroundLoss` gives them.
        weight: of the cross entropy, a mean over the voxels of objects, 0 or more.
        ignore_label: class index of voxels that nobody annotated.
    """

    def __init__(self, loss: Loss, weight: float = 0.5, ignore_label: int = IGNORE_LABEL) -> None:
        super().__init__()
        require_within("weight", weight, 0)
        self.foreground = ForegroundLoss(loss, ignore_label)
        self.weight = weight
        self.ignore_label = ignore_label

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Loss of a batch.

        Args:
            logits: (B, 1 + 2 * axes, *spatial), of background and, for each axis, lower and higher indices.
            target: (B, 1 + axes, *spatial), class indices or ``ignore_label``; and the vector to the middle,
                zero there.

        Returns:
            A scalar.

        Raises:
            InputError: channels that do not fit together.
        """
        axes = target.shape[1] - 1
        if axes != target.ndim - 2 or logits.shape[1] != 1 + 2 * axes:
            raise InputError(
                f"the network gives {logits.shape[1]} channels for a target of {target.shape[1]}: directions "
                f"in {target.ndim - 2} dimensions are {2 * target.ndim - 3} classes, and the target has one "
                "channel for them and one for each axis"
            )
        classes, vectors = target[:, :1], target[:, 1:]
        inside = logits[:, 1:].logsumexp(1, keepdim=True)
        loss = self.foreground(inside - logits[:, :1], classes)
        objects = (classes > 0) & (classes != self.ignore_label)
        # (B, axes, 2, *spatial): what leads to lower and to higher indices
        parts = torch.stack([-vectors, vectors], dim=2).clamp(min=0).flatten(1, 2) * objects
        share = parts / parts.sum(1, keepdim=True).clamp(min=1e-6)  # the middle has none
        entropy = (share * (inside - logits[:, 1:])).sum() / objects.sum().clamp(min=1)
        return loss + self.weight * entropy


class StarsLoss(nn.Module):
    """A loss of the foreground, of how deep in its object a voxel lies, and of distances to the border.

    Distances count by the logarithm of their ratio, so that small objects weigh as much as large ones, and
    where a voxel lies deep. A distance that is only known to be at least so large teaches no less.

    Args:
        loss: takes logits (B, 2, *spatial) and a target (B, 1, *spatial) of the classes 0 and 1, as
            `ForegroundLoss` gives them.
        depth_weight: of the cross entropy of the depth, a mean over the voxels of objects, 0 or more.
        distance_weight: of the error of the distances, a mean over these voxels and the rays, 0 or more.
        ignore_label: class index of voxels that nobody annotated.
    """

    def __init__(
        self,
        loss: Loss,
        depth_weight: float = 0.5,
        distance_weight: float = 1.0,
        ignore_label: int = IGNORE_LABEL,
    ) -> None:
        super().__init__()
        require_within("depth_weight", depth_weight, 0)
        require_within("distance_weight", distance_weight, 0)
        self.foreground = ForegroundLoss(loss, ignore_label)
        self.depth_weight = depth_weight
        self.distance_weight = distance_weight
        self.ignore_label = ignore_label

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Loss of a batch.

        Args:
            logits: (B, 3 + rays, *spatial), of background, interior, border and rays.
            target: (B, 2 + rays, *spatial), class indices or ``ignore_label``; the depth, 0 to 1; and
                distances in pixels, negative where they are at least as large.

        Returns:
            A scalar.

        Raises:
            InputError: channels that do not fit together.
        """
        rays = target.shape[1] - 2
        if rays < 1 or logits.shape[1] != BEFORE_RAYS + rays:
            raise InputError(
                f"the network gives {logits.shape[1]} channels for a target of {target.shape[1]}: name in "
                "labels as many rays as InstancesToStarsd makes, with two channels beside them"
            )
        classes, stars = target[:, :1], target[:, 1:]
        background, inside = logits.split([1, BEFORE_RAYS + rays - 1], dim=1)
        loss = self.foreground(inside.float().logsumexp(1, keepdim=True) - background, classes)
        objects = ((classes > 0) & (classes != self.ignore_label)).flatten().nonzero()[:, 0]
        if not len(objects):
            return loss
        found, true = _voxels(logits, objects).float(), _voxels(stars, objects)
        _, interior, border, ray = found.split([1, 1, 1, rays], dim=1)  # (voxels, 1), ray (voxels, rays)
        depth, distances = true[:, :1], true[:, 1:]
        deep = torch.logaddexp(interior, ray.logsumexp(1, keepdim=True))
        entropy = F.binary_cross_entropy_with_logits(deep - border, depth)
        ratio = ray - interior + math.log(RAY_UNIT) - distances.abs().log()
        error = torch.where(distances > 0, ratio.abs(), (-ratio).clamp(min=0)).mean(1, keepdim=True)
        distance = (depth * error).sum() / depth.sum()
        return loss + self.depth_weight * entropy + self.distance_weight * distance


def _voxels(maps: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Some voxels of maps (B, C, *spatial), by flat indices of (B, *spatial): (voxels, C)."""
    return maps.movedim(1, -1).flatten(0, -2).index_select(0, chosen)


class KnownMSELoss(nn.Module):
    """Mean squared error over the voxels that somebody annotated.

    Args:
        ignore_label: value of the target where nobody did.
    """

    def __init__(self, ignore_label: int = IGNORE_LABEL) -> None:
        super().__init__()
        self.ignore_label = ignore_label

    def forward(self, predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Loss of a batch.

        Args:
            predicted: (B, 1, *spatial).
            target: (B, 1, *spatial), what is to be predicted, or ``ignore_label``.

        Returns:
            A scalar; zero where every voxel is ignored.
        """
        known = target != self.ignore_label
        error = torch.where(known, predicted - target, torch.zeros_like(predicted))
        return error.square().sum() / known.sum().clamp(min=1)


class WeightedDiceCELoss(nn.Module):
    """``alpha * CE + (1 - alpha) * Dice``; MONAI's own sum cannot ignore a label.

    Args:
        alpha: weight of the cross entropy, in [0, 1]; 1 is cross entropy alone, 0 is Dice alone.
        ignore_label: class index of voxels that neither term sees.
        include_background: whether class 0 enters the Dice term.
        batch: whether Dice counts over the whole batch, which is steadier where a sample lacks a class.
        class_weights: weight of each class in the cross entropy, or None. The weighted sum is divided by the
            number of annotated voxels, not by their weights as PyTorch does.

    Raises:
        InputError: ``alpha`` outside [0, 1].
    """

    def __init__(
        self,
        alpha: float = 0.5,
        ignore_label: int = IGNORE_LABEL,
        include_background: bool = False,
        batch: bool = True,
        class_weights: list[float] | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= alpha <= 1:
            raise InputError(f"alpha is {alpha}: give the cross entropy a weight from 0 to 1")
        self.alpha = alpha
        self.ignore_label = ignore_label
        self.class_weights = None if class_weights is None else torch.tensor(class_weights)
        self.dice = DiceLoss(
            include_background=include_background,
            to_onehot_y=True,
            softmax=True,
            batch=batch,
            ignore_index=ignore_label,
        )

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Loss of a batch.

        Args:
            logits: (B, classes, *spatial).
            target: (B, 1, *spatial), class indices or ``ignore_label``; or (B, 2, *spatial), with the weight
                of each voxel in the cross entropy in the second channel, 0 or more.

        Returns:
            A scalar; zero where every voxel is ignored.
        """
        classes, weight = target[:, :1], target[:, 1:]
        loss = logits.new_zeros(())
        if self.alpha > 0:
            loss = loss + self.alpha * self._cross_entropy(logits, classes, weight)
        if self.alpha < 1:
            loss = loss + (1 - self.alpha) * self.dice(logits, classes)
        return loss

    def _cross_entropy(
        self, logits: torch.Tensor, target: torch.Tensor, weight: torch.Tensor
    ) -> torch.Tensor:
        classes = target[:, 0].long()
        known = (classes != self.ignore_label).sum().clamp(min=1)
        class_weights = None if self.class_weights is None else self.class_weights.to(logits)
        each = F.cross_entropy(
            logits, classes, weight=class_weights, ignore_index=self.ignore_label, reduction="none"
        )
        return (each * weight[:, 0] if weight.shape[1] else each).sum() / known


class GatedCRFLoss(nn.Module):
    """``loss + weight * exp(-10 * loss) * energy``: neighbours that look alike have the same class.

    The energy is the mean over all voxels and their neighbours of ``k * (1 - sum_c p_c q_c)``: p and q are
    the probabilities of the classes at both, and k is ``exp(-(difference of intensities / sigma) ** 2 / 2)``,
    over all channels of the image. So the rim of an object, which no stroke shows, is laid where the image
    has an edge.

    Source: A. Obukhov, S. Georgoulis, D. Dai, L. Van Gool, "Gated CRF Loss for Weakly Supervised Semantic
    Image Segmentation", 2019, equations 3 to 5. Ours: a step draws a few of the neighbours, the same for all
    voxels; within the neighbourhood distance has no weight, as theirs hardly falls off; the energy is a mean
    and no sum over neighbours, so that volumes, where they are many, weigh as images do; and it is held back
    as long as what is annotated is not learnt, since it is least where a single class is everywhere, which
    rare classes do not get out of.

    Args:
        loss: of the logits and the classes, such as `WeightedDiceCELoss`.
        radius: of the neighbourhood, in voxels, 0 or more: one number for all axes, or one for each.
        weight: 0 or more; the paper has 0.1 for the sum over 120 neighbours.
        sigma: in the unit of the normalised image, above 0.
        pairs: neighbours that a step draws, 1 or more.

    Raises:
        InputError: an argument outside its range; when called, another number of axes.
    """

    def __init__(
        self,
        loss: Loss,
        radius: int | Sequence[int] = 5,
        weight: float = 12.0,
        sigma: float = 0.5,
        pairs: int = 8,
    ) -> None:
        super().__init__()
        for reach in [radius] if isinstance(radius, int) else radius:
            require_within("radius", reach, 0)
        require_within("weight", weight, 0)
        require_within("pairs", pairs, 1)
        if not sigma > 0:
            raise InputError(f"sigma is {sigma!r}: use a number above 0, in the unit of the normalised image")
        self.loss = loss
        self.radius = radius
        self.weight = weight
        self.sigma = sigma
        self.pairs = pairs

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Loss of a batch.

        Args:
            logits: (B, classes, *spatial).
            target: (B, 1 + channels, *spatial), class indices or the ignored label, and the image.

        Returns:
            A scalar.
        """
        classes, image = target[:, :1], target[:, 1:]
        loss = self.loss(logits, classes)
        if self.weight == 0:
            return loss
        held_back = torch.exp(-HELD_BACK * loss.detach())
        return loss + self.weight * held_back * self._energy(logits, image)

    def _energy(self, logits: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        axes = logits.ndim - 2
        radius = [self.radius] * axes if isinstance(self.radius, int) else list(self.radius)
        if len(radius) != axes:
            raise InputError(
                f"radius is {radius} and the image has {axes} axes: give one number an axis, or one"
            )
        sides = [2 * min(reach, size - 1) + 1 for reach, size in zip(radius, logits.shape[2:], strict=True)]
        places = math.prod(sides)
        p = logits.float().softmax(1)
        energy = p.new_zeros(())
        if places == 1:
            return energy
        middle = places // 2
        for drawn in torch.randint(places - 1, (self.pairs,)).tolist():
            place = np.unravel_index(drawn + (drawn >= middle), sides)
            here, there = _apart([int(n) - side // 2 for n, side in zip(place, sides, strict=True)])
            alike = torch.exp(-(image[here] - image[there]).square().sum(1) / (2 * self.sigma**2))
            energy = energy + (alike * (1 - (p[here] * p[there]).sum(1))).mean()
        return energy / self.pairs


def _apart(steps: Sequence[int]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Two views of (B, channels, *spatial) in which the same place is so many voxels apart."""
    every = (slice(None), slice(None))
    here = (slice(max(step, 0), min(step, 0) or None) for step in steps)
    there = (slice(max(-step, 0), min(-step, 0) or None) for step in steps)
    return (*every, *here), (*every, *there)


class GeneralisedDiceLoss(nn.Module):
    """MONAI's GeneralizedDiceLoss, which cannot ignore a label: classes weigh 1 / voxels squared.

    Args:
        ignore_label: class index of voxels that are not seen.
        include_background: whether class 0 is one of them, as in the paper.
        batch: whether sums are over the whole batch.
    """

    def __init__(
        self, ignore_label: int = IGNORE_LABEL, include_background: bool = True, batch: bool = True
    ) -> None:
        super().__init__()
        self.ignore_label = ignore_label
        self.dice = GeneralizedDiceLoss(
            include_background=include_background,
            batch=batch,
            smooth_nr=GENERALISED_SMOOTH,
            smooth_dr=GENERALISED_SMOOTH,
        )

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Loss of a batch.

        Args:
            logits: (B, classes, *spatial).
            target: (B, 1, *spatial), class indices or ``ignore_label``.

        Returns:
            A scalar, 0 to 1; zero where every voxel is ignored.
        """
        return self.dice(*_known_alone(logits, target, self.ignore_label))


class ExpLogLoss(nn.Module):
    """``alpha * mean((-ln p) ** gamma_cross) + (1 - alpha) * mean((-ln Dice) ** gamma)``.

    With powers below one, what is nearly right still counts; Dice is that of each class but the background,
    over the whole batch. `gamma_cross` 1 leaves the cross entropy as it is, as the code of MSS U-Net does.

    Args:
        alpha: weight of the cross entropy, in [0, 1]; the paper has 0.2.
        gamma: power of the logarithm of Dice, above 0.
        gamma_cross: power of the cross entropy of a voxel, above 0.
        dice_weights: weight of each class but the background in the mean of Dice, or None for equal ones.
        class_weights: weight of each class in the cross entropy, whose sum is divided by the number of
            annotated voxels; or None. The paper has the square root of all voxels over those of the class.
        ignore_label: class index of voxels that neither term sees.

    Raises:
        InputError: an argument outside its range; when called, weights of another number of classes.
    """

    def __init__(
        self,
        alpha: float = 0.5,
        gamma: float = 0.3,
        gamma_cross: float = 0.3,
        dice_weights: list[float] | None = None,
        class_weights: list[float] | None = None,
        ignore_label: int = IGNORE_LABEL,
    ) -> None:
        super().__init__()
        require_within("alpha", alpha, 0, 1)
        for name, power in (("gamma", gamma), ("gamma_cross", gamma_cross)):
            if not power > 0:
                raise InputError(f"{name} is {power!r}: use a power above 0, such as 0.3 or 1")
        self.alpha = alpha
        self.gamma = gamma
        self.gamma_cross = gamma_cross
        self.dice_weights = dice_weights
        self.class_weights = class_weights
        self.ignore_label = ignore_label

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Loss of a batch.

        Args:
            logits: (B, classes, *spatial).
            target: (B, 1, *spatial), class indices or ``ignore_label``.

        Returns:
            A scalar, 0 or more.
        """
        return self.alpha * self._cross_entropy(logits, target) + (1 - self.alpha) * self._dice(
            logits, target
        )

    def _cross_entropy(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        classes = target[:, 0].long()
        known = classes != self.ignore_label
        each = F.cross_entropy(logits, classes, ignore_index=self.ignore_label, reduction="none")
        each = each.clamp(min=LEAST_LOGARITHM) ** self.gamma_cross * known
        weights = _per_class("class_weights", self.class_weights, logits.new_ones(logits.shape[1]))
        each = each * weights[torch.where(known, classes, 0)]
        return each.sum() / known.sum().clamp(min=1)

    def _dice(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        p, g = _known_alone(logits, target, self.ignore_label)
        axes = [0, *range(2, p.ndim)]
        both = (p * g).sum(axes)[1:]
        dice = (2 * both + PSEUDOCOUNT) / (p.sum(axes)[1:] + g.sum(axes)[1:] + PSEUDOCOUNT)
        each = (-dice.log()).clamp(min=LEAST_LOGARITHM) ** self.gamma
        weights = _per_class("dice_weights", self.dice_weights, torch.ones_like(each))
        return (weights * each).sum() / weights.sum()


def _known_alone(
    logits: torch.Tensor, target: torch.Tensor, ignore_label: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities and truth of each class, (B, classes, *spatial), both 0 where nobody annotated."""
    known = target != ignore_label
    truth = one_hot(torch.where(known, target, 0), logits.shape[1], dtype=logits.dtype)
    return logits.softmax(1) * known, truth * known


def _per_class(name: str, weights: list[float] | None, equal: torch.Tensor) -> torch.Tensor:
    """Weights of the classes, those that were given or equal ones."""
    if weights is None:
        return equal
    if len(weights) != len(equal):
        raise InputError(f"{name} {weights!r} has {len(weights)} entries: give {len(equal)}, one per class")
    return torch.as_tensor(weights).to(equal)
