"""Dice plus cross entropy that leaves out what nobody annotated, and weighs single voxels where asked.

Source of the weighted cross entropy:
    O. Ronneberger, P. Fischer, T. Brox, "U-Net: Convolutional Networks for Biomedical Image Segmentation",
    MICCAI 2015, equation 1: the sum of w(x) log p(x) over the pixels; here divided by their number.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from monai.losses import DeepSupervisionLoss, DiceLoss
from torch import nn

from scripts.errors import InputError
from scripts.labels import IGNORE_LABEL


class HeadsLoss(DeepSupervisionLoss):
    """The loss of each head of a network against one target, shrunk to the head's size, and their sum.

    Arguments are those of MONAI's DeepSupervisionLoss, which takes a list.
    """

    def forward(  # type: ignore[override]
        self, input: torch.Tensor | Mapping[str, torch.Tensor], target: torch.Tensor
    ) -> torch.Tensor:
        """Loss of a batch.

        Args:
            input: logits (B, classes, *spatial); or those of several heads by name, from high to low
                resolution.
            target: see the loss.

        Returns:
            A scalar.

        Raises:
            InputError: a list, of which nothing says what each entry is.
        """
        if isinstance(input, list | tuple):
            raise InputError(
                f"the network gives a {type(input).__name__} of {len(input)} outputs, and nothing says what "
                "they are: have it give a dictionary by name, or set train::loss_function to MONAI's "
                "DeepSupervisionLoss if they are its levels"
            )
        return super().forward(list(input.values()) if isinstance(input, Mapping) else input, target)


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
