"""Several trained networks that answer as one."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from scripts.errors import InputError
from scripts.networks.heads import main_logits


class Ensemble(nn.Module):
    """The mean of the probabilities of several networks of one kind, for inference.

    To an inferer, a runtime or an export it is one network.

    Args:
        network: what all members are copies of; takes (B, C, *spatial), gives logits (B, classes, *spatial).
        checkpoints: files of weights, one for each member. `scripts.handlers.WeightsLoader` reads them; here
            they are counted alone.

    Raises:
        InputError: no list, or an empty one.
    """

    def __init__(self, network: nn.Module, checkpoints: Sequence[str]) -> None:
        super().__init__()
        if isinstance(checkpoints, str) or not checkpoints:
            raise InputError(f"checkpoint is {checkpoints!r}: give an ensemble a list of one file or more")
        self.members = nn.ModuleList(copy.deepcopy(network) for _ in checkpoints)

    def forward(self, x: Tensor) -> Tensor:
        """Logarithms of the mean probabilities, which softmax turns back into them.

        Args:
            x: (B, C, *spatial).

        Returns:
            (B, classes, *spatial).
        """
        logs = torch.stack([main_logits(member(x)).float().log_softmax(1) for member in self.members])
        return logs.logsumexp(0) - math.log(len(self.members))
