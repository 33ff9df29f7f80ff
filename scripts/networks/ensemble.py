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
        checkpoints: files of weights, or names, one for each member. `scripts.handlers.WeightsLoader` reads
            the files; here they are counted alone.
        dropout: that of the networks, which read it in the config; it stands here where hosts set it.

    Raises:
        InputError: no list, or an empty one.
    """

    def __init__(self, network: nn.Module, checkpoints: Sequence[str], dropout: float = 0.0) -> None:
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
        logs: list[Tensor] = []
        for member in self.members:
            logits = member(x)
            if torch.jit.is_scripting():  # which knows no heads
                assert isinstance(logits, Tensor)
            else:
                logits = main_logits(logits)
            logs.append(logits.float().log_softmax(1))
        return torch.stack(logs).logsumexp(0) - math.log(len(logs))
