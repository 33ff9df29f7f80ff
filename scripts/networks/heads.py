"""From the decoder's maps to logits, by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from monai.networks.layers.factories import Conv
from torch import Tensor, nn

from scripts.errors import InputError, require_within
from scripts.networks.blocks import Layers, Stage

#: The head that inference reads.
MAIN_HEAD = "main"


class Heads(Stage):
    """A 1x1 convolution to the logits on the decoder's highest map, and while training on the next ones too.

    "main" is the highest; "deep1", "deep2" and so on are on the levels below it.

    Args:
        layers: what layers are made of.
        in_channels: channels of the decoder's maps, from low to high resolution.
        out_channels: channels of the logits.
        deep_supervision: number of further heads; None gives one to each map.
        bias: whether the convolutions have a bias.
        kernel_size: of the convolutions, odd; they keep the size.

    Raises:
        InputError: more heads than maps, or several with valid padding, where each level sees another field.
    """

    def __init__(
        self,
        layers: Layers,
        in_channels: Sequence[int],
        out_channels: int,
        deep_supervision: int | None = 0,
        bias: bool = True,
        kernel_size: int = 1,
    ) -> None:
        super().__init__(out_channels)
        below_highest = len(in_channels) - 1
        deep_supervision = below_highest if deep_supervision is None else deep_supervision
        require_within("deep_supervision", deep_supervision, 0, below_highest)
        if deep_supervision and layers.padding == "valid":
            raise InputError(
                f'deep_supervision is {deep_supervision} with padding "valid", where each level predicts '
                'another part of the image: use 0, or padding "same"'
            )
        self.expected = len(in_channels)
        head = Conv[Conv.CONV, layers.spatial_dims]
        main, *below = reversed(in_channels)
        settings = {"padding": kernel_size // 2, "bias": bias}
        self.main = head(main, out_channels, kernel_size, **settings)
        self.deep = nn.ModuleDict(
            {
                f"deep{i}": head(below[i - 1], out_channels, kernel_size, **settings)
                for i in range(1, deep_supervision + 1)
            }
        )

    def forward(self, maps: list[Tensor]) -> Tensor | dict[str, Tensor]:
        """Logits of the highest map, `(B, out_channels, *size)`; while training of all heads, by name."""
        if not torch.jit.is_scripting():
            self.check(maps)
            if self.training and len(self.deep) > 0:
                return self.all_heads(maps)
        return self.main(maps[-1])

    @torch.jit.unused
    def check(self, maps: list[Tensor]) -> None:
        """Refuse the maps of a decoder that was cut, of which the heads have learnt nothing.

        Raises:
            InputError: fewer maps than the heads were made for.
        """
        if len(maps) != self.expected:
            raise InputError(
                f"the decoder gives {len(maps)} of its {self.expected} maps, and the network's only head is "
                "on the last: use all of its depth, or train it with heads on each, as "
                "configs/network/unetplusplus.json does"
            )

    @torch.jit.unused
    def all_heads(self, maps: list[Tensor]) -> dict[str, Tensor]:
        """Logits of every head by its name, from high to low resolution."""
        heads = {MAIN_HEAD: self.main, **self.deep}
        return {name: head(x) for (name, head), x in zip(heads.items(), reversed(maps), strict=False)}


def main_logits(output: Any) -> Tensor:
    """The logits that inference reads.

    Args:
        output: what a network gives: logits, or a dictionary of logits by the name of their head.

    Raises:
        InputError: anything else, such as a list, of which nothing says what counts.
    """
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping) and MAIN_HEAD in output:
        return output[MAIN_HEAD]
    names = f" of {', '.join(map(str, output))}" if isinstance(output, Mapping) else ""
    raise InputError(
        f"the network gives a {type(output).__name__}{names}: it must give logits, or a dictionary of them "
        f"in which {MAIN_HEAD!r} is the head that counts"
    )
